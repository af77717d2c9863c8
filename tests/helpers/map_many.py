"""Run many small requests in this process and print its peak memory in KiB.

    python map_many.py URL COUNT [--journal FILE] [--photos FOLDER]

With a folder of photographs, each request is an edit of one of them, in turn.
"""

import argparse
import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elkimg_async import AsyncImages


def requests(count: int, photos: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the requests of the run."""
    files = sorted(photos.iterdir()) if photos is not None else []
    for number in range(count):
        request: dict[str, Any] = {"prompt": f"image {number}"}
        if files:
            request["image"] = files[number % len(files)]
        yield request


async def main(url: str, count: int, journal: Path | None, photos: Path | None) -> None:
    """Send `count` requests, and print the peak memory."""
    done = 0
    async with (
        AsyncImages("key", base_url=url) as client,
        client.map(
            requests(count, photos),
            concurrency=64,
            journal=journal,
            model="some-model" if photos else "dall-e-2",
        ) as run,
    ):
        async for item in run:
            assert item.ok, item.error
            done += 1
    assert done == count
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--photos", type=Path)
    given = parser.parse_args()
    asyncio.run(main(given.url, given.count, given.journal, given.photos))
