"""Mapping of error responses to exceptions, and the server's message in their bodies."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    ServerError,
)
from elkimg_async.sansio import error_mapping
from tests.helpers.error_bodies import NOW, api_body, error_of

ROWS: list[tuple[str, int, str, type[APIError], str | None, str]] = [
    ("key missing", 401, api_body(""), AuthenticationError, None, "refused"),
    (
        "key refused upstream",
        401,
        api_body("invalid_api_key"),
        AuthenticationError,
        "invalid_api_key",
        "refused",
    ),
    (
        "balance",
        403,
        api_body("insufficient_user_quota"),
        QuotaExceededError,
        "insufficient_user_quota",
        "refused",
    ),
    (
        "token quota",
        403,
        api_body("pre_consume_token_quota_failed"),
        QuotaExceededError,
        "pre_consume_token_quota_failed",
        "refused",
    ),
    ("not allowed", 403, api_body(""), PermissionDeniedError, None, "refused"),
    (
        "access denied",
        403,
        api_body("access_denied"),
        PermissionDeniedError,
        "access_denied",
        "refused",
    ),
    ("validation", 500, api_body("invalid_request"), BadRequestError, "invalid_request", "refused"),
    (
        "validation by type",
        500,
        api_body(None, type="invalid_request"),
        BadRequestError,
        None,
        "refused",
    ),
    (
        "model unknown",
        503,
        api_body("model_not_found"),
        NotFoundError,
        "model_not_found",
        "refused",
    ),
    (
        "body too large",
        413,
        api_body("read_request_body_failed"),
        BadRequestError,
        "read_request_body_failed",
        "refused",
    ),
    (
        "body too large as 400",
        400,
        api_body("read_request_body_failed"),
        BadRequestError,
        "read_request_body_failed",
        "refused",
    ),
    ("rate limit", 429, api_body(""), RateLimitError, None, "refused"),
    ("rate limit, empty", 429, "", RateLimitError, None, "refused"),
    ("not received in time", 408, "", BadRequestError, None, "refused"),
    ("too early", 425, "", BadRequestError, None, "refused"),
    (
        "conflict",
        409,
        api_body("idempotency_in_flight"),
        BadRequestError,
        "idempotency_in_flight",
        "refused",
    ),
    (
        "quota upstream",
        429,
        api_body("insufficient_quota"),
        QuotaExceededError,
        "insufficient_quota",
        "refused",
    ),
    (
        "quota by type",
        429,
        api_body(None, type="insufficient_quota"),
        QuotaExceededError,
        None,
        "refused",
    ),
    (
        "overload",
        503,
        api_body("system_cpu_overloaded"),
        ServerError,
        "system_cpu_overloaded",
        "refused",
    ),
    ("overload as a page", 503, "<html>busy</html>", ServerError, None, "refused"),
    ("overload, empty", 503, "", ServerError, None, "refused"),
    (
        "upstream unreachable",
        500,
        api_body("do_request_failed"),
        ServerError,
        "do_request_failed",
        "refused",
    ),
    (
        "upstream unreadable",
        500,
        api_body("bad_response_body"),
        ServerError,
        "bad_response_body",
        "unknown",
    ),
    (
        "upstream unread",
        500,
        api_body("read_response_body_failed"),
        ServerError,
        "read_response_body_failed",
        "unknown",
    ),
    (
        "moderation",
        400,
        api_body("moderation_blocked"),
        ModerationError,
        "moderation_blocked",
        "refused",
    ),
    (
        "policy",
        400,
        api_body("content_policy_violation"),
        ModerationError,
        "content_policy_violation",
        "refused",
    ),
    ("filter", 400, api_body("content_filter"), ModerationError, "content_filter", "refused"),
    ("filter by type", 400, api_body("", type="content_filter"), ModerationError, None, "refused"),
    (
        "filter as 500",
        500,
        api_body("content_filter"),
        ModerationError,
        "content_filter",
        "refused",
    ),
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
    (
        "endpoint not built",
        501,
        api_body("api_not_implemented"),
        NotFoundError,
        "api_not_implemented",
        "refused",
    ),
    ("page as 4xx", 403, "<html>blocked</html>", PermissionDeniedError, None, "refused"),
    (
        "bad request",
        400,
        api_body("unknown_parameter"),
        BadRequestError,
        "unknown_parameter",
        "refused",
    ),
    ("unprocessable", 422, '{"detail":"no"}', BadRequestError, None, "refused"),
    ("teapot", 418, "", BadRequestError, None, "refused"),
    ("beyond", 599, api_body(""), ServerError, None, "unknown"),
    (
        "unknown 500",
        500,
        api_body("500", type="internal_server_error"),
        ServerError,
        "500",
        "unknown",
    ),
    ("500 without a code", 500, api_body(None), ServerError, None, "unknown"),
    (
        "bad status upstream",
        500,
        api_body("bad_response_status_code"),
        ServerError,
        "bad_response_status_code",
        "unknown",
    ),
    (
        "no channel",
        500,
        api_body("get_channel_failed"),
        ServerError,
        "get_channel_failed",
        "refused",
    ),
    (
        "no key of a channel",
        502,
        api_body("channel:no_available_key"),
        ServerError,
        "channel:no_available_key",
        "refused",
    ),
    (
        "memory overload",
        500,
        api_body("system_memory_overloaded"),
        ServerError,
        "system_memory_overloaded",
        "refused",
    ),
    ("overloaded", 529, api_body(None, type="overloaded_error"), ServerError, None, "refused"),
    ("529, empty", 529, "", ServerError, None, "refused"),
    (
        "overloaded as 500",
        500,
        api_body(None, type="overloaded_error"),
        ServerError,
        None,
        "refused",
    ),
    ("origin down", 521, "<html>", ServerError, None, "unknown"),
    ("no credit", 402, api_body(402), QuotaExceededError, "402", "refused"),
    (
        "no credit as text",
        402,
        '{"message":"Payment required"}',
        QuotaExceededError,
        None,
        "refused",
    ),
    ("Azure filter", 400, api_body("contentFilter"), ModerationError, "contentFilter", "refused"),
    (
        "DashScope filter",
        400,
        api_body("data_inspection_failed"),
        ModerationError,
        "data_inspection_failed",
        "refused",
    ),
    (
        "DashScope filter in capitals",
        400,
        '{"code":"DataInspectionFailed","message":"no"}',
        ModerationError,
        "DataInspectionFailed",
        "refused",
    ),
    (
        "Ark filter",
        400,
        api_body("OutputImageSensitiveContentDetected"),
        ModerationError,
        "OutputImageSensitiveContentDetected",
        "refused",
    ),
    (
        "Ark filter of input",
        400,
        api_body("InputTextSensitiveContentDetected.PolicyViolation"),
        ModerationError,
        "InputTextSensitiveContentDetected.PolicyViolation",
        "refused",
    ),
]


@pytest.mark.parametrize(
    ("status", "body", "cls", "code", "billing"),
    [row[1:] for row in ROWS],
    ids=[row[0] for row in ROWS],
)
def test_response_error(
    status: int, body: str, cls: type[APIError], code: str | None, billing: str
) -> None:
    """Each situation of the contract has its class, code and billing."""
    found = error_of(status, body)
    assert type(found) is cls
    assert (found.code, found.billing) == (code, billing)
    text = str(found)
    assert text.startswith(f"The server returned {status}")
    assert ("may have been created and billed" in text) is (billing == "unknown")
    if status in (408, 409, 425):
        assert "Send it again a little later." in text
    elif "<" not in body:
        assert ("name of the model" if code == "model_not_found" else cls.advice) in text


def test_response_error_with_all_fields() -> None:
    """Everything in the response is kept on the error."""
    body = api_body("c", "It failed", type="t", param="size")
    found = error_of(
        400, body, x_oneapi_request_id="g-1", x_request_id="u", retry_after="7", x_y="z"
    )
    assert (found.code, found.type, found.param) == ("c", "t", "size")
    assert (found.request_id, found.retry_after) == ("g-1", 7.0)
    assert found.body == json.loads(body)
    assert found.message == "It failed"
    assert found.headers["x-y"] == "z"
    assert str(found) == (
        f"The server returned 400 (c): It failed. {BadRequestError.advice} (request id: g-1)"
    )


def test_response_error_headers_in_any_case() -> None:
    """The headers of an error have names in lower case."""
    found = error_mapping.response_error(400, {"X-Y": "z"}, b"", now=NOW)
    assert isinstance(found, APIError)
    assert found.headers == {"x-y": "z"}


@settings(max_examples=100)
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
def test_response_error_of_any_body(status: int, body: bytes) -> None:
    """Any body with any status becomes an error of this package with a text."""
    found = error_mapping.response_error(status, {}, body, now=NOW)
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
        ({"error": {"code": 402}}, QuotaExceededError),
        ({"object": "error", "type": "NotFoundError", "code": 404}, NotFoundError),
        ({"error": {"code": "503"}}, ServerError),
        ({"error": {"code": 200}}, APIError),
        ({"error": {"code": 42900}}, APIError),
        ({"error": {"code": "x", "type": "y"}}, APIError),
        ("text", APIError),
        (None, APIError),
    ],
)
def test_api_error_inside_a_success(value: Any, cls: type[APIError]) -> None:
    """In a response with status 200, the code or the type replaces the status."""
    found = error_mapping.api_error(200, value)
    assert type(found) is cls
    assert found.status == 200
    assert "an error with status 200" in str(found)


@pytest.mark.parametrize(
    ("error", "billing"),
    [
        ({"type": "server_error"}, "unknown"),
        ({"code": "500"}, "unknown"),
        ({"code": 502}, "unknown"),
        ({"code": "x", "type": "y"}, "unknown"),
        ({"message": "no"}, "unknown"),
        ({"code": 40001}, "unknown"),
        ({"code": "bad_response_body"}, "unknown"),
        ({"code": 408, "message": "upstream timed out"}, "unknown"),
        ({"code": 503}, "refused"),
        ({"code": "do_request_failed", "type": "server_error"}, "refused"),
        ({"code": "model_not_found"}, "refused"),
        ({"code": "system_cpu_overloaded", "type": "server_error"}, "refused"),
        ({"type": "overloaded_error"}, "refused"),
        ({"type": "invalid_request_error"}, "refused"),
        ({"code": 429}, "refused"),
        ({"code": "insufficient_user_quota"}, "refused"),
        ({"code": "content_filter"}, "refused"),
    ],
)
def test_api_error_inside_a_success_billing(error: dict[str, Any], billing: str) -> None:
    """In a response with status 200, an image is excluded only by what the error says."""
    value = {"error": {"message": "no", **error}}
    assert error_mapping.api_error(200, value).billing == billing
