"""Images that arrived before a failure are on the error."""

import json

import pytest

from elkimg_async import (
    AsyncImages,
    DisconnectedError,
    ElkImagesError,
    RequestTimeoutError,
    RetryPolicy,
    ServerError,
    StreamIncompleteError,
    Timeout,
)
from tests.helpers.calls import B64, failure_of_any_kind, in_both_modes
from tests.helpers.raw_server import API_KEY, PNG, End, Piece, RawServer, event, head, response

CUT = json.dumps({"created": 1, "data": [{"b64_json": B64}, {"b64_json": B64}]}).encode()[:-40]
PARTIAL = event({"type": "image_generation.partial_image", "b64_json": B64})


@in_both_modes
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, End.HOLD])
async def test_images_of_a_body_that_breaks_off(
    raw_server: RawServer, end: End, streaming: bool
) -> None:
    """Images that arrived before a lost connection or a time-out are on the error."""
    pieces: list[Piece] = [head(Content_Length=str(len(CUT) + 40)), CUT, end]
    raw_server.reply_with(pieces)
    timeout = Timeout(total=5, idle=0.3)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, retry=0, timeout=timeout
    ) as client:
        error = await failure_of_any_kind(client, streaming)
    assert isinstance(error, RequestTimeoutError if end is End.HOLD else DisconnectedError)
    assert [image.content for image in error.images] == [PNG]
    assert error.billing == "unknown"
    assert error.idempotency_key == raw_server.requests[0].headers["idempotency-key"]
    assert f"(idempotency key: {error.idempotency_key})" in str(error)


async def test_partials_of_a_stream_that_breaks_off(raw_server: RawServer) -> None:
    """Partial images are on the error of any failure of the stream."""
    stream_head = head(content_type="text/event-stream", Connection="close")
    for end in (End.CLOSE, End.HOLD):
        pieces: list[Piece] = [stream_head, PARTIAL, end]
        raw_server.reply_with(pieces)
        timeout = Timeout(total=5, idle=0.3)
        async with AsyncImages(
            API_KEY, base_url=raw_server.base_url, retry=0, timeout=timeout
        ) as client:
            error = await failure_of_any_kind(client, True)
        assert isinstance(error, (StreamIncompleteError, RequestTimeoutError))
        assert [partial.image.content for partial in error.partials] == [PNG]


@in_both_modes
async def test_images_of_an_error_status(raw_server: RawServer, streaming: bool) -> None:
    """A 500 with an image in it is not retried, and the image is on the error."""
    body = {"error": {"message": "late"}, "data": [{"b64_json": B64}]}
    raw_server.reply_with(response(body, status=500))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        error = await failure_of_any_kind(client, streaming)
    assert isinstance(error, ServerError)
    assert [image.content for image in error.images] == [PNG]
    assert len(raw_server.requests) == 1


@in_both_modes
@pytest.mark.parametrize(
    ("options", "requests"),
    [
        ({}, 1),
        ({"idempotency": "off"}, 1),
        ({"idempotency": "replay"}, 3),
        ({"retry": RetryPolicy(initial_backoff=0.01, retry_unknown=True)}, 3),
    ],
    ids=["default", "off", "replay", "retry_unknown"],
)
async def test_unknown_server_error(
    raw_server: RawServer, options: dict[str, object], requests: int, streaming: bool
) -> None:
    """A 5xx that may have been billed is retried only if the user allows it."""
    raw_server.reply_with(response({"error": {"message": "broken", "code": "500"}}, status=500))
    given: dict[str, object] = {"retry": RetryPolicy(initial_backoff=0.01), **options}
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, **given) as client:  # type: ignore[arg-type]
        error: ElkImagesError = await failure_of_any_kind(client, streaming)
    assert isinstance(error, ServerError)
    assert (error.message, error.billing) == ("broken", "unknown")
    assert "An image may have been created and billed" in str(error)
    assert len(raw_server.requests) == requests
