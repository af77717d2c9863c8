"""The studio's backend: aiohttp.web over `AsyncImages` and `elkimg_async.web`, an example to start from.

The browser never sees the API key: it asks this program, and this program asks the image server.
Whoever reaches this program can spend the user's money, so it

- listens on the loopback address only,
- answers to its own names only, or a site could point a name of its own here (DNS rebinding),
- takes a request that changes something from its own page only, or any page that is open in the
  same browser could send one.

Other users of the same machine do reach it.
"""

import contextlib
import functools
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from elkimg_async.client import AsyncImages
from elkimg_async.errors import ConfigurationError
from elkimg_async.image import media_type_of
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.model_rules import MODELS, FreeSizes, ModelRules
from elkimg_async.sansio.requests import DEFAULT_MODEL, GenerateRequest
from elkimg_async.sansio.responses import CompletedImage, Usage
from elkimg_async.web import aiohttp_response

HOST = "127.0.0.1"
OWN_HEADER = "X-Elkimg-Studio"
"""What only the page itself can send: a header of this kind needs leave, which no other site gets."""

_PAGE = Path(__file__).parent / "page"
_FILES = {  # with their types: what a machine makes of .js is anybody's guess
    "/": ("index.html", "text/html"),
    "/studio.css": ("studio.css", "text/css"),
    "/studio.js": ("studio.js", "text/javascript"),
}
_BODY_LIMIT = 128 * 1024 * 1024  # bytes of a picture to edit and its mask
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
"""What is offered where a model takes any size."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page asks for; it makes the `id` up itself."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    request: GenerateRequest


class Kept(msgspec.Struct, kw_only=True):
    """The pictures of one call; `elapsed` is in seconds."""

    order: Order
    edited: bool
    images: list[bytes]
    elapsed: float = 0.0
    size: str | None = None
    usage: Usage | None = None

    def told(self) -> dict[str, Any]:
        """What the page shows of it after a reload."""
        return {
            "id": self.order.id,
            "order": self.order.request.fields(),
            "edited": self.edited,
            "types": [media_type_of(image) for image in self.images],
            "elapsed": self.elapsed,
            "size": self.size,
            "usage": self.usage,
        }


class Gallery:
    """The pictures of the session, in memory, so that a reload shows them again; the oldest go first."""

    def __init__(self, *, max_bytes: int = _KEPT_BYTES, max_calls: int = _KEPT_CALLS) -> None:
        self.calls: OrderedDict[str, Kept] = OrderedDict()
        self._max_bytes, self._max_calls = max_bytes, max_calls

    def keep(self, order: Order, event: CompletedImage, *, edited: bool, elapsed: float) -> None:
        """Add one finished picture to those of its call."""
        new = Kept(order=order, edited=edited, images=[])
        kept = self.calls.setdefault(order.id, new)
        kept.images.append(event.image.content or b"")
        kept.elapsed, kept.size, kept.usage = elapsed, event.size, event.usage
        while len(self.calls) > 1 and self._is_full():
            self.calls.popitem(last=False)

    def _is_full(self) -> bool:
        size = sum(len(image) for kept in self.calls.values() for image in kept.images)
        return size > self._max_bytes or len(self.calls) > self._max_calls


@contextlib.asynccontextmanager
async def serve(
    client: AsyncImages, *, port: int = 0, local: bool = False, gallery: Gallery | None = None
) -> AsyncIterator[str]:
    """Serve the studio within the block, which gets its address.

    Args:
        client: What makes the pictures; it is not closed here.
        port: Where it listens, on loopback. 0: a free one.
        local: Whether `client` asks a local server, which the page then says.
        gallery: Where pictures are kept. None: a new one.

    Raises:
        ConfigurationError: by the caller; the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"Port {port} cannot be used ({error}); choose another.") from None
    port = listener.getsockname()[1]
    studio = Studio(client, port=port, local=local, gallery=gallery or Gallery())
    runner = web.AppRunner(studio.app(), access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield f"http://{HOST}:{port}"
    finally:
        await runner.cleanup()
        listener.close()


class Studio:
    """The handlers, and what they share."""

    def __init__(self, client: AsyncImages, *, port: int, local: bool, gallery: Gallery) -> None:
        self._client, self._local, self._gallery = client, local, gallery
        suffix = "" if port == 80 else f":{port}"  # browsers leave that port out
        self._hosts = {name + suffix for name in (HOST, "localhost", "[::1]")}

    def app(self) -> web.Application:
        """The application: the page, and what it asks for."""
        app = web.Application(middlewares=[self._guard], client_max_size=_BODY_LIMIT)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(
            [
                *(web.get(path, _file) for path in _FILES),
                web.get("/api/session", self._session),
                web.get("/api/pictures/{id}/{index:[0-9]{1,3}}", self._picture),
                web.post("/api/generate", self._generate),
                web.post("/api/edit", self._edit),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse what another site may have sent."""
        headers = request.headers
        if request.host not in self._hosts:
            return _refusal(403, "The studio does not answer to this name.")
        if request.method not in ("GET", "HEAD") and not (
            headers.get("Origin") == f"http://{request.host}"
            and headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            and OWN_HEADER in headers
        ):
            return _refusal(403, "Only the studio's own page may ask for this.")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.text or error.reason)

    async def _session(self, request: web.Request) -> web.Response:
        """All that the page must know at its start."""
        return _json(
            {
                "local": self._local,
                "server": urlsplit(self._client.base_url).netloc,
                "default_model": DEFAULT_MODEL,
                "models": {name: _offer(MODELS[name]) for name in reversed(MODELS)},
                "pictures": [kept.told() for kept in self._gallery.calls.values()],
            }
        )

    async def _picture(self, request: web.Request) -> web.Response:
        kept = self._gallery.calls.get(request.match_info["id"])
        index = int(request.match_info["index"])
        if kept is None or index >= len(kept.images):
            raise web.HTTPNotFound(text="This picture is not kept any more.")
        image = kept.images[index]
        # An SVG that is opened by itself would be a page of the studio's own, with scripts.
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'"}
        return web.Response(body=image, content_type=media_type_of(image), headers=headers)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        order = _read_order(await request.text())
        call = functools.partial(self._client.generate, **order.request.fields())
        return await aiohttp_response(request, self._kept(call, order))

    async def _edit(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        order = _read_order(form.get("order"))
        image, mask = _read_file(form.get("image")), _read_file(form.get("mask"))
        if image is None:
            raise web.HTTPBadRequest(text="There is no picture to edit.")
        call = functools.partial(self._client.edit, image, mask=mask, **order.request.fields())
        return await aiohttp_response(request, self._kept(call, order, edited=True))

    async def _kept(
        self, call: Callable[..., Any], order: Order, *, edited: bool = False
    ) -> AsyncIterator[ImageEvent]:
        """The events of a call, its finished pictures kept before they go on to the browser."""
        began = time.monotonic()
        async with contextlib.aclosing(_events(call, order)) as events:
            async for event in events:
                if isinstance(event, CompletedImage):
                    await event.image.read()
                    elapsed = time.monotonic() - began
                    self._gallery.keep(order, event, edited=edited, elapsed=elapsed)
                yield event


async def _events(call: Callable[..., Any], order: Order) -> AsyncGenerator[ImageEvent, None]:
    """The events of a call, made up where the model cannot stream."""
    rules = MODELS.get(order.request.model or DEFAULT_MODEL)
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
    name, media_type = _FILES[request.path]
    return web.FileResponse(_PAGE / name, headers={"Content-Type": f"{media_type}; charset=utf-8"})


def _json(value: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, content_type="application/json", status=status)


def _refusal(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "Refused", "billing": "not_sent"}
    return _json({"error": error}, status)


def _read_order(text: object) -> Order:
    try:
        return msgspec.json.decode(str(text), type=Order)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"The request cannot be read: {error}") from None


def _read_file(field: object) -> bytes | None:
    return field.file.read() if isinstance(field, web.FileField) else None


def _offer(rules: ModelRules) -> dict[str, Any]:
    """What the page offers for a model."""
    sizes = _SIZES if isinstance(rules.sizes, FreeSizes) else rules.sizes
    return {"size": sizes, "n": rules.n, "streams": rules.streams, **rules.values}
