"""Encode a form with files as a body of `multipart/form-data` (RFC 7578).

The body is a sequence of parts; images are read by the transport as it sends them.
"""

from collections.abc import Iterable

import msgspec

from elkimg_async.sansio.image_headers import InputImage

# HTML, 4.10.21.8: these three are percent-encoded, and nothing else is.
_ESCAPES = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}


class Upload(msgspec.Struct, frozen=True, eq=False):
    """A body of known length, whose images are read while it is sent."""

    parts: tuple[bytes | InputImage, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def content_type(boundary: str) -> str:
    """Return the value of the Content-Type header."""
    return f"multipart/form-data; boundary={boundary}"


def encode(
    fields: Iterable[tuple[str, bytes]], files: Iterable[tuple[str, InputImage]], boundary: str
) -> Upload:
    """Return the body; `boundary` must not occur in any of the values."""
    # Each part ends with a line break, which belongs to the boundary after it (RFC 2046, 5.1.1).
    # Files stay objects, so that the transport can read each while it sends it.
    line = f"--{boundary}\r\nContent-Disposition: form-data; name=".encode()
    parts: list[bytes | InputImage] = [
        line + _quoted(name) + b"\r\n\r\n" + value + b"\r\n" for name, value in fields
    ]
    for name, image in files:
        disposition = _quoted(name) + b"; filename=" + _quoted(image.name)
        headers = (("Content-Type", image.media_type), *image.headers)
        head = "".join(f"\r\n{name}: {value}" for name, value in headers) + "\r\n\r\n"
        parts += [line + disposition + head.encode(), image, b"\r\n"]
    return Upload((*parts, f"--{boundary}--\r\n".encode()))


def _quoted(text: str) -> bytes:
    """Return the text in quotation marks, as browsers write it."""
    return f'"{text.translate(_ESCAPES)}"'.encode("utf-8", "replace")
