"""A pool of connections: aiohttp's session, made as this package needs it."""

import asyncio
import contextlib
import functools
import select
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from elkimg_async.addresses import kept_alive_socket, public_resolver

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ConnectionKey

MAX_CONNECTIONS = 500
"""Connections of a pool of ours; further calls wait for one, which counts towards `total`."""

note_connection: ContextVar[Callable[[asyncio.Transport | None], None] | None] = ContextVar(
    "note_connection", default=None
)
"""Who is told on which connection the request of the current task leaves."""


class Pool:
    """A session of one loop, closed with it unless it is borrowed."""

    def __init__(self, borrowed: "aiohttp.ClientSession | None", *, public_only: bool) -> None:
        self.session = _new_session(public_only) if borrowed is None else borrowed
        self.borrowed = borrowed is not None
        if borrowed is None:
            keeper = _keepers[self.session] = _keep(self.session)
            # Its first step tells the loop of the generator, which it then closes before it ends itself.
            with contextlib.suppress(StopIteration):
                keeper.__anext__().send(None)

    async def aclose(self) -> None:
        """Close the session, unless it is borrowed or closed."""
        if (keeper := _keepers.get(self.session)) is not None:
            await keeper.aclose()


def close_later(loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
    """Close a pool of `loop`, within it, while nobody waits for that."""
    task = loop.create_task(pool.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()
_keepers: dict["aiohttp.ClientSession", AsyncGenerator[None, None]] = {}


async def _keep(session: "aiohttp.ClientSession") -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _keepers.pop(session, None)
        await session.close()


def _new_session(public_only: bool) -> "aiohttp.ClientSession":
    import aiohttp

    _keep_freed_memory()
    connector = _connector_class()(
        limit=MAX_CONNECTIONS,
        socket_factory=kept_alive_socket,
        resolver=public_resolver() if public_only else None,
    )
    return aiohttp.ClientSession(
        connector=connector,
        request_class=_request_class(),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "elkimg_async"},
    )


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed images for the next ones, instead of unmapping and mapping it anew.

    Freeing one large block raises the threshold from which it maps blocks; this one is never touched.
    Without it, faulting fresh pages in costs several times as much as decoding.
    """
    bytes(31 * 1024 * 1024)


@functools.cache
def _connector_class() -> "type[aiohttp.TCPConnector]":
    import aiohttp

    class CarefulConnector(aiohttp.TCPConnector):
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
        ) -> "ResponseHandler":
            async with asyncio.timeout(timeout.sock_connect):
                return await super()._create_connection(req, traces, timeout)

        async def _get(
            self, key: "ConnectionKey", traces: list[Any]
        ) -> aiohttp.connector.Connection | None:
            while (connection := await super()._get(key, traces)) is not None:
                if connection.transport is not None and _has_input(connection.transport):
                    await turn_twice()
                protocol = connection.protocol
                if protocol is not None and protocol.is_connected() and not protocol.should_close:
                    break
                connection.close()
            return connection

    return CarefulConnector


@functools.cache
def _request_class() -> "type[aiohttp.ClientRequest]":
    import aiohttp

    class NotedRequest(aiohttp.ClientRequest):
        """Tells on which connection it is sent."""

        async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
            if (note := note_connection.get()) is not None:
                note(conn.transport)
            return await super().send(conn)

    return NotedRequest


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
