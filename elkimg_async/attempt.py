"""`Attempt`: one try of a call, from its permit to the last byte of its response.

Each try has an object of its own, so no state has to be reset between tries.
"""

import contextlib
import time
from typing import Any, Generic

import msgspec

from elkimg_async import hooks
from elkimg_async.config import TimeoutLimits
from elkimg_async.credentials import Secret, resolve_api_key
from elkimg_async.errors import (
    ConfigurationError,
    ElkImagesError,
    NetworkError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
)
from elkimg_async.ratelimit.limiter import Permit
from elkimg_async.sansio.decoder import ImageEvent, SkippedEvent
from elkimg_async.sansio.encode import HTTPRequest
from elkimg_async.sansio.endpoints import Decoder, Endpoint, ResultT
from elkimg_async.sansio.error_mapping import response_error
from elkimg_async.sansio.headers import content_length, cost_header, rate_limit, request_id
from elkimg_async.sansio.responses import RateLimit
from elkimg_async.settings import Settings
from elkimg_async.transport.deadline import Deadline
from elkimg_async.transport.download import enable_download
from elkimg_async.transport.exchange import Exchange
from elkimg_async.transport.session import Transport

_MAX_ERROR_BODY = 64 * 1024 * 1024  # bytes: an error body may hold an image
_END_OF_BODY = 0.1  # seconds to wait for the end of the body after [DONE], to keep the connection


class Plan(msgspec.Struct, Generic[ResultT], frozen=True, kw_only=True):
    """Everything that the attempts of a call share.

    `prompt` is None, and `images` (the number of images requested) is 0, if the endpoint creates no
    images.
    """

    settings: Settings
    transport: Transport
    endpoint: Endpoint[ResultT]
    request: HTTPRequest
    idempotency_key: str | None
    stream: bool
    limits: TimeoutLimits
    prompt: str | None
    images: int
    observers: hooks.Observers


class Attempt(Generic[ResultT]):
    """One try of a call: `start`, then `next_event` until it returns None, and `close`."""

    def __init__(self, plan: Plan[ResultT], number: int) -> None:
        self._plan = plan
        self._number = number
        self._permit: Permit | None = None
        self._api_key: Secret | None = None
        self._exchange: Exchange | None = None
        self._decoder: Decoder[ResultT] | None = None
        self._error_body = bytearray()
        self._sent = self._body_ended = False
        self.first_byte = 0.0
        """Seconds from the start of the attempt to the headers of the response."""
        self.rate_limit: RateLimit | None = None
        """The rate-limit headers of the response; None if it has none."""
        self.delivered = False
        """Whether an event has reached the user, after which the call is not retried."""

    @property
    def count(self) -> int:
        """The number of attempts so far; one that is still queued does not count."""
        return self._number if self._sent else self._number - 1

    @property
    def status(self) -> int:
        """The HTTP status of the response; 0 before it has arrived."""
        return self._exchange.status if self._exchange else 0

    @property
    def request_id(self) -> str | None:
        """The server's id of the request; None if the response has none."""
        named = request_id(self._exchange.headers) if self._exchange else None
        return named if self._api_key is None else self._api_key.redact(named)

    @property
    def cost_header(self) -> str | None:
        """The header in which the server reports the cost; None if the response has none."""
        return cost_header(self._exchange.headers) if self._exchange else None

    # --- sending --------------------------------------------------------------

    async def start(self, deadline: Deadline) -> None:
        """Wait for a permit, send the request, and check the status of the response.

        Raises:
            APIError: If the status is not 2xx.
            NetworkError: If no response arrives.
            ConfigurationError: If there is no API key, or the client is closed.
        """
        plan, settings, limits = self._plan, self._plan.settings, self._plan.limits
        # Waiting for a permit is not yet an attempt: it sends nothing, and `count` leaves it out.
        plan.transport.check_open()
        permit = self._permit = settings.limiter.reserve(plan.images)
        if permit.started is None:
            await settings.limiter.wait(permit, remaining=deadline.remaining)
        self._sent = True
        started = time.monotonic()
        plan.observers.notify(hooks.AttemptStarted, attempt=self._number)
        # The API key is requested only now, since a short-lived one could expire in the queue. The
        # user's function is under the first-byte limit, as it could wait forever.
        deadline.allow("first_byte", limits.first_byte)
        self._api_key = await resolve_api_key(settings.api_key)
        exchange = self._exchange = plan.transport.exchange(
            settings.url(plan.request.path),
            plan.request,
            api_key=self._api_key,
            connect=limits.connect,
        )
        await exchange.open(deadline, first_byte=limits.first_byte, idle=limits.idle)
        self.first_byte = time.monotonic() - started
        self.rate_limit = rate_limit(exchange.headers, time.time())
        plan.observers.notify(
            hooks.ResponseStarted,
            attempt=self._number,
            status=exchange.status,
            request_id=self.request_id,
            first_byte=self.first_byte,
        )
        if not 200 <= exchange.status < 300:
            # Kept as it arrives: if the connection breaks, `fail` reports the status and this much.
            deadline.allow("idle", limits.idle)
            while len(self._error_body) < _MAX_ERROR_BODY and (chunk := await exchange.read()):
                self._error_body += chunk
            raise self._error_status(exchange)
        settings.limiter.succeeded(permit, self.rate_limit)
        self._decoder = plan.endpoint.decoder(
            stream=plan.stream,
            max_bytes=settings.limits.max_response_bytes,
            length=content_length(exchange.headers),
            content_type=exchange.headers.get("content-type", ""),
        )

    # --- receiving ------------------------------------------------------------

    @property
    def has_event(self) -> bool:
        """Whether `take_event` returns an event without waiting and without raising."""
        decoder = self._decoder
        return decoder is not None and len(decoder.events) > 0 and decoder.failure is None

    def take_event(self) -> ImageEvent | None:
        """Return the next decoded event, or None when more of the body is needed.

        Raises:
            ElkImagesError: If the body is not a valid response.
        """
        plan = self._plan
        assert self._decoder is not None
        while (event := self._decoder.next_event()) is not None:
            if isinstance(event, SkippedEvent):
                plan.observers.notify(hooks.EventSkipped, type=event.type, reason=event.reason)
                continue
            if event.image.url is not None:
                enable_download(event.image, plan.transport, plan.settings)
            if plan.prompt is not None:
                event.image.describe_with(plan.prompt)
            self.delivered = True
            plan.observers.notify(hooks.EventReceived, event=event)
            return event
        return None

    async def next_event(self, deadline: Deadline) -> ImageEvent | None:
        """Return the next partial or completed image, or None when the response is complete.

        Raises:
            ElkImagesError: If the body breaks off or is not a valid response.
        """
        exchange, decoder, limits = self._exchange, self._decoder, self._plan.limits
        assert decoder is not None
        deadline.allow("idle", limits.idle)
        while (event := self.take_event()) is None:
            if self._body_ended or exchange is None:
                return None
            chunk = await exchange.read()
            # `feed` returns False for pings, which do not start the idle limit again.
            if chunk and (decoder.feed(chunk) or limits.pings_count):
                deadline.allow("idle", limits.idle)
            # The end is an empty chunk, or [DONE] on a connection that stays open, or the last
            # byte of a body whose length is known, which spares another wait.
            if not chunk or decoder.done or exchange.at_end:
                self._end_body()
        return event

    def result(self) -> ResultT:
        """Return the complete response."""
        assert self._decoder is not None
        return self._decoder.response()

    def is_complete_despite(self, failure: ElkImagesError) -> bool:
        """Return whether the response was complete before the rest of its body failed."""
        if not isinstance(failure, (NetworkError, ResponseError)) or self._decoder is None:
            return False
        if self._decoder.failure is None:
            self._end_body()
        return self._decoder.failure is None

    def _end_body(self) -> None:
        assert self._decoder is not None
        self._body_ended = True
        self._decoder.finish()

    # --- ending ---------------------------------------------------------------

    async def finish(self) -> None:
        """Read the rest of the body if that is quick, so that the connection can be reused."""
        exchange = self._exchange
        try:
            if exchange is not None and not exchange.at_end:
                with contextlib.suppress(ElkImagesError), Deadline(_END_OF_BODY):
                    while await exchange.read():
                        pass
        finally:
            self.close()

    def close(self) -> None:
        """Release the connection and the permit at once; idempotent."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        if self._permit is not None:
            self._plan.settings.limiter.release(self._permit)
            self._permit = None

    def fail(self, failure: ElkImagesError) -> ElkImagesError:
        """Close the attempt, and return the failure with everything known about it.

        An error status that has arrived takes precedence over the connection that broke afterwards.
        """
        # First the failure is replaced, then completed. The permit and the exchange, which have
        # what is added, are released last.
        plan, exchange = self._plan, self._exchange
        if exchange is not None and self.status and self._decoder is None:
            if isinstance(failure, NetworkError):
                failure = self._error_status(exchange)
            elif isinstance(failure, ConfigurationError):  # the client was closed
                failure.billing = self._error_status(exchange).billing
        if isinstance(failure, RateLimitError) and self._permit is not None:
            plan.settings.limiter.rate_limited(
                self._permit, retry_after=failure.retry_after, rate_limit=self.rate_limit
            )
        if exchange is not None:
            failure.locate(request_id(exchange.headers))
            if isinstance(failure, ResponseError) and exchange.status:
                failure.status = exchange.status
        # A time-out of the deadline, which knows the limit but not what was being waited for.
        if isinstance(failure, RequestTimeoutError) and failure.phase is None:
            failure.phase = exchange.phase if exchange else "connect" if self._sent else "queue"
            failure.billing = exchange.billing if exchange else "not_sent"
        # The decoder's own failure has the images of its body already.
        if self._decoder is not None and self._decoder.failure is not failure:
            self._decoder.attach_images(failure)
        for image in failure.images:
            if image.url is not None:
                enable_download(image, plan.transport, plan.settings)
        self.close()
        return failure

    def redact(self, failure: ElkImagesError) -> None:
        """Remove the API key from everything the failure holds."""
        # A server or a proxy may repeat the request's headers in its error message.
        if self._api_key is not None:
            fields: dict[str, Any] = self._api_key.redact(failure.__dict__)
            failure.__dict__.update(fields)
            failure.args = (failure.message,)
            if failure.__cause__ is not None:
                failure.__cause__.args = tuple(self._api_key.redact([*failure.__cause__.args]))

    def _error_status(self, exchange: Exchange) -> ElkImagesError:
        """Return the error for a status other than 2xx, from as much of its body as arrived."""
        body = bytes(self._error_body)
        return response_error(exchange.status, exchange.headers, body, now=time.time())
