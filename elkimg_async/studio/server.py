"""The studio's backend: aiohttp.web over `elkimg_async.jobs`.

Jobs belong to this program: a page starts them, and every open page follows all of them through one
stream of events, so a page that is closed or reloaded loses nothing.

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
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from elkimg_async.client import AsyncImages
from elkimg_async.errors import (
    ConfigurationError,
    ElkImagesError,
    InvalidRequestError,
    JobConflictError,
    JobNotFoundError,
    StoreError,
)
from elkimg_async.jobs import DirectoryStore, ImageJobs, Job
from elkimg_async.jobs.model import Entry
from elkimg_async.media_types import media_type_of
from elkimg_async.sansio.model_rules import MODELS, FreeSizes, rules_for
from elkimg_async.studio.board import Board, current_job
from elkimg_async.studio.library import Library, file_name, type_of
from elkimg_async.studio.listener import HOST, HeaderTimer, listen
from elkimg_async.studio.page_request import MAX_BODY, read_job
from elkimg_async.studio.zip_stream import ZipStream
from elkimg_async.web import HEADERS as EVENT_HEADERS

OWN_HEADER = "X-Elkimg-Studio"
"""A header that other sites cannot send without permission, which they never get."""

_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_NAMES = {HOST, "localhost", "[::1]"}
_HEARTBEAT = 15.0  # seconds between two signs of life on a stream of events
_MODELS_SECONDS = 600.0  # how long the server's list of models is reused
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_IMAGE_HEADERS = {
    # An SVG opened by itself is a page of the studio's origin, and could run scripts.
    "Content-Security-Policy": "sandbox; default-src 'none'",
    # The number of an image is never used again.
    "Cache-Control": "private, max-age=31536000, immutable",
}
_SIZES = ("1024x1024", "1536x1024", "1024x1536", "2048x2048", "3840x2160", "2160x3840", "auto")
"""The sizes offered for models that accept any."""
_STATUS: dict[type[ElkImagesError], int] = {
    InvalidRequestError: 400,
    JobNotFoundError: 404,
    JobConflictError: 409,
    ConfigurationError: 503,
    ElkImagesError: 503,
}


@contextlib.asynccontextmanager
async def serve(
    client: AsyncImages,
    *,
    folder: Path | None = None,
    port: int | None = None,
    local: bool = False,
    grace: float | None = None,
    on_close: Callable[[int], None] | None = None,
) -> AsyncIterator[str]:
    """Serve the studio within the block, and yield its address with a random token.

    The end of the block waits for running jobs, because they are paid for; a second cancellation
    ends it at once.

    Args:
        client: The client that generates images; it is not closed here.
        folder: The folder with the history of images. None: a temporary one.
        port: The port on the loopback address; 0 for a free one. None: the default port, or the
            next one that is free.
        local: Whether `client` uses a local server, which the page then shows.
        grace: Seconds to wait for running jobs. None: the client's total time limit.
        on_close: Called before waiting for running jobs, with their number.

    Raises:
        ConfigurationError: If the port is taken.
        StoreError: If the folder cannot be used, or another studio uses it.
    """
    # At the end, in reverse: jobs end while pages still follow them, then the streams of events,
    # the port, and the connections.
    async with contextlib.AsyncExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="elkimg-studio-")
            folder = Path(stack.enter_context(temporary))
        listener = stack.enter_context(listen(port))
        library = Library(folder)
        library.create()
        studio = Studio(client, library, local=local, grace=grace)
        runner = web.AppRunner(
            studio.app(), access_log=None, shutdown_timeout=1.0, lingering_time=2.0
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        assert runner.server is not None
        studio.timer = HeaderTimer(runner.server)
        stack.callback(studio.timer.close)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(studio.timer.connect, sock=listener, start_serving=False)
        stack.callback(server.close)
        stack.push_async_callback(studio.board.aclose)
        await stack.enter_async_context(studio.jobs)
        # Pages that reconnect wait in the backlog of the port until the earlier jobs are known.
        await studio.open()
        await server.start_serving()
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}{studio.root}"
        finally:
            if on_close is not None and studio.board.running:
                on_close(studio.board.running)


class Studio:
    """The request handlers and their state."""

    def __init__(
        self, client: AsyncImages, library: Library, *, local: bool, grace: float | None
    ) -> None:
        settings = client._settings  # noqa: SLF001
        hooks = (*settings.hooks, self._observe)
        observed = msgspec.structs.replace(settings, hooks=hooks)
        self._client = client._view(observed)  # noqa: SLF001
        self._model = settings.model
        self._library, self._local = library, local
        self._store = DirectoryStore(library.folder)
        self.jobs = ImageJobs(self._client, store=self._store, keep=None, grace=grace)
        self.board = Board(self.jobs, self._store, max_attempts=settings.retry.max_retries + 1)
        self.root = f"/{library.token()}/"
        self.timer: HeaderTimer | None = None
        self._started = time.time()
        self._offers: tuple[float, dict[str, Any]] | None = None

    def _observe(self, record: Any) -> None:
        self.board.observe(record)

    async def open(self) -> None:
        """Continue with the jobs of an earlier process."""
        await self.board.open()
        self._library.remove_unused(await self.jobs.list())

    def app(self) -> web.Application:
        """Return the application: the page and its API."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.on_response_prepare.append(_add_headers)
        jobs = f"{self.root}api/jobs"
        job = jobs + "/{id}"
        app.add_routes(
            [
                # Each file has a route of its own, so no path can lead out of the folder.
                web.get(self.root, _file),
                *(web.get(self.root + name, _file) for name in _page_files()),
                web.get(f"{self.root}api/session", self._session),
                web.get(f"{self.root}api/models", self._models),
                web.get(f"{self.root}api/events", self._events),
                web.get(f"{self.root}api/zip", self._zip),
                web.get(self.root + "api/inputs/{digest}", self._input),
                web.get(jobs, self._list),
                web.post(jobs, self._start),
                web.delete(job, self._delete),
                web.post(f"{job}/cancel", self._cancel),
                web.get(job + "/images/{number:[0-9]{1,9}}", self._image),
                web.get(job + "/thumbnails/{number:[0-9]{1,9}}", self._thumbnail),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Reject requests that another site may have sent, and report errors as JSON."""
        assert self.timer is not None
        self.timer.request_started(request.protocol)
        try:
            return self._reject(request) or await handler(request)
        except web.HTTPRedirection:
            raise
        except web.HTTPException as error:
            rejection = _rejection(error.status, error.text or error.reason)
            if error.status == web.HTTPRequestTimeout.status_code:
                # The rest of its body would be read as the next request.
                rejection.force_close()
            return rejection
        except ElkImagesError as error:
            # The nearest class decides, since all of these are ElkImagesErrors.
            status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
            return _rejection(status, error.message, type(error).__name__)
        finally:
            self.timer.request_ended(request.protocol)

    def _reject(self, request: web.Request) -> web.Response | None:
        """Return the response to a request that is not from the studio's own page, else None."""
        headers = request.headers
        if re.sub(r":\d{1,5}$", "", request.host) not in _NAMES:
            return _rejection(403, "The studio is not available under this name.")
        # The path as it was sent, not decoded, and compared in constant time.
        path = request.raw_path[: len(self.root)].encode()
        if not secrets.compare_digest(path, self.root.encode()):
            return _rejection(404, "Open the address that the studio printed in its terminal.")
        # Browsers send Origin with each of these requests, and Sec-Fetch-Site unless they are old.
        # Another origin may send the own header only after a preflight, which is rejected here too.
        if request.method not in ("GET", "HEAD") and not (
            headers.get("Origin") in (f"http://{request.host}", f"https://{request.host}")
            and headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            and OWN_HEADER in headers
        ):
            return _rejection(403, "Only the studio's own page may send this request.")
        return None

    # --- what the page shows ------------------------------------------------

    async def _session(self, request: web.Request) -> web.Response:
        """Return everything that the page needs at its start."""
        return _json(
            {
                "local": self._local,
                "server": urlsplit(self._client.base_url).netloc,
                "started": self._started,
                "default_model": self._model,
                "models": {name: _offer(name) for name in reversed(MODELS)},
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        """Return the server's image models with the options of those that are known."""
        now = time.monotonic()
        if self._offers is None or now > self._offers[0] + _MODELS_SECONDS:
            try:
                found = await self._client.models()
            except ElkImagesError:
                # The page then offers the models that are known here; the next one asks again.
                return _json({"models": {}})
            names = [model.id for model in found if model.is_image is not False]
            self._offers = now, {name: _offer(name) for name in names}
        return _json({"models": self._offers[1]})

    async def _list(self, request: web.Request) -> web.Response:
        [change] = await self.board.changes(None)
        return _json(change.data)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send all jobs, then each change, for as long as the page is open."""
        response = web.StreamResponse(headers=EVENT_HEADERS)
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n")
        # The header is sent by an EventSource that reconnects by itself, the parameter by a page
        # that opens a new one.
        last_id = request.headers.get("Last-Event-ID") or request.query.get("after")
        position = self.board.position(last_id)
        with contextlib.suppress(ConnectionError, StoreError):  # the page or the studio has ended
            while not self.board.closed:
                for change in await self.board.changes(position):
                    await response.write(
                        b"id: %b\nevent: %b\ndata: %b\n\n"
                        % (
                            self.board.id_of(change).encode(),
                            change.event.encode(),
                            msgspec.json.encode(change.data),
                        )
                    )
                    position = change.number
                if not await self.board.wait(position or 0, _HEARTBEAT):
                    await response.write(b": ping\n\n")
        return response

    async def _image(self, request: web.Request) -> web.StreamResponse:
        while True:
            _, entry, file = await self._find(request)
            if entry.completed:
                return _image_response(file)
            # The file of a partial image may be replaced at any time, so it is read at once.
            with contextlib.suppress(FileNotFoundError):
                content = await asyncio.to_thread(file.read_bytes)
                return web.Response(
                    body=content, content_type=media_type_of(content), headers=_IMAGE_HEADERS
                )

    async def _thumbnail(self, request: web.Request) -> web.StreamResponse:
        job, entry, file = await self._find(request)
        number = entry.id - job.first_id
        return _image_response(await self._library.thumbnail(job, number, file))

    async def _find(self, request: web.Request) -> tuple[Job, Entry, Path]:
        number = int(request.match_info["number"])  # counted from the first event of the job
        job = await self._store.get(request.match_info["id"])
        if job is None:
            raise _missing()
        for entry, file in self._store.entries(job):
            found = entry.id - job.first_id
            if file is None or found < number:
                continue
            if found == number:
                return job, entry, file
            # A partial image that has been replaced: the page wants the newest one.
            raise web.HTTPFound(str(found), headers={"Cache-Control": "no-store"})
        raise _missing()

    async def _input(self, request: web.Request) -> web.StreamResponse:
        file = self._library.input_file(request.match_info["digest"])
        if file is None:
            raise _missing()
        return _image_response(file)

    async def _zip(self, request: web.Request) -> web.StreamResponse:
        """Send the images of the jobs named in the query, or of all, as one archive."""
        wanted = request.query.getall("job", [])
        jobs = [job for job in await self._store.jobs() if not wanted or job.id in wanted]
        files = list[tuple[str, Path]]()
        for job in jobs:
            found = [file for entry, file in self._store.entries(job) if entry.completed and file]
            files += [(file_name(job, index, file), file) for index, file in enumerate(found)]
        if not files:
            raise web.HTTPNotFound(text="There are no images to download.")
        headers = {"Content-Disposition": 'attachment; filename="elkimg-images.zip"'}
        response = web.StreamResponse(headers=headers)
        response.content_type = "application/zip"
        await response.prepare(request)
        archive = ZipStream()
        for name, file in files:
            if chunk := await asyncio.to_thread(archive.add, name, file):
                await response.write(chunk)
        await response.write(archive.end())
        return response

    # --- what the page does -------------------------------------------------

    async def _start(self, request: web.Request) -> web.Response:
        """Start a job and return it at once; the same id again is the same job."""
        new = await read_job(request)
        contents = [*new.images, *([] if new.mask is None else [new.mask])]
        # The task of the job inherits this, so that `Board.observe` knows whose retries it sees.
        token = current_job.set(new.id)
        try:
            async with self._library.keep(contents):
                job = await self.jobs.start(
                    new.prompt,
                    id=new.id,
                    image=new.images or None,
                    mask=new.mask,
                    **new.options,
                )
        finally:
            current_job.reset(token)
        self.board.watch(job.id)
        headers = {"Location": f"{self.root}api/jobs/{job.id}"}
        return _json({"job": self.board.describe(job)}, 202, headers)

    async def _cancel(self, request: web.Request) -> web.Response:
        job = await self.jobs.cancel(request.match_info["id"])
        return _json({"job": self.board.describe(job)})

    async def _delete(self, request: web.Request) -> web.Response:
        # The store first: what fails there must stay on the pages.
        await self.jobs.delete(request.match_info["id"])
        self.board.remove(request.match_info["id"])
        self._library.remove_unused(await self.jobs.list())
        return web.Response(status=204)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


def _page_files() -> list[str]:
    return sorted(path.name for path in _PAGE.iterdir() if path.suffix in _TYPES)


async def _file(request: web.Request) -> web.FileResponse:
    path = _PAGE / (request.path.rpartition("/")[2] or "index.html")
    headers = {"Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8"}
    return web.FileResponse(path, headers=headers)


def _image_response(file: Path) -> web.FileResponse:
    return web.FileResponse(file, headers={**_IMAGE_HEADERS, "Content-Type": type_of(file)})


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        content_type="application/json",
        status=status,
        headers=headers,
    )


def _missing() -> web.HTTPNotFound:
    return web.HTTPNotFound(text="The studio no longer has this image.")


def _rejection(status: int, message: str, kind: str = "Rejected") -> web.Response:
    error = {"message": message, "type": kind, "billing": "not_sent"}
    return _json({"error": error}, status)


def _offer(name: str) -> dict[str, Any] | None:
    """Return what the page offers for a model; None for an unknown one."""
    if (rules := rules_for(name)) is None:
        return None
    sizes = _SIZES if isinstance(rules.sizes, FreeSizes) else rules.sizes
    values = {param: known for param, known in rules.values.items() if param not in rules.absent}
    edits = 0 if rules.edits is None else rules.edits.count
    return {"size": sizes, "n": rules.n, "streams": rules.streams, "edits": edits, **values}
