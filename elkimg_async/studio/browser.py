"""Open the studio in the browser."""

import contextlib
import tempfile
import webbrowser
from collections.abc import Iterator
from html import escape
from pathlib import Path


@contextlib.contextmanager
def opened(url: str) -> Iterator[bool]:
    """Open an address in the browser; yield whether one was found.

    Other users of the machine can read the arguments of processes, so the browser gets the address
    from a file that only this user can read, and that is deleted at the end of the block.
    """
    with tempfile.TemporaryDirectory(prefix="elkimg-studio-") as folder:
        page = Path(folder, "studio.html")
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><title>elkimg studio</title>'
            f'<meta http-equiv="refresh" content="0; url={escape(url)}">'
            f'<a href="{escape(url)}">Open the studio</a>\n',
            "utf-8",
        )
        yield webbrowser.open(page.as_uri())
