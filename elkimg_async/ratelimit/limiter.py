"""Rate and concurrency limiter shared by all calls of a client.

Attempts of all event loops start in the order of their reservations. Each operation takes constant
time: it checks the head of the queue, and one timer in the head's loop checks it again.
"""

import asyncio
import math
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from elkimg_async.errors import ConfigurationError, RequestTimeoutError
from elkimg_async.ratelimit.controller import MAX_PAUSE, Controller, HeaderLimits
from elkimg_async.ratelimit.token_bucket import TokenBucket
from elkimg_async.sansio.responses import RateLimit

TIMER_PRECISION = 0.001  # seconds: epoll rounds timers up to it, a bucket of one loses as much
_CLOSED = "The client is closed. Create a new one."
_limiters: "weakref.WeakSet[Limiter]" = weakref.WeakSet()


class Permit(msgspec.Struct, eq=False):
    """The place of one attempt in the queue, then among those in flight."""

    weight: int
    number: int = 0  # its number among all starts of the limiter
    started: float | None = None  # the time of its start; None while it waits
    loop: Any = None  # the event loop of the task that waits
    turn: Any = None  # the `asyncio.Event` that the task waits for


class Limiter:
    """Rate and concurrency limiter.

    Call `reserve`, then `wait` if necessary, then `succeeded` or `rate_limited`, and always
    `release`. In any 60 seconds `requests_per_minute` is exceeded by at most one. A request for
    many images may exceed `images_per_minute` after a quiet moment; later ones then wait longer.
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
        """Set the initial state, also in the child of a fork, where slots and lock are stale."""
        self._requests, self._images = map(TokenBucket, self._per_minute)
        self._controller, self._headers = Controller(), HeaderLimits()
        self._paused_until = self._polled_at = -math.inf
        self._queue: OrderedDict[Permit, None] = OrderedDict()
        self._running: set[Permit] = set()
        self._released: deque[Permit] = deque()
        self._timer: tuple[asyncio.AbstractEventLoop, float] | None = None
        self._lock, self._closed = threading.Lock(), False

    @property
    def rate(self) -> float:
        """The current pace in starts per second; `math.inf` while nothing limits them."""
        return self._controller.rate

    @property
    def waiting(self) -> int:
        """The number of permits in the queue."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """The number of permits started and not released."""
        return len(self._running)

    def reserve(self, weight: int) -> Permit:
        """Join the queue with a request of `weight` images; `wait` if `started` is None."""
        if self._closed:
            raise ConfigurationError(_CLOSED)
        permit = Permit(weight)
        with self._lock:
            if self._queue or self._ready_at(permit, now := time.monotonic()) > now:
                permit.loop, permit.turn = asyncio.get_running_loop(), asyncio.Event()
            self._queue[permit] = None
            self._advance()
        self._settle()
        return permit

    async def wait(self, permit: Permit, *, remaining: float = math.inf) -> None:
        """Wait until a permit has started; on failure the permit is released.

        Raises:
            ConfigurationError: If the client is closed.
            RequestTimeoutError: If it cannot start within `remaining` seconds.
        """
        try:
            if permit.started is None and permit.turn is not None and not self._closed:
                with self._lock:
                    wait = self._earliest(permit, now := time.monotonic()) - now
                if wait > remaining:
                    msg = f"The rate limit holds for {wait:.1f} s, beyond the total limit."
                    raise RequestTimeoutError(msg, limit="total", phase="queue", billing="not_sent")
                await permit.turn.wait()
            if self._closed:
                raise ConfigurationError(_CLOSED)
        except BaseException:
            self.release(permit)
            raise

    def succeeded(self, permit: Permit, rate_limit: RateLimit | None = None) -> None:
        """Record a successful response and its rate-limit headers."""
        self._record(permit, rate_limit or RateLimit(), None)

    def rate_limited(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        """Record a 429 about the rate: slow all calls, and pause them for `retry_after` seconds."""
        self._record(permit, rate_limit or RateLimit(), min(retry_after or 0.0, MAX_PAUSE))

    def _record(self, permit: Permit, headers: RateLimit, pause: float | None) -> None:
        with self._lock:
            if permit in self._running:
                now, started = time.monotonic(), permit.started or 0.0
                if pause is None:
                    self._controller.succeeded(now, now - started)
                else:
                    self._paused_until = max(self._paused_until, now + pause)
                    self._controller.rate_limited(permit.number, now, pause)
                self._headers.record(permit.number, started, headers, pause is not None)
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
                self._post(permit, permit.turn.set)
            self._queue.clear()
        self._settle()

    def _settle(self) -> None:
        # The garbage collector may release a dropped stream at any point, even with the lock held.
        while self._released and self._lock.acquire(blocking=False):
            try:
                self._advance()
            finally:
                self._lock.release()

    def _advance(self) -> None:
        """Start permits that may start, and set the timer for the next; the lock must be held."""
        while True:
            while self._released:
                permit = self._released.popleft()
                self._running.discard(permit)
                self._queue.pop(permit, None)
            if not self._queue:
                return
            now, head = time.monotonic(), next(iter(self._queue))
            when = self._ready_at(head, now)
            if when <= now:
                del self._queue[head]
                self._running.add(head)
                head.number, head.started = self._controller.started(now, self._held_until()), now
                self._requests.acquire(1)
                self._images.acquire(head.weight)
                if head.turn is not None:
                    self._post(head, head.turn.set)
            elif when == math.inf or self._set_timer(head, when, now):
                return

    def _ready_at(self, permit: Permit, now: float) -> float:
        if len(self._running) >= self._max_in_flight:
            return math.inf
        paced = self._controller.ready_at(len(self._running))
        return max(self._earliest(permit, now), self._held_until(), paced)

    def _held_until(self) -> float:
        return max(self._paused_until, self._headers.ready_at(self._controller.starts))

    def _earliest(self, permit: Permit, now: float) -> float:
        requests = self._requests.ready_at(1, now)
        return max(now, self._paused_until, requests, self._images.ready_at(permit.weight, now))

    def _set_timer(self, head: Permit, when: float, now: float) -> bool:
        """Schedule the next check in the loop of the head; return False if that loop is closed."""
        if self._timer and self._timer[0] is head.loop and now < self._timer[1] <= when:
            return True  # it fires early, and is then set again
        self._timer = head.loop, when
        polled, self._polled_at = self._polled_at, now  # polling needs a clock that moves on
        delay = when - now - (TIMER_PRECISION if now > polled else 0.0)
        return self._post(head, head.loop.call_later, delay, self._on_timer, self._timer)

    def _post(self, permit: Permit, callback: Callable[..., Any], *arguments: Any) -> bool:
        """Schedule a callback in the loop of a permit; release the permit if the loop is closed."""
        try:
            permit.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            self._released.append(permit)
            return False
        return True

    def _on_timer(self, timer: tuple[asyncio.AbstractEventLoop, float]) -> None:
        with self._lock:
            if self._timer is timer:
                self._timer = None
                self._advance()
        self._settle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [*map(Limiter._reset, [*_limiters])])  # noqa: SLF001
