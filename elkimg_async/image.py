"""An image as it came from the server: its bytes, or the URL where they wait."""

import importlib.util
import io
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pybase64

from elkimg_async.errors import ConfigurationError, DownloadError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image as PILImage

Download = Callable[[str], Awaitable[bytes]]

UNKNOWN_TYPE = "application/octet-stream"
EXTENSIONS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/svg+xml": ".svg",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
}


def media_type_of(content: bytes) -> str:
    """The media type told by the first bytes; `application/octet-stream` for anything unknown."""
    head = content[:512]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    if head.startswith((b"II*\x00", b"MM\x00*")):
        return "image/tiff"
    if head.startswith(b"BM") and len(content) > 26:
        return "image/bmp"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "image/svg+xml"
    return UNKNOWN_TYPE


class Image(msgspec.Struct, eq=False):
    """One image.

    `content` is its bytes, or None while it is only a URL; `url` is its address
    as the server gave it, or None; `revised_prompt` is the prompt that the model
    really followed, or None when the server does not say.
    """

    content: bytes | None = None
    url: str | None = None
    revised_prompt: str | None = None
    _download: Download | None = None
    _lock: Any = None

    def download_with(self, download: Download) -> None:
        """Let `read` fetch the URL with `download`; the client does this for the images that it gives."""
        self._download = download

    @property
    def media_type(self) -> str | None:
        """The type told by the bytes themselves; None while the image is only a URL."""
        return None if self.content is None else media_type_of(self.content)

    @property
    def b64_json(self) -> str | None:
        """The bytes in base64, encoded anew at each use; None while the image is only a URL."""
        return None if self.content is None else pybase64.b64encode_as_string(self.content)

    async def read(self) -> bytes:
        """The bytes; those of a URL are downloaded at the first call, without the API key.

        Raises:
            DownloadError: by the image host; the image was made, so read again, but never generate again.
        """
        if self.content is not None:
            return self.content
        import anyio  # here and below: what only waiting and files need is imported late

        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            if self.content is None:
                if self.url is None or self._download is None:
                    raise DownloadError(
                        "This image has no bytes, and no client to fetch them.", url=self.url
                    )
                self.content = await self._download(self.url)
        return self.content

    async def save(self, path: str | os.PathLike[str]) -> "Path":
        """Write the image to `path` and return it, with the extension filled in where it has none.

        The file appears whole or not at all, and replaces one of the same name.

        Raises:
            DownloadError: by the image host, where the image is still a URL.
            OSError: by the caller or the file system: no such folder, no right, no room.
        """
        from pathlib import Path

        import anyio.to_thread

        content = await self.read()
        target = Path(path)
        if not target.suffix:
            target = target.with_name(target.name + EXTENSIONS.get(media_type_of(content), ""))
        await anyio.to_thread.run_sync(write_atomically, target, content)
        return target

    def to_pil(self) -> "PILImage":
        """A `PIL.Image.Image`; needs the extra `pil`, and the bytes (`await image.read()` first)."""
        if importlib.util.find_spec("PIL") is None:
            raise ConfigurationError('Pillow is missing: pip install "elkimg-async[pil]".')
        import PIL.Image

        if self.content is None:
            raise DownloadError("The image is still a URL: await image.read() first.", url=self.url)
        return PIL.Image.open(io.BytesIO(self.content))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self.content is None:
            return f"<Image at {self.url and self.url.partition('?')[0][:80]}>"
        return f"<Image {self.media_type}, {len(self.content):,} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Image, (self.content, self.url, self.revised_prompt)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, bytes | str]:
        if self.content is None:
            return {"text/plain": repr(self)}
        media_type = media_type_of(self.content)
        shown = self.content.decode("utf-8", "replace") if "svg" in media_type else self.content
        return {media_type: shown, "text/plain": repr(self)}


def write_atomically(target: "Path", content: bytes) -> None:
    """Write a file that is whole at any moment at which it exists."""
    part = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
