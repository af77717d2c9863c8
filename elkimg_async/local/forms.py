"""The form of `POST /v1/images/edits`: `multipart/form-data` → text, files, and the order in them.

Pure, as `contract` is: the body is whole already, and nothing here waits or paints.
"""

import re
from typing import Any

import msgspec

from elkimg_async.local.contract import GatewayError, ParsedRequest, invalid, parse_fields
from elkimg_async.sansio.image_headers import HEAD, InputImage, inspect
from elkimg_async.sansio.requests import EditRequest

MOST_PARTS = 100
_PARAMETER = re.compile(r';\s*([^=;\s]+)=("[^"]*"|[^;\s]*)')
_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}
_IMAGE_NAMES = ("image", "image[]")
_NUMBERS = {
    field.name for field in msgspec.structs.fields(EditRequest) if field.type == (int | None)
}


class Part(msgspec.Struct, frozen=True):
    """One part of a form; `filename` is None where it is a text."""

    name: str
    filename: str | None
    media_type: str
    content: bytes

    @property
    def shown(self) -> Any:
        """What `ReceivedRequest.fields` has of it."""
        if self.filename is None:
            return self.content.decode("utf-8", "replace")
        return {"filename": self.filename, "type": self.media_type, "size": len(self.content)}


def parse(content_type: str, body: bytes) -> list[Part]:
    """The parts of a form.

    Raises:
        GatewayError: by the client; it is no form, or it is cut.
    """
    boundary = _parameter(content_type, "boundary")
    if not content_type.lower().startswith("multipart/form-data") or not boundary:
        raise invalid("the body must be multipart/form-data, with a boundary in its Content-Type")
    line = b"\r\n--" + boundary.encode("latin-1", "replace")
    _, *pieces = (b"\r\n" + body).split(line, MOST_PARTS + 1)
    if not pieces:
        raise invalid("the form does not hold its boundary")
    if len(pieces) > MOST_PARTS:
        raise invalid(f"the form has more than {MOST_PARTS} parts")
    if not pieces.pop().startswith(b"--"):
        raise invalid("the form is cut: its last boundary is missing")
    return [_part(piece) for piece in pieces]


def _part(piece: bytes) -> Part:
    head, blank, content = piece.lstrip(b" \t").partition(b"\r\n\r\n")
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
    return Part(name, filename, headers.get("content-type", "text/plain"), content)


def _parameter(header: str, name: str) -> str | None:
    found: dict[str, str] = {key.lower(): value for key, value in _PARAMETER.findall(header)}
    if (value := found.get(name)) is None:
        return None
    value = value.strip('"')
    for escaped, character in _ESCAPES.items():
        value = value.replace(escaped, character)
    return value


def shown(parts: list[Part]) -> dict[str, Any]:
    """The form as `ReceivedRequest.fields` has it: names in brackets, and those given twice, hold lists."""
    fields: dict[str, Any] = {}
    for part in parts:
        if part.name.endswith("[]"):
            fields.setdefault(part.name, []).append(part.shown)
        elif part.name in fields:
            known = fields[part.name]
            fields[part.name] = [*(known if isinstance(known, list) else [known]), part.shown]
        else:
            fields[part.name] = part.shown
    return fields


def parse_edit(parts: list[Part]) -> ParsedRequest:
    """The order in a form; names that are not known are dropped.

    Raises:
        GatewayError: by the client; the status and code are the gateway's.
    """
    texts: dict[str, Any] = {}
    images: list[Part] = []
    masks: list[Part] = []
    for part in parts:
        if part.name in _IMAGE_NAMES and part.filename is not None:
            images.append(part)
        elif part.name == "mask" and part.filename is not None:
            masks.append(part)
        elif part.filename is not None:
            raise invalid(f"{part.name} must not be a file", part.name)
        elif part.name in texts:
            raise invalid(f"{part.name} is given twice", part.name)
        else:
            texts[part.name] = part.shown
    if not images:
        raise invalid("image is required, as a file", "image")
    if len(masks) > 1:
        raise invalid("there can be one mask", "mask")
    fields: dict[str, Any] = {name: _value(name, text) for name, text in texts.items()}
    fields["image"] = tuple(_looked_at(part, "image") for part in images)
    if masks:
        fields["mask"] = _looked_at(masks[0], "mask")
    return parse_fields(fields, EditRequest)


def _value(name: str, text: str) -> Any:
    """The text as what it stands for: a boolean for `stream`, a number where one belongs."""
    if name == "stream":
        if text not in ("true", "false"):
            raise invalid("stream must be true or false", name)
        return text == "true"
    if name in _NUMBERS:
        if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
            raise invalid(f"{name} must be a whole number", name)
        return int(text)
    return text


def _looked_at(part: Part, param: str) -> InputImage:
    picture = inspect(
        part.content[:HEAD],
        size=len(part.content),
        name=part.filename or "image",
        source=part.content,
    )
    if not picture.media_type.startswith("image/"):
        raise unreadable(param)
    return picture


def unreadable(param: str) -> GatewayError:
    """What upstream says of a file that is no picture."""
    return GatewayError(
        400,
        "Invalid image file or mode, please check your image file.",
        code="invalid_image_file",
        param=param,
        kind="invalid_request_error",
    )
