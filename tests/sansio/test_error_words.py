"""The message, code and type of errors, in every form of body."""

import base64
import json
from typing import Any

import pytest

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    BadRequestError,
    ModerationError,
    ResponseError,
)
from elkimg_async.sansio import error_mapping
from elkimg_async.sansio.decoder import ImagesDecoder
from tests.helpers.error_bodies import NOW, SHAPES, WORDS, api_body, error_of


def read_to_end(body: str) -> None:
    decoder = ImagesDecoder(stream=True, max_bytes=1 << 20)
    decoder.feed(body.encode())
    decoder.finish()
    while decoder.next_event() is not None:
        pass


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "XML"])
def test_error_shapes_inside_a_success(name: str) -> None:
    """Each shape is an error with status 200 too, as the body and as an event."""
    value, code, _ = SHAPES[name]
    text = json.dumps(value)
    for body in (text, f"data: {text}\n\n"):
        with pytest.raises(APIError) as caught:
            read_to_end(body)
        assert (caught.value.message, caught.value.code) == (WORDS, code)


@pytest.mark.parametrize(
    "value",
    [
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"header": {"code": 0, "message": "Success"}},
        {"meta": {"code": 200, "message": "OK"}},
        {"ResponseMetadata": {"RequestId": "r"}},
        {"status": {"code": 10000, "message": "Ok"}},
        {"err": None, "exception": None, "fault": {}},
    ],
)
def test_fields_of_a_success(value: Any) -> None:
    """The same fields that report a success do not fail the call."""
    decoder = ImagesDecoder(stream=False, max_bytes=1 << 20)
    decoder.feed(json.dumps({**value, "data": [{"url": "https://cdn.example.com/a.png"}]}).encode())
    decoder.finish()
    assert decoder.next_event() is not None
    assert len(decoder.response()) == 1


@pytest.mark.parametrize(
    "value",
    [
        {"predictions": [{"raiFilteredReason": WORDS}]},
        {"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": WORDS}},
        {"candidates": [{"finishReason": "IMAGE_SAFETY", "finishMessage": WORDS}]},
    ],
)
def test_moderation_inside_a_success(value: Any) -> None:
    """Moderation that is only reported by its reason is a ModerationError."""
    with pytest.raises(errors.ModerationError) as caught:
        read_to_end(json.dumps(value))
    assert caught.value.message == WORDS


@pytest.mark.parametrize("status", [400, 500, 200])
@pytest.mark.parametrize(("body", "code", "type_"), SHAPES.values(), ids=SHAPES.keys())
def test_api_error_message(body: Any, code: str | None, type_: str | None, status: int) -> None:
    """Message, code and type are the server's, word for word, in every form and status."""
    found = error_mapping.api_error(status, body)
    assert (found.message, found.code) == (WORDS, code)
    assert type_ is None or found.type == type_
    assert f": {WORDS}." in str(found)
    assert found.body == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error":{"message":"with a stop."}}', "with a stop."),
        ('{"error":{"message":"  blanks \\n"}}', "blanks"),
        ('{"error":{"message":"余额不足 (request id: r-1)"}}', "余额不足 (request id: r-1)"),
        ('{"error":{"message":"图像生成失败。"}}', "图像生成失败。"),
        ("Bad Gateway", "Bad Gateway"),
        ("  upstream connect error\n", "upstream connect error"),
        ('{"error":{"mess', '{"error":{"mess'),
        ('"quoted"', "quoted"),
        ('{"errors":["a","b","a"]}', "a; b"),
    ],
)
def test_response_error_message(body: str, message: str) -> None:
    """The message is the server's alone; the text of the error makes it a sentence."""
    found = error_of(400, body)
    assert found.message == message
    assert f": {message.rstrip('.。')}" in str(found)
    assert ".." not in str(found)


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
def test_response_error_without_a_message(body: str) -> None:
    """A body without a message, or a web page, leaves the message empty."""
    found = error_of(400, body)
    assert found.message in ("", body)
    assert "<" not in str(found)
    assert str(found).startswith("The server returned 400")


@pytest.mark.parametrize("status", [401, 403, 500, 502, 503, 520, 530])
def test_response_error_page(status: int) -> None:
    """The text for a web page blames something in between, not the API key."""
    body = (
        "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>"
    )
    found = error_of(status, body)
    assert "web page titled “Attention Required! | Cloudflare”" in str(found)
    assert "something in between" in str(found)
    assert "API key" not in str(found)
    assert found.body == body


def test_response_error_with_an_image() -> None:
    """An image beside an error is on it, and may have been billed."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
    value = {"error": {"message": "late"}, "data": [{"b64_json": base64.b64encode(png).decode()}]}
    found = error_of(500, json.dumps(value))
    assert [image.content for image in found.images] == [png]
    assert found.body == value
    assert found.billing == "unknown"


def test_response_error_of_moderation() -> None:
    """The moderation details are on the error as they were sent."""
    details = {"categories": ["violence"], "moderation_stage": "output"}
    found = error_of(400, json.dumps({"error": {"message": "no", "moderation_details": details}}))
    assert isinstance(found, ModerationError)
    assert found.moderation == details


def test_response_error_with_the_details_of_fastapi() -> None:
    """The problems in FastAPI's list are in the text of the error."""
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
def test_response_error_code(code: Any, expected: str | None) -> None:
    """A code is text or a whole number, and may be in `type` and `param` too."""
    found = error_of(400, json.dumps({"error": {"code": code, "type": code, "param": code}}))
    assert (found.code, found.type, found.param) == (expected,) * 3
    assert type(found) is BadRequestError


@pytest.mark.parametrize("code", [True, False])
def test_response_error_code_that_is_a_boolean(code: bool) -> None:
    """A boolean is not a code."""
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
def test_response_error_of_almost_json(body: bytes) -> None:
    """Invalid JSON in an error is read leniently, since its code decides about retries."""
    found = error_of(500, body)
    assert (type(found), found.code, found.billing) == (
        BadRequestError,
        "invalid_request",
        "refused",
    )


def test_response_error_of_much_text() -> None:
    """A long body is shortened in the message."""
    for body in ("x" * 100_000, "<" + "x" * 100_000):
        found = error_of(500, body)
        assert found.body == body[: error_mapping.MAX_BODY_TEXT]
        assert len(str(found)) < 2_500
    found = error_of(400, api_body("c", "y" * 100_000))
    assert len(str(found)) < 2_500
    assert "yyy…" in str(found)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_response_error_redirect(status: int) -> None:
    """A redirect is a `ResponseError` that points to the base URL."""
    headers = {"location": "https://elsewhere/path?token=secret", "x-request-id": "u"}
    found = error_mapping.response_error(status, headers, b"<html>", now=NOW)
    assert type(found) is ResponseError
    assert (found.status, found.request_id, found.billing) == (status, "u", "unknown")
    assert "https://elsewhere/path" in str(found)
    assert "secret" not in str(found)
    assert "base URL" in str(found)
    assert "base URL" in str(error_mapping.response_error(status, {}, b"", now=NOW))
