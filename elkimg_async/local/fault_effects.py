"""What each fault does with a response: a table of names, and one function for each."""

import zlib
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from elkimg_async.local import contract
from elkimg_async.local.contract import GatewayError
from elkimg_async.local.script import (
    End,
    Framing,
    Pause,
    ScriptedResponse,
    Step,
    StopListening,
    body,
    chunk,
    head,
    steps,
    written,
)

Apply = Callable[[ScriptedResponse, Any], Iterator[Step]]


class Effect(NamedTuple):
    """What a name stands for: its argument, whether the picture is made, and in what form it is wanted."""

    description: str
    apply: Apply
    convert: Callable[[str], Any] | None
    default: Any
    generates: bool
    stream: bool | None


EFFECTS: dict[str, Effect] = {}


def _fault(
    name: str,
    description: str,
    convert: Callable[[str], Any] | None = None,
    default: Any = None,
    *,
    generates: bool = True,
    stream: bool | None = None,
) -> Callable[[Apply], Apply]:
    def register(apply: Apply) -> Apply:
        EFFECTS[name] = Effect(description, apply, convert, default, generates, stream)
        return apply

    return register


def _amount(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError(text)
    return value


def _size(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    if not 0 <= (value := float(text)) < float("inf"):
        raise ValueError(text)
    return value


def _offsets(text: str) -> tuple[int, ...]:
    return tuple(sorted({_size(part) for part in text.split(",")}))


def _status(text: str) -> int:
    if not 200 <= (value := int(text)) <= 599:
        raise ValueError(text)
    return value


# --- the picture is not made ------------------------------------------------


@_fault(
    "refuse",
    "no connection is taken, for =SECONDS or for good; nothing is made",
    _seconds,
    generates=False,
)
def _refuse(response: ScriptedResponse, seconds: float | None) -> Iterator[Step]:
    yield StopListening(seconds)


@_fault(
    "rate-limit",
    "429, with Retry-After if =SECONDS are given; nothing is made",
    _seconds,
    generates=False,
)
def _rate_limit(response: ScriptedResponse, seconds: float | None) -> Iterator[Step]:
    headers = dict(response.headers)
    if seconds is not None:
        headers["Retry-After"] = f"{seconds:g}"
    yield from steps(contract.error_response(GatewayError(429, "Too many requests"), headers))


def _status_and_code(text: str) -> tuple[int, str]:
    status, _, code = text.partition("/")
    return _status(status), code


@_fault(
    "error",
    "an error, =STATUS or =STATUS/CODE (500/do_request_failed unless told otherwise); nothing is made",
    _status_and_code,
    (500, "do_request_failed"),
    generates=False,
)
def _error(response: ScriptedResponse, what: tuple[int, str]) -> Iterator[Step]:
    error = GatewayError(what[0], "The local server fails because it was told to", code=what[1])
    yield from steps(contract.error_response(error, response.headers))


@_fault(
    "redirect",
    "307 to another host, or to =URL; nothing is made",
    str,
    "http://elsewhere.invalid/v1/images/generations",
    generates=False,
)
def _redirect(response: ScriptedResponse, url: str) -> Iterator[Step]:
    yield from steps(ScriptedResponse(status=307, headers={**response.headers, "Location": url}))


# --- the connection ---------------------------------------------------------


@_fault("none", "no fault: the response is as it should be")
def _none(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield from steps(response)


@_fault("reset-before-headers", "the connection is reset before a byte of the response")
def _reset_before_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield End.RESET


@_fault("reset-in-headers", "the connection is reset halfway through the headers")
def _reset_in_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    start = head(response)
    yield start[: len(start) // 2]
    yield End.RESET


@_fault(
    "reset-in-body",
    "the connection is reset halfway through the body, or after =BYTES of it",
    _amount,
)
def _reset_in_body(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
    yield from _cut(response, size, End.RESET)


@_fault("close-before-headers", "the connection is closed, cleanly, before a byte of the response")
def _close_before_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield End.CLOSE


@_fault(
    "truncate-length",
    "half the body, or =BYTES, of what Content-Length says, then a clean close",
    _amount,
)
def _truncate_length(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
    yield from _cut(_framed(response, "length"), size, End.CLOSE)


@_fault(
    "truncate-chunked", "half the body, or =BYTES, then a clean close within the chunks", _amount
)
def _truncate_chunked(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
    yield from _cut(_framed(response, "chunked"), size, End.CLOSE)


@_fault(
    "truncate-close",
    "half the body, or =BYTES, of a body without any length, then a clean close",
    _amount,
)
def _truncate_close(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
    yield from _cut(_framed(response, "close"), size, End.CLOSE)


@_fault("stall-headers", "no byte of the response ever comes")
def _stall_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield End.HOLD


@_fault("stall-body", "half the body, or =BYTES of it, then nothing more", _amount)
def _stall_body(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
    yield from _cut(response, size, End.HOLD)


@_fault(
    "stall-stream",
    "one event, or =EVENTS, then nothing more; of JSON, the headers alone",
    _amount,
    1,
)
def _stall_stream(response: ScriptedResponse, events: int) -> Iterator[Step]:
    yield head(response)
    for step in body(response) if _streams(response) else ():
        events -= isinstance(step, Pause)  # one stands before each event
        if events < 0:
            break
        yield step
    yield End.HOLD


@_fault(
    "keep-alive-close", "the response is whole and promises keep-alive, then the connection closes"
)
def _keep_alive_close(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield from steps(response)
    yield End.CLOSE


# --- the pace ---------------------------------------------------------------


@_fault("trickle", "the body byte by byte, or =BYTES at a time", _size, 1)
def _trickle(response: ScriptedResponse, size: int) -> Iterator[Step]:
    yield head(response)
    whole = written(body(response))
    yield from _split_at(whole, range(size, len(whole), size))
    yield from _close_if_unframed(response)


@_fault(
    "split", "the response, headers included, cut at =OFFSET,OFFSET… or at every byte", _offsets
)
def _split(response: ScriptedResponse, offsets: tuple[int, ...] | None) -> Iterator[Step]:
    whole = written(steps(response))
    yield from _split_at(whole, range(1, len(whole)) if offsets is None else offsets)
    yield from _close_if_unframed(response)


@_fault("drip", "a byte of the body every 0.1 s, or every =SECONDS", _seconds, 0.1)
def _drip(response: ScriptedResponse, seconds: float) -> Iterator[Step]:
    yield head(response)
    whole = written(body(response))
    yield from _split_at(whole, range(1, len(whole)), seconds)
    yield from _close_if_unframed(response)


@_fault(
    "endless-pings", "a comment every 0.01 s, or every =SECONDS, and never an event", _seconds, 0.01
)
def _endless_pings(response: ScriptedResponse, seconds: float) -> Iterator[Step]:
    yield head(_framed(response, "chunked"))
    for ping in repeat(b": PING\n\n"):
        yield chunk(ping)
        yield Pause(seconds)


@_fault("endless-headers", "headers without end")
def _endless_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield head(response)[:-2]
    for line in repeat(b"X-Endless: " + b"x" * 100 + b"\r\n"):
        yield line * 10
        yield Pause()


@_fault(
    "endless-interim",
    "interim answers (102) without end, every 0.01 s or every =SECONDS",
    _seconds,
    0.01,
)
def _endless_interim(response: ScriptedResponse, seconds: float) -> Iterator[Step]:
    for interim in repeat(b"HTTP/1.1 102 Processing\r\n\r\n"):
        yield interim
        yield Pause(seconds)


# --- the body ---------------------------------------------------------------


@_fault("corrupt-partial", "the base64 of each partial image is spoiled (stream)")
def _corrupt_partial(response: ScriptedResponse, _: None) -> Iterator[Step]:
    frames = (
        _corrupted(frame) if _is(frame, b".partial_image") else frame for frame in response.frames
    )
    yield from steps(_with(response, *frames))


@_fault("corrupt-final", "the base64 of the last image is spoiled")
def _corrupt_final(response: ScriptedResponse, _: None) -> Iterator[Step]:
    frames = list(response.frames)
    last = max((at for at, frame in enumerate(frames) if b'"b64_json"' in frame), default=None)
    if last is not None:
        frames[last] = _corrupted(frames[last])
    yield from steps(_with(response, *frames))


@_fault("wrong-type", "the right body as text/plain, or as =TYPE", str, "text/plain")
def _wrong_type(response: ScriptedResponse, content_type: str) -> Iterator[Step]:
    yield from steps(_typed(response, content_type))


@_fault("html", "a web page, with status 200 or =STATUS", _status, 200)
def _html(response: ScriptedResponse, status: int) -> Iterator[Step]:
    page = contract.page_response(response.headers)
    yield from steps(msgspec.structs.replace(page, status=status))


@_fault("empty", "no body, with status 200 or =STATUS", _status, 200)
def _empty(response: ScriptedResponse, status: int) -> Iterator[Step]:
    yield from steps(ScriptedResponse(status=status, headers=response.headers))


@_fault("body", "the body is =TEXT, with status 200 and the type that was asked for", str, "")
def _body(response: ScriptedResponse, text: str) -> Iterator[Step]:
    yield from steps(ScriptedResponse(headers=response.headers, frames=(text.encode(),)))


@_fault("json-for-stream", "JSON, whatever was asked", stream=False)
@_fault("stream-for-json", "a stream, whatever was asked", stream=True)
def _other_form(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield from steps(response)


@_fault("error-in-200", "an error as JSON, with status 200 and the type that was asked for")
def _error_in_200(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield from steps(ScriptedResponse(headers=response.headers, frames=(_upstream_error(response),)))


@_fault("bare-error", "a ping, then an error as a bare line of JSON, without `data:` (stream)")
def _bare_error(response: ScriptedResponse, _: None) -> Iterator[Step]:
    frames = (b": PING\n\n", _upstream_error(response) + b"\n")
    yield from steps(_with(response, *frames) if _streams(response) else response)


@_fault("error-event", "an error event in place of the completed image (stream)")
def _error_event(response: ScriptedResponse, _: None) -> Iterator[Step]:
    kept = (frame for frame in response.frames[:-1] if not _is(frame, b".completed"))
    failed = b"event: error\ndata: " + _upstream_error(response) + b"\n\n"
    yield from steps(_with(response, *kept, failed) if _streams(response) else response)


@_fault(
    "no-completed",
    "the completed image never comes and the stream ends cleanly; JSON has no images",
)
def _no_completed(response: ScriptedResponse, _: None) -> Iterator[Step]:
    if not _streams(response):
        yield from steps(_data(response, lambda items: []))
        return
    kept = (frame for frame in response.frames[:-1] if not _is(frame, b".completed"))
    yield from steps(_with(response, *kept))


@_fault("twice-completed", "each completed image comes twice")
def _twice_completed(response: ScriptedResponse, _: None) -> Iterator[Step]:
    if not _streams(response):
        yield from steps(_data(response, lambda items: [item for item in items for _ in range(2)]))
        return
    frames = [
        copy for frame in response.frames for copy in repeat(frame, 1 + _is(frame, b".completed"))
    ]
    yield from steps(_with(response, *frames))


@_fault("after-done", "one more event after [DONE] (stream)")
def _after_done(response: ScriptedResponse, _: None) -> Iterator[Step]:
    late = [frame for frame in response.frames if _is(frame, b".completed")]
    yield from steps(_with(response, *response.frames, *late[-1:]))


# --- the coding -------------------------------------------------------------


@_fault("gzip", "the right body, gzipped")
def _gzip(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield from steps(_gzip_encoded(_with(response, *_gzipped(response))))


@_fault(
    "truncated-gzip",
    "half of the gzipped body, or =BYTES of it, in a response that is otherwise whole",
    _amount,
)
def _truncated_gzip(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
    coded = b"".join(_gzipped(response))
    yield from steps(_gzip_encoded(_with(response, coded[: len(coded) // 2 if size is None else size])))


@_fault("gzip-bomb", "the right body after 512 MiB, or =MIB, of white space, gzipped", _size, 512)
def _gzip_bomb(response: ScriptedResponse, size: int) -> Iterator[Step]:
    coder = zlib.compressobj(wbits=31)
    blank = b" " * 1024 * 1024
    yield head(_gzip_encoded(_framed(response, "chunked")))
    for part in (*repeat(blank, size), b"\n", *response.frames):
        if coded := coder.compress(part) + coder.flush(zlib.Z_SYNC_FLUSH):
            yield chunk(coded)
    yield chunk(coder.flush())
    yield chunk(b"")


# --- helpers ----------------------------------------------------------------


def _streams(response: ScriptedResponse) -> bool:
    return response.framing != "length"


def _framed(response: ScriptedResponse, framing: Framing) -> ScriptedResponse:
    return msgspec.structs.replace(response, framing=framing)


def _with(response: ScriptedResponse, *frames: bytes) -> ScriptedResponse:
    return msgspec.structs.replace(response, frames=frames)


def _typed(response: ScriptedResponse, content_type: str) -> ScriptedResponse:
    headers = {**response.headers, "Content-Type": content_type}
    return msgspec.structs.replace(response, headers=headers)


def _gzipped(response: ScriptedResponse) -> Iterator[bytes]:
    coder = zlib.compressobj(wbits=31)
    for frame in response.frames:
        yield coder.compress(frame) + coder.flush(zlib.Z_SYNC_FLUSH)
    yield coder.flush()


def _gzip_encoded(response: ScriptedResponse) -> ScriptedResponse:
    headers = {**response.headers, "Content-Encoding": "gzip"}
    return msgspec.structs.replace(response, headers=headers)


def _cut(response: ScriptedResponse, size: int | None, end: End) -> Iterator[Step]:
    """The headers and the first bytes of the body: `size` of them, or half."""
    whole = written(body(response))
    yield head(response)
    yield whole[: len(whole) // 2 if size is None else size]
    yield end


def _split_at(
    whole: bytes, offsets: "range | tuple[int, ...]", seconds: float = 0.0
) -> Iterator[Step]:
    start = 0
    for end in (*offsets, len(whole)):
        yield whole[start:end]
        yield Pause(seconds)
        start = end


def _close_if_unframed(response: ScriptedResponse) -> Iterator[Step]:
    if response.framing == "close":
        yield End.CLOSE


def _is(frame: bytes, name: bytes) -> bool:
    """Whether the frame is an event whose name ends so."""
    return frame.startswith(b"event:") and frame.partition(b"\n")[0].endswith(name)


def _corrupted(frame: bytes) -> bytes:
    """The frame with a stretch in the middle of its last base64 text that no base64 has."""
    start = frame.rfind(b'"b64_json":"')
    if start < 0:
        return frame
    middle = (start + 12 + frame.index(b'"', start + 12)) // 2
    return frame[:middle] + b"!!!!" + frame[middle + 4 :]


def _upstream_error(response: ScriptedResponse) -> bytes:
    error = GatewayError(
        500, "The upstream model failed", code="server_error", kind="upstream_error"
    )
    return msgspec.json.encode(contract.error_value(error, response.headers))


def _data(response: ScriptedResponse, change: Callable[[list[Any]], list[Any]]) -> ScriptedResponse:
    value = msgspec.json.decode(response.body)
    if "data" not in value:
        return response
    return _with(response, msgspec.json.encode({**value, "data": change(value["data"])}))
