"""From an item of the input, and what the journal knows of it, to what is to be done."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from elkimg_async.batch.journal import (
    AnyRecord,
    DoneRecord,
    FailedRecord,
    ResponseRecord,
    SavedFile,
    SentRecord,
    check_same,
    fingerprint,
    read_error,
    write_error,
)
from elkimg_async.batch.run import MapItem
from elkimg_async.batch.storage import OutputFolder
from elkimg_async.config import IdempotencyMode
from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.requests import GenerateRequest, make_request


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request to be done. `record` is the journal's last about it; None where it knows none.

    `again` is the attempt of an earlier run that was left without an answer, where the server is known to
    replay its key: to go on with it costs nothing more. None where an attempt costs what it costs.
    """

    index: int
    request: GenerateRequest
    hash: str | None = None
    key: str | None = None
    record: AnyRecord | None = None
    again: SentRecord | None = None

    @property
    def n(self) -> int:
        """How many images it asks for: none, where they are made and only to be fetched."""
        if isinstance(self.record, ResponseRecord) and self.record.urls:
            return 0
        n = (self.request.extra_body or {}).get("n", self.request.n)
        return n if type(n) is int and n > 0 else 1

    def fields(self) -> dict[str, Any]:
        """What every record of it holds."""
        return {"index": self.index, "hash": self.hash, "key": self.key}


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an job: the item, its images and their bytes, and the record still to be written."""

    item: MapItem
    images: int = 0
    size: int = 0
    record: AnyRecord | None = None
    stop: BaseException | None = None
    """Why the run cannot go on after it; None if it can."""


class Planner:
    """Takes the items of the input in job; an `InvalidRequestError` stands for one that could not be read.

    Args:
        defaults: the fields of a request for those that do not say otherwise.
        stream: whether requests ask for streams, which makes them other requests.
        idempotency: whether requests have an Idempotency-Key, and the server is known to replay it.
        skip_failed: whether what has failed before stays so.
        known: the journal's last record of an index; None without a journal.
        folder: where the files of finished requests are.
    """

    def __init__(
        self,
        *,
        defaults: Mapping[str, Any],
        stream: bool,
        idempotency: IdempotencyMode,
        skip_failed: bool,
        known: Callable[[int], AnyRecord | None] | None,
        folder: OutputFolder | None,
    ) -> None:
        self._defaults, self._stream, self._idempotency = defaults, stream, idempotency
        self._skip_failed, self._known, self._folder = skip_failed, known, folder

    def take(self, index: int, given: Any) -> Job | JobResult:
        """What is to be done for an item, or what has become of it already.

        Raises:
            JournalError: by the caller; the journal belongs to other requests.
        """
        record = self._known(index) if self._known else None
        mark = None
        try:
            request = self._request(given)
            if self._known:
                mark = fingerprint(request, stream=self._stream)
        except InvalidRequestError as error:
            if record is not None:
                check_same(record, index, None)
            failed = FailedRecord(index=index, error=write_error(error))
            return JobResult(
                item=MapItem(index=index, request=None, error=error),
                record=None if record == failed else failed,
            )
        if record is not None:
            check_same(record, index, mark)
            if isinstance(record, DoneRecord) or (
                isinstance(record, FailedRecord) and self._skip_failed
            ):
                return self._resumed(record, request)
        key = self._key(record) if self._known and self._idempotency != "off" else None
        lost = record if isinstance(record, SentRecord) and record.key is not None else None
        again = lost if self._idempotency == "replay" else None
        return Job(index=index, request=request, hash=mark, key=key, record=record, again=again)

    def _request(self, given: Any) -> GenerateRequest:
        match given:
            case InvalidRequestError():
                raise given
            case GenerateRequest():
                fields = msgspec.structs.asdict(given)
            case Mapping():
                fields = dict(given)
            case _:
                fields = {"prompt": given}
        own = {name: value for name, value in fields.items() if value is not None}
        return make_request({**self._defaults, **own}, {})

    def _key(self, record: AnyRecord | None) -> str:
        """The key of the attempt before, unless the server has refused that one for good."""
        if record is None or record.key is None:
            return os.urandom(16).hex()
        if isinstance(record, FailedRecord) and record.error.get("billing") == "refused":
            return os.urandom(16).hex()
        return record.key

    def _resumed(self, record: DoneRecord | FailedRecord, request: GenerateRequest) -> JobResult:
        error, attempts = None, record.meta.attempts if record.meta else 0
        if isinstance(record, FailedRecord):
            error = read_error(record.error, attempts=record.attempts)
            attempts = record.attempts
        item = MapItem(
            index=record.index,
            request=request,
            error=error,
            paths=paths_of(self._folder, record.files),
            attempts=attempts,
            usage=record.usage,
            meta=record.meta,
            resumed=True,
        )
        if error is not None:
            return JobResult(item=item)
        return JobResult(item=item, images=record.images, size=size_of(record.files))


def paths_of(folder: OutputFolder | None, files: tuple[SavedFile, ...]) -> tuple[Path, ...]:
    """Where files are, in the job of their images."""
    if folder is None:
        return ()
    return tuple(folder.path / file.name for file in sorted(files, key=lambda file: file.position))


def size_of(files: tuple[SavedFile, ...]) -> int:
    """The bytes of files together."""
    return sum(file.bytes for file in files)
