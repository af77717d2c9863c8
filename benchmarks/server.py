"""The benchmark server: `python -m benchmarks.server`, a process of its own.

It prints its ports, plain and with TLS, and the file of the authority that signed its certificate.
It serves until its standard input closes, and does as little as possible per request: a prepared
block of bytes is written to the socket in slices.

    POST /<spec>/v1/…        the response of that spec
    POST /held/<spec>/v1/…   the same, with a pause before its last bytes
    GET  /last               {"ns": when the last held tail was written, CLOCK_MONOTONIC}
    GET  /expected/<spec>    {"hashes": of the images, "body": of the whole body}
"""

import argparse
import asyncio
import functools
import gc
import json
import ssl
import sys
import tempfile
import time
from pathlib import Path

import trustme

from .meters import pin
from .responses import PreparedResponse, Spec, build, simple

SLICE = 1 << 20
HOLD = 0.06

response_for = functools.cache(build)


class Connection(asyncio.Protocol):
    """One connection, without pipelining."""

    last_tail_ns = 0  # of the whole server, which holds one response at a time

    def __init__(self) -> None:
        self._received = b""
        self._paused = False
        self._left = memoryview(b"")
        self._tail = memoryview(b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # With a low limit of 0, resuming means that the kernel has every byte. A high limit of 0
        # would pause a TLS transport for ever.
        transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end]
        if len(self._received) < end + 4 + _content_length(head):
            return
        self._received = b""
        self._respond(head.split(b" ", 2)[1].decode("ascii"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def _respond(self, path: str) -> None:
        first, _, rest = path[1:].partition("/")
        try:
            if first == "last":
                self._send(simple(json.dumps({"ns": Connection.last_tail_ns}).encode()))
            elif first == "expected":
                self._send(simple(_expected(response_for(Spec.parse(rest)))))
            elif first == "held":
                response = response_for(Spec.parse(rest.partition("/")[0]))
                self._send(response.wire, response.cut)
            else:
                self._send(response_for(Spec.parse(first)).wire)
        except ValueError:
            self._send(simple(b'{"error":{"message":"no such response"}}', "404 Not Found"))

    def _send(self, wire: bytes, cut: int | None = None) -> None:
        view = memoryview(wire)
        self._left, self._tail = (view, view[:0]) if cut is None else (view[:cut], view[cut:])
        self._pump()

    def _pump(self) -> None:
        while self._left and not self._paused:
            part, self._left = self._left[:SLICE], self._left[SLICE:]
            self._transport.write(part)
        if self._tail and not self._paused:
            tail, self._tail = self._tail, self._tail[:0]
            asyncio.get_running_loop().call_later(HOLD, self._release, tail)

    def _release(self, tail: memoryview) -> None:
        Connection.last_tail_ns = time.monotonic_ns()
        self._transport.write(tail)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


def _expected(response: PreparedResponse) -> bytes:
    return json.dumps({"hashes": response.hashes, "body": response.body}).encode()


def certify(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a context with a new certificate, and the file of the authority that signed it."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return context, file


async def serve() -> None:
    """Listen on two free loopback ports until standard input ends."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        context, authority = certify(Path(folder))
        plain = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
        tls = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024, ssl=context)
        ports = [server.sockets[0].getsockname()[1] for server in (plain, tls)]
        print(*ports, authority, flush=True)
        stopped = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), stopped.set)
        await stopped.wait()
        plain.close()
        tls.close()


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    parser.add_argument("--core", type=int, help="processor core to run on")
    pin(parser.parse_args().core)
    gc.disable()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
