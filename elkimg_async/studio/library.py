"""The studio's folder, apart from its jobs: images to edit, thumbnails and the token.

Jobs drop the images they send once they are finished. The studio needs them longer, to repeat an
edit and to compare it with its original, so it keeps them by their SHA-256.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import anyio.to_thread

from elkimg_async.batch.names import prompt_stem
from elkimg_async.errors import StoreError
from elkimg_async.files import write_atomically
from elkimg_async.jobs import Job
from elkimg_async.media_types import TYPES, media_type_of

EDGE = 640
"""Length of a thumbnail's longer edge, in pixels."""
MAX_SHOWN = 96 * 1024
"""Images of up to this many bytes are shown without a thumbnail."""

_REDUCED = {".png", ".jpg", ".webp"}
_TOKEN = re.compile(r"[\w-]{32}", re.ASCII)


class Library:
    """Files beside the jobs in the studio's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._inputs, self._thumbnails = folder / "inputs", folder / "thumbnails"
        self._starting: list[str] = []  # SHA-256 of images of jobs that are about to be stored
        self._reducing = asyncio.Semaphore(2)

    def create(self) -> None:
        """Create the folder, which only its owner may read.

        Raises:
            StoreError: If it cannot be created.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._inputs.mkdir(exist_ok=True)
            self._thumbnails.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be used ({error.strerror or error}); choose another folder."
            ) from None

    def token(self) -> str:
        """Return the token of this folder, which stays, so that open pages find a new server.

        It is replaced if another user of the machine may know it.
        """
        path = self.folder / "token"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            status, token = path.stat(), path.read_text("ascii")
            own = not hasattr(os, "getuid") or (
                status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
            )
            if own and _TOKEN.fullmatch(token):
                return token
        token = secrets.token_urlsafe(24)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token)
        return token

    # --- images to edit -----------------------------------------------------

    @contextlib.asynccontextmanager
    async def keep(self, images: Sequence[bytes]) -> AsyncIterator[None]:
        """Keep images while a job with them is started in the block."""
        digests = await anyio.to_thread.run_sync(self._write_inputs, images)
        self._starting += digests
        try:
            yield
        finally:
            for digest in digests:
                self._starting.remove(digest)

    def _write_inputs(self, images: Sequence[bytes]) -> list[str]:
        digests = []
        for image in images:
            digest = hashlib.sha256(image).hexdigest()
            if not (self._inputs / digest).exists():
                write_atomically(self._inputs / digest, image)
            digests.append(digest)
        return digests

    def input_file(self, digest: str) -> Path | None:
        """Return the file of an image to edit; None if there is none."""
        path = self._inputs / digest
        return path if re.fullmatch("[0-9a-f]{64}", digest) and path.exists() else None

    def remove_unused(self, jobs: Iterable[Job]) -> None:
        """Delete images to edit, and thumbnails, that no job has."""
        found = list(jobs)
        used = {each.sha256 for job in found for each in job.inputs} | set(self._starting)
        named = {_stem(job.id) for job in found}
        for path in self._inputs.iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)
        for path in self._thumbnails.iterdir():
            if path.name.rpartition("-")[0] not in named:
                path.unlink(missing_ok=True)

    # --- thumbnails ---------------------------------------------------------

    async def thumbnail(self, job: Job, number: int, image: Path) -> Path:
        """Return a small copy of an image; the image itself without Pillow, or if it is small."""
        path = self._thumbnails / f"{_stem(job.id)}-{number}.webp"
        async with self._reducing:
            return await anyio.to_thread.run_sync(_reduced, image, path)


def _stem(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:20]


def _reduced(image: Path, target: Path) -> Path:
    if target.exists():
        return target
    if image.suffix not in _REDUCED or image.stat().st_size <= MAX_SHOWN:
        return image
    try:
        from PIL import Image as Pillow

        with Pillow.open(image) as opened:
            opened.draft("RGB", (2 * EDGE, 2 * EDGE))
            opened.thumbnail((EDGE, EDGE))
            file = io.BytesIO()
            opened.save(file, "webp", quality=82, method=2)
        write_atomically(target, file.getvalue())
    except Exception:  # noqa: BLE001 - no Pillow, or whatever a damaged image does to it
        return image
    return target


def file_name(job: Job, index: int, image: Path) -> str:
    """Return the name under which an image is downloaded."""
    number = f"-{index + 1}" if index else ""
    return f"{prompt_stem(job.prompt) or 'image'}{number}{image.suffix}"


def type_of(image: Path) -> str:
    if image.suffix in TYPES:
        return TYPES[image.suffix]
    with image.open("rb") as file:
        return media_type_of(file.read(4096))
