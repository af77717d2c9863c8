"""The input of `elkimg batch`: lines of text, JSONL or CSV, read as they are needed."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from elkimg_async import GenerateRequest, errors

FORMATS = ("text", "jsonl", "csv")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "text"}
_FIELDS = GenerateRequest.__struct_fields__
_WHOLE = {"n", "output_compression", "partial_images"}

Item = str | dict[str, Any] | errors.InvalidRequestError


class Input:
    """A file of requests, or standard input for `-`; each `read` begins anew, where that is possible."""

    def __init__(self, name: str, format: str | None) -> None:
        if format is not None and format not in FORMATS:
            raise errors.ConfigurationError(f"--format must be one of {', '.join(FORMATS)}.")
        self._name, self._format = name, format
        self.repeatable = name != "-" and Path(name).is_file()

    def read(self) -> Iterator[Any]:
        """The requests as `map` takes them; an InvalidRequestError stands for what cannot be read as one.

        Raises:
            ConfigurationError: by the user: no such file, or no such columns.
        """
        with self._open() as file:
            lines = iter(file)
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                return
            lines = itertools.chain([first], lines)
            match self._format or _SUFFIXES.get(Path(self._name).suffix.lower()) or _guess(first):
                case "csv":
                    yield from _read_csv(lines)
                case "jsonl":
                    yield from _read_jsonl(lines)
                case _:
                    yield from filter(None, (line.strip() for line in lines))

    def _open(self) -> TextIO:
        try:
            # What is no UTF-8 becomes an item that cannot be sent, and says so.
            return open(
                0 if self._name == "-" else self._name,
                encoding="utf-8-sig",
                errors="surrogateescape",
                newline="" if self._name != "-" else None,
                closefd=self._name != "-",
            )
        except OSError as error:
            raise errors.ConfigurationError(
                f"{self._name} cannot be read: {error.strerror}."
            ) from None


def _guess(line: str) -> str:
    return "jsonl" if isinstance(_decode(line), dict) else "text"


def _decode(line: str) -> Any:
    try:
        return msgspec.json.decode(line.encode("utf-8", "surrogatepass"))
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _read_jsonl(lines: Iterator[str]) -> Iterator[Item]:
    for line in lines:
        if line.strip():
            value = _decode(line)
            if isinstance(value, (str, dict)):
                yield value
            else:
                yield errors.InvalidRequestError(
                    f"This line is neither a JSON object nor a JSON string: {line.strip()[:60]}"
                )


def _read_csv(lines: Iterator[str]) -> Iterator[Item]:
    reader = csv.DictReader(lines, restkey="")
    try:
        columns = reader.fieldnames or ()
        if "prompt" not in columns:
            raise errors.ConfigurationError("A CSV file needs a header with the column prompt.")
        if unknown := [name for name in columns if name not in _FIELDS]:
            raise errors.ConfigurationError(
                f"The CSV file has the column {unknown[0]!r}; those that there are: {', '.join(_FIELDS)}."
            )
        yield from map(_read_row, reader)
    except csv.Error as error:
        raise errors.ConfigurationError(
            f"Line {reader.line_num} of the CSV file cannot be read: {error}."
        ) from None


def _read_row(row: dict[str, Any]) -> Item:
    if "" in row:
        return errors.InvalidRequestError("This row has more cells than the header has columns.")
    fields: dict[str, Any] = {}
    for name, text in row.items():
        if text is None or not text.strip():
            continue
        fields[name] = text
        if name in _WHOLE or name == "extra_body":
            decoded = _decode(text)
            fields[name] = text if decoded is None else decoded
    return fields
