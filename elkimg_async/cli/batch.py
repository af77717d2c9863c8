"""`elkimg batch`."""

from __future__ import annotations

import asyncio
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import Parameter
from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from elkimg_async import Limits, MapItem, MapRun, Totals, errors
from elkimg_async.batch.job import Job
from elkimg_async.batch.planner import Planner
from elkimg_async.batch.storage import OutputFolder, RunStore
from elkimg_async.cli import sheet
from elkimg_async.cli.cluster import RayRun
from elkimg_async.cli.common import WHOLE, Connection, Picture
from elkimg_async.cli.prompts import Input, Item
from elkimg_async.cli.report import ERR, OUT, Report, plain, sentence, short
from elkimg_async.hooks import Record
from elkimg_async.sansio.model_rules import validate

_EVERY = 5.0  # seconds between two lines of progress, where there is no terminal


def batch(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    journal: Path | None = None,
    format: str | None = None,
    concurrency: Annotated[int, WHOLE] = 32,
    rpm: float | None = None,
    ipm: float | None = None,
    skip_failed: bool = False,
    max_errors: Annotated[int | None, WHOLE] = None,
    max_images: Annotated[int | None, WHOLE] = None,
    contact_sheet: Path | None = None,
    dry_run: bool = False,
    ray: bool | str = False,
    picture: Annotated[Picture, Parameter(name="*", group="Picture")] = Picture(),
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = Connection(),
) -> int:
    """Make the images of a whole file of requests; run again, it does what is left.

    The API key is read from the environment variable ELKAPI_API_KEY.

    Args:
        file: The requests, or - for standard input. Each line is a prompt; or, in JSONL, an object with
            the fields of a request; or, in CSV, a row under a header with such fields. What a
            request does not say, the options below do.
        output: The folder for the images and manifest.jsonl; if not given, it is named after the file.
        journal: The file that knows what is done; if not given, journal.jsonl in the folder of the images.
        format: text, jsonl or csv; if not given, as the file's name or its first line tells.
        concurrency: How many requests are under way at a time; 32 if not given.
        rpm: At most so many requests in a minute.
        ipm: At most so many images in a minute.
        skip_failed: Leave what has failed before as it is.
        max_errors: Stop after so many failures.
        max_images: Stop before more images than so many are paid for, those of earlier runs included.
        contact_sheet: Draw all pictures small on this one, or on several when there are very many.
        dry_run: Read and check everything, say what would be sent, and send nothing.
        ray: Let workers on Ray do it: on the cluster at this address, or if none is given, at RAY_ADDRESS,
            or else on this machine. All of them must see the folder, whose files tell what is done, in
            place of a journal. Needs the extra ray.
    """
    if ray is not False:
        _refuse_with_ray(
            journal=journal, max_errors=max_errors, max_images=max_images, skip_failed=skip_failed
        )
    requests = Input(file, format)
    output = output or Path(_folder_name(file, connection.local))
    journal = journal or output / ("journal-local.jsonl" if connection.local else "journal.jsonl")
    _refuse_other_kind(output, journal, ray=ray is not False)
    options = picture.options(None)
    if dry_run:
        return _say_what_is_left(requests, options, output, journal, skip_failed)
    connection.check()
    total = sum(1 for _ in requests.read()) if requests.repeatable else None
    report = BatchReport(total, contact_sheet is not None)
    limits = Limits(requests_per_minute=rpm, images_per_minute=ipm)

    async def run() -> None:
        async with connection.client(report, limits) as client:
            if ray is False:
                made = client.map(
                    requests.read(),
                    concurrency=concurrency,
                    output_dir=output,
                    journal=journal,
                    skip_failed=skip_failed,
                    max_errors=max_errors,
                    max_images=max_images,
                    **options,
                )
            else:
                work = RayRun(
                    requests.read(),
                    options,
                    address=ray if isinstance(ray, str) else None,
                    api_key=connection.key(),
                    base_url=client.base_url,
                    output=output,
                    concurrency=concurrency,
                    limits=limits,
                    timeout=connection.timeout,
                    retries=connection.retries,
                )
                made = MapRun(work)
            async with made as running:
                await report.follow(running)
        if contact_sheet is not None:
            for page in await sheet.draw(report.tiles, contact_sheet):
                report.say(f"Drew {page}")

    try:
        anyio.run(run)
    except errors.BatchStoppedError as error:
        report.stopped(error)
    except errors.ElkImagesError:
        report.print_summary(output)
        raise
    except KeyboardInterrupt:
        report.print_summary(output)
        report.say(f"Interrupted. To go on:\n{_command()}")
        return 130
    report.print_summary(output)
    return 1 if report.failed else 0


def _refuse_with_ray(**given: object) -> None:
    for name, value in given.items():
        if value:
            option = name.replace("_", "-")
            raise errors.ConfigurationError(f"--{option} and --ray do not go together.")


def _refuse_other_kind(output: Path, journal: Path, *, ray: bool) -> None:
    """A run with --ray and one without do not know what the other has paid for."""
    files = output.iterdir() if output.is_dir() else ()
    records = any(re.fullmatch(r"\d{6}.*\.json", file.name) for file in files)
    other = journal.exists() if ray else records and not journal.exists()
    if other:
        raise errors.ConfigurationError(
            f"{output} holds a run {'without' if ray else 'with'} --ray, which would be paid for again; "
            "choose another folder with -o."
        )


class BatchReport(Report):
    """Progress while a run lasts, failures as they happen, and a summary."""

    def __init__(self, total: int | None, keeps_tiles: bool) -> None:
        super().__init__()
        self.tiles: list[sheet.Tile] = []
        self._total, self._keeps_tiles = total, keeps_tiles
        self._totals = Totals()

    def hear(self, record: Record) -> None:
        """Retries are told by the rate and the limit."""

    async def follow(self, run: MapRun) -> None:
        """Take all items of a run, and show how it goes: in a line that changes, or one every few seconds."""
        watcher = asyncio.create_task(self._watch(run))
        try:
            async for item in run:
                self.note(item)
        finally:
            self._totals = run.totals
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self, run: MapRun) -> None:
        if not ERR.is_interactive:
            while True:
                await anyio.sleep(_EVERY)
                self.say(self._progress(run))
        with Live(console=ERR, transient=True, auto_refresh=False) as live:
            while True:
                live.update(Text(self._progress(run), no_wrap=True), refresh=True)
                await anyio.sleep(0.25)

    def _progress(self, run: MapRun) -> str:
        totals = run.totals
        ended = totals.done + totals.failed
        fresh = ended - totals.resumed
        pace = fresh / totals.elapsed if totals.elapsed else 0.0
        of = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{totals.done:,}{of} done", f"{totals.failed:,} failed"]
        parts += [f"{run.in_flight} in flight", f"{pace * 60:.1f}/min"]
        if self._total is not None and pace:
            parts.append(f"{_clock((self._total - ended) / pace)} left")
        if totals.usage and totals.usage.total_tokens is not None:
            parts.append(f"{totals.usage.total_tokens:,} tokens")
        if not math.isinf(run.rate):
            parts.append(f"limit {run.rate * 60:.0f}/min")
        return ", ".join(parts)

    def note(self, item: MapItem) -> None:
        """Tell of a failure, and remember what the contact sheet shows."""
        prompt = item.request.prompt if item.request else ""
        if item.error is not None:
            self.fail(f"{item.index}: {sentence(item.error)}", prompt)
        if self._keeps_tiles:
            prompt = plain(prompt[:100])
            if item.error is not None:
                self.tiles.append(
                    sheet.Tile(item.index, prompt, error=plain(str(item.error))[:300])
                )
            for path in item.paths:
                self.tiles.append(sheet.Tile(item.index, prompt, path))

    def stopped(self, error: errors.BatchStoppedError) -> None:
        """Say which limit was reached."""
        self.failed = True
        if not (error.reason or "").startswith("max_"):
            self.say(f"{plain(sentence(error))} To go on:\n{_command()}", "red")
            return
        option = "--" + (error.reason or "").replace("_", "-")
        self.say(f"Stopped by {option}. To go on, raise it:\n{_command()}", "red")

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line, or a sentence and a command below it."""
        ERR.print("\n".join(map(plain, text.split("\n"))), style=style, soft_wrap=True)

    def print_summary(self, output: Path) -> None:
        """Print what the run has done."""
        totals = self._totals
        table = Table(
            box=box.SIMPLE_HEAD if OUT.is_terminal else None, show_header=False, pad_edge=False
        )
        usage = totals.usage.total_tokens if totals.usage else None
        rows = {
            "done": f"{totals.done:,}",
            "failed": f"{totals.failed:,}",
            "done before": f"{totals.resumed:,}",
            "images": f"{totals.images:,}",
            "bytes": f"{totals.bytes:,}",
            "tokens": "-" if usage is None else f"{usage:,}",
            "time": _clock(totals.elapsed),
            "folder": str(output),
        }
        for name, value in rows.items():
            table.add_row(name, value)
        OUT.print(table, width=None if OUT.is_terminal else 10_000, crop=False)


def _say_what_is_left(
    requests: Input, options: dict[str, Any], output: Path, journal: Path, skip_failed: bool
) -> int:
    """The dry run: one line for each request that would be sent, and the numbers."""
    store = RunStore(journal, None)
    store.peek()
    planner = Planner(
        defaults={name: value for name, value in options.items() if value is not None},
        stream=False,
        idempotency="send",
        skip_failed=skip_failed,
        known=store.record,
        folder=OutputFolder(output),
    )
    sent = images = before = wrong = 0
    try:
        for index, given in enumerate(requests.read()):
            found, problem = _check(planner, index, given)
            if problem is not None:
                wrong += 1
                ERR.print(f"{index}: {plain(sentence(problem))}", style="red", soft_wrap=True)
            elif found is None:
                before += 1
            else:
                sent, images = sent + 1, images + found.n
                fields = found.request.fields()
                prompt = short(fields.pop("prompt"))
                said = " ".join(f"{name}={value}" for name, value in fields.items())
                OUT.print(f"{index}: {prompt} {plain(said)}", soft_wrap=True)
    finally:
        store.close()
    OUT.print(
        f"{sent:,} requests for {images:,} images would be sent, {before:,} are done before, "
        f"{wrong:,} are wrong.",
        soft_wrap=True,
    )
    return 1 if wrong else 0


def _check(
    planner: Planner, index: int, given: Item
) -> tuple[Job | None, errors.ElkImagesError | None]:
    """The order that would be sent, or None for what was done before; or what is wrong."""
    found = planner.plan(index, given)
    if not isinstance(found, Job):
        return None, None if found.item.resumed else found.item.error
    try:
        validate(found.request, stream=False)
    except errors.InvalidRequestError as error:
        return None, error
    return found, None


def _folder_name(file: str, local: bool) -> str:
    stem = "stdin" if file == "-" else Path(file).stem
    return f"{stem}-{'local' if local else 'images'}"


def _command() -> str:
    """What the user typed, to be typed again."""
    program = Path(sys.argv[0])
    start = ["python3", "-m", "elkimg_async"] if program.name == "__main__.py" else [program.name]
    return shlex.join([*start, *sys.argv[1:]])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
