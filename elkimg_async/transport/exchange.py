"""Bytes out; status, headers and chunks in. The only module that touches aiohttp's client.

No aiohttp exception leaves it, by raising, by chaining or in a traceback: those hold the
request headers, and so the key. What can fail therefore runs in a function that returns
the failure, and the error is made and raised outside.
"""

import asyncio
import contextlib
import functools
import math
import os
import socket
import struct
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from elkimg_async.config import Secret, proxy_for
from elkimg_async.errors import (
    Billing,
    ConfigurationError,
    ConnectError,
    DisconnectedError,
    ElkImagesError,
    RequestTimeoutError,
    ResponseError,
)
from elkimg_async.sansio.encode import USER_AGENT, HTTPRequest, message
from elkimg_async.sansio.multipart import Upload
from elkimg_async.transport.deadline import Watchdog
from elkimg_async.transport.session import Pool, close_later
from elkimg_async.transport.uploads import Reader

if TYPE_CHECKING:
    import aiohttp

    from elkimg_async.transport.connections import Response

_CLOSING = 5.0  # seconds for another loop to close its pool
_LONG_UPLOAD = 64 * 1024  # bytes; less than this leaves at once, into the kernel's buffers

_forgotten: list[object] = []  # pools of a parent process; closing or collecting them would harm it


class Transport:
    """The connections of a client: a borrowed session, or a pool for each running loop.

    A pool is closed with its loop, or by `aclose`. `made_at` says where the client was made, for the
    warning when it was never closed.
    """

    def __init__(
        self, session: "aiohttp.ClientSession | None" = None, *, made_at: str = "an unknown place"
    ) -> None:
        self._borrowed = session
        self._made_at = made_at
        self._pools: dict[tuple[asyncio.AbstractEventLoop, bool, bool], Pool] = {}
        self._pid = os.getpid()
        self._proxies: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self.closed = False

    def exchange(
        self,
        url: str,
        request: HTTPRequest,
        *,
        key: Secret | None,
        connect: float,
        public_only: bool = False,
    ) -> "Exchange":
        """A request ready to be sent to `url`.

        `connect` limits reaching the server, in seconds. With `public_only` a name that leads to a
        private address is refused.
        """
        proxy = self._proxy(url)
        # A download never goes through a borrowed session, whose headers are meant for the API; and
        # a proxy looks names up itself.
        borrowed = None if key is None else self._borrowed
        pool = self._pool(borrowed, public_only and proxy is None)
        return Exchange(pool, url, request, key, connect, proxy)

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
        self._forget_parent()
        with self._lock:
            self.closed = True
            pools, self._pools = self._pools, {}
        here = asyncio.get_running_loop()
        for (loop, *_), pool in pools.items():
            if loop is here:
                await pool.aclose()
            elif loop.is_running():
                # That loop may be ending itself, and then cancels this, or never comes to it.
                closing = asyncio.run_coroutine_threadsafe(pool.aclose(), loop)
                await asyncio.wait([asyncio.wrap_future(closing)], timeout=_CLOSING)

    def __del__(self) -> None:
        if getattr(self, "_pools", None) and not self.closed and self._pid == os.getpid():
            for (loop, *_), pool in self._pools.items():
                with contextlib.suppress(RuntimeError):  # the loop has ended, and the pool with it
                    loop.call_soon_threadsafe(close_later, loop, pool)
            warnings.warn(
                f"An AsyncImages made at {self._made_at} was never closed; "
                "use `async with`, or `await client.aclose()`.",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )

    def _proxy(self, url: str) -> str | None:
        origin = url[: url.find("/", url.find("://") + 3)]
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(url)
        return self._proxies[origin]

    def _pool(self, borrowed: "aiohttp.ClientSession | None", public_only: bool) -> "Pool":
        if self._pid != os.getpid():
            self._forget_parent()
        place = asyncio.get_running_loop(), borrowed is not None, public_only
        pool = self._pools.get(place)
        if pool is None or pool.session.closed:
            with self._lock:
                self.check_open()
                for known in [known for known in self._pools if known[0].is_closed()]:
                    del self._pools[known]
                pool = self._pools[place] = Pool(borrowed, public_only=public_only)
        return pool

    def _forget_parent(self) -> None:
        """In the child of a fork: leave the parent's connections alone, its epoll is shared."""
        if self._pid != os.getpid():
            _forgotten.append(self._pools)
            self._pools, self._pid, self._lock = {}, os.getpid(), threading.Lock()


class Exchange:
    """One request and its answer: `open`, then `read` until it gives nothing, or `close` early."""

    __slots__ = (
        "_connect", "_key", "_pool", "_proxy", "_request", "_response", "_sending", "_sent", "_tracker", "_url", "headers", "status",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool,
        url: str,
        request: HTTPRequest,
        key: Secret | None,
        connect: float,
        proxy: str | None,
    ) -> None:
        self._pool = pool
        self._url = url
        self._request = request
        self._key = key
        self._connect = connect
        self._proxy = proxy
        self._response: Response | aiohttp.ClientResponse | None = None
        self._sent = False
        self._tracker: aiohttp.UploadTracker | None = None
        self._sending: asyncio.Transport | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}
        """Of the answer; names are found in any case."""

    @property
    def phase(self) -> str:
        """Where it stands: `connect`, `upload`, `first_byte` or `body`."""
        if self.status:
            return "body"
        if not self._sent and not self._written:
            return "connect"
        return "first_byte" if self._written >= len(self._request.body or b"") else "upload"

    @property
    def _written(self) -> int:
        """Bytes of the body that have left, as far as is known."""
        if self._tracker is not None:
            return self._tracker.bytes_written
        return len(self._request.body or b"") if self._sent else 0

    @property
    def billing(self) -> Billing:
        """What a failure at this point means: as long as no byte of the body has left, nothing was asked."""
        return "not_sent" if self.phase == "connect" else "unknown"

    def sends_on(self, transport: asyncio.Transport | None) -> None:
        """Note the connection on which the library sends the request."""
        self._sending = transport

    async def open(self, watchdog: Watchdog, *, first_byte: float, idle: float) -> None:
        """Send the request and wait for the status and headers of its answer.

        They may take `first_byte` seconds from the end of a long upload, and otherwise from the
        beginning; a long upload may stand still for `idle` seconds.

        Raises:
            ConnectError, RequestTimeoutError, DisconnectedError: by the network or the server.
            ResponseError: by the server, for an answer that is not HTTP.
            ConfigurationError: by the caller, who closed the client or the borrowed session.
        """
        if len(self._request.body or b"") > _LONG_UPLOAD:
            self._watch_upload(watchdog, first_byte, idle)
        else:
            watchdog.allow("first_byte", first_byte)
        failure = await self._send()
        if failure is not None:
            raise failure

    def _watch_upload(
        self, watchdog: Watchdog, first_byte: float, idle: float, before: int = -1
    ) -> None:
        """Allow more time where more than `before` bytes of the body have left."""
        if (written := self._written) > before:
            again = functools.partial(self._watch_upload, watchdog, first_byte, idle, written)
            if self.phase == "first_byte":
                watchdog.allow("first_byte", first_byte, extend=again)
            else:
                watchdog.allow("idle", idle, extend=again)

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
        if self._sending is not None:
            _reset(self._sending)
            self._sending = None
        response, self._response = self._response, None
        if response is None or (connection := response.connection) is None:
            return
        if connection.transport is not None:
            connection.transport.abort()
        response.close()

    async def _send(self) -> ElkImagesError | None:
        response: Response | aiohttp.ClientResponse
        payload = None
        try:
            if self._is_short:
                response = await self._ask()
            else:
                from aiohttp import UploadTracker

                self._tracker = UploadTracker()
                payload = _payload(self._request.body, self._tracker)
                response = await self._ask_session(payload)
        except Exception as error:  # noqa: BLE001
            if isinstance(payload, Reader) and payload.failure is not None:
                return payload.failure
            return self._translate(error)
        self._response, self._sending = response, None
        self.status = response.status
        self.headers = response.headers
        return None

    @property
    def _is_short(self) -> bool:
        """Whether the request can be written at once, on a connection of ours that leads to the server itself."""
        body = self._request.body
        small = body is None or (isinstance(body, bytes) and len(body) <= _LONG_UPLOAD)
        return small and self._proxy is None and self._pool.has_short_way

    async def _ask(self) -> "Response":
        url, response = await self._pool.connect(self._url, _client_timeout(self._connect))
        response.send(
            message(self._request, url.raw_path_qs, url.host_port_subcomponent, self._headers())
        )
        self._sent = True
        await response.start()
        return response

    async def _ask_session(self, payload: Reader | bytes | None) -> "aiohttp.ClientResponse":
        """Leave all of it to the library."""
        from elkimg_async.transport import connections

        headers = self._headers()
        if self._pool.borrowed:
            # So that connections that the server has closed leave the pool.
            await connections.turn_twice()
            if headers.get("User-Agent") == USER_AGENT:
                del headers["User-Agent"]  # the session may have its own
        connections.note_connection.set(self.sends_on)
        response = await self._pool.session.request(
            self._request.method,
            connections.as_written(self._url),
            data=payload,
            headers=headers,
            allow_redirects=False,
            raise_for_status=False,
            proxy=self._proxy,
            timeout=_client_timeout(self._connect),
            upload_tracker=self._tracker,
        )
        response.content.set_read_chunk_size(connections.READ_SIZE)
        return response

    def _headers(self) -> dict[str, str]:
        headers = dict(self._request.headers)
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.reveal()}"
        if (body := self._request.body) is not None:
            headers["Content-Length"] = str(len(body))
        return headers

    def _translate(self, error: Exception) -> ElkImagesError:
        import aiohttp
        from aiohttp.http_exceptions import HttpProcessingError

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
            phase = "connect"
            if isinstance(error, aiohttp.ClientConnectorDNSError):
                phase = "dns"
            elif isinstance(error, aiohttp.ClientConnectorCertificateError):
                phase = "tls"
            return ConnectError(f"{host} cannot be reached: {_reason(reason)}.", phase=phase)
        if isinstance(error, aiohttp.InvalidURL):
            return ConfigurationError(f"The address of {host} cannot be used; check it.")
        if self._pool.session.closed:
            return ConfigurationError(
                "The client was closed while this call was running.", billing=billing
            )
        if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
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


@functools.lru_cache(maxsize=16)
def _client_timeout(connect: float) -> "aiohttp.ClientTimeout":
    """Only the limit of connecting, in seconds, not rounded; the others are the watchdog's."""
    import aiohttp

    return aiohttp.ClientTimeout(
        total=None, sock_connect=None if connect == math.inf else connect, ceil_threshold=math.inf
    )


def _reset(transport: asyncio.Transport) -> None:
    """Close at once; in the ordinary way the rest of an upload would be waited for."""
    if (connected := transport.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _payload(
    body: bytes | Upload | None, tracker: "aiohttp.UploadTracker"
) -> Reader | bytes | None:
    """The body in the form in which the library sends it piece by piece, where it is large."""
    if body is None or (isinstance(body, bytes) and len(body) <= _LONG_UPLOAD):
        return body
    # Once the connection has broken, the tracker tells no more than it told before.
    return Reader(body, before_each=lambda: tracker.bytes_written)


def _reason(error: object) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
