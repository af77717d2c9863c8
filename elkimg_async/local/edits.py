"""Parse the bodies of `POST /v1/images/edits`: a form with files, or JSON with references."""

import binascii
import re
from typing import Any

import msgspec
import pybase64

from elkimg_async.local.contract import (
    ParsedRequest,
    invalid,
    parse_fields,
    parse_json,
    rejected_upstream,
    unreadable,
)
from elkimg_async.local.forms import FormPart
from elkimg_async.sansio.image_headers import HEAD, InputImage, inspect
from elkimg_async.sansio.requests import EditRequest

_IMAGE_NAMES = ("image", "image[]")
_SINGLE_FILES = ("mask", "markup")
_NUMBERS = {
    field.name for field in msgspec.structs.fields(EditRequest) if field.type == (int | None)
}


def parse_edit_form(parts: list[FormPart]) -> ParsedRequest:
    """Parse an edit in a form; unknown fields are dropped.

    Raises:
        GatewayError: If the form is not valid, with the gateway's status and code.
    """
    fields: dict[str, Any] = {}
    files: dict[str, list[FormPart]] = {"image": [], **{name: [] for name in _SINGLE_FILES}}
    for part in parts:
        name = "image" if part.name in _IMAGE_NAMES else part.name
        if part.filename is not None:
            if name not in files:
                raise invalid(f"{name} must not be a file", name)
            files[name].append(part)
        elif not _set_field(fields, name, part.described):
            raise invalid(f"{name} is set twice", name)
    if not files["image"]:
        raise invalid("image is required, as a file", "image")
    fields["image"] = tuple(_input_image(part, "image") for part in files["image"])
    for name in _SINGLE_FILES:
        if len(files[name]) > 1:
            raise invalid(f"there can be only one {name}", name)
        if files[name]:
            fields[name] = _input_image(files[name][0], name)
    return parse_fields(fields, EditRequest)


def _set_field(fields: dict[str, Any], name: str, text: str) -> bool:
    """Store a text field, `svg[reasoning][effort]` as nested objects; False if already set."""
    first, *nested = re.split(r"[\[\]]+", name.removesuffix("]"))
    for inner in nested:
        fields = fields.setdefault(first, {})
        if not isinstance(fields, dict):
            return False
        first = inner
    if first in fields:
        return False
    fields[first] = _typed(name, text)
    return True


def _typed(name: str, text: str) -> Any:
    """Convert the text of a field: to a boolean for `stream`, to a number for number fields."""
    if name == "stream":
        if text not in ("true", "false"):
            raise invalid("stream must be true or false", name)
        return text == "true"
    if name in _NUMBERS:
        if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
            raise invalid(f"{name} must be a whole number", name)
        return int(text)
    return text


def parse_edit_json(body: bytes) -> ParsedRequest:
    """Parse an edit in JSON; images are `data:` URLs in `image_url`.

    Raises:
        GatewayError: If the body is not valid, or names an image that is not in it.
    """
    fields = parse_json(body)
    references = fields.pop("images", None)
    if not isinstance(references, list) or not references:
        raise invalid("images is required: a list of {image_url} or {file_id}", "images")
    fields["image"] = tuple(_referenced_image(each, "image") for each in references)
    for name in _SINGLE_FILES:
        if name in fields:
            fields[name] = _referenced_image(fields[name], name)
    return parse_fields(fields, EditRequest)


def _referenced_image(reference: object, param: str) -> InputImage:
    if not isinstance(reference, dict) or not reference.keys() & {"image_url", "file_id"}:
        raise invalid(f"{param} must be an object with image_url or file_id", param)
    url = reference.get("image_url")
    if url is None:
        message = (
            "The local server has no files; send a data: URL in image_url instead of a file_id"
        )
        raise rejected_upstream(message, "file_not_found", param)
    if not isinstance(url, str):
        raise invalid("image_url must be a string", param)
    if not url.startswith("data:"):
        message = "The local server downloads nothing; send a data: URL in image_url"
        raise rejected_upstream(message, "invalid_image_url", param)
    head, _, data = url.partition(",")
    try:
        content = pybase64.b64decode(data, validate=True) if head.endswith(";base64") else b""
    except (binascii.Error, ValueError):
        content = b""
    return _input_image(FormPart(param, param, "", content), param)


def _input_image(part: FormPart, param: str) -> InputImage:
    image = inspect(
        part.content[:HEAD],
        size=len(part.content),
        name=part.filename or "image",
        source=part.content,
    )
    if not image.media_type.startswith("image/"):
        raise unreadable(param)
    return image
