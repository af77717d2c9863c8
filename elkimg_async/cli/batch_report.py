"""Output of `elkimg batch`: progress, failures, a summary, and what to do next."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import shlex
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
from rich.live import Live
from rich.text import Text

from elkimg_async import Image, MapItem, MapRun, Totals, errors
from elkimg_async.batch.budget import fatal_reason
from elkimg_async.cli import contact_sheet
from elkimg_async.cli.batch_input import InputRow
from elkimg_async.cli.batch_plan import (
    Size,
    column_of,
    locate,
    number_of_images,
    paid_images,
)
from elkimg_async.cli.console import (
    ERR,
    OUT,
    amounts,
    count,
    json_amount,
    open_in_viewer,
    option_name,
    plain,
    print_json,
    say,
    sentence,
    short,
)
from elkimg_async.cli.options import ImageDisplay
from elkimg_async.cli.output import rescue

_EVERY = 5.0  # seconds between lines of progress without a terminal
_FAR = 10  # a limit is not shown if it exceeds the pace by this factor
_LIMITS = ("max_errors", "max_images", "max_cost")


class BatchReport:
    """Progress while a run lasts, failures as they happen, and a summary."""

    def __init__(
        self,
        name: str,
        size: Size,
        display: ImageDisplay,
        *,
        output: Path,
        journal: Path,
        rpm: float | None = None,
        keep_tiles: bool = False,
    ) -> None:
        self.tiles: list[contact_sheet.Tile] = []
        self.rows: dict[int, InputRow] = {}
        """Rows whose item is still pending, by index."""
        self.display = display
        self._name, self._size = name, size
        self._output, self._journal = output, journal
        self._limit = math.inf if rpm is None else rpm / 60
        self._keep_tiles = keep_tiles
        self._totals, self._done_images = Totals(), 0
        self._first_lines: dict[str, int] = {}  # of each kind of failure
        self._fatal: set[str] = set()

    @property
    def failed(self) -> bool:
        return self._totals.failed > 0

    @property
    def remaining(self) -> int:
        """How many requests are not done."""
        return self._size.requests - self._totals.done

    async def follow(self, run: MapRun) -> None:
        """Read all items of a run and show progress: a changing line, or one every few seconds."""
        watcher = asyncio.create_task(self._watch(run))
        try:
            async for item in run:
                await self._note(item)
        finally:
            self._totals = run.totals
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self, run: MapRun) -> None:
        if self.display.quiet:
            return
        if not ERR.is_interactive:
            while True:
                await anyio.sleep(_EVERY)
                say(self._progress(run))
        with Live(console=ERR, transient=True, auto_refresh=False) as live:
            while True:
                text = Text(self._progress(run), no_wrap=True, overflow="ellipsis")
                live.update(text, refresh=True)
                await anyio.sleep(0.25)

    def _progress(self, run: MapRun) -> str:
        totals = run.totals
        ended = totals.done + totals.failed
        pace = (ended - totals.resumed) / totals.elapsed if totals.elapsed else 0.0
        parts = [f"{totals.done:,} of {self._size.requests:,} done"]
        if totals.failed:
            parts.append(f"{totals.failed:,} failed")
        parts.append(f"{run.in_flight} in flight")
        if pace:
            parts.append(per_minute(pace))
        limit = min(run.rate, self._limit)
        if limit < _FAR * pace or (limit < 1 and not pace):
            parts.append(f"up to {per_minute(limit)}")
        if pace:
            parts.append(f"{clock((self._size.requests - ended) / pace)} left")
        if totals.usage and totals.usage.total_tokens:
            parts.append(f"{totals.usage.total_tokens:,} tokens")
        return ", ".join(parts)

    async def _note(self, item: MapItem) -> None:
        row = self.rows.pop(item.index, None) or InputRow(0, {})
        prompt = row.request.get("prompt", "")
        if item.error is not None:
            place = f"{self._name}, {locate(row)}" if row.line else f"Request {item.index + 1}"
            place = f"{place}, {short(prompt)}"
            if not self._ends_run_again(item.error):
                problem = column_of(row, item.error) + self._describe(item.error, row.line)
                say(f"{place}: {problem}", "red")
            await self._rescue(item, place)
        if item.ok:
            self._done_images += number_of_images(row.request)
            if self.display.json:
                for path in item.paths:
                    print_json(_file_fields(item, row, path))
        if self._keep_tiles:
            label = plain(prompt[:100])
            if item.error is not None:
                problem = plain(str(item.error))[:300]
                self.tiles.append(contact_sheet.Tile(item.index, label, error=problem))
            self.tiles += [contact_sheet.Tile(item.index, label, path) for path in item.paths]

    async def _rescue(self, item: MapItem, place: str) -> None:
        """Write the unsaved images of a failed request to temporary files."""
        saved = []
        images = _images_of(item)
        for path in item.paths if images else ():
            with contextlib.suppress(OSError):
                saved.append(_digest(path.read_bytes()))
        for image in images:
            if image.content is not None and (digest := _digest(image.content)) in saved:
                saved.remove(digest)
                continue
            say(f"{place}: {await rescue(image)}", "red")

    def _ends_run_again(self, error: errors.ElkImagesError) -> bool:
        """Return whether an error is another one that every request meets, such as no network."""
        if (reason := fatal_reason(error)) is None:
            return False
        known = reason in self._fatal
        self._fatal.add(reason)
        return known

    def _describe(self, error: Exception, line: int) -> str:
        """Return the text of an error, in full only the first time that it occurs."""
        text = sentence(error)
        kind = re.sub(r"\(request id: [^)]*\)", "", text)
        first = self._first_lines.setdefault(kind, line)
        return text if first == line else f"the same error as line {first}."

    def finish(self) -> None:
        """Print the summary, and how to retry failed requests."""
        self._print_summary()
        if failed := self._totals.failed:
            them = "it" if failed == 1 else f"these {failed:,}"
            self.display.say(
                f"{count(failed, 'request')} failed. To retry {them}:\n{command_line()}"
            )

    def stopped(self, error: errors.BatchStoppedError) -> None:
        """Print the summary, why the run stopped, and how to continue."""
        self._print_summary()
        reason = error.reason or ""
        remaining = f"{count(self.remaining, 'request')} not done"
        if reason not in _LIMITS:
            cause = error.__cause__ or error
            say(f"Stopped, {remaining}, because every request would fail: {sentence(cause)}", "red")
            self.display.say(f"When that is fixed, continue with:\n{command_line()}")
            return
        option = option_name(reason)
        say(f"Stopped by {option}, {remaining}.", "red")
        if reason == "max_images":
            needed = paid_images(self._journal) + self._size.images - self._done_images
            self.display.say(f"To do the rest:\n{command_line({option: str(needed)})}")
        elif reason == "max_cost":
            self.display.say(f"To go on, raise {option}:\n{command_line()}")
        else:
            self.display.say(f"To continue:\n{command_line()}")

    def broken(self) -> None:
        """Print the summary of a run that ends with an error, unless it ends before any item."""
        if self._totals.done or self._totals.failed:
            self._print_summary()

    def interrupted(self) -> None:
        """Print the summary after Ctrl-C, and how to continue."""
        self._print_summary()
        say(
            f"Interrupted, {count(self.remaining, 'request')} not done. To continue:\n"
            f"{command_line()}"
        )

    def show(self, path: Path) -> None:
        """Open the result if --open was passed and there is any image."""
        if self.display.open and self._done_images:
            open_in_viewer(path)

    def _print_summary(self) -> None:
        if self.display.quiet:
            return
        totals = self._totals
        rows = {"done": f"{totals.done:,}", "failed": f"{totals.failed:,}"}
        if rest := self._size.requests - totals.done - totals.failed:
            rows["not started"] = f"{rest:,}"
        if totals.resumed:
            rows["done before"] = f"{totals.resumed:,}"
        rows |= {"images": f"{totals.images:,}", "bytes": f"{totals.bytes:,}"}
        if totals.usage and totals.usage.total_tokens is not None:
            rows["tokens"] = f"{totals.usage.total_tokens:,}"
        if costs := _costs(totals):
            rows["cost"] = amounts(costs)
            if totals.unpriced:
                rows["cost"] += f", and {count(totals.unpriced, 'request')} of unknown cost"
        rows |= {"time": clock(totals.elapsed), "folder": plain(str(self._output))}
        width = max(map(len, rows))
        console = ERR if self.display.json else OUT  # standard output is all JSON
        for name, value in rows.items():
            console.print(f"{name:{width}}  {value}", soft_wrap=True)


def _images_of(item: MapItem) -> list[Image]:
    """Return the images of a failed request, each once: its result and its error may share them."""
    images = [*(item.result or ()), *(item.error.images if item.error else ())]
    return list({id(image): image for image in images}.values())


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _file_fields(item: MapItem, row: InputRow, path: Path) -> dict[str, Any]:
    return {
        "file": str(path),
        "prompt": row.request.get("prompt"),
        "index": item.index,
        "line": row.line,
        "id": row.id,
        "metadata": row.request.get("metadata"),
        "bytes": path.stat().st_size if path.exists() else None,
        "total_tokens": item.usage.total_tokens if item.usage else None,
        "request_id": item.meta.request_id if item.meta else None,
        "cost": json_amount(item.meta.cost if item.meta else None),
        "currency": item.meta.currency if item.meta else None,
        "resumed": item.resumed,
    }


def _costs(totals: Totals) -> dict[str, Decimal]:
    known = {} if totals.cost is None else {totals.currency or "USD": totals.cost}
    return {**known, **totals.other_costs}


def per_minute(rate: float) -> str:
    """Return a rate per second in words, like `60 a minute` or `1 every 3:00`."""
    minute = rate * 60
    if minute >= 1:
        digits = 1 - math.floor(math.log10(minute))  # two significant ones
        return f"{round(minute, min(digits, 0)):,.0f} a minute"
    return f"1 every {clock(1 / rate)}" if rate > 0 else "0 a minute"


def clock(seconds: float) -> str:
    """Return a time as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def command_line(replace: dict[str, str] | None = None) -> str:
    """Return the command as the user typed it, with other values for some options."""
    program = Path(sys.argv[0])
    start = ["python3", "-m", "elkimg_async"] if program.name == "__main__.py" else [program.name]
    words = list(sys.argv[1:])
    for option, value in (replace or {}).items():
        for place, word in enumerate(words):
            if word == option and place + 1 < len(words):
                words[place + 1] = value
            elif word.startswith(f"{option}="):
                words[place] = f"{option}={value}"
    return shlex.join([*start, *words])
