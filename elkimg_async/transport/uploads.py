"""Pictures that a caller hands in: looked at before they are sent, and read while they leave.

A file is never whole in memory: it is opened for each piece, in a worker thread, so that
nothing is held between two pieces, a retry begins anew, and a file that has changed in the
meantime is noticed.
"""

import asyncio
import inspect
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from elkimg_async.errors import ElkImagesError, InvalidRequestError
from elkimg_async.image import Image
from elkimg_async.sansio import image_headers
from elkimg_async.sansio.image_headers import HEAD, InputImage
from elkimg_async.sansio.model_rules import MOST_UPLOADED
from elkimg_async.sansio.multipart import Upload

PIECE = 128 * 1024
"""Bytes that are read at once."""

_lock = threading.Lock()  # of all file objects: two calls may share one, and so its position


class Source(Protocol):
    """Where a picture's bytes come from."""

    def read(self, offset: int, size: int) -> bytes:
        """Read in a worker thread; less than `size` bytes only where the file has become shorter."""
        ...


async def look_at_all(images: Any, param: str) -> tuple[InputImage, ...]:
    """One picture or several, as they are sent; `param` is what errors name.

    Raises:
        InvalidRequestError: by the caller, for what is no picture, cannot be read, or is empty.
        DownloadError: by the image host, for an `Image` that is a URL still.
    """
    one = isinstance(images, (str, bytes, bytearray, memoryview)) or not isinstance(
        images, Sequence
    )
    found = [await look_at(image, param) for image in ([images] if one else images)]
    if not found:
        raise InvalidRequestError("There is no image to edit; give at least one.", param=param)
    return tuple(found)


async def look_at(image: Any, param: str) -> InputImage:
    """One picture; as `look_at_all`."""
    import anyio.to_thread

    if isinstance(image, Image):
        image = await image.read()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _checked(_in_memory(bytes(image), param), param)
    if isinstance(image, (str, os.PathLike)):
        look: Callable[[Any, str], InputImage] = _look_at_path
    elif callable(getattr(image, "read", None)):
        look = _look_at_file
    else:
        raise InvalidRequestError(
            f"{param} must be a path, bytes, a file opened in binary mode, or an Image, "
            f"not {type(image).__name__}.",
            param=param,
        )
    return _checked(await anyio.to_thread.run_sync(look, image, param), param)


def _checked(image: InputImage, param: str) -> InputImage:
    if not image.size:
        raise InvalidRequestError(f"{image.name} is empty; give a picture.", param=param)
    return image


def _in_memory(content: bytes, name: str) -> InputImage:
    return image_headers.inspect(content[:HEAD], size=len(content), name=name, source=content)


def _look_at_path(path: "str | os.PathLike[str]", param: str) -> InputImage:
    try:
        source = _File(Path(path), param)
        head = source.read(0, HEAD)
    except (OSError, ValueError) as error:
        reason = _reason(error)
    else:
        return image_headers.inspect(head, size=source.size, name=source.path.name, source=source)
    raise InvalidRequestError(f"{os.fspath(path)!r} cannot be read: {reason}.", param=param)


class _File:
    """A file on disk, which must stay as it was."""

    def __init__(self, path: Path, param: str) -> None:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "it is no file")
        self.path, self.size = path, found.st_size
        self._param, self._stamp = param, _stamp(found)

    def read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise InvalidRequestError(
                    f"{str(self.path)!r} was changed while it was sent; ask again.",
                    param=self._param,
                )
            file.seek(offset)
            return file.read(size)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ino


def _look_at_file(file: Any, param: str) -> InputImage:
    """A file object, from its beginning, wherever it stands; one that cannot seek is read into memory."""
    name = getattr(file, "name", None)
    name = Path(name).name if isinstance(name, str) else param
    try:
        seekable = getattr(file, "seekable", None)
        if seekable is not None and seekable() is True:
            with _lock:
                at = file.tell()
                size = file.seek(0, os.SEEK_END)
                file.seek(at)
            source = _FileObject(file)
            return image_headers.inspect(source.read(0, HEAD), size=size, name=name, source=source)
        content = _bytes(file.read(MOST_UPLOADED))
    except Exception as error:  # noqa: BLE001
        reason = _reason(error)
    else:
        return _in_memory(content, name)
    raise InvalidRequestError(f"The file of {param} cannot be read: {reason}.", param=param)


class _FileObject:
    """A file that the caller has opened; it is left standing where it stood."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, offset: int, size: int) -> bytes:
        with _lock:
            at = self._file.tell()
            self._file.seek(offset)
            try:
                return _bytes(self._file.read(size))
            finally:
                self._file.seek(at)


def _bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    if inspect.iscoroutine(content):
        content.close()
        raise ValueError("its read() must be waited for; give the file underneath, or the bytes")
    raise ValueError("open it in binary mode, as in open(path, 'rb')")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


class Reader:
    """A body piece by piece, for one attempt; `failure` says why it ended early, where it did.

    `before_each` is called before each piece.
    """

    def __init__(self, body: bytes | Upload, *, before_each: Callable[[], object]) -> None:
        self.failure: ElkImagesError | None = None
        self._before_each = before_each
        self._windows = _windows((body,) if isinstance(body, bytes) else body.pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        import anyio.to_thread

        self._before_each()
        window = next(self._windows, None)
        if window is None:
            raise StopAsyncIteration
        source, at, size = window
        if isinstance(source, bytes):
            await asyncio.sleep(0)  # a large one must not keep the loop to itself
            return source[at : at + size]
        try:
            piece = await anyio.to_thread.run_sync(source.read, at, size)
        except ElkImagesError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001
            self.failure = _unreadable(_reason(error))
        else:
            if len(piece) == size:
                return piece
            self.failure = _unreadable("it has become shorter")
        raise OSError(None, "the upload ends early")


def _unreadable(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"A file could not be read while it was sent: {reason}.", param="image"
    )


def _windows(pieces: Iterable[bytes | InputImage]) -> Iterator[tuple[bytes | Source, int, int]]:
    """What to read, where and how much, for the whole body."""
    for piece in pieces:
        source = piece.source if isinstance(piece, InputImage) else piece
        for at in range(0, len(piece), PIECE):
            yield source, at, min(PIECE, len(piece) - at)
