"""Rate and concurrency limiter shared by all calls of a client.

Attempts of any event loop or thread start in the order of their reservations. The head of the queue starts when
all of these allow it: the explicit `Limits`, a `Retry-After`, the rate-limit headers, and the controller's pace.
Each operation takes constant time however many wait: it looks at the head only, and one timer, in the head's
event loop, looks again.
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

_CLOSED = "The client is closed. Create a new one."
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

    A limit of None does not exist. In any 60 seconds `requests_per_minute` is exceeded by at most one. So is `images_per_minute`,
    unless a request of many images starts after a quiet moment; later ones then wait longer.
    """

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        requests_per_minute: float | None = None,
        images_per_minute: float | None = None,
    ) -> None:
        self._max_in_flight = math.inf if max_concurrency is None else max_concurrency
        self._per_minute = requests_per_minute or math.inf, images_per_minute or math.inf
        self._reset()
        _limiters.add(self)

    def _reset(self) -> None:
        """Start empty; also in the child of a fork, where the slots and a held lock are the parent's."""
        self._requests, self._images = map(TokenBucket, self._per_minute)
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
        """Join the queue with a request of `weight` images; `started` is None if it has to `wait`.

        Raises:
            ConfigurationError: If the client is closed.
        """
        if self._closed:
            raise ConfigurationError(_CLOSED)
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
        """Wait until a permit has started, or release it.

        Raises:
            ConfigurationError: If the client is closed.
            RequestTimeoutError: If it certainly cannot start within `timeout` seconds.
        """
        try:
            if permit.started is None and permit.waiter is not None and not self._closed:
                with self._lock:
                    now = _clock()
                    wait = self._earliest(permit, now) - now
                if wait > timeout:
                    raise RequestTimeoutError(
                        f"The rate limit allows no request for another {wait:.1f} s, beyond the total limit. "
                        "Try again later, or raise the limit.",
                        limit="total", phase="queue", billing="not_sent",
                    )  # fmt: skip
                await permit.waiter
            if self._closed:
                raise ConfigurationError(_CLOSED)
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
        self, permit: Permit, *, retry_after: float | None = None, rate_limit: RateLimit | None = None
    ) -> None:
        """Record a 429 about the rate: slow all calls, and pause them for `retry_after` seconds."""
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

        The garbage collector releases a dropped stream anywhere, even inside this module with the lock held.
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
        requests = self._requests.ready_at(1, now)
        return max(now, self._paused_until, requests, self._images.ready_at(permit.weight, now))

    def _start(self, permit: Permit, now: float) -> None:
        permit.number, permit.started = self._controller.started(now), now
        self._running.add(permit)
        self._requests.acquire(1, now)
        self._images.acquire(permit.weight, now)

    def _wake(self, permit: Permit) -> None:
        assert permit.waiter is not None
        try:
            permit.waiter.get_loop().call_soon_threadsafe(_set_result, permit.waiter)
        except RuntimeError:  # that loop is closed, and its task gone
            self._released.append(permit)

    def _set_timer(self, head: Permit, when: float, now: float) -> bool:
        """Have the loop of the head look again at `when`; False if that loop is closed."""
        assert head.waiter is not None
        loop, timer = head.waiter.get_loop(), self._timer
        if timer is not None and timer[0] is loop and now < timer[1] <= when:
            return True  # it fires early, and is set again then
        self._timer = loop, when
        try:
            loop.call_soon_threadsafe(loop.call_later, when - now, self._on_timer, self._timer)
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


def _set_result(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _reset_all() -> None:
    for limiter in list(_limiters):
        limiter._reset()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
