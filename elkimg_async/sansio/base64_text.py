"""Base64 inside a JSON string, decoded chunk by chunk.

Usage: `feed` the inside of the string in any split, then `finish` for its bytes.

Base64 is decoded strictly. From the first chunk that does not decode, the string is cleaned
(escapes, white space, `data:` prefix, URL-safe alphabet, missing padding) and decoded strictly
again; if it still does not decode, the result is a `BadBase64`. Nothing is ever decoded leniently,
which would silently return wrong bytes.
"""

import binascii
import re
from io import BytesIO
from typing import TypeAlias

import msgspec
import pybase64

_MIN_SEEN = 8  # bytes before decoding begins, so that a `data:` prefix is never taken for base64
_MAX_PREFIX = 256
_COMPLETE_TOKENS = re.compile(  # everything but an escape that is cut off at the end
    rb"(?:[^\\]+|\\u[0-9A-Fa-f]{4}|\\(?!u[0-9A-Fa-f]{0,3}\Z).)*", re.DOTALL
)
_ESCAPE = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_ESCAPED = {b"/": b"/", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
# White space and invisible characters beyond ASCII.
_BLANK_CODES = {0xA0, 0x200B, 0x2028, 0x2029, 0x2060, 0x3000, 0xFEFF}
_NOT_BASE64 = "it is not base64, or was cut off"
_INVALID = b"?"  # replaces characters that base64 never contains
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n"


class BadBase64(msgspec.Struct, frozen=True):
    """A string that is not valid base64, and the `reason`."""

    reason: str


Decoded: TypeAlias = bytes | BadBase64


def decode_text(text: str) -> Decoded:
    """Return the bytes of base64 that is already a Python string."""
    if "\\" in text:
        return BadBase64("it contains a backslash")
    decoder = Base64Decoder()
    decoder.feed(text.encode("utf-8", "replace"))
    return decoder.finish()


class Base64Decoder:
    """Decoder for the inside of one JSON string, fed in any split.

    It begins on the fast path, `feed_clean`, and stays there while strict decoding succeeds;
    `_carry` then contains base64 characters only. The first failure moves it to the slow path for
    good, where `_raw` is what cannot be unescaped yet, and `_carry` what does not fill a group of
    four characters.
    """

    __slots__ = ("_bad", "_carry", "_clean", "_decoded", "_head", "_padded", "_raw")

    def __init__(self, room: int = 0) -> None:
        """Reserve `room` bytes, since moving a growing image to a larger buffer takes time."""
        self._decoded = BytesIO(bytes(room))  # `getvalue` returns its content without a copy
        self._carry = b""
        self._padded = False
        self._bad: str | None = None
        self._clean = True
        self._raw = b""
        self._head = False  # slow path: a `data:` prefix is still possible

    def feed(self, chunk: bytes | memoryview) -> None:
        """Decode the next bytes of the string as written in the JSON, without its quotes."""
        if not self.feed_clean(chunk):
            self._leave_fast_path()
            self._feed_slowly(bytes(chunk))

    def feed_clean(self, chunk: bytes | memoryview) -> bool:
        """Do the same for clean base64; return False, without effect, if it is not clean."""
        # `_carry` and the start of the chunk complete a group of four characters; the middle is
        # decoded in place, without a copy of a memoryview; what is left over waits for the next
        # chunk.
        size = len(chunk)
        if not size:
            return True
        if not self._clean or self._padded:
            return False
        carry = self._carry
        start = -len(carry) % 4
        end = size - (size - start) % 4 if len(carry) + size >= _MIN_SEEN else 0
        # The rest is not decoded yet, so it has to be checked: the caller relies on True meaning
        # that the chunk has no quote and no line end.
        held = bytes(chunk[end:])
        if held.translate(None, ALPHABET):
            return False
        if not end:
            self._carry = carry + held
            return True
        try:
            first = pybase64.b64decode(carry + bytes(chunk[:start]), validate=True)
            rest = pybase64.b64decode(chunk[start:end], validate=True)
        except binascii.Error:
            return False
        # Shorter than three bytes for each four characters: there is padding, which has to be at
        # the very end. pybase64 checks this within each call, but not across calls.
        padded_first = 4 * len(first) < 3 * (len(carry) + start)
        padded_rest = 4 * len(rest) < 3 * (end - start)
        if (padded_first and rest) or ((padded_first or padded_rest) and end < size):
            return False
        self._padded = padded_first or padded_rest
        self._decoded.write(first)
        self._decoded.write(rest)
        self._carry = held
        return True

    def in_escape(self) -> bool:
        """Return whether a quote that follows would belong to an escape."""
        return self._raw == b"\\"

    def finish(self) -> Decoded:
        """Return the decoded bytes of the complete string."""
        # Missing padding is added on the slow path.
        if self._clean and self._carry:
            self._leave_fast_path()
        if self._raw:
            self._bad = _NOT_BASE64
        if not self._clean:
            self._decode(self._cut_prefix(b"", final=True), final=True)
        if self._bad:
            return BadBase64(self._bad)
        self._decoded.truncate()  # the part of the reserved room that was not needed
        return self._decoded.getvalue()

    def _leave_fast_path(self) -> None:
        if self._clean:
            self._clean = False
            # If anything was decoded, the first `_MIN_SEEN` characters are base64, and no prefix.
            self._head = not self._decoded.tell()
            carry, self._carry = self._carry, b""
            self._feed_slowly(carry)

    def _feed_slowly(self, chunk: bytes) -> None:
        # An escape that is cut off by the end of the chunk is kept for the next one.
        raw = self._raw + chunk
        match = _COMPLETE_TOKENS.match(raw)
        end = match.end() if match else 0
        self._raw = raw[end:]
        if not self._bad:
            text = _ESCAPE.sub(_unescape, raw[:end]).translate(_URL_SAFE, _WHITE_SPACE)
            self._decode(self._cut_prefix(text, final=False), final=False)

    def _cut_prefix(self, text: bytes, *, final: bool) -> bytes:
        """Keep the start in `_carry` until it is clear whether it is a `data:` prefix."""
        if not self._head:
            return text
        text, self._carry = self._carry + text, b""
        if text[:5].lower() != b"data:"[: len(text)] or (len(text) < 5 and final):
            self._head = False
            return text
        prefix, comma, rest = text.partition(b",")
        over_long = len(prefix) > _MAX_PREFIX
        if comma and not over_long and prefix.lower().endswith(b";base64"):
            self._head = False
            return rest
        if comma or over_long or final:
            self._bad = "it is a data: URL without base64"
        self._carry = text
        return b""

    def _decode(self, text: bytes, *, final: bool) -> None:
        if self._bad or self._head:
            return
        # Four characters at a time, since strict decoding accepts no fewer; only the last ones of
        # the string are padded.
        text = self._carry + text
        if not text:
            return
        end = len(text) - len(text) % 4
        if final and end < len(text):
            text += b"=" * (end + 4 - len(text))
            end = len(text)
        self._carry = text[end:]
        try:
            if self._padded:
                raise binascii.Error("it continues after its padding")
            decoded = pybase64.b64decode(text[:end], validate=True)
        except binascii.Error:
            self._bad = _NOT_BASE64
            return
        self._padded = 4 * len(decoded) < 3 * end
        self._decoded.write(decoded)


def _unescape(match: re.Match[bytes]) -> bytes:
    if match[2]:
        return _ESCAPED.get(match[2], _INVALID)
    # ASCII may be written as an escape, such as \u002B for "+".
    code = int(match[1], 16)
    if code in _BLANK_CODES:
        return b" "
    return bytes((code,)) if code < 0x80 else _INVALID
