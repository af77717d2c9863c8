"""What this package has of its own in aiohttp's client: which connection a request gets, and the short way over it.

It imports aiohttp, which takes long, so it is imported late itself.
"""

import asyncio
import inspect
import select
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey

from elkimg_async.transport.network import kept_alive_socket, public_resolver

MAX_CONNECTIONS = 500
"""Connections of a pool of ours; further calls wait for one, which counts towards `total`."""

READ_SIZE = 512 * 1024
"""Bytes that may wait to be read; with less, reading is paused and resumed around every receive."""

note_connection: ContextVar[Callable[[asyncio.Transport | None], None] | None] = ContextVar(
    "note_connection", default=None
)
"""Who is told on which connection the library sends the request of the current task."""

_CONNECT = {"self", "req", "traces", "timeout"}
_PARSE = {
    "self", "timer", "skip_payload", "read_until_eof", "auto_decompress", "read_timeout", "read_bufsize", "timeout_ceil_threshold",
    "max_line_size", "max_field_size", "max_headers",
}  # fmt: skip
HAS_SHORT_WAY = (
    inspect.signature(aiohttp.TCPConnector.connect).parameters.keys() == _CONNECT
    and inspect.signature(ResponseHandler.set_response_params).parameters.keys() == _PARSE
)
"""Whether the library's connections are as `Response` knows them; if not, all requests go the library's whole way."""


def new_session(*, public_only: bool) -> aiohttp.ClientSession:
    """A session; with `public_only` no name may lead to a private address."""
    return aiohttp.ClientSession(
        connector=_CarefulConnector(
            limit=MAX_CONNECTIONS,
            socket_factory=kept_alive_socket,
            resolver=public_resolver() if public_only else None,
        ),
        request_class=_NotedRequest,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def as_written(url: str) -> yarl.URL:
    """The address without changes, which a signature in it would not survive."""
    return yarl.URL(url, encoded=url.isascii() and " " not in url)


def make_destination(url: str) -> aiohttp.ClientRequest:
    """What a connector asks where to connect to, which is all that it is good for."""
    return aiohttp.ClientRequest("GET", as_written(url), loop=asyncio.get_running_loop())


async def connect(
    session: aiohttp.ClientSession,
    destination: aiohttp.ClientRequest,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
) -> "Response":
    """A connection to where `destination` leads, new or from the pool, for one request."""
    assert session.connector is not None
    try:
        return Response(await session.connector.connect(destination, traces=[], timeout=timeout))
    except TimeoutError as error:
        raise aiohttp.ConnectionTimeoutError from error


class Response:
    """One request and its answer, written in one piece and read by the library's parser.

    Most of what a session does for a request is of no use to one that is small, complete and never sent
    elsewhere: merged headers and cookies, a task that writes the body, redirects, timers.
    The attributes are those of `aiohttp.ClientResponse`.
    """

    __slots__ = ("connection", "content", "headers", "status")

    headers: Mapping[str, str]
    status: int

    def __init__(self, connection: aiohttp.connector.Connection) -> None:
        self.connection: aiohttp.connector.Connection | None = connection
        self.content: aiohttp.StreamReader = None  # type: ignore[assignment] # until it has started
        assert connection.protocol is not None
        connection.protocol.set_response_params(read_until_eof=True, read_bufsize=READ_SIZE)

    def send(self, message: bytes) -> None:
        """Write the whole request; where that fails, no byte of it has left."""
        transport = self.connection.transport if self.connection else None
        if transport is not None and not transport.is_closing():
            transport.write(message)
            if not transport.is_closing():
                return
        self.close()
        raise aiohttp.ClientConnectionResetError("the connection has ended")

    async def start(self) -> None:
        """Wait for the status and the headers."""
        assert self.connection is not None
        protocol = self.connection.protocol
        assert protocol is not None
        try:
            while True:
                head, content = await protocol.read()
                if head.code >= 200 or head.code == 101:
                    break
        except BaseException:
            if protocol.transport is not None:
                protocol.transport.abort()
            self.close()
            raise
        self.status, self.headers, self.content = head.code, head.headers, content
        content.on_eof(self._release)

    def close(self) -> None:
        """Close the connection, unless it went back to the pool; who waits for more of the body is told."""
        connection, self.connection = self.connection, None
        if connection is not None:
            if self.content is not None:
                self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
            connection.close()

    def _release(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.release()


class _NotedRequest(aiohttp.ClientRequest):
    """Tells on which connection it is sent."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        if (note := note_connection.get()) is not None:
            note(conn.transport)
        return await super().send(conn)


class _CarefulConnector(aiohttp.TCPConnector):
    """Holds `connect` for all that connecting takes, and gives no waiting connection that has ended.

    The library limits each socket by itself, but not the look-up of the name, the further addresses, the
    proxy and TLS. It would send a request into a connection whose end has come but was not read yet, and
    take what had come in unasked for the answer to it.
    """

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> ResponseHandler:
        async with asyncio.timeout(timeout.sock_connect):
            return await super()._create_connection(req, traces, timeout)

    async def _get(
        self, key: ConnectionKey, traces: list[Any]
    ) -> aiohttp.connector.Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.transport is not None and _has_input(connection.transport):
                await turn_twice()
            protocol = connection.protocol
            if protocol is not None and protocol.is_connected() and not protocol.should_close:
                break
            connection.close()
        return connection


def _has_input(transport: asyncio.Transport) -> bool:
    """Whether the server has sent or closed what the loop has not read yet."""
    connected = transport.get_extra_info("socket")
    if not hasattr(select, "poll"):
        return bool(select.select([connected], [], [], 0)[0])
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(0))


async def turn_twice() -> None:
    """Let the loop read what has come, and then see what that closes."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
