"""`elkimg serve`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Annotated

import anyio
from cyclopts import Parameter

from elkimg_async import errors
from elkimg_async.cli import interrupts
from elkimg_async.cli.console import OUT, UsageError, sentence
from elkimg_async.cli.options import (
    LOCAL_API_KEY,
    LOCAL_DELAY,
    SECONDS,
    TEXT,
    WHOLE,
    check_port,
)
from elkimg_async.config import URL_VARIABLE
from elkimg_async.credentials import API_KEY_VARIABLE

EXAMPLES = """\
elkimg serve --port 8080
elkimg serve --fault rate-limit --fault "error*2"
elkimg serve --fault list"""


def serve(
    *,
    port: Annotated[int, WHOLE] = 0,
    api_key: Annotated[str, TEXT] = LOCAL_API_KEY,
    delay: Annotated[float, SECONDS] = LOCAL_DELAY,
    fault: Annotated[Sequence[str], Parameter(metavar="NAME")] = (),
) -> int:
    """Run a local stand-in for the real server until Ctrl-C; only this machine can reach it.

    Args:
        port: Port to listen on. Default: a free one.
        api_key: API key that clients must send; not a real one. Default: elkimg-local.
        delay: Pause before each response and each event of a stream. Default: 0.6.
        fault: Fault of one request: NAME, NAME=ARGUMENT or NAME*TIMES. If repeated, each applies to
            the next request; "--fault list" prints the names.
    """
    check_port(port)
    if not 0 <= delay < math.inf:
        raise UsageError("--delay must be 0 or more.")
    from elkimg_async.local import FAULTS, LocalServer

    if "list" in fault:
        OUT.print(*(f"{name}: {text}" for name, text in FAULTS.items()), sep="\n", soft_wrap=True)
        return 0

    try:
        local = LocalServer(port=port, api_key=api_key, delay=delay, faults=fault)
    except errors.ConfigurationError as error:
        raise UsageError(sentence(error)) from None

    async def run() -> None:
        async with local as server:
            OUT.print(_guide(server.base_url, api_key), soft_wrap=True)
            await anyio.sleep_forever()

    interrupts.run(run, fast=False)
    return 0


def _guide(base_url: str, api_key: str) -> str:
    return f"""\
Base URL: {base_url}
API key: {api_key}

For elkimg and elkimg_async:
export {URL_VARIABLE}={base_url} {API_KEY_VARIABLE}={shlex.quote(api_key)}

For anything else:
curl {base_url}/images/generations -H {shlex.quote("Authorization: Bearer " + api_key)} \
-H 'Content-Type: application/json' -d '{{"prompt": "A small kitten"}}' -o response.json

Press Ctrl-C to stop."""
