"""Effects on the connection and the pace, with correct content."""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import msgspec

from elkimg_async.local.contract import GatewayError
from elkimg_async.local.effects import (
    EffectTable,
    count,
    positive,
    seconds,
    streams,
)
from elkimg_async.local.effects import status as to_status
from elkimg_async.local.responses import error_response
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
    joined,
    steps,
)

EFFECTS = EffectTable()
effect = EFFECTS.add


def _offsets(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


# --- nothing is generated ---------------------------------------------------
# These receive a response without a body, with the headers that every response has.


@effect(
    "refuse",
    "refuse connections for =SECONDS, or for good; nothing is generated",
    seconds,
    generates=False,
)
def _refuse(response: ScriptedResponse, pause: float | None) -> Iterator[Step]:
    # Only a POST whose header asks for it gets here: a `refuse` in the server's list strikes before
    # its request arrives.
    yield StopListening(pause)


@effect(
    "rate-limit",
    "429, with Retry-After if =SECONDS is given; nothing is generated",
    seconds,
    generates=False,
)
def _rate_limit(response: ScriptedResponse, pause: float | None) -> ScriptedResponse:
    # By default without Retry-After, as at the gateway: the client has to choose its own delay.
    headers = dict(response.headers)
    if pause is not None:
        headers["Retry-After"] = f"{pause:g}"
    return error_response(GatewayError(429, "Too many requests"), headers)


def _status_and_code(text: str) -> tuple[int, str]:
    status, _, code = text.partition("/")
    return to_status(status), code


@effect(
    "error",
    "an error, =STATUS or =STATUS/CODE, 500/do_request_failed by default; nothing is generated",
    _status_and_code,
    (500, "do_request_failed"),
    generates=False,
)
def _error(response: ScriptedResponse, error: tuple[int, str]) -> ScriptedResponse:
    failure = GatewayError(error[0], "An injected error of the local server", code=error[1])
    return error_response(failure, response.headers)


@effect(
    "redirect",
    "307 to another host, or to =URL; nothing is generated",
    str,
    "http://elsewhere.invalid/v1/images/generations",
    generates=False,
)
def _redirect(response: ScriptedResponse, url: str) -> ScriptedResponse:
    # A client that follows it would send the prompt to another host.
    headers = {**response.headers, "Location": url}
    return ScriptedResponse(status=307, headers=headers)


# --- the connection ---------------------------------------------------------


@effect("none", "no fault")
def _none(response: ScriptedResponse, _: None) -> ScriptedResponse:
    return response


@effect("reset-before-headers", "reset the connection before the first byte")
def _reset_before_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield End.RESET


@effect("reset-in-headers", "reset the connection halfway through the headers")
def _reset_in_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    start = head(response)
    yield start[: len(start) // 2]
    yield End.RESET


@effect("close-before-headers", "close the connection before the first byte")
def _close_before_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield End.CLOSE


@effect("stall-headers", "send nothing at all, and keep the connection open")
def _stall_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield End.HOLD


def _add_cut(name: str, description: str, end: End, framing: Framing | None = None) -> None:
    """Register a fault that sends half the body, or as many bytes of it as its argument says."""

    @effect(name, description, count)
    def _cut(response: ScriptedResponse, size: int | None) -> Iterator[Step]:
        # The framing decides how a client notices that something is missing: from fewer bytes than
        # Content-Length says, from a missing last chunk, or not at all (RFC 9112, 6.3).
        if framing is not None:
            response = msgspec.structs.replace(response, framing=framing)
        whole = joined(body(response))  # with the sizes of its chunks, which count too
        yield head(response)
        yield whole[: len(whole) // 2 if size is None else size]
        yield end


_CLOSED = "close the connection after half the body, or =BYTES,"
_add_cut(
    "reset-in-body",
    "reset the connection halfway through the body, or after =BYTES of it",
    End.RESET,
)
_add_cut("truncate-length", f"{_CLOSED} of the announced Content-Length", End.CLOSE, "length")
_add_cut("truncate-chunked", f"{_CLOSED} within a chunked body", End.CLOSE, "chunked")
_add_cut("truncate-close", f"{_CLOSED} of a body without a length", End.CLOSE, "close")
_add_cut("stall-body", "stall after half the body, or after =BYTES of it", End.HOLD)


@effect(
    "stall-stream",
    "stall after one event, or after =EVENTS; a JSON response after its headers",
    count,
    1,
)
def _stall_stream(response: ScriptedResponse, events: int) -> Iterator[Step]:
    yield head(response)
    for step in body(response) if streams(response) else ():
        events -= isinstance(step, Pause)  # there is one before each event
        if events < 0:
            break
        yield step
    yield End.HOLD


@effect(
    "keep-alive-close", "close the connection after a complete response that promises keep-alive"
)
def _keep_alive_close(response: ScriptedResponse, _: None) -> Iterator[Step]:
    # A client that keeps the connection for its next request finds out only when it uses it.
    yield from steps(response)
    yield End.CLOSE


# --- the pace ---------------------------------------------------------------


@effect("trickle", "send the body byte by byte, or =BYTES at a time", positive, 1)
def _trickle(response: ScriptedResponse, size: int) -> Iterator[Step]:
    yield head(response)
    whole = joined(body(response))
    yield from _split_at(response, whole, range(size, len(whole), size))


@effect("split", "split the response, headers included, at =OFFSET,OFFSET… or everywhere", _offsets)
def _split(response: ScriptedResponse, offsets: tuple[int, ...] | None) -> Iterator[Step]:
    whole = joined(steps(response))
    yield from _split_at(response, whole, range(1, len(whole)) if offsets is None else offsets)


@effect("drip", "send one byte of the body every 0.1 s, or every =SECONDS", seconds, 0.1)
def _drip(response: ScriptedResponse, pause: float) -> Iterator[Step]:
    yield head(response)
    whole = joined(body(response))
    yield from _split_at(response, whole, range(1, len(whole)), pause)


@effect(
    "endless-pings",
    "send a comment every 0.01 s, or every =SECONDS, and never an event",
    seconds,
    0.01,
)
def _endless_pings(response: ScriptedResponse, pause: float) -> Iterator[Step]:
    # Each comment restarts a limit on idle time, unless the client does not count comments.
    yield head(msgspec.structs.replace(response, framing="chunked"))
    for ping in repeat(b": PING\n\n"):
        yield chunk(ping)
        yield Pause(pause)


@effect("endless-headers", "send headers without end")
def _endless_headers(response: ScriptedResponse, _: None) -> Iterator[Step]:
    yield head(response)[:-2]  # without the empty line that ends the headers
    for line in repeat(b"X-Endless: " + b"x" * 100 + b"\r\n"):
        yield line * 10
        yield Pause()


@effect(
    "large-headers",
    "send 150 more headers of 32 KiB, or =KIB, in total, as some proxies do",
    positive,
    32,
)
def _large_headers(response: ScriptedResponse, size: int) -> ScriptedResponse:
    # More lines than the 128 that aiohttp accepts unless it is told otherwise.
    value = "x" * (size * 1024 // 150)
    more = {f"X-Policy-{number}": value for number in range(150)}
    return msgspec.structs.replace(response, headers={**response.headers, **more})


@effect(
    "endless-interim",
    "send interim responses (102) without end, every 0.01 s or every =SECONDS",
    seconds,
    0.01,
)
def _endless_interim(response: ScriptedResponse, pause: float) -> Iterator[Step]:
    # RFC 9110, 15.2: any number of interim responses may precede the final one.
    for interim in repeat(b"HTTP/1.1 102 Processing\r\n\r\n"):
        yield interim
        yield Pause(pause)


def _split_at(
    response: ScriptedResponse, whole: bytes, offsets: Iterable[int], pause: float = 0.0
) -> Iterator[Step]:
    start = 0
    for end in chain(offsets, [len(whole)]):
        yield whole[start:end]
        yield Pause(pause)  # without it, the kernel may join this part and the next
        start = end
    # `joined` keeps bytes only, so the step that ends an unframed body has been lost.
    if response.framing == "close":
        yield End.CLOSE
