"""Interface of stores: `MemoryStore`, `DirectoryStore` and `RedisStore` implement it."""

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from elkimg_async.errors import StoreError
from elkimg_async.jobs.model import Entry, Job

T = TypeVar("T")
S = TypeVar("S")

MAX_ID = 200
"""The longest id of a job, in characters."""


class FencedError(Exception):
    """Another worker has taken over the job, and only its records count now."""


class Store(Protocol):
    """Storage of the records, events and images of jobs.

    Every method raises StoreError if the store cannot be read or written. If the store outlives
    processes, a record survives the end of the process once the method has returned.
    """

    shared: bool
    """Whether several processes may use the store at once; then it is a `MultiWorkerStore`."""

    async def open(self, keep: float | None) -> None:
        """Prepare the store; finished jobs are needed for `keep` seconds (None: until deleted)."""

    async def aclose(self) -> None:
        """Release everything; idempotent."""

    async def create(self, job: Job, inputs: Sequence[bytes]) -> Job:
        """Store a new job with the images it sends; return the job that has its id, if any."""
        ...

    async def get(self, id: str) -> Job | None:
        """Return a job, or None."""
        ...

    async def jobs(self) -> list[Job]:
        """Return all jobs, oldest first."""
        ...

    async def inputs(self, job: Job) -> list[bytes]:
        """Return the images that the job sends."""
        ...

    async def append(self, job: Job, entry: Entry, content: bytes | None) -> None:
        """Add an event with its image; partial images before it may be dropped."""

    async def update(self, job: Job) -> None:
        """Replace the record of a job."""

    async def events(self, job: Job, after: int) -> list[tuple[Entry, bytes | None]]:
        """Return the events whose id is higher than `after`, with their images."""
        ...

    async def delete(self, job: Job) -> None:
        """Remove a job with everything that belongs to it."""


class MultiWorkerStore(Store, Protocol):
    """A store that several workers use at once, each the owner of the jobs that it runs.

    An owner that stops calling `renew`, or closes the store, loses its jobs: `orphans` returns them
    to the other workers, and `append` and `update` raise FencedError once one of those has called
    `claim`.
    """

    lease: float
    """Seconds after which a worker that has not called `renew` counts as dead."""

    async def renew(self) -> None:
        """Extend the lease of this worker."""

    async def orphans(self) -> list[Job]:
        """Return the unfinished jobs whose worker is dead, and those that this one owns."""
        ...

    async def claim(self, job: Job) -> bool:
        """Become the owner of an orphan; return False if another worker was faster."""
        ...

    async def request_cancel(self, id: str) -> None:
        """Request that the owner of a job cancels it."""

    async def changes(self) -> tuple[frozenset[str], frozenset[str]]:
        """Wait for news; return the ids of jobs that changed, and of jobs to cancel."""
        ...


# --- stores of one process --------------------------------------------------


class StoredJob(Generic[T]):
    """A job of a store that one process uses, which keeps a `T` for the image of each event."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.events: dict[int, tuple[Entry, T]] = {}

    def add(self, entry: Entry, image: T) -> list[T]:
        """Add an event; return the images of the partial ones before it, which it replaces."""
        partial = [known.id for known, _ in self.events.values() if not known.completed]
        replaced = [self.events.pop(event)[1] for event in partial]
        self.events[entry.id] = entry, image
        return replaced


def find(stored: Mapping[str, S], job: Job) -> S:
    """Return what is stored of a job.

    Raises:
        StoreError: If the job was deleted while it was in use.
    """
    try:
        return stored[job.id]
    except KeyError:
        raise StoreError(f"The job {job.id!r} is no longer in the store.") from None
