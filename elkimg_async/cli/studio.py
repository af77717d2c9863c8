"""`elkimg studio`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import anyio
import anyio.to_thread
from cyclopts import Parameter

from elkimg_async.cli.console import OUT, say
from elkimg_async.cli.options import CONNECTION, WHOLE, Connection
from elkimg_async.transport import event_loop

EXAMPLES = """\
elkimg studio --open
elkimg studio --local --port 8080"""


def studio(
    *,
    port: Annotated[int, WHOLE] = 0,
    open: bool = False,
    connection: Annotated[Connection, Parameter(name="*", group="Server")] = CONNECTION,
) -> int:
    """Generate and edit images on a page in your browser, until Ctrl-C.

    The API key stays in this program. Only this machine can reach the page, and other users of it
    only with the random token in the address.

    Args:
        port: Port of the page. Default: a free one.
        open: Open the page in the browser.
        connection: Where requests go.
    """
    connection.check()
    from elkimg_async.studio.browser import opened
    from elkimg_async.studio.server import serve

    async def run() -> None:
        async with (
            connection.client(say=say) as client,
            serve(client, port=port, local=connection.local) as url,
        ):
            OUT.print(f"The studio is at {url}\nPress Ctrl-C to stop.", soft_wrap=True)
            with contextlib.ExitStack() as stack:
                if open:
                    await anyio.to_thread.run_sync(stack.enter_context, opened(url))
                await anyio.sleep_forever()

    event_loop.run(run)
    return 0
