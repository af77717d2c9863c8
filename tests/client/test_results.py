"""What a call returns."""

import asyncio
import base64
import json

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    PartialImage,
    RateLimit,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    B64,
    COMPLETED_TYPE,
    PARTIAL_TYPE,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    RawServer,
)


async def test_batch_result(client: AsyncImages) -> None:
    """A batch call returns a sequence of images with everything else the server sent."""
    result = await client.generate("a boat", n=3, size="1536x1024", output_format="webp")
    assert len(result) == len(list(result)) == len(result.data) == 3
    assert result[0] is result.data[0]
    assert result[-2:] == result.data[1:]
    assert {image.media_type for image in result} == {"image/webp"}
    assert len({image.content for image in result}) == 3
    assert result[0].to_pil().size == (1536, 1024)
    assert (result.size, result.output_format, result.background) == ("1536x1024", "webp", "opaque")
    assert isinstance(result.created, int)
    assert result.usage is not None
    assert isinstance(result.usage.total_tokens, int)
    assert result.usage.input_tokens_details is not None


async def test_stream_result_equals_batch_result(client: AsyncImages) -> None:
    """Both modes return the same images, and each completed event has the usage of the call."""
    batch = await client.generate("a boat", n=2)
    events, result = await run_call(client, streaming=True, n=2, partial_images=0)
    assert result.data == batch.data
    assert result.usage == batch.usage
    assert (result.size, result.quality) == (batch.size, batch.quality)
    assert all(isinstance(each, CompletedImage) and each.usage == batch.usage for each in events)


async def test_stream_events(client: AsyncImages) -> None:
    """The events of a stream have all fields of the contract."""
    events, _ = await run_call(client, streaming=True, partial_images=2)
    *partials, completed = events
    assert [each.type for each in events] == [PARTIAL_TYPE, PARTIAL_TYPE, COMPLETED_TYPE]
    assert isinstance(completed, CompletedImage)
    assert isinstance(completed.created_at, int)
    assert (completed.size, completed.output_format) == ("1024x1024", "png")
    assert completed.b64_json == base64.b64encode(completed.image.content or b"").decode()
    for index, partial in enumerate(partials):
        assert isinstance(partial, PartialImage)
        assert partial.partial_image_index == index
        assert partial.image.media_type == "image/png"


@in_both_modes
async def test_meta(client: AsyncImages, server: LocalServer, streaming: bool) -> None:
    """`.meta` describes the attempts, the response and its times."""
    server.inject("rate-limit")
    _, result = await run_call(client, streaming)
    request = server.requests[-1]
    assert result.meta.request_id == request.request_id
    assert result.meta.status == 200
    assert result.meta.attempts == len(server.requests) == 2
    assert 0 < result.meta.first_byte <= result.meta.elapsed
    assert result.meta.idempotency_key == request.headers["idempotency-key"]
    assert result.meta.rate_limit is not None
    assert result.meta.rate_limit.limit_requests == 1_000_000


@in_both_modes
async def test_meta_without_headers(raw_server: RawServer, streaming: bool) -> None:
    """Values that the server does not send, and that were not sent to it, are None."""
    content = json.dumps({"data": [{"b64_json": B64}]}).encode()
    raw_server.reply_with(
        [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content), content]
    )
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, idempotency="off") as client:
        _, result = await run_call(client, streaming)
    assert result.meta.request_id is None
    assert result.meta.rate_limit is None
    assert result.meta.idempotency_key is None
    assert result.created is None
    assert result.usage is None
    assert "idempotency-key" not in raw_server.requests[0].headers


async def test_meta_of_rate_limit_headers(raw_server: RawServer, raw_client: AsyncImages) -> None:
    """Rate-limit headers become numbers; x-request-id is the second choice for the id."""
    content = json.dumps({"data": [{"b64_json": B64}]}).encode()
    lines = (
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nX-Request-Id: up-1\r\n"
        "x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"
        "x-ratelimit-reset-requests: 6m30s\r\nx-ratelimit-limit-tokens: many\r\n\r\n"
    )
    raw_server.reply_with([lines.encode(), content])
    result = await raw_client.generate("a boat")
    assert result.meta.request_id == "up-1"
    assert result.meta.rate_limit == RateLimit(
        limit_requests=60, remaining_requests=59, reset_requests=390.0
    )


async def test_concurrent_calls(client: AsyncImages, server: LocalServer) -> None:
    """Concurrent calls do not mix up their responses."""
    prompts = [f"boat {number}" for number in range(8)]
    results = await asyncio.gather(*(client.generate(prompt) for prompt in prompts))
    again = [await client.generate(prompt) for prompt in reversed(prompts)]
    assert [result.data for result in results] == [result.data for result in reversed(again)]
    assert len({result[0].content for result in results}) == 8
