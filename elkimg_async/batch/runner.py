"""`client.map`: many requests, bounded, paid for once, and given as they end.

One task of a run reads the requests and starts a task for each, as room and budget allow; what they made
waits here until the caller takes it, and counts as room taken until then. `source` reads the input,
`jobs` says what is to be done, `work` does it, `files` keeps it; the decisions behind them are made in
`sansio.journal` and `sansio.budget`.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from elkimg_async.batch.budget import Budget, Limit
from elkimg_async.batch.executor import Executor
from elkimg_async.batch.journal import DoneRecord, SentRecord
from elkimg_async.batch.planner import Job, JobResult, Planner
from elkimg_async.batch.run import MapItem, Totals
from elkimg_async.batch.sources import RequestSource, check_iterable, open_source
from elkimg_async.batch.storage import OutputFolder, RunStore
from elkimg_async.config import IdempotencyMode
from elkimg_async.errors import BatchStoppedError, ConfigurationError, JournalError
from elkimg_async.image import Image
from elkimg_async.sansio.responses import add_usage


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `AsyncImages.map`; its docstring says what they mean."""

    concurrency: int
    ordered: bool
    output_dir: str | os.PathLike[str] | None
    journal: str | os.PathLike[str] | None
    max_errors: int | None
    max_images: int | None
    max_total_tokens: int | None
    skip_failed: bool
    stream: bool

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError: by the caller.
        """
        for name in ("concurrency", "max_errors", "max_images", "max_total_tokens"):
            value = getattr(self, name)
            if value is None and name != "concurrency":
                continue
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1.")


class Runner:
    """The work of one run; `MapRun` holds the rules of its use.

    Args:
        requests: an iterable or async iterable of prompts, mappings or requests.
        options: what the caller wants.
        defaults: the fields of a request for those that do not say otherwise.
        headers: further headers of every request.
        idempotency: whether requests have an Idempotency-Key, and the server is known to replay it.
        generate: `AsyncImages.generate`.
        connect: teaches an image to fetch its URL.
        rate: the requests for each second that the client holds itself to.

    Raises:
        ConfigurationError, InvalidRequestError: by the caller; nothing was opened.
    """

    def __init__(
        self,
        requests: Any,
        options: RunOptions,
        *,
        defaults: Mapping[str, Any],
        headers: Mapping[str, str],
        idempotency: IdempotencyMode,
        generate: Callable[..., Any],
        connect: Callable[[Image], None],
        rate: Callable[[], float],
    ) -> None:
        options.check()
        check_iterable(requests)
        self._requests, self._options = requests, options
        self._defaults, self._headers = defaults, headers
        self._idempotency: IdempotencyMode = idempotency
        self._generate, self._connect, self._rate = generate, connect, rate
        self._window = options.concurrency * (2 if options.ordered else 1)
        self._ready: deque[JobResult] = deque()
        self._early: dict[int, JobResult] = {}
        self._next_index = self._ungiven = self.in_flight = 0
        self._totals, self._began = Totals(), 0.0
        self._over = False
        self._failure: BaseException | None = None
        self._noted: JobResult | None = None  # written as finished, and not given yet
        self._supervisor: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def rate(self) -> float:
        """The requests for each second that the client holds itself to."""
        return self._rate()

    def totals(self) -> Totals:
        """What was done so far."""
        elapsed = time.monotonic() - self._began if self._began else 0.0
        return msgspec.structs.replace(self._totals, elapsed=elapsed)

    async def start(self) -> None:
        """Open the journal and the folder, and begin.

        Raises:
            JournalError, ConfigurationError: by the caller; nothing was sent.
        """
        options = self._options
        folder = None if options.output_dir is None else OutputFolder(Path(options.output_dir))
        journal = None if options.journal is None else Path(options.journal)
        self._store = RunStore(journal, folder)
        self._room, self._given = asyncio.Event(), asyncio.Event()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(folder))
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel what is under way, and wait until it has ended and the journal is closed."""
        closing = asyncio.create_task(self._close())
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.wait([closing])
            except asyncio.CancelledError as error:  # what is open is closed first
                cancelled = error
        if cancelled is not None:
            raise cancelled
        closing.result()

    async def _close(self) -> None:
        self._over = True
        self._given.set()
        if self._scope is not None:
            self._scope.cancel()
        assert self._supervisor is not None
        await asyncio.wait([self._supervisor])
        if self._opened.done():
            self._opened.exception()  # seen, should nobody wait for it any more
        if self._noted is not None and isinstance(record := self._noted.record, DoneRecord):
            self._store.note(
                SentRecord(index=record.index, hash=record.hash, key=record.key, images=0)
            )
        await self._store.aclose()

    # --- giving -------------------------------------------------------------

    async def next_item(self) -> MapItem | None:
        """The next item; at the end None, or what stopped the run."""
        while not self._ready:
            if self._over:
                failure, self._failure = self._failure, None
                if isinstance(failure, BatchStoppedError):
                    failure.totals = self.totals()
                if failure is not None:
                    raise failure
                return None
            self._given.clear()
            await self._given.wait()
        result = self._ready[0]
        if result.record is not None and self._noted is not result:
            self._noted = result  # cancelled, it is written all the same, once
            try:
                await self._store.commit(result.record)
            except JournalError as error:
                self._stop(error)  # raised after the last item: this one is here, and paid for
        self._ready.popleft()
        self._noted = None
        self._ungiven -= 1
        self._room.set()
        return result.item

    def _give(self, result: JobResult) -> None:
        item, old = result.item, self._totals
        self._totals = msgspec.structs.replace(
            old,
            done=old.done + item.ok,
            failed=old.failed + (not item.ok),
            resumed=old.resumed + item.resumed,
            images=old.images + result.images,
            usage=add_usage(old.usage, item.usage),
            bytes=old.bytes + result.size,
        )
        if not item.ok and not item.resumed:
            self._budget.fail()
        if not self._options.ordered:
            self._ready.append(result)
        else:
            self._early[item.index] = result
            while self._next_index in self._early:
                self._ready.append(self._early.pop(self._next_index))
                self._next_index += 1
        self._given.set()

    # --- working ------------------------------------------------------------

    async def _supervise(self, folder: OutputFolder | None) -> None:
        try:
            await anyio.to_thread.run_sync(self._store.open)
        except Exception as error:  # noqa: BLE001 - raised by `start`
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        try:
            planner, executor = self._set_up(folder)
            source = open_source(self._requests, ahead=self._options.concurrency)
            self._began = time.monotonic()
            try:
                async with anyio.create_task_group() as tasks:
                    self._scope = tasks.cancel_scope
                    if not self._over:
                        await self._pump(source, planner, executor, tasks)
            finally:
                source.close()
        except Exception as error:  # noqa: BLE001 - raised for the caller
            self._stop(error)
        finally:
            self._ready.extend(self._early[index] for index in sorted(self._early))
            self._early.clear()
            self._over = True
            self._given.set()

    def _set_up(self, folder: OutputFolder | None) -> tuple[Planner, Executor]:
        options, store = self._options, self._store
        self._budget = Budget(
            max_errors=options.max_errors,
            max_images=options.max_images,
            max_total_tokens=options.max_total_tokens,
            images=store.replay.images,
            lost=store.replay.lost,
            tokens=store.replay.tokens,
        )
        planner = Planner(
            defaults=self._defaults,
            stream=options.stream,
            idempotency=self._idempotency,
            skip_failed=options.skip_failed,
            known=store.record if store.journaling else None,
            folder=folder,
        )
        executor = Executor(
            generate=self._generate,
            connect=self._connect,
            headers=self._headers,
            stream=options.stream,
            store=store,
            folder=folder,
            budget=self._budget,
        )
        return planner, executor

    async def _pump(
        self,
        source: RequestSource,
        planner: Planner,
        executor: Executor,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Read what there is room for, and start it, until the input ends or something stops the run."""
        index = 0
        while await self._has_room():
            try:
                found = planner.take(index, await source.next())
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001 - the input's own, and raised for the caller
                self._stop(error)
                return
            if isinstance(found, Job):
                if found.again is not None:
                    self._budget.take_back(found.again.images)
                if not await self._may_start(found):
                    return
                self._ungiven += 1
                self.in_flight += 1
                self._budget.begin(found.n)
                tasks.start_soon(self._work, executor, found)
            elif not found.item.resumed and (limit := self._budget.obstacle(0)) is not None:
                self._stop(self._stopped(limit))
                return
            else:
                self._ungiven += 1
                self._give(found)
            index += 1

    async def _has_room(self) -> bool:
        """Wait for room; False where something has stopped the run."""
        while self._failure is None:
            if self.in_flight < self._options.concurrency and self._ungiven < self._window:
                return True
            await self._wait()
        return False

    async def _may_start(self, job: Job) -> bool:
        """Whether the budget allows a request, now or when those in flight have turned out cheaper."""
        while self._failure is None:
            reason = self._budget.obstacle(job.n)
            if reason is None:
                return True
            if reason == "max_errors" or not self.in_flight:
                self._stop(self._stopped(reason))
            else:
                await self._wait()
        return False

    async def _wait(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def _work(self, executor: Executor, job: Job) -> None:
        try:
            result = await executor.do(job)
            self._give(result)
            if result.stop is not None:
                self._stop(result.stop)
        except Exception as error:  # noqa: BLE001 - the journal's, and raised for the caller
            self._stop(error)
        finally:
            self.in_flight -= 1
            self._budget.end(job.n)
            self._room.set()

    def _stop(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._room.set()

    def _stopped(self, limit: Limit) -> BatchStoppedError:
        again = "Start it again with a higher limit"
        again += " and the same journal to go on." if self._store.journaling else "."
        return BatchStoppedError(
            f"The run has stopped at {limit}={getattr(self._options, limit)}. {again}", reason=limit
        )
