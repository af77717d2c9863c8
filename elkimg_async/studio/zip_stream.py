"""A ZIP archive that is sent while it is written, one image in memory at a time."""

import io
import zipfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path, PurePath

import anyio.to_thread


class _Sink(io.RawIOBase):
    """A file that collects what is written to it."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        self._chunks.append(bytes(data))
        return len(data)

    def collect(self) -> bytes:
        """Return what was written since the last call."""
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


class ZipStream(AsyncIterator[bytes]):
    """The bytes of an archive of files; images are stored uncompressed, since they already are.

    Args:
        files: The files with their names; a name that occurs again gets a number. A file that has
            been deleted in the meantime is left out.
    """

    def __init__(self, files: Iterable[tuple[str, Path]]) -> None:
        self._files = iter(_unique(files))
        self._sink = _Sink()
        self._archive = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_STORED)
        self._ended = False

    async def __anext__(self) -> bytes:
        while not self._ended:
            chunk = await anyio.to_thread.run_sync(self._next)
            if chunk:
                return chunk
        raise StopAsyncIteration

    def _next(self) -> bytes:
        file = next(self._files, None)
        if file is None:
            self._archive.close()
            self._ended = True
        else:
            name, path = file
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return b""
            self._archive.writestr(name, content)
        return self._sink.collect()


def _unique(files: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    found: dict[str, Path] = {}
    for name, path in files:
        free, number = name, 2
        while free in found:
            free = f"{PurePath(name).stem}-{number}{PurePath(name).suffix}"
            number += 1
        found[free] = path
    return list(found.items())
