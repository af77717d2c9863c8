"""`elkimg.js` and `<elk-image>` in a real Chromium, over a real backend."""

import asyncio
import base64
import contextlib
import random
import shutil
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastapi
import pytest
from fastapi.responses import HTMLResponse, Response

from elkimg_async import AsyncImages, web
from elkimg_async.jobs import ImageJobs
from elkimg_async.local import LocalServer
from tests.helpers.jobs import COMPLETED, partial
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    End,
    RawServer,
    event,
    open_stream,
    response,
)
from tests.helpers.relays import on_uvicorn

playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")

from playwright.async_api import Browser, Page, async_playwright, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EXAMPLE = Path(__file__).parent / "example"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: apt-get install chromium"),
]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium without a window."""
    async with async_playwright() as driver:
        options: dict[str, Any] = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = await driver.chromium.launch(**options)
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A new page that must not complain."""
    page = await browser.new_page()
    complaints = list[str]()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(15_000)
    yield page
    await page.close()
    assert complaints == []


class Proxy:
    """A connection between browser and backend that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = set[asyncio.StreamWriter]()
        self._tasks = set[asyncio.Task[None]]()
        self.port = 0

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._open:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Proxy"]:
        """Forward connections within the block."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, outer}
        for source, target in ((reader, outer), (inner, writer)):
            task = asyncio.create_task(_copy(source, target))
            self._tasks.add(task)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(65536):
            target.write(chunk)
            await target.drain()
    target.transport.abort()


@contextlib.asynccontextmanager
async def example(
    server: LocalServer | RawServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[int]:
    """The backend of the README in a folder with its page; yields its port."""
    api_key = server.api_key if isinstance(server, LocalServer) else API_KEY
    monkeypatch.setenv("ELKAPI_API_KEY", api_key)
    monkeypatch.setenv("ELKAPI_BASE_URL", server.base_url)
    shutil.copy(EXAMPLE / "page.html", folder)
    monkeypatch.chdir(folder)
    module: Any = types.ModuleType("example_app")  # a text file, since its lines are the README's
    exec(compile((EXAMPLE / "app.txt").read_text(), "app.py", "exec"), module.__dict__)
    async with on_uvicorn(module.app) as port:
        yield port


async def request_image(page: Page, port: int, prompt: str = "a red fox") -> None:
    """Open the page and request an image."""
    await page.goto(f"http://127.0.0.1:{port}/")
    await page.get_by_label("Prompt").fill(prompt)
    await page.get_by_role("button", name="Generate").click()


async def width(page: Page) -> int:
    """The pixels of the image that is shown."""
    found: int = await page.locator("img").evaluate(
        "img => img.decode().then(() => img.naturalWidth)"
    )
    return found


async def test_example_shows_an_image(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty lines of page and twenty of backend generate one image."""
    for name in ("page.html", "app.txt"):
        lines = (EXAMPLE / name).read_text().splitlines()
        assert len([line for line in lines if line]) <= 21
    async with (
        LocalServer(light=True, delay=0.05) as server,
        example(server, tmp_path, monkeypatch) as port,
    ):
        await request_image(page, port)
        await expect(page.get_by_role("status")).to_have_text("Ready")
        assert await width(page) > 0
        assert server.generations == 1


async def test_example_resumes_a_dropped_connection(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks in the middle is resumed, and nothing is generated again."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    async with (
        RawServer([head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]) as raw_server,
        example(raw_server, tmp_path, monkeypatch) as port,
        Proxy(port).listening() as proxy,
    ):
        await request_image(page, proxy.port)
        await expect(page.get_by_role("status")).to_have_text("Preview")
        for _ in range(2):
            proxy.cut()
            await asyncio.sleep(0.1)
        finish.set()
        await expect(page.get_by_role("status")).to_have_text("Ready")
        assert len(raw_server.requests) == 1


async def test_example_distinguishes_errors(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the API reports is shown; a backend that is gone is a connection error."""
    said = {"error": {"message": "That style does not exist.", "code": "bad_style"}}
    async with RawServer(response(said, status=400)) as raw_server:
        async with example(raw_server, tmp_path, monkeypatch) as port:
            await request_image(page, port)
            await expect(page.get_by_role("status")).to_contain_text("That style does not exist.")
        await page.get_by_role("button", name="Generate").click()
        await expect(page.get_by_role("status")).to_have_text("Check your connection.")


async def test_plain_stream_is_not_resumed(page: Page) -> None:
    """Where another request would generate again, a broken connection is an error."""
    app = fastapi.FastAPI()
    app.get("/")(lambda: HTMLResponse("<title>x</title>"))
    app.get("/elkimg.js")(lambda: Response(web.javascript(), media_type="text/javascript"))
    async with (
        RawServer([*open_stream(event(partial(0))), End.HOLD]) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
    ):

        @app.get("/stream")
        async def stream() -> Response:
            return web.starlette_response(client.generate("an elk", stream=True))

        async with on_uvicorn(app) as port, Proxy(port).listening() as proxy:
            await page.goto(f"http://127.0.0.1:{proxy.port}/")
            reading = asyncio.create_task(
                page.evaluate(
                    """async () => {
                        const { images } = await import("/elkimg.js");
                        try {
                            for await (const event of images("/stream"))
                                globalThis.seen = event.type;
                        } catch (error) { return error.name; }
                    }"""
                )
            )
            await page.wait_for_function("globalThis.seen")
            proxy.cut()
            assert await reading == "ConnectionError"
            assert len(raw_server.requests) == 1


async def test_element_previews_finishes_and_cancels_by_keyboard(page: Page) -> None:
    """The element shows previews, says so, and its button works with the keyboard."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    first = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    app = fastapi.FastAPI()
    app.get("/elkimg.js")(lambda: Response(web.javascript(), media_type="text/javascript"))

    @app.get("/")
    async def html() -> HTMLResponse:
        return HTMLResponse(
            '<!doctype html><html lang="en"><title>Elk</title>'
            '<script type="module" src="/elkimg.js"></script>'
            '<main><h1>Elk</h1><elk-image src="/images/one" alt="An elk"></elk-image></main>'
        )

    async with (
        RawServer(first, [head, chunks[0], End.HOLD]) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
        ImageJobs(client) as jobs,
    ):

        @app.get("/images/{id}")
        async def show(id: str, request: fastapi.Request) -> Response:
            await jobs.start("an elk", id=id)
            return web.starlette_response(jobs.events(id, request.headers.get("last-event-id")))

        @app.delete("/images/{id}")
        async def cancel(id: str) -> None:
            await jobs.cancel(id)

        async with on_uvicorn(app) as port:
            await page.goto(f"http://127.0.0.1:{port}/")
            element = page.locator("elk-image")
            await expect(element).to_have_attribute("state", "preview")
            await expect(element).to_have_attribute("aria-busy", "true")
            await expect(page.get_by_role("status")).to_have_text("Preview 1")
            await expect(page.get_by_role("progressbar", name="Generating image")).to_be_visible()
            finish.set()
            await expect(element).to_have_attribute("state", "done")
            await expect(page.get_by_role("img", name="An elk")).to_have_count(1)
            await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
            await element.evaluate("(element) => { element.setAttribute('src', '/images/two') }")
            await expect(element).to_have_attribute("state", "preview")
            await page.keyboard.press("Tab")
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("status")).to_have_text("Cancelled.")
            await expect(page.get_by_role("status")).to_be_focused()
            await raw_server.wait_disconnected()
            assert (await jobs.get("two")).state == "cancelled"


@contextlib.asynccontextmanager
async def gallery(jobs: ImageJobs) -> AsyncIterator[int]:
    """A backend whose page `/ID` shows the image of a job in an element; yields its port."""
    app = fastapi.FastAPI()
    app.get("/elkimg.js")(lambda: Response(web.javascript(), media_type="text/javascript"))

    @app.get("/{id}")
    async def html(id: str) -> HTMLResponse:
        return HTMLResponse(
            '<!doctype html><html lang="en"><title>Elk</title>'
            '<script type="module" src="/elkimg.js"></script>'
            f'<elk-image src="/images/{id}" alt="An elk"></elk-image>'
        )

    @app.get("/images/{id}")
    async def show(id: str, request: fastapi.Request) -> Response:
        await jobs.start(f"elk {id}", id=id, partial_images=2)
        return web.starlette_response(jobs.events(id, request.headers.get("last-event-id")))

    async with on_uvicorn(app) as port:
        yield port


async def visit_until_done(browser: Browser, port: int, id: str, chance: random.Random) -> bytes:
    """Leave and come back at random moments; return the image that the page shows in the end."""
    async with Proxy(port).listening() as proxy:
        context = await browser.new_context()
        page = await context.new_page()
        for leave in chance.choices(["close", "navigate", "reload", "lose the connection"], k=5):
            if page.url == "about:blank":
                await page.goto(f"http://127.0.0.1:{proxy.port}/{id}")
            await asyncio.sleep(chance.uniform(0, 0.7))
            if leave == "close":
                await page.close()
                page = await context.new_page()
            elif leave == "navigate":
                await page.goto("about:blank")
            elif leave == "reload":
                await page.reload()
            else:
                proxy.cut()
            await asyncio.sleep(chance.uniform(0, 0.7))
        if page.url == "about:blank":
            await page.goto(f"http://127.0.0.1:{proxy.port}/{id}")
        await expect(page.locator("elk-image")).to_have_attribute("state", "done", timeout=60_000)
        assert await width(page) > 0
        source = await page.locator("img").get_attribute("src")
        await context.close()
    assert source is not None
    return base64.b64decode(source.partition(",")[2])


@pytest.mark.timeout(240)
async def test_twenty_browsers_that_leave_and_return(browser: Browser) -> None:
    """Each of twenty ids is generated once, and each browser shows its image in the end."""
    ids, chance = [f"job-{number}" for number in range(20)], random.Random(20)
    async with (
        LocalServer(light=True, delay=1.0) as server,
        AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client,
        ImageJobs(client) as jobs,
        gallery(jobs) as port,
    ):
        shown = await asyncio.gather(
            *(visit_until_done(browser, port, name, chance) for name in ids)
        )
        images = [(await jobs.result(name))[0].content for name in ids]
        assert sorted(job.id for job in await jobs.list()) == sorted(ids)
        assert server.generations == len(ids)
    assert shown == images


async def test_signal_leaves_the_job_running(page: Page) -> None:
    """Aborting ends the iteration with the signal's reason; the job continues."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    reply = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(reply) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
        ImageJobs(client) as jobs,
        gallery(jobs) as port,
    ):
        await page.goto(f"http://127.0.0.1:{port}/elkimg.js")
        name = await page.evaluate(
            """async () => {
                const { images } = await import("/elkimg.js");
                const aborting = new AbortController();
                try {
                    for await (const event of images("/images/one", { signal: aborting.signal }))
                        aborting.abort();
                } catch (error) { return error.name; }
            }"""
        )
        assert name == "AbortError"
        finish.set()
        assert (await jobs.result("one"))[0].content == PNG
        assert len(raw_server.requests) == 1


async def test_element_shows_errors(page: Page) -> None:
    """The element shows and announces the server's message, and is no longer busy."""
    body = {"error": {"message": "That style does not exist.", "code": "bad_style"}}
    async with (
        RawServer(response(body, status=400)) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
        ImageJobs(client) as jobs,
        gallery(jobs) as port,
    ):
        await page.goto(f"http://127.0.0.1:{port}/one")
        element = page.locator("elk-image")
        await expect(element).to_have_attribute("state", "error")
        await expect(element).to_have_attribute("aria-busy", "false")
        await expect(page.get_by_role("status")).to_contain_text("That style does not exist.")
        await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


async def test_element_in_the_page_requests_its_image_once(page: Page) -> None:
    """An element that is in the page before the module has loaded sends one request."""
    async with (
        RawServer([*open_stream(event(COMPLETED), DONE), b"0\r\n\r\n"]) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
        ImageJobs(client) as jobs,
        gallery(jobs) as port,
    ):
        requested = list[str]()
        page.on("request", lambda request: requested.append(request.url))
        await page.goto(f"http://127.0.0.1:{port}/one")
        await expect(page.locator("elk-image")).to_have_attribute("state", "done")
        assert requested.count(f"http://127.0.0.1:{port}/images/one") == 1
