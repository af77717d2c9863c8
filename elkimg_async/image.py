"""An image: its content in bytes, or the URL where it can be downloaded."""

import importlib.util
import io
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self, TypeAlias

import anyio
import msgspec
import pybase64

from elkimg_async.errors import ConfigurationError, DownloadError
from elkimg_async.files import is_special, run_in_thread, write_atomically
from elkimg_async.hints import IMAGE_ADVICE, missing_attribute
from elkimg_async.logs import WarningSite
from elkimg_async.media_types import EXTENSIONS, FORMATS, TYPES, UNKNOWN_TYPE, media_type_of
from elkimg_async.preview import MAX_EMBEDDED, RASTER_TYPES, figure

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Download = Callable[[str], Awaitable[bytes]]


class Image(msgspec.Struct, eq=False, omit_defaults=True, dict=True):
    """One image.

    `content` is its bytes, or None while it is only a URL. `url` is its address as the server sent
    it, or None. `revised_prompt` is the prompt that the model followed, or None when the server
    does not say. `extra` has every other field that the server sent with it.
    """

    content: bytes | None = msgspec.field(default=None, name="b64_json")
    url: str | None = None
    revised_prompt: str | None = None
    extra: dict[str, Any] = {}

    @property
    def _download(self) -> Download | None:
        return self.__dict__.get("download")

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data as the API sends it, without fields that are None.

        `images=False` omits the base64 content.
        """
        known = {
            "b64_json": self.b64_json if images else None,
            "url": self.url,
            "revised_prompt": self.revised_prompt,
        }
        return {**self.extra, **{name: field for name, field in known.items() if field is not None}}

    model_dump = to_dict

    def keys(self) -> Iterable[str]:
        """Return the names of `to_dict`, so that `dict(…)` and web frameworks can encode it."""
        return self.to_dict().keys()

    def __getitem__(self, name: str) -> Any:
        return self.to_dict()[name]

    def describe_with(self, prompt: str) -> None:
        """Set the prompt of the request, which notebooks show as alternative text."""
        vars(self)["prompt"] = prompt

    def download_with(self, download: Download) -> None:
        """Let `read` fetch the URL with `download`; the client does this for its images."""
        vars(self)["download"] = download

    @property
    def media_type(self) -> str | None:
        """The media type detected from the bytes; None while the image is only a URL."""
        return None if self.content is None else media_type_of(self.content)

    @property
    def b64_json(self) -> str | None:
        """The bytes in base64, encoded at each access; None while the image is only a URL."""
        return None if self.content is None else pybase64.b64encode_as_string(self.content)

    async def read(self) -> bytes:
        """Return the bytes; a URL is downloaded on the first call, without the API key.

        Raises:
            DownloadError: If the URL cannot be fetched. The image exists: read it again, do not
                generate it again.
        """
        if self.content is not None:
            return self.content
        lock: anyio.Lock = vars(self).setdefault("lock", anyio.Lock())
        async with lock:
            if self.content is None:
                if self.url is None or self._download is None:
                    raise DownloadError(
                        "This image has no bytes, and no client to download them.", url=self.url
                    )
                self.content = await self._download(self.url)
        return self.content

    async def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the image to a file, and return its path.

        The file is written atomically; a cancelled `save` leaves no partial file. Symbolic links,
        FIFOs and devices are written through.

        Args:
            path: The file. Without a suffix, that of the image's type is added, unless the path is
                a symbolic link, FIFO or device; a suffix of another type causes a warning, because
                the bytes are written unchanged.
            overwrite: Whether to replace an existing file.

        Raises:
            DownloadError: If the image is still a URL that cannot be fetched.
            FileExistsError: If the file exists and `overwrite` is False.
            OSError: If the file cannot be written, for instance because its folder does not exist.
        """
        site = WarningSite()
        content = await self.read()
        target = Path(path)
        media_type = media_type_of(content)
        if is_special(target):
            pass
        elif not target.suffix:
            target = target.with_name(target.name + EXTENSIONS.get(media_type, ""))
        elif TYPES.get(target.suffix.lower(), media_type) != media_type != UNKNOWN_TYPE:
            extension = EXTENSIONS[media_type]
            wanted = FORMATS.get(TYPES[target.suffix.lower()])
            other = f", or request the format with output_format={wanted!r}" if wanted else ""
            site.warn(
                f"{target.name} holds {media_type}; save it as {target.stem}{extension}{other}."
            )
        write = partial(write_atomically, target, content, follow_links=True, overwrite=overwrite)
        await run_in_thread(lambda cancelled: write(cancelled=cancelled))
        return target

    def to_pil(self) -> "PILImage":
        """Return a `PIL.Image.Image`; needs the extra `pil`.

        Raises:
            ConfigurationError: If Pillow is not installed.
            DownloadError: If the image is still a URL; `await image.read()` first.
        """
        _require_pillow()
        import PIL.Image

        if self.content is None:
            raise DownloadError("The image is still a URL: await image.read() first.", url=self.url)
        return PIL.Image.open(io.BytesIO(self.content))

    @classmethod
    def from_pil(cls, image: "PILImage", *, format: Literal["png", "jpeg", "webp"] = "png") -> Self:
        """Create an image from a `PIL.Image.Image`, for edits; needs the extra `pil`.

        The pixels are kept: png and webp are lossless here, jpeg has quality 95. A mode that is
        neither grey nor RGB, such as CMYK or a palette, is converted to RGB with its transparency.

        Raises:
            ConfigurationError: If Pillow is not installed, `image` is not a PIL image or has more
                than 8 bits, a jpeg would lose transparency, or the format is not one of the three.
        """
        _require_pillow()
        if format not in _SAVE_OPTIONS:
            raise ConfigurationError(f"format must be png, jpeg or webp, not {format!r}.")
        file = io.BytesIO()
        _converted(image, format).save(file, format, **_SAVE_OPTIONS[format])
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

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute(self, name, IMAGE_ADVICE.get(name))

    def __reduce__(self) -> tuple[Any, ...]:
        return Image, (self.content, self.url, self.revised_prompt, self.extra)

    def _repr_mimebundle_(self, *, link: bool = True, **_: Any) -> dict[str, bytes | str]:
        shown: dict[str, bytes | str] = {"text/plain": repr(self)}
        if self.content is None:
            return shown
        media_type = media_type_of(self.content)
        embedded = media_type in RASTER_TYPES and len(self.content) <= MAX_EMBEDDED
        if embedded:
            shown[media_type] = self.content
        if not embedded or self.revised_prompt or self.__dict__.get("prompt"):
            element = self.to_html(link=link)
            shown |= {"text/html": element} if element else {}
        return shown

    def to_html(self, *, link: bool = True) -> str | None:
        """Return an `img` element with a preview; None without bytes or for unknown types.

        Its alternative text is the revised prompt, or else the prompt. In a notebook it links to
        the original, which is written to the folder `elkimg-originals` beside the notebook.
        """
        if self.content is None:
            return None
        alt = self.revised_prompt or self.__dict__.get("prompt") or ""
        return figure(self.content, media_type_of(self.content), alt, link=link)


_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpeg": {"quality": 95},
    "webp": {"lossless": True, "exact": True},
}


def _require_pillow() -> None:
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError('Pillow is missing: pip install "elkimg-async[pil]".')


def _converted(image: object, format: str) -> "PILImage":
    """Return the image in a mode that the format and the servers accept."""
    import PIL.Image

    if not isinstance(image, PIL.Image.Image):
        raise ConfigurationError(f"from_pil takes a PIL.Image.Image, not {type(image).__name__}.")
    if image.mode.startswith(("I", "F")):
        raise ConfigurationError(
            f"An image of mode {image.mode} has more than 8 bits; convert it to RGB first."
        )
    transparent = image.has_transparency_data
    if format == "jpeg" and transparent:
        raise ConfigurationError(
            'jpeg has no transparency: choose png or webp, or image.convert("RGB") first.'
        )
    if image.mode in (("LA", "RGBA") if transparent else ("L", "RGB")):
        return image
    try:
        converted = image.convert("RGBA" if transparent else "RGB")
    except ValueError:
        raise ConfigurationError(
            f"Pillow cannot convert mode {image.mode} to RGB; convert it first."
        ) from None
    if image.mode not in ("1", "L", "P", "PA", "RGB"):
        converted.info.pop("icc_profile", None)  # it describes the original colours
    return converted


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image
"""An image to send: a path, bytes, a file opened in binary mode, or an `Image`."""
