"""The processes behind `bench_rejoin`: an API that counts, and a backend that runs jobs.

`python -m benchmarks.jobs_backend api` serves streams of one partial and one final image, each
different for each prompt, and counts the requests of each prompt. `… backend URL STORE` relays jobs
with Starlette on uvicorn. Both print their port, and serve until standard input closes. `GET
/stats` returns what they have counted.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import gc
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from elkimg_async import AsyncImages, web
from elkimg_async.jobs import DirectoryStore, ImageJobs, MemoryStore, Store

from .client import KEY

BLOCK = 128 * 1024
_TICK = 0.005
PNG = b"\x89PNG\r\n\x1a\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def picture(prompt: str, kind: str, size: int) -> bytes:
    """Return the bytes of the image of a prompt, which start like a PNG."""
    return PNG + hashlib.shake_128(f"{kind} {prompt}".encode()).digest(size - len(PNG))


class Lag:
    """How late an event loop is: for its own work, and because other processes have the processors.

    A join waits for the loops of the backend and of the browsers, so its tail is not shorter than
    theirs.
    """

    def __init__(self) -> None:
        self._seconds = list[float]()
        self._collections = list[float]()
        self._collecting = 0.0
        gc.callbacks.append(self._collected)
        self._task = asyncio.create_task(self._measure())
        self._waited = self._run_delay()

    def reset(self) -> None:
        """Begin again."""
        self._seconds.clear()
        self._collections.clear()
        self._waited = self._run_delay()

    def figures(self) -> dict[str, float]:
        """Return how late the loop was, the CPU of garbage collections, and the wait for CPUs."""
        found = sorted(self._seconds) or [0.0]
        return {
            "lag_99": found[len(found) * 99 // 100],
            "lag_max": found[-1],
            "collections": sum(each > _TICK for each in self._collections),
            "collection_max": max(self._collections, default=0.0),
            "waited": self._run_delay() - self._waited,
        }

    def _collected(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.process_time()
        else:
            self._collections.append(time.process_time() - self._collecting)

    async def _measure(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_TICK)
            self._seconds.append(time.perf_counter() - began - _TICK)

    @staticmethod
    def _run_delay() -> float:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


class CountingApi:
    """An API that counts the requests of each prompt, and takes some seconds for an image.

    Args:
        size: The bytes of a final image; a partial one has a quarter of them.
        seconds: How long an image takes; its partial image comes after half of that.
    """

    def __init__(self, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds
        self._requests = Counter[str]()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to one request."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self._stats())
            else:
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await self._stream(json.loads(await reader.readexactly(int(length))), writer)
        writer.close()

    def _stats(self) -> bytes:
        stats = {"requests": self._requests.total(), "prompts": len(self._requests)}
        return json.dumps(stats).encode()

    async def _stream(self, fields: dict[str, str], writer: asyncio.StreamWriter) -> None:
        prompt = fields["prompt"]
        self._requests[prompt] += 1
        writer.write(HEAD)
        for kind, size in (("partial_image", self._size // 4), ("completed", self._size)):
            await asyncio.sleep(self._seconds / 2)
            event = {
                "type": f"image_generation.{kind}",
                "b64_json": base64.b64encode(picture(prompt, kind, size)).decode(),
            }
            writer.write(b"data: %b\n\n" % json.dumps(event).encode())
            await writer.drain()


@functools.cache
def blocks(length: int) -> list[bytes]:
    """Return so many bytes in blocks of the size that the relay sends, the same to all viewers."""
    return [os.urandom(min(BLOCK, length - start)) for start in range(0, length, BLOCK)]


def backend(jobs: ImageJobs) -> Starlette:
    """Return an application that starts and relays jobs, and reports its memory and CPU."""

    async def image(request: Request) -> Response:
        job = await jobs.start(
            "an elk, " + request.query_params["id"], id=request.query_params["id"]
        )
        return web.starlette_response(jobs.events(job.id, request.headers.get("last-event-id")))

    async def same_bytes(request: Request) -> Response:
        ready = blocks(int(request.query_params["length"]))

        async def each() -> AsyncIterator[bytes]:
            for block in ready:
                yield block

        return StreamingResponse(each())

    lag = Lag()

    async def stats(request: Request) -> Response:
        if "reset" in request.query_params:
            lag.reset()
            Path("/proc/self/clear_refs").write_text("5")
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        resident, peak = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        used = {"resident": resident, "peak": peak, "cpu": time.process_time()}
        return JSONResponse({**used, **lag.figures()})

    return Starlette(
        routes=[Route("/image", image), Route("/bytes", same_bytes), Route("/stats", stats)]
    )


async def input_end() -> None:
    """Wait until standard input closes."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


async def serve_api(size: int, seconds: float) -> None:
    """Serve the API."""
    api = CountingApi(size, seconds)
    server = await asyncio.start_server(api.connected, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await input_end()
    server.close()


async def serve_backend(url: str, store: Store) -> None:
    """Serve the backend."""
    async with (
        AsyncImages(KEY, base_url=url, retry=0) as client,
        ImageJobs(client, store=store, grace=0) as jobs,
    ):
        config = uvicorn.Config(
            backend(jobs), port=0, log_level="warning", backlog=4096, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        socket = config.bind_socket()
        serving = asyncio.create_task(server.serve([socket]))
        while not server.started:
            await asyncio.sleep(0.01)
        # Full collections stop the process. They leave out what is there so far, and are rarer.
        gc.collect()
        gc.freeze()
        gc.set_threshold(700, 10, 1000)
        print(socket.getsockname()[1], flush=True)
        await input_end()
        server.should_exit = True
        await serving


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs_backend")
    parser.add_argument("part", choices=["api", "backend"])
    parser.add_argument("--size", type=int, default=500_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--api", default="")
    parser.add_argument("--folder", help="use a DirectoryStore (default: memory)")
    args = parser.parse_args()
    if args.part == "api":
        asyncio.run(serve_api(args.size, args.seconds))
        return
    memory = MemoryStore(max_bytes=8 * 1024**3)
    store = DirectoryStore(os.fspath(args.folder)) if args.folder else memory
    asyncio.run(serve_backend(args.api, store))


if __name__ == "__main__":
    main()
