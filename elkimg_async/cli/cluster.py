"""`elkimg batch --ray`: the requests of a run, done by workers on Ray."""

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

from elkimg_async import Limits, MapItem, Timeout, Totals, errors
from elkimg_async.batch.inputs import full_fingerprint
from elkimg_async.batch.job import Job
from elkimg_async.batch.journal import read_error
from elkimg_async.batch.names import job_stem
from elkimg_async.batch.planner import Planner
from elkimg_async.batch.storage import MANIFEST, ManifestLine
from elkimg_async.config import make_base_url
from elkimg_async.image import write_atomically
from elkimg_async.ray import generate_dataset
from elkimg_async.ray.rate import load_ray
from elkimg_async.ray.shared_store import RowRecord, SharedStore
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.sansio.responses import add_usage

_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it would print between our lines
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a thread that was left starts Ray again
}


class RayRun:
    """What a `MapRun` needs, done by Ray Data; a request is the row whose id is the name of its files.

    Args:
        requests: what `map` takes.
        defaults: the options of all requests.
        address: the cluster's; None for RAY_ADDRESS, or else for Ray on this machine.
        api_key: the key.
        base_url: the server; None for the environment's.
        output: where images go; all workers see it.
        concurrency: requests at a time, of all workers together.
        limits: for all workers together.
        timeout: seconds for each request; None for no limit.
        retries: how often to try again; None for the client's default.
    """

    rate = math.inf

    def __init__(
        self,
        requests: Iterable[Any],
        defaults: Mapping[str, Any],
        *,
        address: str | None,
        api_key: str,
        base_url: str | None,
        output: Path,
        concurrency: int,
        limits: Limits,
        timeout: float | None,
        retries: int | None,
    ) -> None:
        self._requests, self._address, self._output = requests, address, output
        self._defaults = {name: value for name, value in defaults.items() if value is not None}
        self._concurrency = concurrency
        self._options: dict[str, Any] = {
            "api_key": api_key,
            "base_url": make_base_url(base_url),
            "limits": msgspec.structs.replace(limits, max_concurrency=concurrency),
            "timeout": Timeout(total=timeout, first_byte=timeout, idle=timeout),
            "retry": retries,
        }
        self._orders: dict[int, GenerateRequest | EditRequest] = {}
        self._lines: list[ManifestLine] = []
        self._items: Iterator[MapItem] = iter(())
        self._totals, self._began = Totals(), time.monotonic()
        self._ray: Any = None

    @property
    def in_flight(self) -> int:
        """How many requests are not done."""
        return len(self._orders)

    def totals(self) -> Totals:
        """What was done so far."""
        return msgspec.structs.replace(self._totals, elapsed=time.monotonic() - self._began)

    async def start(self) -> None:
        """Read all requests and reach the cluster.

        Raises:
            ConfigurationError: by the user: no Ray, no cluster there, or no such file.
        """
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        self._ray = load_ray()
        self._store = SharedStore(str(self._output.absolute()))
        self._begin()  # in the main thread, or Ray warns that it cannot handle signals

    async def next_item(self) -> MapItem | None:
        """What comes next from any worker."""
        try:
            item = await anyio.to_thread.run_sync(self._next, abandon_on_cancel=True)
        except self._ray.exceptions.RayError as error:
            raise errors.BatchError(_reason(error)) from None
        if item is None:
            return None
        old = self._totals
        try:
            files = [path.stat().st_size for path in item.paths]
        except OSError as problem:
            raise errors.BatchError(
                f"A worker has saved an image that is not here ({problem.strerror}): {self._output} must be a "
                "folder that all workers and this machine share.",
                billing="billed",
            ) from None
        self._totals = msgspec.structs.replace(
            old,
            done=old.done + item.ok,
            failed=old.failed + (not item.ok),
            resumed=old.resumed + item.resumed,
            images=old.images + (len(files) if item.ok else 0),
            usage=add_usage(old.usage, item.usage),
            bytes=old.bytes + (sum(files) if item.ok else 0),
        )
        return item

    async def aclose(self) -> None:
        """Leave the cluster, and write the manifest of what is done."""
        # What is interrupted would be told as an error of Ray.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        await anyio.to_thread.run_sync(self._ray.shutdown)
        known = {line.index: line for line in (*_lines_of(self._output / MANIFEST), *self._lines)}
        lines = [known[index] for index in sorted(known)]
        content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        write_atomically(self._output / MANIFEST, content)

    def _begin(self) -> None:
        ray = self._ray
        planner = Planner(
            defaults=self._defaults,
            stream=False,
            idempotency="off",
            skip_failed=False,
            known=None,
            folder=None,
        )
        rows, wrong = [], []
        for index, given in enumerate(self._requests):
            found = planner.plan(index, given)
            if isinstance(found, Job):
                self._orders[index] = found.request
                rows.append(_row(index, found.request))
            else:
                wrong.append(found.item)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            _knock(self._address)
            ray.init(self._address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise errors.ConfigurationError(
                f"There is no Ray cluster to be reached: {_reason(error)}"
            ) from None
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._items = itertools.chain(wrong, self._results(rows))

    def _results(self, rows: list[dict[str, Any]]) -> Iterator[MapItem]:
        if not rows:
            return
        workers = min(len(rows), max(2, sum(node["Alive"] for node in self._ray.nodes())))
        at_once = math.ceil(min(self._concurrency, len(rows)) / workers)
        made = generate_dataset(
            self._ray.data.from_items(rows, override_num_blocks=1),
            run=hashlib.sha256(str(self._output.absolute()).encode()).hexdigest()[:16],
            workers=workers,
            batch_size=at_once,
            requests_at_once=at_once,
            output_dir=str(self._output.absolute()),
            **self._options,
        )
        for row in made.iter_rows():
            yield self._item(row)

    def _next(self) -> MapItem | None:
        return next(self._items, None)

    def _item(self, row: Mapping[str, Any]) -> MapItem:
        request = self._orders.pop(row["index"])
        record, error = None, None
        if row["ok"]:
            record = self._store.find(row["id"], full_fingerprint(request, stream=False))
        else:
            names = {"error": "error", "error_message": "message", "billing": "billing"}
            fields = {theirs: row[ours] for ours, theirs in names.items()}
            error = read_error(fields, attempts=row["attempts"])
        if record is not None:
            self._lines.append(_line(row["index"], record))
        return MapItem(
            index=row["index"],
            request=request,
            error=error,
            paths=[Path(path) for path in row["paths"]],
            attempts=row["attempts"],
            usage=record.usage if record else None,
            resumed=row["resumed"],
        )


def _row(index: int, request: GenerateRequest | EditRequest) -> dict[str, Any]:
    fields = msgspec.structs.asdict(request)
    body = fields["extra_body"]
    fields["extra_body"] = None if body is None else msgspec.json.encode(body).decode()
    return {"id": job_stem(index, request), "index": index, **fields}


def _lines_of(manifest: Path) -> list[ManifestLine]:
    """What an earlier run has written, as far as it can be read."""
    found = []
    if manifest.exists():
        for line in manifest.read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found.append(msgspec.json.decode(line, type=ManifestLine))
    return found


def _line(index: int, record: RowRecord) -> ManifestLine:
    names = ("prompt", "parameters", "files", "usage", "request_id", "idempotency_key")
    return ManifestLine(index=index, **{name: getattr(record, name) for name in names})


def _knock(address: str | None) -> None:
    """Raise an OSError where nobody is at an address; Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10.0).close()


_OURS = re.compile(r"^elkimg_async\.errors\.\w+: (.+)$", re.MULTILINE)


def _reason(error: Exception) -> str:
    """What we said in a worker, or else the last line of what Ray says."""
    said = _OURS.findall(str(error)) or str(error).split("\n")
    return next((line.strip() for line in reversed(said) if line.strip()), type(error).__name__)
