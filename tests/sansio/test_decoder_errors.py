"""Decoding of errors, and of damaged and unusual bodies."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    BadRequestError,
    ElkImagesError,
    ModerationError,
    RateLimitError,
    ResponseError,
    ServerError,
)
from elkimg_async.image import Image
from elkimg_async.sansio.decoder import ImagesDecoder
from elkimg_async.sansio.models import read_models
from elkimg_async.sansio.responses import (
    CompletedImage,
    PartialImage,
)
from tests.helpers.bodies import (
    BOM,
    COMPLETED,
    MAX_BYTES,
    ONE,
    PARTIAL,
    PINGS,
    THREE,
    TWO,
    USAGE,
    Outcome,
    b64,
    failure,
    frame,
    item,
    json_body,
    outcome,
)
from tests.helpers.splits import cut, one_by_one

ERRORS: list[tuple[Any, type[APIError], str | None]] = [
    (
        {"error": {"message": "no", "code": "moderation_blocked"}},
        ModerationError,
        "moderation_blocked",
    ),
    ({"error": {"message": "no", "type": "rate_limit_error"}}, RateLimitError, None),
    ({"error": {"message": "no", "type": "invalid_request_error"}}, BadRequestError, None),
    ({"error": {"message": "no", "code": 429}}, RateLimitError, "429"),
    ({"error": {"message": "no", "code": "500"}}, ServerError, "500"),
    ({"error": {"message": "no", "code": None}}, APIError, None),
    ({"error": {"message": "no", "code": ""}, "data": []}, APIError, None),
    ({"error": "no"}, APIError, None),
    ({"error": "no", "type": COMPLETED, "b64_json": b64(ONE)}, APIError, None),
    ({"type": "error", "error": {"message": "no"}}, APIError, None),
    (
        {"type": "error", "message": "no", "code": "content_filter"},
        ModerationError,
        "content_filter",
    ),
    ({"type": "upstream_error", "message": "no"}, ServerError, None),
    ({"error": ["no"]}, APIError, None),
    ({"error": {}, "type": "error", "message": "no"}, APIError, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("value", "cls", "code"), ERRORS)
def test_body_error_inside(value: Any, cls: type[APIError], code: str | None, stream: bool) -> None:
    """An error is raised from JSON, from an event, and from a bare line after a ping."""
    text = json.dumps(value)
    for body in (
        text,
        f"data: {text}\n\n",
        f"event: error\ndata: {text}\n\n",
        f": PING\n\n{text}\n",
        f": PING\n\n{text}",
    ):
        found = failure(body, stream=stream)
        assert type(found) is cls
        assert isinstance(found, APIError)
        assert (found.status, found.code) == (200, code)
        assert found.body == value or "b64_json" in value
        came = [image.content for image in found.images]
        assert came == ([ONE] if "b64_json" in value else [])
        is_refused = not came and cls in (ModerationError, RateLimitError, BadRequestError)
        assert found.billing == ("refused" if is_refused else "unknown")
        assert "no" in str(found) or isinstance(value["error"], list)


def test_body_error_after_images() -> None:
    """Images before an error are delivered first, and are on the error."""
    body = frame(PARTIAL, ONE) + frame(COMPLETED, TWO) + 'data: {"error":{"message":"no"}}\n\n'
    found = outcome(body + frame(COMPLETED, THREE))
    assert found.given == [ONE, TWO]
    assert type(found.failure) is APIError
    assert [image.content for image in found.failure.images] == [TWO]
    assert found.failure.billing == "unknown"


def test_body_error_after_half_an_image() -> None:
    """An error after an incomplete image is raised on any split."""
    half = frame(COMPLETED, ONE * 3)[:-20]
    for error in (
        '\n\ndata: {"error":"no"}\n\n',
        '\n\n{"error":"no"}\n',
        "\r\n\r\nevent: error\r\ndata: no\r\n\r\n",
    ):
        found = failure(half + error)
        assert type(found) is APIError
        assert "no" in str(found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("something broke", "something broke"),
        ('{"message":"something broke"}', "something broke"),
        ('{"detail":"something broke"}', "something broke"),
        ('{"error":"something broke"}', "something broke"),
        ("{}", ""),
        ("", ""),
        ("null", ""),
        ("[1]", ""),
        ("图像生成失败", "图像生成失败"),
        ("<html>", ""),
        ("line one\ndata: line two", "line one\nline two"),
    ],
)
def test_body_error_event_with_text(data: str, message: str) -> None:
    """An event named `error` is an error, whatever its data."""
    found = failure(f"event: error\ndata: {data}\n\n")
    assert type(found) is APIError
    assert (": " + message if message else ".") in str(found)
    assert failure(f"event: error\ndata: {data}").__class__ is APIError


def test_body_error_event_with_a_string() -> None:
    """A JSON string as an error's data is shown without its quotes."""
    found = failure('event: error\ndata: "something \\u0062roke"\n\n')
    assert "something broke" in str(found)
    assert '"' not in str(found)


@pytest.mark.parametrize("code", ["0429" + "1" * 5_000, "9" * 5_000, "٤٢٩", "²", "-1", "1e3"])
def test_body_error_with_a_strange_code(code: str) -> None:
    """An error code of any type becomes an `APIError`."""
    found = Outcome([json.dumps({"error": {"code": code}}).encode()], stream=False).failure
    assert isinstance(found, APIError)
    assert found.code == code


@pytest.mark.parametrize("depth", [100, 400, 900, 2_000, 50_000])
def test_body_nested(depth: int) -> None:
    """Any depth of nesting raises only errors of this package."""
    nest = "[" * depth + "]" * depth
    for body in (f'{{"error":{{"x":{nest}}}}}', f'{{"error":{nest}}}', f'{{"data":{nest}}}', nest):
        for text in (body, f"data: {body}\n\n"):
            assert isinstance(Outcome([text.encode()], stream=True).failure, ElkImagesError)
    item = f'{{"b64_json":"{b64(ONE)}","x":{nest}}}'
    found = Outcome([f'{{"data":[{item}]}}'.encode()], stream=True)
    assert found.failure is None or (depth > 400 and type(found.failure) is ResponseError)


@pytest.mark.parametrize("depth", [100, 450, 900, 50_000])
@pytest.mark.parametrize("name", ["data", "output", "result", "response", "status", "error", "x"])
def test_body_nested_in_objects(name: str, depth: int) -> None:
    """Any depth of objects raises only errors of this package, under any name."""
    body = f'{{"{name}":' * depth + "1" + "}" * depth
    for text in (body, f"data: {body}\n\n"):
        assert isinstance(Outcome([text.encode()], stream=True).failure, ElkImagesError)
    with pytest.raises(ElkImagesError):
        read_models(body.encode())


def test_body_failure_stays() -> None:
    """A failed decoder raises the same error again, and ignores further data."""
    decoder = ImagesDecoder(stream=True, max_bytes=MAX_BYTES)
    decoder.feed(b'data: {"error":"no"}\n\n')
    decoder.feed(frame(COMPLETED, ONE).encode())
    decoder.finish()
    for _ in range(2):
        with pytest.raises(APIError) as caught:
            decoder.next_event()
        assert caught.value is decoder.failure


def test_body_feed_recognizes_pings() -> None:
    """`feed` returns whether the data is more than blanks and pings."""
    big = b'data: {"type":"x","y":"' + b"z" * 2_000
    for pings in ([b" \n", BOM, b": PING\n\n"], [b"data:\n\n", b'data: {"type":"keepalive"}\n\n']):
        for last in (big, frame(PARTIAL, ONE).encode(), b"data: [DONE]\n\n", b'{"error":1}\n'):
            decoder = ImagesDecoder(stream=True, max_bytes=MAX_BYTES)
            assert [decoder.feed(chunk) for chunk in pings] == [False] * len(pings)
            assert decoder.feed(last)
    for body in (b'{"a":', b"<p>"):
        decoder = ImagesDecoder(stream=False, max_bytes=MAX_BYTES)
        assert [decoder.feed(chunk) for chunk in (b" ", b"\n", body, b" ")] == [
            False,
            False,
            True,
            True,
        ]


def test_body_events_as_they_come() -> None:
    """Each event is returned as soon as its blank line has arrived."""
    decoder = ImagesDecoder(stream=True, max_bytes=MAX_BYTES)
    for content in (ONE, TWO):
        body = frame(PARTIAL, content).encode()
        decoder.feed(body[:-1])
        assert decoder.next_event() is None
        decoder.feed(body[-1:])
        event = decoder.next_event()
        assert isinstance(event, PartialImage)
        assert event.image == Image(content)
    assert decoder.failure is None


SEEDS = [
    json_body(item(ONE), item(TWO), usage=USAGE),
    json_body({"url": "data:image/png;base64," + b64(ONE)}, {"url": "https://x/1"}),
    json.dumps({"error": {"message": "no", "code": "x", "type": "y", "param": None}}),
    PINGS + frame(PARTIAL, ONE, partial_image_index=0) + frame(COMPLETED, TWO, usage=USAGE),
    frame(None, ONE, name=COMPLETED) + "data: [DONE]\n\n",
    ': PING\n\n{"error":{"message":"no"}}\n',
    f"data: {json_body(item(ONE))}\r\n\r\nevent: error\r\ndata: no\r\n\r\n",
]
TOKENS = [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\n\n", b"=", b"1", b"-"]
TOKENS += [
    b"null",
    b"true",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    BOM,
    b"\0",
]
TOKENS += [
    b'"b64_json":"',
    b'"error":',
    b'"data":',
    b'"url":',
    b"data: ",
    b"event: error\n",
    b"<",
    b" ",
]


def sound(body: bytes, chunks: list[bytes], *, stream: bool) -> None:
    """Check that only expected errors are raised, the same on any split."""
    whole = Outcome([body], stream=stream)
    assert repr(Outcome(chunks, stream=stream)) == repr(whole)
    if whole.failure is None:
        assert whole.response is not None
        assert len(whole.response) > 0
        assert any(isinstance(event, CompletedImage) for event in whole.events)
    else:
        assert type(whole.failure).__name__ in errors.__all__
        assert str(whole.failure)


@settings(max_examples=100)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(TOKENS), st.integers(0, 12)),
        min_size=1,
        max_size=4,
    ),
    where=st.lists(st.integers(0, 500), max_size=4),
    stream=st.booleans(),
)
def test_body_mutated(seed: str, edits: list[Any], where: list[int], stream: bool) -> None:
    """A damaged body becomes images or an error of this package, the same on any split."""
    body = bytearray(seed.encode())
    for place, token, length in edits:
        body[place : place + length] = token
    sound(bytes(body), cut(bytes(body), where), stream=stream)
    sound(bytes(body), one_by_one(bytes(body)), stream=stream)


@settings(max_examples=100)
@given(
    body=st.binary(max_size=80) | st.lists(st.sampled_from(TOKENS), max_size=20).map(b"".join),
    where=st.lists(st.integers(0, 80), max_size=4),
    stream=st.booleans(),
)
def test_body_of_any_bytes(body: bytes, where: list[int], stream: bool) -> None:
    """Arbitrary bytes become an error of this package, the same on any split."""
    sound(body, cut(body, where), stream=stream)


json_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    json_leaves | st.sampled_from([b64(ONE), "data:,", "error", COMPLETED, PARTIAL]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "data",
                    "type",
                    "b64_json",
                    "url",
                    "usage",
                    "code",
                    "message",
                    "param",
                    "created",
                    "created_at",
                    "detail",
                    "partial_image_index",
                    "total_tokens",
                    "size",
                    "input_tokens_details",
                    "text_tokens",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100)
@given(
    values=st.lists(json_values, min_size=1, max_size=3),
    name=st.sampled_from(["", "error", COMPLETED, PARTIAL, "x"]),
)
def test_body_of_any_values(values: list[Any], name: str) -> None:
    """Any JSON values become images or an error of this package."""
    text = json.dumps(values[0]).encode()
    sound(text, one_by_one(text), stream=False)
    event = f"event: {name}\n" if name else ""
    body = "".join(f"{event}data: {json.dumps(value)}\n\n" for value in values).encode()
    sound(body, one_by_one(body), stream=True)


ODD_SIDES = [
    '"partial_image_index":1',
    '"partial_image_index":1.0',
    '"partial_image_index":"1"',
    '"partial_image_index":1.5',
    '"created_at":1710000000,"size":"1024x1024","quality":"high","background":"opaque"',
    '"created_at":1.0',
    '"created_at":1e400',
    '"created_at":"soon"',
    '"created":5',
    '"size":"","quality":null,"output_format":7',
    '"size":"\\u0041","background":"\\ud800"',
    '"size":"größer"',
    '"revised_prompt":"a kitten"',
    '"revised_prompt":""',
    '"error":null',
    '"error":""',
    '"error":{"message":"no","code":"busy"}',
    '"\\u0065rror":{"message":"no"}',
    '"url":""',
    '"url":null',
    '"url":"https://example.com/x.png"',
    '"url":"data:image/png;base64,/9j/QUJD"',
    '"u\\u0072l":"https://example.com/x.png"',
    '"b64_json":""',
    '"b64_json":"/9j/QUJD"',
    '"b64\\u005fjson":"/9j/QUJD"',
    '"b64_json":null',
    '"x":{"b64_json":"/9j/QUJD"}',
    '"x":"\\"b64_json\\":\\"/9j/QUJD"',
    '"image":{"content":"/9j/QUJD"}',
    '"type":"image_edit.partial_image"',
    '"type":"error"',
    '"type":"keepalive"',
    '"type":"image_generation.completed"',
    '"type":7',
    '"usage":{"total_tokens":1.5}',
    '"x":NaN',
    '"x":' + "[" * 3000 + "]" * 3000,
    '"x":"' + "y" * 1100 + '"',
    '"x":1}{',
    '"x":',
]


@pytest.mark.parametrize("side", ODD_SIDES, ids=range(len(ODD_SIDES)))
@pytest.mark.parametrize("name", [PARTIAL, COMPLETED, "error", None])
def test_body_with_unusual_fields_beside_an_image(side: str, name: str | None) -> None:
    """Unusual fields next to an image are read the same way, whole and byte by byte."""
    for image in ('"b64_json":"/9j/QUJD"', '"b64_json": "/9j/QUJD"'):
        for fields in (f"{side},{image}", f"{image},{side}"):
            odd = ("" if name is None else f"event: {name}\n") + "data: {" + fields + "}\n\n"
            plain = frame(PARTIAL, TWO), frame(PARTIAL, THREE)
            body = (plain[0] + odd + odd + plain[1] + frame(COMPLETED, ONE)).encode()
            whole = Outcome([body], stream=True)
            assert repr(whole) == repr(Outcome(one_by_one(body), stream=True))
            assert whole.failure or {TWO, THREE} <= {event.image.content for event in whole.events}


@pytest.mark.parametrize(
    ("error", "billing"),
    [
        ({"message": "no"}, "unknown"),
        ({"message": "no", "code": "something_new"}, "unknown"),
        ({"message": "no", "type": "server_error"}, "unknown"),
        ({"message": "no", "code": 502}, "unknown"),
        ({"message": "no", "code": "bad_response_body"}, "unknown"),
        ({"message": "no", "code": 503}, "refused"),
        ({"message": "no", "code": "do_request_failed"}, "refused"),
        ({"message": "no", "type": "overloaded_error"}, "refused"),
        ({"message": "no", "type": "invalid_request_error"}, "refused"),
        ({"message": "no", "code": 400}, "refused"),
        ({"message": "no", "code": "moderation_blocked"}, "refused"),
        ({"message": "no", "code": "insufficient_quota"}, "refused"),
        ({"message": "no", "code": "rate_limit_exceeded"}, "refused"),
    ],
)
def test_billing_of_an_error_inside(error: dict[str, Any], billing: str) -> None:
    """An error after status 200 is `refused` only if it means that no image was begun."""
    text = json.dumps({"error": error})
    for body in (text, f"event: error\ndata: {text}\n\n", f": PING\n\n{text}\n"):
        assert failure(body).billing == billing
    assert failure(frame(PARTIAL, ONE) + f"data: {text}\n\n").billing == "unknown"
