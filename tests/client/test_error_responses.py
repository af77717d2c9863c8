"""Error responses, and the exceptions they become."""

from typing import Any

import pytest

from elkimg_async import (
    APIError,
    AsyncImages,
    AuthenticationError,
    BadRequestError,
    ModerationError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    ServerError,
    Timeout,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    PARTIAL,
    error_body,
    failure,
    failure_of_any_kind,
    in_both_modes,
)
from tests.helpers.raw_server import (
    API_KEY,
    REQUEST_ID,
    End,
    Piece,
    RawServer,
    Reply,
    event,
    head,
    response,
    stream,
)


@in_both_modes
@pytest.mark.parametrize(
    ("status", "fields", "kind", "billing"),
    [
        (400, {}, BadRequestError, "refused"),
        (400, {"code": "moderation_blocked"}, ModerationError, "refused"),
        (400, {"code": "content_policy_violation"}, ModerationError, "refused"),
        (401, {"code": ""}, AuthenticationError, "refused"),
        (402, {}, QuotaExceededError, "refused"),
        (403, {"code": "access_denied"}, PermissionDeniedError, "refused"),
        (403, {"code": "insufficient_user_quota"}, QuotaExceededError, "refused"),
        (404, {}, NotFoundError, "refused"),
        (413, {"code": "read_request_body_failed"}, BadRequestError, "refused"),
        (422, {}, BadRequestError, "refused"),
        (429, {"code": "insufficient_quota"}, QuotaExceededError, "refused"),
        (429, {}, RateLimitError, "refused"),
        (500, {"code": "invalid_request"}, BadRequestError, "refused"),
        (500, {"code": "do_request_failed"}, ServerError, "refused"),
        (500, {"code": "bad_response_body"}, ServerError, "unknown"),
        (501, {"code": "api_not_implemented"}, NotFoundError, "refused"),
        (502, {}, ServerError, "unknown"),
        (503, {"code": "model_not_found"}, NotFoundError, "refused"),
        (503, {"code": "system_cpu_overloaded"}, ServerError, "refused"),
        (504, {}, ServerError, "unknown"),
        (524, {}, ServerError, "unknown"),
    ],
)
async def test_error_response(
    raw_server: RawServer,
    status: int,
    fields: dict[str, Any],
    kind: type[APIError],
    billing: str,
    streaming: bool,
) -> None:
    """Each error response becomes its exception, with everything the server sent."""
    body = error_body(type="some_type", param="size", **fields)
    raw_server.reply_with(response(body, status=status, Retry_After="7", X_More="yes"))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        error = await failure(kind, client, streaming)
    assert error.status == status
    assert error.code == (fields.get("code") or None)
    assert (error.type, error.param, error.billing) == ("some_type", "size", billing)
    assert error.request_id == REQUEST_ID
    assert error.retry_after == 7.0
    assert error.headers["x-more"] == "yes"
    assert error.body == body
    assert error.attempts == 1
    assert f"The server returned {status}" in str(error)
    assert "no such luck" in str(error)


@in_both_modes
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"<html>Bad Gateway</html>", "text/html"),
        (b"busy", "text/plain"),
        (b'{"error":', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"detail": [{"loc": ["body"], "msg": "wrong"}]}', "application/json"),
        (b'{"error": null}', "application/json"),
        (b'{"error": {"message": null, "code": [1], "param": {}}}', "application/json"),
        (b"[" * 50_000, "application/json"),
        (b"42", "application/json"),
    ],
    ids=["none", "html", "text", "cut", "bytes", "fastapi", "null", "odd", "deep", "number"],
)
async def test_error_response_with_any_body(
    raw_server: RawServer, body: bytes, content_type: str, streaming: bool
) -> None:
    """The status decides, whatever the body is."""
    raw_server.reply_with(response(body, status=403, content_type=content_type))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        error = await failure(PermissionDeniedError, client, streaming)
    assert error.status == 403
    assert error.request_id == REQUEST_ID
    assert "403" in str(error)


@in_both_modes
async def test_error_response_without_an_end(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A body that breaks off or never ends does not hide the status of an error response."""
    cut: list[Piece] = [head(401, Content_Length="500"), b'{"error": {"mess']
    raw_server.reply_with([*cut, End.CLOSE])
    assert (await failure(AuthenticationError, raw_client, streaming)).status == 401
    raw_server.reply_with([*cut, End.HOLD])
    options = {"timeout": Timeout(idle=0.1)}
    assert (await failure(AuthenticationError, raw_client, streaming, **options)).status == 401


@in_both_modes
async def test_wrong_api_key(server: LocalServer, streaming: bool) -> None:
    """An unknown API key is an AuthenticationError, sent once and not shown."""
    async with AsyncImages(API_KEY, base_url=server.base_url) as client:
        error = await failure(AuthenticationError, client, streaming)
    (request,) = server.requests
    assert error.request_id == request.request_id
    assert error.status == 401
    assert "ELKAPI_API_KEY" in str(error)


async def test_wrong_api_key_is_raised_by_opening(server: LocalServer) -> None:
    """Awaiting a stream is enough to raise the error of a wrong API key."""
    async with AsyncImages(API_KEY, base_url=server.base_url) as client:
        with pytest.raises(AuthenticationError):
            await client.generate("a boat", stream=True)


@in_both_modes
async def test_unknown_model(client: AsyncImages, streaming: bool) -> None:
    """A model that neither side knows is sent, and the server's error is raised."""
    error = await failure(NotFoundError, client, streaming, model="gpt-image-99")
    assert (error.status, error.code) == (503, "model_not_found")
    assert error.attempts == 1


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        response(
            {"error": {"message": f"Incorrect key {API_KEY}", "code": API_KEY}},
            status=401,
            X_Echo=API_KEY,
        ),
        response({"error": f"Incorrect key {API_KEY}"}),
        response(f"<html>{API_KEY}</html>".encode()),
        response(f'{{"{API_KEY}": '.encode()),
        [head(302, Location=f"https://host/{API_KEY}", Content_Length="0")],
        stream(PARTIAL, event({"error": {"message": API_KEY}})),
        [b"HTTP/1.1 200 OK\r\n" + API_KEY.encode() + b"\r\n\r\n", End.CLOSE],
        [f"{API_KEY}\r\n\r\n".encode(), End.CLOSE],
    ],
    ids=["status", "error", "html", "json", "redirect", "event", "header", "no-http"],
)
async def test_server_that_echoes_the_api_key(
    raw_client: AsyncImages, raw_server: RawServer, reply: Reply, streaming: bool
) -> None:
    """An API key that the server repeats does not get into an error."""
    raw_server.reply_with(reply)
    await failure_of_any_kind(raw_client, streaming)
