"""Effects on the body: invalid content, unexpected form, compression."""

import zlib
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import msgspec

from elkimg_async.local.contract import GatewayError
from elkimg_async.local.effects import (
    EffectTable,
    change_json,
    count,
    is_event,
    positive,
    status,
    streams,
    with_frames,
    with_headers,
)
from elkimg_async.local.responses import error_value, page_response
from elkimg_async.local.script import ScriptedResponse, Step, chunk, head

EFFECTS = EffectTable()
effect = EFFECTS.add


@effect("corrupt-partial", "corrupt the base64 of each partial image", only_streams=True)
def _corrupt_partial(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames = (
        _corrupted(frame) if is_event(frame, b".partial_image") else frame
        for frame in response.frames
    )
    return with_frames(response, *frames)


@effect("corrupt-final", "corrupt the base64 of the last image")
def _corrupt_final(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames = list(response.frames)
    last = max((at for at, frame in enumerate(frames) if b'"b64_json"' in frame), default=None)
    if last is not None:
        frames[last] = _corrupted(frames[last])
    return with_frames(response, *frames)


@effect("wrong-type", "label the body as text/plain, or as =TYPE", str, "text/plain")
def _wrong_type(response: ScriptedResponse, content_type: str) -> ScriptedResponse:
    return with_headers(response, Content_Type=content_type)


@effect("html", "a web page with status 200 or =STATUS", status, 200)
def _html(response: ScriptedResponse, code: int) -> ScriptedResponse:
    page = page_response(response.headers)
    return msgspec.structs.replace(page, status=code)


@effect("empty", "an empty body with status 200 or =STATUS", status, 200)
def _empty(response: ScriptedResponse, code: int) -> ScriptedResponse:
    return ScriptedResponse(status=code, headers=response.headers)


@effect("body", "the body =TEXT with status 200", str, "")
def _body(response: ScriptedResponse, text: str) -> ScriptedResponse:
    return ScriptedResponse(headers=response.headers, frames=(text.encode(),))


@effect("json-for-stream", "JSON, even if a stream was requested", stream=False)
@effect("stream-for-json", "a stream, even if JSON was requested", stream=True)
def _other_form(response: ScriptedResponse, _: None) -> ScriptedResponse:
    return response


@effect("error-in-200", "an error as JSON with status 200")
def _error_in_200(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames = (_upstream_error(response),)
    return ScriptedResponse(headers=response.headers, frames=frames)


@effect(
    "bare-error",
    "a ping, then an error as a bare line of JSON, without `data:`",
    only_streams=True,
)
def _bare_error(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames = (b": PING\n\n", _upstream_error(response) + b"\n")
    return with_frames(response, *frames)


@effect("error-event", "an error event instead of the completed image", only_streams=True)
def _error_event(response: ScriptedResponse, _: None) -> ScriptedResponse:
    kept = (frame for frame in response.frames[:-1] if not is_event(frame, b".completed"))
    failed = b"event: error\ndata: " + _upstream_error(response) + b"\n\n"
    return with_frames(response, *kept, failed)


@effect("no-completed", "end the stream cleanly before the completed image; JSON has no images")
def _no_completed(response: ScriptedResponse, _: None) -> ScriptedResponse:
    if not streams(response):
        return change_json(response, lambda value: {**value, "data": []})
    kept = (frame for frame in response.frames[:-1] if not is_event(frame, b".completed"))
    return with_frames(response, *kept)


@effect("twice-completed", "send each completed image twice")
def _twice_completed(response: ScriptedResponse, _: None) -> ScriptedResponse:
    if not streams(response):
        return change_json(response, _with_images_twice)
    frames: list[bytes] = []
    for frame in response.frames:
        frames += [frame] * (2 if is_event(frame, b".completed") else 1)
    return with_frames(response, *frames)


def _with_images_twice(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "data": [item for item in value["data"] for _ in range(2)]}


@effect("after-done", "send one more event after [DONE]", only_streams=True)
def _after_done(response: ScriptedResponse, _: None) -> ScriptedResponse:
    late = [frame for frame in response.frames if is_event(frame, b".completed")]
    return with_frames(response, *response.frames, *late[-1:])


def _corrupted(frame: bytes) -> bytes:
    """Put characters that are not base64 into the middle of the last base64 string of a frame."""
    start = frame.rfind(b'"b64_json":"')
    if start < 0:
        return frame
    middle = (start + 12 + frame.index(b'"', start + 12)) // 2
    return frame[:middle] + b"!!!!" + frame[middle + 4 :]


def _upstream_error(response: ScriptedResponse) -> bytes:
    error = GatewayError(
        500, "The upstream model failed", code="server_error", kind="upstream_error"
    )
    return msgspec.json.encode(error_value(error, response.headers))


# --- compression ------------------------------------------------------------


@effect("gzip", "compress the body")
def _gzip(response: ScriptedResponse, _: None) -> ScriptedResponse:
    return _marked_gzip(with_frames(response, *_compressed(response)))


@effect(
    "truncated-gzip",
    "half of the compressed body, or =BYTES of it, in an otherwise complete response",
    count,
)
def _truncated_gzip(response: ScriptedResponse, size: int | None) -> ScriptedResponse:
    coded = b"".join(_compressed(response))
    end = len(coded) // 2 if size is None else size
    return _marked_gzip(with_frames(response, coded[:end]))


@effect("gzip-bomb", "compress the body after 512 MiB, or =MIB, of white space", positive, 512)
def _gzip_bomb(response: ScriptedResponse, size: int) -> Iterator[Step]:
    compressor = zlib.compressobj(wbits=31)
    blank = b" " * 1024 * 1024
    yield head(_marked_gzip(msgspec.structs.replace(response, framing="chunked")))
    for part in (*repeat(blank, size), b"\n", *response.frames):
        if coded := compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH):
            yield chunk(coded)
    yield chunk(compressor.flush())
    yield chunk(b"")


def _compressed(response: ScriptedResponse) -> Iterator[bytes]:
    compressor = zlib.compressobj(wbits=31)
    for frame in response.frames:
        yield compressor.compress(frame) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()


def _marked_gzip(response: ScriptedResponse) -> ScriptedResponse:
    return with_headers(response, Content_Encoding="gzip")
