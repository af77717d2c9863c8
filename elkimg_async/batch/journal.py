"""The journal of a run: its records, one line of JSON each, and what a file of them leaves to be done.

A run of `map` appends a line before a request leaves (`sent`), where its answer has only addresses
of images (`made`), and when it is over (`done`, `failed`). The last line of an index holds for it.
Each `sent` is an attempt that may have been paid for: what comes after it says what it cost, and
where nothing does, it may have cost all that it asked for.
The file may be a hundred thousand lines long, and its process may have died at any byte, so
reading it takes one pass, keeps nine bytes for each request, and forgives only the end of the file.
"""

import hashlib
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from elkimg_async import errors
from elkimg_async.errors import ElkImagesError, InvalidRequestError, JournalError
from elkimg_async.sansio.encode import generate as encode_generate
from elkimg_async.sansio.requests import GenerateRequest
from elkimg_async.sansio.responses import Meta, Usage

VERSION = 1
FINGERPRINT_VERSION = 1
MAX_GAP = 1_000_000
"""How far an index may lie beyond all others before the line counts as broken."""


class JournalHeader(msgspec.Struct, frozen=True, tag_field="type", tag="journal"):
    """The first line. `fingerprint` is the version of the rule behind each `hash`."""

    version: int = VERSION
    fingerprint: int = FINGERPRINT_VERSION


class SavedFile(msgspec.Struct, frozen=True):
    """An image in the output folder. `position` counts the images of its answer from 0."""

    position: int
    name: str
    bytes: int
    sha256: str


class PendingImage(msgspec.Struct, frozen=True):
    """An image that still waits at its address."""

    position: int
    url: str


class JournalRecord(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True
):
    """What every line after the first holds.

    `hash` is the request's fingerprint, None for an item that is no request. `key` is the
    Idempotency-Key that it is sent with, None where none is.
    """

    index: int
    hash: str | None = None
    key: str | None = None


class SentRecord(JournalRecord, frozen=True, kw_only=True, tag="sent"):
    """The request is about to leave.

    `images` is how many may be paid for if nothing more is heard of it: as many as it asks for, and none
    where an earlier record tells of them. Journals of before do not say: one.
    """

    images: int = 1


class ResponseRecord(JournalRecord, frozen=True, kw_only=True):
    """What is known of an answer. `images` is how many may have been paid for."""

    images: int = 0
    files: tuple[SavedFile, ...] = ()
    urls: tuple[PendingImage, ...] = ()
    usage: Usage | None = None
    meta: Meta | None = None


class MadeRecord(ResponseRecord, frozen=True, kw_only=True, tag="made"):
    """The images are made, and those of `urls` are not fetched yet."""


class DoneRecord(ResponseRecord, frozen=True, kw_only=True, tag="done"):
    """The request is finished, its files whole and on the disk."""


class FailedRecord(ResponseRecord, frozen=True, kw_only=True, tag="failed"):
    """The request failed; with `urls`, only fetching its images did."""

    error: dict[str, Any] = {}
    attempts: int = 0


AnyRecord: TypeAlias = SentRecord | MadeRecord | DoneRecord | FailedRecord
State = Literal["new", "sent", "made", "done", "failed"]

_STATES: tuple[State, ...] = ("new", "sent", "made", "done", "failed")
_CODES = {SentRecord: 1, MadeRecord: 2, DoneRecord: 3, FailedRecord: 4}
_MADE = {2, 5}  # 5: failed, but only to fetch what was made
_NAMES = (*_STATES, "failed")
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(record: JournalHeader | AnyRecord) -> bytes:
    """The line of a record."""
    return msgspec.json.encode(record) + b"\n"


_decode_header = msgspec.json.Decoder(JournalHeader).decode
_decode_record: Callable[[bytes], AnyRecord] = msgspec.json.Decoder(AnyRecord).decode


def decode_record(line: bytes) -> AnyRecord:
    """The record of a line that a `JournalIndex` has taken before."""
    return _decode_record(line)


class JournalIndex:
    """Takes the lines of a journal in order; tells what became of each request, and where that stands.

    Attributes:
        end: how many bytes of the file are good; what follows is the torn end of a killed process.
        unended: whether the last good line lacks its line feed.
        images: how many images the run may have paid for.
        lost: how many of them nobody told the tokens of, since no answer came.
        tokens: how many tokens the servers told.
    """

    def __init__(self) -> None:
        self.end = 0
        self.unended = False
        self.images = self.lost = 0
        self.tokens: float = 0
        self._lines = 0
        self._offsets = array("q")
        self._codes = bytearray()
        self._open: dict[int, int] = {}  # what each `sent` without an answer may cost

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def empty(self) -> bool:
        """Whether there is no header yet."""
        return self._lines == 0

    def feed(self, line: bytes) -> None:
        """Take the next line, its line feed included; only the last may lack it.

        Raises:
            JournalError: by whoever wrote the file: the line is broken, or no line of a journal.
        """
        whole = line.endswith(b"\n")
        try:
            if self._lines:
                self._note(_decode_record(line))
            else:
                _check_header(line)
        except _BROKEN:
            if whole or (self.empty and not _HEADER.startswith(line.rstrip(b"\0"))):
                raise JournalError(self._complaint()) from None
            return
        self.end += len(line)
        self.unended = not whole
        self._lines += 1

    def _complaint(self) -> str:
        if self.empty:
            return "This file is not a journal; choose another name for the journal."
        return (
            f"Line {self._lines + 1} of the journal is broken. Mend or remove that line, or start anew "
            "with another journal."
        )

    def _note(self, record: AnyRecord) -> None:
        index = record.index
        if not 0 <= index <= len(self) + MAX_GAP:
            raise msgspec.ValidationError("no index of a run")
        if (missing := index + 1 - len(self)) > 0:
            self._offsets.extend([0] * missing)
            self._codes.extend(bytes(missing))
        code = _CODES[type(record)]
        if isinstance(record, SentRecord):
            self._open[index] = record.images
            self._count(record.images, lost=True)
        else:
            self._count(-self._open.pop(index, 0), lost=True)
            if self._codes[index] not in _MADE:  # else it was counted then
                self._count(record.images, lost=record.meta is None and record.usage is None)
                self.tokens += (record.usage and record.usage.total_tokens) or 0
            if isinstance(record, FailedRecord) and record.urls:
                code = 5
        self._offsets[index] = self.end
        self._codes[index] = code

    def _count(self, images: int, *, lost: bool) -> None:
        self.images += images
        self.lost += images if lost else 0

    def state(self, index: int) -> State:
        """What became of a request."""
        return _NAMES[self._codes[index]] if index < len(self) else "new"

    def offset(self, index: int) -> int | None:
        """Where in the file the record of a request begins; None without one."""
        return self._offsets[index] if self.state(index) != "new" else None


_HEADER, _HEADER_START = encode(JournalHeader()), b'{"type":"journal",'


def _check_header(line: bytes) -> None:
    header = _decode_header(line)
    if not line.startswith(_HEADER_START):
        raise msgspec.ValidationError("the header of something else")
    if (header.version, header.fingerprint) != (VERSION, FINGERPRINT_VERSION):
        raise JournalError(
            "This journal was written by another version of elkimg_async; go on with that one, or start "
            "anew with another journal."
        )


def fingerprint(request: GenerateRequest, *, stream: bool) -> str:
    """The same text for the same request, in every process; the order of keys does not count.

    Raises:
        InvalidRequestError: by the caller, for what JSON cannot hold.
    """
    content = [request.fields(), request.extra_body or {}, stream]
    try:
        encoded = msgspec.json.encode(content, order="sorted")
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        encode_generate(request, stream=stream)  # which says what is wrong
        raise InvalidRequestError("The request cannot be written as JSON.") from None
    return hashlib.sha256(encoded).hexdigest()[:32]


def check_same(record: AnyRecord, index: int, hash: str | None) -> None:
    """Refuse to go on with a journal whose request at `index` was another one.

    An item that was no request may have been mended since.

    Raises:
        JournalError: by the caller, who gave other requests or another journal.
    """
    if record.hash is not None and record.hash != hash:
        raise JournalError(
            f"The journal belongs to other requests: number {index} (counted from 0) was another one. "
            "Start anew with another journal, or give the same requests with the same options; more may "
            "follow at their end."
        )


_KEPT = [
    "message",
    "request_id",
    "billing",
    "param",
    "status",
    "code",
    "type",
    "retry_after",
    "phase",
    "limit",
    "url",
]


def write_error(error: ElkImagesError) -> dict[str, Any]:
    """An error as plain data; what it holds of bodies, headers and images is left out."""
    kept = {name: getattr(error, name, None) for name in _KEPT}
    return {"error": type(error).__name__} | {k: v for k, v in kept.items() if v is not None}


def read_error(fields: Mapping[str, Any], *, attempts: int) -> ElkImagesError:
    """The error that `write_error` wrote."""
    name = fields.get("error")
    kind = getattr(errors, str(name)) if name in errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, ElkImagesError)):
        kind = ElkImagesError
    error = kind(str(fields.get("message", "")))
    error.attempts = attempts
    for name in _KEPT[1:]:
        if name in fields and hasattr(error, name):
            setattr(error, name, fields[name])
    return error
