"""The port of the local server, its connections, and how they are read and written."""

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import ClientError, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_protocol import RequestHandler

from elkimg_async.errors import ConfigurationError
from elkimg_async.local.contract import GatewayError

_BODY_LIMIT = 128 * 1024 * 1024


class TrackingServer(web.Server):
    """aiohttp's server that tracks open connections; `notify` is called when they change."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]],
        notify: Callable[[], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self.open: dict[RequestHandler, asyncio.Transport] = {}
        self._notify = notify

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.open[handler] = transport
        self._notify()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.open.pop(handler, None)
        self._notify()

    def abort(self, spared: RequestHandler | None = None) -> None:
        """Abort all connections except `spared`."""
        for handler, transport in list(self.open.items()):
            if handler is not spared:
                transport.abort()


class Listener:
    """The port: bound all the time, accepting connections while it is open."""

    def __init__(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        self._host, self._port, self._ssl = host, port, ssl_context
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        """The scheme, host and port.

        Raises:
            ConfigurationError: If the port is not known before the start.
        """
        if not self._port:
            raise ConfigurationError("The local server has no address yet; start it first.")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl else 'http'}://{host}:{self._port}"

    def bind(self) -> None:
        """Reserve the port, without accepting connections.

        Raises:
            ConfigurationError: If the port is not available.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self._host, self._port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ConfigurationError(
                f"Cannot listen on {self._host} port {self._port} ({error}); "
                "choose another port, or 0 for a free one."
            ) from None
        self._port = self._socket.getsockname()[1]

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def open(self, web_server: TrackingServer) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(web_server, sock=self._socket, ssl=self._ssl)

    def pause(self) -> None:
        """Reject connections, but keep the port."""
        if self._server is not None:
            self.close()
            self.bind()  # at once, before any other program gets the port

    def close(self) -> None:
        """Free the port."""
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        self._server = self._socket = None


class AlreadySentResponse(web.StreamResponse):
    """A response that has been sent already, so that aiohttp sends nothing more."""

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._kept_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: Any = b"") -> None:
        return None

    @property
    def keep_alive(self) -> bool | None:
        return self._kept_alive


async def read(request: web.BaseRequest) -> bytes:
    """Read the body of a request.

    Raises:
        GatewayError: If the body is too large.
        ConnectionResetError: If the client left.
    """
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > _BODY_LIMIT:
                problem = "The body is larger than 128 MiB"
                raise GatewayError(413, problem, code="read_request_body_failed")
    except ClientError:
        raise ConnectionResetError from None
    return bytes(body)


async def write(writer: AbstractStreamWriter, content: bytes) -> None:
    """Write, and wait until the kernel has the bytes (the transport's buffer limit is 0)."""
    if content:
        await writer.write(content)
        await writer.drain()


async def pause(seconds: float) -> None:
    """Sleep; for 0, only let pending callbacks run, so that the bytes so far are read."""
    if seconds:
        await asyncio.sleep(seconds)
        return
    for _ in range(2):  # a peer in the same event loop reads in between
        await asyncio.sleep(0)


def reset(transport: asyncio.Transport) -> None:
    """Close with RST instead of FIN."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
