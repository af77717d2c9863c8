"""A server that answers with exactly the bytes it is given, in exactly these pieces.

    async with Canned(answer({"error": "busy"}, status=429), [HEAD, b"da", b"ta", End.CLOSE]) as server:
        client = AsyncImages(KEY, base_url=server.base_url)

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

KEY = "sk-canned-0123456789abcdef"
REQUEST_ID = "canned-request"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
JPEG = b"\xff\xd8\xff" + bytes(range(256))


class End(enum.Enum):
    """What happens to the connection after the last bytes, instead of keep-alive."""

    CLOSE = "close"
    RESET = "reset"
    HOLD = "hold"


Piece = bytes | asyncio.Event | End
"""Bytes to send, an event to wait for, or the end."""
Reply = Sequence[Piece]


class CannedRequest(msgspec.Struct, frozen=True):
    """One request that came in; header names are in lower case."""

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


class Canned:
    """The server.

    `requests` has all that came in, `connections` counts those that are open, `accepted` those that
    ever were. With `reading=False` it takes connections and does not read from them until `read_on`.
    """

    def __init__(self, *replies: Reply, reading: bool = True) -> None:
        self.reading = reading
        self.requests: list[CannedRequest] = []
        self.connections = 0
        self.accepted = 0
        self._replies = list(replies)
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._changed = asyncio.Event()
        self.port = 0

    def read_on(self) -> None:
        """Read from now on, and so see who has left."""
        self.reading = True
        for connection in self._open:
            connection.transport.resume_reading()

    def reply_with(self, *replies: Reply) -> None:
        """Replace the replies that are still to come."""
        self._replies = list(replies)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
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
        """Wait until `condition` holds; it is asked whenever a request or connection comes or ends.

        After ten seconds it is a TimeoutError, so that a test fails instead of hanging.
        """
        async with asyncio.timeout(10):
            while not condition():
                await self._changed.wait()

    async def wait_disconnected(self) -> None:
        """Wait until a client has come, and all have left."""
        await self.wait_until(lambda: self.accepted > 0 and self.connections == 0)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _next_reply(self) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


class _Connection(asyncio.Protocol):
    def __init__(self, server: Canned) -> None:
        self._server = server
        self._received = b""
        self._playing: asyncio.Task[None] | None = None
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
        if self._playing is not None:
            self._playing.cancel()
        self._server.connections -= 1
        self._server._open.discard(self)
        self._server._notify()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        first, *lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = int(headers.get("content-length", "0"))
        if len(body) < length:
            return
        method, target, _ = first.split(" ")
        self._received = body[length:]
        self._server.requests.append(CannedRequest(method, target, headers, body[:length]))
        self._server._notify()
        self._playing = asyncio.get_running_loop().create_task(self._play())

    async def _play(self) -> None:
        for piece in self._server._next_reply():
            match piece:
                case bytes():
                    self.transport.write(piece)
                    for _ in range(3):  # so that the client, in the same loop, reads it by itself
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
    """A status line and headers, the request id among them; `_` in a name stands for `-`."""
    named = {"Content-Type": content_type, "X-Oneapi-Request-Id": REQUEST_ID, **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    return "\r\n".join([f"HTTP/1.1 {status} Canned", *lines, "", ""]).encode()


def answer(
    body: object, *, status: int = 200, content_type: str = "application/json", **headers: str
) -> list[Piece]:
    """An answer of a known length; what is not bytes is written as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = str(len(content))
    return [head(status, content_type, Content_Length=length, **headers), content]


def stream(*frames: bytes, content_type: str = "text/event-stream", **headers: str) -> list[Piece]:
    """A chunked answer, one piece for each frame."""
    return [*open_stream(*frames, content_type=content_type, **headers), b"0\r\n\r\n"]


def open_stream(
    *frames: bytes, content_type: str = "text/event-stream", **headers: str
) -> list[Piece]:
    """The same without its end."""
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames if frame]
    return [head(200, content_type, Transfer_Encoding="chunked", **headers), *chunks]


def event(fields: object, name: str | None = None) -> bytes:
    """One server-sent event; what is not bytes is written as JSON."""
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


DONE = b"data: [DONE]\n\n"
