"""Responses of every shape, in both modes."""

import base64
import json
from typing import Any

import pytest

from elkimg_async import (
    APIError,
    AsyncImages,
    BadRequestError,
    CompletedImage,
    DisconnectedError,
    ElkImagesError,
    EmptyResultError,
    ImagesResponse,
    Limits,
    ModerationError,
    QuotaExceededError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
    ServerError,
    StreamIncompleteError,
    Timeout,
    TokenDetails,
    Usage,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    B64,
    BODY,
    COMPLETED,
    COMPLETED_TYPE,
    GOOD,
    PARTIAL,
    PARTIAL_TYPE,
    check_clean,
    error_body,
    failure,
    failure_of_any_kind,
    images_json,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    JPEG,
    PNG,
    REQUEST_ID,
    End,
    RawServer,
    Reply,
    event,
    head,
    open_stream,
    response,
    stream,
)

ITEM = {"b64_json": B64}
USAGE: dict[str, Any] = {"total_tokens": 3, "input_tokens": 1, "output_tokens": 2}
EVENT_WITHOUT_TYPE = event({"b64_json": B64}, COMPLETED_TYPE)

RESPONSES_WITH_AN_IMAGE: dict[str, Reply] = {
    "json": response(BODY),
    "json in two": [head(200, Content_Length=str(len(BODY))), BODY[:50], BODY[50:]],
    "json in chunks": stream(BODY[:20], BODY[20:40], BODY[40:], content_type="application/json"),
    "json until the end": [head(200, Connection="close"), BODY, End.CLOSE],
    "json called a stream": response(BODY, content_type="text/event-stream"),
    "json called text": response(BODY, content_type="text/plain; charset=gbk"),
    "json after blanks": stream(b" \n", b"\r\n\t ", b" " + BODY, content_type="application/json"),
    "json after a bom": response(b"\xef\xbb\xbf" + BODY),
    "json with status 201": response(BODY, status=201),
    "a list": response([ITEM]),
    "data that is one object": response({"created": 1, **ITEM}),
    "null side data": response(
        images_json(ITEM, created=None, usage=None, size=None, quality=None, background=None)
    ),
    "only the image": response({"data": [ITEM]}),
    "null error": response(images_json({**ITEM, "url": None, "revised_prompt": None}, error=None)),
    "unknown fields": response(
        images_json({**ITEM, "seed": 7}, object="list", deep={"a": [1, {}]})
    ),
    "wrong side data": response(
        images_json(ITEM, created="soon", usage=[1], size=1024, quality={})
    ),
    "usage with fractions": response(
        images_json(ITEM, usage={"total_tokens": 1.5, "input_tokens": "2"})
    ),
    "not a number": response(BODY[:-1] + b', "cost": NaN}'),
    "lone surrogate": response(BODY[:-1] + b', "note": "\\ud800"}'),
    "data url": response(images_json({"b64_json": f"data:image/png;base64,{B64}"})),
    "data url as url": response(
        images_json({"url": f"data:image/png;base64,{B64}", "b64_json": ""})
    ),
    "escaped slashes": response(BODY.replace(b"/", b"\\/")),
    "escaped plus": response(BODY.replace(b"+", b"\\u002B")),
    "line breaks in base64": response(images_json({"b64_json": f"{B64[:76]}\r\n{B64[76:]}\n"})),
    "missing padding": response(images_json({"b64_json": B64.rstrip("=")})),
    "empty slots beside it": response(images_json({"url": "", "b64_json": ""}, ITEM, None, {})),
    "events": stream(b": PING\n\n", PARTIAL, COMPLETED, DONE),
    "events without done": stream(PARTIAL, COMPLETED),
    "events called json": stream(PARTIAL, COMPLETED, content_type="application/json"),
    "events of a known length": response(
        PARTIAL + COMPLETED + DONE, content_type="text/event-stream"
    ),
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
    "type in the event line": stream(EVENT_WITHOUT_TYPE),
    "type in both": stream(event({"type": COMPLETED_TYPE, **ITEM}, COMPLETED_TYPE)),
    "an edit's type": stream(event({"type": "image_edit.completed", **ITEM})),
    "unknown events": stream(event({"type": "image_generation.thought"}), COMPLETED, event([1])),
    "corrupt partial": stream(event({"type": PARTIAL_TYPE, "b64_json": "!!"}), COMPLETED),
    "usage-only frame": stream(COMPLETED, event({"usage": USAGE}), DONE),
    "more after done": stream(COMPLETED, DONE, COMPLETED),
    "json response in an event": stream(event(BODY), DONE),
    "data url in an event": stream(event({"type": COMPLETED_TYPE, "url": f"data:;base64,{B64}"})),
    "reset after the completed event": [*open_stream(COMPLETED), End.RESET],
    "no last chunk": [*open_stream(COMPLETED, DONE), End.CLOSE],
    "nothing after done": [*open_stream(COMPLETED, DONE), End.HOLD],
    "json without a last chunk": [*open_stream(BODY), End.CLOSE],
    "interim response": [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", *response(BODY)],
}  # fmt: skip


@in_both_modes
@pytest.mark.parametrize("kind", RESPONSES_WITH_AN_IMAGE)
async def test_response_with_an_image(
    raw_client: AsyncImages, raw_server: RawServer, kind: str, streaming: bool
) -> None:
    """Both modes return an image of any response shape, and its request id."""
    raw_server.reply_with(RESPONSES_WITH_AN_IMAGE[kind])
    events, result = await run_call(raw_client, streaming)
    assert [image.content for image in result] == [PNG]
    assert result.meta.request_id == REQUEST_ID
    assert len(raw_server.requests) == 1
    if streaming:
        completed = [each.image for each in events if isinstance(each, CompletedImage)]
        assert completed == result.data
        assert all(each.image.content == PNG for each in events)
    else:
        assert isinstance(result, ImagesResponse)


@in_both_modes
async def test_usage_in_chat_spelling(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """Usage in the spelling of chat responses is read too; missing values are None."""
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "prompt_tokens_details": {"text_tokens": 5},
    }
    raw_server.reply_with(response(images_json(ITEM, usage=usage)))
    _, result = await run_call(raw_client, streaming)
    assert result.usage == Usage(
        input_tokens=5, output_tokens=7, input_tokens_details=TokenDetails(text_tokens=5)
    )


@in_both_modes
async def test_usage_of_several_events(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """Each completed event repeats the usage of the call, which is not added up."""
    frame = event({"type": COMPLETED_TYPE, "b64_json": B64, "usage": USAGE, "created_at": 5})
    raw_server.reply_with(stream(frame, frame, frame, DONE))
    _, result = await run_call(raw_client, streaming)
    assert len(result) == 3
    assert result.usage == Usage(**USAGE)
    assert result.created == 5


@in_both_modes
async def test_usage_in_a_separate_event(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """An event with only the usage completes the result."""
    raw_server.reply_with(RESPONSES_WITH_AN_IMAGE["usage-only frame"])
    _, result = await run_call(raw_client, streaming)
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
    raw_client: AsyncImages, raw_server: RawServer, url: str, absolute: str, streaming: bool
) -> None:
    """An image may be a URL, absolute or relative; it is not fetched automatically."""
    item = {"url": url, "b64_json": "", "revised_prompt": "a boat, in oil"}
    for reply in (response(images_json(item)), stream(event({"type": COMPLETED_TYPE, **item}))):
        raw_server.reply_with(reply)
        _, (image,) = await run_call(raw_client, streaming)
        assert image.content is None
        assert image.url == absolute.format(origin=raw_server.origin)
        assert image.revised_prompt == "a boat, in oil"
    assert len(raw_server.requests) == 2


@in_both_modes
async def test_bytes_and_url(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """The service's own example has both in one item: the bytes are available at once."""
    raw_server.reply_with(response(images_json({"url": "https://host/a.png", "b64_json": B64})))
    _, (image,) = await run_call(raw_client, streaming)
    assert (image.content, image.url) == (PNG, "https://host/a.png")


CUT = [head(200, Content_Length=str(len(BODY))), BODY[:200]]
BARE = json.dumps(error_body(code="moderation_blocked")).encode()
PAGE = b"<!DOCTYPE html><html><title>Welcome</title></html>"
RESPONSES_WITHOUT_AN_IMAGE: dict[
    str, tuple[Reply, type[ElkImagesError], type[ElkImagesError], str]
] = {
    "empty": (response(b""), EmptyResultError, StreamIncompleteError, ""),
    "no content": (
        [head(204)], EmptyResultError, StreamIncompleteError, "",
    ),
    "blank": (response(b" \r\n\t"), EmptyResultError, StreamIncompleteError, ""),
    "no data": (response({"created": 1}), EmptyResultError, EmptyResultError, "no image"),
    "empty object": (response({}), EmptyResultError, EmptyResultError, "no image"),
    "empty list": (response([]), EmptyResultError, EmptyResultError, "no image"),
    "empty data": (response(images_json()), EmptyResultError, EmptyResultError, "no image"),
    "null data": (response({"data": None}), EmptyResultError, EmptyResultError, "no image"),
    "empty slot": (
        response(images_json({"url": "", "b64_json": ""})),
        EmptyResultError, EmptyResultError, "no image",
    ),
    "null slot": (
        response(images_json({"url": None, "b64_json": None})),
        EmptyResultError, EmptyResultError, "",
    ),
    "html": (response(PAGE, content_type="text/html"), ResponseError, ResponseError, "/v1"),
    "html called json": (response(b"\n " + PAGE), ResponseError, ResponseError, "/v1"),
    "html called a stream": (
        response(PAGE, content_type="text/event-stream"), ResponseError, ResponseError, "/v1",
    ),
    "plain text": (
        response(b"upstream request timed out", content_type="text/plain"),
        ResponseError, ResponseError, "",
    ),
    "a number": (response(b"42"), ResponseError, ResponseError, ""),
    "a string": (response(b'"no such luck"'), ResponseError, ResponseError, ""),
    "half of the json": (response(BODY[:200]), ResponseError, ResponseError, "JSON"),
    "broken json": (response(b'{"data": [}'), ResponseError, ResponseError, "JSON"),
    "not utf-8": (response(b'{"data": "\xff\xfe"'), ResponseError, ResponseError, "JSON"),
    "broken base64": (
        response(images_json({"b64_json": "!!!!"})),
        ResponseError, ResponseError, "image is broken",
    ),
    "a bit of base64": (
        response(images_json({"b64_json": "A"})),
        ResponseError, ResponseError, "broken",
    ),
    "error": (response(error_body()), APIError, APIError, "no such luck"),
    "error with a type": (
        response(error_body(type="invalid_request_error", param="size")),
        BadRequestError, BadRequestError, "no such luck",
    ),
    "error with a code": (
        response(error_body(code="insufficient_user_quota")),
        QuotaExceededError, QuotaExceededError, "insufficient_user_quota",
    ),
    "error with a number": (response(error_body(code=429)), RateLimitError, RateLimitError, "429"),
    "error as text": (response({"error": "no such luck"}), APIError, APIError, "no such luck"),
    "error called a stream": (
        response(error_body(), content_type="text/event-stream"),
        APIError, APIError, "no such luck",
    ),
    "error beside data": (
        response(images_json(ITEM, **error_body(code="content_filter"))),
        ModerationError, ModerationError, "no such luck",
    ),
    "error by type": (
        response({"type": "upstream_error", "message": "no such luck"}),
        ServerError, ServerError, "no such luck",
    ),
    "bare error line": (
        stream(b": PING\n\n", BARE + b"\n"), ModerationError, ModerationError, "no such luck",
    ),
    "bare error line without an end": (
        stream(b": PING\n\n", BARE), ModerationError, ModerationError, "no such luck",
    ),
    "error event": (
        stream(PARTIAL, event(error_body(type="server_error"), "error")),
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
    "cut": (
        [*CUT, End.CLOSE],
        DisconnectedError, DisconnectedError, "before the response was complete",
    ),
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
@pytest.mark.parametrize("kind", RESPONSES_WITHOUT_AN_IMAGE)
async def test_response_without_an_image(
    raw_client: AsyncImages, raw_server: RawServer, kind: str, streaming: bool
) -> None:
    """A response without a usable image is the right error, with request id, sent once."""
    reply, batch_error, stream_error, words = RESPONSES_WITHOUT_AN_IMAGE[kind]
    raw_server.reply_with(reply)
    error = await failure(stream_error if streaming else batch_error, raw_client, streaming)
    assert error.request_id == REQUEST_ID
    assert REQUEST_ID in str(error)
    assert words in str(error)
    assert error.attempts == 1
    is_known = isinstance(error, (BadRequestError, QuotaExceededError, RateLimitError))
    refused = is_known and not error.images and not error.partials
    assert error.billing == ("refused" if refused else "unknown")
    assert len(raw_server.requests) == 1


@in_both_modes
async def test_invalid_chunks(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """Invalid chunked coding hangs in the HTTP library; the idle limit ends the call."""
    raw_server.reply_with([head(200, Transfer_Encoding="chunked"), b"what?\r\n", End.CLOSE])
    options = {"timeout": Timeout(idle=0.2)}
    error = await failure_of_any_kind(raw_client, streaming, **options)
    assert isinstance(error, (RequestTimeoutError, ResponseError, DisconnectedError))
    assert error.request_id == REQUEST_ID
    assert error.billing == "unknown"


@in_both_modes
async def test_deeply_nested_response(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """A very deeply nested response ends as an image or an error of this package."""
    raw_server.reply_with(
        response(BODY[:-1] + b', "deep": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")
    )
    try:
        _, result = await run_call(raw_client, streaming)
    except ResponseError as error:
        check_clean(error)
    else:
        assert result[0].content == PNG


@in_both_modes
async def test_good_images_of_a_broken_response(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """When one of several images is broken, the error carries the good ones."""
    jpeg = base64.b64encode(JPEG).decode()
    raw_server.reply_with(response(images_json(ITEM, {"b64_json": "!!!!"}, {"b64_json": jpeg})))
    error = await failure(ResponseError, raw_client, streaming)
    assert "Image 2 of 3" in str(error)
    assert [image.content for image in error.images] == [PNG, JPEG]


@in_both_modes
async def test_completed_images_before_an_error(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """An error after some of the completed images carries those."""
    raw_server.reply_with(stream(COMPLETED, event(error_body(), "error")))
    error = await failure(APIError, raw_client, streaming)
    assert [image.content for image in error.images] == [PNG]


@in_both_modes
async def test_partials_of_an_incomplete_stream(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """The error of an incomplete stream carries the partial images received."""
    raw_server.reply_with(stream(PARTIAL, PARTIAL))
    error = await failure(StreamIncompleteError, raw_client, streaming)
    assert [partial.image.content for partial in error.partials] == [PNG, PNG]
    assert error.partials[0].partial_image_index == 0


@in_both_modes
async def test_web_page_is_truncated(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool
) -> None:
    """The error keeps the beginning of a web page, to find out where it came from."""
    raw_server.reply_with(response(PAGE + b"x" * 100_000))
    error = await failure(ResponseError, raw_client, streaming)
    assert error.body is not None
    assert error.body.startswith(PAGE.decode())
    assert len(error.body) <= 65_536


@in_both_modes
@pytest.mark.parametrize(
    "body",
    [BODY, PARTIAL + COMPLETED, PAGE * 9, b" " * 500],
    ids=["json", "events", "page", "blanks"],
)
async def test_response_over_the_limit(raw_server: RawServer, body: bytes, streaming: bool) -> None:
    """A response over the limit is not read further, and the error says how to raise it."""
    raw_server.reply_with([*open_stream(body), End.HOLD])
    limits = Limits(max_response_bytes=300)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, limits=limits) as client:
        error = await failure(ResponseError, client, streaming)
        assert "longer than 300 bytes" in str(error)
        assert "max_response_bytes" in str(error)
        assert error.request_id == REQUEST_ID
        await raw_server.wait_disconnected()


async def test_redirect_is_not_followed(raw_client: AsyncImages) -> None:
    """Neither the prompt nor the API key is sent to the target of a redirect."""
    async with RawServer(GOOD) as elsewhere, RawServer() as raw_server:
        raw_server.reply_with([head(307, Location=elsewhere.base_url, Content_Length="0")])
        async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
            error = await failure(ResponseError, client)
        assert elsewhere.origin in str(error)
        assert elsewhere.accepted == 0


@in_both_modes
async def test_base_url_without_v1(server: LocalServer, streaming: bool) -> None:
    """The error for a web page with status 200 says that /v1 is missing from the base URL."""
    base_url = server.base_url.removesuffix("/v1")
    async with AsyncImages(API_KEY, base_url=base_url) as client:
        error = await failure(ResponseError, client, streaming)
    assert "/v1" in str(error)
    assert error.status == 200
