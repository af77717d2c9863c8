"""Decoding of JSON that is not strict, and of what can be saved of text that is not JSON."""

import re
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

from elkimg_async.sansio.signatures import is_base64_image

NOT_STRICT = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors of the strict decoder."""
# A code fence of Markdown, in which models write JSON.
_FENCED = re.compile(r"```[\w-]*[ \t]*\r?\n\s*([{\[].*?)\s*```", re.DOTALL)
_JSON = re.compile(r"\{\s*\"|\[\s*[\[{\"]")
# Strings and brackets. The possessive repetition never gives back what it matched, so that a string
# without its closing quote takes linear time. A string that ends the text has no closing quote.
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*+)\\?("|\Z)|[][{}]', re.DOTALL)
_MAX_NESTING = 100  # of a document to repair
_MAX_REPAIRS = 8  # attempts, of which each decodes the document
_SPACE = re.compile(r"[\s,]*")
# A name before a string in a literal of JavaScript, in YAML, or in an attribute of XML.
_UNQUOTED_KEY = re.compile(r"([A-Za-z_$][\w$-]*)\s*[:=]\s*(\[?)\Z")
_BASE64 = re.compile(  # in one line, or in lines that have nothing else
    r"(?<![\w\"'+/%,;-])(?:data:image/[\w.+-]{1,64};base64,)?(?:[A-Za-z0-9+/_-]|%2[BF]){64}"
    r"(?:[A-Za-z0-9+/_-]|%2[BF]|\r?\n[ \t]*+(?=[A-Za-z0-9+/]++={0,2}[ \t]*+(?:[\r\n<]|\Z)))*+"
    r"(?:=|%3D){0,2}",
    re.IGNORECASE,
)
# What may stand directly before base64 and name it: a tag of XML, or a label of YAML or a form.
_TAG = re.compile(r"<([\w.:-]+)(?:\s[^<>]*)?>\s*(?:<!\[CDATA\[)?\s*\Z")
_LABEL = re.compile(r"([A-Za-z_$][\w.$-]*)\s*[:=][\s|>-]*\Z")
_MAX_LABEL = 300  # characters in front of base64 that may name it


class InvalidJSON(ValueError):  # noqa: N818
    """A document that is not JSON or is incomplete; never leaves `sansio`."""


def decode(skeleton: bytes | bytearray) -> Any:
    """Decode JSON, leniently if necessary.

    Raises:
        InvalidJSON: If it is not JSON.
    """
    try:
        return msgspec.json.decode(skeleton)
    except NOT_STRICT:
        return decode_several(skeleton)[0]


def decode_several(skeleton: bytes | bytearray) -> list[Any]:
    """Decode JSON that the fast, strict decoder rejects, so that no image is lost.

    This covers a byte order mark, NaN, lone surrogates, bytes that are not UTF-8, control
    characters, numbers beyond 64 bits, and anything that follows the document.
    """
    import json  # slow to import, and rarely needed

    # Bytes that are not UTF-8 are never in base64, so they are replaced.
    text = skeleton.decode("utf-8-sig", "replace").lstrip()
    decoder = json.JSONDecoder(strict=False, parse_int=_parse_int)
    values: list[Any] = []
    place = 0
    try:
        # The first document must be JSON. Whatever follows is read as long as it looks like JSON,
        # and is not worth an error that would cost the images of the first.
        while not values or text[place : place + 1] in ("{", "[", '"'):
            value, place = decoder.raw_decode(text, place)
            values.append(value)
            place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError) as error:
        if not values:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise InvalidJSON(reason) from None
    return values


def embedded_json(text: str) -> str | None:
    """Return a text from where its JSON begins: at its start, in a code fence, or behind words."""
    if text.lstrip()[:1] in ("{", "["):
        return text
    if "```" in text and (fenced := _FENCED.search(text)) is not None:
        return fenced[1]
    found = _JSON.search(text)
    return None if found is None else text[found.start() :]


def repaired(text: str) -> Any:
    """Decode a document that was cut off, up to its last complete string; None if impossible."""
    # Wanted: the longest start of the text that becomes JSON when the open brackets are closed. In
    # one pass, remember the last few ends of strings and brackets, and which brackets are open
    # there; then try them, from the last one back. Several may fail, since an object cannot end
    # with a name that has no value. The cost is linear.
    ends: deque[tuple[int, str]] = deque(maxlen=_MAX_REPAIRS)
    open_ones = ""  # the closing brackets that are missing, the innermost first
    for match in _TOKEN.finditer(text):
        found = match[0]
        if found in ("{", "["):
            open_ones = ("}" if found == "{" else "]") + open_ones
            if len(open_ones) > _MAX_NESTING:
                return None
            continue
        if found in ("}", "]"):
            if not open_ones.startswith(found):
                return None
            open_ones = open_ones[1:]
        elif not match[2]:
            break  # the text was cut off within this string
        ends.append((match.end(), open_ones))
    for end, closing in reversed(ends):
        try:
            return decode((text[:end] + closing).encode("utf-8", "replace"))
        except InvalidJSON:
            continue
    return None


def named_strings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the complete strings of a document that is not JSON, each with its name."""
    # A string is a value if it follows a colon, directly or in a list; any other may be a name, so
    # it is remembered as `last`. A name without quotes is in the text between two strings.
    key, last, place, in_list = "", "", 0, False
    for match in _TOKEN.finditer(text):
        if match[1] is None:
            continue  # a bracket
        between, string = text[place : match.start()].strip(), match[1]
        if (unquoted := _UNQUOTED_KEY.search(between)) is not None:
            last, between = unquoted[1], ":" + unquoted[2]
        in_list = between == ":[" or (between == "," and in_list)
        key = last if between in (":", ":[") else key
        is_value = (between == ":" or in_list) and match[2]
        last, place = string, match.end()
        if is_value:
            try:
                yield key, str(decode(b'"' + string.encode("utf-8", "replace") + b'"'))
            except InvalidJSON:
                continue


def unquoted_base64(text: str) -> Iterator[tuple[str, str]]:
    """Yield the images in base64 without quotes, each with its name: in XML, YAML or a form."""
    for match in _BASE64.finditer(text):
        image = unquote(match[0])
        # At the end of the text, base64 may have been cut off.
        if match.end() == len(text) or not is_base64_image(image[image.find(",") + 1 :][:64]):
            continue
        before = text[max(0, match.start() - _MAX_LABEL) : match.start()]
        label = _TAG.search(before) or _LABEL.search(before)
        yield label[1] if label else "data", image


def _parse_int(digits: str) -> int | float:
    # Python raises for more than 4,300 digits, since converting them takes quadratic time.
    return int(digits) if len(digits) < 20 else float(digits)
