"""Pacing: a server that admits so many requests a minute, and then changes its mind.

`python -m benchmarks.bench_pacing serve` is the server: a bucket of requests that fills at a rate, which doubles after
a third of the time and is halved again after the second. `… drive` is the client, with more callers than can be
served. The server keeps the count: what it admitted and refused in each second.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import subprocess
import sys
from typing import Any

from elkimg_async import AsyncImages, RetryPolicy
from elkimg_async.errors import ElkImagesError

from .client import KEY, MODEL, PROMPT
from .contenders import OURS
from .lab import ROOT, Lab, Sample, child_environment, run_json

TITLE = "Pacing against a true token bucket"
RATE = 20.0  # admitted in a second, at first and at last
FACTORS = (1.0, 2.0, 1.0)
SECONDS, QUICK_SECONDS = 120, 48
LATENCY = 0.5  # seconds that an admitted request takes
CALLERS = 120
SETTLING = (
    10  # seconds after the start and after each change that are not counted on refusals alone
)
ANSWER = b'{"created":1,"data":[{"url":"http://127.0.0.1/a.png"}]}'
REFUSAL = b'{"error":{"message":"Too many requests","type":"rate_limit_error"}}'
HEADERS, REFUSALS = "headers tell", "refusals alone"


class Server:
    """The bucket, and its book: for each second what was allowed, admitted and refused."""

    def __init__(self, seconds: int, *, tells: bool) -> None:
        self.seconds, self.tells = seconds, tells
        self.book = [[self.rate(second), 0, 0] for second in range(seconds)]
        self.burst = self.left = RATE
        self.began: float | None = None
        self.at = 0.0

    def rate(self, passed: float) -> float:
        """What flows in, so many seconds after the first request."""
        return RATE * FACTORS[min(len(FACTORS) - 1, int(passed / self.seconds * len(FACTORS)))]

    def ask(self, now: float) -> tuple[bool, str]:
        """Whether one more is admitted, and the headers that tell what is left."""
        self.began = now if self.began is None else self.began
        passed = now - self.began
        rate = self.rate(passed)
        self.left = min(self.burst, self.left + (passed - self.at) * rate)
        self.at = passed
        admitted = self.left >= 1.0
        self.left -= admitted
        if passed < self.seconds:
            self.book[int(passed)][1 if admitted else 2] += 1
        reset = (self.burst - self.left) / rate
        return admitted, (
            f"x-ratelimit-limit-requests: {self.burst:.0f}\r\n"
            f"x-ratelimit-remaining-requests: {int(self.left)}\r\n"
            f"x-ratelimit-reset-requests: {reset:.3f}s\r\n"
            if self.tells
            else ""
        )

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what comes on one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                admitted, headers = self.ask(asyncio.get_running_loop().time())
                body = ANSWER if admitted else REFUSAL
                if admitted:
                    await asyncio.sleep(LATENCY)
                status = "200 OK" if admitted else "429 Too Many Requests"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
        writer.close()


async def serve(seconds: int, *, tells: bool) -> None:
    """Print the port, answer until standard input ends, and print the book."""
    counted = Server(seconds, tells=tells)
    server = await asyncio.start_server(counted.connected, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()
    print(json.dumps(counted.book), flush=True)


async def drive(port: int, seconds: int) -> None:
    """Keep more callers at it than can be served."""

    async def caller(client: AsyncImages) -> None:
        while True:
            with contextlib.suppress(ElkImagesError):
                await client.generate(PROMPT, model=MODEL)

    async with AsyncImages(
        KEY, base_url=f"http://127.0.0.1:{port}/v1", retry=RetryPolicy(max_retries=0)
    ) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + 1.0), asyncio.TaskGroup() as callers:
                for _ in range(CALLERS):
                    callers.create_task(caller(client))


def measure(seconds: int, *, tells: bool) -> dict[str, Any]:
    """One server, one client; the figures and the book."""
    command = [sys.executable, "-m", "benchmarks.bench_pacing", "serve", "--seconds", str(seconds)]
    with subprocess.Popen(
        command + (["--tells"] if tells else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=child_environment(),
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            asyncio.run(drive(int(server.stdout.readline()), seconds))
        finally:
            server.stdin.close()
        book = json.loads(server.stdout.readline())
    third = seconds // len(FACTORS)
    settling = 1 if tells else SETTLING
    counted = [row for second, row in enumerate(book) if second % third >= settling]
    allowed, admitted, refused = (sum(column) for column in zip(*counted, strict=True))
    values = {
        "paced_percent": 100 * admitted / allowed,
        "refused_percent": 100 * refused / max(1, admitted + refused),
    }
    return {"values": values, "book": book}


def run(lab: Lab) -> None:
    """Both ways at once: they hardly need a processor."""
    if not lab.present(OURS):
        return
    seconds = QUICK_SECONDS if lab.quick else SECONDS
    command = [sys.executable, "-m", "benchmarks.bench_pacing", "drive", "--seconds", str(seconds)]
    lab.say(f"pacing: a run of {seconds} seconds")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = {
            HEADERS: pool.submit(run_json, [*command, "--tells"]),
            REFUSALS: pool.submit(run_json, command),
        }
    for done, (scenario, running) in enumerate(runs.items(), 1):
        answer = running.result()
        lab.series[scenario] = answer.get("book", [])
        lab.add(Sample.of(answer, "pacing", "pacing", scenario, OURS, 0), done, len(runs))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_pacing")
    parser.add_argument("part", choices=["serve", "drive"])
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--tells", action="store_true", help="with rate-limit headers")
    args = parser.parse_args()
    if args.part == "serve":
        asyncio.run(serve(args.seconds, tells=args.tells))
    else:
        print(json.dumps(measure(args.seconds, tells=args.tells)))


if __name__ == "__main__":
    main()
