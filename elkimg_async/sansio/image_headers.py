"""What the first bytes of a picture tell: type, pixels, and whether it has transparency.

Only headers are read, as the formats' specifications lay them out: PNG
(https://www.w3.org/TR/png-3/), WebP (RFC 9649), JPEG (ITU-T T.81, annex B). What
cannot be told from the bytes at hand is None, and never a reason to refuse a picture.
"""

from typing import Any

import msgspec

from elkimg_async.image import EXTENSIONS, UNKNOWN_TYPE, media_type_of

HEAD = 128 * 1024
"""How many of the first bytes are worth a look; photographs carry previews before their size."""

_OTHER_EXTENSIONS = {"image/jpeg": (".jpeg", ".jpe")}
_PNG_ALPHA = (4, 6)  # colour types
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


class InputImage(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A picture that is sent.

    `name` is the file name under which it goes, `size` its bytes, `width` and `height` its pixels,
    `alpha` whether it can be transparent; the last three are None where the first bytes do not tell.
    `source` is the bytes themselves, or whatever can read them.
    """

    name: str
    media_type: str
    size: int
    width: int | None = None
    height: int | None = None
    alpha: bool | None = None
    source: Any = None

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, or None."""
        return None if self.width is None or self.height is None else (self.width, self.height)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<InputImage {self.name}, {self.media_type}, {self.size:,} bytes>"


def inspect(head: bytes, *, size: int, name: str, source: Any = None) -> InputImage:
    """A picture of `size` bytes that begins with `head`; `name` is that of its file, or a stem."""
    media_type = media_type_of(head)
    read = {"image/png": _png, "image/webp": _webp, "image/jpeg": _jpeg}.get(media_type)
    width, height, alpha = read(head) if read else (None, None, None)
    return InputImage(
        name=file_name(name, media_type),
        media_type=media_type,
        size=size,
        width=width,
        height=height,
        alpha=alpha,
        source=source,
    )


def file_name(name: str, media_type: str) -> str:
    """The name with the extension of its type, by which gateways go, and fit for a header."""
    name = "".join(c if c.isprintable() else "_" for c in name).replace("/", "_")
    stem, dot, last = name.rpartition(".")
    if media_type == UNKNOWN_TYPE:
        return name or "image"
    extension = EXTENSIONS[media_type]
    if (
        stem
        and dot
        and f".{last.lower()}"
        in (
            extension,
            *_OTHER_EXTENSIONS.get(media_type, ()),
        )
    ):
        return f"{stem}.{last.lower()}"
    known = {*EXTENSIONS.values(), *sum(_OTHER_EXTENSIONS.values(), ())}
    if not (stem and f".{last.lower()}" in known):
        stem = name
    return (stem or "image") + extension


_Told = tuple[int | None, int | None, bool | None]


def _png(head: bytes) -> _Told:
    """IHDR comes first; transparency without an alpha channel is a chunk before the pixels."""
    if len(head) < 33 or head[12:16] != b"IHDR":
        return None, None, None
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head[25] in _PNG_ALPHA:
        return width, height, True
    at = 33
    while len(head) >= at + 8:
        kind = head[at + 4 : at + 8]
        if kind in (b"tRNS", b"IDAT", b"IEND"):
            return width, height, kind == b"tRNS"
        at += 12 + int.from_bytes(head[at : at + 4], "big")
    return width, height, None


def _webp(head: bytes) -> _Told:
    """The simple lossy form, the simple lossless one, or the extended one."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(head[start:stop], "little")

    if len(head) < 30:
        return None, None, None
    match head[12:16]:
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF, False
        case b"VP8L" if head[20] == 0x2F:
            bits = number(21, 25)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
        case b"VP8X":
            return number(24, 27) + 1, number(27, 30) + 1, bool(head[20] & 0x10)
    return None, None, None


def _jpeg(head: bytes) -> _Told:
    """The size stands in the frame header, after any number of other segments."""
    at = 2
    while len(head) >= at + 9 and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = (int.from_bytes(head[n : n + 2], "big") for n in (at + 5, at + 7))
            return width or None, height or None, False
        if marker == 0xFF or marker in _JPEG_BARE:
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None, None, False
