"""The studio's backend: aiohttp.web over `AsyncImages` and `elkimg_async.web`.

The browser never sees the API key: it sends requests to this program, which calls the image server.
Access to this program is access to the owner's money, so it

- listens on the loopback address only,
- serves nothing outside of a path with a random token, which other users of the machine lack,
- accepts only the names of the loopback address, so that no site can point its own name here (DNS
  rebinding), but any port, since tunnels change it,
- accepts requests that change something from its own page only, not from other pages.
"""

import asyncio
import contextlib
import functools
import re
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from elkimg_async.client import AsyncImages
from elkimg_async.errors import ConfigurationError
from elkimg_async.image import media_type_of
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.model_rules import MODELS, FreeSizes, ModelRules
from elkimg_async.sansio.requests import DEFAULT_MODEL, GenerateRequest
from elkimg_async.sansio.responses import CompletedImage, Usage
from elkimg_async.web import aiohttp_response

T = TypeVar("T")

HOST = "127.0.0.1"
OWN_HEADER = "X-Elkimg-Studio"
"""A header that other sites cannot send without permission, which they never get."""

_PAGE = Path(__file__).parent / "page"
_FILES = {  # with their types, since systems disagree about that of .js
    "": ("index.html", "text/html"),
    "studio.css": ("studio.css", "text/css"),
    "studio.js": ("studio.js", "text/javascript"),
}
_NAMES = {HOST, "localhost", "[::1]"}
_BODY_LIMIT = 128 * 1024 * 1024  # bytes of an image to edit and its mask
_UPLOAD_SECONDS = 60.0
_KEPT_BYTES = 512 * 1024 * 1024
_KEPT_CALLS = 100
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_SIZES = ("1024x1024", "1536x1024", "1024x1536", "2048x2048", "3840x2160", "2160x3840", "auto")
"""The sizes offered for models that accept any."""


class PageRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request of the page, with an `id` that the page chooses."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    request: GenerateRequest


class GalleryEntry(msgspec.Struct, kw_only=True):
    """The images of one call; `elapsed` is in seconds."""

    page_request: PageRequest
    edited: bool
    images: list[bytes]
    elapsed: float = 0.0
    size: str | None = None
    usage: Usage | None = None

    def describe(self) -> dict[str, Any]:
        """Return the data that the page shows after a reload."""
        return {
            "id": self.page_request.id,
            "request": self.page_request.request.fields(),
            "edited": self.edited,
            "types": [media_type_of(image) for image in self.images],
            "elapsed": self.elapsed,
            "size": self.size,
            "usage": self.usage,
        }


class Gallery:
    """The images of the session, in memory; the oldest are dropped first."""

    def __init__(self, *, max_bytes: int = _KEPT_BYTES, max_calls: int = _KEPT_CALLS) -> None:
        self.calls: OrderedDict[str, GalleryEntry] = OrderedDict()
        self._max_bytes, self._max_calls = max_bytes, max_calls

    def add(
        self, page_request: PageRequest, event: CompletedImage, *, edited: bool, elapsed: float
    ) -> None:
        """Add one finished image to those of its call."""
        new = GalleryEntry(page_request=page_request, edited=edited, images=[])
        entry = self.calls.setdefault(page_request.id, new)
        entry.images.append(event.image.content or b"")
        entry.elapsed, entry.size, entry.usage = elapsed, event.size, event.usage
        while len(self.calls) > 1 and self._is_full():
            self.calls.popitem(last=False)

    def _is_full(self) -> bool:
        size = sum(len(image) for entry in self.calls.values() for image in entry.images)
        return size > self._max_bytes or len(self.calls) > self._max_calls


@contextlib.asynccontextmanager
async def serve(
    client: AsyncImages, *, port: int = 0, local: bool = False, gallery: Gallery | None = None
) -> AsyncIterator[str]:
    """Serve the studio within the block, and yield its address with a random token.

    Args:
        client: The client that generates images; it is not closed here.
        port: The port on the loopback address; 0 for a free one.
        local: Whether `client` uses a local server, which the page then shows.
        gallery: The gallery of images; None for a new one.

    Raises:
        ConfigurationError: If the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"Port {port} is not available ({error}); choose another one."
        ) from None
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    studio = Studio(client, token=token, local=local, gallery=gallery or Gallery())
    runner = web.AppRunner(studio.app(), access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield f"http://{HOST}:{port}/{token}/"
    finally:
        await runner.cleanup()
        listener.close()


class Studio:
    """The request handlers and their state."""

    def __init__(self, client: AsyncImages, *, token: str, local: bool, gallery: Gallery) -> None:
        self._client, self._local, self._gallery = client, local, gallery
        self._root = f"/{token}/"

    def app(self) -> web.Application:
        """Return the application: the page and its API."""
        app = web.Application(middlewares=[self._guard], client_max_size=_BODY_LIMIT)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(
            [
                *(web.get(self._root + name, _file) for name in _FILES),
                web.get(f"{self._root}api/session", self._session),
                web.get(self._root + "api/images/{id}/{index:[0-9]{1,3}}", self._image),
                web.post(f"{self._root}api/generate", self._generate),
                web.post(f"{self._root}api/edit", self._edit),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Reject requests that another site may have sent."""
        headers = request.headers
        name = re.sub(r":\d{1,5}$", "", request.host)
        if name not in _NAMES:
            return _rejection(403, "The studio is not available under this name.")
        if not secrets.compare_digest(
            request.raw_path[: len(self._root)].encode(), self._root.encode()
        ):
            return _rejection(404, "Open the address that the studio printed in its terminal.")
        if request.method not in ("GET", "HEAD") and not (
            headers.get("Origin") in (f"http://{request.host}", f"https://{request.host}")
            and headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            and OWN_HEADER in headers
        ):
            return _rejection(403, "Only the studio's own page may send this request.")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _rejection(error.status, error.text or error.reason)

    async def _session(self, request: web.Request) -> web.Response:
        """Return everything that the page needs at its start."""
        return _json(
            {
                "local": self._local,
                "server": urlsplit(self._client.base_url).netloc,
                "default_model": DEFAULT_MODEL,
                "models": {name: _offer(MODELS[name]) for name in reversed(MODELS)},
                "images": [entry.describe() for entry in self._gallery.calls.values()],
            }
        )

    async def _image(self, request: web.Request) -> web.Response:
        entry = self._gallery.calls.get(request.match_info["id"])
        index = int(request.match_info["index"])
        if entry is None or index >= len(entry.images):
            raise web.HTTPNotFound(text="The studio no longer has this image.")
        image = entry.images[index]
        # An SVG opened by itself is a page of the studio's origin, and could run scripts.
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'"}
        return web.Response(body=image, content_type=media_type_of(image), headers=headers)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        page_request = _parse_request(await _read(request, request.text()))
        call = functools.partial(self._client.generate, **page_request.request.fields())
        return await aiohttp_response(request, self._stored(call, page_request))

    async def _edit(self, request: web.Request) -> web.StreamResponse:
        form = await _read(request, request.post())
        page_request = _parse_request(form.get("request"))
        image, mask = _read_file(form.get("image")), _read_file(form.get("mask"))
        if image is None:
            raise web.HTTPBadRequest(text="There is no image to edit.")
        call = functools.partial(
            self._client.edit, image, mask=mask, **page_request.request.fields()
        )
        return await aiohttp_response(request, self._stored(call, page_request, edited=True))

    async def _stored(
        self, call: Callable[..., Any], page_request: PageRequest, *, edited: bool = False
    ) -> AsyncIterator[ImageEvent]:
        """Yield the events of a call, with finished images stored before they are yielded."""
        started = time.monotonic()
        async with contextlib.aclosing(_events(call, page_request)) as events:
            async for event in events:
                if isinstance(event, CompletedImage):
                    await event.image.read()
                    elapsed = time.monotonic() - started
                    self._gallery.add(page_request, event, edited=edited, elapsed=elapsed)
                yield event


async def _events(
    call: Callable[..., Any], page_request: PageRequest
) -> AsyncGenerator[ImageEvent, None]:
    """Yield the events of a call; of a batch call if the model cannot stream."""
    rules = MODELS.get(page_request.request.model or DEFAULT_MODEL)
    if rules is None or rules.streams:
        async with call(stream=True) as stream:
            async for event in stream:
                yield event
        return
    response = await call()
    for image in response:
        yield CompletedImage(
            type="image_generation.completed",
            image=image,
            size=response.size,
            usage=response.usage,
        )


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


async def _file(request: web.Request) -> web.FileResponse:
    name, media_type = _FILES[request.path.rpartition("/")[2]]
    return web.FileResponse(_PAGE / name, headers={"Content-Type": f"{media_type}; charset=utf-8"})


def _json(value: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, content_type="application/json", status=status)


def _rejection(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "Rejected", "billing": "not_sent"}
    return _json({"error": error}, status)


async def _read(request: web.Request, body: Awaitable[T]) -> T:
    """Read a body.

    Raises:
        HTTPBadRequest: If the body, or its Content-Type, is malformed.
        HTTPRequestTimeout: If the body does not arrive in time.
    """
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            return await body
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The upload took too long.") from None
    # aiohttp's multipart reader raises a bare AssertionError or RuntimeError for some forms.
    except (ValueError, LookupError, AssertionError, RuntimeError, BadHttpMessage) as error:
        problem = type(error).__name__
    raise web.HTTPBadRequest(text=f"The request cannot be read: {problem}")


def _parse_request(text: object) -> PageRequest:
    try:
        return msgspec.json.decode(str(text), type=PageRequest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"The request cannot be read: {error}") from None


def _read_file(field: object) -> bytes | None:
    return field.file.read() if isinstance(field, web.FileField) else None


def _offer(rules: ModelRules) -> dict[str, Any]:
    """Return what the page offers for a model."""
    sizes = _SIZES if isinstance(rules.sizes, FreeSizes) else rules.sizes
    return {"size": sizes, "n": rules.n, "streams": rules.streams, **rules.values}
