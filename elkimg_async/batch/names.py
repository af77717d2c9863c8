"""Names of output files, derived from prompts, input files and row ids."""

import hashlib
import os
import re
import unicodedata
from pathlib import PurePath
from typing import Any

from elkimg_async.sansio.requests import EditRequest, ImageRequest
from elkimg_async.transport.uploads import image_list

MAX_STEM = 40
"""Characters of a prompt or a file name that are kept; short enough for any file system."""
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def prompt_stem(prompt: str) -> str:
    """Return the first words of a prompt as a file name, like `a-small-kitten`; may be empty."""
    text = unicodedata.normalize("NFC", prompt[:200]).lower()
    words = "".join(c if _in_word(c) else " " for c in text).split()
    return "-".join(words[:6])[:MAX_STEM].strip("-")


def _in_word(character: str) -> bool:
    # Letters, numbers and marks: the vowels of Indic scripts are marks, at which \w ends a word.
    # Variation selectors are marks as well, but follow emoji, which are left out.
    if "\ufe00" <= character <= "\ufe0f":
        return False
    return unicodedata.category(character)[0] in "LMN"


def job_stem(index: int, request: ImageRequest) -> str:
    """Return the name of a request's files, without extension: `000012-a-small-kitten`.

    An edit is named after its first input file, anything else after its prompt.
    """
    names = input_names(request)
    text = _input_stem(names[0]) if names else prompt_stem(request.prompt)
    return f"{index:06d}-{text}".strip("-")


def row_stem(row_id: str) -> str:
    """Return the name of a row's files, without extension.

    That is the id itself if every file system accepts it, else its safe characters and a hash.
    """
    plain = "".join(c if c in _SAFE else "_" for c in row_id.lower())[:60]
    if plain == row_id and row_id:
        return row_id
    digest = hashlib.sha256(row_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain}~{digest[:12]}"


def input_names(request: ImageRequest) -> list[str]:
    """Return the names of an edit's input files; those without a name are left out."""
    if not isinstance(request, EditRequest):
        return []
    return [name for image in image_list(request.image) if (name := _name_of(image))]


def _name_of(image: Any) -> str | None:
    if isinstance(image, tuple) and image and isinstance(image[0], str):
        return PurePath(image[0]).name
    if isinstance(image, str):
        if image.startswith("data:"):
            return None
        if image.startswith(("http://", "https://")):
            return PurePath(image.partition("?")[0].partition("://")[2]).name
        return PurePath(image).name
    if isinstance(image, os.PathLike):
        return PurePath(os.fsdecode(image)).name
    name = getattr(image, "name", None)
    return PurePath(name).name if isinstance(name, str) else None


def _input_stem(name: str) -> str:
    stem = unicodedata.normalize("NFC", PurePath(name).stem)
    return re.sub(r"[^\w-]+", "-", stem)[:MAX_STEM].strip("-")
