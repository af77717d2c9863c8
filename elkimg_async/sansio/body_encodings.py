"""Encodings of a whole body that no header declares: gzip, and JSON in UTF-16 or UTF-32."""

import codecs
import zlib
from collections.abc import Iterator

from elkimg_async.errors import ResponseError

_GZIP = b"\x1f\x8b\x08"
# Without a byte order mark, the zeros around the first character of JSON show the encoding, as in
# RFC 4627, section 3. Longer marks come first, since some begin with a shorter one.
_MARKS = {
    _GZIP: "gzip",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    **{
        first.encode(name): name
        for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
        for first in '{["'
    },
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PIECE = 262_144  # bytes that are decompressed at a time


class BodyEncoding:
    """Decoder of an encoding: gzip, or one of text."""

    def __init__(self, name: str) -> None:
        self._inflate = zlib.decompressobj(wbits=31) if name == "gzip" else None
        self._text = codecs.getincrementaldecoder("utf-8" if self._inflate else name)("replace")

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes, a limited number at a time.

        Raises:
            ResponseError: If the chunk does not match the encoding.
        """
        if self._inflate is None:
            yield self._text.decode(chunk).encode("utf-8", "replace")
            return
        try:
            while chunk and not self._inflate.eof:
                yield self._inflate.decompress(chunk, _PIECE)
                chunk = self._inflate.unconsumed_tail
        except zlib.error as error:
            raise ResponseError(f"The response is not valid gzip: {error}.") from None

    def finish(self) -> None:
        """Check the end of the body.

        Raises:
            ResponseError: If the body was cut off.
        """
        if self._inflate is not None and not self._inflate.eof:
            raise ResponseError("The response was cut off: its gzip is incomplete.")


def encoding_of(start: bytes) -> BodyEncoding | None:
    """Return the decoder for a body that begins like this; None if it is not encoded."""
    name = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    return None if name is None else BodyEncoding(name)


def may_be_encoded(start: bytes) -> bool:
    """Return whether more bytes are needed to say."""
    return any(mark.startswith(start) for mark in _MARKS if len(start) < len(mark))
