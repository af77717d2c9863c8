"""Request headers set by the user, and interpretation of response headers."""

import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio import encode
from elkimg_async.sansio import headers as response_headers
from elkimg_async.sansio.headers import (
    check_headers,
    rate_limit,
    request_id,
    retry_after,
    with_headers,
)
from elkimg_async.sansio.requests import GenerateRequest
from elkimg_async.sansio.responses import RateLimit

NOW = 1_700_000_000.0


def test_check_headers() -> None:
    """Headers are any mapping of strings; None means none."""
    assert check_headers(None) == {}
    headers = {"X-Trace": "1\t2", "x_y": "", "Accept": "é", "!#$%&'*+.^`|~": "x"}
    checked = check_headers(headers)
    assert checked == headers
    assert checked is not headers


@pytest.mark.parametrize(
    "headers",
    [
        5,
        "X: 1",
        [("X", "1")],
        {"X": 1},
        {"X": None},
        {1: "x"},
        {"": "x"},
        {"X Y": "1"},
        {"X:": "1"},
        {"X\n": "1"},
        {"é": "1"},
        {"X": "1\r\nY: 2"},
        {"X": "1\n"},
        {"X": "\0"},
        {"X": "\x7f"},
        {"Authorization": "Bearer x"},
        {"aUTHORIZATION": "x"},
        {"content-Length": "1"},
        {"Transfer-Encoding": "chunked"},
        {"X": "\ud800"},
    ],
    ids=repr,
)
def test_check_headers_rejects(headers: Any) -> None:
    """Headers that cannot be sent, and the API key's, are rejected."""
    with pytest.raises(InvalidRequestError, match="extra headers are not valid") as caught:
        check_headers(headers)
    assert caught.value.param == "extra_headers"
    assert "Bearer" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "length"),
    [("12", 12), (None, 0), ("", 0), ("-1", 0), ("1e3", 0), ("²", 0), ("9" * 30, 0)],
)
def test_length(said: str | None, length: int) -> None:
    """A Content-Length is used if it is a valid number."""
    assert (
        response_headers.content_length({} if said is None else {"content-length": said}) == length
    )


def test_with_headers() -> None:
    """The user's headers replace ours in any case, in a new request."""
    request = encode.generate(GenerateRequest(prompt="a"), stream=False)
    assert with_headers(request, {}) is request
    changed = with_headers(request, {"ACCEPT": "x", "user-agent": "y", "X-A": "1"})
    assert changed.headers == {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "ACCEPT": "x",
        "user-agent": "y",
        "X-A": "1",
    }
    assert changed.body == request.body
    assert request.headers["Accept"] == "application/json"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"x-oneapi-request-id": "g", "x-request-id": "u"}, "g"),
        ({"x-request-id": "u"}, "u"),
        ({"x-oneapi-request-id": "", "x-request-id": "u"}, "u"),
        ({"x-request-id": ""}, None),
    ],
)
def test_request_id(headers: dict[str, str], expected: str | None) -> None:
    """The gateway's request id takes precedence over the upstream's."""
    assert request_id(headers) == expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0"}, 0.0),
        ({"retry-after-ms": "20", "retry-after": "7"}, 0.02),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "", "retry-after": "7"}, 7.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.25"}, 1.25),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW + 90)}, 90.0),
        ({"retry-after": "Tuesday, 14-Nov-23 22:14:50 GMT"}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:50 +0900"}, 0.0),
        ({"retry-after": ""}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Tue, 41 Nov 2023 22:14:50 GMT"}, None),
        ({"retry-after": "Tue, 14 Nov 99999 22:14:50 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds take precedence over seconds and dates; invalid values are ignored."""
    assert retry_after(headers, NOW) == seconds


def test_retry_after_date_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date in C's old form is in UTC, whatever the local time zone (RFC 9110, 5.6.7)."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after({"retry-after": "Tue Nov 14 22:14:50 2023"}, NOW) == 90.0
    finally:
        monkeypatch.undo()
        time.tzset()


@settings(max_examples=100)
@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["Tue", ",", "14", "Nov", "2023", ":", "99", "-", "("]), max_size=9)
    .map(" ".join)
)  # fmt: skip
def test_retry_after_of_any_text(text: str) -> None:
    """Any text is seconds that are not negative, or None."""
    seconds = retry_after({"retry-after": text}, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m30s", 390.0),
        ("20ms", 0.02),
        ("1h2m3s", 3723.0),
        ("1d", 86400.0),
        ("0.5s", 0.5),
        ("1m0.5s", 60.5),
        (" 1s ", 1.0),
        ("0s", 0.0),
        ("7", 7.0),
        ("7.5", 7.5),
        ("0", 0.0),
        ("", None),
        ("s", None),
        ("1x", None),
        ("-1s", None),
        ("1 s", None),
        ("1s!", None),
        ("1s1", None),
        ("soon", None),
        ("1700000012", 12.0),
        ("1700000012.5", 12.5),
        ("1700000012000", 12.0),
        ("1699999990", 0.0),
        ("2023-11-14T22:13:32Z", 12.0),
        ("2023-11-14T22:13:32.500+00:00", 12.5),
        ("2023-11-14T23:13:32+01:00", 12.0),
        ("2023-11-14T22:13:32", 12.0),
        ("2023-11-14T22:13:00Z", 0.0),
        ("2023-99-14T22:13:00Z", None),
    ],
)
def test_rate_limit_resets(text: str, seconds: float | None) -> None:
    """A reset is a duration in words, seconds, or a point in time: an epoch or an ISO date."""
    headers = {"x-ratelimit-reset-requests": text, "x-ratelimit-reset-tokens": "1ms"}
    expected = RateLimit(reset_requests=seconds, reset_tokens=0.001)
    assert rate_limit(headers, NOW) == expected


def test_rate_limit() -> None:
    """Each of the six headers is optional; without any of them there is no snapshot."""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "x",
    }
    assert rate_limit(headers, NOW) == RateLimit(
        limit_requests=60, remaining_requests=59, reset_requests=1.0, limit_tokens=150_000
    )
    assert rate_limit({}, NOW) is None
    assert rate_limit({"retry-after": "1"}, NOW) is None
    assert rate_limit({"x-ratelimit-limit-tokens": "-5"}, NOW) == RateLimit()
