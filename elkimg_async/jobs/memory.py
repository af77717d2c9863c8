"""Jobs in memory, for as long as the process lives."""

from collections.abc import Sequence

from elkimg_async.errors import ConfigurationError, StoreError
from elkimg_async.jobs.model import Entry, Job
from elkimg_async.jobs.store import Store, StoredJob, find


class _JobInMemory(StoredJob[bytes | None]):
    """One job with its images."""

    def __init__(self, job: Job, inputs: Sequence[bytes]) -> None:
        super().__init__(job)
        self.inputs = list(inputs)

    @property
    def size(self) -> int:
        images = sum(len(content or b"") for _, content in self.events.values())
        return images + sum(map(len, self.inputs))


class MemoryStore(Store):
    """A store in memory; the oldest finished jobs are evicted when it is full.

    Args:
        max_bytes: The size of all images together above which finished jobs are evicted. Running
            jobs never are: while they fill the store alone, starting another one raises StoreError.
    """

    shared = False

    def __init__(self, *, max_bytes: int = 512 * 1024 * 1024) -> None:
        if not max_bytes > 0:
            raise ConfigurationError("max_bytes must be a positive number of bytes.")
        self._max_bytes = max_bytes
        self._kept: dict[str, _JobInMemory] = {}
        self._bytes = 0

    async def open(self, keep: float | None) -> None:
        """Do nothing: memory is always open."""

    async def aclose(self) -> None:
        """Do nothing: the jobs stay for the next `ImageJobs` with this store."""

    async def create(self, job: Job, inputs: Sequence[bytes]) -> Job:
        known = self._kept.get(job.id)
        if known is not None:
            return known.job
        kept = _JobInMemory(job, inputs)
        self._evict(kept.size + 1)
        if self._bytes + kept.size >= self._max_bytes:
            raise StoreError(
                f"The store is full: running jobs hold {self._bytes:,} bytes. Wait for one to "
                "finish, or raise MemoryStore(max_bytes=…)."
            )
        self._kept[job.id] = kept
        self._bytes += kept.size
        return job

    async def get(self, id: str) -> Job | None:
        kept = self._kept.get(id)
        return None if kept is None else kept.job

    async def jobs(self) -> list[Job]:
        return [kept.job for kept in self._kept.values()]

    async def inputs(self, job: Job) -> list[bytes]:
        return find(self._kept, job).inputs

    async def append(self, job: Job, entry: Entry, content: bytes | None) -> None:
        """Add an event; it replaces the partial images before it."""
        kept = find(self._kept, job)
        self._bytes -= kept.size
        kept.add(entry, content)
        self._bytes += kept.size
        self._evict(0)

    async def update(self, job: Job) -> None:
        """Replace the record of a job; a finished one no longer needs its inputs."""
        kept = find(self._kept, job)
        kept.job = job
        if job.finished:
            self._bytes -= kept.size
            kept.inputs = []
            self._bytes += kept.size
            self._evict(0, sparing=job.id)

    async def events(self, job: Job, after: int) -> list[tuple[Entry, bytes | None]]:
        kept = self._kept.get(job.id)
        return [event for event in kept.events.values() if event[0].id > after] if kept else []

    async def delete(self, job: Job) -> None:
        kept = self._kept.pop(job.id, None)
        if kept is not None:
            self._bytes -= kept.size

    def _evict(self, needed: int, *, sparing: str | None = None) -> None:
        """Remove finished jobs, oldest first, until there is room, but not the newest."""
        if self._bytes + needed <= self._max_bytes:
            return
        for name, kept in list(self._kept.items()):
            if kept.job.finished and name != sparing:
                del self._kept[name]
                self._bytes -= kept.size
                if self._bytes + needed <= self._max_bytes:
                    return
