"""A stand-in server on this machine: speaks the contract, paints pictures, plays faults.

    async with LocalServer() as server:
        client = AsyncImages(server.api_key, base_url=server.base_url)

It is not a model: what it paints depends on the prompt, but shows nothing of it.
"""

from elkimg_async.local.faults import FAULT_HEADER, FAULTS, Fault, parse
from elkimg_async.local.server import LocalServer, ReceivedRequest
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
