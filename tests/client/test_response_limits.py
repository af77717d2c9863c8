"""Limits on what a server can make the client do."""

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator

import aiohttp
import pytest

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    ElkImagesError,
    EmptyResultError,
    Limits,
    RequestTimeoutError,
    ResponseError,
    Timeout,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    B64,
    COMPLETED,
    COMPLETED_TYPE,
    GOOD,
    PARTIAL,
    check_clean,
    failure,
    in_both_modes,
    require_header_limit,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    End,
    RawServer,
    event,
    head,
    open_stream,
    response,
    stream,
)

MIB = 1024 * 1024


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    """A client limited to one MiB and ten seconds."""
    limits = Limits(max_response_bytes=MIB)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, timeout=10, limits=limits
    ) as client:
        yield client


# --- bytes ------------------------------------------------------------------


@in_both_modes
async def test_response_at_the_limit(raw_server: RawServer, streaming: bool) -> None:
    """A response of exactly the limit is read; one byte more is an error."""
    body = COMPLETED + DONE if streaming else json.dumps({"data": [{"b64_json": B64}]}).encode()
    for limit, fits in ((len(body), True), (len(body) - 1, False)):
        raw_server.reply_with(stream(body) if streaming else response(body))
        limits = Limits(max_response_bytes=limit)
        async with AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits) as client:
            if fits:
                _, result = await run_call(client, streaming)
                assert result[0].content == PNG
            else:
                error = await failure(ResponseError, client, streaming)
                assert error.billing == "unknown"


@in_both_modes
async def test_endless_response_memory(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """An endless image ends at the limit, and little more than that is held."""
    start = b'{"data": [{"b64_json": "' if not streaming else b'data: {"b64_json": "'
    piece = b"A" * 64 * 1024
    raw_server.reply_with([*open_stream(start, *[piece] * 64), End.HOLD])
    await run_good_call(client, raw_server)
    raw_server.reply_with([*open_stream(start, *[piece] * 64), End.HOLD])
    tracemalloc.start()
    try:
        error = await failure(ResponseError, client, streaming)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "max_response_bytes" in str(error)
    assert peak < 6 * MIB
    await raw_server.wait_disconnected()


async def run_good_call(client: AsyncImages, raw_server: RawServer) -> None:
    """Make a successful call, so that one-time costs are paid."""
    raw_server.reply_with(GOOD)
    assert len(await client.generate("a boat")) == 1


@in_both_modes
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity, gzip", "gzip, gzip", "br"])
async def test_encoded_response(
    client: AsyncImages, raw_server: RawServer, encoding: str, streaming: bool
) -> None:
    """A response in an unrequested encoding is the image or an error, never wrong bytes."""
    body = COMPLETED + DONE if streaming else json.dumps({"data": [{"b64_json": B64}]}).encode()
    raw_server.reply_with(response(gzip.compress(body), Content_Encoding=encoding))
    await image_or_failure(client, streaming)


@in_both_modes
async def test_gzip_bomb(streaming: bool) -> None:
    """A response that grows from half a MiB to 512 ends at the limit, with little memory."""
    limits = Limits(max_response_bytes=4 * MIB)
    async with (
        LocalServer(api_key=API_KEY, light=True, delay=0) as server,
        AsyncImages(API_KEY, base_url=server.base_url, limits=limits, timeout=20) as client,
    ):
        await client.generate("a boat")
        server.inject("gzip-bomb")
        error = await failure(ResponseError, client, streaming)
        assert "longer than 4,194,304 bytes" in str(error)
        assert (error.billing, error.attempts) == ("unknown", 1)
        await server.wait_until(lambda: server.connections == 0)


@in_both_modes
async def test_gzip_that_is_cut(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A gzipped response that ends too early is an error."""
    whole = gzip.compress(json.dumps({"data": [{"b64_json": B64}]}).encode(), mtime=0)
    raw_server.reply_with(response(whole[: len(whole) // 2], Content_Encoding="gzip"))
    error = await failure_of_any_kind(client, streaming)
    assert error.billing == "unknown"


async def image_or_failure(client: AsyncImages, streaming: bool) -> None:
    """Return the expected image, or an error after a single attempt."""
    try:
        _, result = await run_call(client, streaming)
    except ElkImagesError as error:
        failed: ElkImagesError | None = error
    else:
        failed = None
        assert result[0].content == PNG
    if failed is not None:
        check_clean(failed)
        assert (failed.billing, failed.attempts) == ("unknown", 1)


async def failure_of_any_kind(client: AsyncImages, streaming: bool) -> ElkImagesError:
    """Return the error of a call, of any class of this package."""
    with pytest.raises(ElkImagesError) as caught:
        await run_call(client, streaming)
    check_clean(caught.value)
    return caught.value


# --- headers ----------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    "start",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X-Endless: " + b"x" * 1000 + b"\r\n"] * 2000],
        [b"HTTP/1.1 200 OK\r\nX-Long: ", *[b"x" * 4000] * 500],
        [b"HTTP/1.1 200 " + b"x" * 100_000],
        [b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [b"\x16\x03\x01\x00\x00"],
    ],
    ids=["many", "long", "reason", "no-colon", "no-http", "binary"],
)
async def test_head_endless_or_invalid(
    client: AsyncImages, raw_server: RawServer, start: list[bytes], streaming: bool
) -> None:
    """Endless headers and invalid HTTP fail at once and are not retried."""
    if len(start) > 2000:
        require_header_limit()
    raw_server.reply_with([*start, End.HOLD])
    error = await failure_of_any_kind(client, streaming)
    assert isinstance(error, ResponseError)
    assert (error.billing, error.attempts) == ("unknown", 1)
    await raw_server.wait_disconnected()
    await run_good_call(client, raw_server)


@in_both_modes
async def test_cookies_are_not_kept(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """Cookies set by a server are not sent back."""
    raw_server.reply_with([head(200, Set_Cookie="a=b; Path=/", Content_Length="2"), b"{}"])
    await failure(EmptyResultError, client, streaming)
    await run_good_call(client, raw_server)
    assert raw_server.accepted == 1
    assert all("cookie" not in request.headers for request in raw_server.requests)


@in_both_modes
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_redirect_is_not_followed(
    client: AsyncImages, raw_server: RawServer, status: int, streaming: bool
) -> None:
    """A redirect of the POST is an error that names its target, which receives nothing."""
    async with RawServer(GOOD) as elsewhere:
        location = f"{elsewhere.base_url}/images/generations?token=secret"
        raw_server.reply_with([head(status, Location=location, Content_Length="0")])
        error = await failure_of_any_kind(client, streaming)
        assert elsewhere.accepted == 0
    assert error.attempts == len(raw_server.requests) == 1
    assert isinstance(error, ResponseError)
    if status != 304:
        assert elsewhere.origin in str(error)


# --- streams ----------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    ("ping", "pause"),
    [
        (b": PING\n\n", False),
        (b"data:\n\n", False),
        (b'data: {"type": "keepalive"}\n\n', False),
        (b"\n", True),
    ],
    ids=["comment", "empty", "keepalive", "blank"],
)
async def test_pings_do_not_extend_the_idle_limit(
    raw_server: RawServer, ping: bytes, pause: bool, streaming: bool
) -> None:
    """Pings of any kind do not extend the idle limit; a later response is lost."""
    raw_server.reply_with([*open_stream(*[ping] * 50), End.HOLD])
    timeout = Timeout(total=20, idle=0.2)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, timeout=timeout) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.phase, error.billing) == ("idle", "body", "unknown")
    await raw_server.wait_disconnected()


@in_both_modes
async def test_endless_pings_that_count(streaming: bool) -> None:
    """With `pings_count`, pings extend the idle limit but neither the total nor the size limit."""
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        timeout = Timeout(total=20, idle=0.2, pings_count=True)
        limits = Limits(max_response_bytes=1000)
        async with AsyncImages(
            API_KEY, base_url=server.base_url, timeout=timeout, limits=limits
        ) as client:
            server.inject("endless-pings=0.005")
            error = await failure(ResponseError, client, streaming)
            assert "longer than 1,000 bytes" in str(error)
            await server.wait_until(lambda: server.connections == 0)


@in_both_modes
@pytest.mark.parametrize("name", [b"event: ", b"id: ", b"retry: ", b"foo: ", b": "])
async def test_endless_field_line(
    client: AsyncImages, raw_server: RawServer, name: bytes, streaming: bool
) -> None:
    """An endless line other than data is skipped; at the size limit the call ends."""
    raw_server.reply_with(stream(name + b"x" * 300_000 + b"\n\n", COMPLETED, DONE))
    _, result = await run_call(client, streaming)
    assert result[0].content == PNG
    raw_server.reply_with([*open_stream(name, *[b"x" * 60_000] * 20), End.HOLD])
    error = await failure(ResponseError, client, streaming)
    assert "max_response_bytes" in str(error)


@in_both_modes
@pytest.mark.parametrize("frame", [b"data: {}\n\n", b'data: {"type": "x"}\n\n', b"data: x\n\n"])
async def test_events_without_an_image(
    client: AsyncImages, raw_server: RawServer, frame: bytes, streaming: bool
) -> None:
    """Thousands of events without an image do not prevent the delivery of one after them."""
    raw_server.reply_with(stream(frame * 20_000, COMPLETED, DONE))
    events, result = await run_call(client, streaming)
    assert result[0].content == PNG
    assert [type(each) for each in events] == [CompletedImage] * streaming


@in_both_modes
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"data":[', b'[{"b64_json":'])
@pytest.mark.parametrize("closed", [False, True])
async def test_deep_json(
    client: AsyncImages, raw_server: RawServer, opening: bytes, closed: bool, streaming: bool
) -> None:
    """Very deeply nested JSON is an error, in a body and in an event."""
    closing = {b"[": b"]", b'{"a":': b"}", b'{"data":[': b"]}", b'[{"b64_json":': b"}]"}[opening]
    deep = opening * 20_000 + (b"1" + closing * 20_000 if closed else b"")
    bodies = [response(deep), stream(b"data: " + deep + b"\n\n"), response(deep, status=400)]
    for body in bodies:
        raw_server.reply_with(body)
        error = await failure_of_any_kind(client, streaming)
        assert error.attempts == 1


@in_both_modes
async def test_deep_json_beside_an_image(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A deeply nested field beside a completed image does not lose it silently."""
    deep = b"[" * 5_000 + b"]" * 5_000
    fields = json.dumps({"type": COMPLETED_TYPE, "b64_json": B64, "deep": 0}).encode()
    raw_server.reply_with(stream(event(fields.replace(b'"deep": 0', b'"deep": ' + deep)), DONE))
    await image_or_failure(client, streaming)


# --- sessions and streams ---------------------------------------------------


async def test_headers_of_a_borrowed_session_stay_with_the_api(raw_server: RawServer) -> None:
    """Headers that a borrowed session adds, such as credentials, are not sent to the image host."""
    async with RawServer(response(PNG)) as host:
        raw_server.reply_with(response({"data": [{"url": f"{host.origin}/a.png"}]}))
        secrets = {"X-Api-Key": "hush", "Authorization": "Bearer hush"}
        async with (
            aiohttp.ClientSession(headers=secrets) as session,
            AsyncImages(API_KEY, base_url=raw_server.base_url, session=session) as client,
        ):
            (image,) = await client.generate("a boat")
            assert await image.read() == PNG
        assert "hush" not in str(host.requests[0].headers)


@pytest.mark.parametrize("streaming", [True])
async def test_error_after_a_partial_image(
    client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """After an error event that does not say that nothing began, the billing is unknown."""
    raw_server.reply_with(stream(PARTIAL, event({"error": {"message": "it broke"}}, "error")))
    error = await failure_of_any_kind(client, streaming)
    assert error.billing == "unknown"
