"""An image as it came from the server: its bytes, or the URL where they wait."""

import importlib.util
import io
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self, TypeAlias

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


_SHOWN_AS_THEY_ARE = {"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"}
_SHOWN_AS_ELEMENTS = {"image/svg+xml", "image/avif"}


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


class Image(msgspec.Struct, eq=False, omit_defaults=True, dict=True):
    """One image.

    `content` is its bytes, or None while it is only a URL; `url` is its address
    as the server gave it, or None; `revised_prompt` is the prompt that the model
    really followed, or None when the server does not say. `extra` has all else that was sent with it.
    """

    content: bytes | None = msgspec.field(default=None, name="b64_json")
    url: str | None = None
    revised_prompt: str | None = None
    extra: dict[str, Any] = {}

    @property
    def _download(self) -> Download | None:
        return self.__dict__.get("download")

    @property
    def _lock(self) -> Any:
        return self.__dict__.get("lock")

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data, as the API sends it, without what is None.

        `images=False` leaves out base64.
        """
        known = {
            "b64_json": self.b64_json if images else None,
            "url": self.url,
            "revised_prompt": self.revised_prompt,
        }
        return {**self.extra, **{name: field for name, field in known.items() if field is not None}}

    model_dump = to_dict

    def keys(self) -> Iterable[str]:
        """Return the names of `to_dict`, so that `dict(…)` and web frameworks can encode an image."""
        return self.to_dict().keys()

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def download_with(self, download: Download) -> None:
        """Let `read` fetch the URL with `download`; the client does this for the images that it gives."""
        self.__dict__["download"] = download

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
            self.__dict__["lock"] = anyio.Lock()
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
        _require_pillow()
        import PIL.Image

        if self.content is None:
            raise DownloadError("The image is still a URL: await image.read() first.", url=self.url)
        return PIL.Image.open(io.BytesIO(self.content))

    @classmethod
    def from_pil(
        cls, picture: "PILImage", *, format: Literal["png", "jpeg", "webp"] = "png"
    ) -> Self:
        """An image made of a `PIL.Image.Image`, for edits; needs the extra `pil`.

        The pixels are kept as they are: png and webp lose nothing, jpeg little. What is neither grey nor
        RGB, such as CMYK or a palette, becomes RGB, with its transparency.

        Raises:
            ConfigurationError: by the caller; not a picture, one of 16 or 32 bits, transparency in a jpeg,
                or a format that is not one of the three.
        """
        _require_pillow()
        if format not in _SAVED_WITH:
            raise ConfigurationError(f"format must be png, jpeg or webp, not {format!r}.")
        file = io.BytesIO()
        _fit_for(format, picture).save(file, format, **_SAVED_WITH[format])
        return cls(file.getvalue())

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
        return Image, (self.content, self.url, self.revised_prompt, self.extra)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, bytes | str]:
        shown: dict[str, bytes | str] = {"text/plain": repr(self)}
        if self.content is not None:
            media_type = media_type_of(self.content)
            if media_type in _SHOWN_AS_THEY_ARE:
                shown[media_type] = self.content
            elif source := data_uri(self):
                shown["text/html"] = f'<img src="{source}" style="max-width:100%">'
        return shown


def data_uri(image: Image) -> str | None:
    """The image as an address for an `img` element, within which an svg cannot run scripts.

    None for what has no bytes, or is nothing that a browser shows.
    """
    media_type = image.media_type
    if media_type not in _SHOWN_AS_THEY_ARE | _SHOWN_AS_ELEMENTS:
        return None
    return f"data:{media_type};base64,{image.b64_json}"


_SAVED_WITH: dict[str, dict[str, Any]] = {
    "png": {},
    "jpeg": {"quality": 95},
    "webp": {"lossless": True, "exact": True},
}


def _require_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError('Pillow is missing: pip install "elkimg-async[pil]".')


def _fit_for(format: str, picture: object) -> "PILImage":
    """The picture in a mode that the format, and the servers, take."""
    import PIL.Image

    if not isinstance(picture, PIL.Image.Image):
        raise ConfigurationError(f"from_pil takes a PIL.Image.Image, not {type(picture).__name__}.")
    if picture.mode.startswith(("I", "F")):
        raise ConfigurationError(
            f"A picture of the mode {picture.mode} has more than 8 bits; convert it to RGB first."
        )
    transparent = picture.has_transparency_data
    if format == "jpeg" and transparent:
        raise ConfigurationError(
            'jpeg knows no transparency: choose png or webp, or picture.convert("RGB") first.'
        )
    if picture.mode in (("LA", "RGBA") if transparent else ("L", "RGB")):
        return picture
    try:
        fit = picture.convert("RGBA" if transparent else "RGB")
    except ValueError:
        raise ConfigurationError(
            f"Pillow cannot make RGB of a picture of the mode {picture.mode}; convert it first."
        ) from None
    if picture.mode not in ("1", "L", "P", "PA", "RGB"):
        fit.info.pop("icc_profile", None)  # it is for the colours of before
    return fit


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image
"""A picture to send: a path, the bytes, a file opened in binary mode, or an `Image`."""


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
