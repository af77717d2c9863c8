"""Conversion of records of an input file into the mappings that `client.map` takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from elkimg_async import ImageReference
from elkimg_async.batch.rows import (
    FIELDS,
    ID_FIELDS,
    INTEGER_FIELDS,
    OBJECT_FIELDS,
    OWN_FIELDS,
)
from elkimg_async.sansio.requests import INPUT_FIELDS

_URL = re.compile(r"(https?://|data:)", re.IGNORECASE)
_PATHS = ("/images/generations", "/images/edits")


class RowError(Exception):
    """A record that cannot be sent; `column` is None if no single column is the cause."""

    def __init__(self, problem: str, column: str | None = None) -> None:
        super().__init__(problem)
        self.column = column


class RowReader:
    """Reader that turns records into requests: fields, numbers, files, ids and metadata.

    Args:
        folder: The folder that paths of images are relative to.
        keep: Columns that become metadata.
    """

    def __init__(self, folder: Path, keep: Sequence[str]) -> None:
        self._folder = folder
        self._keep = {normalise(name): name for name in keep}

    def name_column(self, header: str) -> str | None:
        """Return the field that a column sets; None for a column that is only kept.

        Raises:
            RowError: If it is unknown.
        """
        name = normalise(header)
        if name in FIELDS or name in OWN_FIELDS:
            return name
        if name in self._keep:
            return None
        raise RowError(f"unknown column {header!r}. {known_columns()}", header)

    def read(self, record: Any, *, cells: bool = False) -> dict[str, Any]:
        """Return the request of a record.

        Args:
            record: A string (a prompt) or a mapping of fields.
            cells: Whether all values are text, as in CSV.

        Raises:
            RowError: If the record is something else, or one of its values cannot be used.
        """
        if isinstance(record, str):
            record = {"prompt": record}
        if not isinstance(record, Mapping):
            raise RowError(f"expected an object or a string, found {_type_name(record)}")
        record, request, metadata = self._unwrap(record), {}, {}
        for header, value in record.items():
            if _missing(value):
                continue
            name = self.name_column(header)
            if (kept := self._keep.get(normalise(header))) is not None:
                metadata[kept] = value.strip() if isinstance(value, str) else value
            if name is None:
                continue
            if name in ID_FIELDS:
                name, value = "id", _read_id(value, header)
            elif name == "metadata":
                metadata.update(_read_object(value, header, text=cells))
                continue
            if name in request:
                raise RowError(f"there are two values for {name}", header)
            request[name] = self._read_value(name, value, header, cells)
        if metadata:
            request["metadata"] = metadata
        if "prompt" not in request:
            raise RowError("there is no prompt", "prompt")
        return request

    def _read_value(self, name: str, value: Any, header: str, cells: bool) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise RowError("there is a NUL; this is not text", header)
        if name in INPUT_FIELDS:
            return self._read_images(value, header)
        if name in INTEGER_FIELDS:
            return _read_integer(value, header)
        if name in OBJECT_FIELDS:
            return _read_object(value, header, text=cells)
        return value.strip() if cells else value

    def _read_images(self, value: Any, header: str) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _decode_json(value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self._read_image(item, header) for item in value]
        return self._read_image(value, header)

    def _read_image(self, value: Any, header: str) -> Any:
        if isinstance(value, Mapping):
            return _read_reference(value, header)
        if not isinstance(value, str):
            raise RowError(f"expected a file, found {_type_name(value)}", header)
        value = value.strip()
        if _URL.match(value):
            return value
        return str(self._folder / Path(value).expanduser())

    def _unwrap(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request inside a line of OpenAI's Batch format, else the record itself."""
        if not isinstance(body := record.get("body"), Mapping):
            return dict(record)
        method, url = record.get("method", "POST"), str(record.get("url", _PATHS[0]))
        if str(method).upper() != "POST":
            raise RowError(f"{method} requests do not create images; use POST", "method")
        if not url.rstrip("/").endswith(_PATHS):
            raise RowError(
                f"{url} does not create images; use /v1{_PATHS[0]} or /v1{_PATHS[1]}", "url"
            )
        if body.get("stream"):
            raise RowError("a batch cannot be streamed; omit stream", "stream")
        fields = {name: value for name, value in body.items() if name != "stream"}
        if "images" in fields:
            fields["image"] = fields.pop("images")
        outer = {
            name: value
            for name, value in record.items()
            if name not in ("body", "method", "url") and name not in fields
        }
        return {**outer, **fields}


def normalise(header: str) -> str:
    """Return a column's name in the spelling of fields: "Output Format" is output_format."""
    return re.sub(r"[\s-]+", "_", header.strip()).lower()


def find_id(record: Any) -> dict[str, Any]:
    """Return the id of a record that cannot be used, as a request with nothing else."""
    if isinstance(record, Mapping):
        for header, value in record.items():
            if normalise(header) in ID_FIELDS and not _missing(value):
                return {"id": value}
    return {}


def known_columns() -> str:
    """Return the sentence that lists the columns."""
    return (
        f"Known ones: id, {', '.join(FIELDS)}. Keep others with --keep NAME, or put fields of your "
        "server into extra_body."
    )


def _missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read_integer(value: Any, header: str) -> int:
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?\d{1,18}([.,]0+)?", text, re.ASCII):
            return int(re.split(r"[.,]", text)[0])
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    elif type(value) is int:
        return value
    raise RowError(f"expected a whole number, found {_shown(value)}", header)


def _read_id(value: Any, header: str) -> str | int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise RowError(f"expected text or a whole number, found {_type_name(value)}", header)


def _read_object(value: Any, header: str, *, text: bool) -> dict[str, Any]:
    found = _decode_json(value) if text or isinstance(value, str) else value
    if not isinstance(found, dict):
        raise RowError(f"expected a JSON object, found {_shown(value)}", header)
    return found


def _read_reference(value: Mapping[str, Any], header: str) -> Any:
    """Return an image in OpenAI's JSON form: a URL, or the id of a file on the server."""
    if isinstance(url := value.get("image_url") or value.get("url"), str):
        return url
    if isinstance(file_id := value.get("file_id"), str):
        return ImageReference(file_id=file_id)
    raise RowError("expected image_url or file_id", header)


def _decode_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, (str, int, float)) else _type_name(value)


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "null")
