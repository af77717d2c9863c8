"""Conversion of input items into requests: prompts, requests, mappings, and rows of tables."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.requests import (
    INPUT_FIELDS,
    EditRequest,
    GenerateRequest,
    ImageRequest,
    make_edit,
    make_request,
)

ID_FIELDS = ("id", "custom_id")
OWN_FIELDS = (*ID_FIELDS, "metadata")
"""Fields of a row that identify it; they are returned with its result and never sent."""

_KINDS: tuple[type[ImageRequest], ...] = (GenerateRequest, EditRequest)
_TYPES = {field.name: field.type for kind in _KINDS for field in msgspec.structs.fields(kind)}
FIELDS = tuple(_TYPES)
"""The fields of requests."""
INTEGER_FIELDS = {name for name, kind in _TYPES.items() if kind in (int, int | None)}
OBJECT_FIELDS = {"extra_body", "metadata", "svg"}
_NUMBER = re.compile(r"\s*([+-]?\d{1,18})(?:\.0*)?\s*")
_KEPT = (bytes, date, datetime, time, timedelta, Decimal, UUID)
"""Types in metadata that JSON can encode, and that are returned as they are."""
_MISSING = ("NAType", "NaTType")  # pandas' own markers, which need no import to be recognised


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the input.

    `id` and `metadata` identify it for the user. `fields` are those of its request, cleaned; `kind`
    is the class of that request. `problem` is the error that makes it unreadable, or None.
    """

    fields: dict[Any, Any]
    kind: type[ImageRequest] = GenerateRequest
    id: str | int | None = None
    metadata: dict[str, Any] | None = None
    problem: InvalidRequestError | None = None

    def request(self, defaults: Mapping[str, Any]) -> GenerateRequest | EditRequest:
        """Return the request; `defaults` apply where the row has no value.

        Raises:
            InvalidRequestError: If a field is unknown, missing or of the wrong type.
        """
        if self.problem is not None:
            raise self.problem
        known = self.kind.__struct_fields__
        fields = {name: value for name, value in defaults.items() if name in known} | self.fields
        if self.kind is GenerateRequest:
            return make_request(fields, {})
        return make_edit(fields, {})


def read_row(item: Any) -> Row:
    """Return an item of the input as a row; if it is invalid, `problem` says why."""
    kind: type[ImageRequest] | None = None
    match item:
        case InvalidRequestError():
            return Row(fields={}, problem=item)
        case ImageRequest():
            kind, fields = type(item), msgspec.structs.asdict(item)
        case _ if callable(getattr(item, "keys", None)) and hasattr(item, "__getitem__"):
            fields = {name: item[name] for name in item.keys()}  # noqa: SIM118 - sqlite3.Row
        case _:
            fields = {"prompt": item}
    own = {name: fields.pop(name, None) for name in OWN_FIELDS} if kind is None else {}
    row_id = first_id([own.get(name) for name in ID_FIELDS])
    try:
        metadata = _metadata(own.get("metadata"))
        cleaned = {name: clean(name, value) for name, value in fields.items()}
    except InvalidRequestError as error:
        return Row(fields={}, id=row_id, problem=error)
    present = {name: value for name, value in cleaned.items() if value is not None}
    if kind is None:
        kind = EditRequest if "image" in present else GenerateRequest
    return Row(fields=present, kind=kind, id=row_id, metadata=metadata)


def has_inputs(item: Any) -> bool:
    """Return whether an item is an edit, which is identified by the content of its files."""
    if isinstance(item, ImageRequest):
        return isinstance(item, EditRequest)
    return callable(getattr(item, "keys", None)) and "image" in list(item.keys())


def clean(name: Any, value: Any) -> Any:
    """Return the value of a field as plain data; None if it is missing.

    Tables have NaN for missing values, their own number types, 2.0 for 2 in a column with gaps, and
    nothing but text if they come from CSV.
    """
    if name in INPUT_FIELDS:  # files, which are passed on unchanged
        return None if _is_missing(value) else value
    value = _plain(value)
    if isinstance(value, str) and name != "prompt":
        if _is_missing(value):
            return None
        if name in INTEGER_FIELDS and (number := _NUMBER.fullmatch(value)):
            return int(number[1])
        return _read_json(name, value) if name in OBJECT_FIELDS else value
    if name in INTEGER_FIELDS and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _plain(value: Any) -> Any:
    """Return NumPy numbers as Python numbers, and NaN and pandas' missing values as None."""
    if type(value).__name__ in _MISSING:
        return None
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_missing(value: Any) -> bool:
    return (isinstance(value, str) and not value.strip()) or _plain(value) is None


def first_id(values: Iterable[Any]) -> Any:
    """Return the first value that is not missing as an id, an int or str; None without one."""
    value = next((_plain(value) for value in values if not _is_missing(value)), None)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) in (str, int, type(None)) else str(value)


def _metadata(value: Any) -> dict[str, Any] | None:
    value = clean("metadata", value)
    if value is None:
        return None
    try:
        if isinstance(value, Mapping) or hasattr(value, "keys"):
            fields = {name: value[name] for name in value.keys()}  # noqa: SIM118 - pandas.Series
            plain = msgspec.to_builtins(fields, enc_hook=encode_plain, builtin_types=_KEPT)
            metadata: dict[str, Any] = plain
            msgspec.json.encode(metadata)
            return metadata
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        pass
    raise InvalidRequestError("metadata must be a mapping of plain data.", param="metadata")


def encode_plain(value: Any) -> Any:
    """Return values of NumPy and pandas, and paths, as plain data; an `enc_hook` for msgspec."""
    plain = _plain(value)
    if plain is not value:
        return plain
    if isinstance(value, datetime):  # pandas.Timestamp
        return datetime.combine(value.date(), value.timetz())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not plain data")


def _read_json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise InvalidRequestError(
            f"{name} must be an object, or the JSON text of one.", param=name
        ) from None
