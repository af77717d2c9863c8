"""A user's tests under anyio's plugin."""

import anyio
import pytest

from elkimg_async import AsyncImages
from elkimg_async.local import ThreadedServer


async def thumbnail(client: AsyncImages, subject: str) -> bytes:
    """What is tested: the user's own code."""
    result = await client.generate(f"a tiny {subject}", quality="low")
    return await result[0].read()


pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The client runs on asyncio."""
    return "asyncio"


@pytest.fixture
async def picture(elkimg_client: AsyncImages) -> bytes:
    """An asynchronous fixture of the user's that needs ours."""
    return await thumbnail(elkimg_client, "cat")


async def test_batch(picture: bytes, elkimg_server: ThreadedServer) -> None:
    """The client works in a fixture as in the test."""
    assert picture.startswith(b"\x89PNG")
    assert len(elkimg_server.requests) == 1


@pytest.mark.elkimg_faults("error=503*2")
async def test_faults(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """Faults and the record of what was asked, from a task group."""
    async with anyio.create_task_group() as tasks:
        for subject in ("cat", "dog", "owl"):
            tasks.start_soon(thumbnail, elkimg_client, subject)
    assert elkimg_server.generations == 3
    assert len(elkimg_server.requests) == 5
    assert {asked.fields["prompt"] for asked in elkimg_server.requests} == {
        "a tiny cat",
        "a tiny dog",
        "a tiny owl",
    }
    await elkimg_server.wait_until(
        lambda: all(asked.outcome == "answered" for asked in elkimg_server.requests)
    )
