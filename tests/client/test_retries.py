"""Retries and idempotency keys."""

import asyncio

import pytest

from elkimg_async import (
    AsyncImages,
    ConnectError,
    DisconnectedError,
    PartialImage,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from elkimg_async.hooks import AttemptStarted, Record, RetryScheduled
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    BUSY,
    GOOD,
    PARTIAL,
    QUICK,
    check_clean,
    error_body,
    error_response,
    failure,
    failure_of_any_kind,
    images_json,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    End,
    RawServer,
    Reply,
    open_stream,
    response,
    stream,
)


@in_both_modes
async def test_idempotency_key(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """The attempts of a call share one idempotency key; each call has its own."""
    raw_server.reply_with(BUSY, BUSY, GOOD)
    await run_call(raw_client, streaming)
    await run_call(raw_client, streaming)
    *first, second = (request.headers["idempotency-key"] for request in raw_server.requests)
    assert len(first) == 3
    assert len(set(first)) == 1
    assert second != first[0]
    assert len(second) >= 32


@in_both_modes
async def test_idempotency_off(raw_server: RawServer, streaming: bool) -> None:
    """With `off` no idempotency key is sent."""
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, idempotency="off") as client:
        await run_call(client, streaming)
    assert "idempotency-key" not in raw_server.requests[0].headers


@in_both_modes
@pytest.mark.parametrize(
    "fault", ["reset-before-headers", "close-before-headers", "truncate-length"]
)
async def test_idempotency_replay(server: LocalServer, fault: str, streaming: bool) -> None:
    """With `replay` a call whose outcome is unknown is tried again, and billed once."""
    server.inject(fault)
    async with AsyncImages(
        server.api_key, base_url=server.base_url, idempotency="replay", retry=QUICK
    ) as client:
        _, result = await run_call(client, streaming, partial_images=0 if streaming else None)
    assert len(result) == 1
    assert result.meta.attempts == len(server.requests) == 2
    assert server.generations == 1


@in_both_modes
async def test_unknown_outcome_is_not_retried(server: LocalServer, streaming: bool) -> None:
    """Without `replay`, a call that failed after sending is not retried: it may be billed."""
    server.inject("reset-before-headers")
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=QUICK) as client:
        error = await failure(DisconnectedError, client, streaming)
    assert (error.billing, error.phase) == ("unknown", "first_byte")
    assert len(server.requests) == server.generations == 1


# Unlike a 429, it slows only its own call.
OVERLOADED = error_response(503, "system_cpu_overloaded")


class Delays:
    """Hook that collects the delays before retries and counts attempts."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.attempts = 0

    def __call__(self, record: Record) -> None:
        if isinstance(record, RetryScheduled):
            self.delays.append(record.delay)
        self.attempts += isinstance(record, AttemptStarted)


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        error_response(408),
        error_response(425),
        error_response(429),
        response(b"", status=429),
        error_response(500, "do_request_failed"),
        error_response(529),
        error_response(503, "system_cpu_overloaded"),
        error_response(409, "idempotency_key_in_flight"),
        error_response(400, X_Should_Retry="true"),
    ],
    ids=[
        "408",
        "425",
        "429",
        "429-empty",
        "500-upstream",
        "529",
        "503",
        "409-in-flight",
        "should-retry",
    ],
)
async def test_retried(
    raw_client: AsyncImages, raw_server: RawServer, reply: Reply, streaming: bool
) -> None:
    """A transient failure that cannot have created an image is retried."""
    raw_server.reply_with(reply, reply, GOOD)
    _, result = await run_call(raw_client, streaming)
    assert result.meta.attempts == len(raw_server.requests) == 3
    bodies = {request.body for request in raw_server.requests}
    assert len(bodies) == 1


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        error_response(400),
        error_response(401),
        error_response(403, "insufficient_user_quota"),
        error_response(404),
        error_response(409),
        error_response(413),
        error_response(422),
        error_response(429, "insufficient_quota"),
        error_response(429, X_Should_Retry="false"),
        error_response(500, "invalid_request"),
        error_response(500),
        error_response(500, "500"),
        error_response(500, "bad_response_body"),
        error_response(500, "read_response_body_failed"),
        response(b"<html>", status=500, content_type="text/html"),
        error_response(501, "api_not_implemented"),
        error_response(502),
        error_response(503, "model_not_found"),
        error_response(504),
        error_response(524),
        response(b"<html>", status=524, content_type="text/html"),
        response(error_body(code="do_request_failed")),
        response(images_json()),
        stream(PARTIAL),
    ],
    ids=[
        "400", "401", "403-quota", "404", "409", "413", "422", "429-quota", "429-should-not-retry",
        "500-request", "500", "500-unknown", "500-body", "500-read", "500-html", "501", "502",
        "503-model", "504", "524", "524-html", "200-error", "200-empty", "200-incomplete",
    ],
)  # fmt: skip
async def test_not_retried(
    raw_client: AsyncImages, raw_server: RawServer, reply: Reply, streaming: bool
) -> None:
    """A failure that would repeat, or may have created an image, is not retried."""
    raw_server.reply_with(reply)
    error = await failure_of_any_kind(raw_client, streaming)
    assert error.attempts == len(raw_server.requests) == 1


@in_both_modes
@pytest.mark.parametrize(
    ("fault", "made"), [("rate-limit*2", 1), ("error=500/do_request_failed*2", 1)]
)
async def test_retried_at_the_local_server(
    client: AsyncImages, server: LocalServer, fault: str, made: int, streaming: bool
) -> None:
    """Two error responses and an image take three requests, of which one is billed."""
    server.inject(fault)
    _, result = await run_call(client, streaming)
    assert len(result) == 1
    assert (len(server.requests), server.generations) == (3, made)
    assert result.meta.attempts == 3


@in_both_modes
@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_retries_are_counted(raw_server: RawServer, retries: int, streaming: bool) -> None:
    """The number of retries applies to the client or a call; then the last error is raised."""
    raw_server.reply_with(OVERLOADED)
    policy = RetryPolicy(retries, initial_backoff=0)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=policy) as client:
        error = await failure(ServerError, client, streaming)
        assert error.attempts == len(raw_server.requests) == retries + 1
        await failure(ServerError, client, streaming, retry=0)
    assert len(raw_server.requests) == retries + 2


@in_both_modes
@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({"Retry_After_Ms": "15"}, 0.015),
        ({"Retry_After": "0.01"}, 0.01),
        ({"Retry_After": "0"}, 0.0),
        ({"Retry_After_Ms": "10", "Retry_After": "60"}, 0.01),
        ({"Retry_After": "Mon, 01 Jan 2024 00:00:00 GMT"}, 0.0),
    ],
    ids=["ms", "seconds", "zero", "ms-first", "past-date"],
)
async def test_retry_after(
    raw_server: RawServer, headers: dict[str, str], delay: float, streaming: bool
) -> None:
    """Retry-After is followed exactly, without jitter."""
    seen = Delays()
    raw_server.reply_with(error_response(429, **headers), GOOD)
    retry = RetryPolicy(initial_backoff=100, max_backoff=100)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, hooks=[seen], retry=retry
    ) as client:
        _, result = await run_call(client, streaming)
    assert seen.delays == [delay]
    assert result.meta.elapsed >= delay


@in_both_modes
async def test_retry_after_that_is_too_long(raw_server: RawServer, streaming: bool) -> None:
    """A Retry-After beyond the policy or the deadline ends the call."""
    raw_server.reply_with(error_response(429, Retry_After="121"))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        error = await failure(RateLimitError, client, streaming)
        assert error.retry_after == 121.0
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        raw_server.reply_with(error_response(429, Retry_After="30"))
        error = await failure(RateLimitError, client, streaming, timeout=10)
        assert error.retry_after == 30.0
    assert len(raw_server.requests) == 2


async def test_backoff_grows(raw_server: RawServer) -> None:
    """Without Retry-After, delays are random, below a growing and bounded limit."""
    seen = Delays()
    raw_server.reply_with(OVERLOADED)
    policy = RetryPolicy(6, initial_backoff=0.001, max_backoff=0.004)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, hooks=[seen], retry=policy
    ) as client:
        await failure(ServerError, client)
    assert len(seen.delays) == 6
    for delay, most in zip(seen.delays, (0.001, 0.002, 0.004, 0.004, 0.004, 0.004), strict=True):
        assert 0 <= delay <= most
    assert len(set(seen.delays)) > 1


async def test_retry_budget(raw_server: RawServer) -> None:
    """All calls of a client and its views share a number of retries; a success returns one."""
    raw_server.reply_with(OVERLOADED)
    policy = RetryPolicy(2, initial_backoff=0, budget=3)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=policy) as client:
        view = client.with_options(headers={"X-A": "b"})
        tries = [(await failure(ServerError, each)).attempts for each in (client, view, client)]
        assert tries == [3, 2, 1]
        raw_server.reply_with(GOOD)
        await client.generate("a boat")
        raw_server.reply_with(OVERLOADED)
        assert (await failure(ServerError, client)).attempts == 2


@in_both_modes
async def test_unreachable_server_is_retried(raw_server: RawServer, streaming: bool) -> None:
    """An unreachable server cannot have created an image, so the call is retried."""
    seen = Delays()
    async with RawServer() as gone:
        base_url = gone.base_url
    async with AsyncImages(API_KEY, base_url=base_url, hooks=[seen], retry=QUICK) as client:
        error = await failure(ConnectError, client, streaming)
    assert error.attempts == seen.attempts == 3
    assert (error.phase, error.billing) == ("connect", "not_sent")
    assert f"127.0.0.1:{gone.port} cannot be reached" in str(error)


async def test_host_that_does_not_exist() -> None:
    """A host name that does not resolve is a ConnectError that says so."""
    async with AsyncImages(API_KEY, base_url="http://unknown.invalid/v1", retry=0) as client:
        error = await failure(ConnectError, client)
    assert "unknown.invalid" in str(error)
    assert error.billing == "not_sent"


async def test_server_without_tls(raw_server: RawServer) -> None:
    """TLS that fails is a ConnectError."""
    raw_server.reply_with([b"HTTP/1.1 400 no TLS\r\n\r\n", End.CLOSE])
    base_url = raw_server.base_url.replace("http:", "https:")
    async with AsyncImages(API_KEY, base_url=base_url, retry=0) as client:
        server_ends = asyncio.ensure_future(_close_connections(raw_server))
        error = await failure(ConnectError, client)
        await server_ends
    assert error.billing == "not_sent"


async def _close_connections(raw_server: RawServer) -> None:
    await raw_server.wait_until(lambda: raw_server.connections > 0)
    for connection in list(raw_server._open):
        connection.transport.abort()


async def test_pooled_connection_that_was_closed(client: AsyncImages, server: LocalServer) -> None:
    """A pooled connection that the server has closed does not fail the next call."""
    for _ in range(3):
        server.inject("keep-alive-close")
        await client.generate("a boat")
        await server.wait_until(lambda: server.connections == 0)
    assert server.generations == 3


@pytest.mark.parametrize("read", [1, 2])
async def test_no_retry_after_a_delivered_event(raw_server: RawServer, read: int) -> None:
    """A stream that breaks after an event is not retried, even with replay."""
    raw_server.reply_with([*open_stream(PARTIAL, PARTIAL), End.RESET])
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, idempotency="replay", retry=QUICK
    ) as client:
        async with client.generate("a boat", stream=True) as stream:
            for _ in range(read):
                assert isinstance(await anext(stream), PartialImage)
            with pytest.raises(DisconnectedError) as caught:
                await stream.result()
        check_clean(caught.value)
    assert caught.value.attempts == len(raw_server.requests) == 1
