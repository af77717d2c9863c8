"""The local server: aiohttp.web on a loopback port, over the pure contract, painter and faults.

What is answered is decided in `contract`, how it goes over the wire in `script`
and `faults`; here is what waits: sockets, worker threads, the clock.
"""

import asyncio
import contextlib
import functools
import hashlib
import math
import ssl
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Literal, Self

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import contract, forms
from elkimg_async.local.contract import GatewayError, GeneratedImages, ParsedRequest
from elkimg_async.local.editor import decode_inputs, paint_edit
from elkimg_async.local.faults import FAULT_HEADER, Fault, parse
from elkimg_async.local.painter import ImageSpec, PaintedImage, paint, require_pillow
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
from elkimg_async.sansio.requests import EditRequest

GENERATIONS_PATH, EDITS_PATH = "/v1/images/generations", "/v1/images/edits"
Outcome = Literal["open", "answered", "cut", "disconnected"]

_KEPT_REQUESTS = 1_000
_KEPT_IMAGES = 32
_KEPT_GENERATIONS, _KEPT_LIGHT = 32, 1_000
_MINUTE = 60.0


class ReceivedRequest(msgspec.Struct, kw_only=True, eq=False):
    """One request that came in.

    `headers` has names in lower case, and Authorization without its value. `fields` are those of a
    JSON body, or of a form, with `filename`, `type` and `size` of each file in it. `fault` is the one played; None if none was. `outcome` is `open` while the server is
    at it, then `answered`, `cut` (a fault broke it off) or `disconnected` (the client left first).
    """

    method: str
    path: str
    headers: Mapping[str, str]
    request_id: str
    fields: dict[str, Any] = {}
    fault: Fault | None = None
    outcome: Outcome = "open"


_CLOSING = 5.0  # seconds for connections to end after they were broken off


class LocalServer:
    """A server for trying things without a key, and for tests.

    Use `async with LocalServer() as server`, or `await server.start()` and `await server.aclose()`.

    Args:
        api_key: the only key that it takes.
        host: where it listens; a loopback address, unless others shall reach it.
        port: 0 for a free one.
        delay: seconds before an answer, and before each event of a stream.
        faults: what to play, one for each POST for images, in order: a `Fault`, or text for `parse`.
        light: paint quickly and in large pixels: some 30 kB for a png of 1024x1024 instead of 2 MB.
        requests_per_minute: how fast a bucket of requests fills; what finds it empty is refused with 429.
        burst: how many requests the bucket capacity; None: a minute's.
        rate_limit_headers: whether answers tell the limits, and refusals how long to wait.
        ssl_context: for https; None for http.

    Attributes:
        requests: the latest thousand requests, the newest last.
        requests_per_minute: as above; it may be changed at any time.
        generations: how many POSTs had images painted; replays for an Idempotency-Key do not count.
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
        self.generations = 0
        self._delay, self._light = delay, light
        self._bucket = _RequestBucket(
            requests_per_minute, burst=burst, send_headers=rate_limit_headers, now=time.monotonic()
        )
        self._listener = Listener(host, port, ssl_context)
        self._web: TrackingServer | None = None
        self._faults: deque[Fault] = deque()
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._kept: OrderedDict[str, _Generation] = OrderedDict()
        self._handlers: set[asyncio.Task[Any]] = set()
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
        """What a client needs, `/v1` included."""
        return f"{self._listener.origin}/v1"

    @property
    def requests_per_minute(self) -> float:
        """How fast the bucket of requests fills."""
        return self._bucket.per_minute

    @requests_per_minute.setter
    def requests_per_minute(self, value: float) -> None:
        self._bucket.change(value, time.monotonic())

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._web.open) if self._web else 0

    @property
    def listening(self) -> bool:
        """Whether connections are taken: not before the start, and not while `refuse` is played."""
        return self._listener.listening

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: by whoever set this up; Pillow is missing, or the port is taken.
        """
        if self._web is not None:
            return
        require_pillow()
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
        """Break off what is under way and stop listening; a second call does nothing."""
        if self._web is None:
            return
        served, self._web = self._web, None
        self._listener.close()
        pending = [*self._handlers, *self._tasks]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        served.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self.wait_until(lambda: not served.open)
        await served.shutdown(1.0)

    def inject(self, *faults: Fault | str) -> None:
        """Add faults to those that wait for their POST.

        Raises:
            ConfigurationError: by the caller; a text names no fault.
        """
        self._faults.extend(parse(fault) if isinstance(fault, str) else fault for fault in faults)
        if self._web is not None:
            self._refuse_if_next()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` capacity; it is asked whenever something happens here."""
        while not condition():
            await self._changed.wait()

    async def wait_disconnected(self, count: int = 1) -> None:
        """Wait until clients have left `count` requests before their answer was over."""
        await self.wait_until(
            lambda: sum(seen.outcome == "disconnected" for seen in self.requests) >= count
        )

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- a request ----------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {contract.REQUEST_ID: uuid.uuid4().hex, "Server": "elkimg-local"}
        if not request.keep_alive:
            headers["Connection"] = "close"
        shown = {name.lower(): value for name, value in request.headers.items()}
        if "authorization" in shown:
            shown["authorization"] = "Bearer …"
        seen = ReceivedRequest(
            method=request.method,
            path=request.path,
            headers=shown,
            request_id=headers[contract.REQUEST_ID],
        )
        self.requests.append(seen)
        self._notify()
        ended = True
        with self._watched(request, seen):
            script = await self._script(request, seen, headers)
            ended = await self._play(request, script)
            seen.outcome = "cut" if ended else "answered"
        return AlreadySentResponse(
            keep_alive=request.keep_alive and not ended and self._listener.listening
        )

    @contextlib.contextmanager
    def _watched(self, request: web.BaseRequest, seen: ReceivedRequest) -> Iterator[None]:
        """Know who is served, and see to it how it ended, whatever happens."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            yield
        except ConnectionError:
            seen.outcome = "disconnected"
        except asyncio.CancelledError:
            gone = request.transport is None or request.transport.is_closing()
            seen.outcome = "disconnected" if gone else "cut"
            raise
        finally:
            self._handlers.discard(task)
            if self._web is not None:
                self._refuse_if_next(request.protocol)
            self._notify()

    async def _script(
        self, request: web.BaseRequest, seen: ReceivedRequest, headers: dict[str, str]
    ) -> Iterator[Step]:
        """What to send: the contract's response, or what a fault makes of it."""
        try:
            body = await read(request)
            seen.fault = self._fault_for(request)
            parts = None
            if request.method == "POST" and request.path == EDITS_PATH:
                kind = request.headers.get("Content-Type", "")
                parts = await asyncio.to_thread(forms.parse, kind, body)
            seen.fields = _fields(body) if parts is None else forms.shown(parts)
            if seen.fault and not seen.fault.generates:
                return seen.fault.apply(ScriptedResponse(headers=headers))
            response = await self._respond(request, body, parts, seen, headers)
        except GatewayError as error:
            response = contract.error_response(error, headers)
        if request.method == "HEAD":
            response = msgspec.structs.replace(response, frames=())
        if request.version < (1, 1) and response.framing == "chunked":
            response = msgspec.structs.replace(response, framing="close")
        return seen.fault.apply(response) if seen.fault else steps(response)

    async def _respond(
        self,
        request: web.BaseRequest,
        body: bytes,
        parts: list[forms.Part] | None,
        seen: ReceivedRequest,
        headers: dict[str, str],
    ) -> ScriptedResponse:
        path = request.path.rstrip("/")
        if content := self._images.get(path):
            return contract.image_response(content, path.rpartition(".")[2], headers)
        if path != "/v1" and not path.startswith("/v1/"):
            return contract.page_response(headers)
        contract.check_key(request.headers, self.api_key)
        match request.method, path:
            case ("GET" | "HEAD", "/v1/models"):
                return contract.models_response(headers)
            case "POST", "/v1/images/generations" | "/v1/images/edits":
                allowed, limits = self._bucket.take(time.monotonic())
                headers.update(limits)
                if not allowed:
                    raise GatewayError(429, "Too many requests in this minute")
                parsed = (
                    contract.parse_generation(body) if parts is None else forms.parse_edit(parts)
                )
                result = await self._result(parsed, body, seen, headers)
                form = seen.fault.stream if seen.fault else None
                stream = parsed.stream if form is None else form
                return contract.success_response(
                    parsed, result, headers, stream=stream, delay=self._delay
                )
        raise contract.missing(request.method, path)

    # --- what is made -------------------------------------------------------

    async def _result(
        self, parsed: ParsedRequest, body: bytes, seen: ReceivedRequest, headers: dict[str, str]
    ) -> GeneratedImages:
        """Make it, or give what was made for the same Idempotency-Key.

        The making goes on when the client leaves, as it does at a real service.
        """
        key = seen.headers.get("idempotency-key")
        fingerprint = hashlib.sha256(body).digest()
        known = self._kept.get(key) if key else None
        if known is None:
            known = _Generation(fingerprint, self._spawn(self._make(parsed)), seen)
            if key:
                self._kept[key] = known
                _trim(self._kept, _KEPT_LIGHT if self._light else _KEPT_GENERATIONS)
        elif known.fingerprint != fingerprint:
            raise contract.reused_key()
        elif known.seen.outcome == "open" or not known.task.done():
            raise contract.key_in_flight()
        else:
            known.seen = seen
            headers["Idempotent-Replayed"] = "true"
        return await asyncio.shield(known.task)

    async def _make(self, parsed: ParsedRequest) -> GeneratedImages:
        make: Callable[[ImageSpec], PaintedImage] = paint
        if isinstance(parsed.request, EditRequest):
            canvas = await asyncio.to_thread(
                decode_inputs, parsed.request, parsed.width, parsed.height
            )
            make = functools.partial(paint_edit, canvas)
        self.generations += 1
        self._notify()
        specs = [
            ImageSpec(
                prompt=parsed.request.prompt,
                index=index,
                width=parsed.width,
                height=parsed.height,
                output_format=parsed.output_format,
                compression=parsed.compression,
                transparent=parsed.transparent,
                partial_images=0 if index else parsed.partial_images,
                light=self._light,
            )
            for index in range(parsed.n)
        ]
        pictures = await asyncio.gather(*(asyncio.to_thread(make, spec) for spec in specs))
        images = tuple(picture.image for picture in pictures)
        return GeneratedImages(
            created=int(time.time()),
            images=images,
            partials=pictures[0].partials,
            urls=tuple(self._published(image, parsed) for image in images) if parsed.by_url else (),
        )

    def _published(self, image: bytes, parsed: ParsedRequest) -> str:
        path = f"/images/{hashlib.sha256(image).hexdigest()[:32]}.{parsed.output_format}"
        self._images[path] = image
        _trim(self._images, _KEPT_IMAGES)
        return self._listener.origin + path

    # --- what goes wrong ----------------------------------------------------

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
            left = None if fault.times is None else fault.times - 1
            self._faults.appendleft(msgspec.structs.replace(fault, times=left))
        return fault

    def _refuse_if_next(self, spared: RequestHandler | None = None) -> bool:
        """Stop listening where the next fault is `refuse`: its POST must not even arrive."""
        if not self._faults or self._faults[0].name != "refuse":
            return False
        self._stop_listening(self._next_fault().value(), spared)
        return True

    def _stop_listening(self, seconds: float | None, spared: RequestHandler | None = None) -> None:
        assert self._web is not None
        self._listener.pause()
        self._web.abort(spared)
        if seconds is not None:
            self._spawn(self._resume_listening(seconds))

    async def _resume_listening(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._web is not None and not self._listener.listening and not self._refuse_if_next():
            await self._listener.open(self._web)
        self._notify()

    def _spawn(self, coroutine: "Coroutine[Any, Any, Any]") -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _play(self, request: web.BaseRequest, script: Iterator[Step]) -> bool:
        """Write; returns whether the connection has been ended."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError
        # So that what was drained has left the process; TLS never resumes from a limit of 0.
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
                case End.HOLD:
                    await asyncio.get_running_loop().create_future()
        return False


# --- what the server is made of ---------------------------------------------


class _Generation(msgspec.Struct):
    """What is made for one body, and the request that is or was answered with it."""

    fingerprint: bytes
    task: "asyncio.Task[GeneratedImages]"
    seen: ReceivedRequest


class _RequestBucket:
    """A bucket of requests, full at first, that fills evenly."""

    def __init__(
        self, per_minute: float, *, burst: int | None, send_headers: bool, now: float
    ) -> None:
        self.per_minute, self._burst, self._send_headers = per_minute, burst, send_headers
        self._tokens, self._at = float(self._capacity), now

    @property
    def _capacity(self) -> int:
        return max(1, int(self.per_minute)) if self._burst is None else self._burst

    def change(self, per_minute: float, now: float) -> None:
        """Fill at another rate from now on."""
        self._fill(now)
        self.per_minute = per_minute

    def take(self, now: float) -> tuple[bool, dict[str, str]]:
        """Whether one more may come, and the headers that tell what is left."""
        self._fill(now)
        allowed = self._tokens >= 1.0
        if allowed:
            self._tokens -= 1.0
        if not self._send_headers:
            return allowed, {}
        capacity, second = self._capacity, self.per_minute / _MINUTE
        headers = contract.rate_limit_headers(
            capacity, int(self._tokens), (capacity - self._tokens) / second
        )
        if not allowed:
            headers["retry-after-ms"] = str(math.ceil((1.0 - self._tokens) / second * 1000))
        return allowed, headers

    def _fill(self, now: float) -> None:
        flown = (now - self._at) * self.per_minute / _MINUTE
        self._tokens, self._at = min(float(self._capacity), self._tokens + flown), now


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _trim(kept: "OrderedDict[str, Any]", most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
