"""Jobs in Redis, for several worker processes that serve each other's jobs.

The names under the prefix are, for each job, `job:ID` (its record), `events:ID` (a stream of its
events), `image:ID:EVENT` and `input:ID:N` (bytes); and for all jobs `jobs` (ids by age), `active`
(the worker that owns each unfinished job), `worker:W` (a lease that expires with its worker),
`news` (a stream of the ids that changed) and `version`. Whatever depends on the owner is written by
a script, so that a worker that lost its lease cannot overwrite the records of its successor.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from elkimg_async.errors import ConfigurationError, StoreError
from elkimg_async.jobs.model import VERSION, Entry, Job
from elkimg_async.jobs.store import FencedError, MultiWorkerStore
from elkimg_async.sansio.lenient_json import NOT_STRICT

T = TypeVar("T")

_MARGIN = 24 * 3600.0  # extra seconds for which images of unfinished jobs are kept
_BLOCK = 1000  # milliseconds that a worker waits for news at a time
_NEWS = 100_000  # maximum length of the news stream
_CONNECTIONS = 32
_TIMEOUT = 10.0  # seconds for a connection and for a command
_CLOSE_TIMEOUT = 1.0  # seconds for releasing the lease
_decode_job = msgspec.json.Decoder(Job).decode
_decode_entry = msgspec.json.Decoder(Entry).decode

# Redis runs a script as one step. KEYS are names and ARGV values, in the order of `_script`.
#
# Of many workers that create a job at once, one stores it, and the others get its record.
_CREATE = """
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
return false
"""
# Fencing: a worker that was paused for longer than its lease must not write after its successor.
_OWNED = """
local owner = redis.call('HGET', KEYS[2], ARGV[1])
if not owner then
  -- it was recorded as lost, or Redis has lost its data, but its image has arrived
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('SET', KEYS[1], ARGV[3], 'NX')
  redis.call('ZADD', KEYS[5], ARGV[4], ARGV[1])
elseif owner ~= ARGV[2] then
  return 0
end
"""
# The record expires with its events; nobody owns a job that has ended.
_UPDATE = (
    _OWNED
    + """
redis.call('SET', KEYS[1], ARGV[3])
if ARGV[5] == '1' then
  redis.call('HDEL', KEYS[2], ARGV[1])
  if tonumber(ARGV[6]) > 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
    redis.call('PEXPIRE', KEYS[4], ARGV[6])
  end
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'changed', ARGV[1])
return 1
"""
)
# A command whose connection breaks is sent again, so the event may be there already.
_APPEND = (
    _OWNED
    + """
if #redis.call('XRANGE', KEYS[4], ARGV[5], ARGV[5]) == 0 then
  redis.call('XADD', KEYS[4], ARGV[5], 'event', ARGV[6])
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'changed', ARGV[1])
return 1
"""
)
# Two workers may see the same orphan: the owner is replaced only if it is still the dead one.
# This worker may be the owner itself, of a job whose run has failed here.
_CLAIM = """
local owner = redis.call('HGET', KEYS[1], ARGV[1])
if owner ~= ARGV[2] and owner ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class RedisStore(MultiWorkerStore):
    """A store in Redis; needs the extra `redis`.

    Args:
        url: The URL of Redis, as for `redis.asyncio.Redis.from_url`.
        prefix: The prefix of all names in Redis; stores with different prefixes are separate.
        lease: Seconds after which an unresponsive worker counts as dead.

    Raises:
        ConfigurationError: If redis is not installed, or an argument is invalid.
    """

    shared = True

    def __init__(
        self, url: str = "redis://localhost:6379/0", *, prefix: str = "elkimg:", lease: float = 5.0
    ) -> None:
        try:
            from redis import exceptions
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigurationError(
                'The package redis is missing: pip install "elkimg-async[redis]".'
            ) from None
        if not 0.5 <= lease <= 60:
            raise ConfigurationError("lease must be 0.5 to 60 seconds.")
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_TIMEOUT,
                socket_connect_timeout=_TIMEOUT,
                socket_timeout=_TIMEOUT,
                # after a restart of Redis, all connections in the pool are broken
                retry=Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,)),
            )
        except (ValueError, TypeError, AttributeError):
            raise ConfigurationError(
                "The URL of Redis must begin with redis:// or rediss://."
            ) from None
        self._redis: Any = Redis.from_pool(pool)
        self.lease = lease
        self._prefix = prefix
        self._worker = os.urandom(8).hex()
        self._keep: float | None = None
        self._since = "$"
        self._owners: dict[str, bytes] = {}
        self._partials: dict[str, int] = {}

    async def open(self, keep: float | None) -> None:
        """Check the version, and join the workers.

        Raises:
            StoreError: If Redis cannot be reached, or the data is of another version.
        """
        self._keep = keep
        redis = self._redis
        await self._do(redis.setnx(self._name("version"), VERSION))
        version = await self._do(redis.get(self._name("version")))
        if version != str(VERSION).encode():
            raise StoreError(
                f"The jobs under {self._prefix!r} in Redis were written by another version of "
                "elkimg_async; use that version, or another prefix."
            )
        # Earlier news are of no interest, because a reader that joins reads the whole job.
        newest = await self._do(redis.xrevrange(self._name("news"), count=1))
        self._since = newest[0][0].decode() if newest else "0-0"

    async def aclose(self) -> None:
        """Release the lease, so that other workers take over, and disconnect."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._do(self._redis.delete(self._name("worker", self._worker)))
        except (StoreError, TimeoutError):
            pass  # the lease expires by itself
        await self._redis.aclose()

    async def create(self, job: Job, inputs: Sequence[bytes]) -> Job:
        # A job that has finished needs them no longer, and nothing would remove them again.
        if inputs and (earlier := await self.get(job.id)) is not None:
            return earlier
        # Before the record, so that a stored job can always be sent. Their names contain the
        # fingerprint, so that a rejected job with the same id overwrites nothing.
        expiry = self._expiry(_MARGIN)
        for index, content in enumerate(inputs):
            await self._do(self._redis.set(self._input(job, index), content, px=expiry))
        keys = [self._name("job", job.id), self._name("jobs"), self._name("active")]
        known = await self._script(
            _CREATE, keys, job.id, msgspec.json.encode(job), job.created_at, self._worker
        )
        if known is None:
            return job
        found = self._decode(_decode_job, known, job.id)
        return job if found == job else found  # its own, if the connection broke after the script

    async def get(self, id: str) -> Job | None:
        found = await self._do(self._redis.get(self._name("job", id)))
        return None if found is None else self._decode(_decode_job, found, id)

    async def jobs(self) -> list[Job]:
        known = await self._do(self._redis.zrange(self._name("jobs"), 0, -1))
        ids = [each.decode() for each in known]
        found = await self._get_all(ids)
        # Records expire by themselves, and leave their ids behind.
        if expired := [each for each in ids if each not in found]:
            await self._do(self._redis.zrem(self._name("jobs"), *expired))
        return [job for job in found.values() if job is not None]

    async def inputs(self, job: Job) -> list[bytes]:
        names = [self._input(job, index) for index in range(job.upload_count)]
        if not names:
            return []
        found = await self._do(self._redis.mget(names))
        if None in found:
            raise StoreError(f"The images that the job {job.id!r} sends are no longer in Redis.")
        return list(found)

    async def append(self, job: Job, entry: Entry, content: bytes | None) -> None:
        if content is not None:
            image, expiry = self._image(job, entry.id), self._expiry(_MARGIN)
            await self._do(self._redis.set(image, content, px=expiry))
        data = msgspec.json.encode(entry)
        await self._write(_APPEND, job, f"{entry.id}-0", data, _NEWS)
        # Readers fetch images after the list of events, so the one that was replaced is removed
        # last; `events` skips a partial image that is gone.
        earlier = self._partials.pop(job.id, None)
        if not entry.completed:
            self._partials[job.id] = entry.id
        if earlier is not None and earlier != entry.id:
            await self._do(self._redis.xdel(self._name("events", job.id), f"{earlier}-0"))
            await self._do(self._redis.delete(self._image(job, earlier)))

    async def update(self, job: Job) -> None:
        expiry = self._expiry(0.0)
        finished = int(job.finished)
        await self._write(_UPDATE, job, finished, expiry or 0, _NEWS)
        # If the worker dies in between, the images expire with the margin with which they were
        # stored.
        if job.finished:
            self._partials.pop(job.id, None)
            for index in range(job.upload_count):
                await self._do(self._redis.delete(self._input(job, index)))
            if expiry is not None:
                for entry in await self._entries(job, 0):
                    await self._do(self._redis.pexpire(self._image(job, entry.id), expiry))

    async def events(self, job: Job, after: int) -> list[tuple[Entry, bytes | None]]:
        entries = await self._entries(job, after)
        if not entries:
            return []
        names = [self._image(job, entry.id) for entry in entries]
        found = list[tuple[Entry, bytes | None]]()
        for entry, content in zip(entries, await self._do(self._redis.mget(names)), strict=True):
            if content is None and entry.size is not None:
                if not entry.completed:  # replaced by a newer one just now
                    continue
                raise StoreError(
                    f"An image of the job {job.id!r} is no longer in Redis; check its "
                    "maxmemory-policy."
                )
            found.append((entry, content))
        return found

    async def delete(self, job: Job) -> None:
        images = [self._image(job, entry.id) for entry in await self._entries(job, 0)]
        names = [self._name("job", job.id), self._name("events", job.id), *images]
        await self._do(self._redis.delete(*names))
        await self._do(self._redis.zrem(self._name("jobs"), job.id))

    # --- workers ------------------------------------------------------------

    async def renew(self) -> None:
        lease = int(self.lease * 1000)
        await self._do(self._redis.set(self._name("worker", self._worker), 1, px=lease))

    async def orphans(self) -> list[Job]:
        # A lease per worker, not per job, so that renewing it costs one command.
        active = await self._do(self._redis.hgetall(self._name("active")))
        dead = {self._worker.encode()}
        for owner in set(active.values()) - dead:
            if not await self._do(self._redis.exists(self._name("worker", owner.decode()))):
                dead.add(owner)
        self._owners = {job.decode(): owner for job, owner in active.items() if owner in dead}
        found = await self._get_all(list(self._owners))
        return [job for job in found.values() if job is not None]

    async def claim(self, job: Job) -> bool:
        earlier = self._owners.get(job.id, b"")
        return bool(
            await self._script(_CLAIM, [self._name("active")], job.id, earlier, self._worker)
        )

    async def request_cancel(self, id: str) -> None:
        await self._do(self._redis.xadd(self._name("news"), {"cancel": id}, maxlen=_NEWS))

    async def changes(self) -> tuple[frozenset[str], frozenset[str]]:
        news = self._name("news")
        found = await self._do(self._redis.xread({news: self._since}, count=1000, block=_BLOCK))
        if isinstance(found, dict):  # the form of RESP3, which the URL may ask for
            notices = [notice for pages in found.values() for page in pages for notice in page]
        else:
            notices = [notice for _, page in found or () for notice in page]
        if notices:
            self._since = notices[-1][0].decode()
        changed = (fields[b"changed"].decode() for _, fields in notices if b"changed" in fields)
        cancelled = (fields[b"cancel"].decode() for _, fields in notices if b"cancel" in fields)
        return frozenset(changed), frozenset(cancelled)

    # --- names and commands -------------------------------------------------

    def _name(self, *parts: object) -> str:
        return self._prefix + ":".join(map(str, parts))

    def _image(self, job: Job, event: int) -> str:
        return self._name("image", job.id, event)

    def _input(self, job: Job, index: int) -> str:
        return self._name("input", job.id, job.fingerprint, index)

    def _expiry(self, margin: float) -> int | None:
        """Return the expiry in milliseconds, or None for never."""
        return None if self._keep is None else max(1, int((self._keep + margin) * 1000))

    async def _entries(self, job: Job, after: int) -> list[Entry]:
        events = self._name("events", job.id)
        found = await self._do(self._redis.xrange(events, min=f"{after + 1}-0"))
        return [self._decode(_decode_entry, fields[b"event"], job.id) for _, fields in found]

    async def _get_all(self, ids: list[str]) -> dict[str, Job | None]:
        """Return the jobs that are stored, and None for one whose record cannot be read."""
        found: dict[str, Job | None] = {}
        names = [self._name("job", each) for each in ids]
        records = await self._do(self._redis.mget(names)) if names else []
        for each, record in zip(ids, records, strict=True):
            if record is not None:
                found[each] = None
                with contextlib.suppress(StoreError):
                    found[each] = self._decode(_decode_job, record, each)
        return found

    def _decode(self, decode: Callable[[bytes], T], record: bytes, id: str) -> T:
        """Decode a record of a job.

        Raises:
            StoreError: If it is damaged, or not a record of this version.
        """
        try:
            return decode(record)
        except NOT_STRICT:
            pass
        raise StoreError(
            f"The record of the job {id!r} in Redis is damaged, or from another version of "
            f"elkimg_async; delete the key {self._name('job', id)!r} to start it again."
        )

    async def _write(self, script: str, job: Job, *arguments: Any) -> None:
        """Write as the owner of a job."""
        keys = [self._name("job", job.id), self._name("active"), self._name("news")]
        keys += [self._name("events", job.id), self._name("jobs")]
        record = msgspec.json.encode(job)
        owner = (job.id, self._worker, record, job.created_at)
        if not await self._script(script, keys, *owner, *arguments):
            raise FencedError

    async def _script(self, script: str, keys: list[str], *arguments: Any) -> Any:
        return await self._do(self._redis.eval(script, len(keys), *keys, *arguments))

    async def _do(self, command: Awaitable[T]) -> T:
        """Send a command; every failure becomes a StoreError."""
        from redis.exceptions import OutOfMemoryError, RedisError

        task = asyncio.current_task()
        cancelling = task.cancelling() if task else 0
        try:
            result = await command
            if task and task.cancelling() > cancelling:  # redis sometimes swallows a cancellation
                raise asyncio.CancelledError
            return result
        except OutOfMemoryError:
            problem = "Redis is full; raise its maxmemory, or keep jobs for a shorter time."
        except (RedisError, OSError, TimeoutError) as error:
            problem = f"Redis cannot be used: {error}"
            if not problem.endswith("."):
                problem += "."
        if task and task.cancelling() > cancelling:
            raise asyncio.CancelledError
        raise StoreError(problem)
