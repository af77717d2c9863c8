"""Images as files in a folder shared by all workers, with a record beside them for each row.

Files are written atomically, and the record after them: a row with a record is paid for, and done
unless some of its images are still pending at their URLs.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from elkimg_async.batch.job import BatchJob
from elkimg_async.batch.journal import MadeRecord, PendingImage, SavedFile
from elkimg_async.batch.names import row_stem
from elkimg_async.batch.storage import OutputFolder
from elkimg_async.errors import ConfigurationError, ElkImagesError
from elkimg_async.files import write_atomically
from elkimg_async.sansio.lenient_json import NOT_STRICT
from elkimg_async.sansio.responses import Meta, Usage


class RowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One row with images: `files` are saved, and those of `urls` have not been downloaded yet.

    `hash` is the fingerprint of its request, `elapsed` the seconds spent on it so far. `cost` and
    its `currency` are those of the response; None if unknown.
    """

    id: str
    hash: str
    idempotency_key: str | None = msgspec.field(name="key")
    prompt: str
    parameters: dict[str, Any]
    files: tuple[SavedFile, ...]
    urls: tuple[PendingImage, ...] = ()
    usage: Usage | None
    request_id: str | None
    attempts: int
    elapsed: float
    cost: Decimal | None = None
    currency: str | None = None

    def made(self) -> MadeRecord:
        """Return the record in the form that the executor uses."""
        meta = Meta(
            request_id=self.request_id,
            status=200,
            attempts=self.attempts,
            elapsed=self.elapsed,
            first_byte=0.0,
            rate_limit=None,
            idempotency_key=self.idempotency_key,
            cost=self.cost,
            currency=self.currency,
        )
        return MadeRecord(
            index=0,
            hash=self.hash,
            idempotency_key=self.idempotency_key,
            id=self.id,
            images=len(self.files) + len(self.urls),
            files=self.files,
            urls=self.urls,
            usage=self.usage,
            meta=meta,
        )


class SharedStore:
    """The folder of a dataset's images, which any number of processes may use at once.

    Raises:
        ConfigurationError: If the path is a URL, or the folder cannot be created.
    """

    def __init__(self, path: str) -> None:
        if "://" in path:
            raise ConfigurationError(
                "output_dir must be a folder that all workers share. For an object store omit it, "
                "and write the column `images` there with Ray Data."
            )
        self.folder = OutputFolder(Path(path), separator=".")
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"The images cannot go to {path}: {error.strerror}. Choose another folder."
            ) from None

    def find(self, row_id: str, hash: str) -> RowRecord | None:
        """Return the record of a row with this fingerprint, if its files are complete."""
        try:
            record = msgspec.json.decode(self._record(row_id).read_bytes(), type=RowRecord)
            complete = all(
                (self.folder.path / file.name).stat().st_size == file.bytes for file in record.files
            )
        except (OSError, *NOT_STRICT):
            return None
        return record if complete and (record.id, record.hash) == (row_id, hash) else None

    def write_record(self, record: RowRecord) -> None:
        """Write the record of a row.

        Raises:
            OSError: If it cannot be written.
        """
        write_atomically(self._record(record.id), msgspec.json.encode(record))

    def paths(self, files: Sequence[SavedFile]) -> list[str]:
        """Return the paths of files, in the order of their images."""
        return [str(path) for path in self.folder.paths(files)]

    def _record(self, row_id: str) -> Path:
        return self.folder.path / f"{row_stem(row_id)}.json"

    # --- the store of the executor ------------------------------------------

    async def begin(self, job: BatchJob) -> None:
        """Record nothing: a row has a record only once it has images."""

    async def note_pending(self, job: BatchJob, record: MadeRecord, elapsed: float) -> None:
        """Record the URLs of images that have not been downloaded yet."""
        await asyncio.to_thread(self.write_record, _row_record(job, record, elapsed))

    async def finish(
        self, job: BatchJob, record: MadeRecord, error: ElkImagesError | None, elapsed: float
    ) -> None:
        """Record a row that is done or has images to download; any other will be sent again."""
        if error is not None and not record.urls:
            return
        # A failure has already been reported, so its record is optional.
        with contextlib.suppress(*([] if error is None else [OSError])):
            await asyncio.to_thread(self.write_record, _row_record(job, record, elapsed))


def _row_record(job: BatchJob, record: MadeRecord, elapsed: float) -> RowRecord:
    before = job.record.meta if isinstance(job.record, MadeRecord) else None
    return RowRecord(
        id=str(job.id),
        hash=job.hash or "",
        urls=record.urls,
        attempts=record.meta.attempts if record.meta else 0,
        elapsed=elapsed + (before.elapsed if before else 0.0),
        **job.describe(record),
    )
