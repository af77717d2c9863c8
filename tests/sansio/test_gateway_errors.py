"""Errors of LiteLLM and Portkey as recorded, with the upstream failing in different ways."""

import json
from typing import Any

import pytest

from elkimg_async import AsyncImages, BadRequestError
from elkimg_async.errors import (
    APIError,
    ModerationError,
    QuotaExceededError,
    RateLimitError,
    ServerError,
)
from elkimg_async.sansio import retry
from tests.helpers.calls import GOOD, QUICK, failure_of_any_kind, in_both_modes
from tests.helpers.error_bodies import error_of
from tests.helpers.raw_server import API_KEY, RawServer, response

TRAILER = (
    "\n\nLiteLLM: model group 'gpt-image-1.5' failed with the error above. "
    "No fallback was attempted."
)
UPSTREAM = {"message": "no", "type": "server_error", "param": None}


def litellm(status: int, message: str, kind: str = "internal_server_error") -> dict[str, Any]:
    """Return an error body of LiteLLM 1.108."""
    error = {"message": message + TRAILER, "type": kind, "param": None, "code": str(status)}
    return {"error": error}


def quoted(status: int, name: str, code: str) -> dict[str, Any]:
    """Return LiteLLM's error for an edit, which quotes the upstream's body."""
    body = json.dumps({"error": {**UPSTREAM, "code": code}})
    return litellm(status, f"litellm.{name}: {name}: OpenAIException - {body}")


def portkey(message: str, code: str | None, kind: str = "server_error") -> dict[str, Any]:
    """Return an error body of Portkey 1.15."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"error": error, "provider": "openai"}


NEVER_REPEATED: dict[str, tuple[int, Any]] = {
    "LiteLLM cannot read the response": (
        500,
        litellm(
            500,
            "litellm.APIConnectionError: APIConnectionError: OpenAIException - 'str' object has "
            "no attribute 'model_dump'",
        ),
    ),
    "LiteLLM's upstream disconnected": (
        500,
        litellm(500, "litellm.APIConnectionError: OpenAIException - Connection error."),
    ),
    "LiteLLM's upstream failed": (500, quoted(500, "InternalServerError", "do_request_failed")),
    "LiteLLM's upstream is behind a proxy": (
        502,
        litellm(502, "litellm.BadGatewayError: BadGatewayError: OpenAIException - <html></html>"),
    ),
    "LiteLLM's upstream's gateway timed out": (
        504,
        litellm(504, "litellm.Timeout: Timeout Error: OpenAIException - Error code: 504"),
    ),
    "LiteLLM's time limit": (
        408,
        litellm(
            408,
            "litellm.Timeout: APITimeoutError - Request timed out. Error_str: Request timed out.",
            "invalid_request_error",
        ),
    ),
    "LiteLLM's time limit of an edit": (
        408,
        litellm(
            408,
            "litellm.Timeout: Timeout Error: OpenAIException - litellm.Timeout: Connection timed "
            "out. Timeout passed=0.5, time taken=0.502 seconds",
            "invalid_request_error",
        ),
    ),
    "Portkey's time limit": (
        408,
        portkey(
            "Request exceeded the timeout sent in the request: 500ms",
            None,
            "timeout_error",
        ),
    ),
    "Portkey cannot read the response": (
        500,
        {"status": "failure", "message": "Something went wrong"},
    ),
    "Portkey's upstream disconnected": (
        500,
        {"html-message": "Message: fetch failed Cause: Error: read ECONNRESET Name: TypeError"},
    ),
    "Portkey's upstream failed": (500, portkey("openai error: boom", None)),
    "Portkey rejects the response": (446, portkey("The guardrail checks failed", None)),
    "a client that disconnected": (499, {"error": "client closed request"}),
    "a provider's time limit": (408, {"error": {"message": "late", "code": "upstream_timeout"}}),
}


@in_both_modes
@pytest.mark.parametrize(("status", "body"), NEVER_REPEATED.values(), ids=list(NEVER_REPEATED))
async def test_gateway_error_after_the_image(status: int, body: Any, streaming: bool) -> None:
    """An error that may follow the upstream's image is not repeated, and its text says so."""
    async with (
        RawServer(response(body, status=status), GOOD) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=QUICK) as client,
    ):
        error = await failure_of_any_kind(client, streaming)
    assert len(server.requests) == error.attempts == 1
    assert error.billing == "unknown"
    assert error.idempotency_key is not None
    assert "may have been created and billed" in str(error)
    assert error.idempotency_key in str(error)
    assert "Send it again" not in str(error)


NEVER_BEGUN: dict[str, tuple[int, Any, type[APIError], str | None, bool]] = {
    "LiteLLM, rate": (
        429,
        litellm(
            429, "litellm.RateLimitError: RateLimitError: OpenAIException - no", "throttling_error"
        ),
        RateLimitError,
        "429",
        True,
    ),
    "LiteLLM, cooldown": (
        429,
        litellm(429, "No deployments available for selected model, Try again in 5 seconds."),
        RateLimitError,
        "429",
        True,
    ),
    "LiteLLM, rate of an edit": (
        429,
        quoted(429, "RateLimitError", "rate_limit_exceeded"),
        RateLimitError,
        "rate_limit_exceeded",
        True,
    ),
    "LiteLLM, no credit for an edit": (
        429,
        quoted(429, "RateLimitError", "insufficient_quota"),
        QuotaExceededError,
        "insufficient_quota",
        False,
    ),
    "LiteLLM, moderation of an edit": (
        400,
        quoted(400, "BadRequestError", "moderation_blocked"),
        ModerationError,
        "moderation_blocked",
        False,
    ),
    "LiteLLM, overload": (
        503,
        quoted(503, "ServiceUnavailableError", "system_cpu_overloaded"),
        ServerError,
        "503",
        True,
    ),
    "Portkey, moderation": (
        400,
        portkey("openai error: blocked", "moderation_blocked"),
        ModerationError,
        "moderation_blocked",
        False,
    ),
    "Portkey, no credit": (
        429,
        portkey("openai error: no credit", "insufficient_quota"),
        QuotaExceededError,
        "insufficient_quota",
        False,
    ),
    "Portkey, not sent": (
        500,
        portkey("openai error: unreachable", "do_request_failed"),
        ServerError,
        "do_request_failed",
        True,
    ),
    "a server that did not receive the request in time": (
        408,
        {"error": {"message": "Request Timeout", "code": "RequestTimeout"}},
        BadRequestError,
        "RequestTimeout",
        True,
    ),
}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "retried"), NEVER_BEGUN.values(), ids=list(NEVER_BEGUN)
)
def test_gateway_error_before_the_image(
    status: int, body: Any, kind: type[APIError], code: str | None, retried: bool
) -> None:
    """The upstream's code decides about the class and retries, quoted in the message too."""
    error = error_of(status, json.dumps(body))
    assert (type(error), error.code, error.billing) == (kind, code, "refused")
    assert retry.is_transient(error) == retried
    assert error.message == body["error"]["message"]


@pytest.mark.parametrize("message", ["x - {", 'x - {"error"', 'x - {"error": 5}', "{} - {}"])
def test_gateway_error_with_a_torn_quotation(message: str) -> None:
    """A quotation that is not an error leaves the gateway's own words."""
    error = error_of(400, json.dumps(litellm(400, message)))
    assert (error.code, error.message) == ("400", message + TRAILER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Message: fetch failed", "Message: fetch failed"),
        ("<html><title>502 Bad Gateway</title></html>\n", ""),
        ('a "quoted"\ttext', 'a "quoted"\ttext'),
    ],
)
def test_gateway_error_with_a_wrapped_text(text: str, message: str) -> None:
    """What Portkey wraps instead of JSON is the message, or a web page."""
    error = error_of(502, json.dumps({"html-message": text}))
    assert error.message == message
    assert error.body == text.strip()
    assert message or "web page titled “502 Bad Gateway”" in str(error)
