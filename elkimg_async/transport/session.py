"""A pool of connections: aiohttp's session, made as this package needs it."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import aiohttp
    import yarl

    from elkimg_async.transport.connections import Response

_MOST_DESTINATIONS = 64


class Pool:
    """A session of one loop, closed with it unless it is borrowed."""

    def __init__(self, borrowed: "aiohttp.ClientSession | None", *, public_only: bool) -> None:
        from elkimg_async.transport import connections  # late, as aiohttp is

        self._connections = connections
        self.borrowed = borrowed is not None
        self.has_short_way = borrowed is None and connections.HAS_SHORT_WAY
        """Whether a request can be sent as a `connections.Response` does it."""
        self._destinations: dict[str, aiohttp.ClientRequest] = {}
        if borrowed is not None:
            self.session = borrowed
            return
        _keep_freed_memory()
        self.session = connections.new_session(public_only=public_only)
        keeper = _keepers[self.session] = _keep(self.session)
        # Its first step tells the loop of the generator, which it then closes before it ends itself.
        with contextlib.suppress(StopIteration):
            keeper.__anext__().send(None)

    async def connect(
        self,
        url: str,
        timeout: "aiohttp.ClientTimeout",  # noqa: ASYNC109
    ) -> "tuple[yarl.URL, Response]":
        """The parts of an address, and a connection to where it leads, new or kept, for one request."""
        connections = self._connections
        destination = self._destinations.get(url)
        if destination is None:
            if len(self._destinations) == _MOST_DESTINATIONS:
                self._destinations.clear()
            destination = self._destinations[url] = connections.make_destination(url)
        return destination.url, await connections.connect(self.session, destination, timeout)

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


@functools.cache
def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed images for the next ones, instead of unmapping and mapping it anew.

    Freeing one large block raises the threshold from which it maps blocks; this one is never touched.
    Without it, faulting fresh pages in costs several times as much as decoding.
    """
    bytes(31 * 1024 * 1024)
