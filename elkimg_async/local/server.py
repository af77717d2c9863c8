"""The local server: aiohttp.web on a loopback port.

`contract` and `responses` decide what to send, `script` and `faults` how; this module does the
waiting: sockets, tasks, the clock.
"""

import asyncio
import contextlib
import ssl
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import contract, edits, forms, responses
from elkimg_async.local.contract import GatewayError, ParsedRequest
from elkimg_async.local.faults import FAULT_HEADER, Fault, parse
from elkimg_async.local.generator import Generator
from elkimg_async.local.painter import require_pillow
from elkimg_async.local.received import ReceivedRequest
from elkimg_async.local.request_bucket import RequestBucket
from elkimg_async.local.script import End, Pause, ScriptedResponse, Step, StopListening, steps
from elkimg_async.local.sockets import (
    AlreadySentResponse,
    Listener,
    TrackingServer,
    pause,
    read,
    reset,
    write,
)
from elkimg_async.sansio.requests import GenerateRequest

GENERATIONS_PATH, EDITS_PATH = "/v1/images/generations", "/v1/images/edits"
_KEPT_REQUESTS = 1_000
_CLOSING = 5.0
"""Seconds for aborted connections to end."""


class LocalServer:
    """A server for development without an API key, and for tests.

    Use `async with LocalServer() as server`, or `await server.start()` and `await server.aclose()`.

    Args:
        api_key: The only API key that the server accepts.
        host: The address to listen on; only this machine can reach a loopback address.
        port: The port; 0 for a free one.
        delay: Seconds before a response, and before each event of a stream.
        faults: Faults to inject, one per POST for images, in order: `Fault`s, or text for `parse`.
        light: Whether to paint quickly and in large pixels: about 30 kB instead of 2 MB for a PNG
            of 1024x1024.
        requests_per_minute: The rate limit; requests beyond it get 429.
        burst: How many requests may arrive at once; None for those of one minute.
        rate_limit_headers: Whether responses carry rate-limit headers.
        ssl_context: The context for HTTPS; None for HTTP.

    Attributes:
        requests: The latest thousand requests, oldest first.
        requests_per_minute: As above; it may be changed at any time.
        generations: The number of POSTs for which images were painted; a replay for an idempotency
            key does not count.
    """

    def __init__(
        self,
        *,
        api_key: str = "elkimg-local",
        host: str = "127.0.0.1",
        port: int = 0,
        delay: float = 0.01,
        faults: Iterable[Fault | str] = (),
        light: bool = False,
        requests_per_minute: float = 1_000_000,
        burst: int | None = None,
        rate_limit_headers: bool = True,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.api_key = api_key
        self.requests: deque[ReceivedRequest] = deque(maxlen=_KEPT_REQUESTS)
        self._delay = delay
        self._bucket = RequestBucket(
            requests_per_minute, burst=burst, send_headers=rate_limit_headers, now=time.monotonic()
        )
        self._generator = Generator(self._notify, light=light)
        self._listener = Listener(host, port, ssl_context)
        self._web: TrackingServer | None = None
        self._faults: deque[Fault] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self.inject(*faults)

    def __repr__(self) -> str:
        state = self.base_url if self._web else "not started"
        return f"<LocalServer {state}, {self.generations} generations>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def base_url(self) -> str:
        """The base URL for a client, `/v1` included."""
        return f"{self._listener.origin}/v1"

    @property
    def generations(self) -> int:
        """The number of POSTs for which images were painted."""
        return self._generator.count

    @property
    def requests_per_minute(self) -> float:
        """The rate limit."""
        return self._bucket.per_minute

    @requests_per_minute.setter
    def requests_per_minute(self, value: float) -> None:
        self._bucket.change(value, time.monotonic())

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._web.open) if self._web else 0

    @property
    def listening(self) -> bool:
        """Whether connections are accepted: from the start on, except during the fault `refuse`."""
        return self._listener.listening

    async def start(self) -> None:
        """Start to listen; a second call does nothing.

        Raises:
            ConfigurationError: If Pillow is missing, or the port is taken.
        """
        if self._web is not None:
            return
        require_pillow()
        # The address is known from here on, even if the first fault is `refuse`.
        self._listener.bind()
        self._web = TrackingServer(self._handle, self._notify)
        if self._refuse_if_next():
            return
        try:
            await self._listener.open(self._web)
        except BaseException:
            self._web = None
            self._listener.close()
            raise

    async def aclose(self) -> None:
        """Abort requests in flight and stop listening; a second call does nothing."""
        if self._web is None:
            return
        # First nothing new may arrive, then the handlers end, which may be in the middle of a
        # response, and last the connections.
        served, self._web = self._web, None
        self._listener.close()
        pending = [*self._tasks, *self._generator.tasks]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        served.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self.wait_until(lambda: not served.open)
        await served.shutdown(1.0)

    def inject(self, *faults: Fault | str) -> None:
        """Add faults to the list for the next POSTs.

        Raises:
            ConfigurationError: If a text is not a fault.
        """
        self._faults.extend(parse(fault) if isinstance(fault, str) else fault for fault in faults)
        if self._web is not None:
            self._refuse_if_next()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is checked whenever the state of the server changes."""
        while not condition():
            await self._changed.wait()

    async def wait_disconnected(self, count: int = 1) -> None:
        """Wait until clients have left `count` requests before the end of their response."""
        await self.wait_until(
            lambda: sum(each.outcome == "disconnected" for each in self.requests) >= count
        )

    def _notify(self) -> None:
        # Each event is set once. A waiter checks its condition and takes the newest event without
        # awaiting in between, so it misses no change.
        self._changed.set()
        self._changed = asyncio.Event()

    # --- a request ----------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {responses.REQUEST_ID: uuid.uuid4().hex, "Server": "elkimg-local"}
        if not request.keep_alive:
            headers["Connection"] = "close"
        received = _record(request, headers[responses.REQUEST_ID])
        self.requests.append(received)
        self._notify()
        ended = True
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            script = await self._script(request, received, headers)
            ended = await self._send(request, script)
            received.outcome = "cut" if ended else "answered"
        except ConnectionError:
            received.outcome = "disconnected"
        except asyncio.CancelledError:
            # From aiohttp, because the client has left, or from `aclose`.
            gone = request.transport is None or request.transport.is_closing()
            received.outcome = "disconnected" if gone else "cut"
            raise
        finally:
            self._tasks.discard(task)
            if self._web is not None:
                # The client may not have read this response yet, so its connection is spared.
                self._refuse_if_next(request.protocol)
            self._notify()
        # Once the port refuses connections, one that is still open must not carry another request.
        keep_alive = request.keep_alive and not ended and self._listener.listening
        return AlreadySentResponse(keep_alive=keep_alive)

    async def _script(
        self, request: web.BaseRequest, received: ReceivedRequest, headers: dict[str, str]
    ) -> Iterator[Step]:
        """Return the steps of the response, with the fault applied."""
        fault: Fault | None = None
        try:
            # First of all, so that faults strike when the client has sent its whole request.
            body = await read(request)
            fault = received.fault = self._fault_for(request)
            content_type = request.headers.get("Content-Type", "")
            parts = None
            is_edit = request.method == "POST" and request.path == EDITS_PATH
            if is_edit and not content_type.startswith("application/json"):
                # In a thread, since forms of many megabytes would hold up the other requests.
                parts = await asyncio.to_thread(forms.parse_form, content_type, body)
            received.fields = _fields(body) if parts is None else forms.described(parts)
            if fault and not fault.generates:
                return fault.apply(ScriptedResponse(headers=headers))
            response = await self._respond(request, body, parts, received, headers)
        except GatewayError as error:
            response = responses.error_response(error, headers)
        # RFC 9110, 9.3.2: a response to HEAD has no content.
        if request.method == "HEAD":
            response = msgspec.structs.replace(response, frames=())
        # RFC 9112, 6.1: Transfer-Encoding is for clients that speak HTTP/1.1.
        if request.version < (1, 1) and response.framing == "chunked":
            response = msgspec.structs.replace(response, framing="close")
        return fault.apply(response) if fault else steps(response)

    async def _respond(
        self,
        request: web.BaseRequest,
        body: bytes,
        parts: list[forms.FormPart] | None,
        received: ReceivedRequest,
        headers: dict[str, str],
    ) -> ScriptedResponse:
        path = request.path.rstrip("/")
        # Files behind URLs and the gateway's web page need no API key.
        if content := self._generator.files.get(path):
            return responses.image_response(content, path.rpartition(".")[2], headers)
        if path != "/v1" and not path.startswith("/v1/"):
            return responses.page_response(headers)
        contract.check_api_key(request.headers, self.api_key)
        if request.method in ("GET", "HEAD") and path == "/v1/models":
            return responses.models_response(headers)
        if request.method != "POST" or path not in (GENERATIONS_PATH, EDITS_PATH):
            raise contract.missing(request.method, path)
        contract.check_accept(request.headers)
        allowed, limits = self._bucket.take(time.monotonic())
        headers.update(limits)
        if not allowed:
            raise GatewayError(429, "Too many requests in this minute")
        parsed = _parse(path, body, parts)  # after the limit, so invalid requests count for it
        result, more = await self._generator.generate(parsed, body, received, self._listener.origin)
        headers.update(more)
        form = received.fault.stream if received.fault else None
        return responses.success_response(
            parsed,
            result,
            headers,
            stream=parsed.stream if form is None else form,
            delay=self._delay,
        )

    async def _send(self, request: web.BaseRequest, script: Iterator[Step]) -> bool:
        """Send a script; return whether it ended the connection."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        # With a limit of 0, bytes have left the process once `drain` returns; TLS would never
        # resume from 0.
        transport.set_write_buffer_limits(high=1 if request.secure else 0, low=0)
        for step in script:
            match step:
                case bytes():
                    await write(request.writer, step)
                case Pause(seconds):
                    await pause(seconds)
                case StopListening(seconds):
                    self._stop_listening(seconds)
                    return True
                case End.CLOSE:
                    transport.close()
                    return True
                case End.RESET:
                    reset(transport)
                    return True
                case End.HOLD:  # until the handler is cancelled
                    await asyncio.get_running_loop().create_future()
        return False

    # --- faults -------------------------------------------------------------

    def _fault_for(self, request: web.BaseRequest) -> Fault | None:
        if request.method != "POST" or request.path not in (GENERATIONS_PATH, EDITS_PATH):
            return None
        if text := request.headers.get(FAULT_HEADER):
            try:
                return parse(text)
            except ConfigurationError as error:
                raise GatewayError(400, str(error), code="unknown_fault") from None
        return self._next_fault() if self._faults else None

    def _next_fault(self) -> Fault:
        fault = self._faults.popleft()
        if fault.times != 1:
            times = None if fault.times is None else fault.times - 1
            self._faults.appendleft(msgspec.structs.replace(fault, times=times))
        return fault

    def _refuse_if_next(self, spared: RequestHandler | None = None) -> bool:
        """Stop listening if the next fault is `refuse`: its POST must not even arrive."""
        if not self._faults or self._faults[0].name != "refuse":
            return False
        self._stop_listening(self._next_fault().value(), spared)
        return True

    def _stop_listening(self, seconds: float | None, spared: RequestHandler | None = None) -> None:
        assert self._web is not None
        self._listener.pause()
        self._web.abort(spared)
        if seconds is not None:
            task = asyncio.get_running_loop().create_task(self._resume_listening(seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _resume_listening(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._web is not None and not self._listener.listening and not self._refuse_if_next():
            await self._listener.open(self._web)
        self._notify()


def _record(request: web.BaseRequest, request_id: str) -> ReceivedRequest:
    headers = {name.lower(): value for name, value in request.headers.items()}
    if "authorization" in headers:
        headers["authorization"] = "Bearer …"
    return ReceivedRequest(
        method=request.method,
        path=request.path,
        query=dict(request.query),
        headers=headers,
        request_id=request_id,
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return contract.decode_object(body)
    except GatewayError:
        return {}


def _parse(path: str, body: bytes, parts: list[forms.FormPart] | None) -> ParsedRequest:
    if path == GENERATIONS_PATH:
        return contract.parse_fields(contract.parse_json(body), GenerateRequest)
    return edits.parse_edit_json(body) if parts is None else edits.parse_edit_form(parts)
