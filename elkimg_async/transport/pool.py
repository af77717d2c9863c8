"""One `aiohttp.ClientSession`, and what the client knows about its connections."""

import asyncio
import contextlib
import functools
import inspect
import itertools
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Literal
from weakref import WeakSet

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler

from elkimg_async.errors import Billing, ConfigurationError
from elkimg_async.transport.deadline import Deadline
from elkimg_async.transport.network import PublicResolver, keep_alive_socket

MIN_AIOHTTP = (3, 12)
MAX_CONNECTIONS = 500
"""Connections of one session; further requests wait for one, which counts towards `total`."""

READ_SIZE = 512 * 1024
"""Bytes buffered before reading pauses; with fewer, it pauses around every receive."""

_EXAMINED = 8  # idle connections, before each request
MAX_HEADER = 128 * 1024
"""Bytes of one response header."""

MAX_HEADERS = 512
"""Header lines of one response."""

FRESH_CONNECTIONS = 600.0
"""Seconds without reuse of connections to a host that closed one without notice."""

_MAX_HOSTS = 256

Kind = Literal["borrowed", "shared", "own"]
"""Whose a session is: the user's, ours on the user's connector (for downloads), or ours."""


@functools.cache
def check_aiohttp() -> None:
    """Check the installed version of aiohttp.

    Raises:
        ConfigurationError: If it is too old.
    """
    found = tuple(int(part) for part in re.findall(r"\d+", aiohttp.__version__)[:2])
    if found < MIN_AIOHTTP:
        minimum = ".".join(map(str, MIN_AIOHTTP))
        raise ConfigurationError(
            f"aiohttp {aiohttp.__version__} is too old; install {minimum} or newer, "
            f"for example with: pip install --upgrade 'aiohttp>={minimum}'"
        )


@functools.cache
def accepts(function: Callable[..., Any], parameter: str) -> bool:
    """Return whether the installed aiohttp has a parameter that older versions lack."""
    return parameter in inspect.signature(function).parameters


class Hosts:
    """Reuse of idle connections to each host, shared by all sessions of a client.

    A server that closes an idle connection at the moment it is reused loses the request, and it is
    unknown whether it was processed. Connections are therefore closed before the server closes
    them: after `keepalive` seconds, earlier if its `Keep-Alive: timeout=N` says so, and at once for
    a while after one was closed without notice, with a request on it or idle.
    """

    def __init__(self, keepalive: float) -> None:
        # By origin. Both are bounded: image hosts may be many, and an entry that is dropped costs
        # at most one lost connection.
        self.default = keepalive
        self._seconds: dict[str, float] = {}
        self._fresh_until: dict[str, float] = {}

    def keepalive(self, origin: str) -> float:
        """Return the seconds for which an idle connection may be reused; 0 means never."""
        if self._fresh_until.get(origin, 0.0) > time.monotonic():
            return 0.0
        return self._seconds.get(origin, self.default)

    def note_response(self, origin: str, headers: Mapping[str, str]) -> None:
        """Record the keep-alive time in the response headers."""
        text = headers.get("Keep-Alive", "").lower()
        found = re.search(r"\btimeout\s*=\s*(\d{1,9})\b", text)
        if found is None:
            return
        announced = float(found[1])
        # A request needs time to arrive, so the last second of the server's time is not used.
        seconds = min(self.default, announced - min(1.0, announced / 2))
        if seconds != self.keepalive(origin):
            _bound(self._seconds)[origin] = seconds

    def note_lost(self, origin: str, *, idle: float = 0.0) -> None:
        """Record that the server closed a connection that had been idle for `idle` seconds.

        It may do so after the time that it has announced.
        """
        if idle < self._seconds.get(origin, self.default):
            _bound(self._fresh_until)[origin] = time.monotonic() + FRESH_CONNECTIONS


def _bound(known: dict[str, float]) -> dict[str, float]:
    if len(known) >= _MAX_HOSTS:
        del known[next(iter(known))]
    return known


@functools.lru_cache(maxsize=_MAX_HOSTS)
def origin_of(url: str) -> str:
    """Return the scheme, host and port of a URL."""
    try:
        parts = yarl.URL(url)
    except ValueError:
        return url  # it fails when it is requested
    return f"{parts.scheme}://{parts.host}:{parts.port}"


class InFlight:
    """The waits of a client's calls and downloads, so that closing the client can end them."""

    def __init__(self) -> None:
        # By deadline, that is, by call; the innermost wait is last. Only that one is stopped, since
        # it knows whether anything was sent, and its failure ends those around it.
        self._waits: dict[Deadline, list[Callable[[], Billing]]] = {}

    def add(
        self, deadline: Deadline, stop: Callable[[], Billing], *, outermost: bool = False
    ) -> None:
        """Register a wait under a deadline, inside or (`outermost`) around others of its call.

        `stop` is called if the client is closed: it closes the connection and returns the billing
        of the failure.
        """
        stops = self._waits.setdefault(deadline, [])
        stops.insert(0 if outermost else len(stops), stop)

    def remove(self, deadline: Deadline, stop: Callable[[], Billing]) -> None:
        """Remove a wait."""
        stops = self._waits[deadline]
        stops.remove(stop)
        if not stops:
            del self._waits[deadline]

    def interrupt_all(self) -> None:
        """Fail every wait with a ConfigurationError, also in other event loops."""
        # A deadline cancels a task, which is safe only in the thread of its own loop.
        here = asyncio.get_running_loop()
        for deadline in list(self._waits):
            if deadline.loop is here:
                self._interrupt(deadline)
            else:
                with contextlib.suppress(RuntimeError):  # that loop is closed
                    deadline.loop.call_soon_threadsafe(self._interrupt, deadline)

    def _interrupt(self, deadline: Deadline) -> None:
        stops = self._waits.get(deadline)
        if not stops:
            return  # it has ended in the meantime
        billing = stops[-1]()
        message = "The client was closed while this call was running."
        deadline.interrupt(ConfigurationError(message, billing=billing))


class Pool:
    """A session of one event loop, closed with the loop unless it is borrowed.

    `borrowed` is whether the session is the user's, `shared` whether at least its connector is.
    """

    def __init__(
        self, session: aiohttp.ClientSession, kind: Kind, *, hosts: Hosts, in_flight: InFlight
    ) -> None:
        self.session = session
        self.borrowed, self.shared = kind == "borrowed", kind != "own"
        self.hosts = hosts
        self.in_flight = in_flight
        # A borrowed connector has a limit of its own. Ours is kept here, since the connector's time
        # limit for connecting would include the wait.
        self._slots = None if self.shared else asyncio.Semaphore(MAX_CONNECTIONS)
        if not self.borrowed:
            # Closing a session needs its loop, and asyncio has no callback for the end of a loop.
            # But `asyncio.run` closes all async generators that were begun, before it ends.
            lifetime = _lifetimes[session] = _lifetime(session)
            # The first step registers the generator with the loop, which closes it before it ends.
            with contextlib.suppress(StopIteration):
                lifetime.__anext__().send(None)

    async def acquire(self) -> None:
        """Wait until a connection may be used."""
        if self._slots is not None:
            await self._slots.acquire()

    def release(self) -> None:
        """Return the connection to the next request that waits for one."""
        if self._slots is not None:
            self._slots.release()

    async def aclose(self) -> None:
        """Close the session, unless it is borrowed or already closed."""
        if (lifetime := _lifetimes.get(self.session)) is not None:
            await lifetime.aclose()


_lifetimes: dict[aiohttp.ClientSession, AsyncGenerator[None, None]] = {}


async def _lifetime(session: aiohttp.ClientSession) -> AsyncGenerator[None, None]:
    """Close the session when the generator is closed: by the pool, or by the loop at its end."""
    try:
        yield
    finally:
        _lifetimes.pop(session, None)
        if isinstance(session.connector, _Connector):
            session.connector.abort()
        await session.close()


def create_session(hosts: Hosts, *, public_only: bool) -> aiohttp.ClientSession:
    """Create a session of our own.

    Args:
        hosts: What is known about the servers' connections.
        public_only: Whether host names with a private address are rejected.
    """
    options: dict[str, Any] = {"limit": 0, "socket_factory": keep_alive_socket}
    if hosts.default > 0:
        options["keepalive_timeout"] = hosts.default
    else:
        options["force_close"] = True
    if public_only:
        options["resolver"] = PublicResolver()
    return aiohttp.ClientSession(
        connector=_Connector(hosts, **options), cookie_jar=aiohttp.DummyCookieJar()
    )


def share_connector(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """Create a session for downloads on a borrowed connector, without headers and cookies.

    The connector brings its certificates, proxy and limits. Trace configurations are kept, since
    they observe. Middlewares are not: aiohttp has no public access to those of a session, and they
    may add credentials.
    """
    # OpenTelemetry adds its own configuration to each new session, so it is not passed on.
    traces = [
        trace
        for trace in session.trace_configs
        if not hasattr(trace, "_is_instrumented_by_opentelemetry")
    ]
    return aiohttp.ClientSession(
        connector=session.connector,
        connector_owner=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=traces,
    )


class _Connector(aiohttp.TCPConnector):
    """Connector that drops unusable connections, and tracks open and idle ones.

    A connection with unexpected input is unusable: aiohttp would take a second response, sent while
    the connection was idle, for the response to the next request. So is one that has been idle for
    longer than `Hosts.keepalive` allows.
    """

    def __init__(self, hosts: Hosts, **options: Any) -> None:
        super().__init__(**options)
        self._reuse = hosts
        # `_kept` has the idle connections in the order in which they became idle, with that time.
        self._protocols: WeakSet[ResponseHandler] = WeakSet()
        self._kept: dict[ResponseHandler, tuple[str, float]] = {}

    def abort(self) -> None:
        """Close every connection at once; `close` would wait for stalled uploads."""
        for protocol in list(self._protocols):
            if protocol.transport is not None:
                protocol.transport.abort()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> aiohttp.connector.Connection:
        # Each pass takes a connection from the pool and closes it if it must not be used; once the
        # pool has none left for this host, aiohttp opens a new one, which ends the loop.
        origin = origin_of(str(req.url))
        while True:
            self._note_closed()
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None:
                return connection
            _, since = self._kept.pop(protocol, (origin, math.inf))  # a new one was never idle
            idle = time.monotonic() - since
            if not protocol.should_close and idle < self._reuse.keepalive(origin):
                self._protocols.add(protocol)
                connection.add_callback(functools.partial(self._note_released, protocol, origin))
                return connection
            connection.close()

    def _note_released(self, protocol: ResponseHandler, origin: str) -> None:
        """Record a connection that is idle from now on, unless it is being closed."""
        # Called while aiohttp releases the connection, before it decides whether to keep it. The
        # decision shows only afterwards, hence the second look.
        if protocol.is_connected() and not protocol.should_close:
            self._kept[protocol] = origin, time.monotonic()
            asyncio.get_running_loop().call_soon(self._note_kept, protocol)

    def _note_kept(self, protocol: ResponseHandler) -> None:
        """Forget a connection that was closed by this side rather than kept."""
        if not protocol.is_connected():
            self._kept.pop(protocol, None)

    def _note_closed(self) -> None:
        """Record the hosts that have closed an idle connection without notice.

        Only those that became idle last are examined, so that a large pool costs the same.
        """
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[1] <= now - self._reuse.default:
            # From this age on aiohttp closes connections itself, which says nothing of the server.
            del self._kept[next(iter(self._kept))]
        for protocol in [*itertools.islice(reversed(self._kept), _EXAMINED)]:
            if not protocol.is_connected():
                origin, since = self._kept.pop(protocol)
                self._reuse.note_lost(origin, idle=now - since)


async def run_pending_callbacks() -> None:
    """Let the event loop read what has arrived, so that closed connections leave the pool."""
    # In the first pass of the loop, this task resumes before the callbacks of the sockets that were
    # polled in it; in the second, after them.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
