"""Bytes out; status, headers and chunks in. The only module that touches aiohttp's client.

No aiohttp exception leaves it, by raising, by chaining or in a traceback: those hold the
request headers, and so the key. What can fail therefore runs in a function that returns
the failure, and the error is made and raised outside.
"""

import asyncio
import math
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from elkimg_async.errors import (
    Billing,
    ConfigurationError,
    ConnectError,
    DisconnectedError,
    ElkImagesError,
    RequestTimeoutError,
    ResponseError,
)
from elkimg_async.options import Secret, proxy_for
from elkimg_async.sansio.wire import HTTPRequest
from elkimg_async.watchdog import Watchdog

if TYPE_CHECKING:
    import aiohttp

MAX_CONNECTIONS = 500
"""Connections of a pool of ours; further calls wait for one, which counts towards `total`."""


_READ_SIZE = 512 * 1024  # bytes; with less, reading is paused and resumed around every receive


class Transport:
    """The connections of a client: a borrowed session, or a pool for each running loop."""

    def __init__(self, session: "aiohttp.ClientSession | None" = None) -> None:
        self._borrowed = session
        self._pools: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        self._proxies: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self.closed = False

    def exchange(
        self, url: str, request: HTTPRequest, *, key: Secret | None, connect: float
    ) -> "Exchange":
        """A request ready to be sent to `url`; `connect` limits reaching the server, in seconds."""
        return Exchange(self._session(), url, request, key, connect, self._proxy(url))

    def check_open(self) -> None:
        """Refuse to go on once closed.

        Raises:
            ConfigurationError: by the caller, who closed the client or the borrowed session.
        """
        if self.closed:
            raise ConfigurationError("The client is closed; make a new one.")
        if self._borrowed is not None and self._borrowed.closed:
            raise ConfigurationError("The borrowed session is closed; lend the client an open one.")

    async def aclose(self) -> None:
        """Close every pool of ours; a second time does nothing."""
        self.closed = True
        with self._lock:
            pools, self._pools = self._pools, {}
        here = asyncio.get_running_loop()
        for loop, session in pools.items():
            if loop is here or loop.is_closed():
                await session.close()
            else:
                future = asyncio.run_coroutine_threadsafe(session.close(), loop)
                await asyncio.wrap_future(future)

    @property
    def is_open(self) -> bool:
        """Whether there are connections of ours to close."""
        return bool(self._pools)

    def _proxy(self, url: str) -> str | None:
        origin = url[: url.find("/", url.find("://") + 3)]
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(url)
        return self._proxies[origin]

    def _session(self) -> "aiohttp.ClientSession":
        if self._borrowed is not None:
            return self._borrowed
        loop = asyncio.get_running_loop()
        session = self._pools.get(loop)
        if session is None or session.closed:
            with self._lock:
                session = self._pools[loop] = _new_session()
        return session


def _new_session() -> "aiohttp.ClientSession":
    import aiohttp

    connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, socket_factory=_kept_alive_socket)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "User-Agent": "elkimg_async"},
    )


def _kept_alive_socket(address: Any) -> socket.socket:
    """A socket that notices a peer that is gone, though nothing is sent for minutes."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class Exchange:
    """One request and its answer: `open`, then `read` until it gives nothing, or `close` early."""

    __slots__ = (
        "_connect", "_key", "_proxy", "_request", "_response", "_session", "_tracker", "_url", "headers", "status",
    )  # fmt: skip

    def __init__(
        self,
        session: "aiohttp.ClientSession",
        url: str,
        request: HTTPRequest,
        key: Secret | None,
        connect: float,
        proxy: str | None,
    ) -> None:
        self._session = session
        self._url = url
        self._request = request
        self._key = key
        self._connect = connect
        self._proxy = proxy
        self._response: aiohttp.ClientResponse | None = None
        self._tracker: aiohttp.UploadTracker | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}
        """Of the answer; names are found in any case."""

    @property
    def phase(self) -> str:
        """Where it stands: `connect`, `upload`, `first_byte` or `body`."""
        if self.status:
            return "body"
        written = self._tracker.bytes_written if self._tracker is not None else 0
        if not written:
            return "connect"
        return "first_byte" if written >= len(self._request.body or b"") else "upload"

    @property
    def billing(self) -> Billing:
        """What a failure at this point means: as long as no byte of the body has left, nothing was asked."""
        return "not_sent" if self.phase == "connect" else "unknown"

    async def open(self, watchdog: Watchdog, first_byte: float) -> None:
        """Send the request and wait, `first_byte` seconds at the most, for status and headers.

        Raises:
            ConnectError, RequestTimeoutError, DisconnectedError: by the network or the server.
            ResponseError: by the server, for an answer that is not HTTP.
            ConfigurationError: by the caller, who closed the client or the borrowed session.
        """
        watchdog.allow("first_byte", first_byte)
        failure = await self._send()
        if failure is not None:
            raise failure

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end.

        Raises:
            DisconnectedError: by the network or the server; the body may be cut.
        """
        assert self._response is not None
        try:
            return await self._response.content.readany()
        except Exception as error:  # noqa: BLE001
            failure = self._translate(error)
        self.close()
        raise failure

    @property
    def at_end(self) -> bool:
        """Whether the body is read to its end."""
        return self._response is None or self._response.content.at_eof()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end and it went back to the pool."""
        response, self._response = self._response, None
        if response is None or (connection := response.connection) is None:
            return
        if connection.transport is not None:
            connection.transport.abort()
        response.close()

    async def _send(self) -> ElkImagesError | None:
        import aiohttp

        request = self._request
        headers = dict(request.headers)
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        limit = None if self._connect == math.inf else self._connect
        self._tracker = aiohttp.UploadTracker()
        try:
            response = await self._session.request(
                request.method,
                self._url,
                data=request.body,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=limit),
                upload_tracker=self._tracker,
            )
        except Exception as error:  # noqa: BLE001
            return self._translate(error)
        self._response = response
        self.status = response.status
        self.headers = response.headers
        response.content.set_read_chunk_size(_READ_SIZE)
        return None

    def _translate(self, error: Exception) -> ElkImagesError:
        import aiohttp

        host = self._url.partition("://")[2].partition("/")[0]
        phase, billing = self.phase, self.billing
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return RequestTimeoutError(
                f"The connect limit of {self._connect:g} s has passed; {host} was not reached.",
                limit="connect",
                phase="connect",
                billing="not_sent",
            )
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError)):
            reason = (
                error.os_error if isinstance(error, aiohttp.ClientConnectorError) else "the proxy"
            )
            return ConnectError(f"{host} cannot be reached: {_reason(reason)}.", phase="connect")
        if self._session.closed:
            return ConfigurationError(
                "The client was closed while this call was running.", billing=billing
            )
        if isinstance(
            error, (aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError)
        ):
            return ResponseError(
                f"The answer of {host} is not HTTP that can be read.", billing=billing
            )
        where = (
            "before the request was sent"
            if billing == "not_sent"
            else "before the answer was whole"
        )
        return DisconnectedError(
            f"The connection to {host} broke {where}.", phase=phase, billing=billing
        )


def _reason(error: object) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
