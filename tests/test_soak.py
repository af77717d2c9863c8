"""Thousands of calls against mixed faults: memory, sockets and tasks stay flat.

ELKIMG_SOAK_CALLS is the number of calls, 3,000 by default.
"""

import asyncio
import collections
import gc
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from elkimg_async import AsyncImages, ElkImagesError, RetryPolicy, Timeout
from tests.helpers.calls import B64, COMPLETED, GOOD, PARTIAL, run_call
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    End,
    RawServer,
    Reply,
    head,
    open_stream,
    response,
    stream,
)

CALLS = int(os.environ.get("ELKIMG_SOAK_CALLS", "2000"))
AT_ONCE = 16
PERIOD = 97  # calls between two stalls, which cost time
MIB = 1024 * 1024

REPLIES: list[Reply] = [
    GOOD,
    stream(PARTIAL, COMPLETED, DONE),
    [End.RESET],
    [End.CLOSE],
    response(b"", status=408),  # not 429, for which every call would slow down
    [head(200, Content_Length="1000")[:40], End.RESET],
    [head(200, Content_Length="1000"), b'{"data": [{"b64', End.CLOSE],
    [*open_stream(PARTIAL), End.RESET],
    [*open_stream(PARTIAL, COMPLETED[:50]), End.CLOSE],
    [*GOOD, End.CLOSE],
    response(b"<html>bad gateway</html>", status=502, content_type="text/html"),
    response({"error": {"message": "no", "code": "invalid_request"}}, status=500),
    response({"data": [{"b64_json": B64[:50] + "!!!!"}]}),
    response(b""),
    stream(PARTIAL, DONE),
    [head(200, Transfer_Encoding="chunked"), b"what?\r\n", End.CLOSE],
]
STALLS: list[Reply] = [[End.HOLD], [*open_stream(PARTIAL), End.HOLD]]


class Mixed(RawServer):
    """A raw server that cycles through its replies and sometimes stalls; it keeps no requests."""

    def __init__(self) -> None:
        super().__init__()
        self.served = 0
        self._round = itertools.cycle(REPLIES)
        self._stalls = itertools.cycle(STALLS)

    def _next_reply(self) -> Reply:
        self.served += 1
        self.requests.clear()
        return next(self._stalls if self.served % PERIOD == 0 else self._round)


def memory() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """How many files and sockets are open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def work(client: AsyncImages, numbers: "itertools.islice[int]", ends: Any) -> None:
    """Make calls, batch and streaming in turn, until the numbers are used up."""
    for number in numbers:
        if number % 5 == 0:
            await leave(client, number)
            ends["left"] += 1
            continue
        try:
            await run_call(client, number % 2 == 1)
        except ElkImagesError as error:
            ends[type(error).__name__] += 1
        else:
            ends["images"] += 1


async def leave(client: AsyncImages, number: int) -> None:
    """A call that is cancelled after some steps of the loop, wherever it is by then."""
    task = asyncio.create_task(run_call(client, number % 2 == 1))
    for _ in range(number % 30):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
async def test_soak() -> None:
    """After any number of calls with faults the process is as large as after a thousand."""
    ends: collections.Counter[str] = collections.Counter()
    tasks = asyncio.all_tasks()
    async with Mixed() as server:
        timeout = Timeout(total=10, first_byte=0.2, idle=0.2)
        policy = RetryPolicy(initial_backoff=0.001, budget=1_000_000)
        async with AsyncImages(
            API_KEY, base_url=server.base_url, timeout=timeout, retry=policy
        ) as client:
            sizes = []
            for share in (CALLS // 5, CALLS // 5 * 2, CALLS // 5 * 2):  # the first is the warm-up
                numbers = itertools.islice(itertools.count(), share)
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(work(client, numbers, ends))
                gc.collect()
                await server.wait_until(lambda: server.connections <= AT_ONCE)
                sizes.append((memory(), descriptors(), len(asyncio.all_tasks())))
                print(share, "calls:", sizes[-1], dict(ends), flush=True)
        await server.wait_until(lambda: server.connections == 0)
    (warm, files, _), _, (memory_after, files_after, _) = sizes
    assert memory_after - warm < max(8 * MIB, warm // 20)
    assert files_after <= files + 2 * AT_ONCE
    assert asyncio.all_tasks() - tasks == set() or all(
        "TestRunner" in repr(task.get_coro()) for task in asyncio.all_tasks() - tasks
    )
    assert sum(ends.values()) == CALLS // 5 * 5
    assert ends["images"] > CALLS // 10
