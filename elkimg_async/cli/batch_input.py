"""The input of `elkimg batch`: text, CSV, TSV, JSON or JSON Lines, with line numbers."""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elkimg_async import errors
from elkimg_async.cli.batch_rows import RowError, RowReader, find_id, normalise
from elkimg_async.cli.batch_text import decode
from elkimg_async.cli.console import UsageError

FORMATS = ("text", "csv", "tsv", "json", "jsonl")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_TEXT_SUFFIXES = {"", ".txt", ".text", ".lst"}
_DELIMITERS = ",;\t|"


class InputRow(NamedTuple):
    """One record of the input: its line, counted from 1, and its request or `problem`."""

    line: int
    request: dict[str, Any]
    problem: RowError | None = None

    @property
    def id(self) -> str | int | None:
        """The row's own id; None if it has none."""
        return self.request.get("id")


class BatchInput:
    """The requests of a file, or of standard input for "-"; `rows` can be called again.

    Args:
        name: The path of the file, or "-".
        format: One of `FORMATS`. None: detected from the name and the content.
        encoding: The encoding. None: detected from the content.
        keep: Columns that become metadata.

    Raises:
        UsageError: If the format is unknown.
        ConfigurationError: If the file cannot be read.
    """

    def __init__(
        self,
        name: str,
        format: str | None = None,
        encoding: str | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        if format is not None and format not in FORMATS:
            raise UsageError(f"--format must be one of {', '.join(FORMATS)}.")
        self.name = "standard input" if name == "-" else name
        self.text, self.warning = decode(_read_bytes(name), self.name, encoding)
        if not self.text.strip():
            raise errors.ConfigurationError(f"{self.name} is empty; it needs at least one prompt.")
        self.format = format or self._find_format(Path(name).suffix.lower())
        self._guessed = format is None and Path(name).suffix.lower() not in _SUFFIXES
        self._keep = keep
        self._reader = RowReader(Path() if name == "-" else Path(name).parent, keep)

    def rows(self) -> Iterator[InputRow]:
        """Read the requests in the order of the file.

        Raises:
            ConfigurationError: If the file cannot be used, for example with an unknown column.
        """
        match self.format:
            case "csv" | "tsv":
                return self._read_table()
            case "json":
                return self._read_json()
            case "jsonl":
                return self._read_json_lines()
        return self._read_text()

    def _find_format(self, suffix: str) -> str:
        found = _guess_format(self.text)
        if (named := _SUFFIXES.get(suffix)) is not None:
            # A .json file of JSON Lines, and a .jsonl file with one array, are both common.
            return found if {named, found} == {"json", "jsonl"} else named
        if found == "text" and suffix not in _TEXT_SUFFIXES:
            raise errors.ConfigurationError(
                f"{self.name}: the suffix {suffix} is unknown. If each line is a prompt, add "
                "--format text."
            )
        return found

    def _error(self, line: int, problem: str) -> errors.ConfigurationError:
        return errors.ConfigurationError(f"{self.name}, line {line}: {problem}")

    def _row(self, line: int, record: Any, *, cells: bool = False) -> InputRow:
        try:
            return InputRow(line, self._reader.read(record, cells=cells))
        except RowError as problem:
            return InputRow(line, find_id(record), problem)

    def _read_text(self) -> Iterator[InputRow]:
        if self._keep:
            raise UsageError("--keep needs a file with columns, such as CSV.")
        first = True
        for line, text in enumerate(io.StringIO(self.text, newline=None), 1):
            if not (prompt := text.strip()):
                continue
            # The header of a single column, exported without quotes or separators.
            if not (first and normalise(prompt) in ("prompt", "prompts")):
                yield InputRow(line, {"prompt": prompt})
            first = False

    def _read_json_lines(self) -> Iterator[InputRow]:
        for line, text in enumerate(io.StringIO(self.text, newline=None), 1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                place = (
                    f" (at character {error.colno})"
                    if isinstance(error, json.JSONDecodeError)
                    else ""
                )
                problem = RowError(f"not a JSON object{place}: {text.strip()[:60]}")
                yield InputRow(line, {}, problem)
            else:
                yield self._row(line, record)

    def _read_json(self) -> Iterator[InputRow]:
        """Read an array element by element, to keep track of their lines."""
        decoder, text, place, line, last = json.JSONDecoder(), self.text, 0, 1, 0
        place = _skip_blanks(text, 0)
        if text[place] != "[":
            yield from self._read_json_object(place)
            return
        place = _skip_blanks(text, place + 1)
        while text[place : place + 1] != "]":
            line, last = line + text.count("\n", last, place), place
            try:
                record, place = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                raise self._json_error(error, line) from None
            yield self._row(line, record)
            place = _skip_blanks(text, place)
            if text[place : place + 1] == ",":
                place = _skip_blanks(text, place + 1)
            elif text[place : place + 1] != "]":
                here = text.count("\n", 0, place) + 1
                raise self._error(here, "the JSON array is broken: expected a comma or ].")
        if rest := text[place + 1 :].strip():
            here = text.count("\n", 0, place) + 1
            raise self._error(here, f"unexpected text after the JSON array: {rest[:40]}")

    def _read_json_object(self, place: int) -> Iterator[InputRow]:
        line = self.text.count("\n", 0, place) + 1
        try:
            record = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise self._json_error(error, line) from None
        if not isinstance(record, dict) or "prompt" not in map(normalise, record):
            raise self._error(line, "expected an array of prompts or of objects with a prompt.")
        yield self._row(line, record)

    def _json_error(self, error: Exception, line: int) -> errors.ConfigurationError:
        if isinstance(error, json.JSONDecodeError):
            advice = " If each line is a prompt, add --format text." if self._guessed else ""
            place = f"at character {error.colno}"
            return self._error(error.lineno, f"the JSON is broken {place}: {error.msg}.{advice}")
        return self._error(line, "the JSON is nested too deeply.")

    def _read_table(self) -> Iterator[InputRow]:
        lines, delimiter, skipped = _open_table(self.text, self.format)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        header: list[str] | None = None
        begins = skipped + 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise self._error(
                    begins, f"the row cannot be read: {error}. Check its quotes."
                ) from None
            if cells is None:
                break
            # `line_num` is where a row ends: a quoted cell may hold line breaks.
            line, begins = begins, skipped + reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = self._read_header(cells, line)
            else:
                yield self._read_cells(header, cells, line)

    def _read_header(self, cells: list[str], line: int) -> list[str]:
        names = [cell.strip() for cell in cells]
        found = [normalise(name) for name in names if name]
        if "prompt" not in found:
            raise self._error(line, f"the header needs a column prompt; found {', '.join(found)}.")
        for name in found:
            if found.count(name) > 1:
                raise self._error(line, f"there are two columns {name!r}.")
        for name in filter(None, names):
            try:
                self._reader.name_column(name)
            except RowError as error:
                raise self._error(line, str(error)) from None
        for name in self._keep:
            if normalise(name) not in found:
                raise UsageError(f"--keep {name}: {self.name} has no such column.")
        return names

    def _read_cells(self, header: list[str], cells: list[str], line: int) -> InputRow:
        record = {}
        for name, cell in itertools.zip_longest(header, cells, fillvalue=""):
            if name:
                record[name] = cell
            elif cell.strip():
                problem = (
                    f"more cells than the header has columns: {cell.strip()[:40]!r}. Put text "
                    "that contains the separator in double quotes"
                )
                return InputRow(line, {}, RowError(problem))
        return self._row(line, record, cells=True)


def _read_bytes(name: str) -> bytes:
    try:
        if name != "-":
            return Path(name).read_bytes()
        if sys.stdin.isatty():
            sys.stderr.write("Reading prompts from the terminal, one per line; end with Ctrl-D.\n")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise errors.ConfigurationError(f"{name} cannot be read: {error.strerror}.") from None


def _guess_format(text: str) -> str:
    """Guess the format from the content; anything unrecognised is a plain list of prompts."""
    first = next(line.strip() for line in text.splitlines() if line.strip())
    # A prompt may begin with a bracket or a brace too. What is JSON, or looks like JSON with a
    # mistake in it, is not a prompt: the mistake is reported, and nothing is sent.
    if first.startswith("["):
        if (value := _decoded(text)) is None:
            broken = first == "[" or first.startswith(("[{", '["'))
            return "json" if broken else "text"
        return "json" if all(isinstance(item, (dict, str)) for item in value) else "text"
    if first.startswith("{"):
        if _decoded(first) is not None:
            return "jsonl"
        # One object on several lines, or the first line of JSON Lines with a mistake.
        if _decoded(text) is not None or first == "{":
            return "json"
        return "jsonl" if first.startswith('{"') else "text"
    if first.lower().startswith("sep="):
        return "csv"
    delimiter = _find_delimiter(first)
    cells = [normalise(cell.strip(' "')) for cell in first.split(delimiter)]
    if len(cells) > 1 and "prompt" in cells:
        return "tsv" if delimiter == "\t" else "csv"
    return "text"


def _decoded(text: str) -> Any:
    """Return the value of a text in JSON; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _open_table(text: str, format: str) -> tuple[io.StringIO, str, int]:
    """Return the lines, the delimiter, and the number of lines before the header."""
    lines, skipped = io.StringIO(text, newline=""), 0  # keeps line breaks in quoted cells
    if format == "tsv":
        return lines, "\t", 0
    first = next(lines, "")
    while not first.strip():
        first, skipped = next(lines), skipped + 1
    if first.lower().startswith("sep=") and len(first.strip()) <= 5:  # a line only for Excel
        return lines, first[4:5], skipped + 1
    rest = io.StringIO(first + lines.read(), newline="")
    return rest, _find_delimiter(first), skipped


def _find_delimiter(header: str) -> str:
    """Return the separator that splits off a column prompt, else the most frequent one."""

    def score(delimiter: str) -> tuple[bool, int]:
        cells = [normalise(cell.strip(' "')) for cell in header.split(delimiter)]
        return len(cells) > 1 and "prompt" in cells, header.count(delimiter)

    return max(_DELIMITERS, key=score)


def _skip_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place
