"""Relays an `ImageStream` to a browser as server-sent events, from FastAPI, Starlette and aiohttp.web.

    @app.get("/picture")                                   # FastAPI, and Starlette likewise
    async def picture(prompt: str):
        return web.starlette_response(client.generate(prompt, stream=True))

    async def picture(request):                            # aiohttp.web
        return await web.aiohttp_response(request, client.generate(request.query["prompt"], stream=True))

What the browser gets, always with status 200:

    retry: 2147483647                                      once, at the very beginning
    : ping                                                 whenever nothing came for `heartbeat` seconds
    event: image_generation.partial_image                  the fields of OpenAI's events
    data: {"type":"image_generation.partial_image","partial_image_index":0,…,"b64_json":"…"}

    event: error                                           a failure, as `error_body` tells it; nothing follows
    data: {"error":{"message":"…","type":"RateLimitError",…}}

    data: [DONE]                                           the good end

`EventSource` connects anew after every end of a stream, the good one too, and each time it would ask for
another picture; the `retry` puts that off for more than three weeks. A page should close its `EventSource`
at `[DONE]` and at `error`, or read the stream with `fetch`.

A refusal that shall be an HTTP status instead can be caught before the response begins:
`stream = await client.generate(…, stream=True)` raises it, and the open stream is relayed as well.

The upstream connection is closed when the browser leaves, and it is read only as fast as the browser reads.
"""

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import anyio
import msgspec
import pybase64

from elkimg_async import errors, logs
from elkimg_async.errors import ConfigurationError, ElkImagesError, InvalidRequestError
from elkimg_async.sansio.decoder import ImageEvent

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest, StreamResponse
    from starlette.responses import StreamingResponse

__all__ = ["HEADERS", "ServerSentEvents", "aiohttp_response", "error_body", "starlette_response"]

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
)
"""The response headers of a relay: nothing between may keep, compress or hold back what comes."""

_log = logging.getLogger("elkimg_async")
_START = b"retry: 2147483647\n"  # in milliseconds; the most that every browser takes
_PING = b": ping\n"
_DONE = b"data: [DONE]\n\n"
_SLICE = 48 * 1024  # bytes of an image in one piece, a multiple of 3: 64 KiB of base64
_LOOK = 0.25  # seconds between two looks at whether aiohttp's browser is still there


class ServerSentEvents:
    """The bytes that relay a stream of images: an async iterator for any framework's streaming response.

        async for piece in ServerSentEvents(client.generate(prompt, stream=True)):
            ...

    Send them with `HEADERS`, and call `aclose` at the end, whatever happened. It never raises an
    `Exception` of the stream's: those become an `error` event, in full in the log `elkimg_async`.

    Args:
        events: An `ImageStream`, open or not; or any async iterable of its events, such as a generator of
            yours that changes or keeps them on their way. It is closed at the end.
        heartbeat: Seconds of silence after which a comment line is sent, so that nothing between takes
            the connection for dead. None: no heartbeats.
        pass_urls: Whether an image that came as a URL is passed on as one, for the browser to fetch; that
            tells the browser where it comes from. Otherwise it is read here and sent as base64.

    Raises:
        ConfigurationError: by the caller; `heartbeat` is not a positive number.
        StreamStateError: by the caller, who iterates over the stream elsewhere.
    """

    def __init__(
        self,
        events: AsyncIterable[ImageEvent],
        *,
        heartbeat: float | None = 15.0,
        pass_urls: bool = False,
    ) -> None:
        if heartbeat is not None and not heartbeat > 0:
            raise ConfigurationError("heartbeat must be a positive number of seconds, or None.")
        self._events = aiter(events)
        self._heartbeat, self._pass_urls = heartbeat, pass_urls
        self._pieces: Iterator[bytes] = iter([_START])
        self._step: asyncio.Task[ImageEvent | None] | None = None
        self._disconnected: Callable[[], Awaitable[object]] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ended = False

    def stop_when(self, disconnected: Callable[[], Awaitable[object]]) -> Self:
        """End at once when `disconnected()` returns, which is when the browser has left."""
        self._disconnected = disconnected
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = next(self._pieces, None)
        return await self._wait() if piece is None else piece

    async def aclose(self) -> None:
        """Close the stream and its connection; more than once is fine."""
        self._ended = True
        self._pieces = iter(())
        self._disconnected = None
        tasks = [task for task in (self._step, self._watch) if task is not None]
        self._step = self._watch = None
        with anyio.CancelScope(shield=True):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()

    def __del__(self) -> None:
        tasks = getattr(self, "_step", None), getattr(self, "_watch", None)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            for task in filter(None, tasks):
                task.cancel()

    async def _wait(self) -> bytes:
        """The next piece, or a heartbeat, as soon as there is one."""
        if self._ended:
            await self.aclose()
            raise StopAsyncIteration
        try:
            step, watch = self._start()
            waited = {step, watch} if watch else {step}
            await asyncio.wait(waited, timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self.aclose()
            raise
        if watch is not None and watch.done():
            await self.aclose()
            raise StopAsyncIteration
        if not step.done():
            return _PING
        self._step = None
        try:
            event = step.result()
            self._ended = event is None
            if event is None:
                return _DONE
            self._pieces = _write(event)
            return next(self._pieces)
        except Exception as error:  # noqa: BLE001
            self._ended = True
            return _write_error(error)

    def _start(self) -> tuple["asyncio.Task[ImageEvent | None]", "asyncio.Task[None] | None"]:
        """Have the next event read and the browser watched; neither task keeps this object alive."""
        if self._step is None:
            self._step = asyncio.create_task(_read(self._events, self._pass_urls))
        if self._watch is None and self._disconnected is not None:
            self._watch = asyncio.create_task(_until(self._disconnected))
        return self._step, self._watch


async def _read(events: AsyncIterator[ImageEvent], pass_urls: bool) -> ImageEvent | None:
    """The next event with its image's bytes, or None at the end."""
    event = await anext(events, None)
    if event is not None and not pass_urls:
        await event.image.read()
    return event


async def _until(disconnected: Callable[[], Awaitable[object]]) -> None:
    await disconnected()


def _write(event: ImageEvent) -> Iterator[bytes]:
    """An event in pieces, so that the base64 of an image is never held whole."""
    content = event.image.content
    fields = {name: _said(getattr(event, name)) for name in event.__struct_fields__}
    del fields["image"]
    if content is None:
        fields["url"] = event.image.url
    text = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    head = b"event: %b\ndata: %b" % (event.type.encode(), text[:-1])
    if content is None:
        yield head + b"}\n\n"
        return
    head += b',"b64_json":"'
    view = memoryview(content)
    for start in range(0, len(view), _SLICE):
        yield head + pybase64.b64encode(view[start : start + _SLICE])
        head = b""
    yield head + b'"}\n\n'


def _said(value: Any) -> Any:
    """A value of an event without the fields that the server did not fill."""
    if not isinstance(value, msgspec.Struct):
        return value
    fields = msgspec.structs.asdict(value)
    return {name: _said(field) for name, field in fields.items() if field is not None}


def _write_error(error: Exception) -> bytes:
    if isinstance(error, ElkImagesError):
        told = logs.describe(error) if isinstance(error, errors.APIError) else repr(error)
        _log.warning(
            "a stream that was relayed to a browser failed: %s (request id: %s)",
            told, error.request_id,
        )  # fmt: skip
    else:
        _log.error("a stream that was relayed to a browser failed", exc_info=error)
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error_body(error))


# --- the frameworks ---------------------------------------------------------


def starlette_response(
    events: AsyncIterable[ImageEvent], *, heartbeat: float | None = 15.0, pass_urls: bool = False
) -> "StreamingResponse":
    """The response to return from a FastAPI or Starlette endpoint; `ServerSentEvents` says what the arguments mean.

    Nothing is asked upstream before it is sent, and nothing at all for a HEAD request.

    Raises:
        ConfigurationError: by the caller; Starlette is not installed.
    """
    return _response_class()(ServerSentEvents(events, heartbeat=heartbeat, pass_urls=pass_urls))


@functools.cache
def _response_class() -> "Callable[[ServerSentEvents], StreamingResponse]":
    try:
        from starlette.responses import StreamingResponse
        from starlette.types import Receive, Scope, Send
    except ImportError:
        raise ConfigurationError("Starlette is missing: pip install starlette.") from None

    class RelayResponse(StreamingResponse):
        def __init__(self, relay: ServerSentEvents) -> None:
            super().__init__(relay, headers=HEADERS)
            self._relay = relay

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            # Starlette itself leaves the iterator alone when it is cancelled in `send`, and with servers of ASGI 2.4
            # sees that the browser has left only when it sends.
            relay = self._relay.stop_when(functools.partial(self.listen_for_disconnect, receive))
            if scope.get("method") == "HEAD":
                await relay.aclose()
            try:
                await self.stream_response(send)
            except OSError:
                _log.debug("the browser left in the middle of a piece")
            finally:
                await relay.aclose()
            if self.background is not None:
                await self.background()

    return RelayResponse


async def aiohttp_response(
    request: "BaseRequest",
    events: AsyncIterable[ImageEvent],
    *,
    heartbeat: float | None = 15.0,
    pass_urls: bool = False,
) -> "StreamResponse":
    """Relay to the browser of an aiohttp.web handler, which returns the response; `ServerSentEvents` says what the arguments mean.

    Nothing is asked upstream for a HEAD request.
    """
    from aiohttp.web import StreamResponse

    async def disconnected() -> None:
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)  # aiohttp tells nobody but the transport

    relay = ServerSentEvents(events, heartbeat=heartbeat, pass_urls=pass_urls)
    response = StreamResponse(headers=HEADERS)
    try:
        await response.prepare(request)
        if request.method != "HEAD":
            async for piece in relay.stop_when(disconnected):
                await response.write(piece)
        await response.write_eof()
    except OSError:
        _log.debug("the browser left in the middle of a piece")
    finally:
        await relay.aclose()
    return response


# --- what a browser may know of an error ------------------------------------

_SENTENCES: Mapping[type[Exception], str] = {
    errors.ConfigurationError: "This site's picture service is not set up properly.",
    errors.InvalidRequestError: "The request is not valid.",
    errors.ModerationError: "The prompt or the picture was blocked by the content rules.",
    errors.AuthenticationError: "This site's picture service is not set up properly.",
    errors.PermissionDeniedError: "This site may not use the picture service in this way.",
    errors.QuotaExceededError: "This site's allowance for pictures is used up.",
    errors.NotFoundError: "The picture service does not know this model.",
    errors.RateLimitError: "Too many pictures are being asked for; try again in a while.",
    errors.ServerError: "The picture service failed.",
    errors.APIError: "The picture service refused the request.",
    errors.RequestTimeoutError: "The picture took too long.",
    errors.ConnectError: "The picture service cannot be reached.",
    errors.NetworkError: "The connection to the picture service broke.",
    errors.ResponseError: "The picture service gave no usable answer.",
    errors.StreamIncompleteError: "The picture service stopped before the picture was whole.",
    errors.DownloadError: "The picture was made, but could not be fetched.",
    Exception: "Something went wrong here, and there is no picture.",
}
_TELLING = (errors.BadRequestError, errors.InvalidRequestError)
"""Errors whose own words are about the browser's request, and so of use there."""
_OWN_PARAMS = ("extra_headers", "extra_body")  # set by the backend, not by the browser
_ADDRESS_OR_KEY = re.compile(
    r"://|\bbearer\b|\b(?:sk|pk|rk|org|proj|sess)-\w"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9a-f:]*::[0-9a-f:]*\]|\blocalhost\b"
    r"|[\w-]+\.[a-z]{2,}\b|[a-z][\w-]*:\d{2,5}\b"
    r"|(?<![\w/])/\w[\w.-]*/|\b[a-z]:\\",
    re.IGNORECASE,
)


def error_body(error: BaseException) -> dict[str, dict[str, str | None]]:
    """What a browser may know of an error: the JSON body of an answer, and the data of an `error` event.

    `error` has `message`; `type`, the name of the class in `elkimg_async.errors`, or InternalError; the
    server's `code`; `param`; `billing`; `request_id`. A refused request keeps its own words, unless an address or
    a key seems to stand in them; every other error gets a plain sentence. Nothing tells of keys, addresses,
    headers or this program.
    """
    kind = next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), None)
    known = error if isinstance(error, ElkImagesError) else None
    return {
        "error": {
            "message": _message(error),
            "type": kind.__name__ if kind else "InternalError",
            "code": _label(getattr(known, "code", None)),
            "param": _label(getattr(known, "param", None)),
            "billing": known.billing if known else "unknown",
            "request_id": _label(getattr(known, "request_id", None)),
        }
    }


def _message(error: BaseException) -> str:
    if isinstance(error, _TELLING):
        own = isinstance(error, InvalidRequestError) and error.param in _OWN_PARAMS
        if error.message and not own and not _ADDRESS_OR_KEY.search(error.message):
            return error.message
    if isinstance(error, errors.RateLimitError) and error.retry_after:
        return f"Too many pictures are being asked for; try again in {error.retry_after:.0f} s."
    kinds = (kind for kind in type(error).__mro__ if kind in _SENTENCES)
    return _SENTENCES[next(kinds, Exception)]


def _label(value: Any) -> str | None:
    """A name such as servers give to codes and requests; None for anything that says more."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.\[\]-]{1,128}", value) else None
