"""What a row asks for, and the columns that say what became of it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from elkimg_async.errors import ElkImagesError, InvalidRequestError
from elkimg_async.sansio.requests import GenerateRequest, make_request
from elkimg_async.sansio.responses import Usage

POSITION = "elkimg_position"
"""The column that `generate_dataset` adds for rows without an id; it is taken away again."""

FIELDS = GenerateRequest.__struct_fields__
COLUMNS = {
    "ok": "bool",
    "images": "bytes list",
    "paths": "text list",
    "resumed": "bool",
    "urls": "text list",
    "error": "text",
    "error_message": "text",
    "billing": "text",
    "request_id": "text",
    "attempts": "whole",
    "elapsed": "number",
    "input_tokens": "number",
    "output_tokens": "number",
    "total_tokens": "number",
    "idempotency_key": "text",
}
"""The columns that are added, and what is in them."""
_WITH_FOLDER, _WITHOUT_FOLDER = {"paths", "resumed"}, {"images"}


class RowResult(msgspec.Struct, kw_only=True):
    """What became of one row; `elapsed` is in seconds, the wait for a turn included."""

    id: str
    key: str | None = None
    error: ElkImagesError | None = None
    images: Sequence[bytes] = ()
    paths: Sequence[str] = ()
    urls: Sequence[str] = ()
    resumed: bool = False
    usage: Usage | None = None
    request_id: str | None = None
    attempts: int = 0
    elapsed: float = 0.0

    def column(self, name: str) -> Any:
        """What stands in one of `COLUMNS`."""
        error = self.error
        match name:
            case "ok":
                return error is None
            case "images" | "paths" | "urls":
                return list(getattr(self, name))
            case "error":
                return None if error is None else type(error).__name__
            case "error_message":
                return None if error is None else str(error)
            case "billing":
                return "billed" if error is None else error.billing
            case "idempotency_key":
                return self.key
            case "input_tokens" | "output_tokens" | "total_tokens":
                return None if self.usage is None else getattr(self.usage, name)
        return getattr(self, name)


def read_request(
    row: Mapping[str, Any], prompt_column: str, defaults: Mapping[str, Any]
) -> GenerateRequest:
    """The request of a row: its own columns, then `defaults`; what is null or NaN is not there.

    Raises:
        InvalidRequestError: by whoever made the row.
    """
    own = {name: _value(row[name]) for name in FIELDS if name in row and name != "prompt"}
    if isinstance(text := own.get("extra_body"), str):
        own["extra_body"] = _read_json(text)
    fields = {name: value for name, value in own.items() if value is not None}
    return make_request({**defaults, **fields, "prompt": _value(row.get(prompt_column))}, {})


def _value(value: Any) -> Any:
    """A value as it was meant: a column with gaps turns 2 into 2.0, and merges the keys of objects."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return _without_gaps(value)
    return value


def _without_gaps(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_gaps(inner) if isinstance(inner, dict) else inner
        for name, inner in value.items()
        if inner is not None
    }


def _read_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise InvalidRequestError(
            "extra_body must be an object, or the JSON text of one.", param="extra_body"
        ) from None


def read_id(row: Mapping[str, Any], id_column: str) -> str:
    """The id of a row: its own, else one made of content and position."""
    if (given := _value(row.get(id_column))) is not None:
        return str(given)
    content = {name: value for name, value in row.items() if name != POSITION}
    return f"{_digest(repr(sorted(content.items())))[:16]}-{row.get(POSITION, 0):x}"


def make_key(run: str, row_id: str, mark: str) -> str:
    """The Idempotency-Key of a row, from the run, the row and its request's fingerprint."""
    return _digest("\n".join((_digest(run), _digest(row_id), mark)))[:32]


def file_stem(row_id: str) -> str:
    """The name of a row's files without extension: the id itself where every file system can take it."""
    plain = "".join(c if c in _PLAIN else "_" for c in row_id.lower())[:60]
    return row_id if plain == row_id and row_id else f"{plain}~{_digest(row_id)[:12]}"


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def columns_for(*, folder: bool) -> list[str]:
    """The names of the columns, for images in a folder or in the dataset."""
    hidden = _WITHOUT_FOLDER if folder else _WITH_FOLDER
    return [name for name in COLUMNS if name not in hidden]
