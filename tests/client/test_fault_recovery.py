"""The local server's faults, through the client."""

import pytest

from elkimg_async import (
    AsyncImages,
    BadRequestError,
    ConnectError,
    DisconnectedError,
    ElkImagesError,
    EmptyResultError,
    Limits,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
    ServerError,
    StreamIncompleteError,
    Timeout,
)
from elkimg_async.local import FAULTS, LocalServer
from tests.helpers.calls import (
    QUICK,
    failure,
    in_both_modes,
    require_header_limit,
    run_call,
)

INCOMPLETE = StreamIncompleteError
ENDINGS: dict[str, tuple[type[ElkImagesError] | None, type[ElkImagesError] | None]] = {
    "rate-limit": (RateLimitError, RateLimitError),
    "error": (ServerError, ServerError),
    "redirect": (ResponseError, ResponseError),
    "none": (None, None),
    "reset-before-headers": (DisconnectedError, DisconnectedError),
    "reset-in-headers": (DisconnectedError, DisconnectedError),
    "reset-in-body": (DisconnectedError, DisconnectedError),
    "close-before-headers": (DisconnectedError, DisconnectedError),
    "truncate-length": (DisconnectedError, DisconnectedError),
    "truncate-chunked": (DisconnectedError, DisconnectedError),
    "truncate-close": (ResponseError, INCOMPLETE),
    "stall-headers": (RequestTimeoutError, RequestTimeoutError),
    "stall-body": (RequestTimeoutError, RequestTimeoutError),
    "stall-stream": (RequestTimeoutError, RequestTimeoutError),
    "keep-alive-close": (None, None),
    "trickle=997": (None, None),
    "split=1,2,100,300": (None, None),
    "drip=0": (None, None),
    "endless-pings": (RequestTimeoutError, RequestTimeoutError),
    "endless-headers": (ResponseError, ResponseError),
    "endless-interim": (RequestTimeoutError, RequestTimeoutError),
    "corrupt-partial": (None, None),
    "corrupt-final": (ResponseError, ResponseError),
    "wrong-type": (None, None),
    "html": (ResponseError, ResponseError),
    "empty": (EmptyResultError, INCOMPLETE),
    "body={}": (EmptyResultError, EmptyResultError),
    "stream-for-json": (None, None),
    "json-for-stream": (None, None),
    "error-in-200": (ServerError, ServerError),
    "bare-error": (None, ServerError),
    "error-event": (None, ServerError),
    "no-completed": (EmptyResultError, INCOMPLETE),
    "twice-completed": (None, None),
    "after-done": (None, None),
    "gzip": (None, None),
    "gzip-bomb=1": (ResponseError, ResponseError),
    "truncated-gzip": (ResponseError, StreamIncompleteError),
    "refuse": (ConnectError, ConnectError),
    "large-headers": (None, None),
    "dialect": (None, None),
    "partial-succeeded": (None, None),
    "doubled-data": (None, None),
    "ndjson": (None, None),
    "error-body": (BadRequestError, BadRequestError),
    "status-402": (QuotaExceededError, QuotaExceededError),
    "web-page": (PermissionDeniedError, PermissionDeniedError),
}


def test_every_fault_has_an_ending() -> None:
    """The table above is complete."""
    assert {name.partition("=")[0] for name in ENDINGS} == FAULTS.keys()


@in_both_modes
@pytest.mark.parametrize("fault", ENDINGS)
async def test_fault(server: LocalServer, fault: str, streaming: bool) -> None:
    """Each fault ends as images or as the error that it means, and the next call works."""
    if fault == "endless-headers":
        require_header_limit()
    kind = ENDINGS[fault][streaming]
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        reference = await client.generate("a boat")
    await server.wait_until(lambda: server.connections == 0)
    server.inject(fault)
    timeout = Timeout(total=0.3 if kind is RequestTimeoutError else 30)
    limits = Limits(max_response_bytes=1024 * 1024)
    async with AsyncImages(
        server.api_key, base_url=server.base_url, timeout=timeout, retry=0, limits=limits
    ) as client:
        if kind is None:
            _, result = await run_call(client, streaming)
            assert result[0] == reference[0]
        else:
            error = await failure(kind, client, streaming)
            seen = [request.request_id for request in server.requests]
            assert error.request_id in (None, seen[-1])
        if fault != "refuse":
            again = await client.generate("a boat", timeout=30, retry=QUICK)
            assert again.data == reference.data
