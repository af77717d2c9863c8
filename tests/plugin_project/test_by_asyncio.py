"""A user's tests under pytest-asyncio."""

import asyncio

import pytest

from elkimg_async import AsyncImages, CompletedImage, PartialImage, RateLimitError
from elkimg_async.local import ThreadedServer


async def thumbnail(client: AsyncImages, subject: str) -> bytes:
    """What is tested: the user's own code."""
    result = await client.generate(f"a tiny {subject}", quality="low")
    return await result[0].read()


async def patient(subject: str) -> bytes | None:
    """The same with a client of its own, and None where the server is busy for good."""
    async with AsyncImages(retry=1) as client:
        try:
            return await thumbnail(client, subject)
        except RateLimitError:
            return None


@pytest.mark.asyncio
async def test_batch(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """The picture comes, and what was asked can be seen."""
    assert (await thumbnail(elkimg_client, "cat")).startswith(b"\x89PNG")
    (asked,) = elkimg_server.requests
    assert asked.fields["prompt"] == "a tiny cat"
    assert asked.fields["quality"] == "low"


@pytest.mark.asyncio
async def test_stream(elkimg_client: AsyncImages) -> None:
    """A stream shows its pictures on the way."""
    async with elkimg_client.generate("a boat", stream=True, partial_images=2) as stream:
        kinds = [type(event) async for event in stream]
    assert kinds == [PartialImage, PartialImage, CompletedImage]


@pytest.mark.asyncio
@pytest.mark.elkimg_faults("rate-limit", "rate-limit=0")
async def test_marker(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """The faults of the marker are played, one for each request, and then all is well."""
    await thumbnail(elkimg_client, "cat")
    assert [str(asked.fault) for asked in elkimg_server.requests[:2]] == [
        "rate-limit",
        "rate-limit=0",
    ]
    assert elkimg_server.requests[2].fault is None
    assert elkimg_server.generations == 1


@pytest.mark.asyncio
async def test_inject_and_environment(elkimg_server: ThreadedServer) -> None:
    """Code that makes its own client reaches the server too, and meets the faults injected on the way."""
    elkimg_server.inject("rate-limit=0*")
    assert await patient("cat") is None
    assert len(elkimg_server.requests) == 2


@pytest.mark.asyncio
@pytest.mark.elkimg_faults("stall-headers")
async def test_wait_until(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """A test waits for a state of the server, and no longer than it says."""
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
    """Tests that share a loop, which outlives the fixtures of each."""

    async def test_first(self, elkimg_client: AsyncImages) -> None:
        """One client in the loop."""
        await thumbnail(elkimg_client, "cat")

    async def test_second(self, elkimg_client: AsyncImages) -> None:
        """The next one in the same."""
        await thumbnail(elkimg_client, "dog")
