"""Images in unusual spellings: base64 under odd prefixes or encoded twice, hexadecimal, SVG text.

Only what begins with the signature of an image is accepted here, so no other text is mistaken for
one. The usual spellings never get this far.
"""

import re
import zlib
from urllib.parse import unquote

from elkimg_async.sansio.base64_text import decode_text
from elkimg_async.sansio.signatures import is_base64_image, is_image

MAX_INFLATED = 256 * 1024 * 1024
"""Bytes of one image that was compressed once more."""
_INVISIBLE = " \t\r\n\f\v\"'<>`\u00a0\u200b\u200c\u200d\u2028\u2029\u2060\u3000\ufeff"
_MAX_PREFIX = 512
_PREFIX = re.compile(r"data:|base64|b64|image/", re.IGNORECASE)
_CSS = re.compile(r"url\((.*)\)\Z", re.IGNORECASE | re.DOTALL)
_HEX = re.compile(r"(?:0x|\\x)?(?:89504e47|ffd8ff|474946383|52494646)[0-9a-f\s]*\Z", re.IGNORECASE)
"""Hexadecimal digits, all of which are also base64."""
_ADDRESS = re.compile(r"https?://\S+\Z", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_MAX_LAYERS = 3


def respelled(text: str) -> bytes | str | None:
    """Return the image in a string, or its URL; None if there is none."""
    if text.lstrip()[:1] == "<":
        is_svg = is_image(text[:4096].encode("utf-8", "replace"))
        return text.encode("utf-8", "replace") if is_svg else None
    text = text.strip(_INVISIBLE)
    if (css := _CSS.match(text)) is not None:
        text = css[1].strip(_INVISIBLE)
    if _ADDRESS.match(text):
        return text
    if (content := from_hex(text)) is not None:
        return content
    head = text[:_MAX_PREFIX]
    if (cut := max(head.rfind(mark) for mark in ",:;")) >= 0 and _PREFIX.search(head):
        text = text[cut + 1 :].strip(_INVISIBLE)
    if not is_base64_image(unquote(text[:64])):
        return None
    decoded = decode_text(unquote(text) if "%" in text else text)
    return decoded if isinstance(decoded, bytes) and is_image(decoded) else None


def unwrapped(content: bytes, layers: int = _MAX_LAYERS) -> bytes | None:
    """Return the image inside bytes that are not one themselves: compressed, or encoded twice."""
    if is_image(content):
        return content
    if not layers:
        return None
    if content.startswith(_GZIP):
        inflated = _inflated(content)
        return None if inflated is None else unwrapped(inflated, layers - 1)
    if not content[:64].isascii():
        return None
    found = respelled(content.decode("ascii", "replace"))
    return found if isinstance(found, bytes) else None


def _inflated(content: bytes) -> bytes | None:
    inflate = zlib.decompressobj(wbits=31)
    try:
        inflated = inflate.decompress(content, MAX_INFLATED)
    except zlib.error:
        return None
    return inflated if inflate.eof else None


def from_hex(text: str) -> bytes | None:
    """Return the image that hexadecimal digits are, or None."""
    if not _HEX.match(text):
        return None
    try:
        content = bytes.fromhex(text.removeprefix("0x").removeprefix("0X").removeprefix("\\x"))
    except ValueError:
        return None
    return content if is_image(content) else None
