"""Servers with unusual or invalid HTTP."""

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from elkimg_async import (
    AsyncImages,
    ConfigurationError,
    DownloadError,
    ElkImagesError,
    RequestTimeoutError,
    ResponseError,
    Timeout,
)
from tests.helpers.calls import (
    B64,
    COMPLETED,
    GOOD,
    QUICK,
    SOON,
    failure,
    failure_of_any_kind,
    in_both_modes,
    require_header_limit,
    run_call,
)
from tests.helpers.raw_server import API_KEY, DONE, PNG, End, RawServer, Reply, head, response

BODY = json.dumps({"data": [{"b64_json": B64}]}).encode()


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, retry=QUICK, timeout=10
    ) as client:
        yield client


def raw(status: str, *lines: str, body: bytes = b"") -> Reply:
    """Return a reply verbatim."""
    return ["\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body]


LENGTH = f"Content-Length: {len(BODY)}"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\nX-Checksum: 1\r\nX-Trailer: a trailer\r\n\r\n" % (len(BODY), BODY)
GOOD_IN_ANY_FORM = {
    "interim responses": [INTERIM, *GOOD],
    "interim responses in one chunk": [INTERIM + b"".join(p for p in GOOD if isinstance(p, bytes))],
    "trailers": raw("200 OK", "Transfer-Encoding: chunked", body=CHUNKED),
    "no reason": raw("200", LENGTH, body=BODY),
    "status 201": raw("201 Created", LENGTH, body=BODY),
    "a header twice": raw("200 OK", LENGTH, "X-A: 1", "X-A: 2", body=BODY),
    "a header in Latin-1": [
        b"HTTP/1.1 200 OK\r\nX-A: caf\xe9\r\n" + LENGTH.encode() + b"\r\n\r\n" + BODY
    ],
    "until the end": [*raw("200 OK", "Connection: close", body=BODY), End.CLOSE],
    "reset after the whole of it": [*raw("200 OK", "Connection: close", body=BODY), End.RESET],
    "shorter than its length": [
        *raw("200 OK", f"Content-Length: {len(BODY) + 9}", body=BODY), End.CLOSE,
    ],
    "HTTP/1.0": [b"HTTP/1.0 200 OK\r\n\r\n" + BODY, End.CLOSE],
    "chunks with extensions": raw(
        "200 OK", "Transfer-Encoding: chunked",
        body=b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    ),
}  # fmt: skip


@in_both_modes
@pytest.mark.parametrize("reply", GOOD_IN_ANY_FORM.values(), ids=GOOD_IN_ANY_FORM.keys())
async def test_unusual_valid_response(
    client: AsyncImages, raw_server: RawServer, reply: Reply, streaming: bool
) -> None:
    """Any valid use of HTTP returns the image."""
    raw_server.reply_with(reply)
    _, result = await run_call(client, streaming)
    assert [image.content for image in result] == [PNG]
    assert len(raw_server.requests) == 1


@in_both_modes
async def test_damage_after_a_complete_response(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """What follows a complete response cannot cost its image, even if it cannot be decoded."""
    body, kind = (COMPLETED + DONE, "text/event-stream") if streaming else (BODY, "text/plain")
    headers = ("Content-Encoding: gzip", f"Content-Type: {kind}", "Connection: close")
    damaged = gzip.compress(body) + b"\x1f\x8bdamaged"
    raw_server.reply_with([*raw("200 OK", *headers, body=damaged), End.CLOSE])
    _, result = await run_call(client, streaming)
    assert [image.content for image in result] == [PNG]
    assert len(raw_server.requests) == 1


BAD = {
    "two lengths": raw("200 OK", LENGTH, "Content-Length: 5", body=BODY),
    "length and chunks": raw("200 OK", LENGTH, "Transfer-Encoding: chunked", body=CHUNKED),
    "a negative length": raw("200 OK", "Content-Length: -5", body=BODY),
    "a length in words": raw("200 OK", "Content-Length: five", body=BODY),
    "another protocol": [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "HTTP/2": [b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d", End.CLOSE],
    "NUL in a header": raw("200 OK", "X-A: a\0b", LENGTH, body=BODY),
    "no content": raw("204 No Content"),
    "a thousand headers": raw(
        "200 OK", *[f"X-{n}: {n}" for n in range(100_000)], LENGTH, body=BODY
    ),
    "an endless status line": [b"HTTP/1.1 200 " + b"x" * 100_000],
}


@in_both_modes
@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
async def test_invalid_response(
    client: AsyncImages, raw_server: RawServer, reply: Reply, streaming: bool
) -> None:
    """Invalid HTTP fails at once with an unknown outcome, and is not retried."""
    if reply in (BAD["NUL in a header"], BAD["a thousand headers"]):
        require_header_limit()
    raw_server.reply_with(reply)
    error = await failure_of_any_kind(client, streaming)
    assert error.billing == "unknown"
    assert not isinstance(error, RequestTimeoutError)
    assert len(raw_server.requests) == 1


@in_both_modes
async def test_switched_protocol(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A server that switches protocols cannot stall the call."""
    raw_server.reply_with(
        [*raw("101 Switching Protocols", "Upgrade: x", "Connection: upgrade"), End.HOLD]
    )
    started = time.monotonic()
    error = await failure_of_any_kind(client, streaming, timeout=Timeout(total=60, idle=0.2))
    assert isinstance(error, (ResponseError, RequestTimeoutError))
    assert error.billing == "unknown"
    assert time.monotonic() - started < SOON


@in_both_modes
async def test_headers_that_trickle(raw_server: RawServer, streaming: bool) -> None:
    """Headers that arrive byte by byte do not extend their limit."""
    pieces: list[Any] = []
    gates = [asyncio.Event() for _ in range(40)]
    for byte, gate in zip(head()[:40], gates, strict=True):
        pieces += [bytes((byte,)), gate]
    raw_server.reply_with([*pieces, End.HOLD])

    async def trickle() -> None:
        for gate in gates:
            await asyncio.sleep(0.02)
            gate.set()

    task = asyncio.create_task(trickle())
    timeout = Timeout(first_byte=0.2)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, timeout=timeout, retry=0
    ) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.billing) == ("first_byte", "unknown")
    task.cancel()


@in_both_modes
async def test_error_response_during_the_upload(streaming: bool) -> None:
    """An error response before the request was read is seen, and the call retried."""
    busy = raw("429 Busy", "Content-Length: 0", "Retry-After: 0")
    async with RawServer(busy, raw("200 OK", LENGTH, body=BODY), reply_after=0) as server:

        async def read_next_request() -> None:
            await server.wait_until(lambda: bool(server.requests))
            server.reply_after = None

        task = asyncio.create_task(read_next_request())
        async with AsyncImages(
            API_KEY, base_url=server.base_url, retry=QUICK, timeout=20
        ) as client:
            _, result = await run_call(client, streaming, extra_body={"x": "y" * 20_000_000})
            assert result[0].content == PNG
            assert result.meta.attempts == 2
        await task
    assert len(server.requests) == 2


@in_both_modes
async def test_unsolicited_response(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A second response on a pooled connection is not used for the next call."""
    wait = asyncio.Event()
    other = response({"data": [{"b64_json": "R0lGODlhb3RoZXI="}]})
    raw_server.reply_with([*GOOD, wait, *other], GOOD)
    _, first = await run_call(client, streaming)
    wait.set()
    for _ in range(20):
        await asyncio.sleep(0)
    _, second = await run_call(client, streaming)
    assert first[0].content == second[0].content == PNG


@in_both_modes
async def test_response_followed_by_another(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A second response that arrives together with the first is not used either."""
    other = response({"data": [{"b64_json": "R0lGODlhb3RoZXI="}]})
    raw_server.reply_with([b"".join(p for p in [*GOOD, *other] if isinstance(p, bytes))], GOOD)
    for _ in range(3):
        _, result = await run_call(client, streaming)
        assert result[0].content == PNG


@pytest.mark.parametrize(
    "url",
    [
        "http://{}/v1\r\nX-Evil: 1",
        "http://{}/v1\nX: 1",
        "http://{}/v 1",
        "http://{}/v1\t",
        "http://{}\r\n.evil/v1",
    ],
)
async def test_base_url_with_a_line_break(raw_server: RawServer, url: str) -> None:
    """A base URL cannot inject a header; it is rejected, or used without the break."""
    with contextlib.suppress(ElkImagesError):
        async with AsyncImages(
            API_KEY, base_url=url.format(raw_server.origin[7:]), retry=0
        ) as client:
            await client.generate("a boat")
    for request in raw_server.requests:
        assert "x-evil" not in request.headers
        assert "x" not in request.headers


@pytest.mark.parametrize(
    "path",
    ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a b HTTP/1.1\r\nX-Evil: 1\r\n\r\n", "a\x00b", "a\rb"],
)
async def test_image_url_with_a_line_break(raw_server: RawServer, path: str) -> None:
    """An image URL cannot inject a header into its request."""
    async with RawServer(response(PNG)) as host:
        raw_server.reply_with(response({"data": [{"url": f"{host.origin}/{path}"}]}))
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, timeout=5) as client:
            (image,) = await client.generate("a boat")
            with contextlib.suppress(DownloadError):
                await image.read()
        assert all("x-evil" not in request.headers for request in host.requests)
        assert len(host.requests) <= 1


# --- the API key ----------------------------------------------------------------


@in_both_modes
async def test_api_key_function_timeout(raw_server: RawServer, streaming: bool) -> None:
    """Waiting for the API key is limited in a stream too, which has no total."""

    async def key() -> str:
        await asyncio.get_running_loop().create_future()
        return API_KEY

    timeout = Timeout(total=float("inf"), first_byte=0.2)
    async with AsyncImages(key, base_url=raw_server.base_url, timeout=timeout, retry=0) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.billing) == ("first_byte", "not_sent")
    assert raw_server.requests == []


@in_both_modes
async def test_api_key_function_that_is_cancelled(raw_server: RawServer, streaming: bool) -> None:
    """Cancellation within an API key function does not cancel the call."""

    async def key() -> str:
        work = asyncio.create_task(asyncio.sleep(10))
        work.cancel()
        await work
        return API_KEY

    async with AsyncImages(key, base_url=raw_server.base_url) as client:
        error = await failure(ConfigurationError, client, streaming)
    assert error.billing == "not_sent"
    assert raw_server.requests == []


@in_both_modes
async def test_api_key_with_a_line_break(raw_server: RawServer, streaming: bool) -> None:
    """A function for the API key cannot inject a header."""

    async def key() -> str:
        return f"{API_KEY}\r\nX-Evil: 1"

    async with AsyncImages(key, base_url=raw_server.base_url) as client:
        error = await failure(ConfigurationError, client, streaming)
    assert API_KEY not in str(error)
    assert raw_server.requests == []
