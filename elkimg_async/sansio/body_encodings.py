"""Encodings of a whole body that no header declares: gzip, and text in UTF-16."""

import codecs
import zlib
from collections.abc import Iterator

from elkimg_async.errors import ResponseError

_GZIP = b"\x1f\x8b\x08"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PIECE = 262_144  # bytes that are decompressed at a time


class BodyEncoding:
    """Decoder of an encoding, recognized by the first bytes of a body."""

    def __init__(self, start: bytes) -> None:
        self._inflate = zlib.decompressobj(wbits=31) if start.startswith(_GZIP) else None
        self._text = codecs.getincrementaldecoder("utf-16")("replace")

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
            reason = str(error)
        else:
            return
        raise ResponseError(f"The response is not valid gzip: {reason}.")

    def finish(self) -> None:
        """Check the end of the body.

        Raises:
            ResponseError: If the body was cut off.
        """
        if self._inflate is not None and not self._inflate.eof:
            raise ResponseError("The response was cut off: its gzip is incomplete.")


def encoding_of(start: bytes) -> BodyEncoding | None:
    """Return the decoder for a body that begins like this; None if it is not encoded."""
    return BodyEncoding(start) if start.startswith((_GZIP, *_UTF_16)) else None


def may_be_encoded(start: bytes) -> bool:
    """Return whether more bytes are needed to say."""
    return any(mark.startswith(start) for mark in (_GZIP, *_UTF_16) if len(start) < len(mark))
