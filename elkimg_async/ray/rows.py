"""The request of a row, and the columns of its result."""

import decimal
import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from elkimg_async.batch.rows import FIELDS, first_id, read_row
from elkimg_async.errors import ElkImagesError
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.sansio.responses import Usage

POSITION = "elkimg_position"
"""The column that `generate_dataset` adds for rows without an id; it is removed again."""

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
    "cost": "money",
    "currency": "text",
    "idempotency_key": "text",
}
"""The columns that are added, and their types."""
MONEY_DIGITS, MONEY_PLACES = 38, 18
"""The digits of an amount in Arrow's decimal type, and those of them after the point."""
_WITH_FOLDER, _WITHOUT_FOLDER = {"paths", "resumed"}, {"images"}


class RowResult(msgspec.Struct, kw_only=True):
    """The result of one row; `elapsed` is in seconds, including the wait for a turn."""

    id: str
    idempotency_key: str | None = None
    error: ElkImagesError | None = None
    images: Sequence[bytes] = ()
    paths: Sequence[str] = ()
    urls: Sequence[str] = ()
    resumed: bool = False
    usage: Usage | None = None
    cost: Decimal | None = None
    currency: str | None = None
    request_id: str | None = None
    attempts: int = 0
    elapsed: float = 0.0

    def column(self, name: str) -> Any:
        """Return the value of one of `COLUMNS`."""
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
            case "input_tokens" | "output_tokens" | "total_tokens":
                return None if self.usage is None else getattr(self.usage, name)
            case "cost":
                return _fixed(self.cost)
        return getattr(self, name)


def _fixed(cost: Decimal | None) -> Decimal | None:
    """Return an amount with all decimal places of the column; None if it does not fit."""
    if cost is None:
        return None
    context = decimal.Context(prec=MONEY_DIGITS, traps=[decimal.InvalidOperation])
    try:
        return cost.quantize(Decimal(1).scaleb(-MONEY_PLACES), context=context)
    except decimal.InvalidOperation:
        return None


def read_request(
    row: Mapping[str, Any], prompt_column: str, defaults: Mapping[str, Any]
) -> GenerateRequest | EditRequest:
    """Return the request of a row: its own columns, then `defaults`; null and NaN are not set.

    Raises:
        InvalidRequestError: If a value has the wrong type, or the prompt is missing.
    """
    own = {name: _without_gaps(row[name]) for name in FIELDS if name in row and name != "prompt"}
    return read_row({**own, "prompt": row.get(prompt_column)}).request(defaults)


def _without_gaps(value: Any) -> Any:
    """Drop the nulls of an object, since Arrow adds the fields of a column to all its objects."""
    if not isinstance(value, dict):
        return value
    return {name: _without_gaps(inner) for name, inner in value.items() if inner is not None}


def read_id(row: Mapping[str, Any], id_column: str) -> str:
    """Return the id of a row: its own, else one derived from content and position."""
    own = first_id([row.get(id_column)])
    if own is not None:
        return str(own)
    content = {name: value for name, value in row.items() if name != POSITION}
    return f"{_digest(repr(sorted(content.items())))[:16]}-{row.get(POSITION, 0):x}"


def make_idempotency_key(run: str, row_id: str, hash: str) -> str:
    """Return the Idempotency-Key of a row, from the run, the row and its request's fingerprint."""
    return _digest("\n".join((_digest(run), _digest(row_id), hash)))[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def columns_for(*, folder: bool) -> list[str]:
    """Return the names of the columns, for images in a folder or in the dataset."""
    hidden = _WITHOUT_FOLDER if folder else _WITH_FOLDER
    return [name for name in COLUMNS if name not in hidden]
