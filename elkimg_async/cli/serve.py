"""`elkimg serve`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated

import anyio

from elkimg_async.cli.options import LOCAL_DELAY, WHOLE
from elkimg_async.cli.report import OUT
from elkimg_async.config import KEY_VARIABLE, URL_VARIABLE


def serve(
    *,
    port: Annotated[int, WHOLE] = 0,
    api_key: str = "elkimg-local",
    delay: float = LOCAL_DELAY,
    fault: Sequence[str] = (),
) -> int:
    """Run a local server, a stand-in for the real one, until Ctrl-C; only this machine reaches it.

    Args:
        port: The port; a free one if not given.
        api_key: The key that it asks for, not a real one; elkimg-local if not given.
        delay: Seconds before each answer, and before each event of a stream.
        fault: What to play for one request, as NAME, NAME=ARGUMENT or NAME*TIMES. May be given
            several times, for one request after the other; `--fault list` names them all.
    """
    from elkimg_async.local import FAULTS, LocalServer

    if "list" in fault:
        OUT.print(*(f"{name}: {text}" for name, text in FAULTS.items()), sep="\n", soft_wrap=True)
        return 0

    async def run() -> None:
        async with LocalServer(port=port, api_key=api_key, delay=delay, faults=fault) as server:
            OUT.print(_guide(server.base_url, api_key), soft_wrap=True)
            await anyio.sleep_forever()

    anyio.run(run)
    return 0


def _guide(base_url: str, api_key: str) -> str:
    return f"""\
Base URL: {base_url}
API key: {api_key}

For elkimg and elkimg_async:
export {URL_VARIABLE}={base_url} {KEY_VARIABLE}={shlex.quote(api_key)}

For anything else:
curl {base_url}/images/generations -H {shlex.quote("Authorization: Bearer " + api_key)} \
-H 'Content-Type: application/json' -d '{{"prompt": "A small kitten"}}' -o answer.json

Press Ctrl-C to stop."""
