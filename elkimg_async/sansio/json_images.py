"""Incremental decoding of JSON that contains base64.

Usage: `feed` bytes in any split, then `finish` for the document, in which every long base64 string
under a usual name for images has become bytes.

Cost goal: each byte is examined a fixed number of times; neither the text of the document nor a
long base64 string is ever held in full, and an image is held once: it grows in one buffer, which
becomes the image without a copy; linear in the worst case.

Plan: everything but the inside of those strings is collected as the *skeleton*, a small ordinary
JSON document with a placeholder for each decoded string. No tokenizer is needed to find them:
`"b64_json"` with an unescaped quote on both sides can only be a complete string, and followed by a
colon only a name, because inside another string its quotes would have to be escaped. The first
bytes of the value decide: if it ends within them, or does not look like base64, it stays in the
skeleton as ordinary text. So does an image under a name that the search does not know, or one
spelled with escapes; `Document` decodes these at the end.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pybase64

from elkimg_async.sansio.base64_text import (
    ALPHABET,
    BadBase64,
    Base64Decoder,
    Decoded,
    decode_text,
)
from elkimg_async.sansio.lenient_json import (
    NOT_STRICT,
    InvalidJSON,
    decode,
    decode_several,
    embedded_json,
    named_strings,
    repaired,
    unquoted_base64,
)

# The names that cost nothing to add. An image under any other is text of the skeleton, which costs
# memory for its base64, but is found all the same.
_IMAGE_KEY = re.compile(
    rb'"(?:b64_json|b64|base64|image_base64|image_b64|partial_image_b64|bytesBase64Encoded'
    rb'|image|image_url|url|data|result|output)"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"'
)
_MAX_KEY = 64  # no match of _IMAGE_KEY is longer
_MAX_ROOM = 4 * 1024 * 1024  # bytes to reserve before the size of any image is known
_LONG = 16_384  # bytes of base64 that are cheaper to decode tentatively than to search for a quote
_DECISIVE = 512  # bytes of a value that decide whether it is treated as base64
# The start of base64 with anything that `Base64Decoder` cleans; the last escape may be cut off.
_BASE64_START = re.compile(
    rb"(?:[Dd][Aa][Tt][Aa]:[^,]{0,256};base64,)?"
    rb"(?:[A-Za-z0-9+/=_\r\n-]|\\(?:[/nrt]|u00[0-7][0-9A-Fa-f]))*(?:\\(?:u(?:0(?:0[0-7]?)?)?)?)?"
)
# Images in hexadecimal, whose digits are base64 as well.
_HEX_START = re.compile(rb"(?:89504e47|ffd8ff|474946383|52494646)[0-9a-f]{32}", re.IGNORECASE)
_URL_PREFIX = re.compile(rb"(?:data:[^,]{0,256};base64,)?", re.IGNORECASE)
_DATA_PREFIX = re.compile(rb"\s*(?:data:\s*)+")
_PLACEHOLDER = "#image "  # "#" neither occurs in base64 nor begins a URL
_MAX_STRINGS = 8  # JSON in a string in a string …


class Document(msgspec.Struct, frozen=True):
    """Decoded document: `value` is the JSON, with placeholders that `decoded` resolves."""

    value: Any
    images: dict[str, Decoded] = {}
    prefixes: dict[str, str] = {}
    """The `data:` prefix of each placeholder that had one."""

    def decoded(self, text: str) -> Decoded | None:
        """Return the bytes of a placeholder or of a base64 string; None if there are none."""
        found = self.images.get(text)
        return (decode_text(text) if found is None else found) or None

    def restore(self, value: Any) -> Any:
        """Return plain data as the server sent it, with base64 in place of the placeholders."""
        return map_strings(value, self._restored, depth=200) if self.images else value

    def _restored(self, text: str) -> str:
        found = self.images.get(text)
        if found is None:
            return text
        if not isinstance(found, bytes):
            return "…"
        return self.prefixes.get(text, "") + pybase64.b64encode_as_string(found)


class JSONDecoder:
    """Decoder for one JSON document, fed in any split.

    `length` is its expected length in bytes, 0 if unknown; it is only used to reserve memory for
    images.
    """

    __slots__ = (
        "_base64",
        "_held",
        "_images",
        "_length",
        "_prefix",
        "_prefixes",
        "_room",
        "_searched",
        "_skeleton",
        "size",
    )

    def __init__(self, length: int = 0) -> None:
        self._length = length
        self._room = _MAX_ROOM  # to reserve for the next image, if that much remains
        self._skeleton = bytearray()
        self._searched = 0  # no name begins before this offset in the skeleton
        self._images: dict[str, Decoded] = {}
        self._held: bytearray | None = None  # the start of a value, until it is classified
        self._base64: Base64Decoder | None = None
        self._prefix = b""  # of the open string
        self._prefixes: dict[str, str] = {}
        self.size = 0
        """Bytes fed so far."""

    def feed(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        """Decode `data[start:end]`, the next bytes of the document."""
        if end is None:
            end = len(data)
        self.size += end - start
        # Most chunks of a large image contain nothing but base64, and decoding them shows that as
        # well as a search would. Where `feed_clean` fails it has no effect, and the ordinary way
        # follows: in the chunk with the closing quote, or for base64 that is not clean.
        if (
            self._base64 is not None
            and end - start > _LONG
            and self._base64.feed_clean(memoryview(data)[start:end])
        ):
            return
        while start < end:
            if self._base64 is not None:
                start = self._feed_base64(self._base64, data, start, end)
            elif self._held is not None:
                start = self._feed_value(self._held, data, start, end)
            else:
                start = self._feed_text(data, start, end)

    def feed_base64(self, data: bytes, start: int) -> int:
        """Decode the clean base64 of an open string in `data[start:]`; return where it ends.

        For a caller that has to examine all other bytes itself, for example for line ends.
        """
        if self._base64 is None:
            return start
        # First all of it, as in `feed`. If that fails, there is probably a closing quote: the
        # base64 in front of it is decoded here, so that the caller does not search it for line
        # ends.
        view, end = memoryview(data), len(data)
        if end - start <= _LONG or not self._base64.feed_clean(view[start:]):
            quote = data.find(b'"', start)
            end = end if quote < 0 else quote
            if not self._base64.feed_clean(view[start:end]):
                return start
        self.size += end - start
        return end

    def finish(self) -> Document:
        """Return the document.

        Raises:
            InvalidJSON: If it is not JSON or was cut off.
        """
        return self._document(decode(self._complete_skeleton()))

    def finish_all(self) -> list[Document]:
        """Return the document and those that follow it, separated only by white space.

        A string that is JSON itself counts as the document in it.

        Raises:
            InvalidJSON: If the first one is not JSON or was cut off.
        """
        skeleton = self._complete_skeleton()
        try:
            values = [msgspec.json.decode(skeleton)]
        except NOT_STRICT:
            values = decode_several(skeleton)
        return [_unpacked(self._document(value)) for value in values]

    def embedded(self) -> list[Document]:
        """Return the JSON that follows other text, or an empty list."""
        # `decode` ignores what follows the document, such as `);` of a callback.
        source = embedded_json(self._skeleton.decode("utf-8", "replace"))
        try:
            return [self._document(decode((source or "").encode("utf-8", "replace")))]
        except InvalidJSON:
            return []

    def salvage(self) -> list[Document]:
        """Return the complete parts of a document that was cut off or is not JSON."""
        skeleton = self._unprefixed().decode("utf-8", "replace")
        if skeleton.lstrip()[:2] in ("{'", "['"):
            skeleton = skeleton.replace("'", '"')  # a literal of Python or JavaScript
        # Cut-off JSON keeps its structure. Other text has only strings; each becomes a document of
        # its own with the name that it has there.
        if not self.is_balanced:
            value = repaired(embedded_json(skeleton) or skeleton)
            if value is not None:
                return [self._document(value)]
        found = (*named_strings(skeleton), *unquoted_base64(skeleton))
        return [self._document({name: text}) for name, text in found]

    @property
    def is_balanced(self) -> bool:
        """Whether text that is not JSON may be complete: no bracket is still open in it."""
        pairs = ((b"{", b"}"), (b"[", b"]"))
        return not self._in_value and all(
            self._skeleton.count(opening) <= self._skeleton.count(closing)
            for opening, closing in pairs
        )

    def text(self, length: int) -> str:
        """Return the start of the document for an error, without its images."""
        skeleton = self._skeleton if self._held is None else self._skeleton + self._held
        text = skeleton[: 4 * length].decode("utf-8", "replace")
        for placeholder in self._images:
            text = text.replace(f'"{placeholder}"', '"…"')
        return text.strip()[:length]

    @property
    def _in_value(self) -> bool:
        """Whether the string of an image is open."""
        return self._base64 is not None or self._held is not None

    def _document(self, value: Any) -> Document:
        return Document(value, self._images, self._prefixes)

    def _complete_skeleton(self) -> bytes | bytearray:
        if self._in_value:
            raise InvalidJSON("the document ends within an image")
        return self._unprefixed()

    def _unprefixed(self) -> bytes | bytearray:
        """Return the skeleton without a second `data:`, which some servers write before JSON."""
        match = _DATA_PREFIX.match(self._skeleton)
        return self._skeleton[match.end() :] if match else self._skeleton

    def _feed_text(self, data: bytes, start: int, end: int) -> int:
        """Copy text up to the next image, or all of it; return where it ends."""
        # The first name may have begun in the preceding bytes, of which the last ones have not been
        # searched to their end.
        skeleton = self._skeleton
        stop = self._find_split_key(data, start, end) if len(skeleton) > self._searched else 0
        match = None if stop else _IMAGE_KEY.search(data, start, end)
        while match:
            # \"b64_json\" is text inside another string, such as a prompt.
            before = (
                data[match.start() - 1 : match.start()] if match.start() > start else skeleton[-1:]
            )
            if before != b"\\":
                stop = match.end()
                break
            match = _IMAGE_KEY.search(data, match.start() + 1, end)
        skeleton += memoryview(data)[start : stop or end]
        # No match ends here, but one may begin in the last bytes.
        if not stop:
            self._searched = max(self._searched, len(skeleton) - _MAX_KEY)
            return end
        self._held = bytearray()
        return stop

    def _find_split_key(self, data: bytes, start: int, end: int) -> int:
        """Return the end of a name that began in the preceding bytes; 0 if there is none."""
        # One byte more than the name, to see whether its quote is escaped. The seam has a fixed
        # length, so the cost does not depend on the size of the chunks.
        begin = max(0, self._searched - 1)
        tail = bytes(self._skeleton[begin:])
        seam = tail + data[start : min(end, start + _MAX_KEY)]
        at = self._searched - begin
        while (match := _IMAGE_KEY.search(seam, at)) and match.start() < len(tail):
            if match.start() == 0 or seam[match.start() - 1] != 0x5C:
                return start + match.end() - len(tail)
            at = match.start() + 1
        return 0

    def _feed_value(self, held: bytearray, data: bytes, start: int, end: int) -> int:
        """Collect the first bytes of a value, and classify it; return where they end."""
        # A value that ends within `_DECISIVE` bytes is text, whatever it looks like; `Document`
        # decodes it later.
        stop = min(end, start + _DECISIVE - len(held))
        quote = data.find(b'"', start, stop)
        if quote >= 0:
            held += memoryview(data)[start:quote]
            if (len(held) - len(held.rstrip(b"\\"))) % 2:
                held += b'"'  # an escaped quote; the string continues
                quote += 1
            else:
                self._end_text()
            return quote
        held += memoryview(data)[start:stop]
        if len(held) >= _DECISIVE:
            is_base64 = not held.translate(None, ALPHABET) or _BASE64_START.fullmatch(held)
            if is_base64 and not _HEX_START.match(held):
                # Never more than what can follow in the body, of which base64 is four thirds.
                remaining = self._length - self.size + end - stop + len(held)
                room = max(0, min(self._room, 3 * remaining // 4))
                self._base64, self._held = Base64Decoder(room), None
                self._base64.feed(bytes(held))
                match = _URL_PREFIX.match(held)
                self._prefix = match[0] if match else b""
            else:
                self._end_text()
        return stop

    def _end_text(self) -> None:
        # No name is searched for in a value: the quotes of a string inside it would be escaped.
        self._skeleton += self._held or b""
        self._searched = len(self._skeleton)
        self._held = None

    def _feed_base64(self, base64: Base64Decoder, data: bytes, start: int, end: int) -> int:
        quote = data.find(b'"', start, end)
        base64.feed(memoryview(data)[start : end if quote < 0 else quote])
        if quote < 0:
            return end
        if base64.in_escape():  # \" does not end the string; it is no base64 either
            base64.feed(b'"')
            return quote + 1
        # A server cannot know the address, so no string that it sends equals the placeholder.
        placeholder = f"{_PLACEHOLDER}{id(self):x} {len(self._images)}"
        self._skeleton += placeholder.encode()
        self._searched = len(self._skeleton)
        image = self._images[placeholder] = base64.finish()
        if self._prefix:
            prefix = self._prefix.replace(b"\\/", b"/")  # the usual escape
            self._prefixes[placeholder] = prefix.decode("utf-8", "replace")
        if isinstance(image, bytes):
            self._room = len(image) + len(image) // 8  # the next one is probably about as large
        self._base64 = None
        return quote


def _unpacked(document: Document) -> Document:
    """Return the document inside a document that is a string of JSON, or else the same."""
    for _ in range(_MAX_STRINGS):
        text = document.value
        if not isinstance(text, str) or not text.lstrip().startswith(("{", "[", '"')):
            break
        try:
            document = Document(decode(text.encode("utf-8", "replace")))
        except InvalidJSON:
            break
    return document


def map_strings(value: Any, change: Callable[[str], str], depth: int = 20) -> Any:
    """Return plain data with every string changed; anything deeper than `depth` becomes "…"."""
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


__all__ = [
    "BadBase64",
    "Base64Decoder",
    "Decoded",
    "Document",
    "InvalidJSON",
    "JSONDecoder",
    "decode",
    "map_strings",
]
