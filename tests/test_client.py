"""`AsyncImages`: what it sends, what it makes of every answer, and how it fails."""

import asyncio
import base64
import gc
import inspect
import json
import math
import socket
import sys
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import anyio
import anyio.from_thread
import pytest

from elkimg_async import (
    APIError,
    AsyncImages,
    AuthenticationError,
    BadRequestError,
    CompletedImage,
    ConfigurationError,
    ConnectError,
    DisconnectedError,
    ElkImagesError,
    EmptyResultError,
    GenerateRequest,
    Image,
    ImagesResponse,
    ImageStream,
    InvalidRequestError,
    Limits,
    ModerationError,
    NotFoundError,
    PartialImage,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimit,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
    RetryPolicy,
    ServerError,
    StreamIncompleteError,
    Timeout,
    TokenDetails,
    Usage,
)
from elkimg_async.hooks import AttemptStarted, Record, RetryScheduled
from elkimg_async.local import FAULTS, LocalServer
from tests.helpers.calls import (
    B64,
    BUSY,
    COMPLETED,
    COMPLETED_TYPE,
    GOOD,
    PARTIAL,
    PARTIAL_TYPE,
    QUICK,
    ask,
    check_clean,
    check_secret,
    failure,
    failure_of_any_kind,
    in_both_modes,
)
from tests.helpers.canned import (
    DONE,
    JPEG,
    KEY,
    PNG,
    REQUEST_ID,
    Canned,
    End,
    Piece,
    Reply,
    answer,
    event,
    head,
    open_stream,
    stream,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ELKAPI_API_KEY", "ELKAPI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=QUICK) as client:
        yield client


@pytest.fixture
async def guest(canned: Canned) -> AsyncIterator[AsyncImages]:
    """A client of the canned server."""
    async with AsyncImages(KEY, base_url=canned.base_url, retry=QUICK) as client:
        yield client


# --- what is sent -----------------------------------------------------------


async def test_batch_sends_what_is_set(client: AsyncImages, server: LocalServer) -> None:
    """Of a bare batch call only the prompt and the model are sent."""
    await client.generate("a boat")
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/images/generations")
    assert request.fields == {"prompt": "a boat", "model": "gpt-image-1.5"}
    assert request.headers["accept"] == "application/json"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"x-api-key", "x-goog-api-key", "cookie"} & request.headers.keys()


async def test_stream_sends_what_is_set(client: AsyncImages, server: LocalServer) -> None:
    """Of a bare stream the flag, and one partial image to see something, are sent beside them."""
    await ask(client, streaming=True)
    (request,) = server.requests
    assert request.fields == {
        "prompt": "a boat",
        "model": "gpt-image-1.5",
        "stream": True,
        "partial_images": 1,
    }
    assert request.headers["accept"] == "application/json, text/event-stream"


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_partial_images(client: AsyncImages, server: LocalServer, count: int) -> None:
    """As many partial images are asked for as the caller says, and 0 is said too."""
    events, _ = await ask(client, streaming=True, partial_images=count)
    assert server.requests[-1].fields["partial_images"] == count
    assert [type(each) for each in events] == [PartialImage] * count + [CompletedImage]


@in_both_modes
@pytest.mark.parametrize(
    "options",
    [
        {"model": "gpt-image-1"},
        {"n": 2},
        {"size": "1536x1024"},
        {"quality": "low"},
        {"background": "transparent"},
        {"moderation": "low"},
        {"user": "u-1"},
        {"output_format": "webp"},
        {"output_format": "jpeg", "output_compression": 0},
        {
            "model": "gpt-image-1-mini",
            "n": 1,
            "size": "1024x1536",
            "quality": "high",
            "background": "opaque",
            "moderation": "auto",
            "user": "u-2",
            "output_format": "jpeg",
            "output_compression": 50,
        },
    ],
    ids=lambda options: "+".join(options),
)
async def test_option_is_sent(
    client: AsyncImages, server: LocalServer, options: dict[str, Any], streaming: bool
) -> None:
    """Each option arrives as it was given, and nothing else beside it, in both modes."""
    _, result = await ask(client, streaming, **options)
    expected = {"prompt": "a boat", "model": "gpt-image-1.5", **options}
    if streaming:
        expected |= {"stream": True, "partial_images": 1}
    assert server.requests[-1].fields == expected
    for name, value in options.items():
        assert type(server.requests[-1].fields[name]) is type(value)
    assert len(result) == options.get("n", 1)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "dall-e-3", "style": "natural", "quality": "hd", "response_format": "b64_json"},
        {"model": "dall-e-2", "size": "256x256", "response_format": "url"},
    ],
    ids=["dall-e-3", "dall-e-2"],
)
async def test_dall_e_option_is_sent(
    client: AsyncImages, server: LocalServer, options: dict[str, Any]
) -> None:
    """The options of the dall-e models arrive as they were given."""
    (image,) = await client.generate("a boat", **options)
    assert server.requests[-1].fields == {"prompt": "a boat", **options}
    assert (image.url is None) == (options["response_format"] == "b64_json")


async def test_unknown_model_streams_without_partial_images(
    guest: AsyncImages, canned: Canned
) -> None:
    """A model that is no GPT image model is sent no partial_images that it may not know."""
    await ask(guest, streaming=True, model="seedream-5")
    assert canned.requests[-1].fields == {
        "prompt": "a boat",
        "model": "seedream-5",
        "stream": True,
    }


@in_both_modes
@pytest.mark.parametrize(
    "prompt",
    [
        GenerateRequest(prompt="a boat", n=2, quality="low"),
        {"prompt": "a boat", "n": 2, "quality": "low"},
    ],
    ids=["struct", "mapping"],
)
async def test_prompt_as_a_request(
    client: AsyncImages, server: LocalServer, prompt: Any, streaming: bool
) -> None:
    """A ready request or a mapping is sent as it is, and arguments win over its fields."""
    await ask(client, streaming, prompt=prompt, n=1, size="1024x1024")
    fields = server.requests[-1].fields
    assert {name: fields[name] for name in ("prompt", "n", "quality", "size")} == {
        "prompt": "a boat",
        "n": 1,
        "quality": "low",
        "size": "1024x1024",
    }


async def test_extra_body(guest: AsyncImages, canned: Canned) -> None:
    """`extra_body` adds keys that the client does not know, and wins over those that it does."""
    await guest.generate("a boat", n=1, extra_body={"seed": 7, "n": 3, "deep": {"a": [None, 1.5]}})
    assert canned.requests[-1].fields == {
        "prompt": "a boat",
        "model": "gpt-image-1.5",
        "n": 3,
        "seed": 7,
        "deep": {"a": [None, 1.5]},
    }


async def test_headers(canned: Canned) -> None:
    """Headers of the client, of a view and of the call are all sent; the nearer one wins, in any case."""
    headers = {"X-A": "client", "X-B": "client", "X-C": "client"}
    async with AsyncImages(KEY, base_url=canned.base_url, headers=headers) as client:
        view = client.with_options(headers={"X-B": "view", "X-C": "view"})
        await view.generate("a boat", extra_headers={"x-c": "call", "accept": "image/*"})
        sent = canned.requests[-1].headers
        assert (sent["x-a"], sent["x-b"], sent["x-c"]) == ("client", "view", "call")
        assert sent["accept"] == "image/*"
        await client.generate("a boat")
        sent = canned.requests[-1].headers
        assert (sent["x-b"], sent["x-c"], sent["accept"]) == (
            "client",
            "client",
            "application/json",
        )


async def test_header_of_a_view_in_another_case(canned: Canned) -> None:
    """A view's header replaces the client's even when its name is written in another case."""
    async with AsyncImages(KEY, base_url=canned.base_url, headers={"X-Team": "one"}) as client:
        await client.with_options(headers={"x-team": "two"}).generate("a boat")
    assert canned.requests[-1].headers["x-team"] == "two"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer abc"},
        {"X-A": "b\r\nX-C: d"},
        {"X A": "b"},
        {"": "b"},
        {"X-A": 5},
        {5: "b"},
        ["X-A"],
    ],
)
async def test_extra_headers_wrong(guest: AsyncImages, canned: Canned, headers: Any) -> None:
    """Headers that cannot be sent are refused before anything is, and so is the key as one."""
    error = await failure(InvalidRequestError, guest, extra_headers=headers)
    assert error.param == "extra_headers"
    assert canned.accepted == 0


async def test_large_body(guest: AsyncImages, canned: Canned) -> None:
    """A request of several megabytes is sent without a warning."""
    picture = "x" * 3_000_000
    await guest.generate("a boat", extra_body={"image": picture})
    assert canned.requests[-1].fields["image"] == picture


async def test_unicode(guest: AsyncImages, canned: Canned) -> None:
    """A prompt of any characters arrives as it was given."""
    prompt = 'кот 猫 🐈‍⬛ "quoted" \\ \n\t\x00 \u2028'
    await guest.generate(prompt)
    assert canned.requests[-1].fields["prompt"] == prompt


# --- what comes back --------------------------------------------------------


async def test_batch_result(client: AsyncImages) -> None:
    """A batch call gives a sequence of images with all that the server says beside them."""
    result = await client.generate("a boat", n=3, size="1536x1024", output_format="webp")
    assert len(result) == len(list(result)) == len(result.data) == 3
    assert result[0] is result.data[0]
    assert result[-2:] == result.data[1:]
    assert {image.media_type for image in result} == {"image/webp"}
    assert len({image.content for image in result}) == 3
    assert result[0].to_pil().size == (1536, 1024)
    assert (result.size, result.output_format, result.background) == ("1536x1024", "webp", "opaque")
    assert isinstance(result.created, int)
    assert result.usage is not None
    assert isinstance(result.usage.total_tokens, int)
    assert result.usage.input_tokens_details is not None


async def test_stream_gives_what_the_batch_call_does(client: AsyncImages) -> None:
    """The same call in both modes has the same images, and each completed event the whole usage."""
    batch = await client.generate("a boat", n=2)
    events, result = await ask(client, streaming=True, n=2, partial_images=0)
    assert result.data == batch.data
    assert result.usage == batch.usage
    assert (result.size, result.quality) == (batch.size, batch.quality)
    assert all(isinstance(each, CompletedImage) and each.usage == batch.usage for each in events)


async def test_stream_events(client: AsyncImages) -> None:
    """The events of a stream have all that the contract names."""
    events, _ = await ask(client, streaming=True, partial_images=2)
    *partials, completed = events
    assert [each.type for each in events] == [PARTIAL_TYPE, PARTIAL_TYPE, COMPLETED_TYPE]
    assert isinstance(completed, CompletedImage)
    assert isinstance(completed.created_at, int)
    assert (completed.size, completed.output_format) == ("1024x1024", "png")
    assert completed.b64_json == base64.b64encode(completed.image.content or b"").decode()
    for index, partial in enumerate(partials):
        assert isinstance(partial, PartialImage)
        assert partial.partial_image_index == index
        assert partial.image.media_type == "image/png"


@in_both_modes
async def test_meta(client: AsyncImages, server: LocalServer, streaming: bool) -> None:
    """`.meta` tells how the answer was got."""
    server.inject("rate-limit")
    _, result = await ask(client, streaming)
    request = server.requests[-1]
    assert result.meta.request_id == request.request_id
    assert result.meta.status == 200
    assert result.meta.attempts == len(server.requests) == 2
    assert 0 < result.meta.first_byte <= result.meta.elapsed
    assert result.meta.idempotency_key == request.headers["idempotency-key"]
    assert result.meta.rate_limit is not None
    assert result.meta.rate_limit.limit_requests == 1_000_000


@in_both_modes
async def test_meta_of_a_server_that_says_little(canned: Canned, streaming: bool) -> None:
    """What the server does not say, and what was not sent, is None."""
    content = json.dumps({"data": [{"b64_json": B64}]}).encode()
    canned.reply_with([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content), content])
    async with AsyncImages(KEY, base_url=canned.base_url, idempotency="off") as client:
        _, result = await ask(client, streaming)
    assert result.meta.request_id is None
    assert result.meta.rate_limit is None
    assert result.meta.idempotency_key is None
    assert result.created is None
    assert result.usage is None
    assert "idempotency-key" not in canned.requests[0].headers


async def test_meta_of_rate_limit_headers(canned: Canned, guest: AsyncImages) -> None:
    """The rate-limit headers are read into numbers; x-request-id is the second choice for the id."""
    content = json.dumps({"data": [{"b64_json": B64}]}).encode()
    lines = (
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nX-Request-Id: up-1\r\n"
        "x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n"
        "x-ratelimit-reset-requests: 6m30s\r\nx-ratelimit-limit-tokens: many\r\n\r\n"
    )
    canned.reply_with([lines.encode(), content])
    result = await guest.generate("a boat")
    assert result.meta.request_id == "up-1"
    assert result.meta.rate_limit == RateLimit(
        limit_requests=60, remaining_requests=59, reset_requests=390.0
    )


async def test_many_at_once(client: AsyncImages, server: LocalServer) -> None:
    """Calls that run at once do not mix up their answers."""
    prompts = [f"boat {number}" for number in range(8)]
    results = await asyncio.gather(*(client.generate(prompt) for prompt in prompts))
    again = [await client.generate(prompt) for prompt in reversed(prompts)]
    assert [result.data for result in results] == [result.data for result in reversed(again)]
    assert len({result[0].content for result in results}) == 8


# --- answers of every kind --------------------------------------------------


def json_of(*items: object, **side: Any) -> bytes:
    return json.dumps({"created": 1, "data": list(items), **side}).encode()


ITEM = {"b64_json": B64}
SPLIT = json_of(ITEM)
USAGE: dict[str, Any] = {"total_tokens": 3, "input_tokens": 1, "output_tokens": 2}
TYPELESS = event({"b64_json": B64}, COMPLETED_TYPE)

GOOD_ANSWERS: dict[str, Reply] = {
    "json": answer(SPLIT),
    "json in two": [head(200, Content_Length=str(len(SPLIT))), SPLIT[:50], SPLIT[50:]],
    "json in chunks": stream(SPLIT[:20], SPLIT[20:40], SPLIT[40:], content_type="application/json"),
    "json until the end": [head(200, Connection="close"), SPLIT, End.CLOSE],
    "json called a stream": answer(SPLIT, content_type="text/event-stream"),
    "json called text": answer(SPLIT, content_type="text/plain; charset=gbk"),
    "json after blanks": stream(b" \n", b"\r\n\t ", b" " + SPLIT, content_type="application/json"),
    "json after a bom": answer(b"\xef\xbb\xbf" + SPLIT),
    "json with status 201": answer(SPLIT, status=201),
    "a list": answer([ITEM]),
    "data that is one object": answer({"created": 1, **ITEM}),
    "null side data": answer(
        json_of(ITEM, created=None, usage=None, size=None, quality=None, background=None)
    ),
    "only the image": answer({"data": [ITEM]}),
    "null error": answer(json_of({**ITEM, "url": None, "revised_prompt": None}, error=None)),
    "unknown fields": answer(json_of({**ITEM, "seed": 7}, object="list", deep={"a": [1, {}]})),
    "wrong side data": answer(json_of(ITEM, created="soon", usage=[1], size=1024, quality={})),
    "usage with fractions": answer(json_of(ITEM, usage={"total_tokens": 1.5, "input_tokens": "2"})),
    "not a number": answer(SPLIT[:-1] + b', "cost": NaN}'),
    "lone surrogate": answer(SPLIT[:-1] + b', "note": "\\ud800"}'),
    "data url": answer(json_of({"b64_json": f"data:image/png;base64,{B64}"})),
    "data url as url": answer(json_of({"url": f"data:image/png;base64,{B64}", "b64_json": ""})),
    "escaped slashes": answer(SPLIT.replace(b"/", b"\\/")),
    "escaped plus": answer(SPLIT.replace(b"+", b"\\u002B")),
    "line breaks in base64": answer(json_of({"b64_json": f"{B64[:76]}\r\n{B64[76:]}\n"})),
    "missing padding": answer(json_of({"b64_json": B64.rstrip("=")})),
    "empty slots beside it": answer(json_of({"url": "", "b64_json": ""}, ITEM, None, {})),
    "events": stream(b": PING\n\n", PARTIAL, COMPLETED, DONE),
    "events without done": stream(PARTIAL, COMPLETED),
    "events called json": stream(PARTIAL, COMPLETED, content_type="application/json"),
    "events of a known length": answer(PARTIAL + COMPLETED + DONE, content_type="text/event-stream"),
    "events until the end": [
        head(200, "text/event-stream", Connection="close"), PARTIAL, COMPLETED, End.CLOSE,
    ],
    "events with pings": stream(
        b": keepalive\n\n", b"data:\n\n", event({"type": "keepalive"}), b":\n\n", COMPLETED, DONE
    ),
    "events byte by byte": stream(*(bytes([byte]) for byte in PARTIAL + COMPLETED + DONE)),
    "events with crlf": stream(COMPLETED.replace(b"\n", b"\r\n")),
    "events with cr": stream(COMPLETED.replace(b"\n", b"\r")),
    "events after a bom": stream(b"\xef\xbb\xbf" + COMPLETED),
    "type in the event line": stream(TYPELESS),
    "type in both": stream(event({"type": COMPLETED_TYPE, **ITEM}, COMPLETED_TYPE)),
    "an edit's type": stream(event({"type": "image_edit.completed", **ITEM})),
    "unknown events": stream(event({"type": "image_generation.thought"}), COMPLETED, event([1])),
    "corrupt partial": stream(event({"type": PARTIAL_TYPE, "b64_json": "!!"}), COMPLETED),
    "usage-only frame": stream(COMPLETED, event({"usage": USAGE}), DONE),
    "more after done": stream(COMPLETED, DONE, COMPLETED),
    "whole answer in a frame": stream(event(SPLIT), DONE),
    "data url in an event": stream(event({"type": COMPLETED_TYPE, "url": f"data:;base64,{B64}"})),
    "reset after the completed event": [*open_stream(COMPLETED), End.RESET],
    "no last chunk": [*open_stream(COMPLETED, DONE), End.CLOSE],
    "nothing after done": [*open_stream(COMPLETED, DONE), End.HOLD],
    "json without a last chunk": [*open_stream(SPLIT), End.CLOSE],
    "interim answers": [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", *answer(SPLIT)],
}  # fmt: skip


@in_both_modes
@pytest.mark.parametrize("kind", GOOD_ANSWERS)
async def test_answer_with_an_image(
    guest: AsyncImages, canned: Canned, kind: str, streaming: bool
) -> None:
    """However an image comes, each mode gives it, and the request id beside it."""
    canned.reply_with(GOOD_ANSWERS[kind])
    events, result = await ask(guest, streaming)
    assert [image.content for image in result] == [PNG]
    assert result.meta.request_id == REQUEST_ID
    assert len(canned.requests) == 1
    if streaming:
        completed = [each.image for each in events if isinstance(each, CompletedImage)]
        assert completed == result.data
        assert all(each.image.content == PNG for each in events)
    else:
        assert isinstance(result, ImagesResponse)


@in_both_modes
async def test_usage_in_chat_spelling(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """Usage in the spelling of chat answers is read as well; what is missing is None."""
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"text_tokens": 5},
    }
    canned.reply_with(answer(json_of(ITEM, usage=usage)))
    _, result = await ask(guest, streaming)
    assert result.usage == Usage(
        input_tokens=5, output_tokens=7, input_tokens_details=TokenDetails(text_tokens=5)
    )


@in_both_modes
async def test_usage_of_several_events(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """Each completed event repeats the whole usage, which is never added up."""
    frame = event({"type": COMPLETED_TYPE, "b64_json": B64, "usage": USAGE, "created_at": 5})
    canned.reply_with(stream(frame, frame, frame, DONE))
    _, result = await ask(guest, streaming)
    assert len(result) == 3
    assert result.usage == Usage(**USAGE)
    assert result.created == 5


@in_both_modes
async def test_usage_in_a_frame_of_its_own(
    guest: AsyncImages, canned: Canned, streaming: bool
) -> None:
    """A frame that has only the usage completes the result."""
    canned.reply_with(GOOD_ANSWERS["usage-only frame"])
    _, result = await ask(guest, streaming)
    assert result.usage == Usage(**USAGE)


@in_both_modes
@pytest.mark.parametrize(
    ("url", "absolute"),
    [
        ("https://host/a.png?sig=1", "https://host/a.png?sig=1"),
        ("/files/a.png", "{origin}/files/a.png"),
        ("files/a.png", "{origin}/v1/files/a.png"),
        ("//host/a.png", "http://host/a.png"),
    ],
)
async def test_url_instead_of_bytes(
    guest: AsyncImages, canned: Canned, url: str, absolute: str, streaming: bool
) -> None:
    """An image may be a URL, relative to the base URL as well; it is not fetched by itself."""
    item = {"url": url, "b64_json": "", "revised_prompt": "a boat, in oil"}
    for reply in (answer(json_of(item)), stream(event({"type": COMPLETED_TYPE, **item}))):
        canned.reply_with(reply)
        _, (image,) = await ask(guest, streaming)
        assert image.content is None
        assert image.url == absolute.format(origin=canned.origin)
        assert image.revised_prompt == "a boat, in oil"
    assert len(canned.requests) == 2


@in_both_modes
async def test_bytes_and_url(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """The service's own example has both in one item: the bytes are there at once."""
    canned.reply_with(answer(json_of({"url": "https://host/a.png", "b64_json": B64})))
    _, (image,) = await ask(guest, streaming)
    assert (image.content, image.url) == (PNG, "https://host/a.png")


def error_of(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "no such luck", **fields}}


CUT = [head(200, Content_Length=str(len(SPLIT))), SPLIT[:200]]
BARE = json.dumps(error_of(code="moderation_blocked")).encode()
PAGE = b"<!DOCTYPE html><html><title>Welcome</title></html>"
BAD_ANSWERS: dict[str, tuple[Reply, type[ElkImagesError], type[ElkImagesError], str]] = {
    "empty": (answer(b""), EmptyResultError, StreamIncompleteError, ""),
    "no content": (
        [head(204)], EmptyResultError, StreamIncompleteError, "",
    ),
    "blank": (answer(b" \r\n\t"), EmptyResultError, StreamIncompleteError, ""),
    "no data": (answer({"created": 1}), EmptyResultError, EmptyResultError, "no image"),
    "empty object": (answer({}), EmptyResultError, EmptyResultError, "no image"),
    "empty list": (answer([]), EmptyResultError, EmptyResultError, "no image"),
    "empty data": (answer(json_of()), EmptyResultError, EmptyResultError, "no image"),
    "null data": (answer({"data": None}), EmptyResultError, EmptyResultError, "no image"),
    "empty slot": (
        answer(json_of({"url": "", "b64_json": ""})), EmptyResultError, EmptyResultError, "no image",
    ),
    "null slot": (
        answer(json_of({"url": None, "b64_json": None})), EmptyResultError, EmptyResultError, "",
    ),
    "html": (answer(PAGE, content_type="text/html"), ResponseError, ResponseError, "/v1"),
    "html called json": (answer(b"\n " + PAGE), ResponseError, ResponseError, "/v1"),
    "html called a stream": (
        answer(PAGE, content_type="text/event-stream"), ResponseError, ResponseError, "/v1",
    ),
    "plain text": (
        answer(b"upstream request timed out", content_type="text/plain"),
        ResponseError, ResponseError, "",
    ),
    "a number": (answer(b"42"), ResponseError, ResponseError, ""),
    "a string": (answer(b'"https://host/a.png"'), ResponseError, ResponseError, ""),
    "half of the json": (answer(SPLIT[:200]), ResponseError, ResponseError, "JSON"),
    "broken json": (answer(b'{"data": [}'), ResponseError, ResponseError, "JSON"),
    "not utf-8": (answer(b'{"data": "\xff\xfe"'), ResponseError, ResponseError, "JSON"),
    "broken base64": (
        answer(json_of({"b64_json": "!!!!"})), ResponseError, ResponseError, "image is broken",
    ),
    "a bit of base64": (answer(json_of({"b64_json": "A"})), ResponseError, ResponseError, "broken"),
    "error": (answer(error_of()), APIError, APIError, "no such luck"),
    "error with a type": (
        answer(error_of(type="invalid_request_error", param="size")),
        BadRequestError, BadRequestError, "no such luck",
    ),
    "error with a code": (
        answer(error_of(code="insufficient_user_quota")),
        QuotaExceededError, QuotaExceededError, "insufficient_user_quota",
    ),
    "error with a number": (answer(error_of(code=429)), RateLimitError, RateLimitError, "429"),
    "error as text": (answer({"error": "no such luck"}), APIError, APIError, "no such luck"),
    "error called a stream": (
        answer(error_of(), content_type="text/event-stream"), APIError, APIError, "no such luck",
    ),
    "error beside data": (
        answer(json_of(ITEM, **error_of(code="content_filter"))),
        ModerationError, ModerationError, "no such luck",
    ),
    "error by type": (
        answer({"type": "upstream_error", "message": "no such luck"}),
        ServerError, ServerError, "no such luck",
    ),
    "bare error line": (
        stream(b": PING\n\n", BARE + b"\n"), ModerationError, ModerationError, "no such luck",
    ),
    "bare error line without an end": (
        stream(b": PING\n\n", BARE), ModerationError, ModerationError, "no such luck",
    ),
    "error event": (
        stream(PARTIAL, event(error_of(type="server_error"), "error")),
        ServerError, ServerError, "no such luck",
    ),
    "error event without a name": (
        stream(PARTIAL, event({"type": "error", "message": "no such luck"})),
        APIError, APIError, "no such luck",
    ),
    "error event as text": (
        stream(b"event: error\ndata: no such luck\n\n"), APIError, APIError, "no such luck",
    ),
    "error string in an event": (
        stream(PARTIAL, event({"error": "no such luck"})), APIError, APIError, "no such luck",
    ),
    "only partial images": (
        stream(PARTIAL, PARTIAL, DONE), StreamIncompleteError, StreamIncompleteError, "2 partial",
    ),
    "only pings": (
        stream(b": PING\n\n", b"data:\n\n"), StreamIncompleteError, StreamIncompleteError, "",
    ),
    "only done": (stream(DONE), StreamIncompleteError, StreamIncompleteError, ""),
    "half of the last event": (
        stream(PARTIAL, COMPLETED[:200]), StreamIncompleteError, StreamIncompleteError, "1 partial",
    ),
    "completed without an image": (
        stream(event({"type": COMPLETED_TYPE, "b64_json": "", "url": ""})),
        EmptyResultError, EmptyResultError, "no image",
    ),
    "corrupt completed": (
        stream(COMPLETED, event({"type": COMPLETED_TYPE, "b64_json": "!!!!"})),
        ResponseError, ResponseError, "broken",
    ),
    "cut": ([*CUT, End.CLOSE], DisconnectedError, DisconnectedError, "before the response was complete"),
    "reset": ([*CUT, End.RESET], DisconnectedError, DisconnectedError, ""),
    "cut within the chunks": (
        [*open_stream(PARTIAL, COMPLETED[:200]), End.CLOSE],
        DisconnectedError, DisconnectedError, "",
    ),
    "redirect": (
        [head(301, Location="/elsewhere", Content_Length="0")],
        ResponseError, ResponseError, "base URL",
    ),
    "redirect that keeps the method": (
        [head(307, Location="http://evil.example/", Content_Length="0")],
        ResponseError, ResponseError, "base URL",
    ),
    "not modified": ([head(304)], ResponseError, ResponseError, "304"),
}  # fmt: skip


@in_both_modes
@pytest.mark.parametrize("kind", BAD_ANSWERS)
async def test_answer_without_an_image(
    guest: AsyncImages, canned: Canned, kind: str, streaming: bool
) -> None:
    """An answer without a usable image is the right error, with the request id, asked for once."""
    reply, batch_error, stream_error, words = BAD_ANSWERS[kind]
    canned.reply_with(reply)
    error = await failure(stream_error if streaming else batch_error, guest, streaming)
    assert error.request_id == REQUEST_ID
    assert REQUEST_ID in str(error)
    assert words in str(error)
    assert error.attempts == 1
    refused = isinstance(error, APIError) and not error.images
    assert error.billing == ("refused" if refused else "unknown")
    assert len(canned.requests) == 1


@in_both_modes
async def test_chunks_that_are_none(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """Chunked coding that is none hangs in the HTTP library; the idle limit ends the call."""
    canned.reply_with([head(200, Transfer_Encoding="chunked"), b"what?\r\n", End.CLOSE])
    options = {"timeout": Timeout(idle=0.2)}
    error = await failure_of_any_kind(guest, streaming, **options)
    assert isinstance(error, (RequestTimeoutError, ResponseError, DisconnectedError))
    assert error.request_id == REQUEST_ID
    assert error.billing == "unknown"


@in_both_modes
async def test_deeply_nested_answer(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """An answer nested beyond all measure ends as an image or an error of ours."""
    canned.reply_with(answer(SPLIT[:-1] + b', "deep": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"))
    try:
        _, result = await ask(guest, streaming)
    except ResponseError as error:
        check_clean(error)
    else:
        assert result[0].content == PNG


@in_both_modes
async def test_good_images_of_a_broken_answer(
    guest: AsyncImages, canned: Canned, streaming: bool
) -> None:
    """When one of several images is broken, the error carries the good ones."""
    jpeg = base64.b64encode(JPEG).decode()
    canned.reply_with(answer(json_of(ITEM, {"b64_json": "!!!!"}, {"b64_json": jpeg})))
    error = await failure(ResponseError, guest, streaming)
    assert "Image 2 of 3" in str(error)
    assert [image.content for image in error.images] == [PNG, JPEG]


@in_both_modes
async def test_completed_images_before_an_error(
    guest: AsyncImages, canned: Canned, streaming: bool
) -> None:
    """An error after some of the completed images carries those."""
    canned.reply_with(stream(COMPLETED, event(error_of(), "error")))
    error = await failure(APIError, guest, streaming)
    assert [image.content for image in error.images] == [PNG]


@in_both_modes
async def test_partials_of_an_incomplete_stream(
    guest: AsyncImages, canned: Canned, streaming: bool
) -> None:
    """A stream without an end carries the partial images that came."""
    canned.reply_with(stream(PARTIAL, PARTIAL))
    error = await failure(StreamIncompleteError, guest, streaming)
    assert [partial.image.content for partial in error.partials] == [PNG, PNG]
    assert error.partials[0].partial_image_index == 0


@in_both_modes
async def test_page_is_kept_in_part(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """Of a web page the beginning is kept for whoever has to find out where it came from."""
    canned.reply_with(answer(PAGE + b"x" * 100_000))
    error = await failure(ResponseError, guest, streaming)
    assert error.body is not None
    assert error.body.startswith(PAGE.decode())
    assert len(error.body) <= 65_536


@in_both_modes
@pytest.mark.parametrize(
    "body",
    [SPLIT, PARTIAL + COMPLETED, PAGE * 9, b" " * 500],
    ids=["json", "events", "page", "blanks"],
)
async def test_answer_over_the_limit(canned: Canned, body: bytes, streaming: bool) -> None:
    """An answer of any kind over the limit is not read on, and the error says how to raise it."""
    canned.reply_with([*open_stream(body), End.HOLD])
    limits = Limits(max_response_bytes=300)
    async with AsyncImages(KEY, base_url=canned.base_url, limits=limits) as client:
        error = await failure(ResponseError, client, streaming)
        assert "longer than 300 bytes" in str(error)
        assert "max_response_bytes" in str(error)
        assert error.request_id == REQUEST_ID
        await canned.wait_disconnected()


async def test_redirect_is_not_followed(guest: AsyncImages) -> None:
    """Neither the prompt nor the key goes to where a redirect points."""
    async with Canned(GOOD) as elsewhere, Canned() as canned:
        canned.reply_with([head(307, Location=elsewhere.base_url, Content_Length="0")])
        async with AsyncImages(KEY, base_url=canned.base_url) as client:
            error = await failure(ResponseError, client)
        assert elsewhere.origin in str(error)
        assert elsewhere.accepted == 0


@in_both_modes
async def test_base_url_without_v1(server: LocalServer, streaming: bool) -> None:
    """A base URL without /v1 gets a web page with status 200, and the error says what is missing."""
    base_url = server.base_url.removesuffix("/v1")
    async with AsyncImages(KEY, base_url=base_url) as client:
        error = await failure(ResponseError, client, streaming)
    assert "/v1" in str(error)
    assert error.status == 200


# --- refusals ---------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    ("status", "fields", "kind", "billing"),
    [
        (400, {}, BadRequestError, "refused"),
        (400, {"code": "moderation_blocked"}, ModerationError, "refused"),
        (400, {"code": "content_policy_violation"}, ModerationError, "refused"),
        (401, {"code": ""}, AuthenticationError, "refused"),
        (402, {}, QuotaExceededError, "refused"),
        (403, {"code": "access_denied"}, PermissionDeniedError, "refused"),
        (403, {"code": "insufficient_user_quota"}, QuotaExceededError, "refused"),
        (404, {}, NotFoundError, "refused"),
        (413, {"code": "read_request_body_failed"}, BadRequestError, "refused"),
        (422, {}, BadRequestError, "refused"),
        (429, {"code": "insufficient_quota"}, QuotaExceededError, "refused"),
        (429, {}, RateLimitError, "refused"),
        (500, {"code": "invalid_request"}, BadRequestError, "refused"),
        (500, {"code": "do_request_failed"}, ServerError, "refused"),
        (500, {"code": "bad_response_body"}, ServerError, "unknown"),
        (501, {"code": "api_not_implemented"}, NotFoundError, "refused"),
        (502, {}, ServerError, "unknown"),
        (503, {"code": "model_not_found"}, NotFoundError, "refused"),
        (503, {"code": "system_cpu_overloaded"}, ServerError, "refused"),
        (504, {}, ServerError, "unknown"),
        (524, {}, ServerError, "unknown"),
    ],
)
async def test_refusal(
    canned: Canned,
    status: int,
    fields: dict[str, Any],
    kind: type[APIError],
    billing: str,
    streaming: bool,
) -> None:
    """Each refusal is its class of error, with all that the server said."""
    body = error_of(type="some_type", param="size", **fields)
    canned.reply_with(answer(body, status=status, Retry_After="7", X_More="yes"))
    async with AsyncImages(KEY, base_url=canned.base_url, retry=0) as client:
        error = await failure(kind, client, streaming)
    assert error.status == status
    assert error.code == (fields.get("code") or None)
    assert (error.type, error.param, error.billing) == ("some_type", "size", billing)
    assert error.request_id == REQUEST_ID
    assert error.retry_after == 7.0
    assert error.headers["x-more"] == "yes"
    assert error.body == body
    assert error.attempts == 1
    assert f"The server returned {status}" in str(error)
    assert "no such luck" in str(error)


@in_both_modes
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"<html>Bad Gateway</html>", "text/html"),
        (b"busy", "text/plain"),
        (b'{"error":', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"detail": [{"loc": ["body"], "msg": "wrong"}]}', "application/json"),
        (b'{"error": null}', "application/json"),
        (b'{"error": {"message": null, "code": [1], "param": {}}}', "application/json"),
        (b"[" * 50_000, "application/json"),
        (b"42", "application/json"),
    ],
    ids=["none", "html", "text", "cut", "bytes", "fastapi", "null", "odd", "deep", "number"],
)
async def test_refusal_in_any_shape(
    canned: Canned, body: bytes, content_type: str, streaming: bool
) -> None:
    """The status decides, whatever stands in the body."""
    canned.reply_with(answer(body, status=403, content_type=content_type))
    async with AsyncImages(KEY, base_url=canned.base_url) as client:
        error = await failure(PermissionDeniedError, client, streaming)
    assert error.status == 403
    assert error.request_id == REQUEST_ID
    assert "403" in str(error)


@in_both_modes
async def test_refusal_without_an_end(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """A refusal whose body breaks off, or never ends, is that refusal all the same."""
    cut: list[Piece] = [head(401, Content_Length="500"), b'{"error": {"mess']
    canned.reply_with([*cut, End.CLOSE])
    assert (await failure(AuthenticationError, guest, streaming)).status == 401
    canned.reply_with([*cut, End.HOLD])
    options = {"timeout": Timeout(idle=0.1)}
    assert (await failure(AuthenticationError, guest, streaming, **options)).status == 401


@in_both_modes
async def test_wrong_key(server: LocalServer, streaming: bool) -> None:
    """A key that the server does not know is an AuthenticationError, asked once, and not shown."""
    async with AsyncImages(KEY, base_url=server.base_url) as client:
        error = await failure(AuthenticationError, client, streaming)
    (request,) = server.requests
    assert error.request_id == request.request_id
    assert error.status == 401
    assert "ELKAPI_API_KEY" in str(error)


async def test_wrong_key_is_raised_by_opening(server: LocalServer) -> None:
    """Awaiting a stream is enough to be told that the key is wrong."""
    async with AsyncImages(KEY, base_url=server.base_url) as client:
        with pytest.raises(AuthenticationError):
            await client.generate("a boat", stream=True)


@in_both_modes
async def test_model_that_the_server_does_not_know(client: AsyncImages, streaming: bool) -> None:
    """A model that neither side knows is sent, and the server's answer is told."""
    error = await failure(NotFoundError, client, streaming, model="gpt-image-99")
    assert (error.status, error.code) == (503, "model_not_found")
    assert error.attempts == 1


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        answer({"error": {"message": f"Incorrect key {KEY}", "code": KEY}}, status=401, X_Echo=KEY),
        answer({"error": f"Incorrect key {KEY}"}),
        answer(f"<html>{KEY}</html>".encode()),
        answer(f'{{"{KEY}": '.encode()),
        [head(302, Location=f"https://host/{KEY}", Content_Length="0")],
        stream(PARTIAL, event({"error": {"message": KEY}})),
        [b"HTTP/1.1 200 OK\r\n" + KEY.encode() + b"\r\n\r\n", End.CLOSE],
        [f"{KEY}\r\n\r\n".encode(), End.CLOSE],
    ],
    ids=["refusal", "error", "html", "json", "redirect", "event", "header", "no-http"],
)
async def test_server_that_echoes_the_key(
    guest: AsyncImages, canned: Canned, reply: Reply, streaming: bool
) -> None:
    """A server that repeats the key in its answer does not get it into an error."""
    canned.reply_with(reply)
    await failure_of_any_kind(guest, streaming)


# --- bad input --------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "needs a prompt"),
        ({"prompt": 5}, "prompt", "must be a string, not int"),
        ({"prompt": b"a boat"}, "prompt", "must be a string, not bytes"),
        ({"prompt": {"n": 1}}, "prompt", "needs a prompt"),
        ({"prompt": {"prompt": "a", "sise": "1024x1024"}}, "sise", "extra_body"),
        ({"prompt": "a" * 32_001}, "prompt", "at most 32,000"),
        ({"prompt": "\ud800"}, "prompt", "valid Unicode"),
        ({"n": 0}, "n", "1 to 10"),
        ({"n": 11}, "n", "1 to 10"),
        ({"n": -1}, "n", "1 to 10"),
        ({"n": 1.5}, "n", "must be a whole number, not float"),
        ({"n": "1"}, "n", "must be a whole number, not str"),
        ({"n": True}, "n", "must be a whole number, not bool"),
        ({"n": 10**30}, "n", ""),
        ({"size": "1000x1000"}, "size", "1024x1024, 1536x1024, 1024x1536, auto"),
        ({"size": 1024}, "size", "must be a string, not int"),
        ({"model": "gpt-image-2", "size": "1000x1000"}, "size", "multiples of 16"),
        ({"model": 5}, "model", "must be a string, not int"),
        ({"quality": "hd"}, "quality", "low, medium, high, auto"),
        ({"background": "transparent", "output_format": "jpeg"}, "background", "png or webp"),
        ({"background": "blue"}, "background", "transparent, opaque, auto"),
        ({"moderation": "none"}, "moderation", "low, auto"),
        ({"output_format": "bmp"}, "output_format", "png, jpeg, webp"),
        ({"output_compression": 50}, "output_compression", "jpeg or webp"),
        ({"output_format": "webp", "output_compression": 101}, "output_compression", "0 to 100"),
        ({"partial_images": 4}, "partial_images", "0 to 3"),
        ({"partial_images": -1}, "partial_images", "0 to 3"),
        ({"style": "vivid"}, "style", "leave it out"),
        ({"response_format": "url"}, "response_format", "leave it out"),
        ({"model": "dall-e-3", "background": "opaque"}, None, "dall-e-3: "),
        ({"user": 5}, "user", "must be a string, not int"),
        ({"extra_body": [1]}, "extra_body", "mapping"),
        ({"extra_body": {"a": frozenset}}, "a", "plain data"),
        ({"extra_headers": {"a b": "c"}}, "extra_headers", "a b"),
    ],
    ids=str,
)
async def test_bad_input(
    client: AsyncImages,
    server: LocalServer,
    options: dict[str, Any],
    param: str | None,
    words: str,
    streaming: bool,
) -> None:
    """Bad input is a sentence that names the parameter and what to do; nothing is sent."""
    error = await failure(InvalidRequestError, client, streaming, **options)
    if param is not None:
        assert error.param == param
    assert words in str(error)
    assert error.billing == "not_sent"
    assert error.attempts == 0
    assert error.request_id is None
    assert isinstance(error, ValueError)
    assert server.connections == 0
    assert not server.requests


async def test_bad_input_for_the_mode(client: AsyncImages, server: LocalServer) -> None:
    """Partial images are for streams, and dall-e does not stream."""
    error = await failure(InvalidRequestError, client, partial_images=2)
    assert error.param == "partial_images"
    assert "stream=True" in str(error)
    error = await failure(InvalidRequestError, client, streaming=True, model="dall-e-3")
    assert error.param == "stream"
    assert "cannot stream" in str(error)
    assert not server.requests


@pytest.mark.parametrize("stream", ["true", 1, None])
def test_stream_that_is_no_bool(stream: Any) -> None:
    """`stream` decides what is returned, so anything but a bool is refused at once."""
    with pytest.raises(InvalidRequestError, match="True or False") as caught:
        AsyncImages(KEY).generate("a boat", stream=stream)
    assert caught.value.param == "stream"


@in_both_modes
@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": "5"}, {"timeout": -1}, {"retry": -1}, {"retry": 1.5}],
    ids=str,
)
def test_bad_policy_of_a_call(options: dict[str, Any], streaming: bool) -> None:
    """A limit or number of retries that cannot work is a ConfigurationError, as it is for the client."""
    with pytest.raises(ConfigurationError):
        AsyncImages(KEY).generate("a boat", stream=streaming, **options)


def test_unknown_argument() -> None:
    """An argument that does not exist is Python's TypeError."""
    with pytest.raises(TypeError, match="sise"):
        AsyncImages(KEY).generate("a boat", sise="auto")  # type: ignore[call-overload]


@in_both_modes
async def test_closed_client(client: AsyncImages, server: LocalServer, streaming: bool) -> None:
    """A closed client says so, and opens nothing anew; closing it twice is fine."""
    await client.aclose()
    await client.aclose()
    error = await failure(ConfigurationError, client, streaming)
    assert "closed; create a new one" in str(error)
    assert error.billing == "not_sent"
    assert server.connections == 0
    assert "closed" in repr(client)


@in_both_modes
async def test_no_key(server: LocalServer, streaming: bool) -> None:
    """Without a key the first call says which variable to set, and how to do without one."""
    async with AsyncImages(base_url=server.base_url) as client:
        error = await failure(ConfigurationError, client, streaming)
    assert "ELKAPI_API_KEY" in str(error)
    assert "LocalServer" in str(error)
    assert error.billing == "not_sent"
    assert server.connections == 0


@in_both_modes
async def test_validate_off(server: LocalServer, streaming: bool) -> None:
    """With `off` only types are checked, and the server decides the rest."""
    async with AsyncImages(server.api_key, base_url=server.base_url, validate="off") as client:
        error = await failure(BadRequestError, client, streaming, n=11)
        assert (error.status, error.code) == (500, "invalid_request")
        assert server.requests[-1].fields["n"] == 11
        await failure(InvalidRequestError, client, streaming, n=1.5)
    assert len(server.requests) == 1


@in_both_modes
async def test_validate_warn(server: LocalServer, streaming: bool) -> None:
    """With `warn` the request is sent all the same, after a warning that says the same sentence."""
    async with AsyncImages(server.api_key, base_url=server.base_url, validate="warn") as client:
        with pytest.warns(UserWarning, match="it must be 1 to 10"):
            await failure(BadRequestError, client, streaming, n=11)
    assert server.requests[-1].fields["n"] == 11


async def test_validate_warn_points_at_the_call(server: LocalServer) -> None:
    """The warning names the line that called `generate`, wherever and whenever the call then runs."""
    async with AsyncImages(
        server.api_key, base_url=server.base_url, validate="warn", retry=0
    ) as client:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            coroutine = client.generate("a boat", n=11)
            stream = client.generate("a boat", n=11, stream=True)
            line = inspect.getframeinfo(inspect.currentframe() or sys._getframe()).lineno
            task = asyncio.create_task(coroutine)
            for waiting in (task, stream):
                with pytest.raises(BadRequestError):
                    await waiting
    assert [(warning.filename, warning.lineno) for warning in caught] == [
        (__file__, line - 2),
        (__file__, line - 1),
    ]
    assert all(warning.category is UserWarning for warning in caught)


# --- the key ----------------------------------------------------------------


async def test_key_of_the_environment(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the environment's key is used, as it is at the time of the call."""
    async with AsyncImages(base_url=server.base_url) as client:
        monkeypatch.setenv("ELKAPI_API_KEY", server.api_key)
        assert len(await client.generate("a boat")) == 1


@in_both_modes
async def test_key_is_asked_for_before_each_attempt(canned: Canned, streaming: bool) -> None:
    """A key function is asked anew before each attempt."""
    keys = [f"key-{number}" for number in range(9)]
    left = iter(keys)

    async def next_key() -> str:
        await asyncio.sleep(0)
        return next(left)

    canned.reply_with(BUSY, BUSY, GOOD)
    async with AsyncImages(next_key, base_url=canned.base_url, retry=QUICK) as client:
        await ask(client, streaming)
        await ask(client, streaming)
    sent = [request.headers["authorization"] for request in canned.requests]
    assert sent == [f"Bearer {key}" for key in keys[:4]]


@in_both_modes
async def test_key_function_that_fails(canned: Canned, streaming: bool) -> None:
    """What the caller's own function raises is told by its kind, for its text may hold the key; nothing is sent."""

    async def fail() -> str:
        raise LookupError(f"the vault is shut: {KEY}")

    async with AsyncImages(fail, base_url=canned.base_url) as client:
        error = await failure(ConfigurationError, client, streaming)
    assert "failed with LookupError" in str(error)
    assert KEY not in str(error)
    assert error.__context__ is error.__cause__ is None
    assert canned.accepted == 0


@pytest.mark.parametrize("key", ["", None, b"sk", "a\nb"])
async def test_key_function_that_gives_no_key(canned: Canned, key: Any) -> None:
    """A function that gives no usable key is a ConfigurationError."""

    async def give() -> Any:
        return key

    async with AsyncImages(give, base_url=canned.base_url) as client:
        await failure(ConfigurationError, client)
    assert canned.accepted == 0


async def test_key_function_that_is_not_async(canned: Canned) -> None:
    """A plain function in place of an async one is told in words."""

    def give() -> Any:
        return KEY

    async with AsyncImages(give, base_url=canned.base_url) as client:
        error = await failure(ConfigurationError, client)
    assert "async" in str(error)


@in_both_modes
async def test_key_function_that_hangs(canned: Canned, streaming: bool) -> None:
    """Waiting for the key counts towards the total; nothing was sent."""

    async def hang() -> str:
        return str(await asyncio.get_running_loop().create_future())

    async with AsyncImages(hang, base_url=canned.base_url, timeout=0.1, retry=0) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.billing) == ("total", "not_sent")
    assert canned.accepted == 0


@in_both_modes
@pytest.mark.parametrize("outer", [False, True])
async def test_cancelled_call_does_not_show_the_key(
    guest: AsyncImages, canned: Canned, streaming: bool, outer: bool
) -> None:
    """The traceback of a cancellation, or of the caller's own time-out, does not show the key."""
    canned.reply_with([End.HOLD])
    if outer:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await ask(guest, streaming)
        assert type(caught.value) is TimeoutError
        check_secret(caught.value)
        return
    task = asyncio.create_task(ask(guest, streaming))
    await canned.wait_until(lambda: len(canned.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    check_secret(cancelled.value)


async def test_repr(canned: Canned) -> None:
    """The client shows where it sends to, and never the key."""
    async with AsyncImages(KEY, base_url=canned.base_url) as client:
        assert repr(client) == f"<AsyncImages for {canned.base_url}>"
        assert KEY not in repr(vars(client))
        assert KEY not in repr(client._settings)


# --- idempotency keys -------------------------------------------------------


@in_both_modes
async def test_idempotency_key(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """The key is the same over the attempts of a call, and another one for each call."""
    canned.reply_with(BUSY, BUSY, GOOD)
    await ask(guest, streaming)
    await ask(guest, streaming)
    *first, second = (request.headers["idempotency-key"] for request in canned.requests)
    assert len(first) == 3
    assert len(set(first)) == 1
    assert second != first[0]
    assert len(second) >= 32


@in_both_modes
async def test_idempotency_off(canned: Canned, streaming: bool) -> None:
    """With `off` no key is sent."""
    async with AsyncImages(KEY, base_url=canned.base_url, idempotency="off") as client:
        await ask(client, streaming)
    assert "idempotency-key" not in canned.requests[0].headers


@in_both_modes
@pytest.mark.parametrize(
    "fault", ["reset-before-headers", "close-before-headers", "truncate-length"]
)
async def test_idempotency_replay(server: LocalServer, fault: str, streaming: bool) -> None:
    """With `replay` a call whose outcome is unknown is tried again, and paid for once."""
    server.inject(fault)
    async with AsyncImages(
        server.api_key, base_url=server.base_url, idempotency="replay", retry=QUICK
    ) as client:
        _, result = await ask(client, streaming, partial_images=0 if streaming else None)
    assert len(result) == 1
    assert result.meta.attempts == len(server.requests) == 2
    assert server.generations == 1


@in_both_modes
async def test_unknown_outcome_is_not_retried(server: LocalServer, streaming: bool) -> None:
    """Without it, a call that broke off after it was sent is not repeated: it may have been paid for."""
    server.inject("reset-before-headers")
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=QUICK) as client:
        error = await failure(DisconnectedError, client, streaming)
    assert (error.billing, error.phase) == ("unknown", "first_byte")
    assert len(server.requests) == server.generations == 1


# --- retries ----------------------------------------------------------------


class Delays:
    """A hook that notes the delays before retries, and counts the attempts."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.attempts = 0

    def __call__(self, record: Record) -> None:
        if isinstance(record, RetryScheduled):
            self.delays.append(record.delay)
        self.attempts += isinstance(record, AttemptStarted)


def refusal(status: int, code: str = "", **headers: str) -> Reply:
    return answer(error_of(code=code), status=status, **headers)


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        refusal(408),
        refusal(425),
        refusal(429),
        answer(b"", status=429),
        refusal(500, "do_request_failed"),
        refusal(529),
        refusal(503, "system_cpu_overloaded"),
        refusal(409, "idempotency_key_in_flight"),
        refusal(400, X_Should_Retry="true"),
    ],
    ids=["408", "425", "429", "429-empty", "500-upstream", "529", "503", "409-in-flight", "told"],
)
async def test_retried(guest: AsyncImages, canned: Canned, reply: Reply, streaming: bool) -> None:
    """What may succeed later, and was certainly not made, is tried again."""
    canned.reply_with(reply, reply, GOOD)
    _, result = await ask(guest, streaming)
    assert result.meta.attempts == len(canned.requests) == 3
    bodies = {request.body for request in canned.requests}
    assert len(bodies) == 1


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        refusal(400),
        refusal(401),
        refusal(403, "insufficient_user_quota"),
        refusal(404),
        refusal(409),
        refusal(413),
        refusal(422),
        refusal(429, "insufficient_quota"),
        refusal(429, X_Should_Retry="false"),
        refusal(500, "invalid_request"),
        refusal(500),
        refusal(500, "500"),
        refusal(500, "bad_response_body"),
        refusal(500, "read_response_body_failed"),
        answer(b"<html>", status=500, content_type="text/html"),
        refusal(501, "api_not_implemented"),
        refusal(502),
        refusal(503, "model_not_found"),
        refusal(504),
        refusal(524),
        answer(b"<html>", status=524, content_type="text/html"),
        answer(error_of(code="do_request_failed")),
        answer(json_of()),
        stream(PARTIAL),
    ],
    ids=[
        "400", "401", "403-quota", "404", "409", "413", "422", "429-quota", "429-told",
        "500-request", "500", "500-unknown", "500-body", "500-read", "500-html", "501", "502", "503-model", "504",
        "524", "524-html", "200-error", "200-empty", "200-incomplete",
    ],
)  # fmt: skip
async def test_not_retried(
    guest: AsyncImages, canned: Canned, reply: Reply, streaming: bool
) -> None:
    """What will fail again, or may have been made, is not."""
    canned.reply_with(reply)
    error = await failure_of_any_kind(guest, streaming)
    assert error.attempts == len(canned.requests) == 1


@in_both_modes
@pytest.mark.parametrize(
    ("fault", "made"), [("rate-limit*2", 1), ("error=500/do_request_failed*2", 1)]
)
async def test_retried_at_the_local_server(
    client: AsyncImages, server: LocalServer, fault: str, made: int, streaming: bool
) -> None:
    """Two refusals and then an image: three requests, and one of them is paid for."""
    server.inject(fault)
    _, result = await ask(client, streaming)
    assert len(result) == 1
    assert (len(server.requests), server.generations) == (3, made)
    assert result.meta.attempts == 3


@in_both_modes
@pytest.mark.parametrize("retries", [0, 1, 4])
async def test_retries_are_counted(canned: Canned, retries: int, streaming: bool) -> None:
    """So many retries beside the first try, for the client as for a call, and then the last error."""
    canned.reply_with(BUSY)
    policy = RetryPolicy(retries, initial_backoff=0)
    async with AsyncImages(KEY, base_url=canned.base_url, retry=policy) as client:
        error = await failure(RateLimitError, client, streaming)
        assert error.attempts == len(canned.requests) == retries + 1
        await failure(RateLimitError, client, streaming, retry=0)
    assert len(canned.requests) == retries + 2


@in_both_modes
@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({"Retry_After_Ms": "15"}, 0.015),
        ({"Retry_After": "0.01"}, 0.01),
        ({"Retry_After": "0"}, 0.0),
        ({"Retry_After_Ms": "10", "Retry_After": "60"}, 0.01),
        ({"Retry_After": "Mon, 01 Jan 2024 00:00:00 GMT"}, 0.0),
    ],
    ids=["ms", "seconds", "zero", "ms-first", "past-date"],
)
async def test_retry_after(
    canned: Canned, headers: dict[str, str], delay: float, streaming: bool
) -> None:
    """The server's wish is followed to the letter, without jitter."""
    seen = Delays()
    canned.reply_with(refusal(429, **headers), GOOD)
    retry = RetryPolicy(initial_backoff=100, max_backoff=100)
    async with AsyncImages(KEY, base_url=canned.base_url, hooks=[seen], retry=retry) as client:
        _, result = await ask(client, streaming)
    assert seen.delays == [delay]
    assert result.meta.elapsed >= delay


@in_both_modes
async def test_retry_after_that_is_too_long(canned: Canned, streaming: bool) -> None:
    """A wish beyond the policy, or beyond the deadline, is not waited for; the error tells it."""
    canned.reply_with(refusal(429, Retry_After="121"))
    async with AsyncImages(KEY, base_url=canned.base_url) as client:
        error = await failure(RateLimitError, client, streaming)
        assert error.retry_after == 121.0
        canned.reply_with(refusal(429, Retry_After="30"))
        error = await failure(RateLimitError, client, streaming, timeout=10)
        assert error.retry_after == 30.0
    assert len(canned.requests) == 2


async def test_backoff_grows(canned: Canned) -> None:
    """Without a wish the delays are random, and bounded by a growing limit with a cap."""
    seen = Delays()
    canned.reply_with(BUSY)
    policy = RetryPolicy(6, initial_backoff=0.001, max_backoff=0.004)
    async with AsyncImages(KEY, base_url=canned.base_url, hooks=[seen], retry=policy) as client:
        await failure(RateLimitError, client)
    assert len(seen.delays) == 6
    for delay, most in zip(seen.delays, (0.001, 0.002, 0.004, 0.004, 0.004, 0.004), strict=True):
        assert 0 <= delay <= most
    assert len(set(seen.delays)) > 1


async def test_retry_budget(canned: Canned) -> None:
    """All calls of a client, its views included, share a number of retries; a success gives one back."""
    canned.reply_with(BUSY)
    policy = RetryPolicy(2, initial_backoff=0, budget=3)
    async with AsyncImages(KEY, base_url=canned.base_url, retry=policy) as client:
        view = client.with_options(headers={"X-A": "b"})
        tries = [(await failure(RateLimitError, each)).attempts for each in (client, view, client)]
        assert tries == [3, 2, 1]
        canned.reply_with(GOOD)
        await client.generate("a boat")
        canned.reply_with(BUSY)
        assert (await failure(RateLimitError, client)).attempts == 2


@in_both_modes
async def test_unreachable_server_is_retried(canned: Canned, streaming: bool) -> None:
    """Where nobody listens nothing can have been made: it is tried again, then told."""
    seen = Delays()
    async with Canned() as gone:
        base_url = gone.base_url
    async with AsyncImages(KEY, base_url=base_url, hooks=[seen], retry=QUICK) as client:
        error = await failure(ConnectError, client, streaming)
    assert error.attempts == seen.attempts == 3
    assert (error.phase, error.billing) == ("connect", "not_sent")
    assert f"127.0.0.1:{gone.port} cannot be reached" in str(error)


async def test_host_that_does_not_exist() -> None:
    """A name that nobody has is a ConnectError that says so."""
    async with AsyncImages(KEY, base_url="http://nobody.invalid/v1", retry=0) as client:
        error = await failure(ConnectError, client)
    assert "nobody.invalid" in str(error)
    assert error.billing == "not_sent"


async def test_server_without_tls(canned: Canned) -> None:
    """TLS that fails is a ConnectError."""
    canned.reply_with([b"HTTP/1.1 400 no TLS\r\n\r\n", End.CLOSE])
    base_url = canned.base_url.replace("http:", "https:")
    async with AsyncImages(KEY, base_url=base_url, retry=0) as client:
        server_ends = asyncio.ensure_future(_close_connections(canned))
        error = await failure(ConnectError, client)
        await server_ends
    assert error.billing == "not_sent"


async def _close_connections(canned: Canned) -> None:
    await canned.wait_until(lambda: canned.connections > 0)
    for connection in list(canned._open):
        connection.transport.abort()


async def test_pooled_connection_that_was_closed(client: AsyncImages, server: LocalServer) -> None:
    """A connection that the server closes after an answer does no harm to the next call."""
    for _ in range(3):
        server.inject("keep-alive-close")
        await client.generate("a boat")
        await server.wait_until(lambda: server.connections == 0)
    assert server.generations == 3


@pytest.mark.parametrize("read", [1, 2])
async def test_no_retry_once_an_event_was_given(canned: Canned, read: int) -> None:
    """A stream that breaks after an event is not begun anew, not even where replays are known."""
    canned.reply_with([*open_stream(PARTIAL, PARTIAL), End.RESET])
    async with AsyncImages(
        KEY, base_url=canned.base_url, idempotency="replay", retry=QUICK
    ) as client:
        async with client.generate("a boat", stream=True) as stream:
            for _ in range(read):
                assert isinstance(await anext(stream), PartialImage)
            with pytest.raises(DisconnectedError) as caught:
                await stream.result()
        check_clean(caught.value)
    assert caught.value.attempts == len(canned.requests) == 1


# --- limits of time ---------------------------------------------------------

NOTHING: Reply = [End.HOLD]
HEAD_ONLY: Reply = [head(200, Content_Length="1000"), End.HOLD]
HALF: Reply = [head(200, Content_Length=str(len(SPLIT))), SPLIT[:200], End.HOLD]
ONE_EVENT: Reply = [*open_stream(PARTIAL), End.HOLD]
PINGS: Reply = [*open_stream(b": PING\n\n"), End.HOLD]


@in_both_modes
@pytest.mark.parametrize(
    ("reply", "timeout", "limit", "phase"),
    [
        (NOTHING, 0.5, "total", "first_byte"),
        (HEAD_ONLY, 0.5, "total", "body"),
        (ONE_EVENT, 0.5, "total", "body"),
        (NOTHING, Timeout(first_byte=0.4), "first_byte", "first_byte"),
        (HEAD_ONLY, Timeout(idle=0.4), "idle", "body"),
        (HALF, Timeout(idle=0.4), "idle", "body"),
        (ONE_EVENT, Timeout(idle=0.4), "idle", "body"),
        (PINGS, Timeout(idle=0.4, first_byte=math.inf), "idle", "body"),
        (NOTHING, Timeout(total=0.4, first_byte=5, idle=5), "total", "first_byte"),
        (ONE_EVENT, Timeout(total=0.4, first_byte=5, idle=5), "total", "body"),
    ],
    ids=[
        "total-nothing", "total-head", "total-event", "first-byte", "idle-head", "idle-half",
        "idle-event", "idle-ping", "total-before-first-byte", "total-before-idle",
    ],
)  # fmt: skip
async def test_time_limit(
    guest: AsyncImages,
    canned: Canned,
    reply: Reply,
    timeout: Any,
    limit: str,
    phase: str,
    streaming: bool,
) -> None:
    """A limit that has passed is named, with where the call stood; the connection is closed."""
    canned.reply_with(reply)
    error = await failure(RequestTimeoutError, guest, streaming, timeout=timeout)
    assert (error.limit, error.phase, error.billing) == (limit, phase, "unknown")
    assert error.request_id == (REQUEST_ID if phase == "body" else None)
    assert f"Timeout({limit}=" in str(error)
    assert isinstance(error, TimeoutError)
    assert error.attempts == len(canned.requests) == 1
    await canned.wait_disconnected()


@in_both_modes
async def test_time_limit_of_the_client(canned: Canned, streaming: bool) -> None:
    """The client's limits hold for each call, and a call's own replaces them."""
    canned.reply_with(NOTHING)
    async with AsyncImages(KEY, base_url=canned.base_url, timeout=0.1) as client:
        assert (await failure(RequestTimeoutError, client, streaming)).limit == "total"
        options = {"timeout": Timeout(first_byte=0.1)}
        assert (
            await failure(RequestTimeoutError, client, streaming, **options)
        ).limit == "first_byte"


@in_both_modes
async def test_total_covers_all_attempts(canned: Canned, streaming: bool) -> None:
    """The total bounds the attempts and waits together: it ends with the last refusal, or as time-out."""
    canned.reply_with(refusal(429, Retry_After_Ms="50"))
    async with AsyncImages(KEY, base_url=canned.base_url, retry=90, timeout=0.5) as client:
        with pytest.raises((RateLimitError, RequestTimeoutError)) as caught:
            await ask(client, streaming)
    check_clean(caught.value)
    assert 1 < len(canned.requests) <= 10
    assert caught.value.attempts == len(canned.requests)


@in_both_modes
async def test_total_counts_on_in_the_second_attempt(canned: Canned, streaming: bool) -> None:
    """An attempt after a refusal has only what is left of the total."""
    canned.reply_with(refusal(429, Retry_After_Ms="1"), NOTHING)
    async with AsyncImages(KEY, base_url=canned.base_url, timeout=0.2) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.attempts, error.billing) == ("total", 2, "unknown")


@in_both_modes
async def test_time_limit_of_an_upload(streaming: bool) -> None:
    """A server that does not read the request cannot hold the call."""
    async with (
        Canned(GOOD, reading=False) as deaf,
        AsyncImages(KEY, base_url=deaf.base_url, timeout=0.3) as client,
    ):
        extra = {"padding": "x" * 30_000_000}
        error = await failure(RequestTimeoutError, client, streaming, extra_body=extra)
        assert (error.limit, error.phase, error.billing) == ("total", "upload", "unknown")
        deaf.read_on()
        await deaf.wait_disconnected()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's queue of connections")
async def test_time_limit_of_connecting() -> None:
    """A host that does not answer at all is limited by `connect`; nothing was sent."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # room for one; the kernel leaves those after it unanswered
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        timeout = Timeout(connect=0.1)
        async with AsyncImages(KEY, base_url=base_url, timeout=timeout, retry=1) as client:
            error = await failure(RequestTimeoutError, client)
    assert (error.limit, error.phase, error.billing) == ("connect", "connect", "not_sent")
    assert error.attempts == 2


@in_both_modes
@pytest.mark.parametrize("count", [False, True])
async def test_pings_alone(server: LocalServer, count: bool, streaming: bool) -> None:
    """A stream of nothing but pings is idle, unless the caller says that pings count."""
    server.inject("endless-pings")
    timeout = Timeout(total=0.6, idle=0.3, pings_count=count)
    async with AsyncImages(server.api_key, base_url=server.base_url, timeout=timeout) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert error.limit == ("total" if count else "idle")


async def test_callers_time_does_not_count_as_idle(guest: AsyncImages, canned: Canned) -> None:
    """The idle limit is for waits on the server, not for what the caller does between events."""
    gate = asyncio.Event()
    canned.reply_with([*open_stream(PARTIAL), gate, *stream(COMPLETED)[1:]])
    async with guest.generate("a boat", stream=True, timeout=Timeout(idle=0.05)) as opened:
        await anext(opened)
        gate.set()
        with anyio.move_on_after(0.15):  # the caller's work
            await anyio.sleep_forever()
        assert isinstance(await anext(opened), CompletedImage)


@in_both_modes
async def test_callers_own_timeout(guest: AsyncImages, canned: Canned, streaming: bool) -> None:
    """The caller's own time-out is the caller's exception, and closes the connection."""
    canned.reply_with(NOTHING)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await ask(guest, streaming)
    assert not isinstance(caught.value, ElkImagesError)
    await canned.wait_disconnected()
    with anyio.move_on_after(0.1) as scope:
        await ask(guest, streaming)
    assert scope.cancelled_caught
    await canned.wait_disconnected()


# --- clients, sessions, loops -----------------------------------------------


def test_generate_returns_what_it_says() -> None:
    """A batch call is a coroutine, which task groups take; a stream is an ImageStream."""
    client = AsyncImages(KEY)
    batch = client.generate("a boat")
    assert inspect.iscoroutine(batch)
    batch.close()
    with pytest.warns(ResourceWarning, match="never read"):
        assert isinstance(client.generate("a boat", stream=True), ImageStream)


async def test_tasks(client: AsyncImages) -> None:
    """Tasks, task groups, gather and anyio take the call as it is."""
    task = asyncio.create_task(client.generate("a boat"))
    async with asyncio.TaskGroup() as group:
        other = group.create_task(client.generate("a boat"))
    (third,) = await asyncio.gather(client.generate("a boat"))
    async with anyio.create_task_group() as anyio_group:
        anyio_group.start_soon(client.generate, "a boat")
    assert (await task).data == other.result().data == third.data


async def test_errors_in_a_task_group(guest: AsyncImages, canned: Canned) -> None:
    """One call that fails in a task group cancels the others, whose connections are closed."""
    canned.reply_with(NOTHING, refusal(401))

    async def ask_twice() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(guest.generate("a boat"))
            await canned.wait_until(lambda: len(canned.requests) == 1)
            group.create_task(guest.generate("a boat"))

    with pytest.raises(ExceptionGroup) as caught:
        await ask_twice()
    (error,) = caught.value.exceptions
    assert isinstance(error, AuthenticationError)
    await canned.wait_until(lambda: canned.connections == 1)  # that of the refusal is kept


async def test_nothing_is_opened_before_the_first_call(server: LocalServer) -> None:
    """A client that is made, entered and left opens nothing."""
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        assert repr(client)
    assert server.connections == 0


async def test_connections_are_reused(client: AsyncImages, server: LocalServer) -> None:
    """Calls in turn share one connection, those after a refusal too."""
    for model in ("gpt-image-1", "nobody", "gpt-image-1"):
        with pytest.raises(NotFoundError) if model == "nobody" else anyio.CancelScope():
            await client.generate("a boat", model=model)
        assert server.connections == 1


async def test_closing_closes_the_connections(server: LocalServer) -> None:
    """After the block the server sees no connection any more."""
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        await client.generate("a boat")
        assert server.connections == 1
    await server.wait_until(lambda: server.connections == 0)


@in_both_modes
async def test_closing_while_a_call_runs(canned: Canned, streaming: bool) -> None:
    """A call that runs when its client is closed ends with an error of ours, and is not tried again."""
    canned.reply_with(NOTHING)
    client = AsyncImages(KEY, base_url=canned.base_url, retry=QUICK)
    task = asyncio.create_task(failure_of_any_kind(client, streaming))
    await canned.wait_until(lambda: len(canned.requests) == 1)
    await client.aclose()
    error = await task
    assert isinstance(error, ConfigurationError)
    assert "closed" in str(error)
    assert error.billing == "unknown"
    assert canned.accepted == 1


@in_both_modes
async def test_closing_while_a_call_waits_for_its_retry(canned: Canned, streaming: bool) -> None:
    """A call that is between two attempts does not open a connection for a closed client."""
    scheduled = asyncio.Event()

    def hook(record: Record) -> None:
        if isinstance(record, RetryScheduled):
            scheduled.set()

    canned.reply_with(refusal(429, Retry_After_Ms="50"), GOOD)
    client = AsyncImages(KEY, base_url=canned.base_url, hooks=[hook])
    task = asyncio.create_task(failure_of_any_kind(client, streaming))
    try:
        await scheduled.wait()
        await client.aclose()
        assert isinstance(await task, ConfigurationError)
    finally:
        await client.aclose()
    assert len(canned.requests) == 1


async def test_forgotten_client(server: LocalServer) -> None:
    """A client that nobody closes is a ResourceWarning, not a crash."""
    client = AsyncImages(server.api_key, base_url=server.base_url)
    await client.generate("a boat")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
        await server.wait_until(lambda: server.connections == 0)
        gc.collect()
    assert ResourceWarning in {warning.category for warning in caught}


async def test_with_options(canned: Canned) -> None:
    """A view has other options on the same connections, and leaves the client as it is."""
    canned.reply_with(BUSY)
    async with AsyncImages(KEY, base_url=canned.base_url, retry=0) as client:
        view = client.with_options(retry=QUICK, headers={"X-View": "yes"})
        assert (await failure(RateLimitError, view)).attempts == 3
        assert (await failure(RateLimitError, client)).attempts == 1
        canned.reply_with(NOTHING)
        # Not shorter: after four refusals the client has slowed down.
        error = await failure(RequestTimeoutError, client.with_options(timeout=3))
        assert (error.limit, error.phase) == ("total", "first_byte")
        assert canned.accepted == 1
    sent = [request.headers.get("x-view") for request in canned.requests]
    assert sent == ["yes", "yes", "yes", None, None]


async def test_with_options_of_a_view(canned: Canned) -> None:
    """Views of views keep what they do not change; closing one closes all."""
    async with AsyncImages(KEY, base_url=canned.base_url, headers={"X-A": "1"}) as client:
        view = client.with_options(headers={"X-B": "2"}).with_options(retry=0)
        await view.generate("a boat")
        sent = canned.requests[-1].headers
        assert (sent["x-a"], sent["x-b"]) == ("1", "2")
        await view.aclose()
        await failure(ConfigurationError, client)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"retry": -1}, {"headers": {"authorization": "x"}}], ids=str
)
def test_with_options_wrong(options: dict[str, Any]) -> None:
    """A view is checked as a client is."""
    with pytest.raises(ConfigurationError):
        AsyncImages(KEY).with_options(**options)


async def test_borrowed_session(server: LocalServer) -> None:
    """A session of the caller's is used and not closed."""
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as session:
        async with AsyncImages(server.api_key, base_url=server.base_url, session=session) as client:
            _, result = await ask(client, streaming=True)
            assert len(result) == 1
        assert not session.closed
        assert server.requests[-1].headers["x-mine"] == "yes"
        assert server.connections == 1
        async with session.get(f"{server.base_url}/models") as response:
            assert response.status == 401


async def test_borrowed_session_that_is_closed(server: LocalServer) -> None:
    """A closed session is told in words, before anything is sent."""
    session = aiohttp.ClientSession()
    await session.close()
    async with AsyncImages(server.api_key, base_url=server.base_url, session=session) as client:
        error = await failure(ConfigurationError, client)
    assert "session is closed" in str(error)
    assert error.billing == "not_sent"


@in_both_modes
async def test_borrowed_session_that_raises_for_status(canned: Canned, streaming: bool) -> None:
    """A session that is set to raise for a status does not take the refusal away."""
    canned.reply_with(refusal(401))
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        AsyncImages(KEY, base_url=canned.base_url, session=session) as client,
    ):
        error = await failure(AuthenticationError, client, streaming)
    assert error.status == 401


async def test_borrowed_session_with_short_time_outs(canned: Canned) -> None:
    """The session's own time-outs do not cut a call short: images take minutes."""
    gate = asyncio.Event()
    canned.reply_with([gate, *GOOD])
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05, sock_read=0.05))
    async with session, AsyncImages(KEY, base_url=canned.base_url, session=session) as client:
        task = asyncio.create_task(client.generate("a boat"))
        await asyncio.wait([task], timeout=0.15)
        gate.set()
        assert len(await task) == 1


@pytest.fixture
def elsewhere() -> Iterator[LocalServer]:
    """A local server in a thread with a loop of its own."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(LocalServer(light=True, delay=0)) as server,
    ):
        yield server


def test_two_loops_in_turn(elsewhere: LocalServer) -> None:
    """One client serves one `asyncio.run` after the other, without a warning."""
    client = AsyncImages(elsewhere.api_key, base_url=elsewhere.base_url)

    async def ask_twice() -> list[Image]:
        await client.generate("a boat")
        async with client.generate("a boat", stream=True) as stream:
            return (await stream.result()).data

    async def ask_and_close() -> list[Image]:
        async with client:
            return await ask_twice()

    first = asyncio.run(ask_twice())
    assert asyncio.run(ask_and_close()) == first
    gc.collect()
    assert len(elsewhere.requests) == 4


def test_many_loops_in_turn(elsewhere: LocalServer) -> None:
    """The pools of loops that are gone do not pile up in a client that lives long."""
    client = AsyncImages(elsewhere.api_key, base_url=elsewhere.base_url)

    async def ask_once() -> None:
        await client.generate("a boat")

    for _ in range(5):
        asyncio.run(ask_once())
    pools = len(client._transport._pools)
    asyncio.run(client.aclose())
    gc.collect()
    assert pools <= 1


def test_two_loops_at_once(elsewhere: LocalServer) -> None:
    """One client serves two threads with a loop each, and closing it in one closes both pools."""
    client = AsyncImages(elsewhere.api_key, base_url=elsewhere.base_url)

    async def ask_once() -> list[Image]:
        return (await client.generate("a boat")).data

    with (
        anyio.from_thread.start_blocking_portal() as one,
        anyio.from_thread.start_blocking_portal() as two,
    ):
        assert one.call(ask_once) == two.call(ask_once)
        one.call(client.aclose)
        with pytest.raises(ConfigurationError, match="closed"):
            two.call(ask_once)
    gc.collect()


# --- the faults of the local server -----------------------------------------

INCOMPLETE = StreamIncompleteError
ENDINGS: dict[str, tuple[type[ElkImagesError] | None, type[ElkImagesError] | None]] = {
    "rate-limit": (RateLimitError, RateLimitError),
    "error": (ServerError, ServerError),
    "redirect": (ResponseError, ResponseError),
    "none": (None, None),
    "reset-before-headers": (DisconnectedError, DisconnectedError),
    "reset-in-headers": (DisconnectedError, DisconnectedError),
    "reset-in-body": (DisconnectedError, DisconnectedError),
    "close-before-headers": (DisconnectedError, DisconnectedError),
    "truncate-length": (DisconnectedError, DisconnectedError),
    "truncate-chunked": (DisconnectedError, DisconnectedError),
    "truncate-close": (ResponseError, INCOMPLETE),
    "stall-headers": (RequestTimeoutError, RequestTimeoutError),
    "stall-body": (RequestTimeoutError, RequestTimeoutError),
    "stall-stream": (RequestTimeoutError, RequestTimeoutError),
    "keep-alive-close": (None, None),
    "trickle=997": (None, None),
    "split=1,2,100,300": (None, None),
    "drip=0": (None, None),
    "endless-pings": (RequestTimeoutError, RequestTimeoutError),
    "endless-headers": (ResponseError, ResponseError),
    "endless-interim": (RequestTimeoutError, RequestTimeoutError),
    "corrupt-partial": (None, None),
    "corrupt-final": (ResponseError, ResponseError),
    "wrong-type": (None, None),
    "html": (ResponseError, ResponseError),
    "empty": (EmptyResultError, INCOMPLETE),
    "body={}": (EmptyResultError, EmptyResultError),
    "stream-for-json": (None, None),
    "json-for-stream": (None, None),
    "error-in-200": (ServerError, ServerError),
    "bare-error": (None, ServerError),
    "error-event": (None, ServerError),
    "no-completed": (EmptyResultError, INCOMPLETE),
    "twice-completed": (None, None),
    "after-done": (None, None),
    "gzip": (None, None),
    "gzip-bomb=1": (ResponseError, ResponseError),
    "truncated-gzip": (ResponseError, StreamIncompleteError),
    "refuse": (ConnectError, ConnectError),
}


def test_every_fault_has_an_ending() -> None:
    """The table above is complete."""
    assert {name.partition("=")[0] for name in ENDINGS} == FAULTS.keys()


@in_both_modes
@pytest.mark.parametrize("fault", ENDINGS)
async def test_fault(server: LocalServer, fault: str, streaming: bool) -> None:
    """Each fault ends as images or as the error that it means, and the next call works."""
    kind = ENDINGS[fault][streaming]
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        reference = await client.generate("a boat")
    await server.wait_until(lambda: server.connections == 0)
    server.inject(fault)
    timeout = Timeout(total=0.3 if kind is RequestTimeoutError else 30)
    limits = Limits(max_response_bytes=1024 * 1024)
    async with AsyncImages(
        server.api_key, base_url=server.base_url, timeout=timeout, retry=0, limits=limits
    ) as client:
        if kind is None:
            _, result = await ask(client, streaming)
            assert result[0] == reference[0]
        else:
            error = await failure(kind, client, streaming)
            seen = [request.request_id for request in server.requests]
            assert error.request_id in (None, seen[-1])
        if fault != "refuse":
            again = await client.generate("a boat", timeout=30, retry=QUICK)
            assert again.data == reference.data


@in_both_modes
async def test_call_leaves_nothing_to_the_garbage_collector(
    canned: Canned, guest: AsyncImages, streaming: bool
) -> None:
    """What a call held, images of megabytes among it, is free with the last reference to it."""

    def held() -> Counter[str]:
        names = (type(thing).__name__ for thing in gc.get_objects())
        return Counter(name for name in names if name in ("Call", "Exchange", "Deadline", "Image"))

    await ask(guest, streaming)
    gc.collect()
    gc.disable()
    try:
        before = held()
        await ask(guest, streaming)
        assert held() == before
    finally:
        gc.enable()
