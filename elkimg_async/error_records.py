"""Errors as plain data, for the journals of runs and the stores of jobs."""

from collections.abc import Mapping
from typing import Any

from elkimg_async import errors
from elkimg_async.errors import ElkImagesError

_ERROR_FIELDS = [
    "message",
    "request_id",
    "billing",
    "param",
    "status",
    "code",
    "type",
    "retry_after",
    "phase",
    "limit",
    "url",
]


def write_error(error: ElkImagesError) -> dict[str, Any]:
    """Return an error as plain data, without body, headers and images."""
    fields = {name: getattr(error, name, None) for name in _ERROR_FIELDS}
    return {"error": type(error).__name__} | {k: v for k, v in fields.items() if v is not None}


def read_error(fields: Mapping[str, Any], *, attempts: int) -> ElkImagesError:
    """Return the error that `write_error` wrote."""
    name = fields.get("error")
    kind = getattr(errors, str(name)) if name in errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, ElkImagesError)):
        kind = ElkImagesError
    error = kind(str(fields.get("message", "")))
    error.attempts = attempts
    for name in _ERROR_FIELDS[1:]:
        if name in fields and hasattr(error, name):
            setattr(error, name, fields[name])
    return error
