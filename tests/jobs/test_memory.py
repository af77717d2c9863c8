"""`MemoryStore` when it is full."""

import asyncio

import pytest

from elkimg_async import JobNotFoundError, StoreError
from elkimg_async.jobs import ImageJobs, MemoryStore
from tests.helpers.jobs import COMPLETED, client_of, partial
from tests.helpers.raw_server import DONE, PNG, RawServer, event, open_stream, stream


async def test_memory_evicts_the_oldest_finished_jobs() -> None:
    """Room for two images keeps the two newest; the others are unknown."""
    store = MemoryStore(max_bytes=len(PNG) * 2 + 1)
    async with (
        RawServer(stream(event(COMPLETED), DONE)) as raw_server,
        client_of(raw_server) as client,
        ImageJobs(client, store=store) as jobs,
    ):
        for number in range(4):
            await jobs.start("an elk", id=f"job-{number}")
            assert (await jobs.result(f"job-{number}"))[0].content == PNG
        assert [job.id for job in await jobs.list()] == ["job-2", "job-3"]
        with pytest.raises(JobNotFoundError):
            await jobs.result("job-0")
        assert (await jobs.result("job-2"))[0].content == PNG


async def test_memory_filled_by_a_running_job() -> None:
    """A running job is never evicted: another is rejected, and sent once the first has ended."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    first = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(first, stream(event(COMPLETED), DONE)) as raw_server,
        client_of(raw_server) as client,
        ImageJobs(client, store=MemoryStore(max_bytes=len(PNG))) as jobs,
    ):
        await jobs.start("an elk", id="one")
        async for _ in jobs.events("one"):
            break
        with pytest.raises(StoreError, match="max_bytes"):
            await jobs.start("a fox", id="two")
        assert len(raw_server.requests) == 1
        finish.set()
        assert (await jobs.result("one"))[0].content == PNG
        await jobs.start("a fox", id="two")
        assert (await jobs.result("two"))[0].content == PNG
        assert [job.id for job in await jobs.list()] == ["two"]
