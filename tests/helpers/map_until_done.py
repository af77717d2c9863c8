"""Run `map` in a process that may be killed.

    python map_until_done.py FOLDER COUNT MODE [PHOTOS]

With a folder of photographs, each request is an edit of one of them.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elkimg_async import AsyncImages


def requests(count: int, photos: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the requests of the run."""
    for number in range(count):
        request: dict[str, Any] = {"prompt": f"image {number}", "id": number}
        if photos is not None:
            request["image"] = photos / f"photo {number}.png"
        yield request


async def main(folder: Path, count: int, mode: str, photos: Path | None) -> None:
    """Run until every request is done, with the server of the environment."""
    journal = folder / "journal.jsonl"
    given = requests(count, photos)
    async with (
        AsyncImages(idempotency="off" if mode == "off" else "replay") as client,
        client.map(given, concurrency=8, output_dir=folder, journal=journal) as run,
    ):
        async for item in run:
            if not item.ok:
                raise SystemExit(f"{item.index}: {item.error}")


if __name__ == "__main__":
    photos = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], photos))
