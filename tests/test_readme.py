"""Every Python block of the README runs, and its commands are the command's own."""

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from aiohttp import web

from elkimg_async.local import LocalServer
from elkimg_async.media_types import media_type_of

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
(DIFF,) = re.findall(r"^```diff\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
OPENAI_PAGE = Path(__file__).parent / "helpers" / "openai_page.py"
# Run below, by test_pytest_plugin, and not at all: a cluster takes its time.
OTHERS = ("web.run_app", "uvicorn.run", "elkimg_client", "generate_dataset", "django")
SCRIPTS = [block for block in BLOCKS if not any(other in block for other in OTHERS)]
(WEB,) = [block for block in BLOCKS if "web.run_app" in block]
(DJANGO,) = [block for block in BLOCKS if "django" in block]
(FASTAPI,) = [block for block in BLOCKS if "uvicorn.run" in block]
SNIPPET = """\
import asyncio

from elkimg_async import AsyncImages


async def main() -> None:
    async with AsyncImages() as client:
{}

asyncio.run(main())
"""


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalServer]:
    """The local server, named by the environment."""
    async with LocalServer(light=True) as running:
        monkeypatch.setenv("ELKAPI_API_KEY", running.api_key)
        monkeypatch.setenv("ELKAPI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", running.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
async def test_script_runs(script: str, server: LocalServer, tmp_path: Path) -> None:
    """A script of the README runs from a file, without a warning, and saves what it says."""
    if "asyncio.run" not in script:
        script = SNIPPET.format(textwrap.indent(script, " " * 8))
    printed = await run(script, tmp_path)
    assert bool(printed) == ("print(" in script)
    saves = re.search(r"save\(|output_dir=", script)
    images = [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".webp")]
    assert bool(saves) == bool(images)
    assert all(media_type_of(path.read_bytes()).startswith("image/") for path in images)


async def run(script: str, folder: Path) -> str:
    """Return what a script in a folder of its own prints; it must end without error or warning."""
    (folder / "script.py").write_text(script, "utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Werror",
        str(folder / "script.py"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode()


@pytest.mark.parametrize("name", ["page.html", "app.txt"])
def test_example_is_the_tested_one(name: str) -> None:
    """The page and the back end of the README are those that the tests run in a browser."""
    text = (Path(__file__).parent / "web" / "example" / name).read_text("utf-8")
    assert f"\n{text}```\n" in README


def patched(page: str, diff: str) -> str:
    """Apply a diff without line numbers: each run of its lines replaces what it removes."""
    for hunk in diff.split("\n\n"):
        lines = hunk.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
        assert page.count(before) == 1, before
        page = page.replace(before, after)
    return page


async def test_diff_moves_a_page_over(server: LocalServer, tmp_path: Path) -> None:
    """Code for openai's client and the same code after the diff print and save the same."""
    before = OPENAI_PAGE.read_text("utf-8")
    results = []
    for name, script in (("before", before), ("after", patched(before, DIFF))):
        (tmp_path / name).mkdir()
        printed = await run(script, tmp_path / name)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        results.append((printed.partition(" ")[2], files))  # without the time of creation
    assert results[0] == results[1]
    assert sorted(results[1][1]) == ["cat-0.png", "cat-1.png", "cat.png", "kitten.png"]
    sent = [request.fields for request in server.requests]
    assert sent[:2] == sent[2:]


async def test_web_backend_serves_an_image(server: LocalServer) -> None:
    """The backend of the README returns an image, and 502 for an error response."""
    names: dict[str, object] = {"__name__": "readme"}
    exec(WEB, names)
    app = names["app"]
    assert isinstance(app, web.Application)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as browser:
            url = f"http://127.0.0.1:{port}/image?prompt=a+boat"
            async with browser.get(url) as response:
                assert (response.status, response.content_type) == (200, "image/png")
                assert media_type_of(await response.read()) == "image/png"
            server.inject("error=400/content_policy_violation")
            async with browser.get(url) as response:
                assert response.status == 502
            async with browser.get(url.replace("/image", "/stream")) as response:
                assert "event: image_generation.completed" in await response.text()
    finally:
        await runner.cleanup()


DJANGO_CALLS = """
import asyncio

from django.test import AsyncRequestFactory


async def main():
    for _ in range(2):
        response = await image(AsyncRequestFactory().post("/image", {"prompt": "a boat"}))
        print(response.status_code, response["Content-Type"])
    await client.aclose()


asyncio.run(main())
"""


async def test_django_view_serves_an_image(server: LocalServer, tmp_path: Path) -> None:
    """The Django view of the README returns an image, and 502 for an error response."""
    server.inject("none", "error=400/content_policy_violation")
    configure = "from django.conf import settings\n\nsettings.configure()\n"
    printed = await run(configure + DJANGO + DJANGO_CALLS, tmp_path)
    assert printed.splitlines() == ["200 image/png", "502 application/json"]


async def test_fastapi_backend_relays_a_stream(server: LocalServer) -> None:
    """The FastAPI backend of the README serves images and errors, and relays events, on uvicorn."""
    names: dict[str, object] = {"__name__": "readme"}
    exec(FASTAPI, names)
    config = uvicorn.Config(names["app"], port=0, log_level="warning")  # type: ignore[arg-type]
    backend = uvicorn.Server(config)
    serving = asyncio.create_task(backend.serve())
    while not backend.started:
        await asyncio.sleep(0.01)
    port = backend.servers[0].sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as browser:
        url = f"http://127.0.0.1:{port}"
        async with browser.post(f"{url}/images", json={"prompt": "a boat"}) as response:
            assert (response.status, response.content_type) == (200, "image/png")
            assert media_type_of(await response.read()) == "image/png"
        for fault, status in (("error=400/content_policy_violation", 400), ("error=401", 502)):
            server.inject(fault)
            async with browser.post(f"{url}/images", json={"prompt": "a boat"}) as response:
                assert response.status == status
                assert (await response.json())["error"]["message"]
        async with browser.get(f"{url}/stream?prompt=a+boat") as response:
            text = await response.text()
    backend.should_exit = True
    await serving
    assert text.count("event: image_generation.partial_image") == 2
    assert text.rstrip().endswith("data: [DONE]")


def test_options_named_in_the_commands_exist() -> None:
    """Each option that the README passes to the command is in the command's help."""
    helped = subprocess.run(
        [sys.executable, "-m", "elkimg_async", "generate", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"},
    ).stdout
    used = set(re.findall(r" (--[a-z-]+)", "\n".join(re.findall(r"elkimg\S* generate.*", README))))
    assert used
    assert {option for option in used if option not in helped} <= {"--help"}
