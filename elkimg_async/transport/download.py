"""Fetching an image that came as a URL: apart from its generation, and without the API key."""

import asyncio
import math
import time
from functools import partial
from urllib.parse import urljoin, urlsplit

from elkimg_async import logs
from elkimg_async.config import Settings
from elkimg_async.errors import DownloadError, ElkImagesError, RequestTimeoutError
from elkimg_async.image import UNKNOWN_TYPE, Image, media_type_of
from elkimg_async.sansio import encode
from elkimg_async.transport.deadline import Deadline
from elkimg_async.transport.exchange import Exchange, Transport
from elkimg_async.transport.network import is_public

MAX_REDIRECTS = 5
_REQUEST = encode.get("image/*")


async def download(
    transport: Transport,
    url: str,
    *,
    base_url: str,
    private: bool,
    seconds: float,
    connect: float,
    max_bytes: int,
) -> bytes:
    """The image at `url`, fetched within `seconds`, of at most `max_bytes` bytes.

    A private, loopback or link-local address is refused, lest a server make its clients ask their own
    networks; not so with `private`, or when `base_url` is in such a network itself.

    Raises:
        DownloadError: by the image host, which gave no image.
    """
    failure: ElkImagesError
    started = time.monotonic()
    try:
        transport.check_open()
        with Deadline(seconds, name="download") as deadline:
            public_only = not private and not await _is_private(base_url)
            for _ in range(MAX_REDIRECTS + 1):
                _check(url, public_only)
                exchange = transport.exchange(
                    url, _REQUEST, key=None, connect=connect, public_only=public_only
                )
                content, url = await _fetch(exchange, url, deadline, max_bytes)
                if content is not None:
                    logs.log_download(url, time.monotonic() - started, len(content))
                    return content
        raise DownloadError(f"The image host redirects more than {MAX_REDIRECTS} times.")
    except ElkImagesError as error:
        failure = error
    if not isinstance(failure, DownloadError):
        reason = failure if isinstance(failure, RequestTimeoutError) else failure.message
        failure = DownloadError(f"The image could not be fetched: {reason}")
    failure.url = url.partition("?")[0]
    failure.__context__ = None
    logs.log_download(url, time.monotonic() - started, failure)
    raise failure


def connect_image(image: Image, transport: Transport, settings: Settings) -> None:
    """Make the address of an image absolute, and teach the image to fetch it."""
    base_url, limits, timeout = settings.base_url, settings.limits, settings.batch_limits
    if not (image.url or "").startswith(("https://", "http://")):
        image.url = resolve(base_url + "/", image.url or "")
    image.download_with(
        partial(
            download,
            transport,
            base_url=base_url,
            private=limits.private_downloads,
            seconds=timeout.download,
            connect=timeout.connect,
            max_bytes=limits.max_response_bytes,
        )
    )


def resolve(base: str, url: str) -> str:
    """`url` as seen from `base`; as it is where that makes no sense."""
    try:
        return urljoin(base, url)
    except ValueError:
        return url


async def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return any(not is_public(str(address[0])) for *_, address in found)


def _check(url: str, public_only: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise DownloadError("The image's address is neither http nor https.")
    if public_only and not is_public(host):
        raise DownloadError(
            "The image's address is in a private network; "
            "Limits(private_downloads=True) allows that."
        )


async def _fetch(
    exchange: Exchange, url: str, deadline: Deadline, max_bytes: int
) -> tuple[bytes | None, str]:
    """The content and its address, or None and the address to go on with."""
    try:
        await exchange.open(deadline, first_byte=math.inf, idle=math.inf)
        location = exchange.headers.get("location")
        if exchange.status in (301, 302, 303, 307, 308) and location:
            return None, resolve(url, location)
        if exchange.status != 200:
            raise DownloadError(
                f"The image host answered with status {exchange.status}.", status=exchange.status
            )
        pieces: list[bytes] = []
        left = max_bytes
        while piece := await exchange.read():
            left -= len(piece)
            if left < 0:
                raise DownloadError(f"The image is larger than {max_bytes:,} bytes.", status=200)
            pieces.append(piece)
    finally:
        exchange.close()
    content = b"".join(pieces)
    if media_type_of(content) == UNKNOWN_TYPE:
        raise DownloadError("What the image host gave is no image.", status=200)
    return content, url
