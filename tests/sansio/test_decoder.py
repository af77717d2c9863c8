"""Decoding of response bodies of every shape, whole and in chunks."""

import base64
import json
import logging
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    BadRequestError,
    ElkImagesError,
    EmptyResultError,
    ModerationError,
    RateLimitError,
    ResponseError,
    ServerError,
    StreamIncompleteError,
)
from elkimg_async.image import Image
from elkimg_async.sansio.decoder import ImagesDecoder, SkippedEvent
from elkimg_async.sansio.error_mapping import MAX_BODY_TEXT
from elkimg_async.sansio.responses import (
    CompletedImage,
    ImagesResponse,
    PartialImage,
    TokenDetails,
    Usage,
)
from tests.helpers.splits import cut, every_split, one_by_one

ONE, TWO, THREE = b"\xff\xd8\xffone", b"\xff\xd8\xff, two", b"\xff\xd8\xff\xfb\xef\xbe three"
BOM = b"\xef\xbb\xbf"
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
MAX_BYTES = 1 << 20


class Outcome:
    """What a body decodes to, in a form that can be compared."""

    def __init__(
        self, chunks: Iterable[bytes], *, stream: bool, max_bytes: int = MAX_BYTES
    ) -> None:
        decoder = ImagesDecoder(stream=stream, max_bytes=max_bytes)
        self.events: list[PartialImage | CompletedImage] = []
        self.skipped: list[SkippedEvent] = []
        self.failure: ElkImagesError | None = None
        self.response: ImagesResponse | None = None
        try:
            for chunk in chunks:
                decoder.feed(chunk)
                self._take(decoder)
            decoder.finish()
            self._take(decoder)
            self.response = decoder.response()
        except ElkImagesError as error:
            self.failure = error
        self.done = decoder.done
        assert decoder.failure is self.failure

    def _take(self, decoder: ImagesDecoder) -> None:
        while (event := decoder.next_event()) is not None:
            if isinstance(event, SkippedEvent):
                self.skipped.append(event)
            else:
                self.events.append(event)

    def __repr__(self) -> str:
        failure = self.failure and (type(self.failure), vars(self.failure))
        events = [(event, event.image.__reduce__()[1]) for event in self.events]
        response = self.response and {**vars(self.response), "data": self.images}
        text = repr((events, self.skipped, failure, response, self.done))
        return re.sub(
            r"#image [0-9a-f]+ ", "#image ", text
        )  # each decoder has its own placeholders

    @property
    def images(self) -> list[bytes | str | None]:
        """The images of the response, as bytes or as address."""
        assert self.response is not None, self.failure
        return [image.content or image.url for image in self.response]

    @property
    def given(self) -> list[bytes | str | None]:
        """The images of the events."""
        return [event.image.content or event.image.url for event in self.events]


def outcome(body: bytes | str, *, stream: bool = True, exhaustive: bool = True) -> Outcome:
    """Return what the body decodes to, which must be the same on every split."""
    body = body.encode() if isinstance(body, str) else body
    whole = Outcome([body], stream=stream)
    for chunks in every_split(body) if exhaustive else [one_by_one(body)]:
        assert repr(Outcome(chunks, stream=stream)) == repr(whole)
    return whole


def failure(body: bytes | str, *, stream: bool = True) -> ElkImagesError:
    found = outcome(body, stream=stream).failure
    assert found is not None
    assert str(found)
    assert found.__context__ is None
    return found


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def json_body(*items: Any, **more: Any) -> str:
    return json.dumps({"created": 1710000000, "data": list(items), **more})


def item(content: bytes, **more: Any) -> dict[str, Any]:
    return {"b64_json": b64(content), **more}


def frame(type: str | None, content: Any = None, *, name: str | None = None, **more: Any) -> str:
    """One event of a stream."""
    value = {"type": type, "b64_json": content and b64(content), **more}
    data = json.dumps({key: value for key, value in value.items() if value is not None})
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


USAGE = {
    "total_tokens": 30,
    "input_tokens": 10,
    "output_tokens": 20,
    "input_tokens_details": {"text_tokens": 7, "image_tokens": 3},
}
READ_USAGE = Usage(
    total_tokens=30,
    input_tokens=10,
    output_tokens=20,
    input_tokens_details=TokenDetails(text_tokens=7, image_tokens=3),
)


# JSON


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
    """Images are delivered whatever is wrong beside them."""
    body = f'{{"data":[{{"b64_json":"{b64(ONE)}"}}],{invalid}}}'
    assert outcome(body, exhaustive=False).images == [ONE]
    completed = f'data: {{"type":"{COMPLETED}","b64_json":"{b64(ONE)}",{invalid}}}\n\n'
    assert outcome(completed, exhaustive=False).images == [ONE]


# Usage


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


# Pages, nothing, and the limit


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


# Server-sent events


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
@pytest.mark.parametrize("where", ["event", "JSON", "both"])
@pytest.mark.parametrize("done", [False, True])
def test_body_stream(done: bool, where: str, kind: str, stream: bool) -> None:
    """The type may be in the event line, in the JSON or in both; `[DONE]` is optional."""
    body = ": PING\n\n"
    side = {"size": "1x1", "quality": "low", "background": "auto", "output_format": "png"}
    for part, content, more in (
        ("partial_image", ONE, {"partial_image_index": 0, **side}),
        ("partial_image", TWO, {"partial_image_index": 1}),
        ("completed", THREE, {"usage": USAGE, "created_at": 1710000000, **side}),
    ):
        name = f"{kind}.{part}"
        body += frame(
            name if where != "event" else None,
            content,
            name=name if where != "JSON" else None,
            **more,
        )
    found = outcome(body + "data: [DONE]\n\n" * done, stream=stream)
    assert found.failure is None
    assert found.done is done
    assert found.skipped == []
    assert found.given == [ONE, TWO, THREE]
    first, second, last = found.events
    assert isinstance(first, PartialImage)
    assert isinstance(second, PartialImage)
    assert isinstance(last, CompletedImage)
    assert (first.type, last.type) == (f"{kind}.partial_image", f"{kind}.completed")
    assert (first.partial_image_index, second.partial_image_index) == (0, 1)
    assert (first.size, second.size, last.quality, last.output_format) == (
        "1x1",
        None,
        "low",
        "png",
    )
    assert (first.created_at, last.created_at, last.usage) == (None, 1710000000, READ_USAGE)
    assert found.images == [THREE]
    assert found.response is not None
    assert (found.response.created, found.response.usage) == (1710000000, READ_USAGE)
    assert (found.response.size, found.response.background) == ("1x1", "auto")


def test_body_stream_types_that_disagree() -> None:
    """A known type in the JSON wins; otherwise a known event line does."""
    assert outcome(frame(COMPLETED, ONE, name="ping")).images == [ONE]
    assert outcome(frame("new", ONE, name=COMPLETED)).images == [ONE]
    assert outcome(frame(COMPLETED, ONE, name=PARTIAL)).images == [ONE]
    assert outcome(frame(None, ONE, name="message")).images == [ONE]


def test_body_stream_of_an_edit_with_generation_types() -> None:
    """Types of generations and edits may mix."""
    body = frame("image_edit.partial_image", ONE) + frame(COMPLETED, TWO)
    assert outcome(body).given == [ONE, TWO]


@pytest.mark.parametrize(
    ("value", "image"),
    [
        ({"url": "https://x/1"}, "https://x/1"),
        ({"b64_json": "", "url": "/1.png"}, "/1.png"),
        ({"b64_json": None, "url": "data:image/png;base64," + b64(ONE)}, ONE),
        ({"b64_json": "data:image/png;base64," + b64(ONE)}, ONE),
        ({"b64_json": b64(ONE).rstrip("=") + "\n"}, ONE),
    ],
)
def test_body_stream_image_in_other_forms(value: dict[str, Any], image: Any) -> None:
    """A completed event may carry a URL, or base64 in an unusual form."""
    for more in ({"type": COMPLETED}, {}):
        assert outcome(f"data: {json.dumps({**more, **value})}\n\n").images == [image]


def test_body_stream_several_completed() -> None:
    """Several completed events are several images; their usage is not added up."""
    body = "".join(frame(COMPLETED, content, usage=USAGE) for content in (ONE, TWO, THREE))
    found = outcome(body)
    assert found.images == found.given == [ONE, TWO, THREE]
    assert found.response is not None
    assert found.response.usage == READ_USAGE


def test_body_stream_usage_only_frame() -> None:
    """An event with only the usage counts if the completed events have none."""
    usage_only = f"data: {json.dumps({'usage': USAGE})}\n\n"
    for body in (frame(COMPLETED, ONE) + usage_only, usage_only + frame(COMPLETED, ONE)):
        found = outcome(body)
        assert found.response is not None
        assert found.response.usage == READ_USAGE
        assert found.skipped == []
    found = outcome(frame(COMPLETED, ONE, usage={"total_tokens": 1}) + usage_only)
    assert found.response is not None
    assert found.response.usage == Usage(total_tokens=1)
    assert type(failure(usage_only)) is StreamIncompleteError


def test_body_stream_of_a_json_body() -> None:
    """A whole JSON body in one event is decoded as such."""
    found = outcome(f"data: {json_body(item(ONE), item(TWO), usage=USAGE)}\n\ndata: [DONE]\n\n")
    assert found.images == found.given == [ONE, TWO]
    assert found.response is not None
    assert (found.response.usage, found.response.created) == (READ_USAGE, 1710000000)


def test_body_stream_of_several_json_bodies() -> None:
    """JSON bodies in several events, or beside typed ones, all count."""
    body = f"data: {json_body(item(ONE), usage=USAGE)}\n\ndata: {json_body(item(TWO))}\n\n"
    found = outcome(body)
    assert found.given == [ONE, TWO]
    assert found.images == [ONE, TWO]
    assert outcome(frame(COMPLETED, THREE) + body).images == [THREE, ONE, TWO]
    assert outcome(body + frame(COMPLETED, THREE)).images == [ONE, TWO, THREE]


def test_body_stream_with_an_empty_json_body() -> None:
    """An event with usage and an empty `data` does not cost an image."""
    usage_only = f"data: {json.dumps({'data': [], 'usage': USAGE})}\n\n"
    found = outcome(frame(COMPLETED, ONE) + usage_only)
    assert found.failure is None
    assert found.images == [ONE]
    assert isinstance(failure(usage_only), (EmptyResultError, StreamIncompleteError))


PINGS = (
    ": PING\n\n: keepalive\n\ndata:\n\ndata: \n\n"
    + 'data: {"type":"keepalive"}\n\ndata: {"type":"ping"}\n\n'
)


def test_body_stream_pings() -> None:
    """Comments, empty data and keep-alive events are skipped silently."""
    found = outcome(PINGS + frame(COMPLETED, ONE) + PINGS)
    assert found.images == found.given == [ONE]
    assert found.skipped == []
    assert type(failure(PINGS)) is StreamIncompleteError


@pytest.mark.parametrize(
    ("text", "type"),
    [
        ('data: {"type":"image_generation.started","x":1}\n\n', "image_generation.started"),
        ("event: progress\ndata: {}\n\n", "progress"),
        ('event: a\ndata: {"type":"b"}\n\n', "b"),
        ('data: {"x":1}\n\n', None),
        ('data: {"type":5}\n\n', None),
        ('data: {"type":["error"]}\n\n', None),
        ("data: hello\n\n", None),
        ("event: note\ndata: hello\n\n", "note"),
        ("data: [1]\n\n", None),
        ("data: null\n\n", None),
        ("data: [DONE] \x00\n\n", None),
        ('data: {"error":null,"x":1}\n\n', None),
        ("{oops\n", None),
    ],
)
def test_body_stream_unknown_events(text: str, type: str | None) -> None:
    """Unknown events are recorded as skipped."""
    found = outcome(
        text + frame(COMPLETED, TWO) if text[0] != "{" else ":\n" + text + frame(COMPLETED, TWO)
    )
    assert found.images == found.given == [TWO]
    assert [event.type for event in found.skipped] == [type]
    assert found.skipped[0].reason


def test_body_stream_ends_without_completed() -> None:
    """A clean end without a completed image is an error that carries the partial images."""
    found = outcome(frame(PARTIAL, ONE, partial_image_index=0) + frame(PARTIAL, TWO) + PINGS)
    assert type(found.failure) is StreamIncompleteError
    assert found.failure.billing == "unknown"
    assert list(found.failure.partials) == found.events
    assert found.given == [ONE, TWO]
    for body in ("data: [DONE]\n\n", ": PING\n\n", "\n\n:\n", "event: x\n\n"):
        assert type(failure(body)) is StreamIncompleteError


def test_body_stream_cut_short() -> None:
    """A stream cut within its last event is incomplete; one cut after it is complete."""
    first, last = frame(PARTIAL, ONE).encode(), frame(COMPLETED, TWO, usage=USAGE).encode()
    for end in range(len(first) + len(last)):
        body = (first + last)[:end]
        for chunks in ([body], one_by_one(body), [body[: end // 2], body[end // 2 :]]):
            found = Outcome(chunks, stream=True)
            image_end = len(first) + last.index(b64(TWO).encode()) + len(b64(TWO)) + 1
            if end >= image_end:  # nothing but side data is missing
                assert found.given == [ONE, TWO]
            else:
                assert type(found.failure) in (StreamIncompleteError, ResponseError)
                assert TWO not in found.given
                assert found.skipped == []


@pytest.mark.parametrize("type", [PARTIAL, "image_edit.partial_image"])
@pytest.mark.parametrize("broken", ["AAAA!", "A", "", None, 5, "data:image/png,x"])
def test_body_stream_corrupt_partial_is_skipped(type: str, broken: Any) -> None:
    """A corrupt or missing partial image is recorded as skipped."""
    body = f"data: {json.dumps({'type': type, 'b64_json': broken})}\n\n" + frame(COMPLETED, ONE)
    found = outcome(body)
    assert found.images == found.given == [ONE]
    assert [event.type for event in found.skipped] == [type]


@pytest.mark.parametrize("broken", ["AAAA!", "A", "data:image/png,x", "AA==AAAA"])
def test_body_stream_corrupt_final_raises(broken: str) -> None:
    """A corrupt final image raises after the earlier events, which the error carries."""
    body = (
        frame(PARTIAL, ONE)
        + frame(COMPLETED, TWO)
        + f'data: {{"type":"{COMPLETED}","b64_json":"{broken}"}}\n\n'
    )
    found = outcome(body + frame(COMPLETED, THREE))
    assert found.given == [ONE, TWO]
    assert type(found.failure) is ResponseError
    assert [image.content for image in found.failure.images] == [TWO]
    assert found.failure.billing == "unknown"


@pytest.mark.parametrize("empty", ["{}", '{"b64_json":""}', '{"b64_json":null,"url":""}'])
def test_body_stream_empty_final(empty: str) -> None:
    """A completed event without an image is an error if there is no other one."""
    body = f"event: {COMPLETED}\ndata: {empty}\n\n"
    assert type(failure(body)) is EmptyResultError
    assert outcome(body + frame(COMPLETED, ONE)).images == [ONE]


def test_body_stream_after_done() -> None:
    """Everything after `[DONE]` is ignored, even an error."""
    error = 'data: {"error":"late"}\n\n{"error":"bare"}\n'
    found = outcome(frame(COMPLETED, ONE) + "data: [DONE]\n\n" + frame(COMPLETED, TWO) + error)
    assert found.images == found.given == [ONE]
    assert found.done
    found = outcome(frame(COMPLETED, ONE) + "data:[DONE]")
    assert found.done


@pytest.mark.parametrize("stream", [False, True])
def test_body_stream_with_crlf(stream: bool) -> None:
    """Other line ends and a byte order mark make no difference."""
    body = ": PING\n\n" + frame(PARTIAL, ONE, name=PARTIAL) + frame(COMPLETED, TWO)
    for end in (b"\r\n", b"\r"):
        assert outcome(body.encode().replace(b"\n", end), stream=stream).given == [ONE, TWO]


# Errors inside a successful response

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
        assert found.billing == ("unknown" if came else "refused")
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
        for frame in (body, f"data: {body}\n\n"):
            assert isinstance(Outcome([frame.encode()], stream=True).failure, ElkImagesError)
    item = f'{{"b64_json":"{b64(ONE)}","x":{nest}}}'
    found = Outcome([f'{{"data":[{item}]}}'.encode()], stream=True)
    assert found.failure is None or (depth > 400 and type(found.failure) is ResponseError)


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


# Fuzz

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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=200, deadline=None)
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


# Events that are whole in a chunk go a shorter way, which may differ in nothing but its speed

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
    """Unusual fields beside an image are read alike, whole and byte by byte."""
    for image in ('"b64_json":"/9j/QUJD"', '"b64_json": "/9j/QUJD"'):
        for fields in (f"{side},{image}", f"{image},{side}"):
            odd = ("" if name is None else f"event: {name}\n") + "data: {" + fields + "}\n\n"
            plain = frame(PARTIAL, TWO), frame(PARTIAL, THREE)
            body = (plain[0] + odd + odd + plain[1] + frame(COMPLETED, ONE)).encode()
            whole = Outcome([body], stream=True)
            assert repr(whole) == repr(Outcome(one_by_one(body), stream=True))
            assert whole.failure or {TWO, THREE} <= {event.image.content for event in whole.events}
