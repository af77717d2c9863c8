"""When the next request of a client may start: first come, first served.

Four things are asked before a request starts, and the latest of their answers holds: the limits of
the caller (`Bucket`, and a number of requests in flight), what the server's rate-limit headers say
(`Told`), what its refusals have taught (`Adaptive`), and a Retry-After, which pauses all at once.

The operations wanted: to enter, to start, to leave and to be answered, all in constant time however many
wait; nothing here looks at more than the head of the queue.
"""

import math
from collections import OrderedDict
from typing import Any

from elkimg_async.ratelimit.rates import LONGEST, Adaptive, Told
from elkimg_async.sansio.responses import RateLimit

# Of a limit for a minute, the share that is kept as a burst for timers that go off late; the rest
# flows evenly. Together with the one request that may always start this makes the limit and one.
_BURST = 0.01


class Permit:
    """The place of one request in the queue, and then among those in flight.

    `number` counts the starts of the pacer; `started` is its time, None while it waits.
    """

    __slots__ = ("number", "started", "waiter", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.number = 0
        self.started: float | None = None
        self.waiter: Any = None
        """Whatever the queue's owner wants to find here when the permit starts."""


class Bucket:
    """A limit for each minute, spent evenly."""

    __slots__ = ("_at", "_capacity", "_level", "_rate")

    def __init__(self, per_minute: float) -> None:
        self._capacity = self._level = 1.0 + per_minute * _BURST
        self._rate = per_minute * (1.0 - _BURST) / 60.0
        self._at = 0.0

    def ready_at(self, weight: float, now: float) -> float:
        """When so much may start; what is heavier than the bucket starts when it is full."""
        self._fill(now)
        missing = min(weight, self._capacity) - self._level
        return now if missing <= 1e-9 else now + missing / self._rate

    def take(self, weight: float, now: float) -> None:
        """Note a start; a heavy one leaves a debt."""
        self._fill(now)
        self._level -= weight

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
            self._at = now


class Pacer:
    """The queue of a client's requests, and the decision when its head may start.

    All times are `now`, in seconds of a clock that does not go back. The limits are None where there
    is none.

    Args:
        max_concurrency: requests in flight.
        requests_per_minute: starts in any 60 seconds; never more than one above it.
        images_per_minute: the same for images; one request of several may go above it when the
            limit has been left unused for a moment, and the next ones wait the longer.
    """

    def __init__(
        self,
        *,
        max_concurrency: int | None = None,
        requests_per_minute: float | None = None,
        images_per_minute: float | None = None,
    ) -> None:
        self._most = math.inf if max_concurrency is None else max_concurrency
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute)
        self._images = None if images_per_minute is None else Bucket(images_per_minute)
        self._adaptive = Adaptive()
        self._told = Told()
        self._paused_until = -math.inf
        self._waiting: OrderedDict[Permit, None] = OrderedDict()
        self._running: set[Permit] = set()
        self._number = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """How many have started and not left."""
        return len(self._running)

    def rate(self, now: float) -> float:
        """Starts for each second that are held to now; `math.inf` while nothing is known to limit them."""
        learnt = self._adaptive.rate(now)
        return min(learnt, self._told.rate(now, self._number)) if self._told.known(now) else learnt

    def enter(self, weight: int, now: float) -> Permit:
        """Join the queue; the permit has started already where nothing forbids it."""
        permit = Permit(weight)
        if not self._waiting and self._ready_at(permit, now) <= now:
            self._start(permit, now)
        else:
            self._waiting[permit] = None
        return permit

    def admit(self, now: float) -> list[Permit]:
        """Start those at the head of the queue that may start now, in order."""
        started = []
        while self._waiting:
            permit = next(iter(self._waiting))
            if self._ready_at(permit, now) > now:
                break
            del self._waiting[permit]
            self._start(permit, now)
            started.append(permit)
        return started

    def next_time(self, now: float) -> float:
        """When to call `admit` again; `math.inf` where first something else must happen."""
        if not self._waiting:
            return math.inf
        return self._ready_at(next(iter(self._waiting)), now)

    def clear(self) -> list[Permit]:
        """Send all away who wait."""
        waiting, self._waiting = self._waiting, OrderedDict()
        return list(waiting)

    def leave(self, permit: Permit) -> None:
        """Give up the place in the queue or in flight; a second time does nothing."""
        self._running.discard(permit)
        self._waiting.pop(permit, None)

    def answered(self, permit: Permit, now: float, limit: RateLimit | None = None) -> None:
        """Note a good answer, and the rate-limit headers in it."""
        if permit in self._running:
            self._adaptive.answered(now, len(self._running))
            if limit is not None:
                self._told.learn(permit.started or now, permit.number, limit)

    def refused(
        self,
        permit: Permit,
        now: float,
        *,
        retry_after: float | None = None,
        limit: RateLimit | None = None,
        overload: bool = False,
    ) -> None:
        """Note a refusal, and slow down: for 429, or with `overload` for a server that has too much to do.

        `retry_after` is in seconds, None where the server names none.
        """
        if permit not in self._running or permit.started is None:
            return
        pause = retry_after or 0.0
        if not 0.0 < pause <= LONGEST:
            pause = 0.0  # what asks for more is about a quota
        self._paused_until = max(self._paused_until, now + pause)
        if (
            limit is not None
            and self._told.learn(permit.started, permit.number, limit, refused=True)
            and limit.remaining_requests == 0
            and not self._told.vague
        ):
            return  # the header says it all
        news = self._adaptive.refused(permit.started, permit.number, now, pause=pause)
        if news and overload:
            self._adaptive.overloaded(len(self._running))

    def _ready_at(self, permit: Permit, now: float) -> float:
        adaptive, running = self._adaptive, len(self._running)
        if running >= self._most or running >= adaptive.window:
            return math.inf
        when = max(self._paused_until, self._server_ready_at(now))
        if self._requests is not None:
            when = max(when, self._requests.ready_at(1, now))
        if self._images is not None:
            when = max(when, self._images.ready_at(permit.weight, now))
        return when

    def _server_ready_at(self, now: float) -> float:
        """What the headers tell, and what the refusals have taught; of vague headers only the latter."""
        adaptive, told = self._adaptive, self._told
        if not told.known(now) or (told.vague and not adaptive.free):
            return adaptive.ready_at(now)
        when = told.ready_at(now, self._number)
        return when if adaptive.free else max(when, adaptive.ready_at(now))

    def _start(self, permit: Permit, now: float) -> None:
        self._number += 1
        permit.number, permit.started = self._number, now
        self._running.add(permit)
        self._adaptive.started(now)
        self._told.started(now)
        if self._requests is not None:
            self._requests.take(1, now)
        if self._images is not None:
            self._images.take(permit.weight, now)
