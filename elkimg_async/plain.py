"""Plain data, as JSON has it, for the `to_dict` of results and errors."""

import dataclasses
import functools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def to_plain(value: Any, *, images: bool) -> Any:
    """Return a field as plain data; `images=False` omits the base64 content of images."""
    if isinstance(value, (list, tuple)):
        return [to_plain(item, images=images) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Decimal):
        return str(value)
    to_dict = getattr(value, "to_dict", None)
    if to_dict is not None:
        return to_dict(images=images)
    return dict(value) if isinstance(value, Mapping) else value


def class_name(value: object) -> str:
    """Return the name of the class."""
    return type(value).__name__


def encoded_fields(error: Any) -> dict[str, Any]:
    """Return the `__dataclass_fields__` by which msgspec, `asdict` and FastAPI encode an error."""
    return _dataclass_fields(*error.to_dict(images=False))


@functools.lru_cache(maxsize=256)
def _dataclass_fields(*names: str) -> dict[str, Any]:
    fields = dataclasses.fields(dataclasses.make_dataclass("Fields", names))
    return {field.name: field for field in fields}
