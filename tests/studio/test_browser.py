"""The studio in a real Chromium: what people see, click, draw, type and hear."""

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
    """A page in the browser, what it talks to, and what it has complained of."""

    page: Page
    url: str
    server: LocalServer
    gallery: Gallery
    complaints: list[str]

    async def make(self, prompt: str = "An elk at dawn", *, shape: str = "Square") -> Locator:
        """Ask for a picture; returns its card."""
        await self.page.get_by_label("What should the picture show?").fill(prompt)
        await self.page.get_by_label(shape).check()
        await self.page.get_by_role("button", name="Make the picture").click()
        return self.page.get_by_role("article").first

    async def made(self, prompt: str = "An elk at dawn", **options: str) -> Locator:
        """The same, finished."""
        card = await self.make(prompt, **options)
        await expect(card.get_by_role("link", name="Download")).to_be_visible(timeout=15_000)
        return card

    def kept(self) -> Pillow.Image:
        """The latest picture, as the server keeps it."""
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
    """The studio in a new window, over `server`; `options` are those of the window."""
    gallery, complaints = Gallery(), list[str]()
    client = AsyncImages(key, base_url=server.base_url, retry=0)
    async with client, serve(client, gallery=gallery) as url:
        page = await browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        page.set_default_timeout(10_000)
        try:
            await page.goto(url)
            await expect(page.get_by_label("Square")).to_be_visible()
            local = server if isinstance(server, LocalServer) else LocalServer()
            yield Seen(page, url, local, gallery, complaints)
            assert complaints == []
        finally:
            await page.close()


@pytest.fixture
async def seen(browser: Browser) -> AsyncIterator[Seen]:
    async with LocalServer(light=True) as server, opened(browser, server, server.api_key) as seen:
        yield seen


async def colour(frame: Locator) -> tuple[int, ...]:
    """The colour in the middle of what is on the screen."""
    shot = Pillow.open(io.BytesIO(await frame.screenshot())).convert("RGB")
    found = shot.getpixel((shot.width // 2, shot.height // 2))
    assert isinstance(found, tuple)
    return found


async def until_colour(frame: Locator, wanted: tuple[int, ...]) -> None:
    """Wait until a fade has ended in this colour."""
    with anyio.fail_after(5):
        while await colour(frame) != wanted:
            await anyio.sleep(0.05)


def plain(colour: str, size: tuple[int, int]) -> str:
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def coloured(*gates: asyncio.Event) -> list[Piece]:
    """A stream of two partial images, red and green, and a blue final one, each behind its gate."""
    size = (1536, 1024)
    pieces: list[Piece] = [head(content_type="text/event-stream", Transfer_Encoding="chunked")]
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("#ff0000", "partial_image", {"partial_image_index": 0}),
        ("#00ff00", "partial_image", {"partial_image_index": 1}),
        ("#0000ff", "completed", {"size": "1536x1024", "usage": {"total_tokens": 1234}}),
    ]
    for index, (name, kind, more) in enumerate(steps):
        fields = {"type": f"image_generation.{kind}", "b64_json": plain(name, size), **more}
        pieces += [*gates[index : index + 1], chunk(event(fields))]
    return [*pieces, chunk(DONE), b"0\r\n\r\n"]


# --- making -----------------------------------------------------------------


async def test_generate_sharpens_in_place(browser: Browser) -> None:
    """Each partial image fades in in its turn, then the final one, and nothing on the page moves."""
    gates = [asyncio.Event() for _ in range(3)]
    async with RawServer(coloured(*gates)) as server, opened(browser, server) as seen:
        card = await seen.make(shape="Wide")
        frame, below = card.locator(".frame"), card.locator(".facts")
        places = []
        for gate, wanted, told in zip(
            gates,
            [(255, 0, 0), (0, 255, 0), (0, 0, 255)],
            ["Preview 1 of 2", "Preview 2 of 2", "Finished after"],
            strict=True,
        ):
            places.append((await frame.bounding_box(), await below.bounding_box()))
            gate.set()
            await until_colour(frame, wanted)
            fade = await frame.locator("img").last.evaluate(
                "i => getComputedStyle(i).animationName"
            )
            assert fade == "appear"
            await expect(seen.page.get_by_role("status").first).to_contain_text(told)
        places.append((await frame.bounding_box(), await below.bounding_box()))
        assert places == places[:1] * 4
        assert places[0][0] is not None
        assert places[0][0]["width"] / places[0][0]["height"] == pytest.approx(1.5, 0.01)
        await expect(frame.locator("img")).to_have_count(1)
        await expect(below).to_contain_text("1536 \u00d7 1024")
        await expect(below).to_contain_text("1,234 tokens")
        await expect(below).to_contain_text(" s ·")


async def test_generate_all_at_once(browser: Browser) -> None:
    """When everything comes at the same moment, it is the final image that stays."""
    async with RawServer(coloured()) as server, opened(browser, server) as seen:
        card = await seen.made()
        await until_colour(card.locator(".frame"), (0, 0, 255))
        await expect(card.locator("img")).to_have_count(1)


async def test_generate_several(seen: Seen) -> None:
    """Several pictures of one call stand in one card, each with its own buttons, and nothing moves."""
    await seen.page.get_by_label("How many").fill("3")
    card = await seen.make()
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
    """Each option goes out as chosen, and what is left alone is left out."""
    page = seen.page
    await page.get_by_label("Low", exact=True).check()
    await page.get_by_text("More options").click()
    await page.get_by_label("Model", exact=True).select_option("gpt-image-1")
    await page.get_by_label("Previews").fill("3")
    await page.get_by_label("File format").select_option("webp")
    await page.get_by_label("Background").select_option("transparent")
    await page.get_by_label("Moderation").select_option("low")
    await page.get_by_label("Compression").fill("60")
    card = await seen.make(shape="Tall")
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
    """Cancel ends the call at the image server within a second; Try again asks once more, in the same card."""
    seen.server.inject("stall-stream=1")
    card = await seen.make()
    await expect(card.locator(BUSY)).to_be_visible()
    await expect(card.locator(".progress")).to_contain_text("Preview 1")
    await card.get_by_role("button", name="Cancel").click()
    with anyio.fail_after(1.5):
        await seen.server.wait_disconnected()
    await expect(card).to_contain_text("Cancelled")
    await expect(card).to_contain_text("It may have been billed all the same.")
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
            "no credit left",
            "Top it up",
            "not have been billed",
        ),
        ("error=400/moderation_blocked", "content rules", "Reword", "not have been billed"),
        ("html=502", "image server failed", "Try again", "may have been billed"),
    ],
)
async def test_error_in_plain_words(
    seen: Seen, fault: str, title: str, advice: str, billing: str
) -> None:
    """A failure says what happened, what to do and whether it cost, on the screen and to a screen reader."""
    seen.server.inject(fault)
    card = await seen.make()
    for text in (title, advice, billing):
        await expect(card).to_contain_text(text)
        await expect(seen.page.get_by_role("status").first).to_contain_text(text)
    await card.get_by_role("button", name="Remove").click()
    await expect(seen.page.get_by_role("article")).to_have_count(0)
    await expect(seen.page.get_by_text("Nothing here yet")).to_be_visible()


async def test_studio_that_has_stopped(browser: Browser) -> None:
    """When the studio itself is gone, the page says so."""
    async with RawServer([head(content_type="text/event-stream"), End.HOLD]) as server:
        client = AsyncImages("key", base_url=server.base_url)
        page = await browser.new_page()
        async with client:
            async with serve(client) as url:
                await page.goto(url)
                await page.get_by_label("What should the picture show?").fill("x")
                await page.keyboard.press("Control+Enter")
                await server.wait_until(lambda: bool(server.requests))
            await expect(page.get_by_role("article")).to_contain_text("does not answer")
        await page.close()


# --- keeping ----------------------------------------------------------------


async def test_reload_shows_gallery(seen: Seen) -> None:
    """After a reload each picture is there again, with its prompt, time, tokens and buttons."""
    await seen.made("A first one", shape="Tall")
    await seen.made("A second one")
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
    await cards.last.get_by_role("button", name="Make again").click()
    await expect(cards).to_have_count(3)
    await expect(seen.page.locator(BUSY)).to_have_count(0)
    assert seen.server.requests[-1].fields["prompt"] == "A first one"


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a reload"])
@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
async def test_download(seen: Seen, again: bool, kind: str, ending: str) -> None:
    """A download has a telling name, the right ending, and the very bytes of the picture."""
    await seen.page.get_by_text("More options").click()
    await seen.page.get_by_label("File format").select_option(kind)
    card = await seen.made("Zwei Elche, am Morgen!")
    if again:
        await seen.page.reload()
    async with seen.page.expect_download() as waiting:
        await card.get_by_role("link", name="Download").click()
    download = await waiting.value
    assert download.suggested_filename == f"zwei-elche-am-morgen.{ending}"
    [kept] = seen.gallery.calls.values()
    content = await anyio.Path(await download.path()).read_bytes()
    assert content == kept.images[0]
    assert Pillow.open(io.BytesIO(content)).format == kind.upper()


# --- editing ----------------------------------------------------------------


async def draw(page: Page) -> None:
    """A stroke from left to right through the upper half of the picture."""
    box = await page.locator("#mask").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] * 0.25
    await page.mouse.move(box["x"] + box["width"] * 0.2, y)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=10)
    await page.mouse.up()


async def test_edit_with_drawn_mask(seen: Seen) -> None:
    """What was painted over changes, and the rest stays as it is, pixel for pixel."""
    page = seen.page
    card = await seen.made()
    before = seen.kept()
    await card.get_by_role("button", name="Edit").click()
    marked = page.locator("#marked")
    await expect(marked).to_contain_text("Nothing is marked")
    await draw(page)
    await draw(page)
    await expect(marked).to_contain_text("% of the picture is marked")
    await page.get_by_role("button", name="Undo").click()
    await page.get_by_label("What should change?").fill("A red scarf")
    await page.get_by_role("button", name="Make the edit").click()
    await expect(page.locator("#editor")).to_be_hidden()
    edited = page.get_by_role("article").first
    await expect(edited).to_contain_text("A red scarf")
    await expect(edited.get_by_role("link", name="Download")).to_be_visible(timeout=15_000)
    after = seen.kept()
    assert after.size == before.size
    assert after.getpixel((512, 256)) != before.getpixel((512, 256))
    lower = (0, 400, 1024, 1024)
    assert after.crop(lower).tobytes() == before.crop(lower).tobytes()
    assert seen.server.requests[-1].path == "/v1/images/edits"
    await edited.get_by_role("button", name="Make again").click()
    await expect(page.locator(BUSY)).to_have_count(0)
    assert len(seen.gallery.calls) == 3


async def test_edit_marks_cleared(seen: Seen) -> None:
    """Undo takes the last mark back, Clear all of them, and closing asks for nothing."""
    page = seen.page
    card = await seen.made()
    await card.get_by_role("button", name="Edit").click()
    marked = page.locator("#marked")
    await page.get_by_role("button", name="Mark everything").click()
    await expect(marked).to_contain_text("100 %")
    await draw(page)
    await page.get_by_role("button", name="Undo").click()
    await expect(marked).to_contain_text("100 %")
    await page.get_by_role("button", name="Clear").click()
    await expect(marked).to_contain_text("Nothing is marked")
    await expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    await page.keyboard.press("Escape")
    await expect(page.locator("#editor")).to_be_hidden()
    assert len(seen.server.requests) == 1


async def test_edit_of_own_picture(seen: Seen) -> None:
    """A picture from the disk can be edited too, and keeps its shape."""
    file = io.BytesIO()
    Pillow.new("RGB", (300, 200), "red").save(file, "png")
    page = seen.page
    picture: Any = {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}
    await page.get_by_label("A picture of yours").set_input_files(picture)
    await page.get_by_label("What should change?").fill("Make it blue")
    await page.keyboard.press("Control+Enter")
    frame = page.get_by_role("article").locator(".frame")
    await expect(frame).to_be_visible()
    box = await frame.bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(1.5, 0.02)
    await expect(page.get_by_role("link", name="Download")).to_be_visible()


async def test_edit_of_what_is_no_picture(seen: Seen) -> None:
    """A file that is no picture is said to be none, and nothing is sent."""
    file: Any = {"name": "mine.png", "mimeType": "image/png", "buffer": b"no picture"}
    async with seen.page.expect_event("dialog") as waiting:
        seen.page.once("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await seen.page.get_by_label("A picture of yours").set_input_files(file)
    assert "not a picture" in (await waiting.value).message
    await expect(seen.page.locator("#editor")).to_be_hidden()
    assert not seen.server.requests


# --- for everybody ----------------------------------------------------------


async def test_keyboard_alone(seen: Seen) -> None:
    """A picture is made, looked at and edited within a rectangle without a mouse."""
    page, press = seen.page, seen.page.keyboard.press

    async def tab_to(locator: Locator, most: int = 25) -> None:
        for _ in range(most):
            await press("Tab")
            if await locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"Tab does not lead to {locator}")

    await press("Tab")
    await expect(page.get_by_role("link", name="Skip to the pictures")).to_be_focused()
    await press("Tab")
    await page.keyboard.type("An elk")
    await press("Tab")
    await press("ArrowRight")
    await expect(page.get_by_label("Wide")).to_be_checked()
    await tab_to(page.get_by_role("button", name="Make the picture"))
    await press("Enter")
    card = page.get_by_role("article").first
    await expect(card.get_by_role("link", name="Download")).to_be_visible()
    before = seen.kept()

    larger = card.get_by_role("button", name="View larger")
    await tab_to(larger)
    await press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await press("Escape")
    await expect(larger).to_be_focused()

    await tab_to(card.get_by_role("button", name="Edit"))
    await press("Enter")
    await expect(page.get_by_label("What should change?")).to_be_focused()
    await page.keyboard.type("A moon")
    await tab_to(page.get_by_text("Mark a rectangle by numbers"))
    await press("Enter")
    for name, value in (("Left", "0"), ("Top", "0"), ("Width", "50"), ("Height", "50")):
        await tab_to(page.get_by_label(name, exact=True), 1)
        await page.keyboard.type(value)
    await tab_to(page.get_by_role("button", name="Mark the rectangle"), 1)
    await press("Enter")
    await expect(page.locator("#marked")).to_contain_text("25 % of the picture")
    await tab_to(page.get_by_role("button", name="Make the edit"))
    await press("Enter")
    await expect(page.get_by_role("link", name="Download")).to_have_count(2, timeout=15_000)
    after = seen.kept()
    right = (after.width // 2 + 8, 0, after.width, after.height)
    assert after.crop(right).tobytes() == before.crop(right).tobytes()
    assert after.tobytes() != before.tobytes()


async def test_phone(browser: Browser) -> None:
    """At 390 pixels nothing runs out of the screen: neither the page, nor the options, nor the editor."""
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
            wide = "[...document.querySelectorAll('dialog[open], main *')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 390.5).map(e => e.outerHTML.slice(0, 80))"
            assert await page.evaluate(wide) == []

        await check_width()
        await page.get_by_text("More options").tap()
        await check_width()
        card = await seen.made("A" * 300)
        await expect(card).to_be_in_viewport()
        await check_width()
        await card.get_by_role("button", name="Edit").tap()
        await page.get_by_text("Mark a rectangle by numbers").tap()
        await check_width()
        small = "[...document.querySelectorAll('dialog[open] button, dialog[open] input')].filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 32).map(e => e.id)"
        assert await page.evaluate(small) == []
        await page.locator("#mask").tap()
        await expect(page.locator("#marked")).to_contain_text("is marked")


async def test_dark_mode_and_still_mode(seen: Seen) -> None:
    """The page follows the system: dark where it is dark, and without motion where none is wanted."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await seen.page.evaluate(ground)
    await seen.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    dark = await seen.page.evaluate(ground)
    assert sum(map(int, light[4:-1].split(","))) > 600
    assert sum(map(int, dark[4:-1].split(","))) < 150
    await seen.made()
    assert await seen.page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_accessibility_rules(seen: Seen, scheme: Any) -> None:
    """axe-core finds nothing wrong in any state of the page: labels, contrast, roles, order."""
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
    card = await seen.make("One under way")
    await expect(card.locator(".progress")).to_contain_text("Preview 1")
    await check("under way")
    await card.get_by_role("button", name="Cancel").click()
    await check("failed")
    card = await seen.made()
    await check("made")
    await card.get_by_role("button", name="View larger").click()
    await check("viewer")
    await seen.page.keyboard.press("Escape")
    await card.get_by_role("button", name="Edit").click()
    await seen.page.get_by_text("Mark a rectangle by numbers").click()
    await seen.page.get_by_role("button", name="Mark everything").click()
    await check("editor")


# --- safety -----------------------------------------------------------------


async def test_page_of_another_site(browser: Browser, seen: Seen) -> None:
    """A page of another origin in the same browser can neither ask for a picture nor read or frame one."""
    await seen.made()
    made = seen.server.generations
    other = await browser.new_page()
    await other.goto(seen.server.base_url.removesuffix("/v1"))
    attempt = """async ([url, mode, headers]) => {
        const body = JSON.stringify({ id: crypto.randomUUID(), request: { prompt: "theirs" } });
        try {
            const reply = await fetch(`${url}/api/generate`, { method: "POST", mode, headers, body });
            return reply.type === "opaque" ? "opaque" : await reply.text();
        } catch { return "blocked"; }
    }"""
    own = {"X-Elkimg-Studio": "1", "Content-Type": "application/json"}
    assert await other.evaluate(attempt, [seen.url, "cors", own]) == "blocked"
    assert await other.evaluate(attempt, [seen.url, "cors", {}]) == "blocked"
    assert await other.evaluate(attempt, [seen.url, "no-cors", {}]) in ("blocked", "opaque")
    [kept] = seen.gallery.calls
    load = """url => new Promise(done => {
        const image = new Image();
        image.onload = () => done("shown");
        image.onerror = () => done("blocked");
        image.src = url;
    })"""
    assert await other.evaluate(load, f"{seen.url}/api/pictures/{kept}/0") == "blocked"
    assert seen.server.generations == made
    await other.close()
