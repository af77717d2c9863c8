"""`elkimg batch`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from cyclopts import Parameter

from elkimg_async import AsyncImages, Limits, MapRun, errors
from elkimg_async.batch.budget import make_max_cost
from elkimg_async.cli import contact_sheet as sheet
from elkimg_async.cli import interrupts
from elkimg_async.cli.batch_input import BatchInput
from elkimg_async.cli.batch_plan import check_input, print_plan, requests_of
from elkimg_async.cli.batch_report import BatchReport
from elkimg_async.cli.console import UsageError, option_name, say, sentence
from elkimg_async.cli.options import (
    CONNECTION,
    NO_BATCH_OPTIONS,
    NUMBER,
    SHOW_IMAGES,
    WHOLE,
    BatchOptions,
    Connection,
    FileName,
    ImageDisplay,
    check_options,
    values,
)
from elkimg_async.cli.ray_run import RayRun

EXAMPLES = """\
elkimg batch prompts.txt
elkimg batch prompts.csv -o images --quality low --contact-sheet sheet.png
elkimg batch prompts.csv --dry-run
elkimg batch products.csv --keep sku author --rpm 60 --max-images 500
elkimg batch requests.jsonl --json > images.jsonl"""
_Format: TypeAlias = Literal["text", "csv", "tsv", "json", "jsonl"] | str
_FOLDER = Parameter(alias="-o", metavar="FOLDER")


def batch(
    file: Annotated[FileName, Parameter(allow_leading_hyphen=True, metavar="FILE")],
    /,
    *,
    output: Annotated[Path | None, _FOLDER] = None,
    journal: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    format: Annotated[_Format | None, values("text|csv|tsv|json|jsonl")] = None,
    encoding: Annotated[str | None, Parameter(metavar="NAME")] = None,
    keep: Annotated[Sequence[str], Parameter(metavar="COLUMN...", consume_multiple=True)] = (),
    concurrency: Annotated[int, WHOLE] = 32,
    rpm: Annotated[float | None, NUMBER] = None,
    ipm: Annotated[float | None, NUMBER] = None,
    skip_failed: bool = False,
    max_errors: Annotated[int | None, WHOLE] = None,
    max_images: Annotated[int | None, WHOLE] = None,
    max_cost: Annotated[str | None, Parameter(metavar="AMOUNT")] = None,
    contact_sheet: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    dry_run: bool = False,
    ray: Annotated[bool | str, Parameter(metavar="[ADDRESS]")] = False,
    image: Annotated[BatchOptions, Parameter(name="*", group="Image")] = NO_BATCH_OPTIONS,
    display: Annotated[ImageDisplay, Parameter(name="*", group="Display")] = SHOW_IMAGES,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """Generate images for a file of prompts; run the command again to do what remains.

    The file is a text file with one prompt per line, a table (CSV, TSV, Excel's CSV), a JSON array,
    or JSON Lines, including OpenAI's Batch format. A table needs a column "prompt"; the other
    columns and the JSON fields are the options below (size, n, quality ...), "image" and "mask" for
    edits (paths relative to the file), and "id" to identify a row in manifest.jsonl. Everything is
    checked before the first request; if one line is invalid, nothing is sent.

    Args:
        file: The prompts, or "-" for standard input.
        output: Folder for the images and manifest.jsonl. Default: named after the file.
        journal: File that records what is done. Default: journal.jsonl in the folder.
        format: Format of the file. Default: detected from its suffix and content.
        encoding: Encoding of the file, such as gbk. Default: detected from its content.
        keep: Columns to copy into manifest.jsonl as metadata.
        concurrency: Maximum number of requests at a time. Default: 32.
        rpm: Maximum number of requests per minute.
        ipm: Maximum number of images per minute.
        skip_failed: Do not retry what failed in an earlier run.
        max_errors: Stop after this many failures.
        max_images: Stop before paying for more images than this, earlier runs included.
        max_cost: Stop before paying more than this, earlier runs included; needs --price-file.
        contact_sheet: Draw thumbnails of all images into this file (several files if many).
        dry_run: Check everything, print what would be sent, and send nothing.
        ray: Use Ray workers, on the cluster at this address; without one, at RAY_ADDRESS or else on
            this machine. All must share the folder. Needs: pip install "elkimg-async[ray]"
        image: Options of the image.
        display: What is printed.
        connection: Where requests go.
    """
    stops = {"max_errors": max_errors, "max_images": max_images, "max_cost": max_cost}
    if ray is not False:
        _reject_with_ray(journal=journal, **stops, skip_failed=skip_failed)
    output = output or Path(_folder_name(file, connection.local))
    journal = journal or output / ("journal-local.jsonl" if connection.local else "journal.jsonl")
    run_options = {**stops, "skip_failed": skip_failed, "concurrency": concurrency}
    settings = _RunSettings(output, journal, ray, _make_limits(rpm, ipm), run_options)
    settings.check(connection)
    display.check()
    if contact_sheet is not None:
        sheet.check_path(contact_sheet)
    options = image.options()
    check_options(options)
    connection.check(api_key=not dry_run)
    source = BatchInput(file, format, encoding, keep)
    if source.warning is not None:
        say(source.warning)
    size = check_input(source, options)
    if dry_run:
        return print_plan(source, options, output, journal, skip_failed=skip_failed)
    report = BatchReport(
        source.name,
        size,
        display,
        output=output,
        journal=journal,
        rpm=rpm,
        keep_tiles=contact_sheet is not None,
    )
    requests = _requests(source, options, report)
    return _run(requests, settings, connection, report, contact_sheet)


class _RunSettings(NamedTuple):
    """Settings of a run, apart from its requests and its server; `options` are those of `map`."""

    output: Path
    journal: Path
    ray: bool | str
    limits: Limits
    options: dict[str, Any]

    def check(self, connection: Connection) -> None:
        """Reject invalid settings before anything is read or opened."""
        for name in ("concurrency", "max_errors", "max_images"):
            value = self.options[name]
            if value is not None and value < 1:
                raise UsageError(f"{option_name(name)} must be at least 1.")
        max_cost = self.options["max_cost"]
        try:
            make_max_cost(max_cost)
        except errors.ConfigurationError:
            raise UsageError("--max-cost must be an amount of more than 0, such as 20.") from None
        if max_cost is not None and connection.price_file is None:
            raise UsageError("--max-cost requires prices; add --price-file FILE.")
        _reject_other_kind(self.output, self.journal, ray=self.ray is not False)

    def open(
        self, client: AsyncImages, connection: Connection, requests: Iterator[dict[str, Any]]
    ) -> MapRun:
        """Return the run, in this process or on Ray."""
        if self.ray is False:
            return client.map(
                requests, output_dir=self.output, journal=self.journal, **self.options
            )
        work = RayRun(
            requests,
            address=self.ray if isinstance(self.ray, str) else None,
            output=self.output,
            concurrency=self.options["concurrency"],
            limits=self.limits,
            pricing=connection.prices(),
            api_key=connection.api_key(),
            base_url=client._settings.url(""),  # noqa: SLF001
            timeout=connection.time_limits(),
            retry=connection.retries,
        )
        return MapRun(work)


def _run(
    requests: Iterator[dict[str, Any]],
    settings: _RunSettings,
    connection: Connection,
    report: BatchReport,
    contact_sheet: Path | None,
) -> int:
    """Run all requests, print the summary, and return the exit code."""
    began = False

    async def run() -> None:
        nonlocal began
        opened = connection.client(say=report.display.say, limits=settings.limits)
        async with opened as client, settings.open(client, connection, requests) as running:
            began = True
            await report.follow(running)
        if contact_sheet is not None:
            for page in await sheet.draw(report.tiles, contact_sheet):
                report.display.say(f"Saved {page}")

    try:
        interrupts.run(run)
    except errors.BatchStoppedError as error:
        report.stopped(error)
        return 1
    except errors.ElkImagesError as error:
        if not began:
            raise
        report.broken()
        say(sentence(error))
        return 1
    except KeyboardInterrupt:
        report.interrupted()
        return 130
    report.finish()
    report.show(contact_sheet or settings.output)
    return 1 if report.failed else 0


def _requests(
    source: BatchInput, options: dict[str, Any], report: BatchReport
) -> Iterator[dict[str, Any]]:
    for index, (row, request) in enumerate(requests_of(source, options)):
        report.rows[index] = row._replace(request=request)
        yield request


def _make_limits(rpm: float | None, ipm: float | None) -> Limits:
    try:
        return Limits(requests_per_minute=rpm, images_per_minute=ipm)
    except errors.ConfigurationError as error:
        raise UsageError(sentence(error)) from None


def _reject_with_ray(**options: object) -> None:
    for name, value in options.items():
        if value:
            raise UsageError(f"{option_name(name)} and --ray cannot be used together.")


def _reject_other_kind(output: Path, journal: Path, *, ray: bool) -> None:
    """Reject a folder of the other kind of run, since neither knows what the other has paid for."""
    files = output.iterdir() if output.is_dir() else ()
    records = any(re.fullmatch(r"\d{6}.*\.json", file.name) for file in files)
    other = journal.exists() if ray else records and not journal.exists()
    if other:
        raise errors.ConfigurationError(
            f"{output} holds a run {'without' if ray else 'with'} --ray, whose images would be "
            "paid for again; choose another folder with -o."
        )


def _folder_name(file: str, local: bool) -> str:
    stem = "stdin" if file == "-" else Path(file).stem
    return f"{stem}-{'local' if local else 'images'}"
