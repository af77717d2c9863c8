"""A server that sends exactly these bytes, in exactly these chunks.

    busy = response({"error": "busy"}, status=429)
    async with RawServer(busy, [HEAD, b"da", b"ta", End.CLOSE]) as server:
        client = AsyncImages(API_KEY, base_url=server.base_url)

Each request gets the next reply; the last reply is for all that follow.
"""

import asyncio
import enum
import json
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Self

import msgspec

API_KEY = "sk-raw-0123456789abcdef"
REQUEST_ID = "raw-request"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
JPEG = b"\xff\xd8\xff" + bytes(range(256))


class End(enum.Enum):
    """What happens to the connection after the last byte, instead of keep-alive."""

    CLOSE = "close"
    RESET = "reset"
    HOLD = "hold"


Piece = bytes | asyncio.Event | End
"""Bytes to send, an event to wait for, or the end."""
Reply = Sequence[Piece]


class RawRequest(msgspec.Struct, frozen=True):
    """One received request; header names are in lower case.

    `body` is what had arrived when the server replied; without `keep_bodies` it is empty.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON body."""
        fields = json.loads(self.body)
        assert isinstance(fields, dict)
        return fields

    @property
    def length(self) -> int:
        """The length of the body, as announced."""
        return int(self.headers.get("content-length", "0"))


class RawServer:
    """The server.

    `requests` has all requests, `connections` is the number of open connections, `accepted` that of
    all so far.

    Args:
        replies: The chunks of each response.
        reading: Whether to read from connections; if False, not before `read_on`.
        reply_after: How many bytes of the body to read before the reply; the rest is read while it
            is sent. None for all of them.
        keep_bodies: Whether requests keep their body.
    """

    def __init__(
        self,
        *replies: Reply,
        reading: bool = True,
        reply_after: int | None = None,
        keep_bodies: bool = True,
    ) -> None:
        self.reading, self.reply_after, self.keep_bodies = reading, reply_after, keep_bodies
        self.requests: list[RawRequest] = []
        self.connections = 0
        self.accepted = 0
        self._replies = list(replies)
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._changed = asyncio.Event()
        self.port = 0

    def read_on(self) -> None:
        """Start to read, which also shows which clients have disconnected."""
        self.reading = True
        for connection in self._open:
            connection.transport.resume_reading()

    def reply_with(self, *replies: Reply) -> None:
        """Replace the remaining replies."""
        self._replies = list(replies)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for a client."""
        return f"{self.origin}/v1"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._open:
            connection.transport.abort()
        await self.wait_until(lambda: not self.connections)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is checked at every request and connection.

        A TimeoutError after ten seconds makes a test fail instead of hanging.
        """
        async with asyncio.timeout(10):
            while not condition():
                await self._changed.wait()

    async def wait_disconnected(self) -> None:
        """Wait until a client has connected, and all have disconnected."""
        await self.wait_until(lambda: self.accepted > 0 and self.connections == 0)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _next_reply(self) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


class _Connection(asyncio.Protocol):
    def __init__(self, server: RawServer) -> None:
        self._server = server
        self._received = bytearray()
        self._headers: dict[str, str] | None = None
        self._first_line = ""
        self._missing = 0  # bytes of the body
        self._replied = False
        self._sending: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections += 1
        self._server.accepted += 1
        self._server._open.add(self)
        if not self._server.reading:
            transport.pause_reading()
        self._server._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._server.connections -= 1
        self._server._open.discard(self)
        self._server._notify()

    def data_received(self, data: bytes) -> None:
        if self._headers is None:
            self._received += data
            head, blank, rest = bytes(self._received).partition(b"\r\n\r\n")
            if not blank:
                return
            self._begin(head)
            data, self._received = rest, bytearray()
        body, rest = data[: self._missing], data[self._missing :]
        self._missing -= len(body)
        if self._server.keep_bodies:
            self._received += body
        assert self._headers is not None
        length = int(self._headers.get("content-length", "0"))
        after = self._server.reply_after
        if not self._replied and length - self._missing >= min(
            length, length if after is None else after
        ):
            self._reply()
        if not self._missing:
            self._headers, self._received = None, bytearray(rest)

    def _begin(self, head: bytes) -> None:
        self._first_line, *lines = head.decode().split("\r\n")
        self._headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self._missing = int(self._headers.get("content-length", "0"))
        self._replied = False

    def _reply(self) -> None:
        assert self._headers is not None
        self._replied = True
        method, target, _ = self._first_line.split(" ")
        request = RawRequest(method, target, self._headers, bytes(self._received))
        self._server.requests.append(request)
        self._server._notify()
        self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        for piece in self._server._next_reply():
            match piece:
                case bytes():
                    self.transport.write(piece)
                    for _ in range(3):  # let a client in the same event loop read this chunk
                        await asyncio.sleep(0)
                case asyncio.Event():
                    await piece.wait()
                case End.CLOSE:
                    self.transport.close()
                case End.RESET:
                    linger = struct.pack("ii", 1, 0)
                    connection = self.transport.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.transport.abort()
                case End.HOLD:
                    await asyncio.get_running_loop().create_future()


def head(status: int = 200, content_type: str = "application/json", **headers: str) -> bytes:
    """Return a status line and headers with a request id; `_` in a name stands for `-`."""
    named = {"Content-Type": content_type, "X-Oneapi-Request-Id": REQUEST_ID, **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    return "\r\n".join([f"HTTP/1.1 {status} Raw", *lines, "", ""]).encode()


def response(
    body: object, *, status: int = 200, content_type: str = "application/json", **headers: str
) -> list[Piece]:
    """Return a response of a known length; anything but bytes is written as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = str(len(content))
    return [head(status, content_type, Content_Length=length, **headers), content]


def stream(*frames: bytes, content_type: str = "text/event-stream", **headers: str) -> list[Piece]:
    """Return a chunked response, one chunk per frame."""
    return [*open_stream(*frames, content_type=content_type, **headers), b"0\r\n\r\n"]


def open_stream(
    *frames: bytes, content_type: str = "text/event-stream", **headers: str
) -> list[Piece]:
    """Return a chunked response without its end."""
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames if frame]
    return [head(200, content_type, Transfer_Encoding="chunked", **headers), *chunks]


def event(fields: object, name: str | None = None) -> bytes:
    """Return one server-sent event; anything but bytes is written as JSON."""
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


DONE = b"data: [DONE]\n\n"
