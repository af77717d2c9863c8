"""Previews for notebooks: small copies of images as HTML, each with a link to the original.

Nothing here needs IPython. Without Pillow, or where an image cannot be reduced, the original is
embedded instead.
"""

import hashlib
import html
import importlib.util
import io
import sys
from pathlib import Path

import pybase64

from elkimg_async.files import write_atomically
from elkimg_async.media_types import EXTENSIONS

MAX_EDGE = 512
"""Length of a preview's longer edge, in pixels."""

FOLDER = "elkimg-originals"
"""Folder beside a notebook that holds the originals of its previews."""

MAX_EMBEDDED = 64 * 1024
"""Images of at most this many bytes are embedded without a preview."""

RASTER_TYPES = {"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"}
"""The types that notebooks show without HTML."""

_BROWSER_TYPES = RASTER_TYPES | {"image/avif", "image/svg+xml"}


def figure(content: bytes, media_type: str, alt: str, *, link: bool = True) -> str | None:
    """Return an `img` element with alternative text; None for types that browsers do not show.

    The element embeds everything it shows and cannot run scripts, not even those of an SVG.
    """
    if media_type not in _BROWSER_TYPES:
        return None
    alt = html.escape(" ".join(alt.split()))
    reduced = _reduce(content) if media_type != "image/svg+xml" else None
    shown, shown_type = reduced or (content, media_type)
    source = f"data:{shown_type};base64,{pybase64.b64encode_as_string(shown)}"
    element = f'<img src="{source}" alt="{alt}" title="{alt}" style="max-width:100%">'
    path = _keep(content, media_type) if reduced and link else None
    return f'<a href="{path}" target="_blank">{element}</a>' if path else element


def _reduce(content: bytes) -> tuple[bytes, str] | None:
    """Return a preview and its type; None to embed the original."""
    if len(content) <= MAX_EMBEDDED or importlib.util.find_spec("PIL") is None:
        return None
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (MAX_EDGE, MAX_EDGE))
            transparent = image.has_transparency_data
            small = image.convert("RGBA" if transparent else "RGB")
        small.thumbnail((MAX_EDGE, MAX_EDGE))
        file = io.BytesIO()
        small.save(file, "webp" if transparent else "jpeg", quality=85)
    except Exception:  # noqa: BLE001
        return None  # truncated, too large, or of a type that this Pillow does not know
    preview = file.getvalue()
    if len(preview) >= len(content):
        return None
    return preview, "image/webp" if transparent else "image/jpeg"


def _keep(content: bytes, media_type: str) -> str | None:
    """Write an original beside the notebook and return its relative path; None if there is none."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return None
    path = Path(FOLDER, hashlib.sha256(content).hexdigest()[:16] + EXTENSIONS[media_type])
    try:
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_atomically(path, content)
    except OSError:
        return None  # the folder is not writable
    return path.as_posix()
