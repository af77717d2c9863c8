"""`elkimg batch`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import Parameter

from elkimg_async import Limits, MapRun, errors
from elkimg_async.cli import contact_sheet as sheet
from elkimg_async.cli.batch_input import BatchInput
from elkimg_async.cli.batch_plan import check_input, print_plan, requests_of
from elkimg_async.cli.batch_report import BatchReport
from elkimg_async.cli.console import UsageError, option_name, say
from elkimg_async.cli.options import (
    CONNECTION,
    NO_BATCH_OPTIONS,
    NUMBER,
    SHOW_IMAGES,
    WHOLE,
    BatchOptions,
    Connection,
    ImageDisplay,
    check_options,
)
from elkimg_async.cli.ray_run import RayRun

EXAMPLES = """\
elkimg batch prompts.txt
elkimg batch prompts.csv -o pictures --quality low --contact-sheet sheet.png
elkimg batch prompts.csv --dry-run
elkimg batch products.csv --keep sku author --rpm 60 --max-images 500
elkimg batch requests.jsonl --json > images.jsonl"""
_FOLDER = Parameter(alias="-o", metavar="FOLDER")


def batch(
    file: Annotated[str, Parameter(allow_leading_hyphen=True, metavar="FILE")],
    /,
    *,
    output: Annotated[Path | None, _FOLDER] = None,
    journal: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    format: Annotated[str | None, Parameter(metavar="text|csv|tsv|json|jsonl")] = None,
    encoding: Annotated[str | None, Parameter(metavar="NAME")] = None,
    keep: Annotated[Sequence[str], Parameter(metavar="COLUMN", consume_multiple=True)] = (),
    concurrency: Annotated[int, WHOLE] = 32,
    rpm: Annotated[float | None, NUMBER] = None,
    ipm: Annotated[float | None, NUMBER] = None,
    skip_failed: bool = False,
    max_errors: Annotated[int | None, WHOLE] = None,
    max_images: Annotated[int | None, WHOLE] = None,
    contact_sheet: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    dry_run: bool = False,
    ray: Annotated[bool | str, Parameter(metavar="[ADDRESS]")] = False,
    image: Annotated[BatchOptions, Parameter(name="*", group="Image")] = NO_BATCH_OPTIONS,
    display: Annotated[ImageDisplay, Parameter(name="*", group="Display")] = SHOW_IMAGES,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """Generate the images of a whole file of prompts; run again, it does what is left.

    The file is a text file with one prompt per line, a table (CSV, TSV, Excel's CSV), a JSON array,
    or JSON Lines, OpenAI's Batch format included. A table needs a column "prompt"; the other
    columns and the JSON fields are the options below (size, n, quality ...), "image" and "mask" for
    edits (paths relative to the file), and "id" to find a row again in manifest.jsonl. Everything
    is checked before the first request; if one line is wrong, nothing is sent.

    Args:
        file: The prompts, or "-" for standard input.
        output: Folder for the images and manifest.jsonl. Default: named after the file.
        journal: File that records what is done. Default: journal.jsonl in the folder.
        format: Format of the file. Default: by its suffix and content.
        encoding: Encoding of the file, such as gbk. Default: by its content.
        keep: Columns to carry along into manifest.jsonl as metadata.
        concurrency: Number of requests at a time. Default: 32.
        rpm: Requests per minute, at most.
        ipm: Images per minute, at most.
        skip_failed: Leave what failed in an earlier run as it is.
        max_errors: Stop after this many failures.
        max_images: Stop before paying for more images than this, earlier runs included.
        contact_sheet: Draw all images as thumbnails into this file (several if there are many).
        dry_run: Check everything, print what would be sent, and send nothing.
        ray: Use Ray workers, on the cluster at this address; without one, at RAY_ADDRESS or else on
            this machine. All must share the folder. Needs: pip install "elkimg-async[ray]"
    """
    use_ray = ray is not False
    if use_ray:
        _reject_with_ray(
            journal=journal, max_errors=max_errors, max_images=max_images, skip_failed=skip_failed
        )
    if concurrency < 1:
        raise UsageError("--concurrency must be at least 1.")
    options = image.given()
    check_options(options)
    limits = Limits(requests_per_minute=rpm, images_per_minute=ipm)
    output = output or Path(_folder_name(file, connection.local))
    journal = journal or output / ("journal-local.jsonl" if connection.local else "journal.jsonl")
    _reject_other_kind(output, journal, ray=use_ray)
    if not dry_run:
        connection.check()
    source = BatchInput(file, format, encoding, keep)
    if source.warning is not None:
        say(source.warning)
    size = check_input(source, options)
    if dry_run:
        return print_plan(source, options, output, journal, skip_failed=skip_failed)
    report = BatchReport(source.name, size, display, keep_tiles=contact_sheet is not None)

    def requests() -> Iterator[dict[str, Any]]:
        for index, (row, request) in enumerate(requests_of(source, options)):
            report.rows[index] = row._replace(request=request)
            yield request

    async def run() -> None:
        async with connection.client(say=report.say, limits=limits) as client:
            if use_ray:
                work = RayRun(
                    requests(),
                    address=ray if isinstance(ray, str) else None,
                    api_key=connection.api_key(),
                    base_url=client.base_url,
                    output=output,
                    concurrency=concurrency,
                    limits=limits,
                    timeout=connection.time_limits(),
                    retries=connection.retries,
                )
                opened = MapRun(work)
            else:
                opened = client.map(
                    requests(),
                    concurrency=concurrency,
                    output_dir=output,
                    journal=journal,
                    skip_failed=skip_failed,
                    max_errors=max_errors,
                    max_images=max_images,
                )
            async with opened as running:
                await report.follow(running)
        if contact_sheet is not None:
            for page in await sheet.draw(report.tiles, contact_sheet):
                report.say(f"Saved {page}")

    try:
        anyio.run(run)
    except errors.BatchStoppedError as error:
        report.stopped(error, output, journal)
        return 1
    except errors.ElkImagesError:
        report.broken(output)
        raise
    except KeyboardInterrupt:
        report.interrupted(output)
        return 130
    report.finish(output)
    report.show(contact_sheet or output)
    return 1 if report.failed else 0


def _reject_with_ray(**options: object) -> None:
    for name, value in options.items():
        if value:
            raise UsageError(f"{option_name(name)} and --ray cannot be used together.")


def _reject_other_kind(output: Path, journal: Path, *, ray: bool) -> None:
    """Reject a folder of the other kind of run: neither kind knows what the other has paid for."""
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
