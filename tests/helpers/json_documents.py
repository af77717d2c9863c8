"""JSON documents with images, and a slow reference for decoding them."""

import base64
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from elkimg_async.sansio.base64_text import BadBase64
from elkimg_async.sansio.json_images import (
    Document,
    InvalidJSON,
    JSONDecoder,
)

IMAGE = b"\x89PNG\r\n\xfb\xef\xbe\xff\xff\xff>?>\xfb\xff\x00data:\xfb\xf0"
TEXT = base64.b64encode(IMAGE)
MEGABYTE = 1 << 20
places = st.lists(st.integers(0, 400), max_size=6)


def escaped(text: bytes, form: str = r"\u{:04x}") -> bytes:
    return "".join(form.format(code) for code in text).encode()


def document(chunks: Iterable[bytes]) -> Document:
    decoder = JSONDecoder()
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()


def resolved(found: Document) -> Any:
    """Return the document with its images in place, and one value for all broken ones."""

    def resolve(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: resolve(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if key == "b64_json" or (isinstance(value, str) and is_image(found, value, key)):
            image = found.decoded(value) if isinstance(value, str) and value else None
            return "bad" if isinstance(image, BadBase64) else image
        return value

    return resolve(found.value)


def is_image(found: Document, value: str, key: str) -> bool:
    """Return whether a string is a placeholder of an image, or a `data:` URL."""
    return value in found.images or (key == "url" and value[:5].lower() == "data:")


def outcome(chunks: Iterable[bytes]) -> Any:
    try:
        return resolved(document(chunks))
    except InvalidJSON:
        return InvalidJSON
