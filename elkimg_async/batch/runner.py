"""The work of `client.map`: many requests, a bounded number at a time, each paid for once.

One task of a run reads the requests and starts a task for each, as concurrency and budget allow.
Results wait here until they are delivered, and count towards the concurrency until then. `sources`
reads the input, `planner` decides what has to be done, `executor` does it, `storage` records it.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from elkimg_async.batch.budget import Budget, CostBudget, Limit, check_count, fatal_reason
from elkimg_async.batch.executor import Execution, Sender
from elkimg_async.batch.job import BatchJob
from elkimg_async.batch.journal import DoneRecord, JournalRecord, SentRecord, fields_of
from elkimg_async.batch.planner import Delivery, Planner, make_delivery
from elkimg_async.batch.run import MapItem, Totals, add_item
from elkimg_async.batch.sources import RequestSource, check_iterable, open_source
from elkimg_async.batch.storage import OutputFolder, RunStore
from elkimg_async.errors import (
    BatchStoppedError,
    ConfigurationError,
    ElkImagesError,
    JournalError,
)
from elkimg_async.sansio.requests import DEFAULT_MODEL, ImageRequest
from elkimg_async.settings import Settings
from elkimg_async.tasks import run_to_end


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `AsyncImages.map`; its docstring explains them."""

    concurrency: int
    ordered: bool
    output_dir: str | os.PathLike[str] | None
    journal: str | os.PathLike[str] | None
    max_errors: int | None
    max_images: int | None
    max_total_tokens: int | None
    max_cost: Decimal | None
    skip_failed: bool
    stream: bool
    require_lock: bool = True


class Runner:
    """The backend of a `MapRun`.

    Args:
        requests: An iterable or async iterable of prompts, mappings or requests.
        options: The options of the run.
        defaults: Fields for requests that do not set them.
        sender: Sends the requests.
        settings: The settings of the client.

    Raises:
        ConfigurationError: If an option is invalid; nothing was opened.
        InvalidRequestError: If the input is not an iterable of requests; nothing was opened.
    """

    def __init__(
        self,
        requests: Any,
        options: RunOptions,
        *,
        defaults: Mapping[str, Any],
        sender: Sender,
        settings: Settings,
    ) -> None:
        check_count("concurrency", options.concurrency)
        for name in ("max_errors", "max_images", "max_total_tokens"):
            if (limit := getattr(options, name)) is not None:
                check_count(name, limit)
        self._pricing = settings.pricing
        if options.max_cost is not None and self._pricing is None:
            raise ConfigurationError(
                "max_cost requires prices; pass pricing=Pricing(…) to AsyncImages."
            )
        check_iterable(requests)
        self._requests, self._options, self._defaults = requests, options, defaults
        self._sender, self._settings = sender, settings
        # `_pending` counts what has started and is not delivered. It bounds the memory: a user who
        # does not iterate stops the run. In order, one slow request would stop all others without
        # some room for their results.
        self._window = options.concurrency * (2 if options.ordered else 1)
        self._ready: deque[Delivery] = deque()
        self._early: dict[int, Delivery] = {}  # in order: those whose predecessors are missing
        self._next_index = self._pending = self.in_flight = 0
        self._currency = self._pricing.currency if self._pricing else None
        self._totals, self._began = Totals(currency=self._currency), 0.0
        self._over = self._hopeless = False
        self._failure: BaseException | None = None
        self._recorded: Delivery | None = None  # recorded as finished, and not delivered yet
        self._scope: anyio.CancelScope | None = None

    @property
    def rate(self) -> float:
        """The client's current pace in requests per second."""
        return self._settings.limiter.rate

    def totals(self) -> Totals:
        """Return the totals so far."""
        elapsed = time.monotonic() - self._began if self._began else 0.0
        return msgspec.structs.replace(self._totals, elapsed=elapsed)

    async def start(self) -> None:
        """Open the journal and the folder, and start the run.

        Raises:
            JournalError: If the journal cannot be used; nothing was sent.
            ConfigurationError: If the folder cannot be used; nothing was sent.
        """
        options = self._options
        folder = None if options.output_dir is None else OutputFolder(Path(options.output_dir))
        journal = None if options.journal is None else Path(options.journal)
        self._store = RunStore(journal, folder, require_lock=options.require_lock)
        self._room, self._arrived = asyncio.Event(), asyncio.Event()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A task group must be closed by the task that has opened it, which the caller's may not do.
        self._supervisor = asyncio.create_task(self._supervise())
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel the requests in flight, and wait until the journal is closed."""
        await run_to_end(self._close())

    async def _close(self) -> None:
        self._over = True
        self._arrived.set()
        if self._scope is not None:
            self._scope.cancel()
        await asyncio.wait([self._supervisor])
        if self._opened.done():
            self._opened.exception()  # marks it as retrieved, in case `start` no longer waits
        if self._recorded is not None and isinstance(record := self._recorded.record, DoneRecord):
            # These images were never delivered: the request has to be sent again.
            self._store.note(SentRecord(**fields_of(JournalRecord, record), images=0))
        await self._store.aclose()

    # --- delivering ---------------------------------------------------------

    async def next_item(self) -> MapItem | None:
        """Return the next item; at the end return None, or raise what stopped the run."""
        while not self._ready:
            if self._over:
                failure, self._failure = self._failure, None
                if isinstance(failure, BatchStoppedError):
                    failure.totals = self.totals()
                if failure is not None:
                    raise failure
                return None
            self._arrived.clear()
            await self._arrived.wait()
        # Removed only when its record is written: if this is cancelled, the next call returns it.
        delivery = self._ready[0]
        if delivery.record is not None and self._recorded is not delivery:
            self._recorded = delivery  # if this is cancelled, the record is still written
            try:
                await self._store.commit(delivery.record)
            except JournalError as error:
                self._stop(error)  # raised after the last item: this one has been paid for
        self._ready.popleft()
        self._recorded = None
        self._pending -= 1
        self._room.set()
        return delivery.item

    def _deliver(self, delivery: Delivery) -> None:
        item = delivery.item
        self._totals = add_item(self._totals, item, images=delivery.images, size=delivery.size)
        if not item.ok and not item.resumed:
            self._budget.fail()
        if not self._options.ordered:
            self._ready.append(delivery)
        else:
            self._early[item.index] = delivery
            while self._next_index in self._early:
                self._ready.append(self._early.pop(self._next_index))
                self._next_index += 1
        self._arrived.set()

    # --- working ------------------------------------------------------------

    async def _supervise(self) -> None:
        try:
            await anyio.to_thread.run_sync(self._store.open)
        except Exception as error:  # noqa: BLE001 - raised by `start`
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        try:
            self._set_up()
            source = open_source(self._requests, ahead=self._options.concurrency)
            self._began = time.monotonic()
            try:
                async with anyio.create_task_group() as tasks:
                    self._scope = tasks.cancel_scope
                    if not self._over:
                        await self._pump(source, tasks)
            finally:
                source.close()
        except Exception as error:  # noqa: BLE001 - raised by `next_item`
            self._stop(error)
        finally:
            # What has ended is paid for: it is delivered although its predecessors never end.
            self._ready.extend(self._early[index] for index in sorted(self._early))
            self._early.clear()
            self._over = True
            self._arrived.set()

    def _set_up(self) -> None:
        options, store = self._options, self._store
        self._budget = Budget(
            max_errors=options.max_errors,
            max_images=options.max_images,
            max_total_tokens=options.max_total_tokens,
            images=store.replay.images,
            lost=store.replay.lost,
            tokens=store.replay.tokens,
        )
        self._costs = CostBudget(options.max_cost, spent=self._spent_before())
        self._planner = Planner(
            defaults=self._defaults,
            stream=options.stream,
            idempotency=self._settings.idempotency,
            skip_failed=options.skip_failed,
            known=store.record if store.journaling else None,
            folder=store.folder,
            price=self._price,
            currency=self._currency,
            payable=_payable_attempts(self._settings),
        )

    def _spent_before(self) -> Decimal:
        """Return the amount that earlier runs may have spent, in the currency of the prices.

        Raises:
            ConfigurationError: If it is unknown or in another currency, and `max_cost` is set.
        """
        before = self._store.replay
        other = {code for code, cost in before.costs.items() if cost and code != self._currency}
        if self._options.max_cost is not None and (before.unpriced or other):
            unknown = f"{before.unpriced} images of unknown cost"
            named = f"costs in {', '.join(sorted(other))}, and the prices are in {self._currency}"
            raise ConfigurationError(
                f"max_cost cannot be kept, because the journal has {named if other else unknown}. "
                "Continue without max_cost, or use another journal."
            )
        return before.costs.get(self._currency or "", Decimal(0))

    async def _pump(self, source: RequestSource, tasks: anyio.abc.TaskGroup) -> None:
        """Read and start requests while there is room, until the input ends or the run stops."""
        index = 0
        while await self._has_room():
            try:
                planned = await self._plan(index, await source.next())
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001 - from the input; raised by `next_item`
                self._stop(error)
                return
            if isinstance(planned, BatchJob):
                # Its images were counted as lost when the journal was read; they are about to be
                # counted by the response, and are billed once.
                if planned.resumes is not None:
                    self._budget.resume(planned.resumes.images)
                    self._costs.resume(planned.resumes.cost)
                if not await self._may_start(planned):
                    return
                self._pending += 1
                self.in_flight += 1
                self._budget.reserve(planned.n)
                self._costs.reserve(planned.worst or Decimal(0))
                tasks.start_soon(self._work, planned)
            # An item that is not a request costs nothing, but counts towards `max_errors`.
            elif not planned.item.resumed and (limit := self._budget.reached(0)) is not None:
                self._stop(self._stopped_by(limit))
                return
            else:
                self._pending += 1
                self._deliver(planned)
            index += 1

    async def _plan(self, index: int, item: Any) -> BatchJob | Delivery:
        if self._planner.reads_files(item):
            return await anyio.to_thread.run_sync(self._planner.plan, index, item)
        return self._planner.plan(index, item)

    async def _has_room(self) -> bool:
        """Wait for room; return False if something has stopped the run."""
        while self._failure is None:
            if self.in_flight < self._options.concurrency and self._pending < self._window:
                return True
            await self._wait()
        return False

    async def _may_start(self, job: BatchJob) -> bool:
        """Return whether the budget allows a job; wait while that depends on those in flight."""
        while self._failure is None:
            # Those in flight may turn out cheaper than reserved, so the limit is certain only when
            # none is left; failures never become fewer.
            limit = self._budget.reached(job.n) or self._costs.reached(job.worst)
            if limit is None:
                return True
            if limit == "max_errors" or not self.in_flight:
                self._stop(self._stopped_by(limit))
            else:
                await self._wait()
        return False

    def _price(self, request: ImageRequest) -> Decimal | None:
        """Return the maximum cost of one attempt; None if unknown.

        Raises:
            ConfigurationError: If it is unknown, and required for `max_cost`.
        """
        if self._pricing is None:
            return None
        if self._options.max_cost is None:
            with contextlib.suppress(Exception):  # only for the journal and later runs
                return self._pricing.worst_case(request)
            return None
        price = self._pricing.worst_case(request)
        if price is None:
            raise ConfigurationError(
                "max_cost cannot be kept, because the maximum cost of a request for "
                f"{request.model or DEFAULT_MODEL} is unknown. Pass TokenPrices with "
                "max_tokens_per_image and max_input_tokens, ImagePrices with a price for its size "
                "and quality, or a price function that returns the maximum if usage is None."
            )
        return price

    async def _wait(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def _work(self, job: BatchJob) -> None:
        cost: Decimal | None = Decimal(0)
        try:
            if self._hopeless:  # set after this task was created
                self._pending -= 1
                return
            cost = None
            result = await Execution(job, self._sender, self._store).run()
            record = result.record
            if job.n:
                cost = record.cost
                tokens = record.usage.total_tokens if record.usage else None
                self._budget.spend(record.images, tokens, responded=record.meta is not None)
            else:
                cost = Decimal(0)  # its images were paid for earlier, and only downloaded
            self._deliver(make_delivery(result, self._store.folder))
            if result.stop is not None:
                self._stop(result.stop)
            elif (reason := fatal_reason(result.error)) is not None and result.error is not None:
                # Those that are being sent may be paid for, and end as usual; all others end now.
                self._hopeless = True
                self._sender.waiting.cancel(result.error)
                self._stop(self._stopped_after(reason, result.error))
        except Exception as error:  # noqa: BLE001 - from the journal; raised by `next_item`
            self._stop(error)
        finally:
            # Without an await since the response was accounted for: no request that starts sees an
            # image neither reserved nor spent.
            self.in_flight -= 1
            self._budget.release(job.n)
            self._costs.settle(job.worst or Decimal(0), cost)
            self._room.set()

    def _stop(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._room.set()

    def _stopped_by(self, limit: Limit) -> BatchStoppedError:
        again = " and the same journal to continue" if self._store.journaling else ""
        return BatchStoppedError(
            f"The run has stopped at {limit}={getattr(self._options, limit)}. Start it again with "
            f"a higher limit{again}.",
            reason=limit,
        )

    def _stopped_after(self, reason: str, error: ElkImagesError) -> BatchStoppedError:
        again = " with the same journal to continue" if self._store.journaling else ""
        stopped = BatchStoppedError(
            "The run has stopped because every further request would fail the same way: "
            f"{error} Fix that, and start it again{again}.",
            reason=reason,
        )
        stopped.__cause__ = error
        return stopped


def _payable_attempts(settings: Settings) -> int:
    """Return how many attempts of one call may be paid for."""
    repeats = settings.retry.retry_unknown and settings.idempotency != "replay"
    return 1 + settings.retry.max_retries if repeats else 1
