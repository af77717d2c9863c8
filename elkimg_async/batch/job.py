"""Jobs: requests to be sent, and their results."""

from decimal import Decimal
from typing import Any

import msgspec

from elkimg_async.batch.journal import (
    AnyRecord,
    JournalRecord,
    ResponseRecord,
    SentRecord,
    fields_of,
)
from elkimg_async.batch.names import input_names
from elkimg_async.errors import ElkImagesError
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.sansio.responses import ImagesResponse, Meta


class BatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """One request to be sent.

    `stem` is the name of its files without extension, `hash` its fingerprint. `record` is the last
    record of it; None if there is none. `resumes` is an attempt of an earlier run that had no
    response, if the server is known to replay its idempotency key, so that sending it again costs
    nothing more; else None. `repeated` is whether an earlier attempt may still be running. `price`
    is the maximum cost of one attempt in `currency`, None if unknown; up to `payable` attempts may
    be paid for.
    """

    index: int
    request: GenerateRequest | EditRequest
    stem: str
    id: str | int | None = None
    metadata: dict[str, Any] | None = None
    hash: str | None = None
    idempotency_key: str | None = None
    record: AnyRecord | None = None
    resumes: SentRecord | None = None
    repeated: bool = False
    price: Decimal | None = None
    currency: str | None = None
    payable: int = 1

    @property
    def n(self) -> int:
        """How many images may be paid for; 0 if they only have to be downloaded."""
        if isinstance(self.record, ResponseRecord) and self.record.urls:
            return 0
        return self.request.image_count

    @property
    def worst(self) -> Decimal | None:
        """The maximum cost of all its attempts; None if unknown."""
        if self.n == 0:
            return Decimal(0)
        return None if self.price is None else self.price * self.payable

    def cost(self, meta: Meta | None, attempts: int) -> Decimal | None:
        """Return the most that it may have cost; None if unknown.

        Args:
            meta: The metadata of its response, whose cost counts if it is in the same currency.
                None: there was no response.
            attempts: The number of attempts. Those before the last may have been paid for, up to
                `payable` in all.
        """
        paid = meta.cost if meta and self.currency in (None, meta.currency) else None
        earlier = max(0, min(attempts, self.payable) - 1)
        last = self.price if paid is None else paid
        if last is None or (earlier and self.price is None):
            return None
        return last + earlier * self.price if earlier and self.price is not None else last

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields sent besides the prompt; for an edit, with the names of its files."""
        parameters = self.request.fields() | (self.request.extra_body or {})
        parameters.pop("prompt", None)
        if names := input_names(self.request):
            parameters["image"] = names
        return parameters

    def describe(self, record: ResponseRecord) -> dict[str, Any]:
        """Return what users read about a job with images, in a manifest or beside the files."""
        meta = record.meta
        return {
            "prompt": self.request.prompt,
            "parameters": self.parameters,
            "files": tuple(sorted(record.files, key=lambda file: file.position)),
            "usage": record.usage,
            "request_id": meta.request_id if meta else None,
            "idempotency_key": self.idempotency_key,
            "cost": meta.cost if meta else None,
            "currency": meta.currency if meta else None,
        }

    def record_fields(self) -> dict[str, Any]:
        """Return the fields that all records of the job share."""
        return fields_of(JournalRecord, self)


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a job.

    `record` describes the response. `response` has the images that are not saved as files, None if
    there are none. `urls` are those of saved images that had one. `stop` is the error because of
    which no further job should start, or None. `elapsed` is in seconds, including the wait for a
    turn.
    """

    job: BatchJob
    record: ResponseRecord
    response: ImagesResponse | None = None
    urls: tuple[str, ...] = ()
    error: ElkImagesError | None = None
    stop: ElkImagesError | None = None
    elapsed: float = 0.0

    @property
    def attempts(self) -> int:
        """How many attempts it took."""
        if self.record.meta is not None:
            return self.record.meta.attempts
        return self.error.attempts if self.error is not None else 0
