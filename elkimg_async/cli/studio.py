"""`elkimg studio`."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import anyio
import anyio.to_thread
from cyclopts import Parameter

from elkimg_async.cli.options import WHOLE, Connection
from elkimg_async.cli.report import OUT, Report


def studio(
    *,
    port: Annotated[int, WHOLE] = 0,
    open: bool = False,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = Connection(),
) -> int:
    """Make and edit pictures on a page in your browser, until Ctrl-C.

    The API key is read from the environment variable ELKAPI_API_KEY, and stays in this program.
    Only this machine reaches the page; whoever else uses this machine can reach it too.

    Args:
        port: The port of the page; a free one if not given.
        open: Open the page in the browser as well.
    """
    connection.check()
    from elkimg_async.studio.server import serve

    async def run() -> None:
        async with (
            connection.client(Report()) as client,
            serve(client, port=port, local=connection.local) as url,
        ):
            OUT.print(f"The studio is at {url}\nPress Ctrl-C to stop.", soft_wrap=True)
            if open:
                await anyio.to_thread.run_sync(webbrowser.open, url)
            await anyio.sleep_forever()

    anyio.run(run)
    return 0
