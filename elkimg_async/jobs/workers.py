"""Several workers on one store: leases, jobs of dead workers, and news from living ones."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from elkimg_async.errors import StoreError
from elkimg_async.hooks import logger
from elkimg_async.jobs.model import Job
from elkimg_async.jobs.store import FencedError, SharedStore

_PAUSE = 0.5  # seconds after a failure of the store
_SIGHTINGS = 2
"""How often in a row a job must be without a worker before it is taken over: after an outage of the
store, the leases of the living have expired as well, until they renew them."""


class Registry(Protocol):
    """The part of `ImageJobs` that other workers concern."""

    def runs(self, id: str) -> bool:
        """Return whether a job runs here."""
        ...

    async def recover(self, job: Job) -> None:
        """Go on with an unfinished job whose process has ended."""

    def cancel_here(self, id: str) -> bool:
        """Cancel a job that runs here; return whether it does."""
        ...


class Coordinator:
    """The tasks that keep one worker in step with the others."""

    def __init__(
        self,
        store: SharedStore,
        registry: Registry,
        refresh: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store, self._registry, self._refresh = store, registry, refresh
        self._seen: dict[str, int] = {}
        self._stale: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Join the workers of the store."""
        await self._store.renew()
        pause = self._store.lease / 5
        for step, seconds in [
            (self._store.renew, pause),
            (self._take_over, pause),
            (self._watch, 0.0),
        ]:
            self._tasks.append(asyncio.create_task(_repeat(step, seconds)))

    async def aclose(self) -> None:
        """Leave the workers; unfinished jobs of this one are orphans when its store is closed."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def request_cancel(self, id: str) -> None:
        """Ask the owner of a job to cancel it."""
        await self._store.request_cancel(id)

    async def _take_over(self) -> None:
        """Recover the jobs of dead workers."""
        found = await self._store.orphans()
        orphans = {job.id: job for job in found if not self._registry.runs(job.id)}
        self._seen = {name: self._seen.get(name, 0) + 1 for name in orphans}
        for name, job in orphans.items():
            if self._seen[name] >= _SIGHTINGS and await self._store.claim(job):
                try:
                    await self._registry.recover(job)
                except FencedError:
                    logger.warning("a job was taken over by another worker meanwhile")

    async def _watch(self) -> None:
        """Read the news of other workers' jobs."""
        changed, cancelled = await self._store.changes()
        self._stale |= changed
        for name in cancelled:
            self._registry.cancel_here(name)
        for name in sorted(self._stale):
            await self._refresh(name)
            self._stale.discard(name)


async def _repeat(step: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Repeat a step for ever, through failures of the store."""
    working = True
    while True:
        try:
            await step()
        except StoreError as error:
            if working:
                logger.warning("the store of the jobs does not respond: %s", error.message)
            working = False
            await asyncio.sleep(_PAUSE)
        else:
            working = True
            await asyncio.sleep(seconds)
