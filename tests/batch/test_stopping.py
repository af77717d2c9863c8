"""Runs that stop because every further request would fail the same way."""

import socket
from pathlib import Path

import pytest
from aiohttp import web

from elkimg_async import AsyncImages, BatchStoppedError, ConfigurationError, Limits, MapRun
from elkimg_async.batch.journal import JournalIndex
from elkimg_async.errors import AuthenticationError, ConnectError, QuotaExceededError
from tests.helpers.raw_server import API_KEY, PNG, RawServer
from tests.helpers.runs import Fields, Server, images, in_order, rejection, until_the_end

PROMPTS = [str(number) for number in range(500)]


def failing(server: Server, status: int, code: str, *, after: int = 0) -> None:
    """Let a server reject every request after the first few."""

    async def respond(fields: Fields) -> Fields | web.Response:
        return images(PNG) if len(server.requests) <= after else rejection(status, code)

    server.respond = respond


async def stopped(run: MapRun) -> tuple[int, BatchStoppedError]:
    """Return how many items a run yielded before it stopped, and why it stopped."""
    items, error = await until_the_end(run)
    assert isinstance(error, BatchStoppedError)
    assert error.totals.done + error.totals.failed == len(items)
    return len(items), error


@pytest.mark.parametrize(
    ("status", "code", "reason", "kind"),
    [
        (401, "", "authentication", AuthenticationError),
        (403, "insufficient_user_quota", "quota", QuotaExceededError),
        (429, "insufficient_quota", "quota", QuotaExceededError),
    ],
)
async def test_map_stops_after_a_hopeless_error(
    status: int, code: str, reason: str, kind: type[Exception], server: Server, client: AsyncImages
) -> None:
    """A rejected API key or an exhausted quota ends the run after the requests in flight."""
    failing(server, status, code, after=3)
    count, error = await stopped(client.map(PROMPTS, concurrency=4))
    assert error.reason == reason
    assert isinstance(error.__cause__, kind)
    assert error.totals.done == 3
    assert 4 <= len(server.requests) <= count <= 3 + 4


async def test_map_stops_when_the_proxy_requires_a_password(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that rejects CONNECT with 407 is asked once, and ends the run."""
    head = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    raw_server.reply_with([head.encode()])
    monkeypatch.setenv("HTTPS_PROXY", raw_server.base_url.removesuffix("/v1"))
    async with AsyncImages(API_KEY, base_url="https://api.third.test/v1") as client:
        _, error = await stopped(client.map(PROMPTS, concurrency=1))
    assert error.reason == "proxy"
    assert isinstance(error.__cause__, ConnectError)
    assert error.__cause__.status == 407
    assert len(raw_server.requests) == 1


async def test_map_stops_what_waits_for_its_turn(server: Server, tmp_path: Path) -> None:
    """Requests that wait for the rate limit are not sent, and are recorded as not sent."""
    failing(server, 401, "")
    limits = Limits(requests_per_minute=60)
    journal = tmp_path / "run.jsonl"
    async with AsyncImages(API_KEY, base_url=server.base_url, limits=limits, retry=0) as client:
        items, error = await until_the_end(client.map(PROMPTS, concurrency=32, journal=journal))
    assert isinstance(error, BatchStoppedError)
    assert error.reason == "authentication"
    assert len(server.requests) <= 2
    kinds = [type(item.error) for item in items]
    assert kinds.count(AuthenticationError) == len(server.requests)
    assert set(kinds) == {AuthenticationError, BatchStoppedError}
    assert {item.error.billing for item in items if item.error} <= {"refused", "not_sent"}
    index = JournalIndex()
    for line in journal.read_bytes().splitlines(keepends=True):
        index.feed(line)
    assert index.images == 0


async def test_map_stops_without_an_api_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without an API key ends at once, and nothing is sent."""
    monkeypatch.delenv("ELKAPI_API_KEY", raising=False)
    async with AsyncImages(base_url=server.base_url) as client:
        count, error = await stopped(client.map(PROMPTS, concurrency=32))
    assert error.reason == "configuration"
    assert "ELKAPI_API_KEY" in str(error)
    assert isinstance(error.__cause__, ConfigurationError)
    assert 1 <= count <= 32
    assert not server.requests


async def test_map_stops_when_the_host_is_unknown() -> None:
    """A host that cannot be resolved ends the run."""
    async with AsyncImages(API_KEY, base_url="https://nowhere.invalid/v1", retry=0) as client:
        count, error = await stopped(client.map(PROMPTS, concurrency=2))
    assert error.reason == "dns"
    assert isinstance(error.__cause__, ConnectError)
    assert count <= 2


async def test_map_goes_on_when_the_port_is_closed() -> None:
    """A server that is down may come back: its failures are those of single items."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with AsyncImages(API_KEY, base_url=f"http://127.0.0.1:{port}/v1", retry=0) as client:
        items, error = await until_the_end(client.map(PROMPTS[:5]))
    assert error is None
    assert [type(item.error) for item in items] == [ConnectError] * 5


async def test_map_stops_when_the_key_function_fails(server: Server) -> None:
    """An exception of the API key function ends the run; its text is not shown."""
    calls = 0

    async def get_api_key() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(f"no vault for {API_KEY}")
        return API_KEY

    async with AsyncImages(get_api_key, base_url=server.base_url) as client:
        items, error = await until_the_end(client.map(PROMPTS[:4], concurrency=1))
    assert [item.ok for item in in_order(items)] == [True, False]
    assert isinstance(error, BatchStoppedError)
    assert "OSError" in str(error)
    assert API_KEY not in repr(error) + repr(items[1].error)


async def test_map_resumed_after_it_was_stopped(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A stopped run continues from its journal once the cause is fixed."""
    journal = tmp_path / "run.jsonl"
    failing(server, 401, "", after=2)
    _, error = await stopped(client.map(PROMPTS[:6], concurrency=1, journal=journal))
    assert "same journal" in str(error)
    failing(server, 401, "", after=100)
    items, error_again = await until_the_end(client.map(PROMPTS[:6], journal=journal))
    assert error_again is None
    assert [item.resumed for item in in_order(items)] == [True, True, *[False] * 4]
    assert len(server.requests) == 2 + 1 + 4
