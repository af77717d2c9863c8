"""Images as files on a path that all workers see, with a record beside them for each row.

Files appear whole or not at all, and the record after them: where it is, the row is paid for, and
done unless some of its images still wait at their URLs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from elkimg_async.batch.executor import Slots
from elkimg_async.batch.journal import PendingImage, SavedFile
from elkimg_async.batch.storage import OutputFolder
from elkimg_async.errors import ConfigurationError
from elkimg_async.image import write_atomically
from elkimg_async.ray.rows import file_stem
from elkimg_async.sansio.responses import Usage


class RowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One row whose images are made: `files` are here, and those of `urls` are not fetched yet.

    `hash` is the fingerprint of its request, `elapsed` the seconds spent on it so far.
    """

    id: str
    hash: str
    key: str | None
    prompt: str
    parameters: dict[str, Any]
    files: tuple[SavedFile, ...]
    urls: tuple[PendingImage, ...] = ()
    usage: Usage | None
    request_id: str | None
    attempts: int
    elapsed: float


class SharedStore:
    """The folder of a dataset's images; any number of processes may use it at once.

    Raises:
        ConfigurationError: by the caller, where there can be no such folder.
    """

    def __init__(self, path: str) -> None:
        if "://" in path:
            raise ConfigurationError(
                "output_dir must be a folder that all workers see. For an object store leave it out, "
                "and write the column `images` there with Ray Data."
            )
        self._path = Path(path)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"The images cannot go to {path}: {error.strerror}. Choose another folder."
            ) from None
        self._folder = OutputFolder(self._path)

    def find(self, row_id: str, mark: str) -> RowRecord | None:
        """The record of a row whose files are here whole, made for the request with this fingerprint."""
        try:
            record = msgspec.json.decode(self._record(row_id).read_bytes(), type=RowRecord)
            whole = all(
                (self._path / file.name).stat().st_size == file.bytes for file in record.files
            )
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return record if whole and (record.id, record.hash) == (row_id, mark) else None

    def write(self, row_id: str, slots: Slots, *, many: bool) -> tuple[SavedFile, ...]:
        """Write images of a row, which has `many` or one.

        Raises:
            OSError: by the file system.
        """
        stem = file_stem(row_id)
        return tuple(
            self._folder.write(f"{stem}.{position + 1}" if many else stem, image, position)
            for position, image in slots
        )

    def note(self, record: RowRecord) -> None:
        """Write what is known of a row.

        Raises:
            OSError: by the file system.
        """
        write_atomically(self._record(record.id), msgspec.json.encode(record))

    def paths(self, files: Sequence[SavedFile]) -> list[str]:
        """Where files are."""
        return [str(self._path / file.name) for file in files]

    def _record(self, row_id: str) -> Path:
        return self._path / f"{file_stem(row_id)}.json"
