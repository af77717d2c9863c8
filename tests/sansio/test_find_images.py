"""Search for images wherever a server puts them."""

import base64
import json
from typing import Any

import pytest

from elkimg_async.errors import APIError, ElkImagesError, EmptyResultError, ResponseError
from elkimg_async.sansio.decoder import ImagesDecoder, SkippedEvent
from elkimg_async.sansio.find_images import find_images
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse, PartialImage
from tests.helpers import mutations
from tests.helpers.splits import one_by_one

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
WEBP = b"RIFF\x24\0\0\0WEBPVP8 " + bytes(range(64))
ONE, TWO = base64.b64encode(PNG).decode(), base64.b64encode(WEBP).decode()
URL, OTHER = "https://cdn.example.com/a?sig=x%2Fy", "https://cdn.example.com/b.png"
Came = list[bytes | str | None]


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


def sse(*values: Any, prefix: str = "data: ") -> bytes:
    return "".join(f"{prefix}{json.dumps(value)}\n\n" for value in values).encode()


DIALECTS: dict[str, tuple[Any, Came]] = {
    "base64": ({"data": [{"b64_json": ONE}, {"b64_json": TWO}]}, [PNG, WEBP]),
    "addresses": ({"data": [{"url": URL}, {"url": OTHER}]}, [URL, OTHER]),
    "base64 and address": ({"data": [{"b64_json": ONE, "url": URL}]}, [PNG]),
    "data as one object": ({"data": {"b64_json": ONE}}, [PNG]),
    "an array": ([{"b64_json": ONE}, {"url": URL}], [PNG, URL]),
    "an array of strings": ([ONE, URL], [PNG, URL]),
    "images as objects": ({"images": [{"url": URL, "content_type": "image/png"}]}, [URL]),
    "images as strings": ({"images": [ONE, URL]}, [PNG, URL]),
    "image": ({"image": ONE}, [PNG]),
    "image of an item": ({"data": [{"image": ONE}, {"image": URL}]}, [PNG, URL]),
    "image_url": ({"data": [{"image_url": URL}]}, [URL]),
    "image_url as an object": ({"data": [{"image_url": {"url": URL}}]}, [URL]),
    "image_base64": ({"data": {"image_base64": [ONE, TWO]}}, [PNG, WEBP]),
    "image_urls": ({"data": {"image_urls": [URL, OTHER]}}, [URL, OTHER]),
    "url as a list": ({"data": [{"url": [URL, OTHER]}]}, [URL, OTHER]),
    "data.images": ({"code": 0, "data": {"images": [{"url": URL}]}}, [URL]),
    "output": (
        {"output": [URL, OTHER], "status": "succeeded", "urls": {"get": "https://api/x"}},
        [URL, OTHER],
    ),
    "output as text": ({"id": "x", "status": "succeeded", "output": URL}, [URL]),
    "output.results": ({"output": {"task_status": "SUCCEEDED", "results": [{"url": URL}]}}, [URL]),
    "result.sample": ({"status": "Ready", "result": {"sample": URL, "prompt": OTHER}}, [URL]),
    "result": ({"result": {"image": ONE}, "success": True, "errors": []}, [PNG]),
    "Responses API": ({"output": [{"type": "image_generation_call", "result": ONE}]}, [PNG]),
    "Gemini": (
        {
            "candidates": [
                {
                    "content": {
                        "parts": [
                            {"text": URL},
                            {"inlineData": {"mimeType": "image/png", "data": ONE}},
                        ]
                    }
                }
            ]
        },
        [PNG],
    ),
    "Imagen": ({"predictions": [{"bytesBase64Encoded": ONE, "mimeType": "image/png"}]}, [PNG]),
    "chat": (
        {
            "choices": [
                {
                    "message": {
                        "content": "Here",
                        "images": [{"image_url": {"url": "data:image/png;base64," + ONE}}],
                    }
                }
            ]
        },
        [PNG],
    ),
    "address in b64_json": ({"data": [{"b64_json": URL, "url": ""}]}, [URL]),
    "base64 in url": ({"data": [{"url": ONE}]}, [PNG]),
    "data URL in b64_json": ({"data": [{"b64_json": "data:image/png;base64," + ONE}]}, [PNG]),
    "data URL of text": (
        {"data": [{"url": "data:image/svg+xml,%3Csvg%20xmlns=%22x%22/%3E"}]},
        [b'<svg xmlns="x"/>'],
    ),
    "the same twice": ({"data": [{"url": URL}], "images": [{"url": URL}]}, [URL]),
    "two that are equal": ({"data": [{"url": URL}, {"url": URL}]}, [URL, URL]),
    "two in one object": ({"image_1": ONE, "image_2": TWO}, [PNG, WEBP]),
    "an unknown key": ({"data": [{"pixels": ONE}]}, [PNG]),
    "relative paths": ({"images": ["/out/1.png", "/out/2.png"]}, ["/out/1.png", "/out/2.png"]),
    "a thumbnail beside": ({"data": [{"url": URL, "thumbnail_url": OTHER}]}, [URL]),
    "a thumbnail alone": ({"data": [{"thumbnail_image_url": OTHER}]}, [OTHER]),
    "an empty error": ({"error": {}, "data": [{"url": URL}]}, [URL]),
    "an error without a message": ({"error": {"message": ""}, "data": [{"url": URL}]}, [URL]),
    "an error of nulls": (
        {"error": {"code": None, "message": None}, "data": [{"url": URL}]},
        [URL],
    ),
    "code and message of a success": (
        {"code": 200, "message": "success", "data": [{"url": URL}]},
        [URL],
    ),
    "one item failed": (
        {"data": [{"url": URL}, {"error": {"code": "x", "message": "blocked"}}]},
        [URL],
    ),
}


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


DIALECTS |= {
    f"an address under {name!r}": ({"data": [{name: URL, "id": "x"}]}, [URL])
    for name in (
        *("href", "link", "location", "path", "s3_url", "oss_url", "hd_url", "presigned_url"),
        *("originUrl", "resourceUrl", "storage_url", "permalink", "foo"),
    )
}
DIALECTS |= {
    "an address in an unknown object": (
        {"data": [{"foo": {"bar": URL}}, {"x": OTHER}]},
        [URL, OTHER],
    ),
    "lists in lists": ({"output": [[URL], [OTHER]]}, [URL, OTHER]),
    "images by number": ({"images": {"0": URL, "1": OTHER}}, [URL, OTHER]),
    "image as an object": ({"image": {"original": URL, "id": "x"}}, [URL]),
    "further addresses": (
        {"data": [{"url": URL, "download_url": OTHER, "proxy_url": "https://p/1"}]},
        [URL],
    ),
    "an object in a string": (
        {"code": 200, "data": {"resultJson": json.dumps({"resultUrls": [URL, OTHER]})}},
        [URL, OTHER],
    ),
    "a response in a string": ({"body": json.dumps({"data": [{"b64_json": ONE}]})}, [PNG]),
    "a request beside it": (
        {"images": [ONE], "parameters": {"init_images": [TWO]}, "info": '{"prompt": "x"}'},
        [PNG],
    ),
    "Markdown": ({"choices": [{"message": {"content": f"Here:\n![image]({OTHER})"}}]}, [OTHER]),
    "Markdown with a data URL": (
        {"choices": [{"message": {"content": f"![x](data:image/png;base64,{ONE})"}}]},
        [PNG],
    ),
    "a Buffer": ({"data": [{"image": {"type": "Buffer", "data": list(PNG)}}]}, [PNG]),
}


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

STREAMS: dict[str, tuple[bytes, list[tuple[str, bool]]]] = {
    "succeeded": (
        sse(
            {"type": "image_generation.partial_succeeded", "image_index": 0, "url": URL},
            {"type": "image_generation.partial_succeeded", "image_index": 1, "b64_json": ONE},
            {"type": "image_generation.completed", "usage": {"total_tokens": 3}},
        ),
        [(URL, False), ("PNG", False)],
    ),
    "one failed": (
        sse(
            {"type": "image_generation.partial_succeeded", "image_index": 0, "url": URL},
            {
                "type": "image_generation.partial_failed",
                "image_index": 1,
                "error": {"code": "x", "message": "no"},
            },
            {"type": "image_generation.completed", "usage": {"total_tokens": 3}},
        ),
        [(URL, False)],
    ),
    "lines of JSON": (
        b"".join(
            json.dumps(value).encode() + b"\n"
            for value in (
                {
                    "type": "image_generation.partial_image",
                    "b64_json": ONE,
                    "partial_image_index": 0,
                },
                {"type": "image_generation.completed", "b64_json": ONE},
            )
        ),
        [("PNG", True), ("PNG", False)],
    ),
    "Responses API": (
        sse(
            {"type": "response.image_generation_call.partial_image", "partial_image_b64": ONE},
            {
                "type": "response.output_item.done",
                "item": {"type": "image_generation_call", "result": ONE},
            },
        ),
        [("PNG", True), ("PNG", False)],
    ),
    "unknown types": (
        sse({"type": "image.ready", "image": URL}, {"type": "x", "url": OTHER}),
        [(URL, False), (OTHER, False)],
    ),
    "a preview": (
        sse({"type": "preview", "image": ONE}, {"type": "done", "image": URL}),
        [("PNG", True), (URL, False)],
    ),
    "bare base64": (f"data: {ONE}\n\n".encode(), [("PNG", False)]),
    "an image under a ping": (sse({"type": "keepalive", "b64_json": ONE}), [("PNG", False)]),
    "an array of events": (
        json.dumps(
            [
                {"type": "image_generation.partial_image", "b64_json": ONE},
                {"type": "image_generation.completed", "url": URL},
            ]
        ).encode(),
        [("PNG", True), (URL, False)],
    ),
    "nested events": (
        sse(
            {"result": {"type": "image_generation.partial_image", "b64_json": ONE}},
            {"result": {"partial_image_index": 1, "b64_json": ONE}},
            {"event": {"type": "image_generation.completed", "url": URL}},
        ),
        [("PNG", True), ("PNG", True), (URL, False)],
    ),
    "summary of the Responses API": (
        sse(
            {"type": "response.output_item.done", "item": {"result": ONE}},
            {"type": "response.completed", "response": {"output": [{"result": ONE}]}},
        ),
        [("PNG", False)],
    ),
    "summary of addresses": (
        sse(
            {"type": "image_generation.partial_succeeded", "url": URL},
            {"type": "image_generation.partial_succeeded", "url": OTHER},
            {"type": "image_generation.completed", "data": [{"url": URL}, {"url": OTHER}]},
        ),
        [(URL, False), (OTHER, False)],
    ),
    "the same image twice": (
        sse(*[{"type": "image_generation.completed", "url": URL}] * 2),
        [(URL, False), (URL, False)],
    ),
    **{
        f"unfinished by {unfinished}": (
            sse({**unfinished, "image": ONE}, {**finished, "image": URL}),
            [("PNG", True), (URL, False)],
        )
        for unfinished, finished in (
            ({"is_partial": True}, {"is_partial": False}),
            ({"final": False}, {"final": True}),
            ({"stage": "draft"}, {"stage": "final"}),
            ({"status": "processing"}, {"status": "succeeded"}),
            ({"event": "partial_image"}, {"event": "completed"}),
            (
                {"object": "image_generation.partial_image"},
                {"object": "image_generation.completed"},
            ),
        )
    },
    "record separators": (
        b"\x1e%b\n\x1e%b\n"
        % (
            json.dumps({"type": "image_generation.partial_image", "image": ONE}).encode(),
            json.dumps({"type": "image_generation.completed", "image": URL}).encode(),
        ),
        [("PNG", True), (URL, False)],
    ),
    "events without blank lines": (
        sse(
            {"type": "image_generation.partial_image", "image": ONE},
            {"type": "image_generation.completed", "image": URL},
        ).replace(b"\n\n", b"\n"),
        [("PNG", True), (URL, False)],
    ),
    "a data URL as data": (
        f"event: image\ndata: data:image/png;base64,{ONE}\n\n".encode(),
        [("PNG", False)],
    ),
    "an address as data": (f"event: image\ndata: {URL}\n\n".encode(), [(URL, False)]),
    "a string as data": (f'data: "{ONE}"\n\n'.encode(), [("PNG", False)]),
    "broken side data": (b'data: {"b64_json":"%b","x":}\n\n' % ONE.encode(), [("PNG", False)]),
}


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
    "text", ["string", base64.b64encode(b"hello, this is some text " * 9).decode(), "AAAA"]
)
def test_images_invalid(text: str) -> None:
    """Bytes that are certainly not an image are an error that carries them and their URL."""
    _, end = decode(json.dumps({"data": [{"b64_json": text, "url": URL}]}).encode(), stream=False)
    assert isinstance(end, ResponseError)
    assert end.content == base64.b64decode(text + "=" * (-len(text) % 4))
    assert [image.url for image in end.images] == [URL]


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
    for content in (signature + bytes(100), signature + b" " * 200_000):
        _, end = decode(content, stream=False)
        assert isinstance(end, ImagesResponse)
        assert [image.content for image in end] == [content]


LARGE = PNG + bytes(range(256)) * 1_000
TEXTS: dict[str, tuple[str, Came]] = {
    "base64": (base64.b64encode(LARGE).decode(), [LARGE]),
    "wrapped base64": (base64.encodebytes(LARGE).decode(), [LARGE]),
    "a data URL": ("data:image/png;base64," + base64.b64encode(LARGE).decode(), [LARGE]),
    "an address": (URL + "\n", [URL]),
    "addresses": (f"{URL}\n{OTHER}\n", [URL, OTHER]),
    "a string": (json.dumps(ONE), [PNG]),
    "a string with an address": (json.dumps(URL), [URL]),
    "a string of JSON": (json.dumps(json.dumps({"data": [{"b64_json": ONE}]})), [PNG]),
}


@pytest.mark.parametrize(("body", "expected"), TEXTS.values(), ids=TEXTS.keys())
def test_images_of_a_text(body: str, expected: Came) -> None:
    """A body that is base64, an address or a string is an image."""
    for stream in (False, True):
        decoder = ImagesDecoder(stream=stream, max_bytes=1 << 24)
        data = body.encode()
        for start in range(0, len(data), 1_000):
            decoder.feed(data[start : start + 1_000])
        decoder.finish()
        images = [event.image for event in iter(decoder.next_event, None)]  # type: ignore[union-attr]
        assert [image.content or image.url for image in images] == expected


def test_images_in_a_text() -> None:
    """An image inside a text that is not JSON is on the error."""
    _, end = decode(f'callback({{"data": [{{"b64_json": "{ONE}"}}]}});'.encode(), stream=False)
    assert isinstance(end, ResponseError)
    assert [image.content for image in end.images] == [PNG]


# Mutations


@pytest.mark.parametrize("first", range(0, 2_000, 250))
def test_images_of_mutated_bodies(first: int) -> None:
    """All images of a mutated body are found, and no others."""
    counts = [mutations.check_body(seed) for seed in range(first, first + 250)]
    assert sum(went_in for went_in, _ in counts) == sum(came for _, came in counts) > 250


def test_mutations_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that loses an image does not pass."""
    monkeypatch.setattr(ImagesDecoder, "_emit", lambda self, event: None)
    seed = next(seed for seed in range(99) if mutations.make_body(seed).dialect == "batch")
    with pytest.raises((AssertionError, IndexError)):
        mutations.check_body(seed)
