"""Measurements inside the client process, one meter per process.

- `cpu`: user + system seconds of the whole process (its threads included) around the measured
  requests, after a warm-up; the system's share of it, the page faults that explain much of that
  share, and the wall time.
- `memory`: the high-water mark of resident memory during one request, above what was resident
  before it, less the images that the caller keeps. Before each request freed memory is given
  back to the system and the kernel's mark is reset. Only Linux has that mark, and tracemalloc
  would slow the client and miss the buffers of C extensions.
- `stall`: a callback that re-arms itself with `call_soon` sees every turn of the loop; the
  longest turn of a request is the stall, once in wall time and once in processor time of the
  loop's thread, which a busy machine does not stretch.
- `handoff`: the server holds the last bytes of the last image back until the client has digested
  all the others, notes the time and sends them; from there to the image in the caller's hands.
"""

import asyncio
import contextlib
import ctypes
import gc
import http.client
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .client import Take

Call = Callable[[Take], Awaitable[None]]
Values = dict[str, float]

STALL_REQUESTS = 12
HANDOFF_REQUESTS = 12
MEMORY_REQUESTS = 5


def pin(core: int | None) -> None:
    """Run on one core, where the system supports it."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def ignore(_: bytes) -> None:
    """Receive an image and drop it."""


async def drive(call: Call, count: int, concurrency: int) -> None:
    """Run `count` calls, `concurrency` at a time, dropping each image at once."""
    if concurrency == 1:
        for _ in range(count):
            await call(ignore)
        return
    turns = iter(range(count))

    async def work() -> None:
        for _ in turns:
            await call(ignore)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())


async def cpu(
    run: Callable[[int], Awaitable[None]], count: int, warmup: int, least: float
) -> Values:
    """Measure the cost per request of `run(count)`.

    It is repeated for at least `least` seconds, so that cheap contenders are measured precisely.
    """
    await run(warmup)
    gc.collect()
    requests, wall = 0, 0.0
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    while wall < least:
        await run(count)
        requests += count
        wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_ms": used / requests * 1e3,
        "system_ms": (after.ru_stime - before.ru_stime) / requests * 1e3,
        "wall_ms": wall / requests * 1e3,
        "faults": (after.ru_minflt - before.ru_minflt) / requests,
    }


def peak() -> float:
    """Return the peak memory of this process, in megabytes."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM") / 1e6  # ru_maxrss starts with the memory of the parent
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


async def memory(call: Call, decoded: int) -> Values:
    """Measure peak memory above the images, in bytes and as a multiple of `decoded`."""
    if not Path("/proc/self/clear_refs").exists():
        raise RuntimeError("the peak of memory can be reset on Linux only")
    for _ in range(2):
        await call(ignore)
    peaks = []
    for _ in range(MEMORY_REQUESTS):
        kept: list[bytes] = []
        _give_back()
        resident = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        await call(kept.append)
        peaks.append(_status("VmHWM") - resident - sum(map(len, kept)))
    above = statistics.median(peaks)
    return {"above_mb": above / 1e6, "above_x": above / decoded}


async def stall(call: Call) -> Values:
    """Measure the longest block of the event loop per request: the median, and the maximum."""
    for _ in range(2):
        await call(ignore)
    ticker = _Ticker()
    wall, busy = [], []
    for _ in range(STALL_REQUESTS):
        gc.collect()
        ticker.start()
        await call(ignore)
        await asyncio.sleep(0)
        ticker.stop()
        wall.append(ticker.wall * 1e3)
        busy.append(ticker.busy * 1e3)
    return {
        "stall_ms": statistics.median(wall),
        "stall_cpu_ms": statistics.median(busy),
        "stall_worst_ms": max(wall),
    }


async def handoff(call: Call, port: int) -> Values:
    """Measure milliseconds from the last byte sent to the image; `call` gets held responses."""
    for _ in range(2):
        await call(ignore)
    delays = []
    for _ in range(HANDOFF_REQUESTS):
        arrived = 0

        def take(_: bytes) -> None:
            nonlocal arrived
            arrived = time.monotonic_ns()

        await call(take)
        delays.append((arrived - get_json(port, "/last")["ns"]) / 1e6)
    return {"handoff_ms": statistics.median(delays)}


def get_json(port: int, path: str) -> dict[str, Any]:
    """Send a GET to the benchmark server; blocks the event loop, so never during a measurement."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as side:
        side.request("GET", path)
        response: dict[str, Any] = json.loads(side.getresponse().read())
    return response


class _Ticker:
    """Records how long each iteration of the event loop takes."""

    def start(self) -> None:
        self.wall = self.busy = 0.0
        self._loop = asyncio.get_running_loop()
        self._wall, self._busy = time.perf_counter(), time.thread_time()
        self._handle = self._loop.call_soon(self._tick)

    def stop(self) -> None:
        self._handle.cancel()

    def _tick(self) -> None:
        wall, busy = time.perf_counter(), time.thread_time()
        self.wall = max(self.wall, wall - self._wall)
        self.busy = max(self.busy, busy - self._busy)
        self._wall, self._busy = wall, busy
        self._handle = self._loop.call_soon(self._tick)


def _give_back() -> None:
    """Free unused memory, so that its reuse cannot hide a peak."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    """Return a memory figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not report {field}")
