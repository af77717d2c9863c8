"""Output of `elkimg generate` and `elkimg edit`: progress, failures, and the saved files."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from elkimg_async import Image, Meta, Usage
from elkimg_async.cli.console import (
    ERR,
    amounts,
    json_amount,
    open_in_viewer,
    plain,
    print_json,
    print_table,
    say,
    sentence,
    short,
)
from elkimg_async.cli.options import ImageDisplay
from elkimg_async.hooks import Record, RetryScheduled
from elkimg_async.sansio.responses import add_cost

_COLUMNS = ("file", "pixels", "bytes", "type", "tokens", "seconds")


class SavedImage(NamedTuple):
    """One image with its details; `path` is None for standard output."""

    path: Path | None
    image: Image
    prompt: str
    partial: bool
    size: str | None
    usage: Usage | None
    seconds: float
    request_id: str | None
    meta: Meta | None
    """The metadata of the whole call; None before it has ended."""


class Report:
    """Progress and failures as they happen, and the results at the end."""

    def __init__(self, display: ImageDisplay) -> None:
        self.failed = False
        text = TextColumn("{task.description}", markup=False)
        self.bars = Progress(
            SpinnerColumn(), text, TimeElapsedColumn(), console=ERR, transient=True
        )
        self._display = display
        self._rows: list[tuple[str, ...]] = []
        self._finals: list[Path] = []
        self._costs: dict[str, Decimal] = {}
        self.stopped = False
        self._sent = False

    @property
    def exit_code(self) -> int:
        """The exit code: 2 if nothing was sent."""
        return 0 if not self.failed else 1 if self._sent else 2

    @property
    def animated(self) -> bool:
        return ERR.is_interactive and not self._display.quiet

    def begin(self, prompt: str) -> TaskID:
        """Show that a prompt is in progress."""
        text = f"Waiting for {short(prompt)}"
        if not self.animated:
            self._display.say(text)
        return self.bars.add_task(text)

    def on_event(self, record: Record) -> None:
        """Print retries; this is a hook of the client."""
        if isinstance(record, RetryScheduled):
            self._display.say(f"{sentence(record.error)} Trying again in {record.delay:.1f} s.")

    def fail(self, problem: str, prompt: str, *, sent: bool = True) -> None:
        """Print what went wrong with a prompt; `sent` is whether its request may have been sent."""
        self.failed = True
        self._sent = self._sent or sent
        say(f"{short(prompt)}: {problem}", "red")

    def stop(self, problem: str, prompt: str, *, sent: bool = True) -> None:
        """Print once why every prompt fails, and start no further one."""
        if not self.stopped:
            self.fail(problem, prompt, sent=sent)
        self.stopped = True

    def add(self, saved: SavedImage, *, counts_usage: bool) -> None:
        """Record a saved image; `counts_usage` is False if the usage was counted before."""
        self._sent = True
        pixels = _pixels(saved)
        content = saved.image.content or b""
        kind = saved.image.media_type or ""
        if saved.path is None:
            self._display.say(f"Wrote {len(content):,} bytes after {saved.seconds:.1f} s")
            return
        self._display.say(f"Saved {saved.path} after {saved.seconds:.1f} s")
        if not saved.partial:
            self._finals.append(saved.path)
        if self._display.json:
            print_json(_image_fields(saved, pixels, kind, len(content)))
        tokens = saved.usage.total_tokens if saved.usage and counts_usage else None
        self._rows.append(
            (
                plain(str(saved.path)),
                "{}x{}".format(*pixels) if pixels else saved.size or "-",
                f"{len(content):,}",
                kind.removeprefix("image/") or "-",
                "-" if tokens is None else f"{tokens:,}",
                f"{saved.seconds:.1f}",
            )
        )

    def add_cost(self, meta: Meta) -> None:
        self._costs = add_cost(self._costs, meta)

    def finish(self) -> None:
        """Print the table of saved files, and open them if --open was passed."""
        if not self._display.json and not self._display.quiet:
            print_table(_COLUMNS, self._rows)
        if self._costs:
            self._display.say(f"Cost: {amounts(self._costs)}")
        if self._display.open:
            for path in self._finals:
                open_in_viewer(path)


def _pixels(saved: SavedImage) -> tuple[int, int] | None:
    with contextlib.suppress(Exception):  # no Pillow, or an unknown format; the file is saved
        width, height = saved.image.to_pil().size
        return width, height
    return None


def _image_fields(
    saved: SavedImage, pixels: tuple[int, int] | None, kind: str, size: int
) -> dict[str, Any]:
    usage = None
    if saved.usage is not None:
        usage = {
            name: getattr(saved.usage, name)
            for name in ("total_tokens", "input_tokens", "output_tokens")
        }
    return {
        "file": str(saved.path),
        "prompt": saved.prompt,
        "revised_prompt": saved.image.revised_prompt,
        "partial": saved.partial,
        "media_type": kind or None,
        "width": pixels[0] if pixels else None,
        "height": pixels[1] if pixels else None,
        "bytes": size,
        "usage": usage,
        "seconds": round(saved.seconds, 3),
        "request_id": saved.request_id,
        "cost": json_amount(saved.meta.cost if saved.meta else None),
        "currency": saved.meta.currency if saved.meta else None,
    }
