"""Input files of edits, and the forms that arrive."""

import asyncio
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.base_protocol import BaseProtocol

from elkimg_async import (
    Image,
    RetryPolicy,
)
from tests.helpers.raw_server import (
    RawRequest,
)
from tests.local.test_edits import noise_image

PNG, JPEG, WEBP = (noise_image(format=kind) for kind in ("PNG", "JPEG", "WEBP"))
QUICK = RetryPolicy(initial_backoff=0)


async def parsed(request: RawRequest) -> list[tuple[str, str | None, str | None, bytes]]:
    """The form as another parser sees it: name, file name, type and content of each part."""
    stream = aiohttp.StreamReader(NoFlow(), 2**16, loop=asyncio.get_running_loop())
    stream.feed_data(request.body)
    stream.feed_eof()
    reader = aiohttp.MultipartReader({"Content-Type": request.headers["content-type"]}, stream)
    parts = []
    async for part in reader:
        assert isinstance(part, aiohttp.BodyPartReader)
        content = bytes(await part.read())
        parts.append((part.name or "", part.filename, part.headers.get("Content-Type"), content))
    return parts


class NoFlow(BaseProtocol):
    """Flow control that does nothing."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())

    def pause_reading(self) -> None:
        pass

    def resume_reading(self, resume_parser: bool = True) -> None:
        pass


class OneWay(io.RawIOBase):
    """A file that cannot seek, such as a pipe."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


def on_disk(folder: Path, content: bytes = PNG, name: str = "kitten.png") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def large(folder: Path, size: int, name: str = "large.png") -> Path:
    """Return an image file of this size, with random bytes after its header."""
    path = on_disk(folder, PNG[:60], name)
    with path.open("ab") as file:
        block = os.urandom(1 << 20)
        for _ in range(size >> 20):
            file.write(block)
    return path


WAYS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: str(path),
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "buffer": lambda path: io.BytesIO(path.read_bytes()),
    "pipe": lambda path: OneWay(path.read_bytes()),
    "image": lambda path: Image(path.read_bytes()),
}
