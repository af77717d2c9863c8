"""What Ray Data calls in each of its workers: one client, in an event loop of its own."""

import asyncio
import contextlib
import importlib
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Unpack

import msgspec

from elkimg_async.batch.executor import (
    IN_FLIGHT_LIMIT,
    IN_FLIGHT_PAUSE,
    Slots,
    divide,
    fetch,
    slots_of,
    waiting,
)
from elkimg_async.batch.journal import PendingImage, SavedFile, fingerprint
from elkimg_async.client import AsyncImages
from elkimg_async.config import (
    IdempotencyMode,
    Limits,
    Pacing,
    ValidateMode,
    default_key,
    make_retry,
    make_timeout,
)
from elkimg_async.errors import (
    APIError,
    BatchError,
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
from elkimg_async.sansio.requests import GenerateRequest, make_request
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.sansio.retry import is_in_flight
from elkimg_async.transport.download import connect_image
from elkimg_async.types import GenerateOptions

_CLOSING = 5.0  # seconds for the connections to be closed


class WorkerOptions(GenerateOptions, total=False):
    """The options of `GenerateImages`, whose docstring says what they mean."""

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


_SHARED = ("max_concurrency", "requests_per_minute", "images_per_minute")
_CLIENT = ("base_url", "idempotency", "validate", "limits")


class GenerateImages:
    """A class for `Dataset.map_batches` with an actor pool: one client in each worker.

        ds.map_batches(
            GenerateImages,
            fn_constructor_kwargs={"run": "cats", "size": "1024x1024"},
            batch_format="pyarrow",
            batch_size=64,
            compute=ray.data.ActorPoolStrategy(size=4),
        )

    It needs batches of the format pyarrow, and a column of ids; `generate_dataset` sees to both.

    Args:
        run: The name of the run: part of each idempotency key, and of the actor's name whose rate all workers of
            the run share. It must be the same for all of them.
        prompt_column: The column of prompts; `prompt` if not given.
        id_column: The column of ids, different in each row; `id` if not given.
        requests_at_once: How many rows of its batch a worker does at a time; 16 if not given.
        output_dir: A folder that all workers see, for images named after the ids, with a JSON file beside them for
            each row that was made. What is there whole is not asked for again, and what still waits at its
            URL is only fetched. None: the column `images`.
        limits: What all workers share together, as all calls of a client do. None: `Limits()`.
        api_key: The key, better as `ray.put(key)`, which keeps it out of the plan; or an async function
            that returns it. None: ELKAPI_API_KEY in the worker's environment.
        base_url, idempotency, validate: Those of `AsyncImages`.
        stream: Ask for streams, which keep connections alive through proxies that cut silent ones.
        options: Those of `AsyncImages.generate`, for rows that do not say otherwise. Without a total time in
            `timeout`, a row waits for its turn as long as it takes.

    Raises:
        ConfigurationError, InvalidRequestError: by the caller, for options that cannot work.
    """

    def __init__(self, *, run: str, **options: Unpack[WorkerOptions]) -> None:
        ray = load_ray()
        check_options(options)
        key: Any = options.get("api_key")
        if isinstance(key, ray.ObjectRef):
            key = ray.get(key)
        if key is None:
            default_key()  # fails here, once, and not in each row
        self._run = run
        self._prompt_column = options.get("prompt_column", "prompt")
        self._id_column = options.get("id_column", "id")
        self._at_once = options.get("requests_at_once", 16)
        self._stream = options.get("stream", False)
        self._keys = options.get("idempotency", "send") != "off"
        folder = options.get("output_dir")
        self._store = None if folder is None else SharedStore(str(folder))
        self._defaults, _ = _split(options)
        opened: Future[None] = Future()
        serve = self._serve(opened, key, options)
        # A daemon, so that a worker that is told to end does.
        self._thread = threading.Thread(
            target=asyncio.run, args=(serve,), name="elkimg-ray", daemon=True
        )
        self._thread.start()
        opened.result()

    def __call__(self, batch: Any) -> Any:
        """The same table with the columns of what became of its rows.

        Raises:
            ConfigurationError: by the caller: not a pyarrow table, or one without prompts or ids.
            BatchError: by the disk, which takes no more images.
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
                "id_column=…, or call generate_dataset, which makes them."
            )
        used = {self._prompt_column, self._id_column, rows.POSITION, *rows.FIELDS}
        asked = batch.select([name for name in batch.column_names if name in used]).to_pylist()
        return self._append(batch, self._in_loop(self._do_all(asked)))

    def __repr__(self) -> str:
        return f"<GenerateImages of the run {self._run!r}>"

    def close(self) -> None:
        """Close the connections and end the loop; a second time does nothing."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSING)

    def __del__(self) -> None:
        if hasattr(self, "_client"):
            self.close()

    async def _serve(self, opened: "Future[None]", key: Any, options: Mapping[str, Any]) -> None:
        """What the thread does: keep the client open until the worker is closed."""
        try:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            limits = options.get("limits") or Limits()
            pacing = SharedRate(self._run, {name: getattr(limits, name) for name in _SHARED})
            self._client = _PacedImages(pacing, api_key=key, **_split(options)[1])
        except BaseException as error:  # noqa: BLE001 - raised for the caller
            opened.set_exception(error)
            return
        opened.set_result(None)
        async with self._client:
            await self._stop.wait()

    def _in_loop(self, coroutine: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _do_all(self, asked: list[dict[str, Any]]) -> list[RowResult]:
        room = asyncio.Semaphore(self._at_once)
        lost: list[BatchError] = []

        async def do(row: dict[str, Any]) -> RowResult | None:
            async with room:
                if lost:
                    return None  # the disk is full: pay for nothing more
                try:
                    return await self._do(row)
                except BatchError as error:
                    lost.append(error)
                    return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(do(row)) for row in asked]
        if lost:
            raise lost[0]
        return [outcome for task in tasks if (outcome := task.result()) is not None]

    async def _do(self, row: dict[str, Any]) -> RowResult:
        """One row: found, fetched, made, or failed."""
        began = time.monotonic()
        outcome = RowResult(id=rows.read_id(row, self._id_column))
        try:
            request = rows.read_request(row, self._prompt_column, self._defaults)
            mark = fingerprint(request, stream=self._stream)
        except InvalidRequestError as error:
            outcome.error = error
            return outcome
        outcome.key = rows.make_key(self._run, outcome.id, mark) if self._keys else None
        if self._store is not None:
            record = await asyncio.to_thread(self._store.find, outcome.id, mark)
            if record is not None:
                outcome = _found(record, self._store)
                if record.urls:
                    await self._keep(outcome, record, slots_of(record.urls, self._client.connect))
                return outcome
        try:
            response = await self._answer(request, outcome.key)
            images, meta = list(response), response.meta
            outcome.usage, outcome.request_id = response.usage, meta.request_id
            outcome.attempts = meta.attempts
        except ElkImagesError as error:
            outcome.error, outcome.attempts = error, error.attempts
            outcome.request_id = error.request_id
            images = [image for image in getattr(error, "images", ()) if image.content]
        outcome.urls = [image.url for image in images if image.url is not None]
        outcome.elapsed = time.monotonic() - began
        if self._store is None:
            await _read(outcome, images)
        else:
            record = _new_record(outcome, request, mark)
            await self._keep(outcome, record, list(enumerate(images)))
        return outcome

    async def _answer(self, request: GenerateRequest, key: str | None) -> ImagesResponse:
        """Ask; and while the attempt of a worker that died is still being answered, ask again."""
        began = time.monotonic()
        while True:
            try:
                return await self._ask(request, key)
            except APIError as error:
                if not is_in_flight(error) or time.monotonic() - began > IN_FLIGHT_LIMIT:
                    raise
            await asyncio.sleep(IN_FLIGHT_PAUSE)

    async def _ask(self, request: GenerateRequest, key: str | None) -> ImagesResponse:
        headers = None if key is None else {"Idempotency-Key": key}
        if not self._stream:
            return await self._client.generate(request, extra_headers=headers)
        async with self._client.generate(request, stream=True, extra_headers=headers) as stream:
            return await stream.result()

    async def _keep(self, outcome: RowResult, record: RowRecord, slots: Slots) -> None:
        """Bring images to the disk, those behind URLs after noting where they are."""
        shared_store, began = self._store, time.monotonic()
        assert shared_store is not None
        many = len(record.files) + len(slots) > 1

        async def save(slots: Slots) -> tuple[SavedFile, ...]:
            return await asyncio.to_thread(shared_store.write, outcome.id, slots, many=many)

        here, left = divide(slots)
        try:
            record = _with(record, await save(here), waiting(left))
            if left:
                await asyncio.to_thread(shared_store.note, record)
            saved, urls, failure = await fetch(left, save)
            outcome.error = outcome.error or failure
            outcome.elapsed += time.monotonic() - began
            record = _with(record, saved, urls, elapsed=outcome.elapsed)
            outcome.paths = shared_store.paths(record.files)
            if outcome.error is None or urls:
                await asyncio.to_thread(shared_store.note, record)
        except OSError as problem:
            raise BatchError(
                f"The image was made, but cannot be saved: {problem.strerror}. Mend that, and start "
                "the same run again.",
                billing="billed",
                request_id=outcome.request_id,
            ) from None

    def _append(self, batch: Any, outcomes: list[RowResult]) -> Any:
        arrow: Any = importlib.import_module("pyarrow")  # part of ray[data]
        types: dict[str, Any] = {
            "bool": arrow.bool_(),
            "text": arrow.string(),
            "whole": arrow.int64(),
            "number": arrow.float64(),
            "text list": arrow.list_(arrow.string()),
            "bytes list": arrow.list_(arrow.large_binary()),
        }
        added = {
            name: arrow.array([done.column(name) for done in outcomes], types[rows.COLUMNS[name]])
            for name in rows.columns_for(folder=self._store is not None)
        }
        if self._id_column not in batch.column_names:
            added[self._id_column] = arrow.array([done.id for done in outcomes], arrow.string())
        replaced = {rows.POSITION, *added}
        table = batch.drop_columns([name for name in batch.column_names if name in replaced])
        for name, column in added.items():
            table = table.append_column(name, column)
        return table


_KEPT = ("id", "key", "usage", "request_id", "attempts", "elapsed")


def _found(record: RowRecord, shared_store: SharedStore) -> RowResult:
    kept = {name: getattr(record, name) for name in _KEPT}
    urls = [where.url for where in record.urls]
    return RowResult(paths=shared_store.paths(record.files), urls=urls, resumed=not urls, **kept)


def _new_record(outcome: RowResult, request: GenerateRequest, mark: str) -> RowRecord:
    kept = {name: getattr(outcome, name) for name in _KEPT}
    parameters = request.fields() | (request.extra_body or {})
    parameters.pop("prompt", None)
    return RowRecord(hash=mark, prompt=request.prompt, parameters=parameters, files=(), **kept)


def _with(
    record: RowRecord, files: tuple[SavedFile, ...], urls: tuple[PendingImage, ...], **changes: Any
) -> RowRecord:
    known = sorted(record.files + files, key=lambda file: file.position)
    return msgspec.structs.replace(record, files=tuple(known), urls=urls, **changes)


async def _read(outcome: RowResult, images: Sequence[Image]) -> None:
    """Bring images into the outcome."""
    began = time.monotonic()
    for image in images:
        try:
            await image.read()
        except DownloadError as error:
            outcome.error = error
    outcome.images = [image.content for image in images if image.content is not None]
    outcome.elapsed += time.monotonic() - began


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what cannot work, before there is a worker.

    Raises:
        ConfigurationError, InvalidRequestError, TypeError: by the caller.
    """
    if unknown := options.keys() - WorkerOptions.__annotations__.keys():
        raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
    at_once = options.get("requests_at_once", 1)
    if type(at_once) is not int or at_once < 1:
        raise ConfigurationError("requests_at_once must be a whole number of at least 1.")
    fields, client = _split(options)
    make_request({**fields, "prompt": ""}, {})
    AsyncImages(**client)


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of requests, and the arguments of the client; neither has the key."""
    given = {name: value for name, value in options.items() if value is not None}
    fields = {name: given[name] for name in rows.FIELDS if name in given}
    client = {name: given[name] for name in _CLIENT if name in given}
    client["headers"] = given.get("extra_headers")
    timeout = make_timeout(given.get("timeout"))
    if timeout.total is None:
        timeout = msgspec.structs.replace(timeout, total=math.inf)
    return fields, {**client, "timeout": timeout, "retry": make_retry(given.get("retry"))}


class _PacedImages(AsyncImages):
    """A client whose attempts wait for the rate of all workers in place of its own."""

    def __init__(self, pacing: Pacing, **options: Any) -> None:
        super().__init__(**options)
        self._settings = msgspec.structs.replace(self._settings, limiter=pacing)

    def connect(self, image: Image) -> None:
        """Teach an image to fetch its URL."""
        connect_image(image, self._transport, self._settings)
