"""Encoding of requests."""

import json
from typing import Any

import pytest

from elkimg_async.errors import (
    InvalidRequestError,
)
from elkimg_async.sansio import encode
from elkimg_async.sansio.requests import GenerateRequest

NOW = 1_700_000_000.0


def sent(stream: bool = False, **fields: Any) -> dict[str, Any]:
    request = encode.generate(GenerateRequest(prompt="a", **fields), stream=stream)
    assert isinstance(request.body, bytes)
    value = json.loads(request.body)
    assert isinstance(value, dict)
    return value


# Requests


def test_generate_sends_what_is_set() -> None:
    """Only set fields and the model are sent, with numbers as numbers."""
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
    """`stream` is a JSON boolean, and absent from a batch call."""
    assert sent(stream=True)["stream"] is True
    assert "stream" not in sent()


@pytest.mark.parametrize(
    ("model", "stream", "requested", "expected"),
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
    model: str | None, stream: bool, requested: int | None, expected: int | None
) -> None:
    """A stream from a GPT image model requests one partial image by default."""
    assert sent(stream, model=model, partial_images=requested).get("partial_images") == expected


def test_generate_extra_body_wins() -> None:
    """`extra_body` adds fields and overrides known ones."""
    extra = {"seed": 1, "n": "2", "stream": "false", "partial_images": None, "x": {"y": [1, None]}}
    found = sent(stream=True, n=1, size="1x1", extra_body=extra)
    assert found == {"prompt": "a", "model": "gpt-image-1.5", "size": "1x1", **extra}
    assert sent(extra_body={}) == sent()
    assert sent(stream=True, extra_body={"model": "flux"})["model"] == "flux"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("key", [None, "k-1"])
def test_generate_headers(key: str | None, stream: bool) -> None:
    """The headers describe the body and the accepted types, and carry the idempotency key."""
    request = encode.generate(GenerateRequest(prompt="a"), stream=stream, idempotency_key=key)
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
    """Text and data that JSON cannot represent are rejected by name."""
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON") as caught:
        encode.generate(GenerateRequest(**{"prompt": "a", **fields}), stream=False)
    assert caught.value.param == param
    assert param in str(caught.value)


def test_generate_with_a_loop_in_extra_body() -> None:
    """Data that contains itself is rejected."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidRequestError, match="seed"):
        sent(extra_body={"seed": loop})


def test_generate_with_a_key_that_is_not_unicode() -> None:
    """A name in `extra_body` that is not valid Unicode is rejected like a value."""
    with pytest.raises(InvalidRequestError, match="JSON"):
        sent(extra_body={"\ud800": 1})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_generate_with_what_is_no_number(number: float) -> None:
    """NaN and infinity, which JSON lacks, are rejected rather than sent as null."""
    with pytest.raises(InvalidRequestError, match="JSON"):
        sent(extra_body={"seed": number})
