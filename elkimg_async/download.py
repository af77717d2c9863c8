"""Fetching an image that came as a URL: apart from its generation, and without the API key."""

import math
from urllib.parse import urljoin, urlsplit

from elkimg_async.errors import DownloadError, ElkImagesError
from elkimg_async.image import UNKNOWN_TYPE, media_type_of
from elkimg_async.sansio.wire import HTTPRequest
from elkimg_async.transport import Transport
from elkimg_async.watchdog import Watchdog

MAX_REDIRECTS = 5
_REQUEST = HTTPRequest("GET", {"Accept": "image/*"})


async def download(
    transport: Transport, url: str, *, seconds: float, connect: float, max_bytes: int
) -> bytes:
    """The image at `url`, fetched within `seconds`, of at most `max_bytes` bytes.

    Raises:
        DownloadError: by the image host, which gave no image.
    """
    failure: ElkImagesError
    try:
        with Watchdog(seconds, name="download") as watchdog:
            for _ in range(MAX_REDIRECTS + 1):
                content, url = await _fetch(transport, url, watchdog, connect, max_bytes)
                if content is not None:
                    return content
        raise DownloadError(f"The image host redirects more than {MAX_REDIRECTS} times.")
    except ElkImagesError as error:
        failure = error
    if not isinstance(failure, DownloadError):
        failure = DownloadError(f"The image could not be fetched: {failure.message}")
    failure.url = url.partition("?")[0]
    failure.__context__ = None
    raise failure


async def _fetch(
    transport: Transport, url: str, watchdog: Watchdog, connect: float, max_bytes: int
) -> tuple[bytes | None, str]:
    """The content and its address, or None and the address to go on with."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError("The image's address is neither http nor https.")
    exchange = transport.exchange(url, _REQUEST, key=None, connect=connect)
    try:
        await exchange.open(watchdog, math.inf)
        if exchange.status in (301, 302, 303, 307, 308):
            return None, urljoin(url, exchange.headers.get("location", ""))
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
