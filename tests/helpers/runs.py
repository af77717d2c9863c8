"""A server for runs of `map`, and what tests do with runs."""

import asyncio
import base64
import contextlib
import json
import os
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web

from elkimg_async import (
    MapItem,
    MapRun,
)
from tests.helpers.raw_server import PNG

Fields = dict[str, Any]


def make_png(width: int, height: int, noise: int = 0) -> bytes:
    """Return a grey PNG; `noise` bytes that do not compress make it larger."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + checksum.to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    rows = (b"\0" + b"\x80\x80\x80\xff" * width) * height
    extra = chunk(b"noIs", os.urandom(noise)) if noise else b""
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def images(*contents: bytes, tokens: int | None = 10) -> Fields:
    """Return a response with these images."""
    data = [{"b64_json": base64.b64encode(content).decode()} for content in contents]
    usage = {"usage": {"total_tokens": tokens}} if tokens is not None else {}
    return {"created": 1, "data": data, **usage}


def rejection(status: int, code: str = "") -> web.Response:
    """Return an error of the API."""
    return web.json_response({"error": {"message": "no", "code": code}}, status=status)


Responder = Callable[[Fields], Awaitable[Fields | web.Response]]


async def one_image(fields: Fields) -> Fields | web.Response:
    """Respond with one image."""
    return images(PNG)


async def one_file(name: str) -> web.Response:
    """Respond with an image file."""
    return web.Response(body=PNG, content_type="image/png")


class Server:
    """A server that counts requests and sends what `respond` returns; by default one image."""

    def __init__(self) -> None:
        self.requests: list[Fields] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.peak = 0
        self.changed = asyncio.Event()
        self.origin = self.base_url = ""
        self.respond: Responder = one_image
        self.file: Callable[[str], Awaitable[web.Response]] = one_file

    async def _generate(self, request: web.Request) -> web.Response:
        return await self._handle(request, await request.json())

    async def _edit(self, request: web.Request) -> web.Response:
        fields: Fields = {}
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            name = (part.name or "").removesuffix("[]")
            if part.filename is None:
                fields[name] = await part.text()
            else:
                fields.setdefault(name, []).append((part.filename, await part.read()))
        return await self._handle(request, fields)

    async def _handle(self, request: web.Request, fields: Fields) -> web.Response:
        self.requests.append(fields)
        self.keys.append(request.headers.get("Idempotency-Key"))
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._notify()
        try:
            response = await self.respond(fields)
        finally:
            self.in_flight -= 1
            self._notify()
        return response if isinstance(response, web.Response) else web.json_response(response)

    async def _download(self, request: web.Request) -> web.Response:
        return await self.file(request.match_info["name"])

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is checked whenever a request arrives or ends."""
        async with asyncio.timeout(20):
            while not condition():
                await self.changed.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        """Listen on a free port."""
        app = web.Application(client_max_size=2**26)
        app.add_routes(
            [
                web.post("/v1/images/generations", self._generate),
                web.post("/v1/images/edits", self._edit),
                web.get("/files/{name}", self._download),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.base_url = f"{self.origin}/v1"
            yield self
        finally:
            await runner.cleanup()


async def everything(run: MapRun) -> list[MapItem]:
    """Return all items of a run, in the order of their arrival."""
    async with run:
        return [item async for item in run]


async def until_the_end(run: MapRun) -> tuple[list[MapItem], Exception | None]:
    """Return all items of a run, and the error raised after them."""
    items = []
    async with run:
        try:
            async for item in run:
                items.append(item)  # noqa: PERF401 - kept when it raises
        except Exception as error:  # noqa: BLE001
            assert await anext(run, None) is None
            return items, error
    return items, None


def in_order(items: list[MapItem]) -> list[MapItem]:
    """Return items in the order of their requests."""
    return sorted(items, key=lambda item: item.index)


def lines(path: Path) -> list[Fields]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def hold(server: Server, *held: str) -> asyncio.Event:
    """Hold requests with these prompts, or all, until the returned event is set."""
    released = asyncio.Event()

    async def respond(fields: Fields) -> Fields | web.Response:
        if not held or fields["prompt"] in held:
            await released.wait()
        return images(PNG)

    server.respond = respond
    return released
