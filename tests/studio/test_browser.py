"""The studio in a real Chromium, used with mouse, keyboard and touch."""

import asyncio
import base64
import contextlib
import io
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from PIL import Image as Pillow
from PIL import ImageChops, ImageStat

from elkimg_async import AsyncImages, Pricing, TokenPrices
from elkimg_async.jobs import DirectoryStore, ImageJobs
from elkimg_async.local import LocalServer
from elkimg_async.studio.server import serve
from tests.helpers.raw_server import DONE, Piece, RawServer, event, head, response, stream

playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")

from playwright.async_api import Browser, Locator, Page, async_playwright, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: apt-get install chromium"),
]
BUSY = "[aria-busy=true]"
GUARD = 40_000
"""Milliseconds after which a state that does not come fails a test; loaded machines are slow."""

expect.set_options(GUARD)


class Seen(NamedTuple):
    """A page in the browser, its servers, and its errors."""

    page: Page
    url: str
    server: LocalServer
    errors: list[str]

    async def start(self, prompt: str = "An elk at dawn", *, shape: str = "Square") -> Locator:
        """Start a generation; return its card."""
        await self.page.get_by_label("Describe the image").fill(prompt)
        await self.page.get_by_label(shape).check()
        await self.page.get_by_role("button", name="Generate", exact=True).click()
        return self.page.get_by_role("article").first

    async def generate(self, prompt: str = "An elk at dawn", **options: str) -> Locator:
        """Generate; return the finished card."""
        card = await self.start(prompt, **options)
        await expect(card.get_by_role("link", name="Download")).to_be_visible()
        return card

    async def jobs(self) -> list[dict[str, Any]]:
        """Return the studio's jobs, oldest first."""
        jobs = (await self.get("api/jobs")).json()["jobs"]
        assert isinstance(jobs, list)
        return jobs

    async def latest(self) -> Pillow.Image:
        """Return the latest image, as stored by the studio."""
        return Pillow.open(io.BytesIO(await self.content())).convert("RGB")

    async def content(self) -> bytes:
        """Return the bytes of the latest image."""
        job = (await self.jobs())[-1]
        return (await self.get(f"api/jobs/{job['id']}/images/{job['images'][0]['number']}")).content

    async def get(self, path: str) -> httpx.Response:
        """Read from the studio."""
        async with httpx.AsyncClient() as http:
            return await http.get(f"{self.url}/{path}")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as driver:
        options: dict[str, Any] = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        browser = await driver.chromium.launch(**options)
        yield browser
        await browser.close()


@contextlib.asynccontextmanager
async def opened(
    browser: Browser,
    server: LocalServer | RawServer,
    key: str = "key-of-the-browser",
    folder: Path | None = None,
    **options: Any,
) -> AsyncIterator[Seen]:
    """Open the studio in a new window; `options` are those of the window."""
    errors = list[str]()
    settings = {name: options.pop(name) for name in ("retry", "pricing") if name in options}
    client = AsyncImages(key, base_url=server.base_url, **{"retry": 0, **settings})
    async with client, serve(client, port=0, grace=0, folder=folder) as url:
        page = await browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.set_default_timeout(GUARD)
        try:
            await page.goto(url)
            await expect(page.get_by_label("Square")).to_be_visible()
            local = server if isinstance(server, LocalServer) else LocalServer()
            yield Seen(page, url.rstrip("/"), local, errors)
            assert errors == []
        finally:
            await page.close()


@pytest.fixture
async def seen(browser: Browser) -> AsyncIterator[Seen]:
    async with (
        LocalServer(light=True, delay=0.05) as server,
        opened(browser, server, server.api_key) as seen,
    ):
        yield seen


async def colour(frame: Locator) -> tuple[int, ...]:
    """Return the colour in the middle of a screenshot."""
    shot = Pillow.open(io.BytesIO(await frame.screenshot())).convert("RGB")
    found = shot.getpixel((shot.width // 2, shot.height // 2))
    assert isinstance(found, tuple)
    return found


async def until_colour(frame: Locator, wanted: tuple[int, ...]) -> None:
    """Wait until a transition has ended in this colour."""
    with anyio.fail_after(GUARD / 1000):
        while await colour(frame) != wanted:
            await anyio.sleep(0.05)


async def until_box(element: Locator, wanted: Any) -> None:
    """Wait until an element has this place and size, to the pixel."""
    with anyio.fail_after(GUARD / 1000):
        while (await element.bounding_box() or {}) != pytest.approx(wanted, abs=1):
            await anyio.sleep(0.05)


def plain(colour: str, size: tuple[int, int]) -> str:
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def coloured(*events_before: asyncio.Event) -> list[Piece]:
    """Return a stream of a red and a green partial image and a blue final one."""
    size = (1536, 1024)
    pieces: list[Piece] = [head(content_type="text/event-stream", Transfer_Encoding="chunked")]
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("#ff0000", "partial_image", {"partial_image_index": 0}),
        ("#00ff00", "partial_image", {"partial_image_index": 1}),
        ("#0000ff", "completed", {"size": "1536x1024", "usage": {"total_tokens": 1234}}),
    ]
    for index, (name, kind, more) in enumerate(steps):
        fields = {"type": f"image_generation.{kind}", "b64_json": plain(name, size), **more}
        pieces += [*events_before[index : index + 1], chunk(event(fields))]
    return [*pieces, chunk(DONE), b"0\r\n\r\n"]


# --- generating -----------------------------------------------------------------


async def test_generate_in_place(browser: Browser) -> None:
    """Each partial image fades in, then the final one, and nothing on the page moves."""
    events_before = [asyncio.Event() for _ in range(3)]
    async with RawServer(coloured(*events_before)) as server, opened(browser, server) as seen:
        card = await seen.start(shape="Wide")
        frame, below = card.locator(".frame"), card.locator(".facts")
        places = []
        for before, wanted, status in zip(
            events_before,
            [(255, 0, 0), (0, 255, 0), (0, 0, 255)],
            ["Preview 1 of 2", "Preview 2 of 2", "Finished after"],
            strict=True,
        ):
            places.append((await frame.bounding_box(), await below.bounding_box()))
            before.set()
            await until_colour(frame, wanted)
            fade = await frame.locator("img").last.evaluate(
                "i => getComputedStyle(i).animationName"
            )
            assert fade == "appear"
            await expect(seen.page.get_by_role("status").first).to_contain_text(status)
        places.append((await frame.bounding_box(), await below.bounding_box()))
        assert places == places[:1] * 4
        assert places[0][0] is not None
        assert places[0][0]["width"] / places[0][0]["height"] == pytest.approx(1.5, 0.01)
        await expect(frame.locator("img")).to_have_count(1)
        await expect(below).to_contain_text("1536 \u00d7 1024")
        await expect(below).to_contain_text("1,234 tokens")
        await expect(below).to_contain_text(" s ·")


async def test_generate_all_at_once(browser: Browser) -> None:
    """When everything arrives at once, the final image stays."""
    async with RawServer(coloured()) as server, opened(browser, server) as seen:
        card = await seen.generate()
        await until_colour(card.locator(".frame"), (0, 0, 255))
        await expect(card.locator("img")).to_have_count(1)


async def test_generate_several(seen: Seen) -> None:
    """Images of one call share a card, each with its own buttons, and nothing moves."""
    await seen.page.get_by_label("Count").fill("3")
    card = await seen.start()
    place = await card.locator(".facts").bounding_box()
    await expect(card.get_by_role("link", name="Download")).to_have_count(3)
    await expect(card.get_by_role("button", name="Edit", exact=True)).to_have_count(3)
    assert await card.locator(".facts").bounding_box() == place
    names = [
        await link.get_attribute("download")
        for link in await card.get_by_role("link", name="Download").all()
    ]
    assert names == ["an-elk-at-dawn.png", "an-elk-at-dawn-2.png", "an-elk-at-dawn-3.png"]


async def test_generate_with_every_option(seen: Seen) -> None:
    """Each option is sent as chosen, and unchanged ones are not sent."""
    page = seen.page
    await page.get_by_label("Low", exact=True).check()
    await page.get_by_text("More options").click()
    await page.get_by_label("Model", exact=True).select_option("gpt-image-1")
    await page.get_by_label("Previews").fill("3")
    await page.get_by_label("File format").select_option("webp")
    await page.get_by_label("Background").select_option("transparent")
    await page.get_by_label("Moderation").select_option("low")
    await page.get_by_label("Compression").fill("60")
    card = await seen.start(shape="Tall")
    await expect(card.get_by_role("link", name="Download")).to_be_visible()
    assert seen.server.requests[-1].fields == {
        "prompt": "An elk at dawn",
        "model": "gpt-image-1",
        "n": 1,
        "size": "1024x1536",
        "quality": "low",
        "background": "transparent",
        "moderation": "low",
        "output_format": "webp",
        "output_compression": 60,
        "partial_images": 3,
        "stream": True,
    }
    await page.get_by_label("Model", exact=True).select_option("dall-e-3")
    await expect(page.get_by_label("Background")).to_be_hidden()
    await expect(page.get_by_label("Style")).to_be_visible()
    await expect(page.get_by_label("Hd", exact=True)).to_be_visible()


async def test_cancel_and_retry(seen: Seen) -> None:
    """Cancel ends the call at once, and the partial image stays."""
    seen.server.inject("stall-stream=1")
    card = await seen.start()
    await expect(card.locator(BUSY)).to_be_visible()
    await expect(card.locator(".progress")).to_contain_text("Preview 1")
    await card.get_by_role("button", name="Cancel").click()
    await seen.server.wait_disconnected()
    await expect(card).to_contain_text("Cancelled")
    await expect(card).to_contain_text("You may still be charged.")
    await expect(card.locator(".progress")).to_have_text("Unfinished")
    await expect(card.locator("img")).to_be_visible()
    again = card.get_by_role("button", name="Try again")
    await expect(again).to_be_focused()
    await again.click()
    cards = seen.page.get_by_role("article")
    await expect(cards.first.get_by_role("link", name="Download")).to_be_visible()
    await expect(cards).to_have_count(2)
    await expect(cards.last.locator("img")).to_be_visible()
    assert seen.server.generations == 2


@pytest.mark.parametrize(
    ("fault", "title", "advice", "billing"),
    [
        (
            "error=403/insufficient_user_quota",
            "out of credit",
            "Add credit",
            "should not be charged",
        ),
        ("error=400/moderation_blocked", "content policy", "Rephrase", "should not be charged"),
        ("html=502", "image server failed", "Try again", "may still be charged"),
    ],
)
async def test_error(seen: Seen, fault: str, title: str, advice: str, billing: str) -> None:
    """An error says what happened, what to do and whether it costs, to screen readers too."""
    seen.server.inject(fault)
    card = await seen.start()
    for text in (title, advice, billing):
        await expect(card).to_contain_text(text)
        await expect(seen.page.get_by_role("status").first).to_contain_text(text)
    await card.get_by_role("button", name="Remove").click()
    await expect(seen.page.get_by_role("article")).to_have_count(0)
    await expect(seen.page.get_by_text("No images yet")).to_be_visible()


async def test_studio_stopped(browser: Browser, tmp_path: Path) -> None:
    """When the studio has stopped, the page says so; when it is back, the page continues."""
    async with LocalServer(light=True) as server:
        client = AsyncImages(server.api_key, base_url=server.base_url)
        page = await browser.new_page()
        async with client:
            async with serve(client, folder=tmp_path, port=0) as url:
                port = int(url.split(":")[2].partition("/")[0])
                await page.goto(url)
                await expect(page.get_by_label("Square")).to_be_visible()
            await expect(page.locator("#offline")).to_contain_text("not running")
            await page.get_by_label("Describe the image").fill("x")
            await page.keyboard.press("Control+Enter")
            await expect(page.locator("#composer-problem")).to_contain_text("not running")
            async with serve(client, folder=tmp_path, port=port):
                await expect(page.locator("#offline")).to_be_hidden()
                await page.get_by_role("button", name="Generate", exact=True).click()
                await expect(page.get_by_role("link", name="Download").last).to_be_visible()
        await page.close()


# --- spending -----------------------------------------------------------------


async def test_one_job_per_intent(seen: Seen) -> None:
    """A double click, a held key and a held button start one job each."""
    page = seen.page
    await page.get_by_label("Describe the image").fill("Once")
    button = page.get_by_role("button", name="Generate", exact=True)
    await button.dblclick()
    await expect(page.get_by_role("article")).to_have_count(1)
    await page.get_by_label("Describe the image").focus()
    await page.wait_for_timeout(700)
    await page.keyboard.down("Control")
    for _ in range(20):
        await page.keyboard.down("Enter")
    await page.keyboard.up("Enter")
    await page.keyboard.up("Control")
    await expect(page.get_by_role("article")).to_have_count(2)
    await button.focus()
    await page.wait_for_timeout(700)
    for _ in range(40):
        await page.keyboard.down("Enter")
        await page.wait_for_timeout(20)
    await page.keyboard.up("Enter")
    await expect(page.get_by_role("article")).to_have_count(3)
    await expect(page.locator(BUSY)).to_have_count(0)
    assert seen.server.generations == 3


async def test_again_on_several_asks(seen: Seen) -> None:
    """Again on several images asks first; an edit has a count of its own."""
    page = seen.page
    await page.get_by_label("Count").first.fill("4")
    card = await seen.start()
    await expect(card.get_by_role("link", name="Download", exact=True)).to_have_count(4)
    boxes = [await frame.bounding_box() for frame in await card.locator(".frame").all()]
    assert len({box["x"] for box in boxes if box}) == len({box["y"] for box in boxes if box}) == 2
    await card.get_by_role("button", name="Again").click()
    await expect(page.get_by_role("dialog")).to_contain_text("Generate 4 images again?")
    await page.get_by_role("button", name="Cancel").click()
    await page.wait_for_timeout(700)
    assert seen.server.generations == 1
    await card.get_by_role("button", name="Edit", exact=True).first.click()
    await expect(page.locator("#edit-n")).to_have_value("1")
    await page.get_by_label("What should change?").fill("Blue")
    await page.get_by_role("button", name="Apply edit").click()
    await expect(page.get_by_role("article")).to_have_count(2)
    await expect(page.locator(BUSY)).to_have_count(0)
    assert int(seen.server.requests[-1].fields["n"]) == 1


RECORD_PROGRESS = """() => {
  window.shown = [];
  const record = () => {
    for (const node of document.querySelectorAll(".progress")) window.shown.push(node.textContent);
  };
  const everything = { subtree: true, childList: true, characterData: true };
  new MutationObserver(record).observe(document.body, everything);
}"""


async def test_retry_is_shown(browser: Browser) -> None:
    """A retry is shown with its time and number, and the server's words under Details."""
    faults = ["error=429/rate_limit"] * 3
    async with (
        LocalServer(light=True) as server,
        opened(browser, server, server.api_key, retry=2) as seen,
    ):
        server.inject(*faults)
        await seen.page.evaluate(RECORD_PROGRESS)  # since a pause may be short
        card = await seen.start()
        await expect(card).to_contain_text("Too many requests.")
        shown = "\n".join(await seen.page.evaluate("window.shown"))
        assert re.search(r"Retrying in \d+ s \(2 of 3\)", shown)
        assert re.search(r"Retrying in \d+ s \(3 of 3\)", shown)
        await card.get_by_text("Details").click()
        await expect(card.locator(".message")).to_contain_text("Status: 429")


# --- what belongs together ------------------------------------------------------


async def test_two_tabs_agree(browser: Browser, seen: Seen) -> None:
    """What one tab starts, cancels and deletes, the other shows."""
    other = await browser.new_page()
    await other.goto(f"{seen.url}/")
    seen.server.inject("stall-stream=1")
    card = await seen.start()
    twin = other.get_by_role("article").first
    await expect(twin.locator(".progress")).to_contain_text("Preview 1")
    await twin.get_by_role("button", name="Cancel").click()
    await expect(card).to_contain_text("Cancelled")
    await card.get_by_role("button", name="Remove").click()
    await expect(twin).to_have_count(0)
    await other.close()


async def test_reload_while_running(browser: Browser) -> None:
    """A reload in mid-stream loses nothing."""
    async with (
        LocalServer(light=True, delay=0.5) as server,
        opened(browser, server, server.api_key) as seen,
    ):
        await seen.start()
        await seen.page.reload()
        card = seen.page.get_by_role("article").first
        await expect(card.get_by_role("link", name="Download")).to_be_visible()
        assert server.generations == 1


async def test_reuse_and_remember(seen: Seen) -> None:
    """Settings survive a reload; Reuse brings back a prompt with its settings."""
    page = seen.page
    await page.get_by_label("Low", exact=True).check()
    card = await seen.generate("A first one", shape="Tall")
    await page.get_by_label("High", exact=True).check()
    await page.get_by_label("Wide").check()
    await page.get_by_label("Describe the image").fill("A draft")
    await page.reload()
    await expect(page.get_by_label("High", exact=True)).to_be_checked()
    await expect(page.get_by_label("Describe the image")).to_have_value("A draft")
    await card.get_by_role("button", name="Reuse").click()
    await expect(page.get_by_label("Describe the image")).to_have_value("A first one")
    await expect(page.get_by_label("Tall")).to_be_checked()
    await expect(page.get_by_label("Low", exact=True)).to_be_checked()


async def test_variation_and_menu(seen: Seen) -> None:
    """A variation starts from the image and its prompt; Delete asks first."""
    page = seen.page
    card = await seen.generate("A small elk")
    await card.get_by_role("button", name="More", exact=True).click()
    await page.get_by_role("menuitem", name="Create a variation").click()
    await expect(page.get_by_label("What should change?")).to_have_value("A small elk")
    await page.get_by_role("button", name="Generate variation").click()
    await expect(page.get_by_role("link", name="Download", exact=True)).to_have_count(2)
    assert seen.server.requests[-1].path == "/v1/images/edits"
    await page.get_by_role("article").first.get_by_role("button", name="Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("article")).to_have_count(1)


@pytest.mark.parametrize("kind", ["png", "webp"])
async def test_copy_image_and_prompt(seen: Seen, kind: str) -> None:
    """A copied image is pasted as PNG, whatever its format; a copied prompt as text."""
    page = seen.page
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.get_by_text("More options").click()
    await page.get_by_label("File format").select_option(kind)
    card = await seen.generate("A small elk")

    async def copy(name: str, announced: str) -> None:
        await card.get_by_role("button", name="More", exact=True).click()
        await page.get_by_role("menuitem", name=name).click()
        await expect(page.locator("#status")).to_have_text(announced)

    await copy("Copy prompt", "The prompt was copied.")
    assert await page.evaluate("navigator.clipboard.readText()") == "A small elk"
    await copy("Copy image", "The image was copied.")
    pasted = """async () => {
        const [item] = await navigator.clipboard.read();
        const bytes = new Uint8Array(await (await item.getType("image/png")).arrayBuffer());
        return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
    }"""
    copied = Pillow.open(io.BytesIO(base64.b64decode(await page.evaluate(pasted))))
    assert copied.format == "PNG"
    difference = ImageChops.difference(copied.convert("RGB"), await seen.latest())
    assert max(ImageStat.Stat(difference).mean) < (0.01 if kind == "png" else 4)


@pytest.mark.parametrize("reported", [True, False], ids=["by the server", "by a price table"])
async def test_cost_is_shown(browser: Browser, reported: bool) -> None:
    """The cost of an image and of the session is that of the server, or of the user's prices."""
    usage: dict[str, Any] = {"total_tokens": 1100, "input_tokens": 100, "output_tokens": 1000}
    if reported:
        usage |= {"cost": 0.033}
    completed: dict[str, Any] = {
        "type": "image_generation.completed",
        "b64_json": plain("red", (64, 64)),
    }
    completed["usage"] = usage
    prices = TokenPrices(text_input=30, image_input=0, image_output=30)
    pricing = None if reported else Pricing({"gpt-image-1.5": prices})
    reply = stream(event(completed), DONE)
    async with RawServer(reply, reply) as server, opened(browser, server, pricing=pricing) as seen:
        card = await seen.generate()
        await expect(card.locator(".facts")).to_contain_text("1,100 tokens · cost 0.033")
        totals = seen.page.locator("#totals")
        await expect(totals).to_contain_text("1 image · 1,100 tokens · cost 0.033")
        await seen.page.wait_for_timeout(700)
        await seen.generate("Another")
        await expect(totals).to_contain_text("2 images · 2,200 tokens · cost 0.066")


async def test_viewer(seen: Seen) -> None:
    """The viewer turns with the arrow keys, shows the full size, and compares before and after."""
    page = seen.page
    await seen.generate("One")
    await seen.generate("Two", shape="Wide")
    card = page.get_by_role("article").first
    await card.get_by_role("button", name="Edit", exact=True).click()
    await page.get_by_label("What should change?").fill("Three")
    await page.get_by_role("button", name="Apply edit").click()
    await expect(page.get_by_role("article")).to_have_count(3)
    await expect(page.locator(BUSY)).to_have_count(0)
    await card.get_by_role("button", name="View full size").click()
    viewer = page.locator("#viewer")
    for text in ("1 of 3", "2 of 3", "3 of 3"):
        await expect(viewer).to_contain_text(text)
        await page.keyboard.press("ArrowRight")
    await expect(viewer).to_contain_text("One")
    await viewer.get_by_role("button", name="Full size").click()
    box = await page.locator("#viewer-image").bounding_box()
    assert box is not None
    assert box["width"] == 1024
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("ArrowLeft")
    await viewer.get_by_role("button", name="Compare").click()
    await expect(page.get_by_label("Before and after")).to_be_visible()
    for width in (1280, 320):
        await page.set_viewport_size({"width": width, "height": 700})
        after = await page.locator("#viewer-image").bounding_box()
        assert after is not None
        assert after["width"] <= width
        await until_box(page.locator("#viewer-before"), after)
    await page.keyboard.press("Escape")
    await expect(card.get_by_role("button", name="View full size")).to_be_focused()


async def test_forty_images(browser: Browser, tmp_path: Path) -> None:
    """Forty large images load as thumbnails: a page with all of them needs few megabytes."""
    file = io.BytesIO()
    noise = Pillow.effect_noise((128, 128), 60).convert("RGB")
    noise.resize((1024, 1024)).save(file, "png")
    images = [{"b64_json": base64.b64encode(file.getvalue()).decode()}] * 10
    async with RawServer(*[response({"created": 1, "data": images})] * 4) as server:
        async with (
            AsyncImages("key", base_url=server.base_url) as client,
            ImageJobs(client, store=DirectoryStore(tmp_path), keep=None) as jobs,
        ):
            for number in range(4):
                job = await jobs.start(f"Ten elks {number}", n=10)
                assert len(await jobs.result(job.id)) == 10
        window = {"width": 2560, "height": 1440}
        async with opened(browser, server, folder=tmp_path, viewport=window) as seen:
            await expect(seen.page.locator(".frame.finished")).to_have_count(40)
            for frame in await seen.page.locator(".frame.finished").all():
                await frame.scroll_into_view_if_needed()
                await expect(frame.locator("img")).to_have_js_property("complete", True)
            sizes = """() => performance.getEntriesByType('resource')
                .filter(e => e.name.includes('/thumbnails/')).map(e => e.decodedBodySize)"""
            found = await seen.page.evaluate(sizes)
            assert len(found) == 40
            assert sum(found) < 40 * len(file.getvalue()) / 4


# --- storing ----------------------------------------------------------------


async def test_reload(seen: Seen) -> None:
    """After a reload each image has its prompt, time, tokens and buttons."""
    await seen.generate("A first one", shape="Tall")
    await seen.generate("A second one")
    with_tokens = seen.page.locator(".facts", has_text="tokens")
    await expect(with_tokens).to_have_count(2)
    facts = await with_tokens.all_inner_texts()
    await seen.page.reload()
    cards = seen.page.get_by_role("article")
    await expect(cards).to_have_count(2)
    await expect(cards.first).to_contain_text("A second one")
    await expect(with_tokens).to_have_count(2)
    shown = await with_tokens.all_inner_texts()
    assert [text.split("·")[::2] for text in shown] == [text.split("·")[::2] for text in facts]
    for image in await cards.locator("img").all():
        assert (
            await image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1024
        )
    await cards.last.get_by_role("button", name="Again").click()
    await expect(cards).to_have_count(3)
    await expect(seen.page.locator(BUSY)).to_have_count(0)
    assert seen.server.requests[-1].fields["prompt"] == "A first one"


@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
async def test_download(seen: Seen, kind: str, ending: str) -> None:
    """A download has a name from the prompt, the right extension, and the bytes of the image."""
    await seen.page.get_by_text("More options").click()
    await seen.page.get_by_label("File format").select_option(kind)
    card = await seen.generate("Zwei Elche, am Morgen!")
    for again in (False, True):
        if again:
            await seen.page.reload()
        async with seen.page.expect_download() as waiting:
            await card.get_by_role("link", name="Download").click()
        download = await waiting.value
        assert download.suggested_filename == f"zwei-elche-am-morgen.{ending}"
        content = await anyio.Path(await download.path()).read_bytes()
        assert content == await seen.content()
        assert Pillow.open(io.BytesIO(content)).format == kind.upper()


# --- editing ----------------------------------------------------------------


async def draw(page: Page) -> None:
    """Draw a stroke through the upper half of the image."""
    mask = page.locator("#mask")
    await expect(mask).to_be_visible()
    box = await mask.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] * 0.25
    await page.mouse.move(box["x"] + box["width"] * 0.2, y)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=10)
    await page.mouse.up()


async def test_edit_with_drawn_mask(seen: Seen) -> None:
    """The selected area changes, and every other pixel stays."""
    page = seen.page
    card = await seen.generate()
    before = await seen.latest()
    await card.get_by_role("button", name="Edit", exact=True).click()
    selection = page.locator("#selected")
    await expect(selection).to_contain_text("Nothing is selected")
    await draw(page)
    await draw(page)
    await expect(selection).to_contain_text("% of the image is selected")
    await page.get_by_role("button", name="Undo").click()
    await page.get_by_label("What should change?").fill("A red scarf")
    await page.get_by_role("button", name="Apply edit").click()
    await expect(page.locator("#editor")).to_be_hidden()
    edited = page.get_by_role("article").first
    await expect(edited).to_contain_text("A red scarf")
    await expect(edited.get_by_role("link", name="Download")).to_be_visible()
    after = await seen.latest()
    assert after.size == before.size
    assert after.getpixel((512, 256)) != before.getpixel((512, 256))
    lower = (0, 400, 1024, 1024)
    assert after.crop(lower).tobytes() == before.crop(lower).tobytes()
    assert seen.server.requests[-1].path == "/v1/images/edits"
    await edited.get_by_role("button", name="Again").click()
    await expect(page.get_by_role("article")).to_have_count(3)
    await expect(page.locator(BUSY)).to_have_count(0)
    assert len(await seen.jobs()) == 3


async def test_edit_selection_cleared(seen: Seen) -> None:
    """Undo removes the last stroke, Clear all of them, and closing sends nothing."""
    page = seen.page
    card = await seen.generate()
    await card.get_by_role("button", name="Edit", exact=True).click()
    selection = page.locator("#selected")
    await page.get_by_role("button", name="Select all").click()
    await expect(selection).to_contain_text("100%")
    await draw(page)
    await page.get_by_role("button", name="Undo").click()
    await expect(selection).to_contain_text("100%")
    await page.get_by_role("button", name="Clear").click()
    await expect(selection).to_contain_text("Nothing is selected")
    await expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    await page.keyboard.press("Escape")
    await expect(page.locator("#editor")).to_be_hidden()
    assert seen.server.generations == 1


async def test_edit_own_image(seen: Seen) -> None:
    """An image from the disk can be edited and keeps its aspect ratio."""
    file = io.BytesIO()
    Pillow.new("RGB", (300, 200), "red").save(file, "png")
    page = seen.page
    image: Any = {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}
    await page.get_by_label("Your own image").set_input_files(image)
    await page.get_by_label("What should change?").fill("Make it blue")
    await page.keyboard.press("Control+Enter")
    frame = page.get_by_role("article").locator(".frame")
    await expect(frame).to_be_visible()
    await expect(frame).to_have_css("aspect-ratio", "300 / 200")
    await expect(page.get_by_role("link", name="Download")).to_be_visible()


async def test_edit_not_an_image(seen: Seen) -> None:
    """A file that is not an image is an error, and nothing is sent."""
    file: Any = {"name": "mine.png", "mimeType": "image/png", "buffer": b"not an image"}
    await seen.page.get_by_label("Your own image").set_input_files(file)
    await expect(seen.page.get_by_role("dialog")).to_contain_text("not an image")
    await seen.page.get_by_role("button", name="OK", exact=True).click()
    await expect(seen.page.locator("#editor")).to_be_hidden()
    assert not seen.server.generations


async def test_editor_keeps_draft(seen: Seen) -> None:
    """Prompt, mask and references are still there after the editor was closed."""
    page = seen.page
    card = await seen.generate()
    edit = card.get_by_role("button", name="Edit", exact=True)
    await edit.click()
    await draw(page)
    await page.get_by_label("What should change?").fill("A red scarf")
    extra: Any = {
        "name": "b.png",
        "mimeType": "image/png",
        "buffer": base64.b64decode(plain("red", (64, 64))),
    }
    await page.locator("#reference-files").set_input_files(extra)
    await expect(page.get_by_role("img", name="b.png")).to_be_visible()
    selected = await page.locator("#selected").inner_text()
    await page.keyboard.press("Escape")
    await edit.click()
    await expect(page.get_by_label("What should change?")).to_have_value("A red scarf")
    await expect(page.locator("#selected")).to_have_text(selected)
    await page.get_by_label("Fidelity").select_option("high")
    await page.get_by_role("button", name="Apply edit").click()
    await expect(page.get_by_role("article")).to_have_count(2)
    await expect(page.locator(BUSY)).to_have_count(0)
    [_, job] = await seen.jobs()
    assert [each["param"] for each in job["inputs"]] == ["image", "image", "mask"]
    assert job["parameters"]["input_fidelity"] == "high"


async def test_editor_erases_and_zooms(seen: Seen) -> None:
    """The eraser removes what the brush selected, also while a very wide image is enlarged."""
    page = seen.page
    file: Any = {
        "name": "wide.png",
        "mimeType": "image/png",
        "buffer": base64.b64decode(plain("red", (4000, 200))),
    }
    await page.get_by_label("Your own image").set_input_files(file)
    selection = page.locator("#selected")
    await draw(page)
    await expect(selection).to_contain_text("is selected")
    await page.get_by_label("Eraser").check()
    await page.get_by_label("Brush size").fill("100")
    await draw(page)
    await expect(selection).to_contain_text("Nothing is selected")
    await page.get_by_label("Brush", exact=True).check()
    await page.get_by_label("Brush size").fill("20")
    for _ in range(6):
        await page.get_by_role("button", name="Zoom in").click()
    box = await page.locator("#viewport").bounding_box()
    assert box is not None
    await page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    await expect(selection).to_contain_text("1% of the image")
    cursor = await page.locator("#brush-cursor").bounding_box()
    image = await page.locator("#mask").bounding_box()
    assert cursor is not None
    assert image is not None
    assert cursor["width"] == pytest.approx(0.2 * image["height"], abs=4)


async def test_editor_pinch(browser: Browser) -> None:
    """Two fingers zoom and move the image, and what the first one has drawn before is removed."""
    window: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
    async with LocalServer() as server, opened(browser, server, **window) as seen:
        page = seen.page
        image: Any = {"name": "a.png", "mimeType": "image/png"}
        image["buffer"] = base64.b64decode(plain("red", (600, 600)))
        await page.get_by_label("Your own image").set_input_files(image)
        viewport = page.locator("#viewport")
        await expect(viewport).to_have_attribute("data-scale", "1.00")
        box = await viewport.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        devtools = await page.context.new_cdp_session(page)

        async def touch(kind: str, *fingers: float) -> None:
            points = [{"x": x + each, "y": y, "id": finger} for finger, each in enumerate(fingers)]
            event = {"type": f"touch{kind}", "touchPoints": points}
            await devtools.send("Input.dispatchTouchEvent", event)

        await touch("Start", -30)
        await touch("Move", -40)
        await touch("Start", -40, 40)
        for step in range(1, 9):
            await touch("Move", -40 - 5 * step, 40 + 5 * step)
        await touch("End")
        await expect(viewport).to_have_attribute("data-scale", re.compile(r"^(1\.9|2\.0)"))
        await expect(page.locator("#selected")).to_contain_text("Nothing is selected")
        stage = await page.locator("#stage").bounding_box()
        assert stage is not None
        assert stage["x"] + stage["width"] / 2 == pytest.approx(x, abs=12)
        await touch("Start", 0)
        await touch("Move", 20)
        await touch("End")
        await expect(page.locator("#selected")).to_contain_text("of the image is selected")


async def test_paste_and_drop(seen: Seen) -> None:
    """An image that is pasted or dropped opens in the editor."""
    page = seen.page
    script = """([kind, base64]) => {
        const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "mine.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        const event = kind === "paste"
            ? new ClipboardEvent("paste", { ...options, clipboardData: data })
            : new DragEvent("drop", { ...options, dataTransfer: data });
        document.body.dispatchEvent(event);
    }"""
    for kind in ("paste", "drop"):
        await page.evaluate(script, [kind, plain("red", (64, 48))])
        await expect(page.locator("#editor")).to_be_visible()
        await page.keyboard.press("Escape")


# --- accessibility ----------------------------------------------------------


async def test_keyboard(seen: Seen) -> None:
    """Generating, viewing and editing work without a mouse."""
    page, press = seen.page, seen.page.keyboard.press

    async def tab_to(locator: Locator, limit: int = 25) -> None:
        for _ in range(limit):
            await press("Tab")
            if await locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"Tab does not reach {locator}")

    await press("Tab")
    await expect(page.get_by_role("link", name="Skip to images")).to_be_focused()
    await press("Tab")
    await page.keyboard.type("An elk")
    await press("Tab")
    await press("ArrowRight")
    await expect(page.get_by_label("Wide")).to_be_checked()
    await tab_to(page.get_by_role("button", name="Generate", exact=True))
    await press("Enter")
    card = page.get_by_role("article").first
    await expect(card.get_by_role("link", name="Download")).to_be_visible()
    before = await seen.latest()

    larger = card.get_by_role("button", name="View full size")
    await tab_to(larger)
    await press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await press("Escape")
    await expect(larger).to_be_focused()

    await tab_to(card.get_by_role("button", name="Edit", exact=True))
    await press("Enter")
    await expect(page.get_by_label("What should change?")).to_be_focused()
    await page.keyboard.type("A moon")
    await tab_to(page.get_by_text("Select a rectangle"))
    await press("Enter")
    for name, value in (("Left", "0"), ("Top", "0"), ("Width", "50"), ("Height", "50")):
        await tab_to(page.get_by_label(name, exact=True), 1)
        await page.keyboard.type(value)
    await tab_to(page.get_by_role("button", name="Select", exact=True), 1)
    await press("Enter")
    await expect(page.locator("#selected")).to_contain_text("25% of the image")
    await tab_to(page.get_by_role("button", name="Apply edit"))
    await press("Enter")
    await expect(page.get_by_role("link", name="Download")).to_have_count(2)
    after = await seen.latest()
    right = (after.width // 2 + 8, 0, after.width, after.height)
    assert after.crop(right).tobytes() == before.crop(right).tobytes()
    assert after.tobytes() != before.tobytes()


@pytest.mark.parametrize("width", [320, 390])
async def test_phone(browser: Browser, width: int) -> None:
    """On a phone nothing overflows the screen, and the header keeps its lines."""
    window: dict[str, Any] = {
        "viewport": {"width": width, "height": 844},
        "is_mobile": True,
        "has_touch": True,
    }
    async with (
        LocalServer(light=True) as server,
        opened(browser, server, server.api_key, **window) as seen,
    ):
        page = seen.page

        async def check_width() -> None:
            assert await page.evaluate("document.documentElement.scrollWidth") == width
            wide = """width => [...document.querySelectorAll('dialog[open], .top, main *')]
                .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > width + 0.5)
                .map(e => e.outerHTML.slice(0, 80))"""
            assert await page.evaluate(wide, width) == []

        await check_width()
        await page.get_by_text("More options").tap()
        await check_width()
        card = await seen.generate("A" * 300)
        await expect(card).to_be_in_viewport()
        await check_width()
        title, named, totals = await page.evaluate(
            "['h1', '#server', '#totals'].map(e => document.querySelector(e))"
            ".map(e => e.getBoundingClientRect()).map(e => [e.top, e.bottom])"
        )
        assert title[0] < named[0] < named[1] < title[1] < totals[0]
        assert totals[1] - totals[0] == pytest.approx(named[1] - named[0])
        await card.get_by_role("button", name="More", exact=True).tap()
        menu = page.get_by_role("menu")
        await expect(menu).to_be_visible()
        await page.set_viewport_size({"width": 844, "height": width})
        await expect(menu).to_be_hidden()
        await page.set_viewport_size({"width": width, "height": 844})
        await check_width()
        await card.get_by_role("button", name="Edit", exact=True).tap()
        await page.get_by_text("Select a rectangle").tap()
        await check_width()
        small = """[...document.querySelectorAll('dialog[open] button, dialog[open] input')]
            .filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 32)
            .map(e => e.id)"""
        assert await page.evaluate(small) == []
        await page.locator("#mask").tap()
        await expect(page.locator("#selected")).to_contain_text("is selected")


async def test_dark_and_reduced_motion(seen: Seen) -> None:
    """The page follows the colour scheme and the reduced motion setting of the system."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await seen.page.evaluate(ground)
    await seen.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    dark = await seen.page.evaluate(ground)
    assert sum(map(int, light[4:-1].split(","))) > 600
    assert sum(map(int, dark[4:-1].split(","))) < 150
    await seen.generate()
    assert await seen.page.evaluate("document.getAnimations().length") == 0


async def test_accessibility_rules(seen: Seen) -> None:
    """axe-core finds no violation in any state of the page, in light and dark."""
    axe = pytest.importorskip("axe_playwright_python.async_playwright").Axe()
    schemes: tuple[Any, ...] = ("light", "dark")

    async def check(state: str) -> None:
        for scheme in schemes:
            await seen.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found = await axe.run(seen.page)
            wrong = [
                (problem["id"], [node["html"][:120] for node in problem["nodes"]])
                for problem in found.response["violations"]
            ]
            assert (state, scheme, wrong) == (state, scheme, [])

    await seen.page.get_by_text("More options").click()
    await check("empty")
    seen.server.inject("stall-stream=1")
    card = await seen.start("One in progress")
    await expect(card.locator(".progress")).to_contain_text("Preview 1")
    await check("in progress")
    await card.get_by_role("button", name="Cancel").click()
    await check("failed")
    card = await seen.generate()
    await check("finished")
    await card.get_by_role("button", name="View full size").click()
    await check("viewer")
    await seen.page.keyboard.press("Escape")
    await card.get_by_role("button", name="Edit", exact=True).click()
    await seen.page.get_by_text("Select a rectangle").click()
    await seen.page.get_by_role("button", name="Select all").click()
    await check("editor")


# --- security -----------------------------------------------------------------


async def test_page_other_site(browser: Browser, seen: Seen) -> None:
    """A page of another origin can neither generate nor read or frame images."""
    await seen.generate()
    generations = seen.server.generations
    other = await browser.new_page()
    await other.goto(seen.server.base_url.removesuffix("/v1"))
    attempt = """async ([url, mode, headers]) => {
        const body = JSON.stringify({ id: crypto.randomUUID(), request: { prompt: "other" } });
        try {
            const options = { method: "POST", mode, headers, body };
            const reply = await fetch(`${url}/api/jobs`, options);
            return reply.type === "opaque" ? "opaque" : await reply.text();
        } catch { return "blocked"; }
    }"""
    own = {"X-Elkimg-Studio": "1", "Content-Type": "application/json"}
    assert await other.evaluate(attempt, [seen.url, "cors", own]) == "blocked"
    assert await other.evaluate(attempt, [seen.url, "cors", {}]) == "blocked"
    assert await other.evaluate(attempt, [seen.url, "no-cors", {}]) in ("blocked", "opaque")
    [job] = await seen.jobs()
    load = """url => new Promise(done => {
        const image = new Image();
        image.onload = () => done("shown");
        image.onerror = () => done("blocked");
        image.src = url;
    })"""
    assert (
        await other.evaluate(
            load, f"{seen.url}/api/jobs/{job['id']}/images/{job['images'][0]['number']}"
        )
        == "blocked"
    )
    assert seen.server.generations == generations
    await other.close()
