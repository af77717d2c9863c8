"""The studio in a real Chromium, used with mouse, keyboard and touch."""

import asyncio
import base64
import contextlib
import io
import shutil
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio
import pytest
from PIL import Image as Pillow

from elkimg_async import AsyncImages
from elkimg_async.local import LocalServer
from elkimg_async.studio.server import Gallery, serve
from tests.helpers.raw_server import DONE, End, Piece, RawServer, event, head

playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")

from playwright.async_api import Browser, Locator, Page, async_playwright, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: apt-get install chromium"),
]
BUSY = "[aria-busy=true]"


class Seen(NamedTuple):
    """A page in the browser, its servers, and its errors."""

    page: Page
    url: str
    server: LocalServer
    gallery: Gallery
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
        await expect(card.get_by_role("link", name="Download")).to_be_visible(timeout=15_000)
        return card

    def latest(self) -> Pillow.Image:
        """The latest image, as stored by the studio."""
        [image] = [*self.gallery.calls.values()][-1].images
        return Pillow.open(io.BytesIO(image)).convert("RGB")


@pytest.fixture(scope="module")
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
    **options: Any,
) -> AsyncIterator[Seen]:
    """Open the studio in a new window; `options` are those of the window."""
    gallery, errors = Gallery(), list[str]()
    client = AsyncImages(key, base_url=server.base_url, retry=0)
    async with client, serve(client, gallery=gallery) as url:
        page = await browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text))
        page.set_default_timeout(10_000)
        try:
            await page.goto(url)
            await expect(page.get_by_label("Square")).to_be_visible()
            local = server if isinstance(server, LocalServer) else LocalServer()
            yield Seen(page, url.rstrip("/"), local, gallery, errors)
            assert errors == []
        finally:
            await page.close()


@pytest.fixture
async def seen(browser: Browser) -> AsyncIterator[Seen]:
    async with LocalServer(light=True) as server, opened(browser, server, server.api_key) as seen:
        yield seen


async def colour(frame: Locator) -> tuple[int, ...]:
    """Return the colour in the middle of a screenshot."""
    shot = Pillow.open(io.BytesIO(await frame.screenshot())).convert("RGB")
    found = shot.getpixel((shot.width // 2, shot.height // 2))
    assert isinstance(found, tuple)
    return found


async def until_colour(frame: Locator, wanted: tuple[int, ...]) -> None:
    """Wait until a transition has ended in this colour."""
    with anyio.fail_after(5):
        while await colour(frame) != wanted:
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
    await expect(card.get_by_role("button", name="Edit")).to_have_count(3)
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
    """Cancel ends the call within a second; Try again repeats it in its card."""
    seen.server.inject("stall-stream=1")
    card = await seen.start()
    await expect(card.locator(BUSY)).to_be_visible()
    await expect(card.locator(".progress")).to_contain_text("Preview 1")
    await card.get_by_role("button", name="Cancel").click()
    with anyio.fail_after(1.5):
        await seen.server.wait_disconnected()
    await expect(card).to_contain_text("Cancelled")
    await expect(card).to_contain_text("You may still be charged.")
    again = card.get_by_role("button", name="Try again")
    await expect(again).to_be_focused()
    await again.click()
    await expect(card.get_by_role("link", name="Download")).to_be_visible()
    await expect(seen.page.get_by_role("article")).to_have_count(1)
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


async def test_studio_stopped(browser: Browser) -> None:
    """When the studio has stopped, the page says so."""
    async with RawServer([head(content_type="text/event-stream"), End.HOLD]) as server:
        client = AsyncImages("key", base_url=server.base_url)
        page = await browser.new_page()
        async with client:
            async with serve(client) as url:
                await page.goto(url)
                await page.get_by_label("Describe the image").fill("x")
                await page.keyboard.press("Control+Enter")
                await server.wait_until(lambda: bool(server.requests))
            await expect(page.get_by_role("article")).to_contain_text("not running")
        await page.close()


# --- storing ----------------------------------------------------------------


async def test_reload(seen: Seen) -> None:
    """After a reload each image has its prompt, time, tokens and buttons."""
    await seen.generate("A first one", shape="Tall")
    await seen.generate("A second one")
    facts = await seen.page.locator(".facts").all_inner_texts()
    await seen.page.reload()
    cards = seen.page.get_by_role("article")
    await expect(cards).to_have_count(2)
    await expect(cards.first).to_contain_text("A second one")
    shown = await seen.page.locator(".facts").all_inner_texts()
    assert [text.split("·")[::2] for text in shown] == [text.split("·")[::2] for text in facts]
    for image in await cards.locator("img").all():
        assert (
            await image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1024
        )
    await cards.last.get_by_role("button", name="Generate again").click()
    await expect(cards).to_have_count(3)
    await expect(seen.page.locator(BUSY)).to_have_count(0)
    assert seen.server.requests[-1].fields["prompt"] == "A first one"


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a reload"])
@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
async def test_download(seen: Seen, again: bool, kind: str, ending: str) -> None:
    """A download has a name from the prompt, the right extension, and the bytes of the image."""
    await seen.page.get_by_text("More options").click()
    await seen.page.get_by_label("File format").select_option(kind)
    card = await seen.generate("Zwei Elche, am Morgen!")
    if again:
        await seen.page.reload()
    async with seen.page.expect_download() as waiting:
        await card.get_by_role("link", name="Download").click()
    download = await waiting.value
    assert download.suggested_filename == f"zwei-elche-am-morgen.{ending}"
    [entry] = seen.gallery.calls.values()
    content = await anyio.Path(await download.path()).read_bytes()
    assert content == entry.images[0]
    assert Pillow.open(io.BytesIO(content)).format == kind.upper()


# --- editing ----------------------------------------------------------------


async def draw(page: Page) -> None:
    """Draw a stroke through the upper half of the image."""
    box = await page.locator("#mask").bounding_box()
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
    before = seen.latest()
    await card.get_by_role("button", name="Edit").click()
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
    await expect(edited.get_by_role("link", name="Download")).to_be_visible(timeout=15_000)
    after = seen.latest()
    assert after.size == before.size
    assert after.getpixel((512, 256)) != before.getpixel((512, 256))
    lower = (0, 400, 1024, 1024)
    assert after.crop(lower).tobytes() == before.crop(lower).tobytes()
    assert seen.server.requests[-1].path == "/v1/images/edits"
    await edited.get_by_role("button", name="Generate again").click()
    await expect(page.locator(BUSY)).to_have_count(0)
    assert len(seen.gallery.calls) == 3


async def test_edit_selection_cleared(seen: Seen) -> None:
    """Undo removes the last stroke, Clear all of them, and closing sends nothing."""
    page = seen.page
    card = await seen.generate()
    await card.get_by_role("button", name="Edit").click()
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
    assert len(seen.server.requests) == 1


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
    box = await frame.bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(1.5, 0.02)
    await expect(page.get_by_role("link", name="Download")).to_be_visible()


async def test_edit_not_an_image(seen: Seen) -> None:
    """A file that is not an image is an error, and nothing is sent."""
    file: Any = {"name": "mine.png", "mimeType": "image/png", "buffer": b"not an image"}
    async with seen.page.expect_event("dialog") as waiting:
        seen.page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await seen.page.get_by_label("Your own image").set_input_files(file)
    assert "not an image" in (await waiting.value).message
    await expect(seen.page.locator("#editor")).to_be_hidden()
    assert not seen.server.requests


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
    before = seen.latest()

    larger = card.get_by_role("button", name="View full size")
    await tab_to(larger)
    await press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await press("Escape")
    await expect(larger).to_be_focused()

    await tab_to(card.get_by_role("button", name="Edit"))
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
    await expect(page.get_by_role("link", name="Download")).to_have_count(2, timeout=15_000)
    after = seen.latest()
    right = (after.width // 2 + 8, 0, after.width, after.height)
    assert after.crop(right).tobytes() == before.crop(right).tobytes()
    assert after.tobytes() != before.tobytes()


async def test_phone(browser: Browser) -> None:
    """At 390 pixels nothing overflows the screen."""
    window: dict[str, Any] = {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
    }
    async with (
        LocalServer(light=True) as server,
        opened(browser, server, server.api_key, **window) as seen,
    ):
        page = seen.page

        async def check_width() -> None:
            assert await page.evaluate("document.documentElement.scrollWidth") == 390
            wide = """[...document.querySelectorAll('dialog[open], main *')]
                .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 390.5)
                .map(e => e.outerHTML.slice(0, 80))"""
            assert await page.evaluate(wide) == []

        await check_width()
        await page.get_by_text("More options").tap()
        await check_width()
        card = await seen.generate("A" * 300)
        await expect(card).to_be_in_viewport()
        await check_width()
        await card.get_by_role("button", name="Edit").tap()
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_accessibility_rules(seen: Seen, scheme: Any) -> None:
    """axe-core finds no violation in any state of the page."""
    axe = pytest.importorskip("axe_playwright_python.async_playwright").Axe()
    await seen.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    async def check(state: str) -> None:
        found = await axe.run(seen.page)
        wrong = [
            (problem["id"], [node["html"][:120] for node in problem["nodes"]])
            for problem in found.response["violations"]
        ]
        assert (state, wrong) == (state, [])

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
    await card.get_by_role("button", name="Edit").click()
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
            const reply = await fetch(`${url}/api/generate`, options);
            return reply.type === "opaque" ? "opaque" : await reply.text();
        } catch { return "blocked"; }
    }"""
    own = {"X-Elkimg-Studio": "1", "Content-Type": "application/json"}
    assert await other.evaluate(attempt, [seen.url, "cors", own]) == "blocked"
    assert await other.evaluate(attempt, [seen.url, "cors", {}]) == "blocked"
    assert await other.evaluate(attempt, [seen.url, "no-cors", {}]) in ("blocked", "opaque")
    [entry] = seen.gallery.calls
    load = """url => new Promise(done => {
        const image = new Image();
        image.onload = () => done("shown");
        image.onerror = () => done("blocked");
        image.src = url;
    })"""
    assert await other.evaluate(load, f"{seen.url}/api/images/{entry}/0") == "blocked"
    assert seen.server.generations == generations
    await other.close()
