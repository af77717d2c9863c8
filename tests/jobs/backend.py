"""A backend process that is killed by the tests: starts jobs, and reports the results on stdout.

Arguments: the store (`directory:PATH` or `redis:URL`), the base URL, the API key, the idempotency
mode, and the ids to start and collect.
"""

import asyncio
import hashlib
import sys

from elkimg_async import AsyncImages, ElkImagesError
from elkimg_async.jobs import DirectoryStore, ImageJobs, RedisStore, Store


async def main(store: str, base_url: str, api_key: str, mode: str, *ids: str) -> None:
    """Start every job, and report each as it finishes."""
    kind, _, where = store.partition(":")
    opened: Store = DirectoryStore(where) if kind == "directory" else RedisStore(where, lease=1)
    async with (
        AsyncImages(api_key, base_url=base_url, idempotency=mode, retry=0) as client,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ImageJobs(client, store=opened) as jobs,
    ):
        print("ready", flush=True)

        async def collect(id: str) -> None:
            await jobs.start(f"an elk, number {id}", id=id, partial_images=2)
            try:
                result = await jobs.result(id)
            except ElkImagesError as error:
                print(id, type(error).__name__, error.billing, flush=True)
            else:
                print(id, hashlib.sha256(await result[0].read()).hexdigest(), flush=True)

        await asyncio.gather(*map(collect, ids))


asyncio.run(main(*sys.argv[1:]))
