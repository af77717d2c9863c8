"""The journal of a run: records of its requests, one line of JSON each.

A run of `map` appends a line before a request is sent (`sent`), when its response has only URLs of
images (`made`), and when it has ended (`done`, `failed`). The last line of an index counts. Each
`sent` is an attempt that may have been paid for: the next line says what it cost, and without one
it may have cost everything it requested. The file may be a hundred thousand lines long, and its
process may have died at any byte, so reading it takes one pass, keeps nine bytes per request, and
tolerates damage only at the end of the file.
"""

import hashlib
from array import array
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec

from elkimg_async.batch.rows import encode_plain
from elkimg_async.errors import InvalidRequestError, JournalError
from elkimg_async.sansio.encode import generate as encode_generate
from elkimg_async.sansio.lenient_json import NOT_STRICT
from elkimg_async.sansio.requests import EditRequest, GenerateRequest, ImageRequest
from elkimg_async.sansio.responses import Meta, Usage

VERSION = 1
FINGERPRINT_VERSION = 1
MAX_GAP = 1_000_000
"""How far an index may exceed all others before its line counts as broken."""


class JournalHeader(msgspec.Struct, frozen=True, tag_field="type", tag="journal"):
    """The first line. `fingerprint` is the version of the rule behind each `hash`."""

    version: int = VERSION
    fingerprint: int = FINGERPRINT_VERSION


class SavedFile(msgspec.Struct, frozen=True):
    """An image in the output folder. `position` counts the images of its response from 0."""

    position: int
    name: str
    bytes: int
    sha256: str


class PendingImage(msgspec.Struct, frozen=True):
    """An image that has not been downloaded from its URL."""

    position: int
    url: str


class JournalRecord(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True
):
    """Base class of the records after the header.

    `hash` is the request's fingerprint, None for an item that is not a request. `idempotency_key`
    is None if none is sent. `id` and `metadata` are those of the row, for other programs: they are
    not read back.
    """

    index: int
    hash: str | None = None
    idempotency_key: str | None = msgspec.field(name="key", default=None)
    id: str | int | None = None
    metadata: dict[str, Any] | None = None


class SentRecord(JournalRecord, frozen=True, kw_only=True, tag="sent"):
    """A request that is about to be sent.

    `images` is how many may be paid for if no further record follows; early versions did not write
    it, and sent one. `cost` is their maximum cost; None if unknown. Its `currency` is None in early
    journals, which were in US dollars.
    """

    images: int = 1
    cost: Decimal | None = None
    currency: str | None = None


class ResponseRecord(JournalRecord, frozen=True, kw_only=True):
    """A response.

    `images` is how many may have been paid for, and `cost` their maximum cost; None if unknown.
    `currency` is that of a `SentRecord`.
    """

    images: int = 0
    cost: Decimal | None = None
    currency: str | None = None
    files: tuple[SavedFile, ...] = ()
    urls: tuple[PendingImage, ...] = ()
    usage: Usage | None = None
    meta: Meta | None = None


class MadeRecord(ResponseRecord, frozen=True, kw_only=True, tag="made"):
    """A response whose images in `urls` have not been downloaded yet."""


class DoneRecord(ResponseRecord, frozen=True, kw_only=True, tag="done"):
    """A finished request, with its files complete and on disk."""


class FailedRecord(ResponseRecord, frozen=True, kw_only=True, tag="failed"):
    """A failed request; with `urls`, only downloading its images failed."""

    error: dict[str, Any] = {}
    attempts: int = 0


AnyRecord: TypeAlias = SentRecord | MadeRecord | DoneRecord | FailedRecord
State = Literal["new", "sent", "made", "done", "failed"]

_CODES = {SentRecord: 1, MadeRecord: 2, DoneRecord: 3, FailedRecord: 4}
_NOT_DOWNLOADED = 5  # failed, but only to download the images
_COUNTED = {2, _NOT_DOWNLOADED}  # its response was counted; what follows only downloads it
_NAMES: tuple[State, ...] = ("new", "sent", "made", "done", "failed", "failed")


def fields_of(kind: type[msgspec.Struct], holder: object) -> dict[str, Any]:
    """Return the fields of a class, with the values of a record or job that has all of them."""
    return {name: getattr(holder, name) for name in kind.__struct_fields__}


_encoder = msgspec.json.Encoder(enc_hook=encode_plain)
_decode_header = msgspec.json.Decoder(JournalHeader).decode
decode_record: Callable[[bytes], AnyRecord] = msgspec.json.Decoder(AnyRecord).decode


def encode(record: msgspec.Struct) -> bytes:
    """Return the line of a record."""
    return _encoder.encode(record) + b"\n"


# Wanted: the state and the last record of any request, and what all of them have cost, of a file
# with a hundred thousand lines. Held in memory are one byte (`_codes`) and one offset of eight
# bytes (`_offsets`) per request, by index, and the few records that have no response; any other
# record is read again at its offset when its turn comes.


class JournalIndex:
    """The state of each request according to a journal, and the offset of its last record.

    Attributes:
        end: The number of valid bytes; what follows was cut off when the process was killed.
        unended: Whether the last valid line lacks its line feed.
        images: How many images the run may have paid for.
        lost: How many of them have no reported tokens.
        tokens: How many tokens the server has reported.
        costs: The most that the run may have cost in each currency, without the images of unknown
            cost.
        unpriced: How many images of unknown cost may have been paid for.
    """

    def __init__(self) -> None:
        self.end = 0
        self.unended = False
        self.images = self.lost = 0
        self.tokens: float = 0
        self.costs: dict[str, Decimal] = {}
        self.unpriced = 0
        self._lines = 0
        self._offsets = array("q")
        self._codes = bytearray()
        self._open: dict[int, SentRecord] = {}  # without a response

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def empty(self) -> bool:
        """Whether there is no header yet."""
        return self._lines == 0

    def feed(self, line: bytes) -> None:
        """Add the next line, including its line feed, which only the last may lack.

        Raises:
            JournalError: If the line is broken, or is not a line of a journal.
        """
        complete = line.endswith(b"\n")
        try:
            if self._lines:
                self._add(decode_record(line))
            else:
                _check_header(line)
        except NOT_STRICT:
            # A process that was killed leaves an incomplete last line, and some file systems leave
            # null bytes. A broken line in the middle is damage that must not be paid for twice.
            if complete or (self.empty and not _HEADER.startswith(line.rstrip(b"\0"))):
                raise JournalError(self._problem()) from None
            return
        self.end += len(line)
        self.unended = not complete
        self._lines += 1

    def _problem(self) -> str:
        if self.empty:
            return "This file is not a journal; choose another name for the journal."
        return (
            f"Line {self._lines + 1} of the journal is broken. Repair or remove that line, or use "
            "another journal."
        )

    def _add(self, record: AnyRecord) -> None:
        index = record.index
        if not 0 <= index <= len(self) + MAX_GAP:
            raise msgspec.ValidationError("not an index of a run")
        # Requests end in any order, so lines of higher indices may come first.
        if (missing := index + 1 - len(self)) > 0:
            self._offsets.extend([0] * missing)
            self._codes.extend(bytes(missing))
        code = _CODES[type(record)]
        if isinstance(record, SentRecord):
            # Every attempt may have been paid for: one without a response stays counted even when
            # the next run sends the request again.
            self._open[index] = record
            self._count(record, lost=True)
        else:
            # The response says what this attempt has cost, which replaces the assumption.
            if (sent := self._open.pop(index, None)) is not None:
                self._count(sent, lost=True, sign=-1)
            if self._codes[index] not in _COUNTED:
                self._count(record, lost=record.meta is None and record.usage is None)
                self.tokens += (record.usage and record.usage.total_tokens) or 0
            if isinstance(record, FailedRecord) and record.urls:
                code = _NOT_DOWNLOADED
        self._offsets[index] = self.end
        self._codes[index] = code

    def _count(self, record: SentRecord | ResponseRecord, *, lost: bool, sign: int = 1) -> None:
        images = sign * record.images
        self.images += images
        self.lost += images if lost else 0
        if record.cost is None:
            self.unpriced += images
        else:
            currency = record.currency or "USD"  # of early journals, which name none
            self.costs[currency] = self.costs.get(currency, Decimal(0)) + sign * record.cost

    def state(self, index: int) -> State:
        """Return the state of a request."""
        return _NAMES[self._codes[index]] if index < len(self) else "new"

    def offset(self, index: int) -> int | None:
        """Return the offset of a request's last record in the file; None without one."""
        return self._offsets[index] if self.state(index) != "new" else None


_HEADER, _HEADER_START = encode(JournalHeader()), b'{"type":"journal",'


def _check_header(line: bytes) -> None:
    # A line of another program may be decodable; ours begins with its type, without spaces.
    header = _decode_header(line)
    if not line.startswith(_HEADER_START):
        raise msgspec.ValidationError("the header of another kind of file")
    if (header.version, header.fingerprint) != (VERSION, FINGERPRINT_VERSION):
        raise JournalError(
            "This journal was written by another version of elkimg_async; continue with that "
            "version, or use another journal."
        )


def fingerprint(request: ImageRequest, *, stream: bool, inputs: str | None = None) -> str:
    """Return a text that identifies a request in every process, whatever the order of its fields.

    Args:
        request: The request.
        stream: Whether it is streamed, which makes it a different request.
        inputs: The hash of the content of an edit's input files; it is separate, so that a changed
            file can be distinguished from a different request. None: there are none.

    Raises:
        InvalidRequestError: If the request cannot be written as JSON.
    """
    content: list[Any] = [request.fields(), request.extra_body or {}, stream]
    if isinstance(request, EditRequest):
        content.append("edit")
    try:
        encoded = msgspec.json.encode(content, order="sorted")
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        if isinstance(request, GenerateRequest):
            encode_generate(request, stream=stream)  # raises an error that names the field
        raise InvalidRequestError("The request cannot be written as JSON.") from None
    digest = hashlib.sha256(encoded).hexdigest()[:32]
    return digest if inputs is None else f"{digest}-{inputs}"


def is_same(record: AnyRecord, index: int, hash: str | None) -> bool:
    """Return whether a record belongs to a request; False if only its input files have changed.

    The hash of an edit has three parts: of the request, of the content of its input files, and of
    their names. A file that was renamed is still the same, and one with the same name has changed.
    An item that was not a valid request when the record was written may have been corrected since.

    Raises:
        JournalError: If the record belongs to another request.
    """
    if record.hash is None or record.hash == hash:
        return True
    known, current = record.hash.split("-"), (hash or "").split("-")
    if known[0] == current[0]:
        if len(current) == 1 or known[1:2] == current[1:2]:
            return True  # a file that cannot be read has no content and no name
        if known[2:] == current[2:]:
            return False
    raise JournalError(
        f"The journal belongs to other requests: number {index} (counted from 0) is different. "
        "Use another journal, or pass the same requests with the same options; more may be "
        "appended."
    )
