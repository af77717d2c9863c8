"""The one door through which every attempt of a client passes: it waits here, and nowhere else, for its turn.

One `Limiter` serves all loops and threads of a client. The decisions are the `Pacer`'s; here is what it
lacks: a clock, a lock, and the wish to wait. Who waits holds a future of its own loop, and each loop
with waiters has one timer, for the head of the queue; whichever loop comes first starts those of the others too.
"""

import asyncio
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from elkimg_async.errors import ConfigurationError
from elkimg_async.ratelimit.pacing import Pacer, Permit
from elkimg_async.sansio.responses import RateLimit

_clock = time.monotonic
_all: "weakref.WeakSet[Limiter]" = weakref.WeakSet()


class Limiter:
    """A `Pacer` for tasks: `enter`, or else `wait`; then `answered` or `refused`; and `leave` in every case."""

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        requests_per_minute: float | None = None,
        images_per_minute: float | None = None,
    ) -> None:
        self._limits = max_concurrency, requests_per_minute, images_per_minute
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Start with nobody in it, as the client does, and as the child of a fork does."""
        concurrency, requests, images = self._limits
        self._pacer = Pacer(
            max_concurrency=concurrency, requests_per_minute=requests, images_per_minute=images
        )
        self._lock = threading.Lock()
        self._left: deque[Permit] = deque()
        self._loops: dict[asyncio.AbstractEventLoop, _Alarm] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._pacer.waiting

    @property
    def in_flight(self) -> int:
        """How many hold a slot."""
        return self._pacer.in_flight

    @property
    def rate(self) -> float:
        """Starts for each second that are held to now; `math.inf` while nothing is known to limit them."""
        with self._lock:
            rate = self._pacer.rate(_clock())
        self._settle()
        return rate

    def reserve(self, weight: int) -> Permit:
        """Join the queue; where nothing forbids it the permit has started, else `wait` for it.

        Raises:
            ConfigurationError: by the caller, who closed the client.
        """
        if self._closed:
            raise _closed()
        with self._lock:
            permit = self._pacer.enter(weight, _clock())
        if self._left:
            self._settle()
        return permit

    async def wait(self, permit: Permit) -> None:
        """Wait until a permit has started; when that fails, it has left.

        Raises:
            ConfigurationError: by the caller, who closed the client.
        """
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        try:
            with self._lock:
                if permit.started is None and not self._closed:
                    permit.waiter = loop, turn
                    self._loops.setdefault(loop, _Alarm()).waiters += 1
                    self._work()
            self._settle()
            if permit.waiter is not None:
                try:
                    await turn
                finally:
                    self._uncount(loop)
            if self._closed:
                raise _closed()
        except BaseException:
            self.release(permit)
            raise

    def succeeded(self, permit: Permit, rate_limit: RateLimit | None = None) -> None:
        """Note a good answer, and what its rate-limit headers say."""
        with self._lock:
            self._pacer.answered(permit, _clock(), rate_limit)
            if self._loops:
                self._work()
        if self._left:
            self._settle()

    def rate_limited(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        rate_limit: RateLimit | None = None,
        overload: bool = False,
    ) -> None:
        """Note a refusal for which all slow down: 429, or with `overload` a server with too much to do.

        `retry_after` is in seconds, None where the server names none.
        """
        with self._lock:
            self._pacer.refused(
                permit, _clock(), retry_after=retry_after, limit=rate_limit, overload=overload
            )
            self._work()
        self._settle()

    def release(self, permit: Permit) -> None:
        """Give the slot, or the place in the queue, back; a second time does nothing."""
        self._left.append(permit)
        self._settle()

    def close(self) -> None:
        """Send away all who wait and all who come; a second time does nothing."""
        self._closed = True
        with self._lock:
            for permit in self._pacer.clear():
                self._wake(permit)
        self._settle()

    def _settle(self) -> None:
        """See to what has left, or let the one with the lock do it.

        A dropped stream leaves while the garbage collector runs: in any thread, at any place, this
        module's own included. Waiting for the lock there could last for ever.
        """
        while self._left and self._lock.acquire(blocking=False):
            try:
                self._work()
            finally:
                self._lock.release()

    def _work(self) -> None:
        """With the lock: start who may start, and have the clock say when to look again."""
        pacer = self._pacer
        while True:
            while self._left:
                pacer.leave(self._left.popleft())
            if not pacer.waiting:
                return
            now = _clock()
            for permit in pacer.admit(now):
                self._wake(permit)
            if not self._left:
                break
        self._set_alarms(pacer.next_time(now), now)

    def _wake(self, permit: Permit) -> None:
        if permit.waiter is None:
            return  # it has not begun to wait, and will see
        loop, turn = permit.waiter
        if loop is _running_loop():
            _call(turn)
            return
        try:
            loop.call_soon_threadsafe(_call, turn)
        except RuntimeError:  # that loop has ended, and the task with it
            self._left.append(permit)

    def _set_alarms(self, when: float, now: float) -> None:
        here = _running_loop()
        for loop, alarm in list(self._loops.items()):
            if when >= alarm.when:
                continue  # it goes off early, and is set again then
            alarm.when = when
            if loop is here:
                alarm.set(loop, when - now, self._ring)
            else:
                try:
                    loop.call_soon_threadsafe(self._ring, loop)
                except RuntimeError:  # that loop has ended
                    del self._loops[loop]

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if (alarm := self._loops.get(loop)) is not None:
                alarm.stop()
                self._work()
        self._settle()

    def _uncount(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if (alarm := self._loops.get(loop)) is not None:
                alarm.waiters -= 1
                if not alarm.waiters:
                    alarm.stop()
                    del self._loops[loop]
        self._settle()


class _Alarm:
    """The timer of one loop, and how many wait in it."""

    __slots__ = ("_timer", "waiters", "when")

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self.waiters = 0
        self.when = math.inf

    def set(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        ring: Callable[[asyncio.AbstractEventLoop], None],
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(seconds, ring, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.when = None, math.inf


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()  # noqa: SLF001


def _call(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)


def _closed() -> ConfigurationError:
    return ConfigurationError("The client is closed; make a new one.")


def _begin_again() -> None:
    """In the child of a fork: the lock may be held and the slots are the parent's."""
    for limiter in list(_all):
        limiter._begin()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
