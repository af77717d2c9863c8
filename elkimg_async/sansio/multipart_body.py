"""Bodies in several parts (RFC 2046, section 5.1), of which some are images.

The boundary is read from the body, or from the Content-Type if a preamble comes first.
"""

import binascii
import contextlib
import itertools
import quopri
import re
from collections.abc import Iterator

import msgspec

from elkimg_async.sansio.image_strings import plain_images
from elkimg_async.sansio.json_images import Document, InvalidJSON, JSONDecoder
from elkimg_async.sansio.signatures import cannot_be_image, is_image

# RFC 2046 allows these characters in a boundary, and at most 70 of them. Two hyphens may begin
# other text as well, such as a rule in Markdown, so headers, an empty line or the end have to
# follow.
_CHARS = rb"[0-9A-Za-z'()+_,./:=? -]"
_FIRST = re.compile(rb"--(" + _CHARS + rb"{1,70}?)[ \t]*\r?\n(?:[\w-]{1,70}:|\r?\n|--)")
# What may still become such a start.
_MAYBE = re.compile(rb"-(?:-" + _CHARS + rb"{0,70}[ \t]*\r?(?:\n[\w-]{0,70}\r?)?)?")
# Header lines with their continuations; the empty line after them is optional.
_HEADERS = re.compile(rb"((?:[\w-]+:[^\n]*\n(?:[ \t]+[^\n]*\n)*)*)(?:\r?\n)?")
_PARAMETER = re.compile(r'boundary="?([^";]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(r'\bname="?([^";]*)"?', re.IGNORECASE)
_MAX_DEPTH = 4


class BodyPart(msgspec.Struct, frozen=True):
    """One part: its headers with names in lower case, and its content."""

    headers: dict[str, str]
    content: bytes

    @property
    def content_type(self) -> str:
        """The media type with its parameters; "" if the part has none."""
        return self.headers.get("content-type", "")

    @property
    def name(self) -> str:
        """The name of the field of a form; "" if the part has none."""
        found = _NAME.search(self.headers.get("content-disposition", ""))
        return found[1] if found else ""


def boundary_in(start: bytes) -> bytes | None:
    """Return the boundary with which a body begins; b"" if it has none, None if undecided."""
    if (match := _FIRST.match(start)) is not None:
        return match[1]
    return None if _MAYBE.fullmatch(start) else b""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a Content-Type names, or b""."""
    if not content_type.lower().startswith("multipart/"):
        return b""
    match = _PARAMETER.search(content_type)
    return match[1].encode("latin-1", "replace") if match else b""


def parts_of(body: bytes, boundary: bytes, depth: int = 0) -> tuple[list[BodyPart], bool]:
    """Return the complete parts of a body, and whether the body itself is complete."""
    # The line break in front of a boundary belongs to it, not to the part.
    line = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    marks = list(line.finditer(body))
    found: list[BodyPart] = []
    for mark, following in itertools.pairwise(marks):
        if mark[1] is not None:
            break  # what follows the last boundary is an epilogue
        part = _part(body[mark.end() : following.start()])
        inner = boundary_of(part.content_type)
        if inner and depth < _MAX_DEPTH:
            found += parts_of(part.content, inner, depth + 1)[0]
        else:
            found.append(part)
    return found, any(mark[1] is not None for mark in marks)


def documents_of(parts: list[BodyPart]) -> Iterator[bytes | Document]:
    """Yield the images of the parts, then the documents of the others."""
    # Images first: JSON beside them may describe them, or be an error that ends the body.
    others = []
    for part in parts:
        kind = part.content_type.lower()
        is_named = kind.startswith("image/") and not cannot_be_image(part.content)
        if is_image(part.content) or is_named:
            yield part.content
        else:
            others.append(part)
    for part in others:
        yield from _documents_of_text(part)


def _part(text: bytes) -> BodyPart:
    head = _HEADERS.match(text, text.startswith(b"\r") + text.startswith((b"\r\n", b"\n")))
    assert head is not None
    content = text[head.end() :]
    if not head[1]:
        content = content.lstrip(b"\r\n")
    headers = {}
    for header in head[1].decode("latin-1").splitlines():
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    encoding = headers.get("content-transfer-encoding", "").lower()
    if encoding == "quoted-printable":
        content = quopri.decodestring(content)
    elif encoding == "base64":
        with contextlib.suppress(binascii.Error):  # left as text, which may be an image
            content = binascii.a2b_base64(b"".join(content.split()), strict_mode=True)
    return BodyPart(headers, content)


def _documents_of_text(part: BodyPart) -> Iterator[Document]:
    decoder = JSONDecoder(len(part.content))
    decoder.feed(part.content)
    try:
        documents = decoder.finish_all()
    except InvalidJSON:
        text = part.content.decode("utf-8", "replace").strip()
        if part.name:
            yield Document({part.name: text})
        else:
            yield from (Document(value) for value in plain_images(text))
        return
    # A form has no object: the name of each part is the name of a field.
    for document in documents:
        if part.name and not isinstance(document.value, dict):
            yield msgspec.structs.replace(document, value={part.name: document.value})
        else:
            yield document
