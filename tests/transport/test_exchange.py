"""One request and its response: large headers, lost connections and billing of failures."""

import pytest

from elkimg_async import AsyncImages, DisconnectedError
from tests.helpers.calls import GOOD, QUICK, failure, in_both_modes, run_call
from tests.helpers.raw_server import API_KEY, PNG, End, RawServer, response


@in_both_modes
@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Security-Policy: " + "a" * 9_000],
        ["X-Upstream-Debug: " + "a" * 127_000],
        [f"X-Upstream-{n}: v" for n in range(300)],
        [f"Set-Cookie: c{n}={'v' * 400}" for n in range(300)],
    ],
    ids=["9 KB", "127 KB", "300 lines", "300 long lines"],
)
async def test_response_head_is_large(
    raw_server: RawServer, lines: list[str], streaming: bool
) -> None:
    """Response heads of proxies that add policies and cookies are accepted."""
    start, body = GOOD
    assert isinstance(start, bytes)
    raw_server.reply_with(
        [start[:-2] + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n", body]
    )
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        _, result = await run_call(client, streaming)
    assert result[0].content == PNG


@in_both_modes
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_connection_lost_after_sending(
    raw_server: RawServer, end: End, streaming: bool
) -> None:
    """A request whose connection is lost after sending may be billed, so it is not retried."""
    raw_server.reply_with([end])
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK) as client:
        error = await failure(DisconnectedError, client, streaming)
    assert (error.billing, error.attempts, len(raw_server.requests)) == ("unknown", 1, 1)


async def test_own_headers_reach_the_server(raw_server: RawServer) -> None:
    """A Host and a non-ASCII header of the user's own are sent, and replace ours."""
    headers = {"host": "images.example", "X-Team": "bücher", "user-agent": "mine"}
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, headers=headers) as client:
        await client.generate("a boat")
    (request,) = raw_server.requests
    assert request.headers["host"] == "images.example"
    assert request.headers["x-team"] == "bücher"
    assert request.headers["user-agent"] == "mine"
    assert request.headers["authorization"] == f"Bearer {API_KEY}"
    assert request.headers["accept-encoding"] == "identity"


async def test_request_with_a_query(raw_server: RawServer) -> None:
    """A download's query is sent as it was written, since a signature covers it."""
    query = "/a%2Fb.png?sig=a%2Bb%3d&x=+%20&y=%e4"
    async with RawServer(response(PNG)) as host:
        raw_server.reply_with(response({"data": [{"url": f"{host.origin}{query}"}]}))
        async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
            await (await client.generate("a boat"))[0].read()
        assert host.requests[0].target == query
