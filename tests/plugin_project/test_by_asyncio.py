"""A user's tests under pytest-asyncio."""

import asyncio

import pytest

from elkimg_async import AsyncImages, CompletedImage, PartialImage, RateLimitError
from elkimg_async.local import ThreadedServer


async def thumbnail(client: AsyncImages, subject: str) -> bytes:
    """Return the bytes of a small image; stands for the user's code."""
    result = await client.generate(f"a tiny {subject}", quality="low")
    return await result[0].read()


async def patient(subject: str) -> bytes | None:
    """Generate with a client of its own; return None if the server stays busy."""
    async with AsyncImages(retry=1) as client:
        try:
            return await thumbnail(client, subject)
        except RateLimitError:
            return None


@pytest.mark.asyncio
async def test_batch(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """The image arrives, and the request is recorded."""
    assert (await thumbnail(elkimg_client, "cat")).startswith(b"\x89PNG")
    (request,) = elkimg_server.requests
    assert request.fields["prompt"] == "a tiny cat"
    assert request.fields["quality"] == "low"


@pytest.mark.asyncio
async def test_stream(elkimg_client: AsyncImages) -> None:
    """A stream has partial images."""
    async with elkimg_client.generate("a boat", stream=True, partial_images=2) as stream:
        kinds = [type(event) async for event in stream]
    assert kinds == [PartialImage, PartialImage, CompletedImage]


@pytest.mark.asyncio
@pytest.mark.elkimg_faults("rate-limit", "rate-limit=0")
async def test_marker(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """The marker's faults apply to one request each."""
    await thumbnail(elkimg_client, "cat")
    assert [str(request.fault) for request in elkimg_server.requests[:2]] == [
        "rate-limit",
        "rate-limit=0",
    ]
    assert elkimg_server.requests[2].fault is None
    assert elkimg_server.generations == 1


@pytest.mark.asyncio
async def test_inject_and_environment(elkimg_server: ThreadedServer) -> None:
    """A client of the tested code reaches the server too, with injected faults."""
    elkimg_server.inject("rate-limit=0*")
    assert await patient("cat") is None
    assert len(elkimg_server.requests) == 2


@pytest.mark.asyncio
@pytest.mark.elkimg_faults("stall-headers")
async def test_wait_until(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """`wait_until` waits for a state of the server, up to its limit."""
    call = asyncio.create_task(thumbnail(elkimg_client, "cat"))
    await elkimg_server.wait_until(lambda: len(elkimg_server.requests) == 1)
    with pytest.raises(TimeoutError):
        await elkimg_server.wait_until(lambda: len(elkimg_server.requests) == 2, within=0.01)
    call.cancel()
    await elkimg_server.wait_until(lambda: elkimg_server.requests[0].outcome == "disconnected")
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.asyncio(loop_scope="module")
class TestOneLoop:
    """Tests that share an event loop, which outlives the fixtures."""

    async def test_first(self, elkimg_client: AsyncImages) -> None:
        """The first client of the event loop."""
        await thumbnail(elkimg_client, "cat")

    async def test_second(self, elkimg_client: AsyncImages) -> None:
        """The second client of the event loop."""
        await thumbnail(elkimg_client, "dog")
