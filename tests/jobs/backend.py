"""A backend process that is killed by the tests: starts jobs, and reports the results on stdout.

Arguments: the store (`directory:PATH` or `redis:URL`), the base URL, the API key, and the
idempotency mode. Each line of stdin is an id to start and collect; the process ends after the last.
"""

import asyncio
import hashlib
import sys

from elkimg_async import AsyncImages, ElkImagesError
from elkimg_async.jobs import DirectoryStore, ImageJobs, RedisStore, Store


async def collect(jobs: ImageJobs, id: str) -> None:
    """Start a job and report its result."""
    await jobs.start(f"an elk, number {id}", id=id, partial_images=2)
    try:
        result = await jobs.result(id)
    except ElkImagesError as error:
        print(id, type(error).__name__, error.billing, flush=True)
    else:
        print(id, hashlib.sha256(await result[0].read()).hexdigest(), flush=True)


async def main(store: str, base_url: str, api_key: str, mode: str) -> None:
    """Collect the jobs that stdin names."""
    kind, _, where = store.partition(":")
    opened: Store = DirectoryStore(where) if kind == "directory" else RedisStore(where, lease=1)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async with (
        AsyncImages(api_key, base_url=base_url, idempotency=mode, retry=0) as client,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ImageJobs(client, store=opened) as jobs,
        asyncio.TaskGroup() as group,
    ):
        print("ready", flush=True)
        while line := await lines.readline():
            group.create_task(collect(jobs, line.decode().strip()))


asyncio.run(main(*sys.argv[1:]))
