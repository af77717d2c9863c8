"""`Call`: one logical call of the client, with its deadline, its attempts and its result."""

import asyncio
import hashlib
import itertools
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from elkimg_async import hooks, logs
from elkimg_async.attempt import Attempt, Plan
from elkimg_async.errors import (
    APIError,
    Billing,
    ElkImagesError,
    InvalidRequestError,
    RequestTimeoutError,
)
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.endpoints import Endpoint, ResultT
from elkimg_async.sansio.headers import check_headers, merge, take_idempotency_key, with_headers
from elkimg_async.sansio.model_rules import validate
from elkimg_async.sansio.pricing import Cost, cost_of
from elkimg_async.sansio.requests import DEFAULT_MODEL, ImageRequest
from elkimg_async.sansio.responses import Meta
from elkimg_async.sansio.retry import decide
from elkimg_async.settings import Settings
from elkimg_async.transport.deadline import Deadline
from elkimg_async.transport.session import Transport

T = TypeVar("T")
_numbers = itertools.count(1)


class Call(Generic[ResultT]):
    """One call, batch or streaming: in both, a response is a sequence of events.

    `build` returns the request, and runs within the deadline of the call; it is None for an
    endpoint that takes no request. Once an event has been delivered, nothing is retried.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        endpoint: Endpoint[ResultT],
        build: Callable[[], Awaitable[ImageRequest]] | None = None,
        *,
        stream: bool = False,
        extra_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._endpoint = endpoint
        self._build = build
        self._stream = stream
        self._limits = settings.timeout.limits(stream=stream)
        self._extra_headers = extra_headers
        self._number = next(_numbers)
        self._warning_site = logs.WarningSite() if settings.validate == "warn" else None
        observers = settings.hooks
        if hooks.logger.isEnabledFor(logging.INFO):
            observers = (logs.CallLog(), *observers)
        self._observers = hooks.Observers(observers, self._number)
        self._started = 0.0
        self._deadline: Deadline | None = None
        self._plan: Plan[ResultT] | None = None
        self._attempt: Attempt[ResultT] | None = None
        self._attempts = 0
        self._request: ImageRequest | None = None
        self._outcome_unknown = False
        self._response: ResultT | None = None
        self._finished = False

    # --- reading the response -------------------------------------------------

    async def open(self) -> None:
        """Send the request until a response begins with status 2xx, or raise."""
        await self._run(self._read_nothing)

    def ready_event(self) -> ImageEvent | None:
        """Return the next event if it has been decoded already, else None."""
        attempt = self._attempt
        return attempt.take_event() if attempt is not None and attempt.has_event else None

    async def next_event(self) -> ImageEvent | None:
        """Return the next partial or completed image, or None when the response is complete."""
        return await self._run(self._next_event)

    async def result(self) -> ResultT:
        """Read the rest of the response, and return all of it."""
        return await self._run(self._result)

    def abort(self) -> None:
        """Close the connection, unless the response has been read to its end; idempotent."""
        if self._attempt is not None:
            self._attempt.close()
        self._finish()

    # --- the retry loop -------------------------------------------------------

    # Opening, reading one event and reading everything are the same loop, so that a failure can be
    # retried wherever it appears. What happens to a failure is decided outside of `with deadline`,
    # by code that does not wait: neither the timer nor a cancellation can interrupt it.

    async def _run(self, read: Callable[[Attempt[ResultT], Deadline], Awaitable[T]]) -> T:
        """Read from the current attempt, and start another one where a retry is allowed."""
        deadline, in_flight = self._start(), self._transport.in_flight
        # The billing of a call that is ended by closing the client is that of its exchange, which
        # registers itself. This entry, around it, is for the time before and between exchanges.
        in_flight.add(deadline, self._billing_without_exchange, outermost=True)
        delay = 0.0
        try:
            while True:
                try:
                    with deadline:
                        if delay:
                            await asyncio.sleep(delay)
                        return await read(await self._current_attempt(deadline), deadline)
                except ElkImagesError as error:
                    failure = error
                except BaseException as error:  # cancelled, or an error in the user's code
                    self._abandon(error)
                    raise
                # Servers reset connections, or end them short of the announced length, after the
                # last event. The next pass then finds the end of the response.
                if self._attempt is not None and self._attempt.is_complete_despite(failure):
                    delay = 0.0
                else:
                    delay = self._retry_or_raise(failure, deadline)
        finally:
            in_flight.remove(deadline, self._billing_without_exchange)

    def _billing_without_exchange(self) -> Billing:
        """Return the billing of a call that ends between two exchanges."""
        return "unknown" if self._outcome_unknown else "not_sent"

    def _start(self) -> Deadline:
        """Start the deadline of the call on first use."""
        if self._deadline is None:
            limits = self._limits
            self._deadline = Deadline(limits.total, soonest=limits.soonest)
            self._started = time.monotonic()
        return self._deadline

    async def _current_attempt(self, deadline: Deadline) -> Attempt[ResultT]:
        if self._attempt is None:
            if self._plan is None:
                self._plan = await self._prepare()
            self._attempt = Attempt(self._plan, self._attempts + 1)
            await self._attempt.start(deadline)
        return self._attempt

    async def _read_nothing(self, attempt: Attempt[ResultT], deadline: Deadline) -> None:
        """Read nothing: `open` waits only until a response has begun."""

    async def _next_event(self, attempt: Attempt[ResultT], deadline: Deadline) -> ImageEvent | None:
        event = await attempt.next_event(deadline)
        if event is None and not self._finished:
            if self._response is None:
                # Before `finish`, which closes the exchange and with it the response headers.
                self._response = self._complete(attempt)
                self._settings.budget.release()
            # If the total passes here, the loop comes back with the response already complete.
            await attempt.finish()
            self._finish(result=self._response)
        return event

    async def _result(self, attempt: Attempt[ResultT], deadline: Deadline) -> ResultT:
        while await self._next_event(attempt, deadline) is not None:
            pass
        assert self._response is not None
        return self._response

    def _retry_or_raise(self, failure: ElkImagesError, deadline: Deadline) -> float:
        """Return the seconds until the next attempt, or raise the failure."""
        delivered = False
        if (attempt := self._attempt) is not None:
            delivered = attempt.delivered
            failure = attempt.fail(failure)
            self._attempts = attempt.count
        elif isinstance(failure, RequestTimeoutError):  # while files were read, or before a retry
            failure.billing = self._billing_without_exchange()
        self._identify(failure)
        if attempt is not None:
            attempt.redact(failure)
        # After a retry, the user would see other partial images, or the same completed one twice.
        delay = None if delivered else self._retry_delay(failure, deadline)
        # The budget comes last, so that only real retries use it up.
        if delay is None or not self._settings.budget.acquire():
            self._settle_billing(failure)
            self._finish(error=failure)
            raise failure
        self._outcome_unknown = self._outcome_unknown or failure.billing == "unknown"
        self._attempt = None
        self._observers.notify(
            hooks.RetryScheduled, attempt=self._attempts, error=failure, delay=delay
        )
        return delay

    def _identify(self, failure: ElkImagesError) -> None:
        """Add to the failure which call it belongs to."""
        failure.attempts = self._attempts
        failure.idempotency_key = self._plan.idempotency_key if self._plan else None
        if isinstance(failure, APIError):
            request = self._request
            failure.model = None if request is None else request.model or DEFAULT_MODEL
        failure.__context__ = failure.__traceback__ = None  # their frames hold request headers

    def _retry_delay(self, failure: ElkImagesError, deadline: Deadline) -> float | None:
        settings = self._settings
        return decide(
            failure,
            policy=settings.retry,
            attempt=self._attempts,
            remaining=deadline.remaining,
            jitter=random.random(),  # noqa: S311
            replay=settings.idempotency == "replay" or not self._endpoint.creates_images,
        )

    def _settle_billing(self, failure: ElkImagesError) -> None:
        """Adjust the billing to the endpoint and to earlier attempts."""
        if not self._endpoint.creates_images:
            if failure.billing == "unknown":
                failure.billing = "not_sent"
        elif self._outcome_unknown and failure.billing in ("not_sent", "refused"):
            failure.billing = "unknown"  # an earlier attempt may have created the image

    # --- the request ----------------------------------------------------------

    async def _prepare(self) -> Plan[ResultT]:
        """Build, check and encode the request."""
        settings, endpoint = self._settings, self._endpoint
        # The headers are checked first: reading the files of an edit may take long.
        headers = merge(settings.headers, check_headers(self._extra_headers))
        request = None if self._build is None else await self._build()
        if request is not None:
            self._request = request
            logs.warn_of_shutdown(settings.shutdowns, request.model or DEFAULT_MODEL)
            self._validate(request)
        # One idempotency key for all attempts. One that the user sets is sent even with "off".
        idempotency_key = None
        if endpoint.creates_images:
            idempotency_key = take_idempotency_key(headers)
            if idempotency_key is None and settings.idempotency != "off":
                idempotency_key = os.urandom(16).hex()
        encoded = with_headers(
            endpoint.encode(
                request,
                stream=self._stream,
                idempotency_key=idempotency_key,
                boundary=_boundary(idempotency_key),
            ),
            headers,
        )
        self._observers.notify(
            hooks.RequestStarted,
            request=request,
            stream=self._stream,
            url=settings.base_url + encoded.path,
            method=encoded.method,
        )
        return Plan(
            settings=settings,
            transport=self._transport,
            endpoint=endpoint,
            request=encoded,
            idempotency_key=idempotency_key,
            stream=self._stream,
            limits=self._limits,
            prompt=None if request is None else request.prompt,
            images=0 if request is None else request.image_count,
            observers=self._observers,
        )

    def _validate(self, request: ImageRequest) -> None:
        if self._settings.validate == "off":
            return
        try:
            validate(request, stream=self._stream)
        except InvalidRequestError as error:
            if self._warning_site is None:
                raise
            self._warning_site.warn(str(error))

    # --- the end --------------------------------------------------------------

    def _complete(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return the complete response with its metadata."""
        assert self._plan is not None
        result: Any = attempt.result()
        cost = self._cost(result, attempt.cost_header)
        result.meta = Meta(
            request_id=attempt.request_id,
            status=attempt.status,
            attempts=attempt.count,
            elapsed=time.monotonic() - self._started,
            first_byte=attempt.first_byte,
            rate_limit=attempt.rate_limit,
            idempotency_key=self._plan.idempotency_key,
            cost=cost.amount if cost else None,
            currency=cost.currency if cost else None,
        )
        if len(result) < (images := self._plan.images):
            logs.warn_of_missing_images(self._number, images, len(result), attempt.request_id)
        return result  # type: ignore[no-any-return]

    def _cost(self, result: Any, cost_header: str | None) -> Cost | None:
        if self._request is None:
            return None
        try:
            return cost_of(
                *(self._settings.pricing, self._request, result.usage, len(result)),
                extra=result.extra,
                header=cost_header,
            )
        except Exception:  # noqa: BLE001 - from the user's function; the images are paid for
            hooks.logger.warning("the price function failed", exc_info=True)
            return None

    def _abandon(self, error: BaseException) -> None:
        """Release everything after a cancellation or an unexpected exception."""
        if self._attempt is not None:
            self._attempt.close()
        self._finish(error=error)
        if isinstance(error, asyncio.CancelledError):
            error.__traceback__ = None  # its frames hold the request's headers

    def _finish(self, result: ResultT | None = None, error: BaseException | None = None) -> None:
        """Notify the observers of the end of the call, once."""
        if self._started and not self._finished:
            self._finished = True
            elapsed = time.monotonic() - self._started
            self._observers.notify(
                hooks.RequestFinished, elapsed=elapsed, result=result, error=error
            )


def _boundary(idempotency_key: str | None) -> str:
    """Return a form boundary, derived from the idempotency key so that replays are identical."""
    if idempotency_key is None:
        return "elkimg-" + os.urandom(16).hex()
    seed = idempotency_key.encode("utf-8", "surrogatepass")
    return "elkimg-" + hashlib.sha256(seed).hexdigest()[:32]
