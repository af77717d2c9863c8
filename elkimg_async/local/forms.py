"""Parse `multipart/form-data` bodies into parts."""

import re
from typing import Any

import msgspec

from elkimg_async.local.contract import invalid

MAX_PARTS = 100
_PARAMETER = re.compile(r';\s*([^=;\s]+)=("[^"]*"|[^;\s]*)')
_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}


class FormPart(msgspec.Struct, frozen=True):
    """One part of a form; `filename` is None for a plain field."""

    name: str
    filename: str | None
    media_type: str
    content: bytes

    @property
    def described(self) -> Any:
        """The part as `ReceivedRequest.fields` has it."""
        if self.filename is None:
            return self.content.decode("utf-8", "replace")
        return {"filename": self.filename, "type": self.media_type, "size": len(self.content)}


def parse_form(content_type: str, body: bytes) -> list[FormPart]:
    """Parse the parts of a form.

    Raises:
        GatewayError: If the body is not a form, or is truncated.
    """
    boundary = _parameter(content_type, "boundary")
    if not content_type.lower().startswith("multipart/form-data") or not boundary:
        raise invalid("the body must be multipart/form-data, with a boundary in its Content-Type")
    line = b"\r\n--" + boundary.encode("latin-1", "replace")
    _, *sections = (b"\r\n" + body).split(line, MAX_PARTS + 1)
    if not sections:
        raise invalid("the form does not contain its boundary")
    if len(sections) > MAX_PARTS:
        raise invalid(f"the form has more than {MAX_PARTS} parts")
    if not sections.pop().startswith(b"--"):
        raise invalid("the form is truncated: its last boundary is missing")
    return [_parse_part(section) for section in sections]


def _parse_part(section: bytes) -> FormPart:
    head, blank, content = section.lstrip(b" \t").partition(b"\r\n\r\n")
    lines = head.decode("utf-8", "replace").split("\r\n")[1:]
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    disposition = headers.get("content-disposition", "")
    name = _parameter(disposition, "name")
    if not blank or name is None:
        raise invalid("a part of the form has no name")
    filename = _parameter(disposition, "filename")
    return FormPart(name, filename, headers.get("content-type", "text/plain"), content)


def _parameter(header: str, name: str) -> str | None:
    found: dict[str, str] = {known.lower(): value for known, value in _PARAMETER.findall(header)}
    if (value := found.get(name)) is None:
        return None
    value = value.strip('"')
    for escaped, character in _ESCAPES.items():
        value = value.replace(escaped, character)
    return value


def described(parts: list[FormPart]) -> dict[str, Any]:
    """Return a form as `ReceivedRequest.fields` has it.

    Names that end in `[]`, and names that occur more than once, have lists.
    """
    found: dict[str, list[Any]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(part.described)
    return {
        name: values if name.endswith("[]") or len(values) > 1 else values[0]
        for name, values in found.items()
    }
