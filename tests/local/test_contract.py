"""Requests and responses of the local server, without a socket."""

import base64
import json
from typing import Any

import msgspec
import pytest

from elkimg_async.local import contract, responses
from elkimg_async.local.contract import (
    GatewayError,
    ParsedRequest,
    parse_fields,
    parse_json,
)
from elkimg_async.local.responses import GeneratedImages
from elkimg_async.local.script import End, Pause, ScriptedResponse, Step, joined, steps
from elkimg_async.sansio.requests import GenerateRequest

HEADERS = {responses.REQUEST_ID: "r-1"}


def parse(body: bytes) -> ParsedRequest:
    return parse_fields(parse_json(body), GenerateRequest)


def parsed(**fields: Any) -> ParsedRequest:
    return parse(msgspec.json.encode({"model": "gpt-image-1", "prompt": "a boat", **fields}))


def rejection(body: bytes) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        parse(body)
    return caught.value


def events(response: ScriptedResponse) -> list[tuple[str, Any]]:
    found = []
    for frame in response.frames:
        if frame.startswith(b"event: "):
            name, data = frame.decode().rstrip("\n").split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_parse_fields_fills_in_defaults() -> None:
    """Missing fields get the documented defaults."""
    plain = parse(b'{"prompt": "a boat"}')
    assert (plain.model, plain.n, plain.width, plain.height) == ("gpt-image-1.5", 1, 1024, 1024)
    assert (plain.output_format, plain.compression, plain.stream) == ("png", 100, False)
    assert not plain.by_url
    assert not plain.transparent


def test_parse_generation_drops_unknown_keys_and_nulls() -> None:
    """Unknown fields are dropped silently, and null counts as absent."""
    assert parsed(colour="red", extra_body={"n": 7}, n=None) == parsed()


@pytest.mark.parametrize(
    ("model", "response_format", "by_url"),
    [("dall-e-2", None, True), ("dall-e-3", "url", True), ("dall-e-3", "b64_json", False)],
)
def test_parse_generation_by_url(model: str, response_format: str | None, by_url: bool) -> None:
    """The dall-e models return a URL unless base64 is requested."""
    assert parsed(model=model, response_format=response_format).by_url is by_url


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"stream": "false"}, 500, "invalid_request"),
        ({"n": 1.0}, 500, "invalid_request"),
        ({"n": "1"}, 500, "invalid_request"),
        ({"n": True}, 500, "invalid_request"),
        ({"n": 0}, 500, "invalid_request"),
        ({"n": -1}, 500, "invalid_request"),
        ({"n": 11}, 500, "invalid_request"),
        ({"n": 2, "model": "dall-e-3"}, 500, "invalid_request"),
        ({"size": "1x1"}, 500, "invalid_request"),
        ({"prompt": None}, 500, "invalid_request"),
        ({"prompt": " "}, 500, "invalid_request"),
        ({"prompt": "a" * 32_001}, 500, "invalid_request"),
        ({"partial_images": 4, "stream": True}, 500, "invalid_request"),
        ({"background": "transparent", "output_format": "jpeg"}, 500, "invalid_request"),
        ({"model": "dall-e-2", "stream": True}, 500, "invalid_request"),
        ({"frame_count": 1}, 500, "invalid_request"),
        ({"svg": "x"}, 500, "invalid_request"),
        ({"safety_identifier": 7}, 500, "invalid_request"),
        ({"model": "no-such"}, 503, "model_not_found"),
        ({"model": 7}, 500, "invalid_request"),
        ({"response_format": "url"}, 400, "unknown_parameter"),
    ],
)
def test_parse_generation_invalid_field(fields: dict[str, Any], status: int, code: str) -> None:
    """Each error has the status and the code of the gateway."""
    with pytest.raises(GatewayError) as caught:
        parsed(**fields)
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"\xff", b"[" * 100_000, b"null"])
def test_parse_generation_bad_body(body: bytes) -> None:
    """A body that is not a JSON object is an invalid request."""
    assert (rejection(body).status, rejection(body).code) == (500, "invalid_request")


def test_check_api_key_wrong() -> None:
    """Only the expected API key as Bearer token is accepted; the error has an empty code."""
    contract.check_api_key({"Authorization": "Bearer right"}, "right")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
        with pytest.raises(GatewayError) as caught:
            contract.check_api_key(headers, "right")
        assert (caught.value.status, caught.value.code) == (401, "")


def test_error_response_shape() -> None:
    """Errors have message, type, param and code, and the message ends in the request id."""
    response = responses.error_response(GatewayError(401, "no"), HEADERS)
    assert response.status == 401
    assert json.loads(response.body) == {
        "error": {"message": "no (request id: r-1)", "type": "api_error", "param": "", "code": ""}
    }


def test_success_response_json() -> None:
    """A batch response has each image, its description and the usage."""
    request = parsed(n=2, size="1536x1024", quality="low", background="transparent")
    response = responses.success_response(
        request, GeneratedImages(created=17, images=(b"one", b"two")), HEADERS, stream=False
    )
    value = json.loads(response.body)
    assert [base64.b64decode(item["b64_json"]) for item in value["data"]] == [b"one", b"two"]
    assert {name: value[name] for name in ("created", "size", "quality", "background")} == {
        "created": 17,
        "size": "1536x1024",
        "quality": "low",
        "background": "transparent",
    }
    assert response.headers == {**HEADERS, "Content-Type": "application/json"}


def test_success_response_by_url() -> None:
    """A response by URL has the URL instead of the image, and dall-e-3's revised prompt."""
    result = GeneratedImages(created=17, images=(b"one",), urls=("http://host/one.png",))
    response = responses.success_response(parsed(model="dall-e-3"), result, HEADERS, stream=False)
    assert json.loads(response.body)["data"] == [
        {"url": "http://host/one.png", "revised_prompt": "a boat"}
    ]


def test_success_response_stream() -> None:
    """A stream has a ping, partial images, a completed event per image, and [DONE]."""
    request = parsed(stream=True, partial_images=2, n=2)
    result = GeneratedImages(created=17, images=(b"one", b"two"), partials=(b"p0", b"p1"))
    response = responses.success_response(request, result, HEADERS, stream=True)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.frames[0] == b": PING\n\n"
    assert response.frames[-1] == b"data: [DONE]\n\n"
    partials, completed = events(response)[:2], events(response)[2:]
    assert [name for name, _ in partials] == ["image_generation.partial_image"] * 2
    assert [data["partial_image_index"] for _, data in partials] == [0, 1]
    assert [name for name, _ in completed] == ["image_generation.completed"] * 2
    assert [base64.b64decode(data["b64_json"]) for _, data in completed] == [b"one", b"two"]
    for name, data in events(response):
        assert data["type"] == name
        assert data["created_at"] == 17
    for _, data in completed:
        assert data["usage"] == responses.usage(request)


@pytest.mark.parametrize("quality", ["low", "medium", "high", "auto"])
def test_usage_adds_up(quality: str) -> None:
    """Input and output add up to the total, the details to the input; partial images cost."""
    usage = responses.usage(parsed(n=3, quality=quality))
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] == sum(usage["input_tokens_details"].values())
    streamed = responses.usage(parsed(n=3, quality=quality, stream=True, partial_images=2))
    extra = streamed["output_tokens"] - usage["output_tokens"]
    assert extra == 2 * responses.PARTIAL_IMAGE_TOKENS


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (1, "1s"), (59.5, "59.5s"), (60, "1m0s"), (390, "6m30s")]
)
def test_duration(seconds: float, text: str) -> None:
    """Rate-limit headers have durations as text."""
    assert responses.duration(seconds) == text


def test_models_response_shape() -> None:
    """Models come in OpenAI's list shape, with endpoint types and shutdown dates."""
    value = json.loads(responses.models_response(HEADERS).body)
    assert value["object"] == "list"
    assert "gpt-image-1.5" in {model["id"] for model in value["data"]}
    dates = {model["id"]: model["shutdown_date"] for model in value["data"]}
    assert dates["gpt-image-1.5"] == "2026-12-01"
    assert dates["gpt-image-2"] is None
    assert all("image-generation" in model["supported_endpoint_types"] for model in value["data"])


def test_steps_with_a_length() -> None:
    """A plain response is a pause, the head with the length, and the body."""
    script = list(steps(ScriptedResponse(headers={"A": "b"}, frames=(b"12", b"345"), delay=2.0)))
    expected: list[Step] = [
        Pause(2.0),
        b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n",
        b"12",
        b"345",
    ]
    assert script == expected


def test_steps_of_a_stream() -> None:
    """A stream is the head, a pause before each event, and an empty last chunk."""
    frames = (b": PING\n\n", b"event: a\n\n")
    script = list(steps(ScriptedResponse(frames=frames, framing="chunked", delay=2.0)))
    expected: list[Step] = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"8\r\n: PING\n\n\r\n",
        Pause(2.0),
        b"a\r\nevent: a\n\n\r\n",
        b"0\r\n\r\n",
    ]
    assert script == expected


def test_steps_without_framing() -> None:
    """Without a length and chunks, the body ends with the connection."""
    script = list(steps(ScriptedResponse(status=524, frames=(b"12",), framing="close")))
    assert script[-1] is End.CLOSE
    assert joined(iter(script)) == b"HTTP/1.1 524 Unknown\r\nConnection: close\r\n\r\n12"
