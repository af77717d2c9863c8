"""Planning: what an item of the input requires, given its record in the journal."""

import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from elkimg_async.batch.inputs import journal_fingerprint
from elkimg_async.batch.job import BatchJob, JobResult
from elkimg_async.batch.journal import (
    AnyRecord,
    DoneRecord,
    FailedRecord,
    ResponseRecord,
    SentRecord,
    fields_of,
    fingerprint,
    is_same,
)
from elkimg_async.batch.names import job_stem
from elkimg_async.batch.rows import Row, has_inputs, read_row
from elkimg_async.batch.run import MapItem, make_item
from elkimg_async.batch.storage import OutputFolder
from elkimg_async.config import IdempotencyMode
from elkimg_async.error_records import read_error, write_error
from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.requests import EditRequest, GenerateRequest, ImageRequest


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An item that is ready to be delivered, and the record to write when it is.

    `images` and `size` count its images and their bytes.
    """

    item: MapItem
    images: int = 0
    size: int = 0
    record: AnyRecord | None = None


def make_delivery(
    result: JobResult, folder: OutputFolder | None, *, resumed: bool = False
) -> Delivery:
    """Return the item of a result, whose files are in `folder`, and what is to be recorded."""
    job, record, response = result.job, result.record, result.response
    item = make_item(
        index=job.index,
        id=job.id,
        metadata=job.metadata,
        request=job.request,
        result=response,
        error=result.error,
        paths=() if folder is None else folder.paths(record.files),
        attempts=result.attempts,
        usage=record.usage,
        meta=record.meta,
        resumed=resumed,
    )
    if result.error is not None:
        return Delivery(item=item)
    if response is None:
        size = sum(file.bytes for file in record.files)
        return Delivery(item=item, images=record.images, size=size)
    # Nothing is saved: the request is recorded as done when its item is delivered.
    done = DoneRecord(**{**fields_of(ResponseRecord, record), "urls": ()})
    size = sum(len(image.content or b"") for image in response)
    return Delivery(item=item, images=len(response), size=size, record=done)


class Planner:
    """Planner of a run, which decides what each item of the input requires.

    Args:
        defaults: Fields for requests that do not set them.
        stream: Whether requests are streamed, which makes them different requests.
        idempotency: Whether requests have an Idempotency-Key, and the server is known to replay it.
        skip_failed: Whether to skip requests that failed in an earlier run.
        known: Returns the journal's last record of an index. None: there is no journal.
        folder: The folder with the files of finished requests. None: there is none.
        price: Returns the maximum cost of one attempt of a request; None if unknown.
        currency: The currency of these costs. None: there are no prices.
        payable: How many attempts of a request may be paid for.
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
        price: Callable[[ImageRequest], Decimal | None] = lambda request: None,
        currency: str | None = None,
        payable: int = 1,
    ) -> None:
        self._defaults, self._stream, self._idempotency = defaults, stream, idempotency
        self._skip_failed, self._known, self._folder = skip_failed, known, folder
        self._price, self._currency, self._payable = price, currency, payable

    def reads_files(self, item: Any) -> bool:
        """Return whether `plan` reads files for this item, and so belongs in a worker thread."""
        return self._known is not None and has_inputs(item)

    def plan(self, index: int, item: Any) -> BatchJob | Delivery:
        """Return the job that an item needs, or the item itself if nothing has to be done.

        Raises:
            JournalError: If the journal belongs to other requests.
        """
        row = read_row(item)
        record = self._known(index) if self._known else None
        digest = request = None
        try:
            request = row.request(self._defaults)
            if self._known:
                digest = fingerprint(request, stream=self._stream)
                if isinstance(request, EditRequest):
                    digest = journal_fingerprint(request, stream=self._stream)
        except InvalidRequestError as error:
            return self._invalid(index, row, request, digest, record, error)
        if record is not None and not is_same(record, index, digest):
            record = None  # an input file has changed, which makes it a new edit
        lost = isinstance(record, SentRecord) and record.idempotency_key is not None
        job = BatchJob(
            index=index,
            request=request,
            stem=job_stem(index, request),
            id=row.id,
            metadata=row.metadata,
            hash=digest,
            idempotency_key=self._idempotency_key(record),
            record=record,
            resumes=record if lost and self._idempotency == "replay" else None,  # type: ignore[arg-type]
            repeated=record is not None,
        )
        if isinstance(record, DoneRecord):
            return make_delivery(JobResult(job=job, record=record), self._folder, resumed=True)
        if isinstance(record, FailedRecord) and self._skip_failed:
            failure = read_error(record.error, attempts=record.attempts)
            result = JobResult(job=job, record=record, error=failure)
            return make_delivery(result, self._folder, resumed=True)
        # Not earlier, since a finished request may have no price, which fails with `max_cost`.
        return msgspec.structs.replace(
            job, price=self._price(request), currency=self._currency, payable=self._payable
        )

    def _invalid(
        self,
        index: int,
        row: Row,
        request: GenerateRequest | EditRequest | None,
        digest: str | None,
        record: AnyRecord | None,
        error: InvalidRequestError,
    ) -> Delivery:
        """Return an item that cannot be sent, and its record.

        A file that is missing now does not affect the attempts of earlier runs: their record stays.
        """
        item = make_item(
            index=index, id=row.id, metadata=row.metadata, request=request, error=error
        )
        if record is not None:
            is_same(record, index, digest)
            if record.hash is not None:
                return Delivery(item=item)
        failed = FailedRecord(
            index=index, id=row.id, metadata=row.metadata, error=write_error(error)
        )
        return Delivery(item=item, record=None if record == failed else failed)

    def _idempotency_key(self, record: AnyRecord | None) -> str | None:
        """Return the idempotency key of the earlier attempt, or a new one if it was rejected."""
        if self._known is None or self._idempotency == "off":
            return None
        if record is None or record.idempotency_key is None:
            return os.urandom(16).hex()
        if isinstance(record, FailedRecord) and record.error.get("billing") == "refused":
            return os.urandom(16).hex()
        return record.idempotency_key
