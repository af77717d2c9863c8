"""Several workers on one store: leases, jobs of dead workers, and news from living ones."""

import asyncio
from collections.abc import Awaitable, Callable

from elkimg_async.errors import StoreError
from elkimg_async.hooks import logger
from elkimg_async.jobs.model import Job
from elkimg_async.jobs.store import FencedError, MultiWorkerStore

_PAUSE = 0.5  # seconds after a failure of the store
_SIGHTINGS = 2
"""How often in a row a job must be found without a worker before it is taken over: after an outage
of the store, the leases of live workers have also expired, until they renew them."""


class Coordinator:
    """The tasks that keep one worker in step with the others.

    Args:
        store: The store of all workers.
        runs: Returns whether a job runs here.
        recover: Continues an unfinished job whose worker has died.
        cancel: Cancels a job if it runs here.
        refresh: Reads the records of another worker for a job that is followed here.
    """

    def __init__(
        self,
        store: MultiWorkerStore,
        *,
        runs: Callable[[str], bool],
        recover: Callable[[Job], Awaitable[None]],
        cancel: Callable[[str], object],
        refresh: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store, self._runs, self._recover = store, runs, recover
        self._cancel, self._refresh = cancel, refresh
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

    async def _take_over(self) -> None:
        """Recover the jobs of dead workers."""
        found = await self._store.orphans()
        orphans = {job.id: job for job in found if not self._runs(job.id)}
        self._seen = {name: self._seen.get(name, 0) + 1 for name in orphans}
        for name, job in orphans.items():
            if self._seen[name] >= _SIGHTINGS and await self._store.claim(job):
                try:
                    await self._recover(job)
                except FencedError:
                    logger.warning("a job was taken over by another worker in the meantime")

    async def _watch(self) -> None:
        """Read the changes of other workers' jobs."""
        changed, cancelled = await self._store.changes()
        self._stale |= changed
        for name in cancelled:
            self._cancel(name)
        for name in sorted(self._stale):
            await self._refresh(name)
            self._stale.discard(name)


async def _repeat(step: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Repeat a step forever, despite failures of the store."""
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
