"""What people see: progress and failures as they happen, and a table at the end."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from elkimg_async import Image, errors
from elkimg_async.hooks import Record, RetryScheduled

OUT = Console(markup=False, emoji=False, highlight=False)
ERR = Console(stderr=True, markup=False, emoji=False, highlight=False)

_WORDS = {  # of the client, and what the command says instead
    r" Raise it with Timeout\((connect|download)=…\)\.": "",
    r"Timeout\(\w+=…\)": "--timeout",
    r"RetryPolicy\(\w+=…\)": "--retries",
    "stream=True": "--stream",
}
_ARGUMENTS = r"\b(?:output_format|output_compression|partial_images|response_format|extra_body|input_fidelity)\b"


class Report:
    """Progress and failures as they happen, and the table of what was made."""

    def __init__(self) -> None:
        self.failed = False
        text = TextColumn("{task.description}", markup=False)
        bars = (SpinnerColumn(), text, TimeElapsedColumn())
        self.bars = Progress(*bars, console=ERR, transient=True)
        self._table = Table(box=box.SIMPLE_HEAD if OUT.is_terminal else None, pad_edge=False)
        self._table.add_column("file", overflow="fold")
        for name in ("pixels", "bytes", "type", "tokens", "seconds"):
            self._table.add_column(name, justify="right", no_wrap=True)

    def begin(self, prompt: str) -> TaskID:
        """Say that a prompt is being worked on: with a moving line, on a terminal."""
        text = f"Waiting for {short(prompt)}"
        if not ERR.is_interactive:
            self.say(text)
        return self.bars.add_task(text)

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line, above those that move."""
        ERR.print(plain(text), style=style, soft_wrap=True)

    def hear(self, record: Record) -> None:
        """Tell of retries; a hook of the client."""
        if isinstance(record, RetryScheduled):
            self.say(f"{sentence(record.error)} Trying again in {record.delay:.1f} s.")

    def fail(self, problem: str, prompt: str) -> None:
        """Say what went wrong with a prompt."""
        self.failed = True
        self.say(f"{short(prompt)}: {problem}", "red")

    def add(
        self, path: Path, image: Image, size: str | None, tokens: float | None, seconds: float
    ) -> None:
        """Note a file that was saved; `size` and `tokens` are as the server says."""
        self.say(f"Saved {path} after {seconds:.1f} s")
        with contextlib.suppress(Exception):  # Pillow is missing or at a loss; the file is saved
            size = "{}x{}".format(*image.to_pil().size)
        count, kind = len(image.content or b""), (image.media_type or "").removeprefix("image/")
        spent = "-" if tokens is None else f"{tokens:,}"
        self._table.add_row(str(path), size or "-", f"{count:,}", kind, spent, f"{seconds:.1f}")

    def print_table(self) -> None:
        """Print what was made: framed on a terminal, else one line for each file."""
        if self._table.rows:
            OUT.print(self._table, width=None if OUT.is_terminal else 10_000, crop=False)


def sentence(error: Exception) -> str:
    """What an error says, in the command's words where the client speaks of its arguments."""
    text = str(error)
    for theirs, ours in _WORDS.items():
        text = re.sub(theirs, ours, text)
    if isinstance(error, errors.InvalidRequestError):
        text = re.sub(_ARGUMENTS, lambda name: "--" + name[0].replace("_", "-"), text)
    return text


def plain(text: str) -> str:
    """One line without control characters, whoever wrote it."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short(prompt: str) -> str:
    """The beginning of a prompt, in quotation marks."""
    text = plain(prompt)
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”"
