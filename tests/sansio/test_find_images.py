"""Search for images wherever a server puts them."""

import base64
import json
from typing import Any

import pytest

from elkimg_async.errors import APIError, ElkImagesError, EmptyResultError, ResponseError
from elkimg_async.sansio.decoder import ImagesDecoder, SkippedEvent
from elkimg_async.sansio.documents import DocumentHandler
from elkimg_async.sansio.find_images import find_images
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse, PartialImage
from tests.helpers import mutations
from tests.helpers.dialects import (
    DIALECTS,
    LONG,
    LONG_TEXT,
    MULTIPARTS,
    ONE,
    OTHER,
    PNG,
    RAW,
    STREAMS,
    TEXTS,
    TWO,
    URL,
    WEBP,
    Came,
    chat_pieces,
    multipart,
    sse,
)
from tests.helpers.splits import one_by_one


def found_in(value: Any) -> Came:
    return [image.content or image.url for image in find_images(Document(value)).images]


def decode(body: bytes, *, stream: bool) -> tuple[list[Any], ImagesResponse | ElkImagesError]:
    """Return the events of a body and its error, the same whole and byte by byte."""
    results = []
    for chunks in ([body], one_by_one(body)):
        decoder = ImagesDecoder(stream=stream, max_bytes=1 << 20)
        events = []
        end: ImagesResponse | ElkImagesError
        try:
            for chunk in chunks:
                decoder.feed(chunk)
            decoder.finish()
            while (event := decoder.next_event()) is not None:
                events.append(event)
            end = decoder.response()
        except ElkImagesError as error:
            end = error
        results.append((events, end))
    assert [repr(event) for event in results[0][0]] == [repr(event) for event in results[1][0]]
    assert type(results[0][1]) is type(results[1][1])
    return results[0]


@pytest.mark.parametrize("way", ["batch", "event", "doubled prefix", "line"])
@pytest.mark.parametrize(("value", "expected"), DIALECTS.values(), ids=DIALECTS.keys())
def test_images_of_a_dialect(value: Any, expected: Came, way: str) -> None:
    """The images of each dialect are found, as a body, as an event and as a line of JSON."""
    body = {
        "batch": json.dumps(value).encode(),
        "event": sse(value),
        "doubled prefix": sse(value, prefix="data: data: "),
        "line": json.dumps(value).encode() + b"\n",
    }[way]
    for stream in (False, True):
        events, end = decode(body, stream=stream)
        images = [event.image for event in events if isinstance(event, CompletedImage)]
        assert [image.content or image.url for image in images] == expected
        assert isinstance(end, ImagesResponse)
        assert list(end) == images


NO_IMAGES: list[Any] = [
    {"prompt": ONE},
    {"prompt": URL, "revised_prompt": OTHER},
    {"data": [{"revised_prompt": "data:image/png;base64," + ONE}]},
    {"note": f"like {OTHER}"},
    {"x": f"see {ONE} there"},
    {"text": f'"b64_json": "{ONE}"'},
    {"documentation_url": OTHER, "status_url": URL, "webhook": URL, "avatar_url": OTHER},
    {"input": {"image": ONE}, "request": {"images": [URL]}},
    {"urls": {"get": "https://api/1", "cancel": "https://api/2"}},
    {"id": "iVBORw0KGgo", "url": ""},
    {"result": "ok", "output": "", "data": "none"},
    {"homepage": "https://example.com"},
    {"foo": {"bar": URL}},
    {"data": [{"foo": URL, "bar": "https://example.com/other"}]},
    {"data": [{"task_id": "t", "status": "submitted", "foo": URL}]},
    {"data": [{"status": "failed", "foo": URL}]},
    {"content": f"see [the page]({OTHER})"},
    {"prompt": f"![x]({OTHER})"},
    {"steps": [1, 2, 3], "values": [137, 80, 999]},
    {"param": json.dumps({"input": {"image_url": URL}})},
]


@pytest.mark.parametrize("value", NO_IMAGES, ids=range(len(NO_IMAGES)))
def test_images_in_other_fields(value: Any) -> None:
    """Text, links and repeated request fields are not images."""
    assert found_in(value) == []
    images = found_in(
        {
            "data": [{"b64_json": TWO}],
            **{name: field for name, field in value.items() if name != "data"},
        }
    )
    assert images == [WEBP]


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": f"cannot read {ONE}"}},
        {"error": {"message": ONE}},
        {"error": URL},
        {"error": {"message": f"{URL} is blocked", "b64": ""}},
        {"detail": f"data:image/png;base64,{ONE}"},
        {"error": {"message": "no", "url": "https://docs.example.com/errors"}},
        {"error": {"message": "no", "image_url": URL}},
        {"detail": [{"loc": ["body"], "msg": "no", "type": "missing", "url": "https://e.dev/v"}]},
    ],
)
def test_images_of_an_error_text(error: Any) -> None:
    """An error text that contains base64 or an address is an error without images."""
    for body in (json.dumps(error).encode(), sse(error)):
        events, end = decode(body, stream=True)
        assert events == []
        assert isinstance(end, APIError)
        assert end.images == ()


# Streams


@pytest.mark.parametrize(("body", "expected"), STREAMS.values(), ids=STREAMS.keys())
def test_images_of_a_stream(body: bytes, expected: list[tuple[str, bool]]) -> None:
    """Every event with an image is delivered, as completed unless it is certain to be partial."""
    events, end = decode(body, stream=True)
    came = [
        (event.image.url or "PNG", isinstance(event, PartialImage))
        for event in events
        if not isinstance(event, SkippedEvent)
    ]
    assert came == expected
    assert isinstance(end, ImagesResponse)


def test_images_of_failed_items() -> None:
    """Where every image of several failed, the error has the server's words."""
    blocked = {"code": "OutputImageSensitiveContentDetected", "message": "may be sensitive"}
    failed = {"type": "image_generation.partial_failed", "image_index": 0, "error": blocked}
    for body in (
        sse(failed, {"type": "image_generation.completed", "usage": {}}),
        json.dumps({"created": 1, "data": [{"error": blocked}, {"error": blocked}]}).encode(),
    ):
        _, end = decode(body, stream=True)
        assert isinstance(end, APIError)
        assert (end.message, end.code) == ("may be sensitive", blocked["code"])


# Jobs, and data that is not an image

JOBS: list[tuple[Any, str]] = [
    ({"task_id": "t-1", "status": "submitted"}, "t-1"),
    ({"code": 200, "data": [{"status": "submitted", "task_id": "t-1"}]}, "t-1"),
    ({"output": {"task_id": "t-1", "task_status": "PENDING"}, "request_id": "r"}, "t-1"),
    ({"Response": {"JobId": "t-1", "RequestId": "r"}}, "t-1"),
    ({"id": "t-1", "status": "starting", "urls": {"get": "https://api/t-1"}}, "t-1"),
    ({"id": "t-1", "polling_url": "https://api/t-1"}, "t-1"),
    ({"id": "t-1", "object": "image.task", "status": "queued", "message": "Task queued"}, "t-1"),
]


@pytest.mark.parametrize(("value", "task"), JOBS, ids=range(len(JOBS)))
def test_images_of_an_asynchronous_job(value: Any, task: str) -> None:
    """A job instead of an image is an error that names it."""
    for body in (json.dumps(value).encode(), sse(value)):
        _, end = decode(body, stream=False)
        assert isinstance(end, EmptyResultError)
        assert end.task_id == task
        assert task in str(end)


@pytest.mark.parametrize(
    "content",
    [
        base64.b64decode("string=="),
        bytes(3),
        bytes(range(63)),
        b"not available",
        b"hello, this is some text " * 9,
        "图片生成失败。".encode() * 9,
        b"<html><head><title>Sorry</title></head><body><svg/></body></html> " * 9,
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error> " * 9,
    ],
)
def test_images_invalid(content: bytes) -> None:
    """Bytes that are certainly not an image are an error that carries them and their URL."""
    text = base64.b64encode(content).decode().rstrip("=")
    _, end = decode(json.dumps({"data": [{"b64_json": text, "url": URL}]}).encode(), stream=False)
    assert isinstance(end, ResponseError)
    assert end.content == content
    assert [image.url for image in end.images] == [URL]


@pytest.mark.parametrize(
    "content",
    [
        b"<svg/>",
        b"```svg\n<svg xmlns='http://www.w3.org/2000/svg'/>\n```",
        b"Here is your image:\n<svg xmlns='http://www.w3.org/2000/svg'></svg> " * 9,
        b"P1 1 1 0",
        b"P3\r\n# made by hand\r\n2 2 255\r\n" + b"0 0 0 " * 99,
        b"/* XPM */\nstatic char *a[] = {" + b'" ",' * 99 + b"};",
        b"#define a_width 1\n#define a_height 1\nstatic char a_bits[] = { 0x01 };",
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"0 0 moveto\n" * 9,
    ],
)
def test_images_that_are_text(content: bytes) -> None:
    """Formats of images that are text are images where one is expected."""
    text = base64.b64encode(content).decode()
    assert found_in({"data": [{"b64_json": text}]}) == [content]


def test_images_of_an_unknown_format() -> None:
    """Binary content without a known signature is an image where one is expected."""
    content = bytes(range(100, 256))
    text = base64.b64encode(content).decode()
    assert found_in({"data": [{"b64_json": text}]}) == [content]
    assert found_in({"x": text}) == []


@pytest.mark.parametrize(
    "signature",
    [
        *mutations.SIGNATURES,
        b"BM\x8a\0\0\0",
        b"II*\0",
        b"\0\0\0\x20ftypheic",
        b"\xff\x0a",
        b"\0\0\1\0",
        b"<?xml version='1.0'?>\n<!-- made -->\n<svg xmlns='x'/>",
    ],
)
def test_images_as_the_body(signature: bytes) -> None:
    """A body that is an image itself is one."""
    for content in (signature + bytes(100), signature + b" " * 20_000):
        _, end = decode(content, stream=False)
        assert isinstance(end, ImagesResponse)
        assert [image.content for image in end] == [content]


@pytest.mark.parametrize(("body", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_images_of_a_text(body: str, expected: Came) -> None:
    """A body that is base64, an address or a string is an image."""
    for stream in (False, True):
        decoder = ImagesDecoder(stream=stream, max_bytes=1 << 24)
        data = body.encode()
        for start in range(0, len(data), 1_000):
            decoder.feed(data[start : start + 1_000])
        decoder.finish()
        images = [event.image for event in iter(decoder.next_event, None)]  # type: ignore[attr-defined]
        assert [image.content or image.url for image in images] == expected


def test_images_in_a_text() -> None:
    """Images of text that is not JSON and may be cut off are on the error."""
    for body in (
        f'callback({{"data": [{{"b64_json": "{ONE}"}}]',
        f'{{b64_json: "{LONG_TEXT}"}}',
        f'{{"b64_json": "{ONE}",}}',
        f'{{"b64_json": "{ONE}" /* an image */}}',
        f'{{"data": [{{"b64_json": "{ONE}",}}, {{"b64_json": "{LONG_TEXT}",}},]}}',
    ):
        _, end = decode(body.encode(), stream=False)
        assert isinstance(end, ResponseError)
        assert len(end.images) == body.count("b64_json")


@pytest.mark.parametrize(
    "text",
    [
        f"<error><prompt>{LONG_TEXT}</prompt></error>",
        f"message: {LONG_TEXT}\n",
        f"error={LONG_TEXT}&status=failed",
        "Sorry, no image. See https://cdn.example/a.png",
        "image: https://cdn.example/a.png",
        f"<r><image>{LONG_TEXT}",
    ],
)
def test_text_without_images(text: str) -> None:
    """Base64 in a text field, an address alone and an image that is cut off are not images."""
    _, end = decode(text.encode(), stream=False)
    assert isinstance(end, ResponseError)
    assert not [image for image in end.images if image.content is not None]


# Mutations


@pytest.mark.parametrize("first", range(0, 2_000, 250))
def test_images_of_mutated_bodies(first: int) -> None:
    """All images of a mutated body are found, and no others."""
    counts = [mutations.check_body(seed) for seed in range(first, first + 250)]
    assert sum(went_in for went_in, _ in counts) == sum(came for _, came in counts) > 250


def test_mutations_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that loses an image does not pass."""
    monkeypatch.setattr(DocumentHandler, "emit", lambda self, event: None)
    seed = next(seed for seed in range(99) if mutations.make_body(seed).dialect == "batch")
    with pytest.raises((AssertionError, IndexError)):
        mutations.check_body(seed)


# Several parts, encodings, and text in pieces


def decode_raw(body: bytes, content_type: str) -> tuple[Came, ElkImagesError | None]:
    """Return the images of a body and its error, the same in chunks of any size."""
    results: list[tuple[Came, str]] = []
    failure = None
    for size in (len(body), 1, 13):
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        decoder = ImagesDecoder(stream=False, max_bytes=1 << 20, content_type=content_type)
        for chunk in chunks:
            decoder.feed(chunk)
        decoder.finish()
        failure = decoder.failure
        images = failure.images if failure else decoder.response().data
        results.append(([image.content or image.url for image in images], repr(failure)))
    assert results[0] == results[1] == results[2]
    return results[0][0], failure


@pytest.mark.parametrize("kind", ["mixed", "related", "form-data", "x-mixed-replace"])
@pytest.mark.parametrize("name", MULTIPARTS)
def test_images_in_parts(name: str, kind: str) -> None:
    """Each image in a body of several parts is delivered, whatever the kind."""
    body, images = MULTIPARTS[name]
    assert decode_raw(body, f'multipart/{kind}; boundary="edge"') == (images, None)


@pytest.mark.parametrize("name", [name for name in MULTIPARTS if name != "a preamble"])
def test_images_in_parts_without_a_content_type(name: str) -> None:
    """The body itself shows its boundary."""
    body, images = MULTIPARTS[name]
    assert decode_raw(body, "application/json") == (images, None)


def test_images_in_parts_cut_off() -> None:
    """A body that ends before its last boundary is an error with the images of complete parts."""
    body = multipart([("Content-Type: image/png\r\n", PNG), ("", LONG)], end=b"")
    cut = body[: body.rindex(b"--edge") - 100]
    images, failure = decode_raw(cut, "multipart/mixed; boundary=edge")
    assert isinstance(failure, ResponseError)
    assert images == [PNG]


def test_images_in_parts_none() -> None:
    """Parts without an image are an error that has them in its body."""
    body = multipart([("Content-Type: application/json\r\n", b'{"data":[{}]}')])
    images, failure = decode_raw(body, "multipart/mixed; boundary=edge")
    assert isinstance(failure, EmptyResultError)
    assert images == []
    body = multipart([("Content-Type: application/json\r\n", b'{"error":{"message":"no luck"}}')])
    assert isinstance(decode_raw(body, "multipart/mixed; boundary=edge")[1], APIError)


@pytest.mark.parametrize("name", RAW)
def test_images_in_a_raw_body(name: str) -> None:
    """An image is found whatever the body is encoded as."""
    body, content_type, images = RAW[name]
    assert decode_raw(body, content_type) == (images, None)


def test_images_in_a_broken_encoding() -> None:
    """A body that was compressed, and cut off or broken, is an error."""
    body = RAW["undeclared gzip"][0]
    for wrong in (body[:-9], body[:20] + b"\0" * 40):
        assert isinstance(decode_raw(wrong, "")[1], ResponseError)


@pytest.mark.parametrize("size", [1, 9, 5_000])
def test_images_in_text_cut_off(size: int) -> None:
    """Text that ends without any sign of its end may have been cut off within an image."""
    text = f"data:image/png;base64,{ONE}"
    events, end = decode(sse(*chat_pieces(text, size)[:-1]), stream=True)
    assert isinstance(end, ResponseError)
    assert [image.content for image in end.images] == [PNG]
    assert all(isinstance(event, SkippedEvent) for event in events)
    shown = f"![x](data:image/png;base64,{ONE})"
    events, end = decode(sse(*chat_pieces(shown, size)[:-1]), stream=True)
    assert isinstance(end, ImagesResponse)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": f"![x]({URL})"},
        {"reasoning_content": f"![x]({URL})"},
        {"content": f"[a link]({URL})"},
        {"content": f"The address {URL} is in the prompt."},
        {"content": f"You wrote ![x]( {ONE[:9]}"},
    ],
)
@pytest.mark.parametrize("size", [3, 4_000])
def test_images_in_other_text(message: dict[str, str], size: int) -> None:
    """What a text merely mentions, and the text of others, is not an image."""
    name, text = list(message.items())[-1]
    events = [
        {"choices": [{"delta": {**message, name: text[start : start + size]}}]}
        for start in range(0, len(text), size)
    ]
    for body in (json.dumps({"choices": [{"message": message}]}).encode(), sse(*events)):
        _, end = decode(body, stream=True)
        assert isinstance(end, ElkImagesError)
        assert end.images == ()
