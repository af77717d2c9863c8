"""A ZIP archive that is sent while it is written, one image in memory at a time."""

import io
import itertools
import zipfile
from pathlib import Path, PurePath


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


class ZipStream:
    """An archive of images, which are stored as they are, since they are compressed already."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._archive = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_STORED)
        self._names: set[str] = set()

    def add(self, name: str, file: Path) -> bytes:
        """Add a file, and return the next bytes of the archive; slow, so call it in a thread.

        A name that occurs again gets a number. A file that has been deleted is left out.
        """
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return b""
        path, numbers = PurePath(name), itertools.count(2)
        while name in self._names:
            name = f"{path.stem}-{next(numbers)}{path.suffix}"
        self._names.add(name)
        self._archive.writestr(name, content)
        return self._sink.collect()

    def end(self) -> bytes:
        """Return the last bytes of the archive."""
        self._archive.close()
        return self._sink.collect()
