"""Creation, lookup and closing of a client's sessions, one per event loop."""

import asyncio
import contextlib
import os
import threading
import warnings
from typing import NamedTuple

import aiohttp

from elkimg_async.credentials import Secret
from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.encode import HTTPRequest
from elkimg_async.transport.exchange import Exchange
from elkimg_async.transport.pool import (
    Hosts,
    InFlight,
    Kind,
    Pool,
    check_aiohttp,
    create_session,
    origin_of,
    share_connector,
)
from elkimg_async.transport.proxies import proxy_for

_CLOSING = 5.0  # seconds that another loop may take to close its sessions
_POLL = 0.01  # seconds between two looks at another loop

# Sessions of a parent process; closing or collecting them would break its connections.
_forgotten: list[object] = []
_closing: set[asyncio.Task[None]] = set()


class _Purpose(NamedTuple):
    """The purpose of a session."""

    loop: asyncio.AbstractEventLoop
    kind: Kind
    public_only: bool = False


class Transport:
    """Connections of a client, in a borrowed session or in its own for each event loop.

    A session is closed with its loop, or by `aclose`.

    Args:
        session: A borrowed session for requests to the API. None: sessions of our own.
        created_at: Where the client was created, for the warning when it was never closed.
        keepalive: Seconds for which our own sessions keep idle connections.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession | None,
        *,
        created_at: str,
        keepalive: float,
    ) -> None:
        if session is not None and not hasattr(session, "connector"):
            raise ConfigurationError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}."
            )
        self._borrowed = session
        self._borrowed_loop: asyncio.AbstractEventLoop | None = None
        self._created_at = created_at
        # Changed under the lock, since several threads may use the client, each with its own loop.
        self._pools: dict[_Purpose, Pool] = {}
        self._hosts = Hosts(keepalive)
        self._pid = os.getpid()
        self._proxies: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self.in_flight = InFlight()
        self.closed = False

    def exchange(
        self,
        url: str,
        request: HTTPRequest,
        *,
        api_key: Secret | None,
        connect: float,
        public_only: bool = False,
    ) -> Exchange:
        """Return a request that is ready to be sent.

        Args:
            url: The URL, with its query.
            request: The method, headers and body.
            api_key: The API key to send. None: a download, which never carries one.
            connect: Seconds for reaching the server.
            public_only: Whether a host name with a private address is rejected.

        Raises:
            ConfigurationError: If the client is closed, or a proxy or aiohttp cannot be used.
        """
        check_aiohttp()
        purpose = self._purpose(download=api_key is None, public_only=public_only)
        proxy = self._proxy(url, purpose)
        if proxy is not None and purpose.public_only:
            purpose = purpose._replace(public_only=False)  # the proxy resolves names itself
        return Exchange(
            self._pool(purpose), url, request, api_key=api_key, connect=connect, proxy=proxy
        )

    def shares_connector(self) -> bool:
        """Return whether downloads use the borrowed session's connector in the running loop."""
        return self._purpose(download=True, public_only=False).kind == "shared"

    def check_open(self) -> None:
        """Check that requests can be sent.

        Raises:
            ConfigurationError: If the client or the borrowed session is closed.
        """
        if self.closed:
            raise ConfigurationError("The client is closed; create a new one.")
        if self._borrowed is not None and self._borrowed.closed:
            raise ConfigurationError("The borrowed session is closed; pass an open one.")

    async def aclose(self) -> None:
        """Fail everything in flight and close all sessions of our own; idempotent."""
        self._forget_parent()
        # `closed` and the pools change together, so that no pool is created after this.
        with self._lock:
            self.closed = True
            pools, self._pools = self._pools, {}
        self.in_flight.interrupt_all()
        here = asyncio.get_running_loop()
        for purpose, pool in pools.items():
            # A loop that is not running can close nothing; it closes its sessions when it ends.
            if purpose.loop is here:
                await pool.aclose()
            elif purpose.loop.is_running():
                await _close_in(purpose.loop, pool)

    def __del__(self) -> None:
        if getattr(self, "_pools", None) and not self.closed and self._pid == os.getpid():
            # The loops that have ended have closed their sessions, so that a client in a module's
            # global is silent at the end of the program.
            unclosed = [each for each in self._pools.items() if not each[1].session.closed]
            if not unclosed:
                return
            for purpose, pool in unclosed:
                with contextlib.suppress(RuntimeError):  # the loop is closed, and so is its session
                    purpose.loop.call_soon_threadsafe(_close_later, purpose.loop, pool)
            warnings.warn(
                f"An AsyncImages created at {self._created_at} was never closed; "
                "use `async with`, or `await client.aclose()`.",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )

    def _purpose(self, *, download: bool, public_only: bool) -> _Purpose:
        loop = asyncio.get_running_loop()
        if self._borrowed is not None:
            if not download:
                self._borrowed_loop = loop
                return _Purpose(loop, "borrowed")
            # A connector works only in its own loop, the one in which the session was used.
            if loop is self._borrowed_loop and not self._borrowed.closed:
                return _Purpose(loop, "shared")
        return _Purpose(loop, "own", public_only)

    def _proxy(self, url: str, purpose: _Purpose) -> str | None:
        """Return the environment's proxy, unless a borrowed session has its own."""
        # With `trust_env` aiohttp reads the environment itself, and a connector of another class,
        # such as one for SOCKS or a Unix socket, has its own way to the server.
        borrowed = None if purpose.kind == "own" else self._borrowed
        if borrowed is not None and (
            borrowed.trust_env or type(borrowed.connector) is not aiohttp.TCPConnector
        ):
            return None
        origin = origin_of(url)
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(url)
        return self._proxies[origin]

    def _pool(self, purpose: _Purpose) -> Pool:
        if self._pid != os.getpid():
            self._forget_parent()
        # The lookup needs no lock: only this thread creates pools of this loop.
        pool = self._pools.get(purpose)
        if pool is None or pool.session.closed:
            with self._lock:
                self.check_open()
                for known in [known for known in self._pools if known.loop.is_closed()]:
                    del self._pools[known]
                pool = self._pools[purpose] = self._create(purpose)
        return pool

    def _create(self, purpose: _Purpose) -> Pool:
        if self._borrowed is None or purpose.kind == "own":
            session = create_session(self._hosts, public_only=purpose.public_only)
        elif purpose.kind == "shared":
            session = share_connector(self._borrowed)
        else:
            session = self._borrowed
        return Pool(session, purpose.kind, hosts=self._hosts, in_flight=self.in_flight)

    def _forget_parent(self) -> None:
        """Abandon the connections of a parent process after a fork: both share one epoll."""
        if self._pid != os.getpid():
            _forgotten.append(self._pools)
            self._pools, self._pid, self._lock = {}, os.getpid(), threading.Lock()


async def _close_in(loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
    """Close a pool in the loop of another thread; a loop that ends meanwhile closes it itself."""
    closed = threading.Event()

    def close() -> None:
        _close_later(loop, pool).add_done_callback(lambda _: closed.set())

    with contextlib.suppress(RuntimeError):  # the loop is closed, and so is its session
        loop.call_soon_threadsafe(close)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING):
            while loop.is_running() and not closed.is_set():  # noqa: ASYNC110 - of another thread
                await asyncio.sleep(_POLL)


def _close_later(loop: asyncio.AbstractEventLoop, pool: Pool) -> asyncio.Task[None]:
    task = loop.create_task(pool.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    return task
