"""Responses for FastAPI, Starlette and aiohttp.web, and the JavaScript module."""

import asyncio
import functools
import importlib.resources
import logging
from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from elkimg_async.errors import ConfigurationError, JobNotFoundError
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.web.error_body import error_body
from elkimg_async.web.relay import HEADERS, ServerSentEvents

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest, StreamResponse
    from starlette.responses import StreamingResponse

_log = logging.getLogger("elkimg_async")
_POLL = 0.25  # seconds between two checks whether aiohttp's browser is still connected


@functools.cache
def javascript() -> str:
    """Return the source of the ES module `elkimg.js`, to serve as text/javascript."""
    file = importlib.resources.files("elkimg_async.web") / "elkimg.js"
    return file.read_text(encoding="utf-8")


def starlette_response(
    events: AsyncIterable[ImageEvent], *, heartbeat: float | None = 15.0, pass_urls: bool = False
) -> "StreamingResponse":
    """Return the response for a FastAPI or Starlette endpoint.

        job = await jobs.start(prompt, id=id)
        return web.starlette_response(jobs.events(job.id, request.headers.get("last-event-id")))

    Nothing is sent upstream before the response begins, and nothing at all for a HEAD request. The
    status is 404 if the job does not exist, and 204, which stops an `EventSource`, if the browser
    has already received all of it.

    Args:
        events: The events of a job, which continues when the browser disconnects; or an
            `ImageStream`, whose image is then discarded.
        heartbeat: As for `ServerSentEvents`.
        pass_urls: As for `ServerSentEvents`.

    Raises:
        ConfigurationError: If Starlette is not installed.
    """
    return _response_class()(ServerSentEvents(events, heartbeat=heartbeat, pass_urls=pass_urls))


@functools.cache
def _response_class() -> "Callable[[ServerSentEvents], StreamingResponse]":
    try:
        from starlette.responses import Response, StreamingResponse
        from starlette.types import Receive, Scope, Send
    except ImportError:
        raise ConfigurationError("Starlette is missing: pip install starlette.") from None

    class RelayResponse(StreamingResponse):
        def __init__(self, relay: ServerSentEvents) -> None:
            super().__init__(relay, headers=HEADERS)
            self._relay = relay

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            # Starlette does not close the iterator when it is cancelled in `send`, and with ASGI
            # 2.4 servers notices that the browser has disconnected only when it sends.
            relay = self._relay.stop_when(functools.partial(self.listen_for_disconnect, receive))
            try:
                if scope.get("method") == "HEAD":
                    await relay.aclose()
                elif (status := await relay.look_up()) != 200:
                    body, headers = _without_events(status)
                    await Response(body, status, headers)(scope, receive, send)
                    return
                await self.stream_response(send)
            except OSError:
                _log.debug("the browser disconnected in the middle of a chunk")
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
    """Relay to the browser of an aiohttp.web handler, which returns the response.

        job = await jobs.start(prompt, id=id)
        events = jobs.events(job.id, request.headers.get("last-event-id"))
        return await web.aiohttp_response(request, events)

    Nothing is sent upstream for a HEAD request. The arguments and the statuses are those of
    `starlette_response`.
    """
    from aiohttp.web import Response, StreamResponse

    async def disconnected() -> None:
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(_POLL)  # aiohttp has no notification for this

    relay = ServerSentEvents(events, heartbeat=heartbeat, pass_urls=pass_urls)
    response = StreamResponse(headers=HEADERS)
    try:
        if request.method != "HEAD" and (status := await relay.look_up()) != 200:
            body, headers = _without_events(status)
            return Response(body=body, status=status, headers=headers)
        await response.prepare(request)
        if request.method != "HEAD":
            async for chunk in relay.stop_when(disconnected):
                await response.write(chunk)
        await response.write_eof()
    except OSError:
        _log.debug("the browser disconnected in the middle of a chunk")
    finally:
        await relay.aclose()
    return response


def _without_events(status: Literal[204, 404]) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a response to a job that is complete or missing."""
    headers = {"Cache-Control": "no-store"}
    if status == 204:
        return b"", headers
    body = msgspec.json.encode(error_body(JobNotFoundError()))
    return body, {**headers, "Content-Type": "application/json"}
