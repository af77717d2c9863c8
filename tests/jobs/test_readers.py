"""A thousand readers that leave and rejoin at random moments."""

import asyncio
import base64
import os
import random
import time
import tracemalloc

import pytest

from elkimg_async import CompletedImage
from elkimg_async.jobs import ImageJobs, MemoryStore
from tests.helpers.jobs import COMPLETED, client_of, partial
from tests.helpers.raw_server import DONE, PNG, RawServer, event, open_stream

READERS = int(os.environ.get("ELKIMG_READERS", "200"))


async def read_for_a_while(
    jobs: ImageJobs, id: str, after: int | None, seconds: float, joined: list[float]
) -> tuple[int | None, bytes | None]:
    """Read for so long; return the last id, and the image if it came."""
    began = time.monotonic()
    events = await jobs.events(id, after)
    joined.append(time.monotonic() - began)
    try:
        async with asyncio.timeout(seconds):
            async for event in events:
                after = event.id
                if isinstance(event, CompletedImage):
                    return after, event.image.content
    except TimeoutError:
        pass
    finally:
        await events.aclose()
    return after, None


async def follow(jobs: ImageJobs, id: str, rng: random.Random, joined: list[float]) -> int:
    """Leave and rejoin until the image is here; return its size."""
    await asyncio.sleep(rng.uniform(0, 20))
    await jobs.start(f"elk {id}", id=id, partial_images=2)
    after: int | None = None
    while True:
        after, image = await read_for_a_while(jobs, id, after, rng.uniform(0, 0.4), joined)
        if image is not None:
            return len(image)
        await asyncio.sleep(rng.uniform(0, 0.4))


async def tick(gate: asyncio.Event) -> None:
    """Let the server continue with the images it is generating, from time to time."""
    while True:
        await asyncio.sleep(0.2)
        gate.set()
        gate.clear()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_readers_that_leave_and_rejoin() -> None:
    """Each image is generated once and collected, rejoining is quick, and nothing is copied."""
    count, rng, joined = READERS, random.Random(13), list[float]()
    image = base64.b64encode(PNG + rng.randbytes(100_000)).decode()
    head, *chunks = open_stream(
        event({**partial(0), "b64_json": image}), event({**COMPLETED, "b64_json": image}), DONE
    )
    gate = asyncio.Event()
    reply = [head, gate, chunks[0], gate, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(reply) as raw_server,
        client_of(raw_server) as client,
        ImageJobs(client, store=MemoryStore(max_bytes=4 * 1024**3)) as jobs,
    ):
        ticking = asyncio.create_task(tick(gate))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        sizes = await asyncio.gather(
            *(follow(jobs, f"job-{each}", rng, joined) for each in range(count))
        )
        ticking.cancel()
        after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(raw_server.requests) == len(sizes) == count
    joined.sort()
    median, late = joined[len(joined) // 2], joined[len(joined) * 99 // 100]
    print(
        f"{len(joined)} joins: median {median * 1000:.2f} ms, 99 % {late * 1000:.1f} ms; images "
        f"{sum(sizes) / 1e6:.1f} MB, held {(after - before) / 1e6:.1f}, peak {peak / 1e6:.1f} MB"
    )
    assert after - before < 1.2 * sum(sizes)
