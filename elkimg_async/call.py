"""One call of the client: its attempts, its deadline, and the answer as it arrives."""

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from elkimg_async import hooks, logs
from elkimg_async.config import Secret, Settings, default_key, make_key
from elkimg_async.endpoints import AnswerT, Decoder, Endpoint
from elkimg_async.errors import (
    ConfigurationError,
    ElkImagesError,
    InvalidRequestError,
    NetworkError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
)
from elkimg_async.hooks import tell
from elkimg_async.ratelimit.limiter import Permit
from elkimg_async.sansio import encode, error_mapping
from elkimg_async.sansio.decoder import ImageEvent, SkippedEvent
from elkimg_async.sansio.headers import (
    check_headers,
    length,
    merge,
    rate_limit,
    request_id,
    take_key,
    with_headers,
)
from elkimg_async.sansio.model_rules import validate
from elkimg_async.sansio.requests import ImageRequest
from elkimg_async.sansio.responses import Meta, RateLimit
from elkimg_async.sansio.retry import decide
from elkimg_async.transport.deadline import Watchdog
from elkimg_async.transport.download import connect_image
from elkimg_async.transport.exchange import Exchange, Transport

_END_GRACE = 0.1  # seconds for the end of the body after [DONE], so that the connection can be kept
_MAX_ERROR_BODY = 1024 * 1024
T = TypeVar("T")
_numbers = itertools.count(1)


class Call(Generic[AnswerT]):
    """One call, batch or streaming: to both an answer is a sequence of events, and then whole.

    `open` and `next_event` take as many attempts as the policy allows; once an event was
    given, nothing is tried again.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        endpoint: Endpoint[AnswerT],
        *,
        stream: bool = False,
        extra_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._endpoint = endpoint
        self._extra_headers = extra_headers
        self._stream = stream
        self._limits = settings.stream_limits if stream else settings.batch_limits
        self._number = next(_numbers)
        self._caller = logs.Caller() if settings.validate == "warn" else None
        self._hooks = settings.hooks
        if logs.logger.isEnabledFor(logging.INFO):
            self._hooks = (logs.CallLog(), *settings.hooks)
        self._key: str | None = None
        self._secret: Secret | None = None
        self._request: encode.HTTPRequest | None = None
        self._watchdog: Watchdog | None = None
        self._exchange: Exchange | None = None
        self._weight = 1
        self._permit: Permit | None = None
        self._rate_limit: RateLimit | None = None
        self._decoder: Decoder[AnswerT] | None = None
        self._error_body = bytearray()
        self._started = self._attempt_started = self._first_byte = 0.0
        self._attempts = 0
        self._given = False
        self._unknown = False
        self._ended = False
        self._told_end = False
        self._meta: Meta | None = None

    async def open(self) -> None:
        """Send the request, and again where that is safe, until an answer begins well."""
        await self._advance(self._read_nothing)

    def ready_event(self) -> ImageEvent | None:
        """The next event if it is here already, without waiting."""
        decoder = self._decoder
        if decoder is None or not decoder.events or decoder.failure is not None:
            return None  # a failure goes through `_advance`, which redacts it and lets go
        return self._take_event(decoder)

    async def next_event(self) -> ImageEvent | None:
        """The next partial or completed image, or None when the answer is whole."""
        return await self._advance(self._read_event)

    async def drain(self) -> AnswerT:
        """Read what is left, and return the whole answer."""
        return await self._advance(self._read_all)

    def abort(self) -> None:
        """Leave the call: close the connection at once, unless its answer was read to the end."""
        self._let_go()
        self._tell_end()

    def _let_go(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        if self._permit is not None:
            self._settings.limiter.release(self._permit)
            self._permit = None

    async def _advance(self, read: Callable[[Decoder[AnswerT], Watchdog], Awaitable[T]]) -> T:
        """The one retry loop: as many attempts as it takes until `read` has what it wants of an answer."""
        while True:
            try:
                watchdog = self._start()
                with watchdog:
                    if self._request is None:
                        await self._prepare()
                    decoder = self._decoder or await self._attempt(watchdog)
                    return await read(decoder, watchdog)
            except ElkImagesError as error:
                failure = error
            except BaseException as error:
                self._let_go()
                self._tell_end(error=error)
                if isinstance(error, asyncio.CancelledError):
                    error.__traceback__ = None  # its frames hold the request's headers
                raise
            if isinstance(failure, NetworkError):
                if self._is_whole():
                    continue
                exchange = self._exchange
                if exchange is not None and exchange.status and self._decoder is None:
                    failure = self._refusal(exchange)
            await self._recover(failure)

    def _start(self) -> Watchdog:
        """Let the time of the call begin, once."""
        if self._watchdog is None:
            self._watchdog = Watchdog(self._limits.total, soonest=self._limits.soonest)
            self._started = time.monotonic()
        return self._watchdog

    async def _prepare(self) -> None:
        """Check and write the request."""
        settings, endpoint = self._settings, self._endpoint
        extra_headers = check_headers(self._extra_headers)
        request = await endpoint.request()
        self._weight = 0
        if request is not None:
            self._validate(request)
            self._weight = max(1, request.n or 1)
        headers = merge(settings.headers, extra_headers)
        if endpoint.paid:
            self._key = take_key(headers)
            if self._key is None and settings.idempotency != "off":
                self._key = os.urandom(16).hex()
        written = endpoint.write(request, stream=self._stream, key=self._key)
        self._request = with_headers(written, headers)
        if self._hooks:
            self._tell(
                hooks.RequestStarted,
                request=request,
                stream=self._stream,
                url=settings.base_url + self._request.path,
                method=self._request.method,
            )

    def _validate(self, request: ImageRequest) -> None:
        if self._settings.validate == "off":
            return
        try:
            validate(request, stream=self._stream)
        except InvalidRequestError as error:
            if self._settings.validate == "strict":
                raise
            if self._caller is not None:
                self._caller.warn(str(error))

    async def _attempt(self, watchdog: Watchdog) -> Decoder[AnswerT]:
        settings, limits = self._settings, self._limits
        assert self._request is not None
        self._transport.check_open()
        permit = self._permit = settings.limiter.reserve(self._weight)
        if permit.started is None:
            await settings.limiter.wait(permit, remaining=watchdog.remaining)
        self._attempts += 1
        self._attempt_started = time.monotonic()
        if self._hooks:
            self._tell(hooks.AttemptStarted, attempt=self._attempts)
        watchdog.allow("first_byte", limits.first_byte)
        key = settings.api_key
        self._secret = key if isinstance(key, Secret) else await self._ask_for_key(key)
        exchange = self._exchange = self._transport.exchange(
            settings.base_url + self._request.path,
            self._request,
            key=self._secret,
            connect=limits.connect,
        )
        await exchange.open(watchdog, first_byte=limits.first_byte, idle=limits.idle)
        self._first_byte = time.monotonic() - self._attempt_started
        if self._hooks:
            self._tell(
                hooks.ResponseStarted,
                attempt=self._attempts,
                status=exchange.status,
                request_id=self._request_id(exchange),
                first_byte=self._first_byte,
            )
        self._rate_limit = rate_limit(exchange.headers)
        if not 200 <= exchange.status < 300:
            watchdog.allow("idle", limits.idle)
            while len(self._error_body) < _MAX_ERROR_BODY and (chunk := await exchange.read()):
                self._error_body += chunk
            raise self._refusal(exchange)
        settings.limiter.succeeded(permit, self._rate_limit)
        max_bytes = settings.limits.max_response_bytes
        self._decoder = self._endpoint.decoder(
            stream=self._stream, max_bytes=max_bytes, length=length(exchange.headers)
        )
        return self._decoder

    async def _ask_for_key(self, key: Callable[[], Awaitable[str]] | None) -> Secret:
        if key is None:
            return default_key()
        try:
            promised = key()
            if not inspect.isawaitable(promised):
                raise ConfigurationError("api_key must be a string or an async function.")
            return make_key(await promised)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            problem = "was cancelled from within; it gave no key"
        except ElkImagesError:
            raise
        except Exception as error:  # noqa: BLE001 - the caller's own, whose text may hold the key
            problem = f"failed with {type(error).__name__}; mend it"
        raise ConfigurationError(f"The function for the API key {problem}.")

    def _request_id(self, exchange: Exchange) -> str | None:
        named = request_id(exchange.headers)
        return named if self._secret is None else self._secret.redact(named)

    def _refusal(self, exchange: Exchange) -> ElkImagesError:
        """What an answer other than 2xx means, as far as it came."""
        body = bytes(self._error_body[:_MAX_ERROR_BODY])
        return error_mapping.read_error(exchange.status, exchange.headers, body, now=time.time())

    async def _read_nothing(self, decoder: Decoder[AnswerT], watchdog: Watchdog) -> None:
        """What `open` wants of an answer: that it is there."""

    async def _read_event(self, decoder: Decoder[AnswerT], watchdog: Watchdog) -> ImageEvent | None:
        exchange, limits = self._exchange, self._limits
        watchdog.allow("idle", limits.idle)
        while (event := self._take_event(decoder)) is None:
            if self._ended or exchange is None:
                await self._finish(decoder)
                break
            chunk = await exchange.read()
            if chunk and (decoder.feed(chunk) or limits.pings_count):
                watchdog.allow("idle", limits.idle)
            if not chunk or decoder.done or exchange.at_end:
                self._ended = True
                decoder.finish()
        return event

    async def _read_all(self, decoder: Decoder[AnswerT], watchdog: Watchdog) -> AnswerT:
        while await self._read_event(decoder, watchdog) is not None:
            pass
        response = decoder.response()
        assert self._meta is not None
        response.meta = self._meta
        return response

    def _take_event(self, decoder: Decoder[AnswerT]) -> ImageEvent | None:
        while (event := decoder.next_event()) is not None:
            if isinstance(event, SkippedEvent):
                self._tell(hooks.EventSkipped, type=event.type, reason=event.reason)
                continue
            if event.image.url is not None:
                connect_image(event.image, self._transport, self._settings)
            self._given = True
            if self._hooks:
                self._tell(hooks.EventReceived, event=event)
            return event
        return None

    def _is_whole(self) -> bool:
        """Whether the answer was complete before the connection failed, so that nothing is lost."""
        if self._decoder is None or self._decoder.failure is not None:
            return False
        self._ended = True
        self._decoder.finish()
        return self._decoder.failure is None

    async def _finish(self, decoder: Decoder[AnswerT]) -> None:
        """Note what is known of the exchange, and give the connection back."""
        if self._meta is not None:
            return
        exchange = self._exchange
        assert exchange is not None
        self._settings.budget.give_back()
        self._meta = Meta(
            request_id=self._request_id(exchange),
            status=exchange.status,
            attempts=self._attempts,
            elapsed=time.monotonic() - self._started,
            first_byte=self._first_byte,
            rate_limit=self._rate_limit,
            idempotency_key=self._key,
        )
        try:
            if not exchange.at_end:
                with contextlib.suppress(NetworkError), Watchdog(_END_GRACE):
                    while await exchange.read():
                        pass
        finally:
            self._let_go()
        if self._hooks or self._weight > 1:
            result: Any = decoder.response()
            if len(result) < self._weight:
                logs.warn_of_missing(self._number, self._weight, len(result), self._meta.request_id)
            self._tell_end(result=result)

    async def _recover(self, failure: ElkImagesError) -> None:
        """Wait until the next attempt, or raise the failure."""
        self._complete(failure)
        self._tell_limiter(failure)
        self._let_go()
        policy, paid = self._settings.retry, self._endpoint.paid
        remaining = self._watchdog.remaining if self._watchdog else 0.0
        delay = None
        if not self._given:
            delay = decide(
                failure,
                policy=policy,
                attempt=self._attempts,
                remaining=remaining,
                jitter=random.random(),  # noqa: S311
                replay=self._settings.idempotency == "replay" or not paid,
            )
        self._unknown = self._unknown or failure.billing == "unknown"
        if delay is None or not self._settings.budget.take():
            if not paid and failure.billing == "unknown":
                failure.billing = "not_sent"
            elif paid and self._unknown and failure.billing in ("not_sent", "refused"):
                failure.billing = "unknown"  # an earlier attempt may have made it
            self._tell_end(error=failure)
            raise failure
        self._decoder = None
        self._error_body.clear()
        self._ended = False
        self._tell(hooks.RetryScheduled, attempt=self._attempts, error=failure, delay=delay)
        try:
            await asyncio.sleep(delay)
        except BaseException as error:
            self._tell_end(error=error)
            raise

    def _tell_limiter(self, failure: ElkImagesError) -> None:
        """Record a 429 about the rate; any other failure concerns its own call only."""
        if self._permit is not None and isinstance(failure, RateLimitError):
            self._settings.limiter.rate_limited(
                self._permit, retry_after=failure.retry_after, rate_limit=self._rate_limit
            )

    def _complete(self, failure: ElkImagesError) -> None:
        """Add to a failure what only the call knows, and take from it what nobody may see."""
        failure.__context__ = failure.__traceback__ = None
        failure.attempts = self._attempts
        exchange = self._exchange
        if exchange is not None:
            failure.locate(request_id(exchange.headers))
            if isinstance(failure, ResponseError) and exchange.status:
                failure.status = exchange.status
        if isinstance(failure, RequestTimeoutError) and failure.phase is None:
            queued = self._permit is not None and self._permit.started is None
            failure.phase = exchange.phase if exchange else "queue" if queued else "connect"
            failure.billing = exchange.billing if exchange else "not_sent"
        if self._secret is not None:
            failure.__dict__.update(self._secret.redact(failure.__dict__))
            failure.args = (failure.message,)

    def _tell_end(self, result: AnswerT | None = None, error: BaseException | None = None) -> None:
        if self._started and not self._told_end:
            self._told_end = True
            elapsed = time.monotonic() - self._started
            self._tell(hooks.RequestFinished, elapsed=elapsed, result=result, error=error)

    def _tell(self, record: type[hooks.Record], **fields: Any) -> None:
        tell(self._hooks, record(call=self._number, **fields))
