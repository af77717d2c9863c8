"""Decoding of input files: encodings, and detection of files that are not text."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from elkimg_async import errors

_BOMS = (  # the longer ones first: the UTF-32 mark begins with the UTF-16 one
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BINARY = (
    (b"PK\x03\x04", "an Excel workbook or another zip file; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Office document; save the sheet as CSV"),
    (b"PAR1", "a Parquet file; convert it to CSV or JSON Lines"),
    (b"\x1f\x8b", "compressed; unpack it"),
    (b"%PDF", "a PDF document; save its text as a text file"),
    (b"\x89PNG", "an image, not a file of prompts; use elkimg edit"),
    (b"\xff\xd8\xff", "an image, not a file of prompts; use elkimg edit"),
)
_SAMPLE = 4096
_ADVICE = "Save it as UTF-8, or name its encoding with --encoding."


class Decoded(NamedTuple):
    """The text of a file, and a warning about how it was decoded, if any."""

    text: str
    warning: str | None = None


def decode(content: bytes, name: str, encoding: str | None) -> Decoded:
    """Decode a file by its byte order mark, else as UTF-8, else as Windows-1252 with a warning.

    Args:
        content: The bytes of the file.
        name: The name of the file in messages.
        encoding: The encoding that the user specified. None: it is detected.

    Raises:
        ConfigurationError: If it is not text, or its encoding cannot be detected.
    """
    decoded = _decode(content, name, encoding)
    if (place := decoded.text.find("\0")) >= 0:
        line = decoded.text.count("\n", 0, place) + 1
        raise errors.ConfigurationError(f"{name}, line {line}: there is a NUL; this is not text.")
    return decoded


def _decode(content: bytes, name: str, encoding: str | None) -> Decoded:
    if encoding is not None:
        return Decoded(_decode_as(content, encoding, name).removeprefix("\ufeff"))
    for mark, kind in _BOMS:
        if content.startswith(mark):
            return Decoded(_decode_as(content[len(mark) :], kind, name))
    for start, what in _BINARY:
        if content.startswith(start):
            raise errors.ConfigurationError(f"{name} is {what}.")
    # Before UTF-8, since English text in UTF-16 is valid UTF-8 with many NULs.
    if (utf16 := _utf16_without_mark(content)) is not None:
        return Decoded(_decode_as(content, utf16, name))
    try:
        return Decoded(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    return _decode_western(content, name, line)


def _decode_as(content: bytes, encoding: str, name: str) -> str:
    try:
        return content.decode(encoding)
    except LookupError:
        raise errors.ConfigurationError(
            f"--encoding {encoding}: no such encoding. Common ones are utf-8, utf-16, cp1252, gbk, "
            "big5 and shift_jis."
        ) from None
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = content[:start].decode(encoding, "ignore").count("\n") + 1
        raise errors.ConfigurationError(
            f"{name}, line {line}: the text is not valid {encoding}. {_ADVICE}"
        ) from None


def _utf16_without_mark(content: bytes) -> str | None:
    """Detect UTF-16 from the NUL in one half of most of its characters."""
    sample = content[:_SAMPLE]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if len(content) % 2 or max(even, odd) < len(sample) // 5 or min(even, odd):
        return None
    return "utf-16-le" if odd else "utf-16-be" if even else None


def _decode_western(content: bytes, name: str, line: int) -> Decoded:
    """Decode as Windows-1252, unless the result looks like misread text of another encoding.

    Western words have one accented letter or two in a row; text in a multi-byte encoding (GBK,
    Shift-JIS, Big5) or another alphabet turns into long runs of them.
    """
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    if not text or re.search(r"[^\x00-\x7f\u2010-\u2026]{4}", text):
        raise errors.ConfigurationError(
            f"{name}, line {line}: the text is neither UTF-8 nor Windows-1252. {_ADVICE}"
        )
    found = text.split("\n")[line - 1].strip()[:60]
    warning = f"{name} is not UTF-8; it was read as Windows-1252. Check line {line}: {found}"
    return Decoded(text, warning)
