"""Planning of a batch: checks before the first request, the dry run, and the journal's state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from elkimg_async import InvalidRequestError, MapItem, errors
from elkimg_async.batch.job import BatchJob
from elkimg_async.batch.planner import Planner
from elkimg_async.batch.storage import OutputFolder, RunStore
from elkimg_async.cli.batch_input import BatchInput, InputRow
from elkimg_async.cli.console import OUT, UsageError, count, plain, say, sentence, short
from elkimg_async.cli.options import check_request
from elkimg_async.sansio.requests import image_count

_MAX_SHOWN = 20  # problems that are printed one by one
_EDIT_ONLY, _GENERATE_ONLY = ("input_fidelity",), ("style",)


class Size(NamedTuple):
    """The size of a run: its requests and their images."""

    requests: int
    images: int


def merge(options: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the request of a row, with the options for fields that it does not set."""
    other = _GENERATE_ONLY if "image" in row else _EDIT_ONLY
    return {**{name: value for name, value in options.items() if name not in other}, **row}


def number_of_images(request: dict[str, Any]) -> int:
    return image_count(request.get("n"), request.get("extra_body"))


def check_input(source: BatchInput, options: dict[str, Any]) -> Size:
    """Check all rows before the first request, and print their problems.

    Raises:
        ConfigurationError: If any row cannot be sent, or there is none.
        UsageError: If an option is invalid for a row that does not override it.
    """
    rows = images = wrong = 0
    for row in source.rows():
        rows += 1
        if (problem := _problem(row, options)) is not None:
            wrong += 1
            if wrong <= _MAX_SHOWN:
                say(f"{source.name}, {locate(row)}: {problem}", "red")
        else:
            images += number_of_images(merge(options, row.request))
    if wrong > _MAX_SHOWN:
        say(f"… and {wrong - _MAX_SHOWN:,} more.", "red")
    if wrong:
        raise errors.ConfigurationError(
            f"{wrong:,} of {count(rows, 'request')} cannot be sent, so nothing was sent. Correct "
            f"{'it' if wrong == 1 else 'them'} and run the command again."
        )
    if not rows:
        raise errors.ConfigurationError(f"{source.name} has no prompts.")
    return Size(rows, images)


def locate(row: InputRow) -> str:
    """Return the location of a row, like `line 3 (id fox-7)`."""
    return f"line {row.line}" + ("" if row.id is None else f" (id {plain(str(row.id))})")


def _problem(row: InputRow, options: dict[str, Any]) -> str | None:
    error = row.problem
    if error is not None:
        text = str(error).removesuffix(".") + "."
        return f"column {error.column}: {text}" if error.column else text
    fields = {
        name: value
        for name, value in merge(options, row.request).items()
        if name not in ("id", "metadata")
    }
    try:
        check_request(fields)
    except InvalidRequestError as invalid:
        if (
            invalid.param in options
            and invalid.param not in row.request
            and "model" not in row.request
        ):
            raise UsageError(sentence(invalid)) from None
        return f"{column_of(row, invalid)}{invalid}"
    return None


def column_of(row: InputRow, error: errors.ElkImagesError) -> str:
    """Return the column that an error is about, as the start of a sentence; "" if there is none."""
    param = getattr(error, "param", None)
    return f"column {param}: " if param in row.request else ""


class RunPlan:
    """What remains to be done for each row, according to the journal; nothing is changed.

    Args:
        journal: The journal. None: there are no earlier runs.
        output: The folder of the images.
        skip_failed: Whether failed rows count as done.
    """

    def __init__(self, journal: Path | None, output: Path | None, *, skip_failed: bool) -> None:
        self._store = RunStore(journal, None)
        self._store.peek()
        self._planner = Planner(
            defaults={},
            stream=False,
            idempotency="off" if journal is None else "send",
            skip_failed=skip_failed,
            known=None if journal is None else self._store.record,
            folder=None if output is None else OutputFolder(output),
        )

    def plan(self, index: int, request: dict[str, Any]) -> BatchJob | MapItem:
        """Return what would be sent for the request at `index`, or its item if nothing would be."""
        found = self._planner.plan(index, request)
        return found if isinstance(found, BatchJob) else found.item

    @property
    def paid_images(self) -> int:
        """How many images earlier runs have paid for, or may have paid for."""
        return self._store.replay.images

    def close(self) -> None:
        self._store.close()


def paid_images(journal: Path) -> int:
    """Return how many images the runs of a journal have paid for, or may have paid for."""
    with contextlib.closing(RunPlan(journal, None, skip_failed=False)) as plan:
        return plan.paid_images


def requests_of(
    source: BatchInput, options: dict[str, Any]
) -> Iterator[tuple[InputRow, dict[str, Any]]]:
    """Yield the rows with their requests, with the options filled in."""
    for row in source.rows():
        yield row, merge(options, row.request)


def print_plan(
    source: BatchInput,
    options: dict[str, Any],
    output: Path,
    journal: Path,
    *,
    skip_failed: bool,
) -> int:
    """Print the requests that would be sent and their number, and return the exit code."""
    sent = images = done = wrong = 0
    with contextlib.closing(RunPlan(journal, output, skip_failed=skip_failed)) as plan:
        for index, (row, request) in enumerate(requests_of(source, options)):
            planned = plan.plan(index, request)
            if isinstance(planned, BatchJob):
                sent, images = sent + 1, images + planned.n
                _print_request(row, planned)
            elif planned.resumed or planned.error is None:
                done += 1
            else:
                wrong += 1
                problem = f"{column_of(row, planned.error)}{sentence(planned.error)}"
                say(f"{source.name}, {locate(row)}: {problem}", "red")
    parts = [f"{count(sent, 'request')} for {count(images, 'image')} would be sent"]
    if done:
        parts.append(f"{done:,} {'is' if done == 1 else 'are'} done already")
    if wrong:
        parts.append(f"{wrong:,} cannot be sent")
    OUT.print(f"{', '.join(parts)}.", soft_wrap=True)
    return 2 if wrong else 0


def _print_request(row: InputRow, job: BatchJob) -> None:
    fields = job.request.fields()
    prompt = short(fields.pop("prompt"))
    values = " ".join(f"{name}={value}" for name, value in fields.items())
    OUT.print(f"{locate(row)}: {prompt} {plain(values)}", soft_wrap=True)
