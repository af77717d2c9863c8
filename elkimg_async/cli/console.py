"""Standard output and standard error: plain lines, tables and JSON."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import warnings
import webbrowser
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from elkimg_async import errors

CLOSED_STREAMS: set[str] = set()
"""Standard streams that were closed when the command started."""
OUT = Console(markup=False, emoji=False, highlight=False)
ERR = Console(stderr=True, markup=False, emoji=False, highlight=False)

_GAP = "  "  # between two columns
_RIGHT = {"bytes", "tokens", "seconds"}

_OPTIONS = {  # arguments of the library, and the options of the command that set them
    r" ?Raise it with Timeout\((connect|download)=…\)\.": "",
    r"Timeout\(\w+=…\)": "--timeout",
    r"RetryPolicy\(\w+=…\)": "--retries",
    r"Limits\(requests_per_minute=…\)": "--rpm",
    r"Limits\(images_per_minute=…\)": "--ipm",
    r"math\.inf": "inf",
    r"stream=True": "--stream",
    r" For several prompts use client\.map\(prompts\)\.": "",
    r" It is in memory only \(.*?\): save it from there\.": "",
}
_ARGUMENTS = re.compile(
    r"\b(?:output_format|output_compression|partial_images|response_format|extra_body|"
    r"input_fidelity|frame_count|frame_duration_ms|safety_identifier)\b"
)


class UsageError(Exception):
    """Invalid options, or options that contradict each other; nothing was sent."""


def prepare_streams() -> None:
    """Make standard streams usable even if they are closed or cannot encode a character.

    A descriptor that stays closed would be reused by the next file or socket, which would then
    receive the output.
    """
    names = ("stdin", "stdout", "stderr")
    for descriptor, name in enumerate(names):
        try:
            os.fstat(descriptor)
        except OSError:
            CLOSED_STREAMS.add(name)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
    for name in names:  # not before all descriptors are taken, since this opens files
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            nothing = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - until the end
            setattr(sys, name, nothing)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Print a warning of the library as a sentence, without its source line."""
    message = re.sub(r"output_format='(\w+)'", r"--output-format \1", str(message))
    say(
        f"Note: {message}"
        if issubclass(category, UserWarning)
        else f"{filename}:{lineno}: {message}"
    )


def discard_output() -> None:
    """Discard the rest of standard output, after its reader has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str, style: str | None = None) -> None:
    """Print lines on standard error, never wrapped."""
    ERR.print("\n".join(map(plain, text.split("\n"))), style=style, soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object as one line, in ASCII so that it suits any encoding."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, one line each; on a terminal too narrow for it, one block each.

    The first column (a file name, a model) is never cut or wrapped, so that it can be copied.
    """
    if not rows:
        return
    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    total = sum(widths) + len(_GAP) * (len(widths) - 1)
    if OUT.is_terminal and total > OUT.width:
        _print_blocks(columns, rows)
        return
    for number, cells in enumerate((columns, *rows)):
        line = _GAP.join(
            _pad(cell, width, right=name in _RIGHT)
            for name, cell, width in zip(columns, cells, widths, strict=True)
        )
        OUT.print(Text(line.rstrip(), "bold" if number == 0 else ""), soft_wrap=True)


def _pad(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _print_blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for first, *rest in rows:
        OUT.print(Text(first, "bold"), soft_wrap=True)
        line = ""
        for name, cell in zip(columns[1:], rest, strict=True):
            if cell == "-":
                continue
            part = f"{name} {cell}"
            if line and cell_len(f"  {line}, {part}") > OUT.width:
                OUT.print(f"  {line},", soft_wrap=True)
                line = part
            else:
                line = f"{line}, {part}" if line else part
        if line:
            OUT.print(f"  {line}", soft_wrap=True)


def sentence(error: BaseException) -> str:
    """Return the text of an error, with options of the command in place of arguments."""
    text = str(error)
    for argument, option in _OPTIONS.items():
        text = re.sub(argument, option, text)
    if isinstance(error, errors.InvalidRequestError):
        text = _ARGUMENTS.sub(lambda name: option_name(name[0]), text)
    return text


def option_name(field: str) -> str:
    """Return the option that sets a field of a request."""
    return "--" + field.replace("_", "-")


def plain(text: str) -> str:
    """Return text as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def short(prompt: str) -> str:
    """Return the start of a prompt, in quotation marks."""
    text = plain(prompt)
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2 images."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def amount(cost: Decimal) -> str:
    """Return an amount of money, rounded, but never to zero."""
    if cost >= 1 or cost == 0:
        return f"{cost:,.2f}"
    return f"{cost:.4f}" if cost >= Decimal("0.001") else f"{float(cost):.2g}"


def amounts(costs: Mapping[str, Decimal]) -> str:
    """Return amounts by currency, like `0.13 EUR and 1.20 USD`; dollars alone without their code.

    Prices whose currency the user did not name count as dollars, which they may not be.
    """
    if list(costs) == ["USD"]:
        return amount(costs["USD"])
    return " and ".join(f"{amount(cost)} {currency}" for currency, cost in costs.items())


def json_amount(cost: Decimal | None) -> str | None:
    """Return an exact amount of money as text; None if unknown."""
    return None if cost is None else f"{cost:f}"


def open_in_viewer(path: Path) -> None:
    """Open a file with the desktop's program for it."""
    try:
        if sys.platform == "win32":
            os.startfile(path)  # noqa: S606
            return
        name = "open" if sys.platform == "darwin" else "xdg-open"
        if program := shutil.which(name):
            nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
            # subprocess would warn that the viewer outlives this process.
            os.posix_spawn(
                program, [program, str(path)], os.environ, file_actions=nothing, setpgroup=0
            )
            return
        opened = webbrowser.open(path.absolute().as_uri())
    except OSError:
        opened = False
    if not opened:
        say(f"No program was found to open {path}.")
