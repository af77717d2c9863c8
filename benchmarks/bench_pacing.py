"""Pacing: a server that admits so many requests a minute, and then changes its mind.

`python -m benchmarks.bench_pacing serve` is the server: a bucket of requests that fills at a rate,
which doubles after a third of the time and is halved again after the second. `… drive` is the
client, with more concurrent calls than can be served. The server counts what it admitted and
rejected in each second.
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
CALLS = 120  # at a time
# Seconds after the start and after each change that are not counted without headers.
SETTLING = 10
RESPONSE = b'{"created":1,"data":[{"url":"http://127.0.0.1/a.png"}]}'
REJECTION = b'{"error":{"message":"Too many requests","type":"rate_limit_error"}}'
HEADERS, NO_HEADERS = "with headers", "without headers"


class Server:
    """The bucket, and its counts: what was allowed, admitted and rejected in each second."""

    def __init__(self, seconds: int, *, with_headers: bool) -> None:
        self.seconds, self.with_headers = seconds, with_headers
        self.counts = [[self.rate(second), 0, 0] for second in range(seconds)]
        self.burst = self.remaining = RATE
        self.began: float | None = None
        self.at = 0.0

    def rate(self, passed: float) -> float:
        """Return the requests per second that the bucket gains after so many seconds."""
        return RATE * FACTORS[min(len(FACTORS) - 1, int(passed / self.seconds * len(FACTORS)))]

    def admit(self, now: float) -> tuple[bool, str]:
        """Return whether one more request is admitted, and the rate-limit headers."""
        self.began = now if self.began is None else self.began
        passed = now - self.began
        rate = self.rate(passed)
        self.remaining = min(self.burst, self.remaining + (passed - self.at) * rate)
        self.at = passed
        admitted = self.remaining >= 1.0
        self.remaining -= admitted
        if passed < self.seconds:
            self.counts[int(passed)][1 if admitted else 2] += 1
        reset = (self.burst - self.remaining) / rate
        return admitted, (
            f"x-ratelimit-limit-requests: {self.burst:.0f}\r\n"
            f"x-ratelimit-remaining-requests: {int(self.remaining)}\r\n"
            f"x-ratelimit-reset-requests: {reset:.3f}s\r\n"
            if self.with_headers
            else ""
        )

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                admitted, headers = self.admit(asyncio.get_running_loop().time())
                body = RESPONSE if admitted else REJECTION
                if admitted:
                    await asyncio.sleep(LATENCY)
                status = "200 OK" if admitted else "429 Too Many Requests"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
        writer.close()


async def serve(seconds: int, *, with_headers: bool) -> None:
    """Print the port, serve until standard input ends, and print the counts."""
    counted = Server(seconds, with_headers=with_headers)
    server = await asyncio.start_server(counted.connected, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()
    print(json.dumps(counted.counts), flush=True)


async def drive(port: int, seconds: int) -> None:
    """Keep more calls running than can be served."""

    async def call_forever(client: AsyncImages) -> None:
        while True:
            with contextlib.suppress(ElkImagesError):
                await client.generate(PROMPT, model=MODEL)

    async with AsyncImages(
        KEY, base_url=f"http://127.0.0.1:{port}/v1", retry=RetryPolicy(max_retries=0)
    ) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + 1.0), asyncio.TaskGroup() as calls:
                for _ in range(CALLS):
                    calls.create_task(call_forever(client))


def measure(seconds: int, *, with_headers: bool) -> dict[str, Any]:
    """Run one server and one client; return the figures and the counts."""
    command = [sys.executable, "-m", "benchmarks.bench_pacing", "serve", "--seconds", str(seconds)]
    with subprocess.Popen(
        command + (["--headers"] if with_headers else []),
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
        counts = json.loads(server.stdout.readline())
    third = seconds // len(FACTORS)
    settling = 1 if with_headers else SETTLING
    counted = [row for second, row in enumerate(counts) if second % third >= settling]
    allowed, admitted, rejected = (sum(column) for column in zip(*counted, strict=True))
    values = {
        "paced_percent": 100 * admitted / allowed,
        "rejected_percent": 100 * rejected / max(1, admitted + rejected),
    }
    return {"values": values, "counts": counts}


def run(lab: Lab) -> None:
    """Run both ways side by side; they hardly need a processor."""
    if not lab.present(OURS):
        return
    seconds = QUICK_SECONDS if lab.quick else SECONDS
    command = [sys.executable, "-m", "benchmarks.bench_pacing", "drive", "--seconds", str(seconds)]
    lab.say(f"pacing: a run of {seconds} seconds")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = {
            HEADERS: pool.submit(run_json, [*command, "--headers"]),
            NO_HEADERS: pool.submit(run_json, command),
        }
    for done, (scenario, running) in enumerate(runs.items(), 1):
        output = running.result()
        lab.series[scenario] = output.get("counts", [])
        lab.add(Sample.of(output, "pacing", "pacing", scenario, OURS, 0), done, len(runs))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_pacing")
    parser.add_argument("part", choices=["serve", "drive"])
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--headers", action="store_true", help="with rate-limit headers")
    args = parser.parse_args()
    if args.part == "serve":
        asyncio.run(serve(args.seconds, with_headers=args.headers))
    else:
        print(json.dumps(measure(args.seconds, with_headers=args.headers)))


if __name__ == "__main__":
    main()
