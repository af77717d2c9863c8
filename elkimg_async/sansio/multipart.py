"""A form with files in it → a body of `multipart/form-data` (RFC 7578).

The body is a sequence of pieces; those that are pictures are read by whoever sends it.
"""

from collections.abc import Iterable

import msgspec

from elkimg_async.sansio.image_headers import InputImage

_ESCAPES = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}


class Upload(msgspec.Struct, frozen=True, eq=False):
    """A body in pieces, of which pictures are read while they leave; its length is known."""

    pieces: tuple[bytes | InputImage, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))


def content_type(boundary: str) -> str:
    """The value of the header."""
    return f"multipart/form-data; boundary={boundary}"


def encode(
    fields: Iterable[tuple[str, bytes]], files: Iterable[tuple[str, InputImage]], boundary: str
) -> Upload:
    """The body; `boundary` may occur in none of the values."""
    line = f"--{boundary}\r\nContent-Disposition: form-data; name=".encode()
    pieces: list[bytes | InputImage] = [
        line + _quoted(name) + b"\r\n\r\n" + value + b"\r\n" for name, value in fields
    ]
    for name, image in files:
        named = _quoted(name) + b"; filename=" + _quoted(image.name)
        kind = f"\r\nContent-Type: {image.media_type}\r\n\r\n".encode()
        pieces += [line + named + kind, image, b"\r\n"]
    return Upload((*pieces, f"--{boundary}--\r\n".encode()))


def _quoted(text: str) -> bytes:
    """In quotation marks, as browsers write it (HTML, 4.10.21.8)."""
    return f'"{text.translate(_ESCAPES)}"'.encode("utf-8", "replace")
