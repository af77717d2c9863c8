"""What a run keeps on the disk: the journal, the manifest, and the images.

Records of many requests are written at once, by one thread at a time, so that one `fsync` is for
all that came while the one before was running. What is in the journal is on the disk: first the images, then
their lines of the manifest, then the journal.
"""

import asyncio
import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import anyio.to_thread
import msgspec

from elkimg_async.batch.journal import (
    AnyRecord,
    JournalHeader,
    JournalIndex,
    SavedFile,
    decode_record,
    encode,
)
from elkimg_async.errors import ConfigurationError, JournalError
from elkimg_async.image import EXTENSIONS, Image, media_type_of, write_atomically
from elkimg_async.sansio.responses import Usage

MANIFEST = "manifest.jsonl"
_PART = re.compile(r"\.[0-9a-f]{16}\.part")  # the names that `write_atomically` uses


class ManifestLine(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request, for people and their programs.

    `files` have the name, length and SHA-256 of each image; `key` is the Idempotency-Key.
    """

    index: int
    prompt: str
    parameters: dict[str, Any]
    files: Sequence[SavedFile]
    usage: Usage | None
    request_id: str | None
    key: str | None


class OutputFolder:
    """The output folder: images under names that tell their request."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def clean(self) -> None:
        """Remove what a killed process left half-written; the folder must be ours alone."""
        for file in self.path.iterdir():
            if _PART.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def write(self, stem: str, image: Image, position: int) -> SavedFile:
        """Write one image."""
        content = image.content
        assert content is not None
        name = stem + EXTENSIONS.get(media_type_of(content), "")
        write_atomically(self.path / name, content)
        return SavedFile(position, name, len(content), hashlib.sha256(content).hexdigest())


def stem_of(index: int, prompt: str) -> str:
    """The name of a request's files, without extension: 000012-a-small-kitten."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt[:200]).lower())
    return "-".join([f"{index:06d}", "-".join(words[:6])[:40]]).strip("-")


class _Group:
    """Lines that are written together."""

    def __init__(self) -> None:
        self.journal: list[bytes] = []
        self.manifest: list[bytes] = []
        self.written = asyncio.Event()


class RunStore:
    """The journal and the manifest of one run; either may be missing.

    Attributes:
        replay: what the journal said at the beginning.
    """

    def __init__(self, journal: Path | None, folder: OutputFolder | None) -> None:
        self._path, self._folder = journal, folder
        self.replay = JournalIndex()
        self._journal: int | None = None
        self._manifest: int | None = None
        self._reader: BinaryIO | None = None
        self._group = _Group()
        self._writer: asyncio.Task[None] | None = None
        self._failure: str | None = None

    def open(self) -> None:
        """Lock and read what is there; takes its time, so it belongs into a thread.

        Raises:
            JournalError: by the caller; another process has it, or it cannot be read.
            ConfigurationError: by the caller, where nothing can be written.
        """
        try:
            if self._path is not None:
                self._open_journal(self._path)
            if self._folder is not None:
                self._open_folder(self._folder)
        except BaseException:
            self.close()
            raise

    def peek(self) -> None:
        """Read the journal and change nothing; only `replay`, `record` and `close` are of use then.

        Raises:
            JournalError: by the caller; it cannot be read.
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
            self._journal = _open_locked(path)
            self._replay(path)
            os.ftruncate(self._journal, self.replay.end)
            if self.replay.unended:
                _write(self._journal, b"\n")
            if self.replay.empty:
                _write(self._journal, encode(JournalHeader()))
                _sync_folder(path.parent)
            os.fsync(self._journal)
        except OSError as error:
            raise JournalError(
                f"The journal {path} cannot be used: {error.strerror or error}."
            ) from None

    def _open_folder(self, folder: OutputFolder) -> None:
        path = folder.path / MANIFEST
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            self._manifest = _open_locked(path)
            folder.clean()
            with path.open("rb") as lines:
                wrong = any(not self._stays(line) for line in lines)
            if wrong:
                self._mend_manifest(path)
        except OSError as error:
            raise ConfigurationError(
                f"The images cannot go to {folder.path}: {error.strerror}. Choose another folder."
            ) from None

    def _mend_manifest(self, path: Path) -> None:
        """Write it anew without the lines of requests that the journal does not know as finished.

        The new file is locked before it has the name. Windows replaces no file that is open: a run that
        takes the lock while it is free there makes this one fail, and harms nothing.
        """
        assert self._manifest is not None
        part = path.with_name(f".{os.urandom(8).hex()}.part")
        with path.open("rb") as lines, os.fdopen(_open_locked(part), "wb") as mended:
            mended.writelines(line for line in lines if self._stays(line))
            mended.flush()
            os.fsync(mended.fileno())
            if sys.platform != "win32":
                part.replace(path)
                os.dup2(mended.fileno(), self._manifest, inheritable=False)
                return
        os.close(self._manifest)
        self._manifest = None
        part.replace(path)
        self._manifest = _open_locked(path)

    def _stays(self, line: bytes) -> bool:
        try:
            written = msgspec.json.decode(line, type=ManifestLine)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        if not line.endswith(b"\n"):
            return False
        state = self.replay.state(written.index)
        if state in ("new", "done"):
            return True
        record = self.record(written.index)
        return record is None or record.key != written.key

    def record(self, index: int) -> AnyRecord | None:
        """What the journal knew of a request at the beginning."""
        offset = self.replay.offset(index)
        if offset is None or self._reader is None:
            return None
        self._reader.seek(offset)
        return decode_record(self._reader.readline())

    @property
    def journaling(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    def note(self, record: AnyRecord) -> None:
        """Have a record on the disk by the end of the run at the latest."""
        if self._journal is not None:
            self._group.journal.append(encode(record))

    async def commit(self, record: AnyRecord, line: ManifestLine | None = None) -> None:
        """Have a record, and a line of the manifest, on the disk when this returns.

        Cancelled, it still writes them, by the end of the run at the latest.

        Raises:
            JournalError: by the file system: no room, or no disk any more.
        """
        group = self._group
        if self._journal is not None:
            group.journal.append(encode(record))
        if line is not None and self._manifest is not None:
            group.manifest.append(msgspec.json.encode(line) + b"\n")
        if not (group.journal or group.manifest):
            return
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_groups())
        await group.written.wait()
        if self._failure:
            raise JournalError(self._failure)

    async def _write_groups(self) -> None:
        while self._group.journal or self._group.manifest:
            group, self._group = self._group, _Group()
            try:
                await anyio.to_thread.run_sync(self._write, group)
            except RuntimeError as error:  # no thread is to be had
                self._failure = (
                    f"The journal or the manifest cannot be written: {error}. Mend that, and start the same "
                    "run again."
                )
            finally:
                group.written.set()
        self._writer = None

    def _write(self, group: _Group) -> None:
        try:
            if self._failure is None:
                if group.manifest and self._manifest is not None and self._folder is not None:
                    if self._journal is not None:
                        _sync_folder(self._folder.path)
                    _write(self._manifest, b"".join(group.manifest))
                    if self._journal is not None:
                        os.fsync(self._manifest)
                if group.journal and self._journal is not None:
                    _write(self._journal, b"".join(group.journal))
                    os.fsync(self._journal)
        except OSError as error:
            self._failure = (
                f"The journal or the manifest cannot be written: {error.strerror}. Mend that, "
                "and start the same run again."
            )

    async def aclose(self) -> None:
        """Write what is left, and let go of the files and their locks."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
        self.close()

    def close(self) -> None:
        """The same, while nothing is being written."""
        self._write(self._group)
        if self._reader is not None:
            self._reader.close()
        for descriptor in (self._journal, self._manifest):
            if descriptor is not None:
                os.close(descriptor)
        self._journal = self._manifest = self._reader = None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    """See that the names of new files are on the disk, where the system has a way to."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Open a file to append to, for this run alone; the lock ends with the process."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        _lock(descriptor, path)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise JournalError(
            f"Another run is using {path}; wait until it ends, or choose other names."
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, path: Path) -> None:
        os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # no byte that is ever read or written
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, path: Path) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BlockingIOError  # another run has mended it meanwhile, and has the new one
