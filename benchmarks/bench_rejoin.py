"""Browsers that leave a job and come back, and many viewers of one job, over real sockets.

`python -m benchmarks.bench_rejoin browsers` runs scripted browsers that leave and rejoin at random
moments until each has its image; `… viewers` compares the CPU of the backend for one and for fifty
viewers of a job with that of as many bytes from a plain streaming response. The API, the backend
and the browsers are processes of their own.
"""

import argparse
import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from .jobs_backend import Lag, picture
from .lab import ROOT, child_environment

VIEWERS = 50
ROUNDS = 9
AWAY, STAY = (0.2, 4.0), (0.2, 6.0)  # seconds


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[int]:
    """Run a part of `jobs_backend` in a process of its own; yield its port."""
    command = [sys.executable, "-m", "benchmarks.jobs_backend", *arguments]
    running = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=child_environment()
    )
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        yield int(running.stdout.readline())
    finally:
        running.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(20)
        running.kill()
        running.wait()
        running.stdout.close()


def stats(port: int, *, reset: bool = False) -> dict[str, Any]:
    """Return what a process has counted; `reset` starts its peak of memory again."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as side:
        side.request("GET", "/stats?reset" if reset else "/stats")
        counted: dict[str, Any] = json.loads(side.getresponse().read())
    return counted


class Browser:
    """One browser with one job: what it has received, and how long its joins took."""

    def __init__(self, port: int, id: str, chance: random.Random, size: int) -> None:
        self._port, self._id, self._chance, self._size = port, id, chance, size
        self._last = ""
        self._done = self.collected = False
        self.joins: list[float] = []

    async def run(self, spread: float) -> None:
        """Leave and rejoin at random moments until the image is complete."""
        await asyncio.sleep(self._chance.uniform(0, spread))
        while not self._done:
            await self._visit(self._chance.uniform(*STAY))
            await asyncio.sleep(self._chance.uniform(*AWAY))

    async def _visit(self, seconds: float) -> None:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 30)
        try:
            last = f"Last-Event-ID: {self._last}\r\n" if self._last else ""
            head = f"GET /image?id={self._id} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n"
            writer.write(head.encode())
            status = await reader.readuntil(b"\r\n\r\n")
            self.joins.append(time.perf_counter() - began)
            if status.startswith(b"HTTP/1.1 204"):
                self._done = True
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    async for fields in messages(reader):
                        self._receive(fields)
        finally:
            writer.transport.abort()

    def _receive(self, fields: dict[bytes, bytes]) -> None:
        self._last = fields.get(b"id", b"").decode()
        if fields[b"data"] == b"[DONE]":
            self._done = True
        elif fields[b"event"].endswith(b"completed"):
            text = fields[b"data"].partition(b'"b64_json":"')[2].partition(b'"')[0]
            expected = picture(f"an elk, {self._id}", "completed", self._size)
            self.collected = base64.b64decode(text) == expected


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[bytes, bytes]]:
    """Read the messages of a chunked response; the relay ends each at the end of a chunk."""
    received = list[bytes]()
    while size := int(await reader.readline(), 16):
        received.append(await reader.readexactly(size))
        await reader.readline()
        if not received[-1].endswith(b"\n\n"):
            continue
        lines = b"".join(received).splitlines()
        received = []
        fields = dict(line.split(b": ", 1) for line in lines if b": " in line)
        if b"data" in fields:
            yield fields


async def browse(port: int, count: int, size: int, spread: float) -> dict[str, Any]:
    """Run the browsers of one process; return what they have seen."""
    chance, lag = random.Random(13), Lag()
    browsers = [Browser(port, f"job-{number}", chance, size) for number in range(count)]
    await asyncio.gather(*(browser.run(spread) for browser in browsers))
    joins = [join for browser in browsers for join in browser.joins]
    collected = sum(browser.collected for browser in browsers)
    return {"collected": collected, "joins": joins, **lag.figures()}


def measure_browsers(args: argparse.Namespace) -> None:
    """Print the figures of one run of browsers."""
    sizes = ["--size", str(args.size), "--seconds", str(args.seconds)]
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(process("api", *sizes))
        store = []
        if args.directory:
            store = ["--folder", stack.enter_context(tempfile.TemporaryDirectory())]
        url = f"http://127.0.0.1:{api}/v1"
        port = stack.enter_context(process("backend", "--api", url, *store))
        before, began = stats(port, reset=True), time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.bench_rejoin", "browse", "--port", str(port)]
        command += ["--count", str(args.count), *sizes, "--spread", str(args.spread)]
        done = subprocess.run(
            command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, check=True
        )
        seen, wall = json.loads(done.stdout), time.perf_counter() - began
        after, counted = stats(port), stats(api)
    joins = sorted(seen["joins"])
    late = sum(join > 0.05 for join in joins)
    live = args.count * args.size
    print(
        f"{args.count} browsers, {counted['prompts']} ids, {counted['requests']} generations, "
        f"{seen['collected']} images collected in {wall:.0f} s\n"
        f"{len(joins)} joins: median {1000 * statistics.median(joins):.1f} ms, "
        f"95 % {1000 * joins[len(joins) * 95 // 100]:.1f} ms, "
        f"99 % {1000 * joins[len(joins) * 99 // 100]:.1f} ms, maximum {1000 * joins[-1]:.0f} ms, "
        f"{late} above 50 ms\n"
        f"{describe_lag('backend', after)}\n{describe_lag('browsers', seen)}\n"
        f"backend: {(after['cpu'] - before['cpu']) / wall:.0%} of a core; memory above the start "
        f"{(after['peak'] - before['resident']) / 1e6:.0f} MB at most, "
        f"{(after['peak'] - before['resident']) / live:.2f} times the live images"
    )


def describe_lag(name: str, figures: dict[str, Any]) -> str:
    """Return how late the event loop of a process was."""
    return (
        f"{name}: loop late by 99 % {1000 * figures['lag_99']:.1f} ms, maximum "
        f"{1000 * figures['lag_max']:.0f} ms; {figures['collections']} garbage collections above "
        f"5 ms of CPU, maximum {1000 * figures['collection_max']:.0f} ms; waited "
        f"{figures['waited']:.1f} s for a processor"
    )


# --- viewers of one job -----------------------------------------------------


async def view(port: int, count: int, path: str) -> int:
    """Let so many viewers read one response to its end at once; return its length."""

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        total = 0
        while chunk := await reader.read(1 << 20):
            total += len(chunk)
        writer.close()
        return total

    return (await asyncio.gather(*(one() for _ in range(count))))[0]


def measure_viewers(args: argparse.Namespace) -> None:
    """Print the CPU of the backend for one and for fifty viewers of one job.

    The socket writes are those of a plain streaming response of the same framework, which sends as
    many bytes in chunks of the same size to as many viewers.
    """
    ids = (f"live-{number}" for number in itertools.count())
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(process("api", "--size", str(args.size), "--seconds", "1"))
        url = f"http://127.0.0.1:{api}/v1"
        port = stack.enter_context(process("backend", "--api", url))

        def seconds(path: str, count: int) -> float:
            before = stats(port)["cpu"]
            command = [sys.executable, "-m", "benchmarks.bench_rejoin", "view", "--path", path]
            command += ["--port", str(port), "--count", str(count)]
            subprocess.run(command, cwd=ROOT, env=child_environment(), check=True)
            return float(stats(port)["cpu"] - before)

        lives = asyncio.run(view(port, 2, "/image?id=done"))
        replay = asyncio.run(view(port, 2, "/image?id=done"))
        for kind, length in (("a finished", replay), ("a running", lives)):
            rounds = []
            for _ in range(ROUNDS):
                done = kind == "a finished"
                one, fifty = ("done" if done else next(ids) for _ in range(2))
                rounds.append(
                    (
                        seconds(f"/image?id={one}", 1),
                        seconds(f"/image?id={fifty}", VIEWERS),
                        seconds(f"/bytes?length={length}", VIEWERS),
                    )
                )
            medians = (1000 * statistics.median(each) for each in zip(*rounds, strict=True))
            alone, together, sockets = medians
            print(
                f"{kind} job, {length / 1e6:.1f} MB for each viewer: one viewer {alone:.1f} ms, "
                f"{VIEWERS} viewers {together:.1f} ms, of which socket writes {sockets:.1f} ms and "
                f"the rest {(together - sockets) / alone:.2f} times one viewer's"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_rejoin", description=__doc__)
    parser.add_argument("part", choices=["browsers", "viewers", "browse", "view"])
    parser.add_argument("--count", type=int, default=1000, help="browsers or viewers")
    parser.add_argument("--size", type=int, default=500_000, help="bytes of an image")
    parser.add_argument("--seconds", type=float, default=20.0, help="that an image takes")
    parser.add_argument("--spread", type=float, default=20.0, help="seconds in which all start")
    parser.add_argument("--directory", action="store_true", help="use a DirectoryStore")
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--path", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "browsers":
        measure_browsers(args)
    elif args.part == "viewers":
        measure_viewers(args)
    elif args.part == "browse":
        print(json.dumps(asyncio.run(browse(args.port, args.count, args.size, args.spread))))
    else:
        asyncio.run(view(args.port, args.count, args.path))


if __name__ == "__main__":
    main()
