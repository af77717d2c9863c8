"""Direct reading of responses and events in the documented form, which most servers send.

A document is only read here if every field of it is documented and has its usual type, so that no
image can be anywhere else. Any other document takes the search, whose result is the same for these.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from elkimg_async.image import Image
from elkimg_async.sansio.events import event_of
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.reading import read_str
from elkimg_async.sansio.responses import COMPLETED_TYPES, CompletedImage, PartialImage
from elkimg_async.sansio.signatures import is_image

_Word = Annotated[str, msgspec.Meta(pattern=r"^\w{1,15}\Z")]  # neither an address nor base64


class _DocumentedFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    size: _Word | None = None
    quality: _Word | None = None
    background: _Word | None = None
    output_format: _Word | None = None
    usage: dict[str, Any] | None = None


class _DocumentedItem(msgspec.Struct, forbid_unknown_fields=True):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _DocumentedResponse(_DocumentedFields):
    data: list[_DocumentedItem]
    created: int | None = None


class _DocumentedEvent(_DocumentedFields):
    type: Literal[
        "image_generation.partial_image", "image_generation.completed",
        "image_edit.partial_image", "image_edit.completed",
    ]  # fmt: skip
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    created_at: int | None = None
    partial_image_index: int | None = None


def read_documented(document: Document, name: str) -> list[PartialImage | CompletedImage]:
    """Return the events of a document in the documented form; an empty list for any other.

    `name` is that of its `event:` line.
    """
    try:
        if isinstance(document.value, dict) and "data" in document.value:
            return [] if name else _read_response(document)
        return _read_event(document, name)
    except (msgspec.ValidationError, UnicodeError):
        return []


def _read_response(document: Document) -> list[PartialImage | CompletedImage]:
    response = msgspec.convert(document.value, _DocumentedResponse)
    images = [_read_image(document, item) for item in response.data]
    around = _around(document, images)
    return [
        event_of(COMPLETED_TYPES[0], image, (document.value,), document=around)
        for image in images
        if image is not None and None not in images
    ]


def _read_event(document: Document, name: str) -> list[PartialImage | CompletedImage]:
    event = msgspec.convert(document.value, _DocumentedEvent)
    image = _read_image(document, event)
    if image is None or name not in ("", "message", event.type):
        return []
    is_completed = event.type in COMPLETED_TYPES
    unusual = event.partial_image_index if is_completed else event.usage
    if unusual is not None:
        return []
    around = _around(document, [image])
    return [event_of(event.type, image, (document.value,), document=around)]


def _around(document: Document, images: Sequence[Image | None]) -> Document | None:
    """Return the document if it has base64 elsewhere than in its images, which is rare."""
    inside = sum(image is not None and image.content is not None for image in images)
    return document if len(document.images) > inside else None


def _read_image(document: Document, item: _DocumentedItem | _DocumentedEvent) -> Image | None:
    decoded = document.images.get(item.b64_json or "")
    content = decoded if isinstance(decoded, bytes) and is_image(decoded) else None
    is_url = item.url is not None and item.url.startswith(("https://", "http://"))
    url = read_str(item.url.strip()) if item.url and is_url else None
    is_complete = bool(item.b64_json) == (content is not None) and bool(item.url) == is_url
    if not is_complete or (content is None and url is None):
        return None
    return Image(content, url=url, revised_prompt=read_str(item.revised_prompt))
