"""`elkimg batch --ray`: a run whose requests are sent by Ray workers."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from elkimg_async import Limits, MapItem, Pricing, Totals, errors
from elkimg_async.batch.inputs import full_fingerprint
from elkimg_async.batch.job import BatchJob
from elkimg_async.batch.run import add_item, make_item
from elkimg_async.batch.storage import MANIFEST, ManifestLine
from elkimg_async.cli.batch_plan import RunPlan
from elkimg_async.error_records import read_error
from elkimg_async.files import write_atomically
from elkimg_async.ray import generate_dataset
from elkimg_async.ray.rate import load_ray
from elkimg_async.ray.shared_store import RowRecord, SharedStore
from elkimg_async.transport.uploads import image_list

_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's log lines would appear between ours
    "RAY_ENABLE_AUTO_CONNECT": "0",  # an abandoned thread would restart Ray
}


class RayRun:
    """Backend of a `MapRun` that uses Ray Data; the id of a Ray row is the name of its files.

    Args:
        requests: Requests as `map` accepts them.
        address: Address of the cluster. None: RAY_ADDRESS, else Ray on this machine.
        output: Folder for the images, shared by all workers.
        concurrency: Maximum number of requests at a time, of all workers together.
        limits: Limits for all workers together.
        pricing: The prices of requests. None: unknown.
        options: Further options of the workers' clients.
    """

    rate = math.inf

    def __init__(
        self,
        requests: Iterable[dict[str, Any]],
        *,
        address: str | None,
        output: Path,
        concurrency: int,
        limits: Limits,
        pricing: Pricing | None,
        **options: Any,
    ) -> None:
        self._requests, self._address, self._output = requests, address, output
        self._concurrency = concurrency
        self._options = {
            **options,
            "limits": msgspec.structs.replace(limits, max_concurrency=concurrency),
            "pricing": pricing,
        }
        self._pending: dict[int, BatchJob] = {}
        self._lines: list[ManifestLine] = []
        self._items: Iterator[MapItem] = iter(())
        self._totals = Totals(currency=pricing.currency if pricing else None)
        self._began = time.monotonic()
        self._ray: Any = None

    @property
    def in_flight(self) -> int:
        """How many requests are not done."""
        return len(self._pending)

    def totals(self) -> Totals:
        return msgspec.structs.replace(self._totals, elapsed=time.monotonic() - self._began)

    async def start(self) -> None:
        """Read all requests and connect to the cluster.

        Raises:
            ConfigurationError: If Ray is not installed, or the cluster cannot be reached.
        """
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        self._ray = load_ray()
        self._store = SharedStore(str(self._output.absolute()))
        self._begin()  # in the main thread, or Ray warns that it cannot handle signals

    async def next_item(self) -> MapItem | None:
        """Return the next item from any worker, None at the end."""
        try:
            item = await anyio.to_thread.run_sync(self._next, abandon_on_cancel=True)
        except self._ray.exceptions.RayError as error:
            raise errors.BatchError(_reason(error)) from None
        if item is None:
            return None
        try:
            files = [path.stat().st_size for path in item.paths]
        except OSError as problem:
            raise errors.BatchError(
                f"A worker saved an image that cannot be found here ({problem.strerror}): "
                f"{self._output} must be a folder that all workers and this machine share.",
                billing="billed",
            ) from None
        images, size = (len(files), sum(files)) if item.ok else (0, 0)
        self._totals = add_item(self._totals, item, images=images, size=size)
        return item

    async def aclose(self) -> None:
        """Leave the cluster and write the manifest."""
        # Ray would log the interruption as an error of its own.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        await anyio.to_thread.run_sync(self._ray.shutdown)
        known = {line.index: line for line in (*_lines_of(self._output / MANIFEST), *self._lines)}
        lines = [known[index] for index in sorted(known)]
        content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        write_atomically(self._output / MANIFEST, content)

    def _begin(self) -> None:
        ray = self._ray
        plan = RunPlan(None, None, skip_failed=False)
        rows, wrong = [], []
        for index, request in enumerate(self._requests):
            planned = plan.plan(index, request)
            if isinstance(planned, MapItem):
                wrong.append(planned)
            else:
                self._pending[index] = planned
                rows.append(_row(planned))
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            _check_address(self._address)
            ray.init(self._address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise errors.ConfigurationError(
                f"The Ray cluster cannot be reached: {_reason(error)}"
            ) from None
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._items = itertools.chain(wrong, self._results(rows))

    def _results(self, rows: list[dict[str, Any]]) -> Iterator[MapItem]:
        if not rows:
            return
        workers = min(len(rows), max(2, sum(node["Alive"] for node in self._ray.nodes())))
        batch_size = math.ceil(min(self._concurrency, len(rows)) / workers)
        made = generate_dataset(
            self._ray.data.from_items(rows, override_num_blocks=1),
            run=hashlib.sha256(str(self._output.absolute()).encode()).hexdigest()[:16],
            workers=workers,
            batch_size=batch_size,
            requests_at_once=batch_size,
            output_dir=str(self._output.absolute()),
            **self._options,
        )
        for row in made.iter_rows():
            yield self._item(row)

    def _next(self) -> MapItem | None:
        return next(self._items, None)

    def _item(self, row: Mapping[str, Any]) -> MapItem:
        job = self._pending.pop(row["index"])
        record, error = None, None
        if row["ok"]:
            record = self._store.find(row["id"], full_fingerprint(job.request, stream=False))
        else:
            columns = {"error": "error", "message": "error_message", "billing": "billing"}
            fields = {name: row[column] for name, column in columns.items()}
            error = read_error(fields, attempts=row["attempts"])
        if record is not None:
            self._lines.append(_line(record, job))
        return make_item(
            index=job.index,
            id=job.id,
            metadata=job.metadata,
            request=job.request,
            error=error,
            paths=[Path(path) for path in row["paths"]],
            attempts=row["attempts"],
            usage=record.usage if record else None,
            meta=record.made().meta if record else None,
            resumed=row["resumed"],
        )


def _row(job: BatchJob) -> dict[str, Any]:
    fields = msgspec.structs.asdict(job.request)
    for name in ("image", "mask", "markup"):  # workers have working directories of their own
        if fields.get(name) is not None:
            paths = [_absolute(value) for value in image_list(fields[name])]
            fields[name] = paths if name == "image" else paths[0]
    body = fields["extra_body"]
    fields["extra_body"] = None if body is None else msgspec.json.encode(body).decode()
    return {"id": job.stem, "index": job.index, **fields}


def _lines_of(manifest: Path) -> list[ManifestLine]:
    """Return the lines of earlier runs that can be read."""
    found = []
    if manifest.exists():
        for line in manifest.read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found.append(msgspec.json.decode(line, type=ManifestLine))
    return found


def _absolute(value: Any) -> Any:
    if not isinstance(value, str) or value.startswith(("http://", "https://", "data:")):
        return value
    return str(Path(value).absolute())


def _line(record: RowRecord, job: BatchJob) -> ManifestLine:
    shared = set(ManifestLine.__struct_fields__) & set(RowRecord.__struct_fields__) - {"id"}
    fields = {name: getattr(record, name) for name in shared}
    return ManifestLine(index=job.index, id=job.id, metadata=job.metadata, **fields)


def _check_address(address: str | None) -> None:
    """Raise OSError if nothing listens at an address; Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10.0).close()


_OURS = re.compile(r"^elkimg_async\.errors\.\w+: (.+)$", re.MULTILINE)


def _reason(error: Exception) -> str:
    """Return the message of our own error in a worker, else the last line of Ray's."""
    lines = _OURS.findall(str(error)) or str(error).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), type(error).__name__)
