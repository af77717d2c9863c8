"""Hashes of the input files of edits, which are read in a worker thread, a chunk at a time."""

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from elkimg_async.batch.journal import fingerprint
from elkimg_async.batch.names import input_names
from elkimg_async.errors import InvalidRequestError
from elkimg_async.image import Image
from elkimg_async.sansio.image_headers import short
from elkimg_async.sansio.requests import INPUT_FIELDS, EditRequest, ImageRequest
from elkimg_async.transport.uploads import image_list, is_file_tuple, reason_of

_CHUNK = 1 << 20
_URLS = ("http://", "https://", "data:")


def full_fingerprint(request: ImageRequest, *, stream: bool) -> str:
    """Return the fingerprint of a request, which for an edit covers the content of its inputs.

    Raises:
        InvalidRequestError: If the request cannot be written as JSON, or an input cannot be read.
    """
    inputs = hash_inputs(request) if isinstance(request, EditRequest) else None
    return fingerprint(request, stream=stream, inputs=inputs)


def journal_fingerprint(request: ImageRequest, *, stream: bool) -> str:
    """Return the fingerprint of a request in a journal, which for an edit also covers its names.

    A journal identifies requests by their position, so it needs the names to distinguish a changed
    file from another one.

    Raises:
        InvalidRequestError: If the request cannot be written as JSON, or an input cannot be read.
    """
    found = full_fingerprint(request, stream=stream)
    if not isinstance(request, EditRequest):
        return found
    names = "\n".join(input_names(request)).encode("utf-8", "surrogatepass")
    return f"{found}-{hashlib.sha256(names).hexdigest()[:16]}"


def hash_inputs(request: EditRequest) -> str:
    """Return a hash over the SHA-256 of each input of an edit; it does not depend on paths.

    Raises:
        InvalidRequestError: If an input cannot be read, or can be read only once.
    """
    total = hashlib.sha256()
    for param in INPUT_FIELDS:
        value = getattr(request, param)
        for item in image_list(value) if value is not None else ():
            total.update(f"{param}:{_hash_input(item, param)}\n".encode())
    return total.hexdigest()[:32]


def _hash_input(item: Any, param: str) -> str:
    if is_file_tuple(item):
        item = item[1]
    if isinstance(item, (bytes, bytearray, memoryview)):
        return hashlib.sha256(item).hexdigest()
    if isinstance(item, Image):
        return hashlib.sha256(item.content or (item.url or "").encode()).hexdigest()
    if isinstance(item, str) and item.startswith(_URLS):
        return hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(item, (str, os.PathLike)):
        return _hash_path(item, param)
    if callable(getattr(item, "read", None)):
        return _hash_file(item, param)
    if isinstance(item, msgspec.Struct):  # a reference to a file of the server
        return hashlib.sha256(msgspec.json.encode(item)).hexdigest()
    raise InvalidRequestError(
        f"{param} must be a path, bytes, a file opened in binary mode, or an Image, "
        f"not {type(item).__name__}.",
        param=param,
    )


def _hash_path(path: "str | os.PathLike[str]", param: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    raise InvalidRequestError(f"{short(os.fsdecode(path))} cannot be read: {reason}.", param=param)


def _hash_file(file: Any, param: str) -> str:
    """Hash a file object from its start, and restore its position."""
    try:
        position = file.tell()
        file.seek(0)
        digest = hashlib.sha256()
        try:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        finally:
            file.seek(position)
    except (OSError, ValueError, TypeError, AttributeError):
        raise InvalidRequestError(
            f"The file passed as {param} cannot be read twice, which a journal requires; pass a "
            "path or bytes.",
            param=param,
        ) from None
    return digest.hexdigest()
