"""One HTTP request and its response: the request out; status, headers and chunks in.

No aiohttp exception leaves this module, whether raised, chained or in a traceback: they hold the
request headers, and so the API key. Whatever can fail runs in a function that returns the failure,
which its caller raises.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
import yarl

from elkimg_async.credentials import Secret
from elkimg_async.errors import Billing, ElkImagesError, ResponseError
from elkimg_async.sansio.encode import USER_AGENT, HTTPRequest
from elkimg_async.transport.content_encoding import Decode, UnknownEncodingError, decoder_for
from elkimg_async.transport.deadline import Deadline
from elkimg_async.transport.failures import Situation, is_lost_connection, translate
from elkimg_async.transport.pool import (
    MAX_HEADER,
    MAX_HEADERS,
    READ_SIZE,
    Pool,
    accepts,
    origin_of,
    run_pending_callbacks,
)
from elkimg_async.transport.uploads import CHUNK, Reader

_LONG_UPLOAD = 64 * 1024  # bytes; a shorter body fits into the kernel's buffers


class Exchange:
    """One request and its response: `open`, `read` until the end, and `close`.

    A stalled upload is left to aiohttp, which closes its connection once the rest is sent or the
    peer is gone.
    """

    def __init__(
        self,
        pool: Pool,
        url: str,
        request: HTTPRequest,
        *,
        api_key: Secret | None,
        connect: float,
        proxy: str | None,
    ) -> None:
        self._pool = pool
        self._url = url
        self._request = request
        self._api_key = api_key
        self._connect = connect
        self._proxy = proxy
        self._deadline: Deadline | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._tracker: Any = None
        self._decode: Decode | None = None
        self._decoded: Iterator[bytes] | None = None
        self._has_slot = self._begun = False
        self._passed_on = 0
        self.status = 0
        self.headers: Mapping[str, str] = {}
        """The headers of the response; names are case-insensitive."""

    @property
    def phase(self) -> str:
        """The current phase: `connect`, `upload`, `first_byte` or `body`."""
        if self.status:
            return "body"
        # Until the first byte of the body has left, aiohttp may still be connecting. A request
        # without a body shows nothing of the kind, and counts as sent.
        if not self._begun or (self._length and not self._uploaded):
            return "connect"
        return "first_byte" if self._uploaded >= self._length else "upload"

    @property
    def billing(self) -> Billing:
        """The billing of a failure now; nothing is billed before a byte of the body has left."""
        return "not_sent" if self.phase == "connect" else "unknown"

    @property
    def _length(self) -> int:
        return len(self._request.body or b"")

    @property
    def _uploaded(self) -> int:
        """Bytes of the body that have left; without a tracker, those passed to aiohttp."""
        return self._passed_on if self._tracker is None else int(self._tracker.bytes_written)

    async def open(self, deadline: Deadline, *, first_byte: float, idle: float) -> None:
        """Send the request and wait for the status and headers of the response.

        Args:
            deadline: The time limit of the call; it has been entered.
            first_byte: Seconds until the headers, from the start or from the end of a long upload.
            idle: Seconds for which a long upload may stall.

        Raises:
            ConnectError: If the server cannot be reached.
            RequestTimeoutError: If a limit has passed.
            DisconnectedError: If the connection broke.
            ResponseError: If the response is not valid HTTP.
            ConfigurationError: If the client is closed, or a borrowed session cannot send the
                request.
        """
        self._deadline = deadline
        self._pool.in_flight.add(deadline, self._stop)
        # A long upload is limited by its progress, and only then by the wait for the headers: on a
        # slow line, sending the images of an edit may take longer than the server does.
        if self._length > _LONG_UPLOAD:
            self._watch_upload(deadline, first_byte, idle)
        else:
            deadline.allow("first_byte", first_byte)
        failure = await self._send()
        if failure is not None:
            raise failure

    def _watch_upload(
        self, deadline: Deadline, first_byte: float, idle: float, before: int = -1
    ) -> None:
        """Allow more time if more than `before` bytes of the body have left."""
        # The deadline calls this again, as `extend`, each time a limit has passed. Nothing else
        # would notice progress: aiohttp has no event for bytes that the kernel has taken.
        if (uploaded := self._uploaded) > before:
            extend = functools.partial(self._watch_upload, deadline, first_byte, idle, uploaded)
            if self.phase == "first_byte":
                deadline.allow("first_byte", first_byte, extend=extend)
            else:
                deadline.allow("idle", idle, extend=extend)

    async def read(self) -> bytes:
        """Return the next bytes of the body, b"" at its end.

        Raises:
            DisconnectedError: If the connection broke; the body may be incomplete.
            ResponseError: If the body is not valid HTTP, or does not match its Content-Encoding.
        """
        assert self._response is not None
        try:
            if self._decode is None:
                return await _read_arrived(self._response.content)
            return await self._read_decoded(self._response.content, self._decode)
        except Exception as error:  # noqa: BLE001
            failure = translate(error, self._situation())
        # Raised after the `except` block, so that aiohttp's exception does not become its context.
        self.close()
        raise failure

    async def _read_decoded(self, content: aiohttp.StreamReader, decode: Decode) -> bytes:
        # One encoded chunk may hold many decoded ones, or none yet; b"" would mean the end.
        while True:
            if self._decoded is not None:
                if chunk := next(self._decoded, b""):
                    return chunk
                self._decoded = None
            if not (encoded := await _read_arrived(content)):
                return b""
            self._decoded = decode(encoded)

    @property
    def at_end(self) -> bool:
        """Whether the body has been read to its end."""
        if self._response is None:
            return True
        return self._decoded is None and self._response.content.at_eof()

    def close(self) -> None:
        """Close the connection, unless the body has been read to its end."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            self._pool.in_flight.remove(deadline, self._stop)
        if self._has_slot:
            self._has_slot = False
            self._pool.release()
        self._disconnect()
        self._response = None

    def _disconnect(self) -> None:
        """Abort the connection; one whose body has been read to its end is in the pool already."""
        if self._response is not None and (connection := self._response.connection) is not None:
            # Closing alone would wait until a blocked upload has been sent.
            if connection.transport is not None:
                connection.transport.abort()
            self._response.close()

    def _stop(self) -> Billing:
        """Close the connection because the client is being closed; return the billing."""
        billing = self.billing
        self._disconnect()
        return billing

    async def _send(self) -> ElkImagesError | None:
        payload: Reader | bytes | None = None
        try:
            # Waiting for a free connection is not connecting, and has no limit but the total. After
            # it, connections that the server has closed in the meantime leave the pool: a request
            # on one of them would be lost, and its outcome unknown.
            await self._pool.acquire()
            self._has_slot = True
            await run_pending_callbacks()
            if hasattr(aiohttp, "UploadTracker"):  # since aiohttp 3.14.4
                self._tracker = aiohttp.UploadTracker()
            self._begun = True
            payload = self._payload()
            response = await self._pool.session.request(
                self._request.method,
                # Quoting it again would invalidate a signature in it.
                yarl.URL(self._url, encoded=self._url.isascii() and " " not in self._url),
                data=payload,
                headers=self._headers(),
                proxy=self._proxy,
                **self._options(),
            )
        except Exception as error:  # noqa: BLE001
            # aiohttp wraps what a body raises, so the reader keeps the cause.
            if isinstance(payload, Reader) and payload.failure is not None:
                return payload.failure
            if is_lost_connection(error):
                self._pool.hosts.note_lost(origin_of(self._url))
            return translate(error, self._situation())
        self._response = response
        self.status = response.status
        self.headers = response.headers
        self._pool.hosts.note_response(origin_of(self._url), response.headers)
        return self._choose_decoder(response.headers)

    def _options(self) -> dict[str, Any]:
        """Return the options that hold in any session, whatever its own defaults are."""
        options: dict[str, Any] = {
            "allow_redirects": False,  # a redirected POST would become a GET, or go elsewhere
            "raise_for_status": False,
            "auto_decompress": False,
            "read_bufsize": READ_SIZE,
            "max_field_size": MAX_HEADER,  # proxies add long policies and cookies
            "timeout": _client_timeout(self._connect, shared=self._pool.shared),
        }
        if self._tracker is not None:
            options["upload_tracker"] = self._tracker
        if accepts(aiohttp.ClientSession.__init__, "max_headers"):  # since aiohttp 3.14
            options["max_headers"] = MAX_HEADERS
        return options

    def _payload(self) -> Reader | bytes | None:
        """Return the body, as a `Reader` of its chunks if it is large or comes from files.

        Without a tracker every body is one, since its first chunk shows that sending has begun.
        """
        body = self._request.body
        is_small = self._length <= _LONG_UPLOAD and self._tracker is not None
        if body is None or (isinstance(body, bytes) and is_small):
            return body
        return Reader(body, before_each=self._before_chunk)

    def _before_chunk(self) -> None:
        self._passed_on += CHUNK
        if self._tracker is not None:
            # Read while the connection is alive: once it has broken, the tracker returns the value
            # of the last read.
            _ = self._tracker.bytes_written

    def _headers(self) -> dict[str, str]:
        headers = dict(self._request.headers)
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key.reveal()}"
        if self._request.body is not None:
            # Its length is known even if it is read while it is sent, so it needs no chunks.
            headers["Content-Length"] = str(self._length)
        if self._pool.borrowed and headers.get("User-Agent") == USER_AGENT:
            del headers["User-Agent"]  # the session may have its own
        return headers

    def _choose_decoder(self, headers: Mapping[str, str]) -> ResponseError | None:
        try:
            self._decode = decoder_for(headers.get("Content-Encoding", ""))
        except UnknownEncodingError as error:
            if 200 <= self.status < 300:
                return ResponseError(
                    f"The response of {self._situation().host} cannot be read: {error}.",
                    billing=self.billing,
                )
            self._decode = lambda chunk: iter(())  # the status says enough
        return None

    def _situation(self) -> Situation:
        return Situation(
            url=self._url,
            phase=self.phase,
            billing=self.billing,
            connect=self._connect,
            proxy=self._proxy,
            borrowed=self._pool.borrowed,
            closed=self._pool.session.closed,
        )


async def _read_arrived(content: aiohttp.StreamReader) -> bytes:
    """Return the next bytes of a body, and everything that arrived before its connection broke."""
    try:
        return await content.readany()
    except Exception as error:
        # aiohttp raises at once, although the last event, for instance, may have arrived while the
        # user handled the one before it. It is read first, and the next call raises.
        if content.exception() is None:
            raise
        content.set_exception(None)  # type: ignore[arg-type]
        arrived = content.read_nowait()
        content.set_exception(error)
        if not arrived:
            raise
        return arrived


@functools.lru_cache(maxsize=16)
def _client_timeout(connect: float, *, shared: bool) -> aiohttp.ClientTimeout:
    """Return aiohttp's limits for connecting; all others are up to the deadline.

    In our own connector `connect` covers the name lookup, all addresses, the proxy and TLS. A
    borrowed connector may also have to wait for a free connection, which does not count as
    connecting, so there only each socket is limited.
    """
    seconds = None if connect == math.inf else connect
    if shared:
        return aiohttp.ClientTimeout(total=None, sock_connect=seconds, ceil_threshold=math.inf)
    return aiohttp.ClientTimeout(total=None, connect=seconds, ceil_threshold=math.inf)
