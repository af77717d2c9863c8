"""A user's tests under pytest-asyncio with `asyncio_mode = auto`: no markers needed."""

import pytest

from elkimg_async import AsyncImages
from elkimg_async.local import ThreadedServer


async def thumbnail(client: AsyncImages, subject: str) -> bytes:
    """Return the bytes of a small image; stands for the user's code."""
    result = await client.generate(f"a tiny {subject}", quality="low")
    return await result[0].read()


@pytest.fixture
async def image(elkimg_client: AsyncImages) -> bytes:
    """An asynchronous fixture that uses the client."""
    return await thumbnail(elkimg_client, "cat")


async def test_auto(
    image: bytes, elkimg_client: AsyncImages, elkimg_server: ThreadedServer
) -> None:
    """The client works in a fixture and in the test."""
    assert image == await thumbnail(elkimg_client, "cat")
    assert elkimg_server.generations == 2
