"""Download images that were delivered as URLs, without the API key."""

import asyncio
import math
import time
from functools import partial
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from elkimg_async import logs
from elkimg_async.config import RetryPolicy
from elkimg_async.errors import (
    Billing,
    DisconnectedError,
    DownloadError,
    ElkImagesError,
    RequestTimeoutError,
)
from elkimg_async.image import Image
from elkimg_async.sansio import encode
from elkimg_async.sansio.headers import retry_after
from elkimg_async.sansio.retry import backoff
from elkimg_async.sansio.signatures import is_text
from elkimg_async.settings import Settings
from elkimg_async.transport.deadline import Deadline
from elkimg_async.transport.network import is_public
from elkimg_async.transport.session import Transport

MAX_REDIRECTS = 5
_REQUEST = encode.get("image/*")

_REDIRECTS = {301, 302, 303, 307, 308}
_POLICY = RetryPolicy()
"""The delays of downloads: the defaults of calls, but without jitter."""
_NOT_READY_STATUSES = {202, 403, 404}
NOT_READY = 30.0
"""Seconds after which these are final: the URL is wrong, or has expired."""
_MAX_LOST = 3  # connections that may break, and empty bodies


class DownloadOptions(NamedTuple):
    """Options of a download."""

    base_url: str
    """The API's base URL: an image host may be private if the API is."""
    private: bool
    seconds: float
    connect: float
    max_bytes: int


async def download(transport: Transport, options: DownloadOptions, url: str) -> bytes:
    """Download the image at `url`.

    A transient status (202, 403, 404, 408, 425, 429, 5xx) is retried within the time limit, and an
    empty body or a broken connection a few times: many servers announce an image before their CDN
    has it, and a GET costs nothing.

    A private, loopback or link-local address is rejected, so that a server cannot make its clients
    send requests to their own network, unless `options.private` allows it or the API itself is in
    such a network.

    Raises:
        DownloadError: If no image was received.
    """
    failure: ElkImagesError
    started = time.monotonic()
    deadline = Deadline(options.seconds, name="download")
    transport.in_flight.add(deadline, _billed)
    try:
        transport.check_open()
        with deadline:
            public_only = not options.private and not await _is_private(options.base_url)
            content = await _Fetch(transport, options, deadline, public_only).run(url)
    except ElkImagesError as error:
        failure = error
    else:
        logs.log_download(url, time.monotonic() - started, len(content))
        return content
    finally:
        transport.in_flight.remove(deadline, _billed)
    # Whatever failed, the image is paid for, and only reading it again helps.
    if not isinstance(failure, DownloadError):
        reason = failure if isinstance(failure, RequestTimeoutError) else failure.message
        failure = DownloadError(f"The image could not be fetched: {reason}")
    failure.url = failure.url or url.partition("?")[0]
    failure.__context__ = None
    logs.log_download(url, time.monotonic() - started, failure)
    raise failure


def _billed() -> Billing:
    return "billed"


def enable_download(image: Image, transport: Transport, settings: Settings) -> None:
    """Make the URL of an image absolute, and enable the image to download it."""
    base_url, limits = settings.base_url, settings.limits
    timeout = settings.timeout.limits(stream=False)
    if not (image.url or "").startswith(("https://", "http://")):
        image.url = resolve(base_url.partition("?")[0].rstrip("/") + "/", image.url or "")
    options = DownloadOptions(
        base_url=base_url,
        private=limits.private_downloads,
        seconds=timeout.download,
        connect=timeout.connect,
        max_bytes=limits.max_response_bytes,
    )
    image.download_with(partial(download, transport, options))


def resolve(base: str, url: str) -> str:
    """Return `url` relative to `base`, or `url` itself if that is impossible."""
    try:
        return urljoin(base, url)
    except ValueError:
        return url


class _StatusError(Exception):
    """A status other than success, or an empty body."""

    def __init__(self, status: int, wait: float | None, *, empty: bool = False) -> None:
        super().__init__(status)
        self.status, self.wait, self.empty = status, wait, empty

    def failure(self) -> DownloadError:
        """Return the error once there is nothing left to try."""
        returned = "an empty body" if self.empty else f"status {self.status}"
        return DownloadError(f"The image host returned {returned}.", status=self.status)


class _Fetch(NamedTuple):
    """The requests of one download."""

    transport: Transport
    options: DownloadOptions
    deadline: Deadline
    public_only: bool

    async def run(self, url: str) -> bytes:
        """Follow redirects and retry transient failures until the image has arrived."""
        attempt, lost, started = 0, 0, time.monotonic()
        while True:
            try:
                content = await self._follow(url)
            except _StatusError as error:
                attempt += 1
                lost += error.empty
                delay = self._delay(error, attempt, time.monotonic() - started)
                if lost > _MAX_LOST or delay is None:
                    raise error.failure() from None
            # Not a ConnectError or a time-out: a host that cannot be reached stays so.
            except DisconnectedError:
                lost += 1
                if lost > _MAX_LOST:
                    raise
                delay = backoff(_POLICY, lost)
            else:
                if is_text(content):
                    raise DownloadError("The image host returned text, not an image.", status=200)
                return content
            await asyncio.sleep(delay)

    def _delay(self, error: _StatusError, attempt: int, elapsed: float) -> float | None:
        """Return the seconds before the next request, or None to give up."""
        # The host may not have the file yet, or never have it: a signed URL that has expired is a
        # 403 too. So these end after `NOT_READY`, others with the limit of the download.
        absent = error.status in _NOT_READY_STATUSES or error.empty
        if not absent and error.status not in (408, 425, 429) and error.status < 500:
            return None
        # A Retry-After of 0 must not turn the wait for a file into a busy loop.
        delay = backoff(_POLICY, attempt) if error.wait is None else max(0.05, error.wait)
        if delay > _POLICY.max_retry_after or delay >= self.deadline.remaining:
            return None
        return None if absent and elapsed + delay > NOT_READY else delay

    async def _follow(self, url: str) -> bytes:
        # Followed here rather than by aiohttp, because each hop may point to a private network.
        for _ in range(MAX_REDIRECTS + 1):
            await self._check(url)
            content, url = await self._request(url)
            if content is not None:
                return content
        raise DownloadError(f"The image host redirects more than {MAX_REDIRECTS} times.")

    async def _request(self, url: str) -> tuple[bytes | None, str]:
        """Return the content, or None and the URL of a redirect."""
        max_bytes = self.options.max_bytes
        exchange = self.transport.exchange(
            url,
            _REQUEST,
            api_key=None,
            connect=self.options.connect,
            public_only=self.public_only,
        )
        try:
            # The deadline of the download is its only limit.
            await exchange.open(self.deadline, first_byte=math.inf, idle=math.inf)
            location = exchange.headers.get("location")
            # A redirect without a Location leads nowhere, and is a status like any other.
            if exchange.status in _REDIRECTS and location:
                return None, resolve(url, location)
            if exchange.status != 200:
                wait = retry_after(exchange.headers, time.time())
                raise _StatusError(exchange.status, wait)
            # The limit is for the decoded content, whatever length was announced.
            chunks: list[bytes] = []
            remaining = max_bytes
            while chunk := await exchange.read():
                remaining -= len(chunk)
                if remaining < 0:
                    raise DownloadError(
                        f"The image is larger than {max_bytes:,} bytes.", status=200
                    )
                chunks.append(chunk)
            if not chunks:
                wait = retry_after(exchange.headers, time.time())
                raise _StatusError(exchange.status, wait, empty=True)
        finally:
            exchange.close()
        return b"".join(chunks), url

    async def _check(self, url: str) -> None:
        """Check a URL before it is requested.

        Raises:
            DownloadError: If it is not http or https, or its host is private.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not host:
            raise DownloadError("The URL of the image is neither http nor https.")
        if not self.public_only:
            return
        # A literal address is checked here. A name is checked by the resolver of our own connector,
        # whose result is then used; a check before the request could see another address.
        private = not is_public(host)
        if not private and self.transport.shares_connector():
            private = await _is_private(url)  # a borrowed connector has a resolver of its own
        if private:
            raise DownloadError(
                "The URL of the image points to a private network; "
                "Limits(private_downloads=True) allows that."
            )


async def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return any(not is_public(str(address[0])) for *_, address in found)
