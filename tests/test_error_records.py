"""Errors as plain data."""

import msgspec
import pytest

from elkimg_async import (
    APIError,
    DownloadError,
    InvalidRequestError,
    ModerationError,
    RequestTimeoutError,
    errors,
)
from elkimg_async.error_records import read_error, write_error


@pytest.mark.parametrize(
    "error",
    [
        ModerationError(
            "no", status=400, code="moderation_blocked", request_id="r", param="prompt"
        ),
        APIError("busy", status=503, retry_after=1.5, headers={"a": "b"}, body={"secret": 1}),
        RequestTimeoutError("late", limit="total", phase="body", billing="unknown"),
        DownloadError("gone", url="http://h/1", status=404),
        InvalidRequestError("wrong", param="n"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_round_trip(error: errors.ElkImagesError) -> None:
    """A stored error is restored with its type and its plain fields.

    Bodies and headers are left out.
    """
    written = msgspec.json.decode(msgspec.json.encode(write_error(error)))
    again = read_error(written, attempts=3)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.billing, again.request_id, again.attempts) == (error.billing, error.request_id, 3)
    assert getattr(again, "code", None) == getattr(error, "code", None)
    assert getattr(again, "limit", None) == getattr(error, "limit", None)
    assert b"secret" not in msgspec.json.encode(written)


@pytest.mark.parametrize("name", ["Billing", "Exception", "os", "NoSuchError", 7])
def test_error_of_an_unknown_type(name: object) -> None:
    """An unknown class name in a journal becomes the base class of errors."""
    assert type(read_error({"error": name, "message": "x"}, attempts=0)) is errors.ElkImagesError
