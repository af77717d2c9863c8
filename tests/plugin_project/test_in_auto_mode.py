"""A user's tests under pytest-asyncio with `asyncio_mode = auto`: nothing is marked."""

import pytest

from elkimg_async import AsyncImages
from elkimg_async.local import ThreadedServer


async def thumbnail(client: AsyncImages, subject: str) -> bytes:
    """What is tested: the user's own code."""
    result = await client.generate(f"a tiny {subject}", quality="low")
    return await result[0].read()


@pytest.fixture
async def picture(elkimg_client: AsyncImages) -> bytes:
    """An asynchronous fixture of the user's that needs ours."""
    return await thumbnail(elkimg_client, "cat")


async def test_auto(
    picture: bytes, elkimg_client: AsyncImages, elkimg_server: ThreadedServer
) -> None:
    """The client works in a fixture and in the test."""
    assert picture == await thumbnail(elkimg_client, "cat")
    assert elkimg_server.generations == 2
