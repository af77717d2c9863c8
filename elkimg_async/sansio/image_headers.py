"""Properties in the first bytes of an image: type, pixels, and whether it has transparency.

Only headers are read, as specified for PNG (https://www.w3.org/TR/png-3/), WebP (RFC 9649) and JPEG
(ITU-T T.81, annex B). A property that the bytes do not show is None, and never a reason to reject
an image.
"""

from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.media_types import EXTENSIONS, UNKNOWN_TYPE, media_type_of

HEAD = 128 * 1024
"""How many of the first bytes are examined; photographs have previews before their size."""

_OTHER_EXTENSIONS = {"image/jpeg": (".jpeg", ".jpe")}
_PNG_ALPHA = (4, 6)  # colour types
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


class InputImage(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An image to send, whose bytes are known or can be read.

    `name` is the file name that is sent, `size` its bytes, `width` and `height` its pixels, `alpha`
    whether it can be transparent; the last three are None if the first bytes do not show them.
    `source` is the bytes themselves, or an object that reads them. `url` is the `data:` URL that
    the image was passed as, or None. `headers` are further headers of its part in a form.
    """

    name: str
    media_type: str
    size: int
    width: int | None = None
    height: int | None = None
    alpha: bool | None = None
    source: Any = None
    url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, or None."""
        return None if self.width is None or self.height is None else (self.width, self.height)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<InputImage {self.name}, {self.media_type}, {self.size:,} bytes>"


class ImageReference(msgspec.Struct, frozen=True):
    """An image that the server fetches itself: an http(s) or `data:` URL, or an uploaded file's id.

    Raises:
        InvalidRequestError: Unless exactly one of `url` and `file_id` is set, to text.
    """

    url: str | None = None
    file_id: str | None = None

    def __post_init__(self) -> None:
        values = [value for value in (self.url, self.file_id) if value is not None]
        if len(values) != 1 or not isinstance(values[0], str) or not values[0].strip():
            raise InvalidRequestError(
                "An ImageReference needs either a url or a file_id.", param="image"
            )

    def __repr__(self) -> str:
        if self.url is None:
            return f"ImageReference(file_id={self.file_id!r})"
        return f"ImageReference(url={short(self.url)})"


def short(text: str) -> str:
    """Return text in quotes for an error message, shortened and without the query of a URL."""
    if text.startswith(("http://", "https://")):
        text = text.partition("?")[0]
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


MAX_SHOWN = 100
"""Characters of a path or URL in an error; more of it may be the image itself."""


def inspect(
    head: bytes,
    *,
    size: int,
    name: str,
    source: Any = None,
    media_type: str | None = None,
    url: str | None = None,
) -> InputImage:
    """Return the image of `size` bytes that begins with `head`.

    `name` is that of its file, or a stem. `media_type` is used if the bytes do not show the type.
    """
    found = media_type_of(head)
    read = {"image/png": _png, "image/webp": _webp, "image/jpeg": _jpeg}.get(found)
    width, height, alpha = read(head) if read else (None, None, None)
    return InputImage(
        name=file_name(name, found),
        media_type=media_type if media_type and found == UNKNOWN_TYPE else found,
        size=size,
        width=width,
        height=height,
        alpha=alpha,
        source=source,
        url=url,
    )


def file_name(name: str, media_type: str) -> str:
    """Return a name that fits into a header, with the extension of the type for gateways."""
    # A line break would end the header, and a slash would make the name a path.
    name = "".join(c if c.isprintable() else "_" for c in name).replace("/", "_")
    if media_type == UNKNOWN_TYPE:
        return name or "image"
    # Gateways guess the type from the extension, so a wrong one is replaced and a missing one
    # added. Anything else behind the last dot is a part of the name.
    stem, dot, last = name.rpartition(".")
    last = f".{last.lower()}"
    extension = EXTENSIONS[media_type]
    if stem and dot and last in (extension, *_OTHER_EXTENSIONS.get(media_type, ())):
        return stem + last
    known = {*EXTENSIONS.values(), *sum(_OTHER_EXTENSIONS.values(), ())}
    return ((stem if stem and last in known else name) or "image") + extension


_Facts = tuple[int | None, int | None, bool | None]


def _png(head: bytes) -> _Facts:
    """Read IHDR, which comes first; without an alpha channel, tRNS precedes the pixels."""
    # The signature has 8 bytes. Each chunk is a length of 4 bytes, a type of 4, its data, and a
    # checksum of 4. IHDR has 13 bytes of data: width, height, bit depth, colour type, and three
    # more.
    if len(head) < 33 or head[12:16] != b"IHDR":
        return None, None, None
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head[25] in _PNG_ALPHA:
        return width, height, True
    # PNG, 5.6: tRNS comes before the first IDAT, so IDAT without it means opaque.
    at = 33
    while len(head) >= at + 8:
        kind = head[at + 4 : at + 8]
        if kind in (b"tRNS", b"IDAT", b"IEND"):
            return width, height, kind == b"tRNS"
        at += 12 + int.from_bytes(head[at : at + 4], "big")
    return width, height, None


def _webp(head: bytes) -> _Facts:
    """Read the simple lossy, the simple lossless, or the extended form."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(head[start:stop], "little")

    # RFC 9649: "RIFF", a size of 4 bytes, "WEBP", then the first chunk: its type at 12, its data at
    # 20.
    if len(head) < 30:
        return None, None, None
    match head[12:16]:
        # A key frame (RFC 6386, 9.1): a tag of 3 bytes, a start code, then 14 bits each for the
        # size.
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF, False
        # A signature byte, then 14 bits each for the size less one, then whether alpha is used.
        case b"VP8L" if head[20] == 0x2F:
            bits = number(21, 25)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
        # Flags, 3 reserved bytes, then 24 bits each for the size less one.
        case b"VP8X":
            return number(24, 27) + 1, number(27, 30) + 1, bool(head[20] & 0x10)
    return None, None, None


def _jpeg(head: bytes) -> _Facts:
    """Read the frame header, which follows any number of other segments."""
    # A segment is 0xFF, a marker, and a length of 2 bytes that includes itself. A frame header goes
    # on with the precision, then height and width; a height of 0 is defined later, by a DNL
    # segment.
    at = 2
    while len(head) >= at + 9 and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in _JPEG_FRAMES:
            height, width = (int.from_bytes(head[n : n + 2], "big") for n in (at + 5, at + 7))
            return width or None, height or None, False
        # Any number of 0xFF may fill the space in front of a marker (T.81, B.1.1.2).
        if marker == 0xFF or marker in _JPEG_BARE:
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None, None, False
