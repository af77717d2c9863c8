"""Jobs over a server, and the events of its streams."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from elkimg_async import (
    AsyncImages,
)
from elkimg_async.jobs import ImageJobs, Job, JobEvent, Store
from elkimg_async.local import LocalServer
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    RawServer,
)

MakeStore = Callable[[], Store]

COMPLETED = {
    "type": "image_generation.completed",
    "b64_json": base64.b64encode(PNG).decode(),
    "usage": {"total_tokens": 7},
}


def partial(index: int) -> dict[str, Any]:
    """Return a partial image that differs from the others."""
    content = base64.b64encode(PNG + bytes([index])).decode()
    return {
        "type": "image_generation.partial_image",
        "b64_json": content,
        "partial_image_index": index,
    }


def client_of(server: LocalServer | RawServer, **options: Any) -> AsyncImages:
    """Return a client of this server that does not retry."""
    api_key = server.api_key if isinstance(server, LocalServer) else API_KEY
    return AsyncImages(api_key, base_url=server.base_url, **{"retry": 0, **options})


@contextlib.asynccontextmanager
async def opened(
    server: LocalServer | RawServer, make_store: MakeStore, *, client: Any = None, **options: Any
) -> AsyncIterator[ImageJobs]:
    """Open jobs over this server and store."""
    async with (
        client_of(server, **(client or {})) as own,
        ImageJobs(own, store=make_store(), **options) as jobs,
    ):
        yield jobs


async def collect(jobs: ImageJobs, id: str, after: int | None = None) -> list[JobEvent]:
    """Return all events of a job."""
    return [each async for each in jobs.events(id, after)]


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def reach(jobs: ImageJobs, id: str, state: str) -> Job:
    """Wait for a state of a job."""
    async with asyncio.timeout(15):
        while (job := await jobs.get(id)).state != state:
            await asyncio.sleep(0.01)
    return job
