"""Decoding of event streams: types, order, usage, and streams that end early."""

import json
from typing import Any

import pytest

from elkimg_async.errors import (
    EmptyResultError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.sansio.responses import (
    CompletedImage,
    PartialImage,
    Usage,
)
from tests.helpers.bodies import (
    COMPLETED,
    ONE,
    PARTIAL,
    PINGS,
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
from tests.helpers.splits import one_by_one


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
