"""Jobs in a folder: one folder for each, with its images and an append-only log.

A line of the log is the latest record of the job, or an event. The image of an event is on disk
before its line, so that every file named by the log exists, whenever the process was killed.
"""

import functools
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CoroutineType
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio.to_thread
import msgspec

from elkimg_async.errors import StoreError
from elkimg_async.files import write_atomically
from elkimg_async.filesystem import LocksUnavailableError, open_locked, sync_file, write_all
from elkimg_async.hooks import logger
from elkimg_async.jobs.model import VERSION, Entry, Job
from elkimg_async.jobs.store import Store, StoredJob, find
from elkimg_async.media_types import EXTENSIONS, media_type_of
from elkimg_async.sansio.lenient_json import NOT_STRICT

_MARK, _LOCK, _LOG, _JOBS = "elkimg-jobs.json", "lock", "job.jsonl", "jobs"

P = ParamSpec("P")
T = TypeVar("T")


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the log: a record, or an event with the file of its image."""

    job: Job | None = None
    event: Entry | None = None
    file: str | None = None


class _Mark(msgspec.Struct, frozen=True):
    """Content of the file that marks the folder."""

    type: str = "elkimg_async.jobs"
    version: int = VERSION


class _LoggedJob(StoredJob[str | None]):
    """One job: its folder, and the content of its log with the names of the images."""

    def __init__(self, folder: Path, job: Job) -> None:
        super().__init__(job)
        self.folder = folder


def _in_thread(
    step: Callable[Concatenate["DirectoryStore", P], T],
) -> "Callable[Concatenate[DirectoryStore, P], CoroutineType[Any, Any, T]]":
    """Make a method of an open store one that runs to completion in a worker thread."""

    @functools.wraps(step)
    async def run(self: "DirectoryStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        def checked() -> T:
            self._check()
            return step(self, *args, **kwargs)

        return await self._do(checked)

    return run  # type: ignore[return-value]  # mypy calls a CoroutineType a Coroutine


class DirectoryStore(Store):
    """A store in a folder; it survives `kill -9`, and belongs to one process at a time.

    Args:
        path: The folder; it is created if it does not exist.
    """

    shared = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._kept: dict[str, _LoggedJob] = {}
        self._lock: int | None = None
        self._writing = threading.Lock()

    async def open(self, keep: float | None) -> None:
        """Lock the folder and read all logs.

        Raises:
            StoreError: If another process uses the folder, or it was written by another version.
        """
        await self._do(self._open)

    async def aclose(self) -> None:
        """Unlock the folder."""
        with self._writing:  # no thread is in the middle of a step, and none begins another one
            descriptor, self._lock = self._lock, None
        if descriptor is not None:
            os.close(descriptor)

    async def get(self, id: str) -> Job | None:
        self._check()
        kept = self._kept.get(id)
        return None if kept is None else kept.job

    async def jobs(self) -> list[Job]:
        self._check()
        stored = list(self._kept.values())  # at once: a thread may be adding one
        return sorted((kept.job for kept in stored), key=lambda job: job.created_at)

    def entries(self, job: Job) -> list[tuple[Entry, Path | None]]:
        """Return the events of a job with the files of their images, without reading those."""
        kept = self._kept.get(job.id)
        events = () if kept is None else tuple(kept.events.values())
        return [(entry, kept.folder / file if kept and file else None) for entry, file in events]

    # --- in a worker thread -------------------------------------------------

    async def _do(self, step: Callable[[], T]) -> T:
        """Run a step to completion in a worker thread, one at a time."""

        def alone() -> T:
            with self._writing:
                return step()

        try:
            return await anyio.to_thread.run_sync(alone)
        except OSError as error:
            raise StoreError(
                f"{self._path} cannot be used as a store: {error.strerror or error}."
            ) from None

    def _check(self) -> None:
        if self._lock is None:
            raise StoreError("The store is not open.")

    def _open(self) -> None:
        jobs = self._path / _JOBS
        jobs.mkdir(parents=True, exist_ok=True)
        # Before anything is read: files without a line in a log are removed, and could be those
        # that another process is writing.
        self._lock = _open_locked(self._path / _LOCK)
        try:
            _check_mark(self._path / _MARK)
            self._kept = {}
            for folder in sorted(jobs.iterdir()):
                kept = _read_log(folder)
                if kept is not None:
                    self._kept[kept.job.id] = kept
        except BaseException:
            descriptor, self._lock = self._lock, None
            os.close(descriptor)
            raise

    @_in_thread
    def create(self, job: Job, inputs: Sequence[bytes]) -> Job:
        known = self._kept.get(job.id)
        if known is not None:
            return known.job
        folder = self._path / _JOBS / _folder_name(job.id)
        if folder.exists():
            raise StoreError(
                f"{folder} belongs to this id, and its log cannot be read; move it away, or choose "
                "another id."
            )
        folder.mkdir()
        # The log last: a folder without one is of a job that `start` never returned, and is removed
        # when the store is opened.
        try:
            for index, content in enumerate(inputs):
                write_atomically(folder / f"input-{index}", content)
            _write_line(folder, _Line(job=job))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._kept[job.id] = _LoggedJob(folder, job)
        return job

    @_in_thread
    def inputs(self, job: Job) -> list[bytes]:
        folder = find(self._kept, job).folder
        return [(folder / f"input-{index}").read_bytes() for index in range(job.upload_count)]

    @_in_thread
    def append(self, job: Job, entry: Entry, content: bytes | None) -> None:
        kept = find(self._kept, job)
        file = None
        if content is not None:
            extension = EXTENSIONS.get(media_type_of(content), "")
            file = f"{entry.id - job.first_id:04d}{extension}"
            write_atomically(kept.folder / file, content)
        # The image first, and the files that it replaces last: whatever the log names exists.
        _write_line(kept.folder, _Line(event=entry, file=file))
        for replaced in kept.add(entry, file):
            if replaced not in (None, file):
                (kept.folder / replaced).unlink(missing_ok=True)

    @_in_thread
    def update(self, job: Job) -> None:
        kept = find(self._kept, job)
        _write_line(kept.folder, _Line(job=job))
        kept.job = job  # after the line: a record that is not on disk is not shown either
        if job.finished:
            for index in range(job.upload_count):
                (kept.folder / f"input-{index}").unlink(missing_ok=True)

    @_in_thread
    def events(self, job: Job, after: int) -> list[tuple[Entry, bytes | None]]:
        kept = self._kept.get(job.id)
        found = list[tuple[Entry, bytes | None]]()
        if kept is None:
            return found
        for entry, file in kept.events.values():
            if entry.id <= after:
                continue
            try:
                content = None if file is None else (kept.folder / file).read_bytes()
            except FileNotFoundError:  # somebody has tidied up the folder
                if entry.completed:
                    raise
            else:
                found.append((entry, content))
        return found

    @_in_thread
    def delete(self, job: Job) -> None:
        kept = self._kept.pop(job.id, None)
        if kept is not None:
            shutil.rmtree(kept.folder, ignore_errors=True)


def _folder_name(id: str) -> str:
    """Return a name that every file system accepts, different for each id."""
    slug = re.sub(r"[^a-z0-9]+", "-", id.lower())[:40].strip("-")
    return "-".join(filter(None, [slug, hashlib.sha256(id.encode()).hexdigest()[:16]]))


def _check_mark(path: Path) -> None:
    """Mark a new folder; reject one of another version.

    Raises:
        StoreError: If the folder belongs to another version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        write_atomically(path, msgspec.json.encode(_Mark()))
        return
    try:
        mark = msgspec.json.decode(content, type=_Mark)
    except NOT_STRICT:
        mark = _Mark(version=0)
    if mark != _Mark():
        raise StoreError(
            f"{path.parent} was written by another version of elkimg_async; use that version, or "
            "choose another folder."
        )


def _read_log(folder: Path) -> _LoggedJob | None:
    """Return the job of a folder; None for one whose creation was cut short, which is removed."""
    try:
        content = (folder / _LOG).read_bytes()
    except FileNotFoundError:
        content = b""
    except NotADirectoryError:
        return None
    # A line counts once its line feed is on disk: what follows the last one was cut off when the
    # process was killed, and `append` had not returned.
    whole, _, torn = content.rpartition(b"\n")
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    kept: _LoggedJob | None = None
    try:
        for text in whole.split(b"\n"):
            line = msgspec.json.decode(text, type=_Line)
            if line.job is not None:
                kept = kept or _LoggedJob(folder, line.job)
                kept.job = line.job
            elif kept is not None and line.event is not None:
                kept.add(line.event, line.file)
    except NOT_STRICT:
        kept = None
    if kept is None:
        logger.warning("the job in %s was skipped: its log is damaged", folder)
        return None
    if torn:  # or the next line would be joined to it
        os.truncate(folder / _LOG, len(whole) + 1)
    _remove_leftovers(kept)
    return kept


def _remove_leftovers(kept: _LoggedJob) -> None:
    """Remove files that no line of the log names."""
    named = {_LOG, *(file for _, file in kept.events.values() if file is not None)}
    for file in kept.folder.iterdir():
        if file.name not in named and not file.name.startswith("input-"):
            file.unlink(missing_ok=True)


def _write_line(folder: Path, line: _Line) -> None:
    """Append a line to the log and flush it to disk; a line that fails is removed completely."""
    data = msgspec.json.encode(line) + b"\n"
    with (folder / _LOG).open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            write_all(file.fileno(), data)
            sync_file(file.fileno())
        except OSError:  # the caller repeats it, once the disk has room
            os.ftruncate(file.fileno(), end)
            raise


def _open_locked(path: Path) -> int:
    """Open and lock a file for this process alone; the lock ends with the process."""
    try:
        return open_locked(path)
    except BlockingIOError:
        problem = f"Another process uses {path.parent}; choose another folder"
    except LocksUnavailableError as error:
        problem = (
            f"The file system of {path.parent} has no file locks ({error.strerror}), so nothing "
            "keeps a second process from using it; choose a folder on a local disk"
        )
    raise StoreError(f"{problem}, or RedisStore for several worker processes.")
