"""One rate for all workers: a named actor with a `Limiter`, and its proxy in each worker.

The actor is detached, since any worker may die; it ends itself when no worker has called for a
while. A worker that finds it gone creates a new one with the same name, which starts like a new
client. The permits of a worker are leased: it renews the lease every two seconds, and after ten
seconds of silence its permits are released.
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
_PAUSE = 0.2  # seconds before the actor is looked up again
_MAX_CALLS = 100_000
"""Concurrent calls of all workers: those that wait for a turn must not block the others."""


def load_ray() -> Any:
    """Return the package Ray, with `ray.data`.

    Raises:
        ConfigurationError: If it is not installed.
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
    """Return the name of the actor that limits the rate of a run."""
    return f"rate of {run}"


class _Holder:
    """The permits of a worker, held or awaited, by the numbers assigned by the worker."""

    def __init__(self) -> None:
        self.heard = 0.0
        self.permits: dict[int, Permit] = {}
        self.waiting: dict[int, asyncio.Task[Any]] = {}
        self.released: set[int] = set()
        """Numbers released before they were requested, since messages may overtake each other."""


class RateActor:
    """The limiter of all workers.

    As an async actor without concurrency groups it runs all its methods in one event loop.

    Args:
        limits: The arguments of `Limiter`.
        lease: Seconds of silence after which a worker counts as dead.
        idle: Seconds without any worker after which the actor ends.
    """

    def __init__(
        self, limits: Mapping[str, Any], *, lease: float = LEASE, idle: float = IDLE
    ) -> None:
        # All methods run in one event loop and change state only between awaits, so the actor needs
        # no lock.
        self._limiter = Limiter(**limits)
        self._lease, self._idle = lease, idle
        self._holders: dict[str, _Holder] = {}
        self._ended: set[str] = set()
        self._watched = False

    async def take(self, holder: str, number: int, weight: int) -> bool:
        """Wait for a turn; return False if it was released or revoked in the meantime."""
        held = self._hear(holder)
        if number in held.released or holder in self._ended:
            held.released.discard(number)
            return False
        # Registered before the wait, so that a dead worker's place in the queue is released too.
        permit = held.permits[number] = self._limiter.reserve(weight)
        if permit.started is not None:
            return True
        task = asyncio.current_task()
        assert task is not None
        held.waiting[number] = task
        try:
            await self._limiter.wait(permit)
        except asyncio.CancelledError:
            return False  # by `release` or `_drop`: the worker no longer waits
        finally:
            held.waiting.pop(number, None)
        return True

    async def succeeded(self, holder: str, number: int, rate_limit: RateLimit | None) -> None:
        """Record a successful response."""
        if permit := self._hear(holder).permits.get(number):
            self._limiter.succeeded(permit, rate_limit)

    async def rate_limited(self, holder: str, number: int, details: Mapping[str, Any]) -> None:
        """Record a 429; `details` are the keyword arguments of `Limiter.rate_limited`."""
        if permit := self._hear(holder).permits.get(number):
            self._limiter.rate_limited(permit, **details)

    async def release(self, holder: str, number: int) -> None:
        """Release a turn, or the place in the queue."""
        held = self._hear(holder)
        if (permit := held.permits.pop(number, None)) is None:
            held.released.add(number)
        elif number in held.waiting:
            # `Limiter.wait` releases its permit when it is cancelled.
            held.waiting[number].cancel()
        else:
            self._limiter.release(permit)

    async def renew(self, holder: str) -> float:
        """Renew the lease of a worker; return the rate, as `Limiter.rate` does."""
        self._hear(holder)
        return self._limiter.rate

    async def forget(self, holder: str) -> None:
        """Record that a worker has ended; its later messages are ignored."""
        # Its name stays, so that a late message does not bring it back.
        self._ended.add(holder)
        self._drop(holder)

    async def state(self) -> dict[str, Any]:
        """Return the number of permits waiting and in flight, and of workers with leases."""
        limiter = self._limiter
        return {
            "waiting": limiter.waiting,
            "in_flight": limiter.in_flight,
            "workers": len(self._holders),
        }

    async def watch(self) -> None:
        """Release the permits of dead workers, and end the actor when no worker remains."""
        if self._watched:
            return
        self._watched = True
        # Each worker that finds the actor calls this; the first call stays.
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
        """Release the permits of workers whose lease has expired."""
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
    """The `Pacing` of a worker's client, which calls the actor and creates it if there is none.

    It belongs to one event loop.
    """

    def __init__(self, run: str, limits: Mapping[str, Any]) -> None:
        self._ray = load_ray()
        self._name, self._limits = actor_name(run), limits
        self._holder = os.urandom(8).hex()
        self._numbers = itertools.count(1)
        self._actor: Any = None
        self._creating = asyncio.Lock()
        self._pulse: asyncio.Task[None] | None = None
        self._rate = math.inf
        self._closed = False

    @property
    def rate(self) -> float:
        """Requests per second of all workers together, at most two seconds old."""
        return self._rate

    def reserve(self, weight: int) -> Permit:
        """Return a permit that has not started: `wait` requests the turn."""
        if self._closed:
            raise ConfigurationError("The client is closed; create a new one.")
        return Permit(weight)

    async def wait(self, permit: Permit, *, remaining: float = math.inf) -> None:
        """Wait for the turn; on failure the permit is released.

        `remaining` is not used: the deadline of the call ends the wait.
        """
        # Each time with a new number: the actor that had the old one may still live, and its turn
        # is then released by that number.
        try:
            while permit.started is None:
                actor = await self._get_actor()
                permit.number = next(self._numbers)
                try:
                    if await actor.take.remote(self._holder, permit.number, permit.weight):
                        permit.started = time.monotonic()
                except self._ray.exceptions.RayActorError:
                    self.release(permit)  # the actor may only be unreachable
                    await self._forget_actor(actor)
        except BaseException:
            self.release(permit)
            raise

    def succeeded(self, permit: Permit, rate_limit: RateLimit | None = None) -> None:
        """Report a successful response."""
        self._notify("succeeded", permit.number, rate_limit)

    def rate_limited(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        """Report a 429 about the rate."""
        details = {"retry_after": retry_after, "rate_limit": rate_limit}
        self._notify("rate_limited", permit.number, details)

    def release(self, permit: Permit) -> None:
        """Release the turn, once."""
        # Zero means that nothing is requested or that it was released already.
        number, permit.number = permit.number, 0
        if number:
            self._notify("release", number)

    def close(self) -> None:
        """Report that this worker has ended."""
        if not self._closed:
            self._closed = True
            if self._pulse is not None:
                self._pulse.cancel()
            self._notify("forget")

    def _notify(self, method: str, *arguments: Any) -> None:
        # Nobody waits for the result: after a failure the lease ends the permits.
        if self._actor is not None:
            getattr(self._actor, method).remote(self._holder, *arguments)

    async def _get_actor(self) -> Any:
        # One at a time, in a thread, because Ray's look-up blocks.
        async with self._creating:
            if self._actor is None:
                self._actor = await asyncio.to_thread(self._get_or_create)
                self._actor.watch.remote()
            if self._pulse is None:
                self._pulse = asyncio.create_task(self._renew())
            return self._actor

    def _get_or_create(self) -> Any:
        # `get_if_exists` decides races between workers. With a CPU of its own the actor would wait
        # for one on a cluster that is busy with the workers, which wait for it.
        actor = self._ray.remote(num_cpus=0, max_concurrency=_MAX_CALLS)(RateActor)
        named = actor.options(
            name=self._name, namespace=NAMESPACE, get_if_exists=True, lifetime="detached"
        )
        return named.remote(self._limits)

    async def _forget_actor(self, actor: Any) -> None:
        """Look up the actor again after a pause."""
        # Many calls may meet the same dead actor, and another one may have replaced it by now.
        if self._actor is actor:
            self._actor = None
        await asyncio.sleep(_PAUSE)

    async def _renew(self) -> None:
        while True:
            actor = await self._get_actor()
            try:
                self._rate = await actor.renew.remote(self._holder)
            except self._ray.exceptions.RayActorError:
                await self._forget_actor(actor)
            else:
                await asyncio.sleep(RENEWAL)
