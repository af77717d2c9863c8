"""`elkimg studio`."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from cyclopts import Parameter

from elkimg_async import errors
from elkimg_async.cli import interrupts
from elkimg_async.cli.console import OUT, UsageError, count, say, sentence
from elkimg_async.cli.options import CONNECTION, WHOLE, Connection, check_port

EXAMPLES = """\
elkimg studio --open
elkimg studio --local --port 8080"""
_ADVICE = {  # advice of the library, and what to do with the command instead
    r"^(Another process uses .*); choose another folder, or RedisStore.*": (
        r"\1; open the address that it printed, or choose another folder with --folder."
    ),
    r"(choose a folder on a local disk), or RedisStore.*": r"\1 with --folder.",
    r"(choose another folder)\.$": r"\1 with --folder.",
    r"(cannot be used as a store: .*)": r"\1 Choose another one with --folder.",
}


def studio(
    *,
    port: Annotated[int | None, WHOLE] = None,
    folder: Annotated[Path | None, Parameter(metavar="FOLDER")] = None,
    open: bool = False,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """Generate and edit images on a page in your browser, until Ctrl-C.

    The API key stays in this program. Only this machine can reach the page, and other users of it
    only with the random token in the address. Images are kept in a folder, and a page that is
    closed or reloaded loses nothing.

    Args:
        port: Port of the page; 0 for a free one. Default: 8700, or the next one that is free.
        folder: Folder for the history of images. Default: one in your data folder.
        open: Open the page in the browser.
        connection: Where requests go.
    """
    check_port(port)
    connection.check()
    from elkimg_async.studio.browser import opened
    from elkimg_async.studio.listener import DEFAULT_PORT
    from elkimg_async.studio.server import serve

    history = folder or default_folder(local=connection.local)
    began = False

    def wait_for(running: int) -> None:
        say(
            f"Waiting for {count(running, 'job')} in progress, which you pay for. "
            "Press Ctrl-C again to stop at once."
        )

    async def run() -> None:
        nonlocal began
        async with (
            connection.client(say=say) as client,
            serve(
                client, folder=history, port=port, local=connection.local, on_close=wait_for
            ) as url,
        ):
            began = True
            if port is None and f":{DEFAULT_PORT}/" not in url:
                say(f"Port {DEFAULT_PORT} is taken, so the studio uses another one.")
            OUT.print(f"The studio is at {url}\nPress Ctrl-C to stop.", soft_wrap=True)
            say(f"Images are kept in {history}")
            with contextlib.ExitStack() as stack:
                if open:
                    found = await anyio.to_thread.run_sync(stack.enter_context, opened(url))
                    if not found:
                        say("No browser was found; open the address above.")
                await anyio.sleep_forever()

    try:
        interrupts.run(run)
    except errors.StoreError as error:
        if began:
            raise
        raise UsageError(_describe(error)) from None
    return 0


def _describe(error: errors.StoreError) -> str:
    """Return why the folder cannot be used, with the options of the command in its advice."""
    text = sentence(error)
    for advice, own in _ADVICE.items():
        text = re.sub(advice, own, text)
    return text


def default_folder(*, local: bool) -> Path:
    """Return the studio's folder in the user's data directory; the local server has its own."""
    home = Path.home()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        named = os.environ.get("XDG_DATA_HOME", "")
        data = Path(named) if Path(named).is_absolute() else home / ".local" / "share"
    return data / "elkimg" / ("studio-local" if local else "studio")
