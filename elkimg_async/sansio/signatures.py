"""Recognition of images by the first bytes of a file, or of its base64."""

import re

from elkimg_async.media_types import UNKNOWN_TYPE, media_type_of

MIN_UNKNOWN = 64
"""A shorter file without a known signature is not an image."""

_HEAD = 64 * 1024
"""Bytes of a file that are examined for text."""

# Signatures beyond those of `media_type_of`: https://en.wikipedia.org/wiki/List_of_file_signatures
_SIGNATURES = (
    b"\x00\x00\x02\x00",  # CUR
    b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"8BPS",
    b"qoif",
    b"v/1\x01",  # OpenEXR
    b"DDS ",
    b"#?RADIANCE",
    b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"P7\n", b"PF\n", b"Pf\n",
)  # fmt: skip
# The same as base64, for signatures long enough never to occur by accident.
_BASE64 = re.compile(
    r"\s*(?:iVBORw0KGgo|[/_]9j[/_]|R0lGOD[dl]h|UklGR|AAAA.GZ0eX|AAAADEpYTCAN|AAAADGpQICAN|SUkqA|TU0AK"
    r"|PHN2Zy[A-Za-z0-9+/_-]|PD94bWwg|OEJQUw)"
)
_MAX_SIGNATURE = 32
_BODY_SIGNATURES = (
    *_SIGNATURES,
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
)
_HTML = re.compile(
    r"\s*(?:<!--.*?-->\s*)*<(?:!DOCTYPE\s+html|html|head|body)\b", re.DOTALL | re.IGNORECASE
)
_TEXT_FORMATS = re.compile(
    r"P[1-7Ff]\s"  # Netpbm
    r"|/\* XPM|\s*#define\s+\w+_width\b"  # XPM, XBM
    r"|%!PS|%PDF-"
    r"|.*<(?:\w+:)?svg\b",  # SVG after anything, such as words or a Markdown fence
    re.DOTALL | re.IGNORECASE,
)


def is_image(content: bytes) -> bool:
    """Return whether the content begins with the signature of an image format."""
    return (
        media_type_of(content) != UNKNOWN_TYPE
        or content.startswith(_SIGNATURES)
        or content[4:8] == b"ftyp"
    )


def may_begin_image(start: bytes) -> bool | None:
    """Return whether a body begins with an image; None while there are too few bytes to say."""
    if is_image(start):
        return True
    if len(start) >= _MAX_SIGNATURE:
        return False
    heads = (known[: len(start)] for known in _BODY_SIGNATURES)
    possible = any(head == start[: len(head)] for head in heads) or b"ftyp".startswith(start[4:8])
    return None if possible or start[0] == 0 else False


def cannot_be_image(content: bytes) -> bool:
    """Return whether the content has no known signature and is tiny, or is plain text."""
    if is_image(content):
        return False
    text = _text_of(content)
    return _is_text(text) or (len(content) < MIN_UNKNOWN and not _TEXT_FORMATS.match(text))


def is_text(content: bytes) -> bool:
    """Return whether a file is clearly text or HTML, such as an error page, rather than an image.

    Unknown formats count as images, and so do formats of images that are text, such as SVG.
    """
    return not is_image(content) and _is_text(_text_of(content))


def _text_of(content: bytes) -> str:
    """Return the text that the first bytes may be, whatever its encoding."""
    head = content[:_HEAD]
    coding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(coding, "replace")
    # The head may end inside a character.
    return text.rstrip("\ufffd") if len(content) > _HEAD else text


def _is_text(text: str) -> bool:
    if _HTML.match(text):
        return True
    if _TEXT_FORMATS.match(text) or text.count("\ufffd") > len(text) // 4:
        return False  # a few bytes that are not UTF-8 may be a legacy encoding
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)


def is_base64_image(text: str) -> bool:
    """Return whether a string begins like the base64 of an image."""
    return len(text) >= 16 and _BASE64.match(text) is not None
