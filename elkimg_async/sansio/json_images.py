"""JSON with base64 inside, decoded while the bytes arrive.

Wanted: `feed` bytes in any split, then `finish` for the document, in which every
`b64_json` string, and every `url` string that is a `data:` URL, has become bytes.

Cost goal: each byte is looked at a fixed number of times; neither the text of the
document nor a base64 string is ever held whole, and an image is held once: it grows in
one buffer, which becomes the image without a copy; linear in the worst case.

Plan: all but the inside of those strings is gathered as the *skeleton*, a small
ordinary JSON document with a placeholder for each decoded string. No tokenizer is
needed to find them: `"b64_json"` with an unescaped quote on both sides can only be
a whole string, and with a colon behind it only a key, because inside another
string its quotes would have to be escaped. A key spelled in another way (with
escapes, say) is missed by the search and its value decoded from the skeleton at
the end. Base64 is decoded strictly, piece by piece. From the first piece that is
refused on, the string is cleaned (escapes, white space, `data:` prefix, URL-safe
alphabet, missing padding) and decoded strictly again; what is refused then is a
`BadBase64`. Nothing is ever decoded leniently, which would give wrong bytes in
silence.
"""

import binascii
import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeAlias, TypeVar

import msgspec
import pybase64

_IMAGE_KEY = re.compile(
    rb'"b64_json"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"'
    rb'|"url"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"[Dd][Aa][Tt][Aa]:'
)
_LONGEST_KEY = 64  # no match of _IMAGE_KEY is longer
_MOST_ROOM = 4 * 1024 * 1024  # bytes to be prepared for before the size of any image is known
_LONG = 16_384  # bytes of base64 from which trying to decode them is cheaper than looking for their end first
_PLACEHOLDER = "#image "  # "#" is neither base64 nor the beginning of an address
SPLICED = f"{_PLACEHOLDER}0"
"""The placeholder of the image of a `SplicedDocument`."""
_SPLICED = SPLICED.encode()

_UNIT = 8  # bytes to see before decoding begins, so that a `data:` prefix is never taken for base64
_LONGEST_PREFIX = 256
_WHOLE_TOKENS = re.compile(  # all but an escape that is cut at the end
    rb"(?:[^\\]+|\\u[0-9A-Fa-f]{4}|\\(?!u[0-9A-Fa-f]{0,3}\Z).)*", re.DOTALL
)
_ESCAPE = re.compile(rb"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_ESCAPED = {b"/": b"/", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_NOT_BASE64 = "it is not base64, or was cut"
_REFUSED = b"?"  # stands for what base64 never holds
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITE_SPACE = b" \t\r\n"
_UNFIT = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
T = TypeVar("T")


class BadBase64(msgspec.Struct, frozen=True):
    """Stands where bytes should be; `reason` says what is wrong with the base64."""

    reason: str


Decoded: TypeAlias = bytes | BadBase64


class InvalidJSON(ValueError):  # noqa: N818
    """The document is not JSON, or not all of it; never leaves `sansio`."""


class Document(msgspec.Struct, frozen=True):
    """A decoded document: `value` as JSON gives it, with placeholders that `image` understands."""

    value: Any
    images: dict[str, Decoded]

    def readable(self, value: Any) -> Any:
        """The same without placeholders, for a person to read."""
        return map_strings(value, lambda text: "…" if text in self.images else text)

    def is_image(self, value: str) -> bool:
        """Whether a string stands for, or is, a `data:` URL."""
        return value in self.images or value[:5].lower() == "data:"

    def image(self, value: Any) -> Decoded | None:
        """The bytes of a `b64_json` or `data:` string of this document; None when there are none."""
        if not isinstance(value, str) or not value:
            return None
        if (decoded := self.images.get(value)) is not None:
            return decoded or None
        if "\\" in value:
            return BadBase64("it holds a backslash")
        decoder = Base64Decoder()
        decoder.feed(value.encode("utf-8", "replace"))
        return decoder.finish() or None


class JSONDecoder:
    """One JSON document, fed in any split.

    `length` is how many bytes it is said to have, 0 where nobody says; only to be prepared for its images.
    """

    __slots__ = ("_base64", "_images", "_length", "_room", "_searched", "_skeleton", "size")

    def __init__(self, length: int = 0) -> None:
        self._length = length
        self._room = _MOST_ROOM  # for the next image, should so much be to come
        self._skeleton = bytearray()
        self._searched = 0  # no key begins before this place in the skeleton
        self._images: dict[str, Decoded] = {}
        self._base64: Base64Decoder | None = None
        self.size = 0
        """Bytes fed so far."""

    def feed(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        """Take `data[start:end]` as the next bytes of the document."""
        if end is None:
            end = len(data)
        self.size += end - start
        # Most pieces of a large image hold nothing else, which decoding them tells as well as a search.
        if (
            self._base64 is not None
            and end - start > _LONG
            and self._base64.feed_clean(memoryview(data)[start:end])
        ):
            return
        while start < end:
            if self._base64 is None:
                start = self._feed_text(data, start, end)
            else:
                start = self._feed_base64(self._base64, data, start, end)

    def feed_base64(self, data: bytes, start: int) -> int:
        """Take what of `data[start:]` is clean base64 of a string that is open; returns where it ends.

        For a caller that has to look at every other byte itself, such as line ends.
        """
        if self._base64 is None:
            return start
        view, end = memoryview(data), len(data)
        if end - start <= _LONG or not self._base64.feed_clean(view[start:]):
            quote = data.find(b'"', start)
            end = end if quote < 0 else quote
            if not self._base64.feed_clean(view[start:end]):
                return start
        self.size += end - start
        return end

    def finish_as(self, decoder: msgspec.json.Decoder[T]) -> tuple[T, dict[str, Decoded]] | None:
        """What a strict decoder makes of the whole document, and its images by their placeholders.

        None where it does not fit.
        """
        plain = None if self._base64 is not None else _decode_as(self._skeleton, decoder)
        return None if plain is None else (plain, self._images)

    def finish(self) -> Document:
        """The document.

        Raises:
            InvalidJSON: by the server, where it is not JSON or was cut.
        """
        if self._base64 is not None:
            raise InvalidJSON("the document ends within an image")
        return Document(decode(self._skeleton), self._images)

    def text(self, length: int) -> str:
        """The beginning of the document for a message, images left out."""
        return _text(self._skeleton, length)

    def _feed_text(self, data: bytes, start: int, end: int) -> int:
        """Take text up to the next image, or all of it; returns where it ends."""
        skeleton = self._skeleton
        stop = self._find_split_key(data, start, end) if len(skeleton) > self._searched else 0
        match = None if stop else _IMAGE_KEY.search(data, start, end)
        while match:
            before = (
                data[match.start() - 1 : match.start()] if match.start() > start else skeleton[-1:]
            )
            if before != b"\\":
                stop = match.end()
                break
            match = _IMAGE_KEY.search(data, match.start() + 1, end)
        skeleton += memoryview(data)[start : stop or end]
        if not stop:
            self._searched = max(self._searched, len(skeleton) - _LONGEST_KEY)
            return end
        to_come = self._length - self.size + end - stop
        self._base64 = Base64Decoder(max(0, min(self._room, 3 * to_come // 4)))
        if skeleton[-1] == 0x3A:
            del skeleton[-len("data:") :]
            self._base64.feed(b"data:")
        return stop

    def _find_split_key(self, data: bytes, start: int, end: int) -> int:
        """Where a key ends that began in the bytes before; 0 where there is none."""
        begin = max(0, self._searched - 1)
        tail = bytes(self._skeleton[begin:])
        seam = tail + data[start : min(end, start + _LONGEST_KEY)]
        at = self._searched - begin
        while (match := _IMAGE_KEY.search(seam, at)) and match.start() < len(tail):
            if match.start() == 0 or seam[match.start() - 1] != 0x5C:
                return start + match.end() - len(tail)
            at = match.start() + 1
        return 0

    def _feed_base64(self, base64: "Base64Decoder", data: bytes, start: int, end: int) -> int:
        quote = data.find(b'"', start, end)
        base64.feed(memoryview(data)[start : end if quote < 0 else quote])
        if quote < 0:
            return end
        if base64.in_escape():
            base64.feed(b'"')
            return quote + 1
        # The address is known to nobody else, so that no string of the server's can be taken for this.
        placeholder = f"{_PLACEHOLDER}{id(self):x} {len(self._images)}"
        self._skeleton += placeholder.encode()
        self._searched = len(self._skeleton)
        image = self._images[placeholder] = base64.finish()
        if isinstance(image, bytes):
            self._room = len(image) + len(image) // 8  # the next one is as large, more or less
        self._base64 = None
        return quote


def map_strings(value: Any, change: Callable[[str], str], depth: int = 20) -> Any:
    """Plain data with every string changed; what is nested deeper than `depth` becomes "…"."""
    if isinstance(value, str):
        return change(value)
    if type(value) not in (dict, list, tuple):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {
            map_strings(name, change, depth - 1): map_strings(item, change, depth - 1)
            for name, item in value.items()
        }
    return type(value)(map_strings(item, change, depth - 1) for item in value)


class SplicedDocument(msgspec.Struct, frozen=True):
    """A document with an image that was whole in a chunk; finished like a `JSONDecoder`."""

    skeleton: bytes
    image: bytes

    def finish_as(self, decoder: msgspec.json.Decoder[T]) -> T | None:
        """What a strict decoder makes of it, with the placeholder; None where it does not fit."""
        return _decode_as(self.skeleton, decoder)

    def finish(self) -> Document:
        """The document; raises `InvalidJSON` where it is not JSON."""
        return Document(decode(self.skeleton), {SPLICED: self.image})

    def text(self, length: int) -> str:
        """The beginning of the document for a message, images left out."""
        return _text(self.skeleton, length)


def splice(head: bytes, data: bytes, start: int, stop: int, tail: bytes) -> SplicedDocument | None:
    """The document `head + data[start:stop] + tail`, its image decoded at once.

    `head` ends in the opening quote of a `b64_json` string, and `tail` begins with the closing one.
    None for base64 that is not clean.
    """
    try:
        decoded = pybase64.b64decode(memoryview(data)[start:stop], validate=True)
    except binascii.Error:
        return None
    return SplicedDocument(head + _SPLICED + tail, decoded)


class Base64Decoder:
    """The inside of one JSON string, decoded as base64, fed in any split.

    It begins on the fast path, `feed_clean`, and stays there while strict decoding
    succeeds; `_carry` then holds nothing but letters of base64. The first refusal moves it to
    the slow path for good, where `_raw` is what cannot be unescaped yet, and
    `_carry` what does not fill a group of four characters yet.
    """

    __slots__ = ("_bad", "_carry", "_clean", "_decoded", "_head", "_padded", "_raw")

    def __init__(self, room: int = 0) -> None:
        """`room` is for how many bytes to be prepared; moving what has come to a larger place takes time."""
        self._decoded = BytesIO(bytes(room))  # its value is given away without a copy
        self._carry = b""
        self._padded = False
        self._bad: str | None = None
        self._clean = True
        self._raw = b""
        self._head = False  # slow path: a `data:` prefix may still come

    def feed(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the string as it stands in the JSON, the quotes left out."""
        if not self.feed_clean(piece):
            self._leave_fast_path()
            self._feed_slowly(bytes(piece))

    def feed_clean(self, piece: bytes | memoryview) -> bool:
        """The same for clean base64; False, with nothing taken, when it is not."""
        size = len(piece)
        if not size:
            return True
        if not self._clean or self._padded:
            return False
        carry = self._carry
        start = -len(carry) % 4
        end = size - (size - start) % 4 if len(carry) + size >= _UNIT else 0
        held = bytes(piece[end:])
        if held.translate(None, _ALPHABET):
            return False
        if not end:
            self._carry = carry + held
            return True
        try:
            first = pybase64.b64decode(carry + bytes(piece[:start]), validate=True)
            rest = pybase64.b64decode(piece[start:end], validate=True)
        except binascii.Error:
            return False
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
        """Whether a quote that comes next would belong to an escape, and so not end the string."""
        return self._raw == b"\\"

    def finish(self) -> Decoded:
        """What the whole string decodes to."""
        if self._clean and self._carry:
            self._leave_fast_path()
        if self._raw:
            self._bad = _NOT_BASE64
        if not self._clean:
            self._decode(self._cut_prefix(b"", final=True), final=True)
        if self._bad:
            return BadBase64(self._bad)
        self._decoded.truncate()
        return self._decoded.getvalue()

    def _leave_fast_path(self) -> None:
        if self._clean:
            self._clean = False
            self._head = not self._decoded.tell()
            carry, self._carry = self._carry, b""
            self._feed_slowly(carry)

    def _feed_slowly(self, piece: bytes) -> None:
        raw = self._raw + piece
        match = _WHOLE_TOKENS.match(raw)
        end = match.end() if match else 0
        self._raw = raw[end:]
        if not self._bad:
            text = _ESCAPE.sub(_unescape, raw[:end]).translate(_URL_SAFE, _WHITE_SPACE)
            self._decode(self._cut_prefix(text, final=False), final=False)

    def _cut_prefix(self, text: bytes, *, final: bool) -> bytes:
        """Hold the beginning back in `_carry` until it is known whether it is a `data:` prefix."""
        if not self._head:
            return text
        text, self._carry = self._carry + text, b""
        if text[:5].lower() != b"data:"[: len(text)] or (len(text) < 5 and final):
            self._head = False
            return text
        prefix, comma, rest = text.partition(b",")
        over_long = len(prefix) > _LONGEST_PREFIX
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
                raise binascii.Error("it goes on after its padding")
            decoded = pybase64.b64decode(text[:end], validate=True)
        except binascii.Error:
            self._bad = _NOT_BASE64
            return
        self._padded = 4 * len(decoded) < 3 * end
        self._decoded.write(decoded)


def _unescape(match: re.Match[bytes]) -> bytes:
    if match[2]:
        return _ESCAPED.get(match[2], _REFUSED)
    code = int(match[1], 16)
    return bytes((code,)) if code < 0x80 else _REFUSED


def _text(skeleton: bytes | bytearray, length: int) -> str:
    return skeleton[: 4 * length].decode("utf-8", "replace").strip()[:length]


def decode(skeleton: bytes | bytearray) -> Any:
    """JSON as it is, or as good as it can be read; raises `InvalidJSON` where it is none."""
    try:
        return msgspec.json.decode(skeleton)
    except _UNFIT:
        pass
    return _decode_tolerantly(skeleton)


def _decode_as(skeleton: bytes | bytearray, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        return decoder.decode(skeleton)
    except _UNFIT:
        return None


def _decode_tolerantly(skeleton: bytes | bytearray) -> Any:
    """What the fast and strict decoder refuses and an image must not be lost for.

    A byte order mark, NaN, lone surrogates, bytes that are not UTF-8, control characters,
    numbers beyond 64 bits, and whatever follows the document.
    """
    import json  # slow to import, and rarely needed

    text = skeleton.decode("utf-8-sig", "replace").lstrip()
    try:
        value, _ = json.JSONDecoder(strict=False, parse_int=_parse_int).raw_decode(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    else:
        return value
    raise InvalidJSON(reason)


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)
