"""One rate for all workers: a named actor with a `Limiter`, and what stands in for it in each worker.

The actor belongs to nobody (it is detached), since any worker may die; it ends itself when no worker
has been heard of for a while. Whoever finds it gone makes a new one under the same name, which starts
as a new client does. What a worker holds is leased: every two seconds it says that it is alive, and after
ten of silence its permits go to others.
"""

import asyncio
import importlib
import itertools
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from elkimg_async.errors import ConfigurationError
from elkimg_async.ratelimit.limiter import Limiter, Permit
from elkimg_async.sansio.responses import RateLimit

NAMESPACE = "elkimg_async"
RENEWAL, LEASE, IDLE = 2.0, 10.0, 30.0
_PAUSE = 0.2  # seconds before the actor is looked for again
_MOST_CALLS = 100_000
"""Of all workers at once: those that wait for a turn must not hold up the others."""


def load_ray() -> Any:
    """The package Ray with its part `data`.

    Raises:
        ConfigurationError: by the caller, where it is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
        importlib.import_module("ray.data.expressions")
    except ImportError:
        raise ConfigurationError(
            'Ray is missing, or too old: pip install "elkimg-async[ray]".'
        ) from None
    return ray


def actor_name(run: str) -> str:
    """The name of the actor that paces a run."""
    return f"rate of {run}"


class _Holder:
    """A worker, and what it has asked for and not left, by its own numbers for that."""

    def __init__(self) -> None:
        self.heard = 0.0
        self.permits: dict[int, Permit] = {}
        self.waiting: dict[int, asyncio.Task[Any]] = {}
        self.left: set[int] = set()
        """Left before they were asked for: messages may overtake each other."""


class RateKeeper:
    """The limiter of all workers; an async actor without groups, so that all its methods share one loop.

    Args:
        limits: the arguments of `Limiter`.
        lease: seconds of silence after which a worker counts as dead.
        idle: seconds without any worker after which the actor ends.
    """

    def __init__(
        self, limits: Mapping[str, Any], *, lease: float = LEASE, idle: float = IDLE
    ) -> None:
        self._limiter = Limiter(**limits)
        self._lease, self._idle = lease, idle
        self._holders: dict[str, _Holder] = {}
        self._ended: set[str] = set()
        self._watched = False

    async def take(self, holder: str, number: int, weight: int) -> bool:
        """Wait for a turn; False where it was left or taken away in between."""
        held = self._hear(holder)
        if number in held.left or holder in self._ended:
            held.left.discard(number)
            return False
        permit = held.permits[number] = self._limiter.reserve(weight)
        if permit.started is not None:
            return True
        task = asyncio.current_task()
        assert task is not None
        held.waiting[number] = task
        try:
            await self._limiter.wait(permit)
        except asyncio.CancelledError:
            return False  # by `leave` or `_drop`: nobody waits for the answer, or it would be wrong
        finally:
            held.waiting.pop(number, None)
        return True

    async def succeeded(self, holder: str, number: int, rate_limit: RateLimit | None) -> None:
        """Record a successful response."""
        if permit := self._hear(holder).permits.get(number):
            self._limiter.succeeded(permit, rate_limit)

    async def rate_limited(self, holder: str, number: int, details: Mapping[str, Any]) -> None:
        """Record a 429; `details` are the keywords of `Limiter.rate_limited`."""
        if permit := self._hear(holder).permits.get(number):
            self._limiter.rate_limited(permit, **details)

    async def release(self, holder: str, number: int) -> None:
        """Return a slot, or leave the queue."""
        held = self._hear(holder)
        if (permit := held.permits.pop(number, None)) is None:
            held.left.add(number)
        elif number in held.waiting:
            held.waiting[number].cancel()
        else:
            self._limiter.release(permit)

    async def renew(self, holder: str) -> float:
        """Note that a worker is alive; tells the rate, as `Limiter.rate` does."""
        self._hear(holder)
        return self._limiter.rate

    async def forget(self, holder: str) -> None:
        """Note that a worker has ended; what of its messages was overtaken by this one counts no more."""
        self._ended.add(holder)
        self._drop(holder)

    async def state(self) -> dict[str, Any]:
        """How many wait, are in flight, and hold leases."""
        limiter = self._limiter
        return {
            "waiting": limiter.waiting,
            "in_flight": limiter.in_flight,
            "workers": len(self._holders),
        }

    async def watch(self) -> None:
        """Take back what dead workers held, and end the actor when there is none left."""
        if self._watched:
            return
        self._watched = True
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._lease / 10)
            now = time.monotonic()
            self.expire(now)
            if self._holders:
                last = now
            elif now - last > self._idle:
                load_ray().actor.exit_actor()

    def expire(self, now: float) -> None:
        """Take back what workers hold that have been silent for too long."""
        silent = [name for name, held in self._holders.items() if now - held.heard > self._lease]
        for name in silent:
            self._drop(name)

    def _hear(self, holder: str) -> _Holder:
        if holder in self._ended:
            return _Holder()
        held = self._holders.setdefault(holder, _Holder())
        held.heard = time.monotonic()
        return held

    def _drop(self, holder: str) -> None:
        held = self._holders.pop(holder, None)
        if held is None:
            return
        for task in held.waiting.values():
            task.cancel()
        for permit in held.permits.values():
            self._limiter.release(permit)


class SharedRate:
    """The `Pacing` of a worker's client: asks the actor, and makes it where there is none.

    It belongs to one event loop.
    """

    def __init__(self, run: str, limits: Mapping[str, Any]) -> None:
        self._ray = load_ray()
        self._name, self._limits = actor_name(run), limits
        self._holder = os.urandom(8).hex()
        self._numbers = itertools.count(1)
        self._keeper: Any = None
        self._finding = asyncio.Lock()
        self._pulse: asyncio.Task[None] | None = None
        self._rate = math.inf
        self._closed = False

    @property
    def rate(self) -> float:
        """Starts for each second of all workers together, as known two seconds ago."""
        return self._rate

    def reserve(self, weight: int) -> Permit:
        """A permit that has not started: the turn is asked for in `wait`."""
        if self._closed:
            raise ConfigurationError("The client is closed; make a new one.")
        return Permit(weight)

    async def wait(self, permit: Permit, *, remaining: float = math.inf) -> None:
        """Wait until the permit has started; release it if that fails.

        Args:
            permit: The permit.
            remaining: Not used: the actor's clock is not ours, so the deadline of the call ends the wait.
        """
        try:
            while permit.started is None:
                keeper = await self._find()
                permit.number = next(self._numbers)
                try:
                    if await keeper.take.remote(self._holder, permit.number, permit.weight):
                        permit.started = time.monotonic()
                except self._ray.exceptions.RayActorError:
                    self.release(permit)  # it may only be out of reach
                    await self._lose(keeper)
        except BaseException:
            self.release(permit)
            raise

    def succeeded(self, permit: Permit, rate_limit: RateLimit | None = None) -> None:
        """Record a successful response."""
        self._tell("succeeded", permit.number, rate_limit)

    def rate_limited(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        """Record a 429 about the rate."""
        details = {"retry_after": retry_after, "rate_limit": rate_limit}
        self._tell("rate_limited", permit.number, details)

    def release(self, permit: Permit) -> None:
        """Return the slot, once."""
        number, permit.number = permit.number, 0
        if number:
            self._tell("release", number)

    def close(self) -> None:
        """Tell that this worker has ended."""
        if not self._closed:
            self._closed = True
            if self._pulse is not None:
                self._pulse.cancel()
            self._tell("forget")

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._keeper is not None:
            getattr(self._keeper, method).remote(self._holder, *arguments)

    async def _find(self) -> Any:
        async with self._finding:
            if self._keeper is None:
                self._keeper = await asyncio.to_thread(self._get_or_make)
                self._keeper.watch.remote()
            if self._pulse is None:
                self._pulse = asyncio.create_task(self._renew())
            return self._keeper

    def _get_or_make(self) -> Any:
        keeper = self._ray.remote(num_cpus=0, max_concurrency=_MOST_CALLS)(RateKeeper)
        named = keeper.options(
            name=self._name, namespace=NAMESPACE, get_if_exists=True, lifetime="detached"
        )
        return named.remote(self._limits)

    async def _lose(self, keeper: Any) -> None:
        """Look for the actor again after a pause."""
        if self._keeper is keeper:
            self._keeper = None
        await asyncio.sleep(_PAUSE)

    async def _renew(self) -> None:
        while True:
            keeper = await self._find()
            try:
                self._rate = await keeper.renew.remote(self._holder)
            except self._ray.exceptions.RayActorError:
                await self._lose(keeper)
            else:
                await asyncio.sleep(RENEWAL)
