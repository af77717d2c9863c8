"""Decoding of response bodies of every shape, whole and in chunks."""

import json
import logging
from typing import Any

import pytest

from elkimg_async.errors import (
    EmptyResultError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.sansio.error_mapping import MAX_BODY_TEXT
from elkimg_async.sansio.responses import (
    CompletedImage,
    TokenDetails,
    Usage,
)
from tests.helpers.bodies import (
    BOM,
    COMPLETED,
    ONE,
    READ_USAGE,
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
from tests.helpers.splits import every_split, one_by_one


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", ["", "\n", "  \r\n\t \n"])
@pytest.mark.parametrize("indent", [None, 1])
def test_body_json(before: str, indent: int | None, stream: bool) -> None:
    """The images of a JSON body are completed events, stream requested or not, blanks or not."""
    body = json.loads(json_body(item(ONE), item(TWO, revised_prompt="p"), usage=USAGE, size="1x1"))
    found = outcome(before + json.dumps(body, indent=indent) + before, stream=stream)
    assert found.images == found.given == [ONE, TWO]
    assert found.response is not None
    assert (found.response.created, found.response.size) == (1710000000, "1x1")
    assert (found.response.quality, found.response.background) == (None, None)
    assert found.response.usage == READ_USAGE
    assert [image.revised_prompt for image in found.response] == [None, "p"]
    for event in found.events:
        assert isinstance(event, CompletedImage)
        assert (event.type, event.usage, event.created_at, event.size) == (
            COMPLETED,
            READ_USAGE,
            1710000000,
            "1x1",
        )


def test_body_json_after_a_byte_order_mark() -> None:
    """A byte order mark before JSON or a page is ignored on any split."""
    body = json.dumps(json.loads(json_body(item(ONE))), indent=1).encode()
    for before in (BOM, b" \n" + BOM, BOM + b"\n "):
        found = outcome(before + body)
        assert found.images == [ONE]
        assert found.skipped == []
        assert "web page" in str(failure(before + b"<html></html>"))
    for before in (BOM, b" \n" + BOM, BOM + b"\n"):
        assert outcome(before + frame(COMPLETED, ONE).encode()).images == [ONE]


@pytest.mark.parametrize(
    ("value", "images"),
    [
        ({"b64_json": b64(ONE)}, [ONE]),
        ({"b64_json": b64(ONE), "url": "https://x/1"}, [ONE]),
        ({"b64_json": "", "url": "https://x/1"}, ["https://x/1"]),
        ({"b64_json": None, "url": "/1.png"}, ["/1.png"]),
        ({"url": "images/1.png?a=b"}, ["images/1.png?a=b"]),
        ({"url": "data:image/png;base64," + b64(ONE)}, [ONE]),
        ({"b64_json": None, "url": "DATA:image/png;base64," + b64(ONE)}, [ONE]),
        ({"b64_json": "data:image/png;base64," + b64(ONE), "url": ""}, [ONE]),
        ({"b64_json": b64(ONE), "url": "data:image/png;base64," + b64(TWO)}, [ONE, TWO]),
        ({"b64_json": b64(ONE), "url": 5, "revised_prompt": 5, "new": {"b64_json": "?"}}, [ONE]),
        ({"b64_json": "not base64!", "url": "https://x/1"}, ["https://x/1"]),
    ],
)
def test_body_json_item(value: dict[str, Any], images: list[Any]) -> None:
    """An item is its base64 if it has any, else its URL; a `data:` URL is bytes."""
    assert outcome(json_body(value)).images == images
    assert outcome(json.dumps(value)).images == images
    assert outcome(json.dumps({"data": value})).images == images
    assert outcome(json.dumps([value])).images == images


EMPTY: list[Any] = [
    None,
    {},
    "",
    5,
    [],
    {"b64_json": ""},
    {"b64_json": None, "url": ""},
    {"url": None},
    {"url": 5},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        '{"created":1}',
        '{"data":null}',
        '{"data":[]}',
        '{"data":""}',
        '{"data":{}}',
        '{"error":null,"data":[]}',
        *(json_body(value) for value in EMPTY),
        json_body(*EMPTY),
    ],
)
def test_body_json_without_an_image(body: str, stream: bool) -> None:
    """A success without an image is an error, in a stream too."""
    found = failure(body, stream=stream)
    assert type(found) is EmptyResultError
    assert found.billing == "unknown"


@pytest.mark.parametrize("empty", EMPTY, ids=repr)
def test_body_json_with_an_empty_slot(empty: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Empty items among images are skipped, with a line in the log."""
    with caplog.at_level(logging.WARNING, "elkimg_async"):
        found = Outcome([json_body(empty, item(ONE), empty, item(TWO)).encode()], stream=False)
    assert found.images == found.given == [ONE, TWO]
    assert len(caplog.records) == 1
    assert "2" in caplog.text


def test_body_json_with_one_image_corrupt() -> None:
    """One corrupt image of several is an error that names it and carries the good ones."""
    body = json_body(item(ONE), {"b64_json": "AAAA!AAA"}, item(THREE))
    for stream in (False, True):
        found = failure(body, stream=stream)
        assert type(found) is ResponseError
        assert [image.content for image in found.images] == [ONE, THREE]
        assert "Image 2 of 3" in str(found)


@pytest.mark.parametrize("stream", [False, True])
def test_body_json_truncated(stream: bool) -> None:
    """A JSON body that is cut off anywhere is an error that shows its beginning."""
    body = json_body(item(ONE), usage=USAGE).encode()
    for end in range(1, len(body)):
        for chunks in ([body[:end]], one_by_one(body[:end])):
            found = Outcome(chunks, stream=stream)
            assert type(found.failure) is ResponseError
            assert found.events == []
            assert found.failure.body is not None
            assert body.decode().startswith(found.failure.body.partition("#")[0].rstrip())


@pytest.mark.parametrize("body", ["{oops}", '{"data":[}', "[1,", "{'a':1}", '{"a":1,}'])
def test_body_json_broken(body: str) -> None:
    """Broken JSON is a `ResponseError` that shows it."""
    found = failure(body)
    assert type(found) is ResponseError
    assert found.body == body


def test_body_json_nested_too_deeply() -> None:
    """Endless nesting is a `ResponseError`."""
    found = Outcome([b'{"a":' + b"[" * 200_000], stream=False)
    assert type(found.failure) is ResponseError


@pytest.mark.parametrize(
    "invalid",
    [
        '"created":"x"',
        '"created":1.5',
        '"created":NaN',
        '"created":1e999',
        '"created":' + "9" * 500,
        '"usage":[]',
        '"usage":"x"',
        '"usage":{"total_tokens":"x","input_tokens":[],"input_tokens_details":5}',
        '"size":5',
        '"quality":{}',
        '"x":"\\ud800"',
        '"output_format":null',
    ],
)
def test_body_json_side_data_never_costs_an_image(invalid: str) -> None:
    """Images are delivered despite errors in the fields around them."""
    body = f'{{"data":[{{"b64_json":"{b64(ONE)}"}}],{invalid}}}'
    assert outcome(body, exhaustive=False).images == [ONE]
    completed = f'data: {{"type":"{COMPLETED}","b64_json":"{b64(ONE)}",{invalid}}}\n\n'
    assert outcome(completed, exhaustive=False).images == [ONE]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, READ_USAGE),
        (None, None),
        ([], None),
        ({}, Usage()),
        ({"total_tokens": 0, "input_tokens": 0}, Usage(total_tokens=0, input_tokens=0)),
        ({"total_tokens": None, "input_tokens": None}, Usage()),
        ({"total_tokens": 1.5, "input_tokens": 2.0}, Usage(total_tokens=1.5, input_tokens=2)),
        ({"total_tokens": "12", "input_tokens": True}, Usage(total_tokens=12)),
        ({"total_tokens": float("nan"), "input_tokens": float("inf")}, Usage()),
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 2,
                "total_tokens": 3,
                "prompt_tokens_details": {"text_tokens": 1},
                "completion_tokens_details": {"image_tokens": 2, "new": 1},
            },
            Usage(
                input_tokens=1,
                output_tokens=2,
                total_tokens=3,
                input_tokens_details=TokenDetails(text_tokens=1),
                output_tokens_details=TokenDetails(image_tokens=2, extra={"new": 1}),
            ),
        ),
        (
            {"output_tokens_details": {"text_tokens": 1, "image_tokens": None}},
            Usage(output_tokens_details=TokenDetails(text_tokens=1)),
        ),
        ({"input_tokens_details": None, "output_tokens_details": 5}, Usage()),
    ],
)
def test_body_usage(usage: Any, expected: Usage | None) -> None:
    """Usage is read in its own and in chat spelling; missing or invalid counts are None."""
    for body in (json_body(item(ONE), usage=usage), frame(COMPLETED, ONE, usage=usage)):
        found = outcome(body, exhaustive=False)
        assert found.response is not None
        assert repr(found.response.usage) == repr(expected)  # 2 and 2.0 are not the same here
        assert isinstance(found.events[0], CompletedImage)
        assert found.events[0].usage == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "page", ["<html><body>Hi</body></html>", "<!DOCTYPE html>\n<p>é", "<", "\n\n <a>"]
)
def test_body_page(page: str, stream: bool) -> None:
    """A web page is an error that points at the base URL and shows its beginning."""
    found = failure(page + "\n\ndata: [DONE]\n\n", stream=stream)
    assert type(found) is ResponseError
    assert found.billing == "unknown"
    assert "/v1" in str(found)
    assert found.body is not None
    assert found.body.startswith(page.strip())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "before", ["<br />\n<b>Warning</b>: x<br />\n", "<!-- x -->\n", "<" * 9_000]
)
@pytest.mark.parametrize("body", [json_body(item(ONE)), frame(COMPLETED, ONE)])
def test_body_after_html(body: str, before: str, stream: bool) -> None:
    """Warnings that a server writes as HTML before its response do not hide the image."""
    found = outcome(f"{before}\n{body}", stream=stream, exhaustive=len(before) < 100)
    assert found.images == found.given == [ONE]


def test_body_page_with_images() -> None:
    """The images of a web page, such as its logo, are not the response."""
    logo = f'<img src="https://a.b/c.png"><img src="data:image/png;base64,{b64(ONE)}">'
    data = '<script type="application/ld+json">\n{"image": "https://a.b/c.png"}\n</script>'
    found = failure(f"<!doctype html><title>404</title>{logo}{data}")
    assert "web page" in str(found)
    assert found.images == ()


def test_body_page_is_not_held() -> None:
    """Only the beginning of a long page is kept."""
    for chunks in ([b"<" + b"x" * 100_000], [b"<", *[b"x" * 1_000] * 200]):
        found = Outcome(chunks, stream=False).failure
        assert isinstance(found, ResponseError)
        assert found.body == "<" + "x" * (MAX_BODY_TEXT - 1)


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\r\n", b"\t" * 100, BOM])
def test_body_blank(body: bytes) -> None:
    """An empty body is an empty result, or an incomplete stream if one was requested."""
    assert type(failure(body, stream=False)) is EmptyResultError
    found = failure(body, stream=True)
    assert type(found) is StreamIncompleteError
    assert found.partials == ()


@pytest.mark.parametrize("body", ["upstream timeout", "OK", "null", '"oops"', "12", "error: x\n"])
@pytest.mark.parametrize("before", ["", "\n ", "\ufeff", "\n\ufeff\n "])
def test_body_text(before: str, body: str) -> None:
    """Text that is not a response is an error that shows it, unless a stream was requested."""
    found = failure(before + body, stream=False)
    assert type(found) is ResponseError
    assert found.body is not None
    assert found.body.strip("\ufeff \n") == body.strip()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [json_body(item(ONE)), frame(COMPLETED, ONE), "<html>" + "x" * 99, " " * 99, ": ping\n" * 9],
)
def test_body_over_the_limit(body: str, stream: bool) -> None:
    """A body over the limit is an error that names the limit and the option."""
    size = len(body)
    for chunks in every_split(body.encode()):
        found = Outcome(chunks, stream=stream, max_bytes=size - 1).failure
        assert type(found) is ResponseError
        assert f"{size - 1:,} bytes" in str(found)
        assert "max_response_bytes" in str(found)
        fits = Outcome(chunks, stream=stream, max_bytes=size).failure
        assert fits is None or "max_response_bytes" not in str(fits)


def test_body_over_the_limit_keeps_the_good_images() -> None:
    """Images before the limit are delivered, and are on the error."""
    body = frame(COMPLETED, ONE).encode()
    found = Outcome([body, body * 100], stream=True, max_bytes=2 * len(body))
    assert found.given == [ONE]
    assert isinstance(found.failure, ResponseError)
    assert [image.content for image in found.failure.images] == [ONE]
