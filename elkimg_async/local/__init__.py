"""A local server for development and tests, which paints placeholders and injects faults.

    async with LocalServer() as server:
        client = AsyncImages(server.api_key, base_url=server.base_url)

There is no model behind it: an image depends on the prompt but does not depict it.
"""

from elkimg_async.local.faults import FAULT_HEADER, FAULTS, Fault, parse
from elkimg_async.local.received import ReceivedRequest
from elkimg_async.local.server import LocalServer
from elkimg_async.local.thread import ThreadedServer

__all__ = [
    "FAULTS",
    "FAULT_HEADER",
    "Fault",
    "LocalServer",
    "ReceivedRequest",
    "ThreadedServer",
    "parse",
]
