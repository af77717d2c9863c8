"""A run of `map` as a process of its own, which may be killed: python map_until_done.py FOLDER COUNT MODE."""

import asyncio
import sys
from pathlib import Path

from elkimg_async import AsyncImages


async def main(folder: Path, count: int, mode: str) -> None:
    """Go on until every request is done; the address and the key are the environment's."""
    prompts = (f"picture {number}" for number in range(count))
    journal = folder / "journal.jsonl"
    async with (
        AsyncImages(idempotency="off" if mode == "off" else "replay") as client,
        client.map(prompts, concurrency=8, output_dir=folder, journal=journal) as run,
    ):
        async for item in run:
            if not item.ok:
                raise SystemExit(f"{item.index}: {item.error}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
