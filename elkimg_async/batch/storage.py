"""Files of a run on disk: the journal, the manifest, and the images.

Records are written in groups, by one thread at a time, so that one `fsync` serves all that arrived
during the previous one. Images are written first, then their lines of the manifest, then the
journal, so that what the journal calls done is on disk.
"""

import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread
import msgspec

from elkimg_async.batch.job import BatchJob
from elkimg_async.batch.journal import (
    AnyRecord,
    DoneRecord,
    FailedRecord,
    JournalHeader,
    JournalIndex,
    MadeRecord,
    ResponseRecord,
    SavedFile,
    SentRecord,
    decode_record,
    encode,
    fields_of,
)
from elkimg_async.error_records import write_error
from elkimg_async.errors import ConfigurationError, ElkImagesError, JournalError
from elkimg_async.files import write_atomically
from elkimg_async.filesystem import (
    LocksUnavailableError,
    open_locked,
    sync_file,
    sync_folder,
    write_all,
)
from elkimg_async.image import Image
from elkimg_async.media_types import EXTENSIONS, media_type_of
from elkimg_async.sansio.lenient_json import NOT_STRICT
from elkimg_async.sansio.responses import Usage

MANIFEST = "manifest.jsonl"
_PART = re.compile(r"\.[0-9a-f]{16}\.part")  # the names that `write_atomically` uses

Slots = Sequence[tuple[int, Image]]
"""Images with their positions in their response."""


class ManifestLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished request, for users and their programs; the last line of an index counts.

    `files` have the name, length and SHA-256 of each image. `id` and `metadata` are those of the
    row. `cost` and its `currency` are absent if unknown.
    """

    index: int
    prompt: str
    parameters: dict[str, Any]
    files: Sequence[SavedFile]
    usage: Usage | None
    request_id: str | None
    idempotency_key: str | None = msgspec.field(name="key")
    id: str | int | None = None
    metadata: dict[str, Any] | None = None
    cost: Decimal | None = None
    currency: str | None = None


class OutputFolder:
    """The output folder of images; `separator` precedes the number of one of several."""

    def __init__(self, path: Path, *, separator: str = "-") -> None:
        self.path, self._separator = path, separator

    def clean(self) -> None:
        """Remove incomplete files left by a killed process; the folder must be locked."""
        for file in self.path.iterdir():
            if _PART.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def write(self, stem: str, slots: Slots, *, many: bool) -> tuple[SavedFile, ...]:
        """Write images of one response, which has one or `many`.

        Raises:
            OSError: If an image cannot be written.
        """
        return tuple(
            self._write(f"{stem}{self._separator}{position + 1}" if many else stem, image, position)
            for position, image in slots
        )

    def _write(self, stem: str, image: Image, position: int) -> SavedFile:
        content = image.content
        assert content is not None
        name = stem + EXTENSIONS.get(media_type_of(content), "")
        write_atomically(self.path / name, content)
        return SavedFile(position, name, len(content), hashlib.sha256(content).hexdigest())

    def paths(self, files: Sequence[SavedFile]) -> tuple[Path, ...]:
        """Return the paths of files, in the order of their images."""
        return tuple(self.path / file.name for file in sorted(files, key=lambda f: f.position))


# Group commit. Wanted: `commit` returns once its record is on disk, and costs one fsync, which may
# take many milliseconds, for all requests that end during the previous one. The plan: `commit` adds
# its lines to the current group and waits for that; one task at a time takes the group, writes it
# in a thread, and sets its event.


class _Group:
    """Lines that are written together."""

    def __init__(self) -> None:
        self.journal: list[bytes] = []
        self.manifest: list[bytes] = []
        self.written = asyncio.Event()


class RunStore:
    """The journal, the manifest and the images of one run; each may be missing.

    Args:
        journal: The path of the journal. None: there is none.
        folder: The folder for images. None: neither images nor a manifest are written.
        require_lock: Whether to fail on a file system without locks.

    Attributes:
        folder: The folder for images.
        replay: The state of the journal when it was opened.
    """

    def __init__(
        self, journal: Path | None, folder: OutputFolder | None, *, require_lock: bool = True
    ) -> None:
        self._path, self.folder, self._require_lock = journal, folder, require_lock
        self.replay = JournalIndex()
        self._journal: int | None = None
        self._manifest: int | None = None
        self._reader: BinaryIO | None = None
        self._group = _Group()
        self._writer: asyncio.Task[None] | None = None
        self._failure: str | None = None

    def open(self) -> None:
        """Lock and read the journal and the manifest; to be called in a worker thread.

        Raises:
            JournalError: If another run uses them, or the journal cannot be read.
            ConfigurationError: If the folder is not writable.
        """
        try:
            if self._path is not None:
                self._open_journal(self._path)
            if self.folder is not None:
                self._open_folder(self.folder)
        except BaseException:
            self.close()
            raise

    def peek(self) -> None:
        """Read the journal without changing anything; only `replay`, `record` and `close` work.

        Raises:
            JournalError: If it cannot be read.
        """
        if self._path is not None and self._path.exists():
            self._replay(self._path)

    def _replay(self, path: Path) -> None:
        self._reader = path.open("rb")
        for line in self._reader:
            self.replay.feed(line)

    def _open_journal(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._journal = self._open_locked(path)
            self._replay(path)
            # Without what a killed process left of a line, which the next one would be joined to.
            os.ftruncate(self._journal, self.replay.end)
            if self.replay.unended:
                write_all(self._journal, b"\n")
            if self.replay.empty:
                write_all(self._journal, encode(JournalHeader()))
                sync_folder(path.parent)
            sync_file(self._journal)
        except OSError as error:
            raise JournalError(
                f"The journal {path} cannot be used: {error.strerror or error}."
            ) from None

    def _open_folder(self, folder: OutputFolder) -> None:
        path = folder.path / MANIFEST
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            self._manifest = self._open_locked(path)
            folder.clean()
            # A killed run may have written lines of requests that its journal does not call done.
            with path.open("rb") as lines:
                wrong = any(not self._is_valid(line) for line in lines)
            if wrong:
                self._repair_manifest(path)
        except OSError as error:
            raise ConfigurationError(
                f"The images cannot go to {folder.path}: {error.strerror}. Choose another folder."
            ) from None

    def _open_locked(self, path: Path) -> int:
        try:
            return open_locked(path, require_lock=self._require_lock)
        except BlockingIOError:
            raise JournalError(
                f"Another run is using {path}; wait until it ends, or choose other names."
            ) from None
        except LocksUnavailableError as error:
            raise JournalError(
                f"The file system of {path} has no file locks ({error.strerror}), so nothing keeps "
                "a second run from using it at the same time and paying twice. Choose a folder on "
                "a local disk, or pass require_lock=False if no other run can use it."
            ) from None

    def _repair_manifest(self, path: Path) -> None:
        """Rewrite the manifest without lines of requests that the journal does not call finished.

        The new file is locked before it is renamed. Windows cannot replace an open file: there, a
        run that takes the lock in between makes this one fail, which does no harm.
        """
        assert self._manifest is not None
        part = path.with_name(f".{os.urandom(8).hex()}.part")
        descriptor = self._open_locked(part)
        with path.open("rb") as lines, os.fdopen(descriptor, "wb") as repaired:
            repaired.writelines(line for line in lines if self._is_valid(line))
            repaired.flush()
            sync_file(repaired.fileno())
            if sys.platform != "win32":
                part.replace(path)
                os.dup2(repaired.fileno(), self._manifest, inheritable=False)
                return
        os.close(self._manifest)
        self._manifest = None
        part.replace(path)
        self._manifest = self._open_locked(path)

    def _is_valid(self, line: bytes) -> bool:
        try:
            written = msgspec.json.decode(line, type=ManifestLine)
        except NOT_STRICT:
            return False
        if not line.endswith(b"\n"):
            return False
        state = self.replay.state(written.index)
        if state in ("new", "done"):
            return True
        record = self.record(written.index)
        return record is None or record.idempotency_key != written.idempotency_key

    def record(self, index: int) -> AnyRecord | None:
        """Return the last record of a request when the journal was opened."""
        offset = self.replay.offset(index)
        if offset is None or self._reader is None:
            return None
        self._reader.seek(offset)
        return decode_record(self._reader.readline())

    @property
    def journaling(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    # --- the store of the executor ------------------------------------------

    async def begin(self, job: BatchJob) -> None:
        """Record that a request is about to be sent."""
        if job.resumes is None:
            fields = job.record_fields()
            currency = None if job.worst is None else job.currency
            sent = SentRecord(**fields, images=job.n, cost=job.worst, currency=currency)
            await self.commit(sent)

    async def note_pending(self, job: BatchJob, record: MadeRecord, elapsed: float) -> None:
        """Record the URLs of images that have not been downloaded yet."""
        await self.commit(record)

    async def finish(
        self, job: BatchJob, record: MadeRecord, error: ElkImagesError | None, elapsed: float
    ) -> None:
        """Record the end of a job, successful or not."""
        if error is not None:
            attempts = record.meta.attempts if record.meta else error.attempts
            fields = fields_of(ResponseRecord, record)
            await self.commit(FailedRecord(**fields, error=write_error(error), attempts=attempts))
            return
        line = ManifestLine(
            index=job.index, id=job.id, metadata=job.metadata, **job.describe(record)
        )
        await self.commit(DoneRecord(**fields_of(ResponseRecord, record)), line)

    # --- writing ------------------------------------------------------------

    def note(self, record: AnyRecord) -> None:
        """Write a record by the end of the run at the latest."""
        if self._journal is not None:
            self._group.journal.append(encode(record))

    async def commit(self, record: AnyRecord, line: ManifestLine | None = None) -> None:
        """Write a record, and a line of the manifest, and wait until they are on disk.

        If the wait is cancelled they are still written, by the end of the run at the latest.

        Raises:
            JournalError: If they cannot be written.
        """
        # No await up to the creation of the task: a group is either taken as a whole or still open.
        group = self._group
        if self._journal is not None:
            group.journal.append(encode(record))
        if line is not None and self._manifest is not None:
            group.manifest.append(encode(line))
        if not (group.journal or group.manifest):
            return
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_groups())
        await group.written.wait()
        if self._failure:
            raise JournalError(self._failure)

    async def _write_groups(self) -> None:
        while self._group.journal or self._group.manifest:
            group, self._group = self._group, _Group()  # what comes from now on is in the next one
            try:
                await anyio.to_thread.run_sync(self._write, group)
            except RuntimeError as error:  # no thread can be started
                self._fail(str(error))
            finally:
                group.written.set()
        self._writer = None

    def _write(self, group: _Group) -> None:
        try:
            # Nothing after a failure: part of a line may have been written, and a record behind it
            # would be in the middle of a broken line.
            if self._failure is None:
                # Names of images, then the manifest, then the journal: each only names what is on
                # disk already.
                if group.manifest and self._manifest is not None and self.folder is not None:
                    if self._journal is not None:
                        sync_folder(self.folder.path)
                    write_all(self._manifest, b"".join(group.manifest))
                    if self._journal is not None:
                        sync_file(self._manifest)
                if group.journal and self._journal is not None:
                    write_all(self._journal, b"".join(group.journal))
                    sync_file(self._journal)
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _fail(self, reason: str) -> None:
        self._failure = (
            f"The journal or the manifest cannot be written: {reason}. Fix that, and start the "
            "same run again."
        )

    async def aclose(self) -> None:
        """Write pending lines, and close the files, which releases their locks."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
        self.close()

    def close(self) -> None:
        """Do the same as `aclose`, while nothing is being written."""
        self._write(self._group)
        if self._reader is not None:
            self._reader.close()
        for descriptor in (self._journal, self._manifest):
            if descriptor is not None:
                os.close(descriptor)
        self._journal = self._manifest = self._reader = None
