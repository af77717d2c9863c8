"""A user's tests under anyio's plugin."""

import anyio
import pytest

from elkimg_async import AsyncImages
from elkimg_async.local import ThreadedServer


async def thumbnail(client: AsyncImages, subject: str) -> bytes:
    """Return the bytes of a small image; stands for the user's code."""
    result = await client.generate(f"a tiny {subject}", quality="low")
    return await result[0].read()


pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The tests run on asyncio."""
    return "asyncio"


@pytest.fixture
async def image(elkimg_client: AsyncImages) -> bytes:
    """An asynchronous fixture that uses the client."""
    return await thumbnail(elkimg_client, "cat")


async def test_batch(image: bytes, elkimg_server: ThreadedServer) -> None:
    """The client works in a fixture."""
    assert image.startswith(b"\x89PNG")
    assert len(elkimg_server.requests) == 1


@pytest.mark.elkimg_faults("error=503*2")
async def test_faults(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """Faults and recorded requests work from a task group."""
    async with anyio.create_task_group() as tasks:
        for subject in ("cat", "dog", "owl"):
            tasks.start_soon(thumbnail, elkimg_client, subject)
    assert elkimg_server.generations == 3
    assert len(elkimg_server.requests) == 5
    assert {request.fields["prompt"] for request in elkimg_server.requests} == {
        "a tiny cat",
        "a tiny dog",
        "a tiny owl",
    }
    await elkimg_server.wait_until(
        lambda: all(request.outcome == "answered" for request in elkimg_server.requests)
    )
