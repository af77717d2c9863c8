"""The callable for Ray Data's workers: one client in its own event loop."""

import asyncio
import contextlib
import importlib
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Unpack

import msgspec

from elkimg_async.batch.budget import check_count, fatal_reason
from elkimg_async.batch.create import without_total
from elkimg_async.batch.executor import Execution, Sender
from elkimg_async.batch.inputs import full_fingerprint
from elkimg_async.batch.job import BatchJob, JobResult
from elkimg_async.batch.journal import MadeRecord
from elkimg_async.batch.names import row_stem
from elkimg_async.batch.rows import FIELDS, read_row
from elkimg_async.batch.storage import RunStore
from elkimg_async.client import AsyncImages
from elkimg_async.config import (
    IdempotencyMode,
    Limits,
    ValidateMode,
    make_retry,
    make_timeout,
)
from elkimg_async.credentials import default_api_key
from elkimg_async.errors import (
    BatchStoppedError,
    ConfigurationError,
    DownloadError,
    ElkImagesError,
    InvalidRequestError,
)
from elkimg_async.image import Image
from elkimg_async.ray import rows
from elkimg_async.ray.rate import SharedRate, load_ray
from elkimg_async.ray.rows import RowResult
from elkimg_async.ray.shared_store import RowRecord, SharedStore
from elkimg_async.sansio.pricing import Pricing
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.settings import Pacing
from elkimg_async.transport.event_loop import loop_factory
from elkimg_async.types import MapOptions

_CLOSING = 5.0  # seconds for closing the connections


class WorkerOptions(MapOptions, total=False):
    """The options of `GenerateImages`, whose docstring explains them."""

    prompt_column: str
    id_column: str
    requests_at_once: int
    output_dir: str | None
    limits: Limits | None
    api_key: Any
    base_url: str | None
    idempotency: IdempotencyMode
    validate: ValidateMode
    stream: bool
    pricing: Pricing | None


_SHARED = ("max_concurrency", "requests_per_minute", "images_per_minute")
_CLIENT = ("base_url", "idempotency", "validate", "limits", "pricing")


class GenerateImages:
    """A class for `Dataset.map_batches` with an actor pool: one client in each worker.

        ds.map_batches(
            GenerateImages,
            fn_constructor_kwargs={"run": "cats", "size": "1024x1024"},
            batch_format="pyarrow",
            batch_size=64,
            compute=ray.data.ActorPoolStrategy(size=4),
        )

    It requires batches in the pyarrow format and a column of ids; `generate_dataset` provides both.

    Args:
        run: The name of the run, which is part of each idempotency key, and of the name of the
            actor that limits the rate of all workers. It must be the same for all of them.
        prompt_column: The column of prompts; `prompt` by default.
        id_column: The column of ids, different in each row; `id` by default.
        requests_at_once: How many rows of its batch a worker sends at a time; 16 by default.
        output_dir: A folder shared by all workers, for images named after the ids, with a JSON file
            beside them for each row. Rows whose files are complete are not sent again, and images
            that are still at their URLs are only downloaded. None: images go to a column.
        limits: Limits that all workers share, as all calls of a client do. None: `Limits()`.
        api_key: The API key, preferably as `ray.put(api_key)`, which keeps it out of the plan; or
            an async function that returns it. None: ELKAPI_API_KEY in the worker's environment.
        base_url, idempotency, validate, pricing: Those of `AsyncImages`.
        stream: Whether to request streams, which keep connections alive through proxies that cut
            silent ones.
        options: Options of `AsyncImages.generate` and `edit`, for rows that do not set them.
            Without a total time in `timeout`, a row waits for its turn indefinitely.

    Raises:
        ConfigurationError: If an option is invalid.
        InvalidRequestError: If a request field has the wrong type.
    """

    def __init__(self, *, run: str, **options: Unpack[WorkerOptions]) -> None:
        ray = load_ray()
        check_options(options)
        api_key: Any = options.get("api_key")
        # A reference keeps the API key out of the plan, which Ray's dashboard shows.
        if isinstance(api_key, ray.ObjectRef):
            api_key = ray.get(api_key)
        if api_key is None:
            default_api_key()  # fails here once, rather than in each row
        self._run = run
        self._prompt_column = options.get("prompt_column", "prompt")
        self._id_column = options.get("id_column", "id")
        self._at_once = options.get("requests_at_once", 16)
        self._stream = options.get("stream", False)
        self._sends_idempotency_keys = options.get("idempotency", "send") != "off"
        folder = options.get("output_dir")
        self._store = None if folder is None else SharedStore(str(folder))
        self._stopped: list[ElkImagesError] = []
        self._defaults, _ = _split(options)
        # Ray calls this object batch by batch, and not in an event loop. The client lives in a loop
        # of its own, so that its connections last from one batch to the next.
        opened: Future[None] = Future()
        serve = self._serve(opened, api_key, options)
        # A daemon, so that a worker ends when Ray ends it.
        self._thread = threading.Thread(target=_run, args=(serve,), name="elkimg-ray", daemon=True)
        self._thread.start()
        opened.result()

    def __call__(self, batch: Any) -> Any:
        """Return the table with the columns of the results.

        Raises:
            ConfigurationError: If it is not a pyarrow table, or has no prompts or ids.
            BatchError: If an image cannot be written to disk.
            BatchStoppedError: If every further row would fail the same way.
        """
        names = set(getattr(batch, "column_names", ()))
        if not hasattr(batch, "to_pylist"):
            raise ConfigurationError('GenerateImages needs map_batches(batch_format="pyarrow").')
        if self._prompt_column not in names:
            raise ConfigurationError(
                f"The rows have no column {self._prompt_column!r}; name the one with the prompts "
                "with prompt_column=…."
            )
        if not names & {self._id_column, rows.POSITION}:
            raise ConfigurationError(
                f"The rows have no column {self._id_column!r}; name the one with the ids with "
                "id_column=…, or call generate_dataset, which adds them."
            )
        used = {self._prompt_column, self._id_column, rows.POSITION, *FIELDS}
        table = batch.select([name for name in batch.column_names if name in used]).to_pylist()
        return self._append(batch, self._in_loop(self._execute_all(table)))

    def __repr__(self) -> str:
        return f"<GenerateImages of the run {self._run!r}>"

    def close(self) -> None:
        """Close the connections and end the loop; idempotent."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSING)

    def __del__(self) -> None:
        if hasattr(self, "_client"):
            self.close()

    async def _serve(
        self, opened: "Future[None]", api_key: Any, options: Mapping[str, Any]
    ) -> None:
        """Keep the client open until the worker is closed; runs in the worker's thread."""
        try:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            limits = options.get("limits") or Limits()
            pacing = SharedRate(self._run, {name: getattr(limits, name) for name in _SHARED})
            client = _PacedImages(pacing, api_key=api_key, **_split(options)[1])
            self._client = client
            self._sender = Sender(client, headers={}, stream=self._stream)
        except BaseException as error:  # noqa: BLE001 - raised in `__init__`
            opened.set_exception(error)
            return
        opened.set_result(None)
        async with self._client:
            await self._stop.wait()

    def _in_loop(self, coroutine: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # nothing is sent for a batch that nobody waits for
            future.cancel()
            raise

    async def _execute_all(self, table: list[dict[str, Any]]) -> list[RowResult]:
        room, stopped = asyncio.Semaphore(self._at_once), self._stopped

        async def execute(row: dict[str, Any]) -> RowResult:
            async with room:
                if stopped:  # pay for nothing more
                    error = _not_sent(stopped[0])
                    return RowResult(id=rows.read_id(row, self._id_column), error=error)
                result, stop = await self._execute(row)
                if stop is not None:
                    stopped.append(stop)
                return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(execute(row)) for row in table]
        results = [task.result() for task in tasks]
        # Raising loses the images that are only in memory, so they are returned, and the next batch
        # fails; with a folder they are on disk.
        if stopped and (self._store is not None or not any(result.images for result in results)):
            raise stopped[0]
        return results

    async def _execute(self, row: dict[str, Any]) -> tuple[RowResult, ElkImagesError | None]:
        """Return the result of one row, and the error that should stop the others, or None."""
        # The idempotency key follows from run, row and request alone: a worker that replaces a dead
        # one sends the same, whatever the other had done.
        row_id = rows.read_id(row, self._id_column)
        try:
            request, digest = await asyncio.to_thread(self._read, row)
        except InvalidRequestError as error:
            return RowResult(id=row_id, error=error), None
        idempotency_key = None
        if self._sends_idempotency_keys:
            idempotency_key = rows.make_idempotency_key(self._run, row_id, digest)
        record = None
        if self._store is not None:
            record = await asyncio.to_thread(self._store.find, row_id, digest)
        job = BatchJob(
            index=0,
            id=row_id,
            request=request,
            stem=row_stem(row_id),
            hash=digest,
            idempotency_key=idempotency_key if record is None else record.idempotency_key,
            record=None if record is None else record.made(),
            repeated=True,  # a worker that died may have sent it
        )
        if isinstance(job.record, MadeRecord) and not job.record.urls:
            resumed = await self._row_result(JobResult(job=job, record=job.record), record)
            resumed.resumed = True
            return resumed, None
        result = await Execution(job, self._sender, self._store or RunStore(None, None)).run()
        return await self._row_result(result, record), _stop_after(result)

    def _read(self, row: dict[str, Any]) -> tuple[GenerateRequest | EditRequest, str]:
        request = rows.read_request(row, self._prompt_column, self._defaults)
        return request, full_fingerprint(request, stream=self._stream)

    async def _row_result(self, result: JobResult, earlier: RowRecord | None) -> RowResult:
        job, record, error = result.job, result.record, result.error
        meta, began = record.meta, time.monotonic()
        images: Sequence[Image] = error.images if error is not None else ()
        images = images if result.response is None else result.response
        urls = [image.url for image in images if image.url is not None]
        row = RowResult(
            id=str(job.id),
            idempotency_key=job.idempotency_key,
            error=error,
            usage=record.usage,
            cost=meta.cost if meta else None,
            currency=meta.currency if meta else None,
            request_id=meta.request_id if meta else error.request_id if error else None,
            attempts=result.attempts,
            urls=result.urls or urls,
        )
        if self._store is not None:
            row.paths = self._store.paths(record.files)
        else:
            await _download(row, images)
        # With the time for downloads without a folder, and that of earlier executions.
        row.elapsed = result.elapsed + (time.monotonic() - began)
        row.elapsed += earlier.elapsed if earlier is not None else 0.0
        return row

    def _append(self, batch: Any, results: list[RowResult]) -> Any:
        arrow: Any = importlib.import_module("pyarrow")  # part of ray[data]
        types: dict[str, Any] = {
            "bool": arrow.bool_(),
            "text": arrow.string(),
            "whole": arrow.int64(),
            "number": arrow.float64(),
            "money": arrow.decimal128(rows.MONEY_DIGITS, rows.MONEY_PLACES),
            "text list": arrow.list_(arrow.string()),
            "bytes list": arrow.list_(arrow.large_binary()),
        }
        added = {
            name: arrow.array([row.column(name) for row in results], types[rows.COLUMNS[name]])
            for name in rows.columns_for(folder=self._store is not None)
        }
        if self._id_column not in batch.column_names:
            added[self._id_column] = arrow.array([row.id for row in results], arrow.string())
        replaced = {rows.POSITION, *added}
        table = batch.drop_columns([name for name in batch.column_names if name in replaced])
        for name, column in added.items():
            table = table.append_column(name, column)
        return table


def _run(serve: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve)


async def _download(row: RowResult, images: Sequence[Image]) -> None:
    """Download images, and store their content in the result of a row."""
    for image in images:
        try:
            await image.read()
        except DownloadError as error:
            row.error = error
    row.images = [image.content for image in images if image.content is not None]


def _stop_after(result: JobResult) -> ElkImagesError | None:
    if result.stop is not None:
        return result.stop
    if result.error is None or (reason := fatal_reason(result.error)) is None:
        return None
    return BatchStoppedError(
        f"The worker has stopped because every further row would fail the same way: {result.error}",
        reason=reason,
    )


def _not_sent(stop: ElkImagesError) -> ElkImagesError:
    reason = stop.reason if isinstance(stop, BatchStoppedError) else None
    return BatchStoppedError(f"Not sent: {stop}", reason=reason)


def check_options(options: Mapping[str, Any]) -> None:
    """Check options before a worker is created.

    Raises:
        ConfigurationError: If an option is invalid.
        InvalidRequestError: If a request field has the wrong type.
        TypeError: If an option does not exist.
    """
    if unknown := options.keys() - WorkerOptions.__annotations__.keys():
        raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
    check_count("requests_at_once", options.get("requests_at_once", 1))
    fields, client = _split(options)
    for row in ({"prompt": ""}, {"prompt": "", "image": b""}):
        read_row(row).request(fields)
    AsyncImages(**client)


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of requests, and the arguments of the client without the API key."""
    present = {name: value for name, value in options.items() if value is not None}
    fields = {name: present[name] for name in FIELDS if name in present}
    client = {name: present[name] for name in _CLIENT if name in present}
    client["headers"] = present.get("extra_headers")
    timeout = without_total(make_timeout(present.get("timeout")))
    return fields, {**client, "timeout": timeout, "retry": make_retry(present.get("retry"))}


class _PacedImages(AsyncImages):
    """A client whose attempts wait for the rate of all workers instead of its own."""

    def __init__(self, pacing: Pacing, **options: Any) -> None:
        super().__init__(**options)
        self._settings = msgspec.structs.replace(self._settings, limiter=pacing)
