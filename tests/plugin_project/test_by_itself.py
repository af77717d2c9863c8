"""A user's tests without any plugin for asynchronous tests."""

import asyncio

import pytest

from elkimg_async import AsyncImages, RateLimitError
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


def test_run(elkimg_client: AsyncImages, elkimg_server: ThreadedServer) -> None:
    """One client works in several runs of asyncio."""
    for subject in ("cat", "dog"):
        assert asyncio.run(thumbnail(elkimg_client, subject))
    assert elkimg_server.generations == 2


def test_server_alone(elkimg_server: ThreadedServer) -> None:
    """The server works without the client fixture."""
    assert elkimg_server.requests == []
    assert asyncio.run(patient("cat"))
    assert elkimg_server.requests[0].path == "/v1/images/generations"


@pytest.mark.elkimg_faults("rate-limit*")
class TestBusy:
    """A class with a marker for all its tests."""

    def test_busy(self, elkimg_server: ThreadedServer) -> None:
        """The marker of the class applies."""
        elkimg_server.inject()
        assert asyncio.run(patient("cat")) is None

    @pytest.mark.elkimg_faults
    def test_nearest_marker(self, elkimg_server: ThreadedServer) -> None:
        """The nearest marker wins."""
        assert asyncio.run(patient("cat"))
