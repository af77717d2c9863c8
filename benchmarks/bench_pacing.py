"""Pacing: a server that admits so many requests per second, which doubles and is halved.

`python -m benchmarks.bench_pacing matrix` runs the main combinations of rate, bucket and headers
over real sockets, each in a process of its own; `… simulate` runs thousands of settings of the
controller with a simulated clock; `… one` runs a single combination. The server counts what it
allowed, admitted and refused in each second.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import math
import sys
from typing import Any

import msgspec

from elkimg_async import AsyncImages
from elkimg_async.errors import ElkImagesError

from .client import KEY, MODEL, PROMPT
from .contenders import OURS
from .lab import Lab, Sample, run_json
from .rate_simulation import ADMITTED, PATTERNS, SETTLING, Bucket, refused_limit, report, wide_grid

TITLE = "Pacing against a true token bucket"
SECONDS, QUICK_SECONDS = 120, 48
ANSWER = b'{"created":1,"data":[{"url":"http://127.0.0.1/a.png"}]}'
REFUSAL = b'{"error":{"message":"Too many requests","type":"rate_limit_error"}}'
HEADERS, REFUSALS = "with headers", "refusals alone"


class Combination(msgspec.Struct, frozen=True, kw_only=True):
    """One server and its load.

    `headers` is `none`, `true`, or `contradictory`: the limit of a minute beside the remainder and
    reset of the bucket.
    """

    rate: float = 20.0
    burst: float = 20.0
    pattern: str = "double and halve"
    headers: str = "none"
    retry_after: bool = False
    latency: float = 0.5
    callers: int = 120
    seconds: int = SECONDS

    @property
    def name(self) -> str:
        """Return a short description."""
        after = ", Retry-After" if self.retry_after else ""
        return (
            f"{self.rate:g}/s, bucket {self.burst:g}, {self.pattern}, headers {self.headers}{after}"
        )


class Server:
    """A bucket over HTTP/1.1, and its book: per second what was allowed, admitted and refused."""

    def __init__(self, combination: Combination) -> None:
        self.combination = combination
        self.book = [[self.rate(second), 0, 0] for second in range(combination.seconds)]
        self.bucket = Bucket(combination.rate, combination.burst)
        self.began: float | None = None
        self.connections: set[asyncio.Task[Any] | None] = set()

    def rate(self, passed: float) -> float:
        """Return the requests per second admitted so many seconds after the first one."""
        factors = PATTERNS[self.combination.pattern]
        index = int(passed / self.combination.seconds * len(factors))
        return self.combination.rate * factors[min(len(factors) - 1, index)]

    def handle(self, now: float) -> tuple[bool, str]:
        """Return whether one more is admitted, and the headers."""
        self.began = now if self.began is None else self.began
        passed = now - self.began
        self.bucket.set_rate(self.rate(passed), passed)
        admitted, remaining, reset, wait = self.bucket.request(passed)
        if passed < self.combination.seconds:
            self.book[int(passed)][1 if admitted else 2] += 1
        headers, combination = "", self.combination
        if combination.headers != "none":
            true = combination.headers == "true"
            limit = combination.burst if true else 60 * self.bucket.rate
            headers = (
                f"x-ratelimit-limit-requests: {limit:.0f}\r\n"
                f"x-ratelimit-remaining-requests: {remaining}\r\n"
                f"x-ratelimit-reset-requests: {reset:.3f}s\r\n"
            )
        if combination.retry_after and not admitted:
            headers += f"retry-after-ms: {math.ceil(wait * 1000)}\r\n"
        return admitted, headers

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection."""
        self.connections.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                admitted, headers = self.handle(asyncio.get_running_loop().time())
                body = ANSWER if admitted else REFUSAL
                if admitted:
                    await asyncio.sleep(self.combination.latency)
                status = "200 OK" if admitted else "429 Too Many Requests"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def drive(combination: Combination) -> dict[str, Any]:
    """Run one combination with more callers than can be served; return the figures and the book."""
    counted, failed = Server(combination), 0
    server = await asyncio.start_server(counted.connected, "127.0.0.1", 0, backlog=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def caller(client: AsyncImages) -> None:
        nonlocal failed
        while True:
            try:
                await client.generate(PROMPT, model=MODEL)
            except ElkImagesError:
                failed += 1

    async with AsyncImages(KEY, base_url=url, retry=8) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(combination.seconds + 1.0), asyncio.TaskGroup() as callers:
                for _ in range(combination.callers):
                    callers.create_task(caller(client))
    server.close()
    await asyncio.gather(*filter(None, counted.connections))
    return {"values": figures(combination, counted.book) | {"failed": failed}, "book": counted.book}


def figures(combination: Combination, book: list[list[float]]) -> dict[str, float]:
    """Return what was admitted after settling, and refused in the whole run, in percent."""
    part = combination.seconds // len(PATTERNS[combination.pattern])
    settled = [row for second, row in enumerate(book) if second % part >= SETTLING]
    allowed, admitted, _ = (sum(column) for column in zip(*settled, strict=True))
    _, all_admitted, refused = (sum(column) for column in zip(*book, strict=True))
    return {
        "paced_percent": 100 * admitted / allowed,
        "refused_percent": 100 * refused / max(1, all_admitted + refused),
    }


def command(combination: Combination) -> list[str]:
    """Return the command that runs one combination in a process of its own."""
    encoded = msgspec.json.encode(combination).decode()
    return [sys.executable, "-m", "benchmarks.bench_pacing", "one", "--combination", encoded]


def run(lab: Lab) -> None:
    """Run both scenarios at once: they hardly need a processor."""
    if not lab.present(OURS):
        return
    seconds = QUICK_SECONDS if lab.quick else SECONDS
    lab.say(f"pacing: a run of {seconds} seconds")
    scenarios = {
        HEADERS: Combination(seconds=seconds, headers="true"),
        REFUSALS: Combination(seconds=seconds),
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = {name: pool.submit(run_json, command(one)) for name, one in scenarios.items()}
        for done, (scenario, running) in enumerate(runs.items(), 1):
            answer = running.result()
            lab.series[scenario] = answer.get("book", [])
            lab.add(Sample.of(answer, "pacing", "pacing", scenario, OURS, 0), done, len(runs))


def combinations(seconds: int) -> list[Combination]:
    """Return the main combinations."""
    change = "double and halve"
    return [
        Combination(rate=rate, burst=burst, headers=headers, pattern=pattern, seconds=seconds,
                    retry_after=headers == "contradictory")
        for rate, burst, headers, pattern in [
            (20, 20, "none", "steady"), (20, 20, "none", change), (20, 20, "true", change),
            (20, 20, "contradictory", change), (30, 8, "contradictory", "steady"),
            (30, 8, "none", "steady"), (50, 50, "none", "double"), (50, 5, "none", "halve"),
            (20, 1, "none", "steady"), (10, 1, "none", "steady"), (10, 10, "none", "double"),
            (10, 10, "true", "halve"), (5, 5, "none", "steady"), (5, 5, "true", change),
            (50, 1, "none", "steady"), (20, 1, "true", change),
        ]
    ]  # fmt: skip


def matrix(seconds: int, at_once: int) -> None:
    """Run the main combinations and print a table."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        todo = combinations(seconds)
        for one, answer in zip(todo, pool.map(run_json, map(command, todo)), strict=True):
            values = answer["values"]
            good = (
                values["paced_percent"] >= 100 * ADMITTED
                and values["refused_percent"] <= 100 * refused_limit(one.rate)
                and not values["failed"]
            )
            print(
                f"{'good' if good else 'WORSE':5} {one.name:60} "
                f"admitted {values['paced_percent']:5.1f} %, "
                f"refused {values['refused_percent']:.2f} %, failed {values['failed']:.0f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_pacing")
    parser.add_argument("part", choices=["matrix", "simulate", "one"])
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--combination", default="{}")
    args = parser.parse_args()
    if args.part == "matrix":
        matrix(args.seconds, args.at_once)
    elif args.part == "simulate":
        report(wide_grid())
    else:
        combination = msgspec.json.decode(args.combination, type=Combination)
        print(json.dumps(asyncio.run(drive(combination))))


if __name__ == "__main__":
    main()
