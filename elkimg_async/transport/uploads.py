"""Input images: examined before they are sent, and read while they are sent.

A file is never held in memory: it is opened for each chunk, in a worker thread. So no resource is
held between chunks, a retry starts over, and a file that has changed in the meantime is noticed.
"""

import asyncio
import base64
import inspect
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self
from urllib.parse import unquote_to_bytes

import anyio.to_thread
import msgspec

from elkimg_async.errors import ElkImagesError, InvalidRequestError
from elkimg_async.image import Image
from elkimg_async.media_types import UNKNOWN_TYPE
from elkimg_async.sansio import image_headers
from elkimg_async.sansio.image_headers import HEAD, ImageReference, InputImage, short
from elkimg_async.sansio.model_rules import MAX_UPLOAD
from elkimg_async.sansio.multipart import Upload
from elkimg_async.sansio.requests import EditRequest, make_edit

CHUNK = 128 * 1024
"""Bytes read at a time."""

_URL = re.compile(r"\s*(?:data:|https?://)", re.IGNORECASE)
# How the base64 of PNG, JPEG, WebP and GIF begins; or a long run of its characters.
_BASE64 = re.compile(r"iVBORw0KGgo|/9j/|UklGR|R0lGOD|[A-Za-z0-9+/_-]{200}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*")
_FORM_HEADERS = ("content-disposition", "content-type", "content-length")
_MEDIA_TYPE = re.compile(r"(image|application|binary)/[\w.+-]+")

_TEXT_OR_BYTES = (str, bytes, bytearray, memoryview)

_lock = threading.Lock()  # of all file objects: two calls may share one, and so its position


class Source(Protocol):
    """Where the bytes of an image come from."""

    def read(self, offset: int, size: int) -> bytes:
        """Read in a worker thread; fewer than `size` bytes only if the file has become shorter."""
        ...


# --- from arguments to a request ----------------------------------------------


async def build_edit(
    image: Any, options: Mapping[str, Any], *, model: str | None = None
) -> EditRequest:
    """Return the request of an edit like `make_edit`, with its files opened and examined.

    If one of the images is a reference, the others are read, since they go into the same JSON.

    Raises:
        InvalidRequestError: If an argument has the wrong type, or a file is not readable or empty.
        DownloadError: If an `Image` is still a URL and cannot be downloaded.
    """
    request = make_edit(image, options, model=model)
    images = await open_images(request.image, "image")
    mask = None if request.mask is None else await open_image(request.mask, "mask")
    markup = None if request.markup is None else await open_image(request.markup, "markup")
    opened = [*images, *(each for each in (mask, markup) if each is not None)]
    # A form cannot hold a reference. The endpoint takes references as JSON, which has no markup.
    if any(isinstance(each, ImageReference) for each in opened):
        if markup is not None:
            raise InvalidRequestError(
                "markup can only be sent with image files; pass the image as a file too.",
                param="markup",
            )
        images = tuple([await _unless_reference(each, "image") for each in images])
        mask = None if mask is None else await _unless_reference(mask, "mask")
    return msgspec.structs.replace(request, image=images, mask=mask, markup=markup)


async def open_images(images: Any, param: str) -> tuple[InputImage | ImageReference, ...]:
    """Return one or several images as they are sent; errors name the argument `param`.

    Raises:
        InvalidRequestError: If one is not an image, cannot be read, or is empty.
        DownloadError: If an `Image` is still a URL and cannot be downloaded.
    """
    found = [await open_image(image, param) for image in image_list(images)]
    if not found:
        raise InvalidRequestError("There is no image to edit; pass at least one.", param=param)
    return tuple(found)


async def open_image(image: Any, param: str) -> InputImage | ImageReference:
    """Return one image as it is sent; raises like `open_images`."""
    if isinstance(image, str) and _URL.match(image):
        image = ImageReference(url=image.strip())
    if isinstance(image, ImageReference):
        if image.url is None or image.url[:5].lower() != "data:":
            return image
        found = _from_data_url(image.url, param)
    elif isinstance(image, InputImage):
        return image
    elif is_file_tuple(image):
        found = await _open_tuple(image, param)
    else:
        found = await _open(image, param)
    if not found.size:
        raise InvalidRequestError(f"{found.name} is empty; pass an image.", param=param)
    return found


async def _open(content: Any, param: str) -> InputImage:
    """Return an image in memory, in a file or in a file object."""
    if isinstance(content, Image):
        content = await content.read()
    if isinstance(content, (bytes, bytearray, memoryview)):
        return _in_memory(bytes(content), param)
    if isinstance(content, (str, os.PathLike)):
        return await anyio.to_thread.run_sync(_open_path, content, param)
    if callable(getattr(content, "read", None)):
        return await anyio.to_thread.run_sync(_open_file, content, param)
    raise InvalidRequestError(
        f"{param} must be a path, bytes, a file opened in binary mode, an Image, a URL, or a "
        f"(name, content, type) tuple, not {type(content).__name__}.",
        param=param,
    )


def _in_memory(content: bytes, name: str) -> InputImage:
    return image_headers.inspect(content[:HEAD], size=len(content), name=name, source=content)


async def _unless_reference(
    image: InputImage | ImageReference, param: str
) -> InputImage | ImageReference:
    return image if isinstance(image, ImageReference) else await in_memory(image, param)


async def in_memory(image: InputImage, param: str) -> InputImage:
    """Return an image with all of its bytes.

    Raises:
        InvalidRequestError: If it cannot be read.
    """
    if isinstance(image.source, bytes):
        return image
    try:
        content = await anyio.to_thread.run_sync(image.source.read, 0, image.size)
    except OSError as error:
        problem = f"{short(image.name)} cannot be read: {reason_of(error)}."
        raise InvalidRequestError(problem, param=param) from None
    return msgspec.structs.replace(image, source=content)


# --- openai's file tuples and data: URLs --------------------------------------


def image_list(images: Any) -> list[Any]:
    """Return the images of an edit as a list, whether one or several were passed."""
    several = isinstance(images, Sequence) and not is_file_tuple(images)
    return list(images) if several and not isinstance(images, _TEXT_OR_BYTES) else [images]


def is_file_tuple(image: Any) -> bool:
    """Return whether this is (name, content[, type[, headers]]), not a tuple of images."""
    if not isinstance(image, tuple) or not 2 <= len(image) <= 4:
        return False
    # ("a.png", b"…") is a file with its name, but ("a.png", "b.png") are two images: content is
    # never text. With a third element that is not a media type, they are three images.
    name, content, *more = image
    return (
        (name is None or isinstance(name, str))
        and not isinstance(content, (str, tuple, Image, ImageReference))
        and (not more or more[0] is None or _is_media_type(more[0]))
    )


def _is_media_type(value: Any) -> bool:
    return isinstance(value, str) and _MEDIA_TYPE.fullmatch(value.partition(";")[0]) is not None


async def _open_tuple(image: Any, param: str) -> InputImage:
    """Open a file tuple; headers that its part of the form has anyway are dropped."""
    name, content, media_type, headers = (*image, None, None)[:4]
    pairs = [(str(key), str(value)) for key, value in dict(headers or {}).items()]
    if any(not _HEADER.fullmatch(f"{key}: {value}") for key, value in pairs):
        raise InvalidRequestError(f"The headers of {param} are not valid.", param=param)
    found = await _open(content, param)
    name = found.name if name is None else image_headers.file_name(name, found.media_type)
    if found.media_type != UNKNOWN_TYPE:
        media_type = found.media_type  # what the bytes say counts more than what the tuple says
    return msgspec.structs.replace(
        found,
        name=name,
        media_type=media_type or UNKNOWN_TYPE,
        headers=tuple(pair for pair in pairs if pair[0].lower() not in _FORM_HEADERS),
    )


def _from_data_url(url: str, param: str) -> InputImage:
    head, comma, text = url.partition(",")
    media_type, *parameters = head[len("data:") :].split(";")
    try:
        # RFC 2397: data:[media type][;parameters][;base64],data
        if not comma:
            raise ValueError
        content = unquote_to_bytes(text)
        if "base64" in [each.strip().lower() for each in parameters]:
            content = base64.b64decode(b"".join(content.split()), validate=True)
    except ValueError:
        problem = f"The data: URL passed as {param} is not valid."
        raise InvalidRequestError(problem, param=param) from None
    return image_headers.inspect(
        content[:HEAD],
        size=len(content),
        name=param,
        source=content,
        media_type=media_type or None,
        url=url,
    )


# --- paths and file objects ---------------------------------------------------


def _open_path(path: "str | os.PathLike[str]", param: str) -> InputImage:
    try:
        source = _File(Path(path), param)
        head = source.read(0, HEAD)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    else:
        return image_headers.inspect(head, size=source.size, name=source.path.name, source=source)
    # The usual mistakes, once it is certain that there is no such file.
    text = os.fspath(path)
    if _BASE64.match(text):
        raise InvalidRequestError(
            f"{param} is base64 text, not a path; decode it, or pass a data: URL.", param=param
        )
    hint = " The image comes first, then the prompt." if _looks_like_prompt(text) else ""
    raise InvalidRequestError(f"{short(text)} cannot be read: {reason}.{hint}", param=param)


def _looks_like_prompt(text: str) -> bool:
    return bool(text.strip()) and os.sep not in text and not Path(text).suffix


class _File:
    """A file on disk, which must not change."""

    def __init__(self, path: Path, param: str) -> None:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "not a regular file")
        self.path, self.size = path, found.st_size
        self._param, self._stamp = param, _stamp(found)

    def read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise InvalidRequestError(
                    f"{short(str(self.path))} was changed while it was sent; send it again.",
                    param=self._param,
                )
            file.seek(offset)
            return file.read(size)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    # The inode changes if a program saves by renaming, even if the size and the time do not.
    return found.st_size, found.st_mtime_ns, found.st_ino


def _open_file(file: Any, param: str) -> InputImage:
    """Examine a file object from its start; one that cannot seek is read into memory."""
    name = getattr(file, "name", None)
    name = Path(name).name if isinstance(name, str) else param
    try:
        # A mock answers every call, so only True itself counts.
        seekable = getattr(file, "seekable", None)
        if seekable is not None and seekable() is True:
            with _lock:
                at = file.tell()
                size = file.seek(0, os.SEEK_END)
                file.seek(at)
            source = _FileObject(file)
            return image_headers.inspect(source.read(0, HEAD), size=size, name=name, source=source)
        content = _bytes(file.read(MAX_UPLOAD))
    except Exception as error:  # noqa: BLE001
        problem = f"The file passed as {param} cannot be read: {reason_of(error)}."
        raise InvalidRequestError(problem, param=param) from None
    return _in_memory(content, name)


class _FileObject:
    """A file object opened by the user; its position is restored after each read."""

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
        raise ValueError("its read() is async; pass the underlying file, or the bytes")
    raise ValueError("open it in binary mode, as in open(path, 'rb')")


def reason_of(error: Exception) -> str:
    """Return why an input cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return "open it in binary mode, as in open(path, 'rb')"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


# --- sending ------------------------------------------------------------------


class Reader:
    """Async iterator over the chunks of a body, for one attempt.

    `failure` is the error that ended it early, or None. `before_each` is called before each chunk.
    """

    def __init__(self, body: bytes | Upload, *, before_each: Callable[[], object]) -> None:
        self.failure: ElkImagesError | None = None
        self._before_each = before_each
        self._windows = _windows((body,) if isinstance(body, bytes) else body.parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._before_each()
        window = next(self._windows, None)
        if window is None:
            raise StopAsyncIteration
        source, at, size = window
        if isinstance(source, bytes):
            await asyncio.sleep(0)  # a large body must not block the loop
            return source[at : at + size]
        try:
            chunk = await anyio.to_thread.run_sync(source.read, at, size)
        except ElkImagesError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001
            self.failure = _unreadable(reason_of(error))
        else:
            if len(chunk) == size:
                return chunk
            self.failure = _unreadable("it has become shorter")
        # aiohttp must not end the body normally here, which would complete a shorter request.
        raise OSError(None, "the upload ends early")


def _unreadable(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"A file could not be read while it was sent: {reason}.", param="image"
    )


def _windows(parts: Iterable[bytes | InputImage]) -> Iterator[tuple[bytes | Source, int, int]]:
    """Yield what to read, for each chunk of a body: the source, the offset and the size."""
    for part in parts:
        source = part.source if isinstance(part, InputImage) else part
        for at in range(0, len(part), CHUNK):
            yield source, at, min(CHUNK, len(part) - at)
