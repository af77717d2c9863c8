"""What goes over the wire, and what an answer other than 2xx means."""

import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    InvalidRequestError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    ResponseError,
    ServerError,
)
from elkimg_async.sansio import encode, error_mapping
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


def sent(stream: bool = False, **fields: Any) -> dict[str, Any]:
    request = encode.generate(GenerateRequest(prompt="a", **fields), stream=stream)
    assert isinstance(request.body, bytes)
    value = json.loads(request.body)
    assert isinstance(value, dict)
    return value


# Requests


def test_generate_sends_what_is_set() -> None:
    """What is unset is not sent, the model always is, and numbers are numbers."""
    assert sent() == {"prompt": "a", "model": "gpt-image-1.5"}
    fields: dict[str, Any] = {
        "model": "m",
        "n": 2,
        "size": "1x1",
        "quality": "q",
        "background": "b",
        "moderation": "low",
        "style": "s",
        "user": "",
        "output_format": "png",
        "output_compression": 0,
        "partial_images": 0,
        "response_format": "url",
    }
    assert sent(**fields) == {"prompt": "a", **fields}
    body = encode.generate(GenerateRequest(prompt="é\n\U0001f431", n=1), stream=False).body
    assert body == '{"prompt":"é\\n\U0001f431","n":1,"model":"gpt-image-1.5"}'.encode()


def test_generate_stream_is_a_boolean() -> None:
    """`stream` is a JSON boolean, and left out of a batch call."""
    assert sent(stream=True)["stream"] is True
    assert "stream" not in sent()


@pytest.mark.parametrize(
    ("model", "stream", "asked", "expected"),
    [
        (None, True, None, 1),
        ("gpt-image-1", True, None, 1),
        ("gpt-image-9", True, None, 1),
        ("gpt-image-1", True, 0, 0),
        ("gpt-image-1", True, 3, 3),
        ("gpt-image-1", False, None, None),
        ("gpt-image-1", False, 0, 0),
        ("dall-e-3", True, None, None),
        ("flux", True, None, None),
        ("flux", True, 2, 2),
    ],
)
def test_generate_partial_images(
    model: str | None, stream: bool, asked: int | None, expected: int | None
) -> None:
    """A stream from a GPT image model asks for one partial image, unless told otherwise."""
    assert sent(stream, model=model, partial_images=asked).get("partial_images") == expected


def test_generate_extra_body_wins() -> None:
    """`extra_body` adds keys, and replaces ours."""
    extra = {"seed": 1, "n": "2", "stream": "false", "partial_images": None, "x": {"y": [1, None]}}
    found = sent(stream=True, n=1, size="1x1", extra_body=extra)
    assert found == {"prompt": "a", "model": "gpt-image-1.5", "size": "1x1", **extra}
    assert sent(extra_body={}) == sent()
    assert sent(stream=True, extra_body={"model": "flux"})["model"] == "flux"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("key", [None, "k-1"])
def test_generate_headers(key: str | None, stream: bool) -> None:
    """The head says what is sent and what is accepted, and has the idempotency key if there is one."""
    request = encode.generate(GenerateRequest(prompt="a"), stream=stream, key=key)
    assert (request.method, request.path) == ("POST", "/images/generations")
    expected = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream" if stream else "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "elkimg_async",
    }
    assert request.headers == (expected if key is None else {**expected, "Idempotency-Key": key})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a\ud800"}, "prompt"),
        ({"user": "\udcff"}, "user"),
        ({"extra_body": {"a": 1, "b": frozenset}}, "b"),
        ({"extra_body": {"b": {"c": [1, {2, object()}]}}}, "b"),
        ({"extra_body": {"b": 1j}}, "b"),
    ],
)
def test_generate_what_json_cannot_hold(fields: dict[str, Any], param: str) -> None:
    """Text and data that JSON cannot hold are refused by name."""
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON") as caught:
        encode.generate(GenerateRequest(**{"prompt": "a", **fields}), stream=False)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_generate_with_a_loop_in_extra_body() -> None:
    """Data that holds itself is refused."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidRequestError, match="seed"):
        sent(extra_body={"seed": loop})


def test_generate_with_a_key_that_is_not_unicode() -> None:
    """A key of `extra_body` that JSON cannot hold is refused like a value."""
    with pytest.raises(InvalidRequestError, match="JSON"):
        sent(extra_body={"\ud800": 1})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_generate_with_what_is_no_number(number: float) -> None:
    """NaN and infinity, which JSON does not have, are refused and not sent as null."""
    with pytest.raises(InvalidRequestError, match="JSON"):
        sent(extra_body={"seed": number})


# Headers


def test_check_headers() -> None:
    """Headers of the caller's own are any mapping of strings; None means none."""
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
def test_check_headers_refuses(headers: Any) -> None:
    """What no header can hold, and the key, is refused."""
    with pytest.raises(InvalidRequestError, match="extra headers are wrong") as caught:
        check_headers(headers)
    assert caught.value.param == "extra_headers"
    assert "Bearer" not in str(caught.value)


def test_message() -> None:
    """A request as HTTP/1.1 writes it, with the body right behind the head."""
    request = encode.generate(GenerateRequest(prompt="é"), stream=False)
    headers = {**request.headers, "X-A": "ü", "Content-Length": "38"}
    sent = encode.message(request, "/v1/images/generations?a=1", "[::1]:80", headers)
    assert sent.decode() == (
        "POST /v1/images/generations?a=1 HTTP/1.1\r\nHost: [::1]:80\r\n"
        "Content-Type: application/json\r\nAccept: application/json\r\n"
        "Accept-Encoding: identity\r\nUser-Agent: elkimg_async\r\nX-A: ü\r\nContent-Length: 38\r\n\r\n"
        '{"prompt":"é","model":"gpt-image-1.5"}'
    )
    assert encode.message(encode.get("*/*"), "/", "a", {}) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_message_to_a_host_of_the_callers_own() -> None:
    """A Host that the caller gives, in whatever case, is the only one."""
    headers = check_headers({"hOST": "other"})
    sent = encode.message(encode.get("*/*"), "/", "a", headers)
    assert sent == b"GET / HTTP/1.1\r\nHost: other\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "length"),
    [("12", 12), (None, 0), ("", 0), ("-1", 0), ("1e3", 0), ("²", 0), ("9" * 30, 0)],
)
def test_length(said: str | None, length: int) -> None:
    """The length that a body says it has, where that is a number that can be."""
    assert response_headers.length({} if said is None else {"content-length": said}) == length


def test_with_headers() -> None:
    """The caller's headers replace ours whatever their case, and leave the request as it was."""
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
    """The gateway's name for a request goes before the upstream's."""
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
    """Milliseconds go before seconds and dates; nonsense is as good as nothing."""
    assert retry_after(headers, NOW) == seconds


def test_retry_after_date_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A date in C's old form is in UTC, wherever the client stands (RFC 9110, 5.6.7)."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after({"retry-after": "Tue Nov 14 22:14:50 2023"}, NOW) == 90.0
    finally:
        monkeypatch.undo()
        time.tzset()


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["Tue", ",", "14", "Nov", "2023", "22", ":", "99", "GMT", "+", "-", "0000", "("]), max_size=9)
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
    ],
)
def test_rate_limit_durations(text: str, seconds: float | None) -> None:
    """A reset is a duration in words, or a plain number of seconds."""
    headers = {"x-ratelimit-reset-requests": text, "x-ratelimit-reset-tokens": "1ms"}
    expected = RateLimit(reset_requests=seconds, reset_tokens=0.001)
    assert rate_limit(headers) == expected


def test_rate_limit() -> None:
    """The six headers are read each for itself; without any of them there is no snapshot."""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "x",
    }
    assert rate_limit(headers) == RateLimit(
        limit_requests=60, remaining_requests=59, reset_requests=1.0, limit_tokens=150_000
    )
    assert rate_limit({}) is None
    assert rate_limit({"retry-after": "1"}) is None
    assert rate_limit({"x-ratelimit-limit-tokens": "-5"}) == RateLimit()


# Errors


def error_of(status: int, body: bytes | str = b"", **headers: str) -> APIError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body.encode() if isinstance(body, str) else body
    found = error_mapping.read_error(status, named, raw, now=NOW)
    assert isinstance(found, APIError)
    assert found.status == status
    return found


def api_body(code: Any, message: str = "no", **more: Any) -> str:
    return json.dumps({"error": {"message": message, "code": code, **more}}, ensure_ascii=False)


ROWS: list[tuple[str, int, str, type[APIError], str | None, str]] = [
    ("key missing", 401, api_body(""), AuthenticationError, None, "refused"),
    ("key refused upstream", 401, api_body("invalid_api_key"), AuthenticationError, "invalid_api_key", "refused"),
    ("balance", 403, api_body("insufficient_user_quota"), QuotaExceededError, "insufficient_user_quota", "refused"),
    ("token quota", 403, api_body("pre_consume_token_quota_failed"), QuotaExceededError, "pre_consume_token_quota_failed", "refused"),
    ("not allowed", 403, api_body(""), PermissionDeniedError, None, "refused"),
    ("access denied", 403, api_body("access_denied"), PermissionDeniedError, "access_denied", "refused"),
    ("validation", 500, api_body("invalid_request"), BadRequestError, "invalid_request", "refused"),
    ("validation by type", 500, api_body(None, type="invalid_request"), BadRequestError, None, "refused"),
    ("model unknown", 503, api_body("model_not_found"), NotFoundError, "model_not_found", "refused"),
    ("body too large", 413, api_body("read_request_body_failed"), BadRequestError, "read_request_body_failed", "refused"),
    ("body too large as 400", 400, api_body("read_request_body_failed"), BadRequestError, "read_request_body_failed", "refused"),
    ("rate limit", 429, api_body(""), RateLimitError, None, "refused"),
    ("rate limit, empty", 429, "", RateLimitError, None, "refused"),
    ("not received in time", 408, "", BadRequestError, None, "refused"),
    ("too early", 425, "", BadRequestError, None, "refused"),
    ("conflict", 409, api_body("idempotency_in_flight"), BadRequestError, "idempotency_in_flight", "refused"),
    ("quota upstream", 429, api_body("insufficient_quota"), QuotaExceededError, "insufficient_quota", "refused"),
    ("quota by type", 429, api_body(None, type="insufficient_quota"), QuotaExceededError, None, "refused"),
    ("overload", 503, api_body("system_cpu_overloaded"), ServerError, "system_cpu_overloaded", "refused"),
    ("overload as a page", 503, "<html>busy</html>", ServerError, None, "refused"),
    ("overload, empty", 503, "", ServerError, None, "refused"),
    ("upstream unreachable", 500, api_body("do_request_failed"), ServerError, "do_request_failed", "refused"),
    ("upstream unreadable", 500, api_body("bad_response_body"), ServerError, "bad_response_body", "unknown"),
    ("upstream unread", 500, api_body("read_response_body_failed"), ServerError, "read_response_body_failed", "unknown"),
    ("moderation", 400, api_body("moderation_blocked"), ModerationError, "moderation_blocked", "refused"),
    ("policy", 400, api_body("content_policy_violation"), ModerationError, "content_policy_violation", "refused"),
    ("filter", 400, api_body("content_filter"), ModerationError, "content_filter", "refused"),
    ("filter by type", 400, api_body("", type="content_filter"), ModerationError, None, "refused"),
    ("filter as 500", 500, api_body("content_filter"), ModerationError, "content_filter", "refused"),
    ("bad gateway", 502, "<html>", ServerError, None, "unknown"),
    ("bad gateway as JSON", 502, api_body("x"), ServerError, "x", "unknown"),
    ("gateway time-out", 504, "", ServerError, None, "unknown"),
    ("gave up", 524, "error code: 524", ServerError, None, "unknown"),
    ("500 as a page", 500, "<!DOCTYPE html>", ServerError, None, "unknown"),
    ("500, empty", 500, "", ServerError, None, "unknown"),
    ("500 as text", 500, "Internal Server Error", ServerError, None, "unknown"),
    ("500, cut", 500, '{"error":{"mess', ServerError, None, "unknown"),
    ("520 as a page", 520, "<html>", ServerError, None, "unknown"),
    ("endpoint not there", 404, "404 page not found", NotFoundError, None, "refused"),
    ("endpoint not built", 501, api_body("api_not_implemented"), NotFoundError, "api_not_implemented", "refused"),
    ("page as 4xx", 403, "<html>blocked</html>", PermissionDeniedError, None, "refused"),
    ("bad request", 400, api_body("unknown_parameter"), BadRequestError, "unknown_parameter", "refused"),
    ("unprocessable", 422, '{"detail":"no"}', BadRequestError, None, "refused"),
    ("teapot", 418, "", BadRequestError, None, "refused"),
    ("beyond", 599, api_body(""), ServerError, None, "refused"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "cls", "code", "billing"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)  # fmt: skip
def test_read_error(
    status: int, body: str, cls: type[APIError], code: str | None, billing: str
) -> None:
    """Each situation of the contract has its class, its code, and its word on billing."""
    found = error_of(status, body)
    assert type(found) is cls
    assert (found.code, found.billing) == (code, billing)
    assert f"status {status}" in str(found)
    if status in (408, 409, 425):
        assert "Send it again a little later." in str(found)
    elif billing == "unknown":
        assert "The image may have been made" in str(found)
    else:
        assert cls.advice in str(found)


def test_read_error_with_all_fields() -> None:
    """Everything that the answer says is kept."""
    body = api_body("c", "It failed", type="t", param="size")
    found = error_of(
        400, body, x_oneapi_request_id="g-1", x_request_id="u", retry_after="7", x_y="z"
    )
    assert (found.code, found.type, found.param) == ("c", "t", "size")
    assert (found.request_id, found.retry_after) == ("g-1", 7.0)
    assert found.body == json.loads(body)
    assert found.headers["x-y"] == "z"
    assert str(found) == (
        f"The server said no (status 400, c): It failed. {BadRequestError.advice} (request id: g-1)"
    )


def test_read_error_headers_in_any_case() -> None:
    """The headers that an error keeps have names in lower case."""
    found = error_mapping.read_error(400, {"X-Y": "z"}, b"", now=NOW)
    assert isinstance(found, APIError)
    assert found.headers == {"x-y": "z"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error":"plain"}', "plain."),
        ('{"error":{"message":"with a stop."}}', "with a stop."),
        ('{"error":{"message":"  blanks \\n"}}', "blanks."),
        ('{"detail":"FastAPI"}', "FastAPI."),
        ('{"detail":{"message":"nested"}}', "nested."),
        ('{"message":"bare"}', "bare."),
        ('{"error":null,"message":"beside"}', "beside."),
        ('{"error":{"message":"余额不足 (request id: r-1)"}}', "余额不足 (request id: r-1)."),
        ('{"error":{"message":"图像生成失败。"}}', "图像生成失败。"),
        ("Bad Gateway", "Bad Gateway."),
        ("  upstream connect error\n", "upstream connect error."),
        ('{"error":{"mess', '{"error":{"mess.'),
        ('"quoted"', '"quoted".'),
    ],
)
def test_read_error_message(body: str, message: str) -> None:
    """The server's words are in the text, from wherever they stand, as one sentence."""
    found = error_of(400, body)
    assert found.message == f"The server said no (status 400): {message}"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "  \n",
        "{}",
        "[]",
        "null",
        "[1]",
        '{"error":{}}',
        '{"error":[]}',
        '{"error":["a"]}',
        '{"error":5}',
        '{"error":{"message":5}}',
        '{"error":{"message":null}}',
        '{"error":{"message":""}}',
        '{"error":{"message":"<html>"}}',
        '{"detail":[]}',
        "<html><body>x</body></html>",
        " <!DOCTYPE html>",
    ],
)
def test_read_error_without_a_message(body: str) -> None:
    """A body that says nothing, and a page, put nothing into the text."""
    message = error_of(400, body).message
    assert message in (
        "The server said no (status 400).",
        f"The server said no (status 400): {body}.",
    )
    assert "<" not in message


def test_read_error_with_the_details_of_fastapi() -> None:
    """FastAPI's list of what is wrong is in the text, not only in the body."""
    detail = [
        {"loc": ["body", "n"], "msg": "not a valid integer", "type": "int_parsing"},
        {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"},
    ]
    found = error_of(422, json.dumps({"detail": detail}))
    assert found.body == {"detail": detail}
    assert "not a valid integer" in str(found)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *[("x", "x"), ("", None), (None, None), (429, "429"), (0, "0"), ([], None), ({}, None)],
        *[(1.5, None), ("余额", "余额"), ("9" * 5_000, "9" * 5_000), ("٤٢٩", "٤٢٩")],
    ],
)
def test_read_error_code(code: Any, expected: str | None) -> None:
    """A code is text or a whole number; it may stand in `type` and `param` too."""
    found = error_of(400, json.dumps({"error": {"code": code, "type": code, "param": code}}))
    assert (found.code, found.type, found.param) == (expected,) * 3
    assert type(found) is BadRequestError


@pytest.mark.parametrize("code", [True, False])
def test_read_error_code_that_is_a_boolean(code: bool) -> None:
    """A boolean is no code."""
    assert error_of(400, json.dumps({"error": {"code": code}})).code is None


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"error":{"message":"no","code":"invalid_request"}}',
        b'{"error":{"message":"no \xff","code":"invalid_request"}}',
        b'{"error":{"message":"no","code":"invalid_request"},"x":NaN}',
        b'{"error":{"message":"no \\ud800","code":"invalid_request"}}',
        b'{"error":{"message":"no","code":"invalid_request"}}<!-- x -->',
    ],
)
def test_read_error_of_almost_json(body: bytes) -> None:
    """An error's JSON is read as tolerantly as an answer's: its code decides about retries."""
    found = error_of(500, body)
    assert (type(found), found.code, found.billing) == (
        BadRequestError,
        "invalid_request",
        "refused",
    )


def test_read_error_of_much_text() -> None:
    """A long answer is cut to what a message can bear."""
    for body in ("x" * 100_000, "<" + "x" * 100_000):
        found = error_of(500, body)
        assert found.body == body[: error_mapping.BODY_IN_ERRORS]
        assert len(str(found)) < 2_500
    found = error_of(400, api_body("c", "y" * 100_000))
    assert len(str(found)) < 2_500
    assert "yyy…" in str(found)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_read_error_redirect(status: int) -> None:
    """A redirect is never followed: it is a `ResponseError` that points at the base URL."""
    headers = {"location": "https://elsewhere/path?token=secret", "x-request-id": "u"}
    found = error_mapping.read_error(status, headers, b"<html>", now=NOW)
    assert type(found) is ResponseError
    assert (found.status, found.request_id, found.billing) == (status, "u", "unknown")
    assert "https://elsewhere/path" in str(found)
    assert "secret" not in str(found)
    assert "base URL" in str(found)
    assert "base URL" in str(error_mapping.read_error(status, {}, b"", now=NOW))


@settings(max_examples=300, deadline=None)
@given(
    status=st.integers(300, 599),
    body=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.booleans(),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["error", "detail", "message", "code", "type", "param"]), inner
            )
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
)
def test_read_error_of_any_body(status: int, body: bytes) -> None:
    """Any body of any status is one of our errors, with a text."""
    found = error_mapping.read_error(status, {}, body, now=NOW)
    assert type(found).__name__ in errors.__all__
    assert str(status) in str(found)


@pytest.mark.parametrize(
    ("value", "cls"),
    [
        ({"error": {"type": "authentication_error"}}, AuthenticationError),
        ({"error": {"code": "invalid_api_key"}}, AuthenticationError),
        ({"error": {"type": "permission_error"}}, PermissionDeniedError),
        ({"error": {"type": "not_found_error"}}, NotFoundError),
        ({"error": {"code": "rate_limit_exceeded"}}, RateLimitError),
        ({"error": {"type": "server_error"}}, ServerError),
        ({"error": {"type": "invalid_request_error"}}, BadRequestError),
        ({"error": {"code": "insufficient_quota"}}, QuotaExceededError),
        ({"error": {"code": 403}}, PermissionDeniedError),
        ({"error": {"code": "503"}}, ServerError),
        ({"error": {"code": 200}}, APIError),
        ({"error": {"code": 42900}}, APIError),
        ({"error": {"code": "x", "type": "y"}}, APIError),
        ("text", APIError),
        (None, APIError),
    ],
)
def test_api_error_inside_a_good_answer(value: Any, cls: type[APIError]) -> None:
    """Inside a 200, the code or the type stands for the status."""
    found = error_mapping.api_error(200, value)
    assert type(found) is cls
    assert found.status == 200
    assert "inside a good answer" in str(found)
