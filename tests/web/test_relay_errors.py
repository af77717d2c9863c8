"""Failures as a browser sees them, without secrets."""

import base64
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from elkimg_async import AsyncImages, CompletedImage, Image, PartialImage, errors, web
from elkimg_async.local import LocalServer
from elkimg_async.sansio.decoder import ImageEvent
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    End,
    RawServer,
    response,
)
from tests.helpers.relays import (
    COMPLETED,
    PARTIAL,
    backend,
    client_of,
    collect,
    fetch,
    generated,
    in_each,
    parse,
    relayed,
)

pytestmark = pytest.mark.usefixtures("quiet")


@in_each
@pytest.mark.parametrize(
    ("fault", "before", "kind", "billing"),
    [
        ("error=401", 0, "AuthenticationError", "refused"),
        ("error-event", 2, "ServerError", "unknown"),
        ("no-completed", 2, "StreamIncompleteError", "unknown"),
    ],
)
async def test_error_is_an_event(
    name: str, fault: str, before: int, kind: str, billing: str, upstream: LocalServer
) -> None:
    """A rejection, or a failure in the middle, ends a complete response with an error event."""
    upstream.inject(fault)
    async with backend(name, upstream) as port:
        response, text = await fetch(port)
    assert response.status == 200
    *events, (last, body) = parse(text)
    assert [fields["type"] for _, fields in events] == [PARTIAL] * before
    assert last == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["billing"] == billing
    assert body["error"]["request_id"] == upstream.requests[-1].request_id
    assert body["error"].keys() == {"message", "type", "code", "param", "billing", "request_id"}
    check_discreet(text, upstream.base_url)


@in_each
async def test_images_of_an_error_are_relayed(name: str) -> None:
    """An image that only the error carries is an event before the error event."""
    failed = {"data": [{"b64_json": base64.b64encode(PNG).decode()}], "error": {"message": "No."}}
    async with RawServer(response(failed)) as raw_server, backend(name, raw_server) as port:
        _, text = await fetch(port)
    (_, relayed_event), (last, _) = parse(text)
    assert relayed_event["type"] == COMPLETED
    assert base64.b64decode(relayed_event["b64_json"]) == PNG
    assert last == "error"


def check_discreet(text: str, base_url: str) -> None:
    """Check that the browser receives nothing internal."""
    host = base_url.removeprefix("http://").removesuffix("/v1")
    for secret in (
        API_KEY,
        "elkimg-local",
        host,
        "ELKAPI",
        "base URL",
        "Traceback",
        ".py",
        "API key",
    ):
        assert secret not in text


SECRET = "http://10.1.2.3:8080/v1 with sk-0123456789abcdef"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (
            response({"error": {"message": SECRET, "code": SECRET, "param": SECRET}}, status=400),
            "BadRequestError",
        ),
        (
            response({"error": {"message": SECRET, "type": SECRET}}, status=403),
            "PermissionDeniedError",
        ),
        (response({"error": {"message": API_KEY}}, status=401), "AuthenticationError"),
        (response({"error": API_KEY}, status=422), "BadRequestError"),
        (
            response({"error": {"message": SECRET, "code": "model_not_found"}}, status=503),
            "NotFoundError",
        ),
        (
            response({"error": {"message": SECRET}}, status=500, X_Oneapi_Request_Id=SECRET),
            "ServerError",
        ),
        (
            response({"error": {"message": SECRET, "code": "insufficient_user_quota"}}, status=403),
            "QuotaExceededError",
        ),
        (
            response(b"<html>" + SECRET.encode(), status=502, content_type="text/html"),
            "ServerError",
        ),
        (response(b"<html>" + SECRET.encode(), content_type="text/html"), "ResponseError"),
        (response(b"", status=307, Location=SECRET), "ResponseError"),
        (response(b'{"data": []}'), "EmptyResultError"),
        ([End.RESET], "DisconnectedError"),
    ],
)
async def test_error_event_reveals_nothing_secret(
    reply: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No API key, address or header reaches the browser, from any part of a response."""
    async with RawServer(reply) as raw_server:
        ((name, body),) = await relayed(raw_server)
    assert (name, body["error"]["type"]) == ("error", kind)
    text = json.dumps(body)
    check_discreet(text, raw_server.base_url)
    assert "10.1.2.3" not in text
    assert "sk-" not in text
    (logged,) = [record for record in caplog.records if record.name == "elkimg_async"]
    assert logged.levelno == logging.WARNING
    assert kind in logged.getMessage()
    assert API_KEY not in logged.getMessage()


async def test_error_before_sending_keeps_its_message(upstream: LocalServer) -> None:
    """A request that this package rejects is reported with its message and parameter."""
    async with client_of(upstream) as client:
        events = client.generate("cat", stream=True, n=11)
        ((_, body),) = await collect(web.ServerSentEvents(events))
        assert body["error"]["type"] == "InvalidRequestError"
        assert body["error"]["param"] == "n"
        assert body["error"]["billing"] == "not_sent"
        assert "11" in body["error"]["message"] or "10" in body["error"]["message"]
        events = client.generate("cat", stream=True, extra_headers={"X-Internal Name": "x"})
        ((_, body),) = await collect(web.ServerSentEvents(events))
        assert body["error"]["message"] == "The request is not valid."
    assert not upstream.requests


async def test_error_of_a_rejected_prompt_keeps_its_message() -> None:
    """Upstream's message about the request is passed on, with its code."""
    said = {
        "message": "Your request was rejected by the safety system.",
        "code": "moderation_blocked",
    }
    async with RawServer(response({"error": said}, status=400)) as raw_server:
        ((_, body),) = await relayed(raw_server)
    assert body["error"]["type"] == "ModerationError"
    assert body["error"]["code"] == "moderation_blocked"
    assert said["message"] in body["error"]["message"]


async def test_error_without_a_server() -> None:
    """An unreachable upstream is reported in a plain sentence without its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        async with AsyncImages(API_KEY, base_url=base_url, retry=0) as client:
            ((_, body),) = await collect(web.ServerSentEvents(generated(client, "cat")))
    assert body["error"]["message"] == "The image service cannot be reached."
    check_discreet(json.dumps(body), base_url)


async def test_error_that_is_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is a general error for the browser, and logged in full."""

    async def events() -> AsyncIterator[ImageEvent]:
        yield PartialImage(type=PARTIAL, image=Image(PNG))
        raise KeyError("hunter2")

    (first, _), (last, body) = await collect(web.ServerSentEvents(events()))
    assert (first, last) == (PARTIAL, "error")
    assert body["error"]["type"] == "InternalError"
    assert body["error"]["billing"] == "unknown"
    assert "hunter2" not in json.dumps(body)
    (logged,) = [record for record in caplog.records if record.name == "elkimg_async"]
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], KeyError)


async def test_error_of_an_object_that_is_not_an_event(caplog: pytest.LogCaptureFixture) -> None:
    """An object that is not an event becomes an error event, not a broken response."""

    async def events() -> AsyncIterator[Any]:
        yield CompletedImage(type=COMPLETED, image=Image(PNG), size=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    ((name, body),) = await collect(web.ServerSentEvents(events()))
    assert (name, body["error"]["type"]) == ("error", "InternalError")
    assert caplog.records


@pytest.mark.parametrize(
    "kind", [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
)
async def test_error_body_of_every_error(kind: type[errors.ElkImagesError]) -> None:
    """Each error has a plain sentence and its own name, and reveals no text from elsewhere."""
    body = web.error_body(kind(SECRET))["error"]
    assert body["type"] == kind.__name__
    assert body["message"] == (body["message"] or "").strip()
    assert "10.1.2.3" not in str(body)

    class Special(kind):  # type: ignore[misc, valid-type]
        """A subclass of a user's own."""

    assert web.error_body(Special("x"))["error"]["type"] == kind.__name__


@pytest.mark.parametrize(
    "words",
    [
        "Post https://upstream.example/v1: EOF",
        "dial tcp 10.0.0.7: refused",
        "no route to [fd00::1]",
        "see images.internal for more",
        "gateway:8080 said no",
        "key sk-abc",
        "Bearer abc",
        "organization org-abc must be verified",
        "asked localhost",
    ],
)
async def test_error_body_withholds_addresses_and_secrets(words: str) -> None:
    """Upstream's message is withheld if it may contain an address or an API key."""
    body = web.error_body(errors.BadRequestError(words))["error"]
    assert body["message"] == "The image service rejected the request."


@pytest.mark.parametrize(
    "words",
    [
        "The server said no (status 400, invalid_value): Invalid value: 'huge'.",
        "gpt-image-1.5 takes sizes such as 1024x1024, at a ratio of at most 3:1.",
        "内容不符合规定。",
    ],
)
async def test_error_body_keeps_words_about_the_request(words: str) -> None:
    """A message about models, sizes and values is not mistaken for an address."""
    assert web.error_body(errors.BadRequestError(words))["error"]["message"] == words


async def test_error_body_says_when_to_try_again() -> None:
    """A rate limit states the seconds to wait, if they are known."""
    message = web.error_body(errors.RateLimitError("x", retry_after=12.4))["error"]["message"]
    assert message == "Too many images are being requested; try again in 12 s."
    untold = web.error_body(errors.RateLimitError("x"))["error"]["message"]
    assert untold == "Too many images are being requested; try again in a while."
