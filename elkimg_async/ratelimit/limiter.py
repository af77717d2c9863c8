"""Rate and concurrency limiter shared by all calls of a client.

Every attempt reserves a permit here, in any event loop or thread, and starts in the order of the reservations. The head of
the queue starts when all of these allow it: the explicit `Limits` (token buckets and a number in flight), a
`Retry-After`, the rate-limit headers, and the pace that the controller learned from refusals.

Each operation takes constant time however many wait: only the head of the queue is looked at, and one
timer, in the head's event loop, wakes it.
"""

import asyncio
import math
import os
import threading
import time
import weakref
from collections import OrderedDict, deque

from elkimg_async.errors import ConfigurationError, RequestTimeoutError
from elkimg_async.ratelimit.controller import MAX_PAUSE, Controller, HeaderLimits
from elkimg_async.ratelimit.token_bucket import TokenBucket
from elkimg_async.sansio.responses import RateLimit

_clock = time.monotonic
_limiters: "weakref.WeakSet[Limiter]" = weakref.WeakSet()


class Permit:
    """The place of one attempt in the queue, then among those in flight.

    `started` is the time of its start, None while it waits; `number` counts the starts of the limiter.
    """

    __slots__ = ("number", "started", "waiter", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.number = 0
        self.started: float | None = None
        self.waiter: asyncio.Future[None] | None = None


class Limiter:
    """`reserve`, then `wait` if necessary; `succeeded` or `rate_limited`; and always `release`.

    Args:
        max_concurrency: Attempts in flight. None: no limit.
        requests_per_minute: Starts in any 60 seconds, never exceeded by more than one. None: no limit.
        images_per_minute: The same for images. A request of several images may exceed it after a
            quiet moment, and later ones wait longer. None: no limit.
    """

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        requests_per_minute: float | None = None,
        images_per_minute: float | None = None,
    ) -> None:
        self._max_in_flight = math.inf if max_concurrency is None else max_concurrency
        self._per_minute = requests_per_minute, images_per_minute
        self._reset()
        _limiters.add(self)

    def _reset(self) -> None:
        """Start empty; also in the child of a fork, where the slots and a held lock are the parent's."""
        self._buckets = [None if limit is None else TokenBucket(limit) for limit in self._per_minute]
        self._controller = Controller()
        self._headers = HeaderLimits()
        self._paused_until = -math.inf
        self._queue: OrderedDict[Permit, None] = OrderedDict()
        self._running: set[Permit] = set()
        self._released: deque[Permit] = deque()
        self._timer: tuple[asyncio.AbstractEventLoop, float] | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def rate(self) -> float:
        """Starts per second held to; `math.inf` while nothing limits them."""
        return self._controller.rate

    @property
    def waiting(self) -> int:
        """Number of permits in the queue."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Number of permits started and not released."""
        return len(self._running)

    def reserve(self, weight: int) -> Permit:
        """Join the queue; `started` of the permit is None if it has to `wait`.

        Args:
            weight: Number of images.

        Raises:
            ConfigurationError: If the client is closed.
        """
        if self._closed:
            raise _closed_error()
        permit = Permit(weight)
        with self._lock:
            now = _clock()
            if not self._queue and self._ready_at(permit, now) <= now:
                self._start(permit, now)
            else:
                permit.waiter = asyncio.get_running_loop().create_future()
                self._queue[permit] = None
                self._advance()
        self._settle()
        return permit

    async def wait(self, permit: Permit, *, timeout: float = math.inf) -> None:
        """Wait until a permit has started; release it if that fails.

        Args:
            permit: The permit.
            timeout: Seconds until the deadline of the call. A wait that cannot end before fails at once.

        Raises:
            ConfigurationError: If the client is closed.
            RequestTimeoutError: If the wait would certainly outlive `timeout`.
        """
        try:
            if permit.started is None and permit.waiter is not None and not self._closed:
                with self._lock:
                    now = _clock()
                    wait = self._earliest(permit, now) - now
                if wait > timeout:
                    raise RequestTimeoutError(
                        f"The rate limit allows no request for {wait:.1f} s, longer than the rest of the time limit. "
                        "Wait, or raise the total limit.",
                        limit="total",
                        phase="queue",
                        billing="not_sent",
                    )
                await permit.waiter
            if self._closed:
                raise _closed_error()
        except BaseException:
            self.release(permit)
            raise

    def succeeded(self, permit: Permit, rate_limit: RateLimit | None = None) -> None:
        """Record a successful response and its rate-limit headers."""
        with self._lock:
            if permit.started is not None and permit in self._running:
                self._controller.succeeded()
                if rate_limit is not None:
                    self._headers.succeeded(permit.number, permit.started, rate_limit)
            self._advance()
        self._settle()

    def rate_limited(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        """Record a 429 about the rate, which slows all calls.

        Args:
            permit: The permit of the attempt.
            retry_after: Seconds that the server asks to wait. None: not stated.
            rate_limit: The rate-limit headers. None: none.
        """
        with self._lock:
            if permit.started is not None and permit in self._running:
                now = _clock()
                pause = min(max(0.0, retry_after or 0.0), MAX_PAUSE)
                self._paused_until = max(self._paused_until, now + pause)
                self._controller.rate_limited(permit.number, pause)
                if rate_limit is not None:
                    self._headers.rate_limited(permit.number, permit.started, rate_limit)
            self._advance()
        self._settle()

    def release(self, permit: Permit) -> None:
        """Return the slot, or leave the queue; a second time does nothing."""
        self._released.append(permit)
        self._settle()

    def close(self) -> None:
        """Fail everything that waits or comes later; a second time does nothing."""
        self._closed = True
        with self._lock:
            for permit in self._queue:
                self._wake(permit)
            self._queue.clear()
        self._settle()

    def _settle(self) -> None:
        """Handle released permits, unless the holder of the lock will.

        A dropped stream is released by the garbage collector, in any thread and at any place, even
        inside this module with the lock held. Waiting for the lock there could deadlock.
        """
        while self._released and self._lock.acquire(blocking=False):
            try:
                self._advance()
            finally:
                self._lock.release()

    def _advance(self) -> None:
        """Start what may start, and set the timer for the next; the lock is held."""
        while True:
            while self._released:
                permit = self._released.popleft()
                self._running.discard(permit)
                self._queue.pop(permit, None)
            if not self._queue:
                return
            now, head = _clock(), next(iter(self._queue))
            when = self._ready_at(head, now)
            if when <= now:
                del self._queue[head]
                self._start(head, now)
                self._wake(head)
            elif when == math.inf or self._set_timer(head, when, now):
                return

    def _ready_at(self, permit: Permit, now: float) -> float:
        if len(self._running) >= self._max_in_flight:
            return math.inf
        return max(
            self._earliest(permit, now),
            self._headers.ready_at(now, self._controller.starts),
            self._controller.ready_at(now, len(self._running)),
        )

    def _earliest(self, permit: Permit, now: float) -> float:
        """Return the time before which the permit cannot start, whatever else happens."""
        requests, images = self._buckets
        when = max(now, self._paused_until)
        if requests is not None:
            when = max(when, requests.ready_at(1, now))
        if images is not None:
            when = max(when, images.ready_at(permit.weight, now))
        return when

    def _start(self, permit: Permit, now: float) -> None:
        permit.number, permit.started = self._controller.started(now), now
        self._running.add(permit)
        for bucket, tokens in zip(self._buckets, (1, permit.weight), strict=True):
            if bucket is not None:
                bucket.acquire(tokens, now)

    def _wake(self, permit: Permit) -> None:
        waiter = permit.waiter
        assert waiter is not None
        try:
            if waiter.get_loop() is _running_loop():
                _set_result(waiter)
            else:
                waiter.get_loop().call_soon_threadsafe(_set_result, waiter)
        except RuntimeError:  # that loop is closed, and its task gone
            self._released.append(permit)

    def _set_timer(self, head: Permit, when: float, now: float) -> bool:
        """Have the loop of the head look again at `when`; False if that loop is closed."""
        assert head.waiter is not None
        loop, timer = head.waiter.get_loop(), self._timer
        if timer is not None and timer[0] is loop and now < timer[1] <= when:
            return True  # it fires early, and is set again then
        timer = self._timer = loop, when
        try:
            if loop is _running_loop():
                loop.call_later(when - now, self._on_timer, timer)
            else:
                loop.call_soon_threadsafe(loop.call_later, when - now, self._on_timer, timer)
        except RuntimeError:
            self._released.append(head)
            return False
        return True

    def _on_timer(self, timer: tuple[asyncio.AbstractEventLoop, float]) -> None:
        with self._lock:
            if self._timer is timer:
                self._timer = None
                self._advance()
        self._settle()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()  # noqa: SLF001


def _set_result(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _closed_error() -> ConfigurationError:
    return ConfigurationError("The client is closed. Create a new one.")


def _reset_all() -> None:
    for limiter in list(_limiters):
        limiter._reset()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
