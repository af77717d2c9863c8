"""Many small requests in a process of its own, which prints its peak memory: python map_many.py URL COUNT [JOURNAL]."""

import asyncio
import sys
from pathlib import Path

from elkimg_async import AsyncImages


async def main(url: str, count: int, journal: str | None) -> None:
    """Make `count` requests, and print in KiB how much memory that took at most."""
    prompts = (f"picture {number}" for number in range(count))
    done = 0
    async with (
        AsyncImages("key", base_url=url) as client,
        client.map(prompts, concurrency=64, journal=journal, model="dall-e-2") as run,
    ):
        async for item in run:
            done += item.ok
    assert done == count
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), (*sys.argv, None)[3]))
