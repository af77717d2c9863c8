"""Every Python block of the README runs, and its commands are the command's own."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from aiohttp import web

from elkimg_async.image import media_type_of
from elkimg_async.local import LocalServer

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
OTHERS = ("web.run_app", "uvicorn.run", "elkimg_client", "generate_dataset")
# They are run below, by test_pytest_plugin, and not at all, for a cluster takes its time.
SCRIPTS = [block for block in BLOCKS if not any(other in block for other in OTHERS)]
(WEB,) = [block for block in BLOCKS if "web.run_app" in block]
(FASTAPI,) = [block for block in BLOCKS if "uvicorn.run" in block]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalServer]:
    """The local server, as the environment's."""
    async with LocalServer(light=True) as running:
        monkeypatch.setenv("ELKAPI_API_KEY", running.api_key)
        monkeypatch.setenv("ELKAPI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", running.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
async def test_script_runs(script: str, server: LocalServer, tmp_path: Path) -> None:
    """A script of the README runs from a file, without warnings, and creates its files."""
    assert await run(script, tmp_path)
    saved = re.search(r'(?:save|write)\(f?"|output_dir=', script)
    texts = (".py", ".jsonl", ".lock")
    pictures = [path for path in tmp_path.rglob("*.*") if path.suffix not in texts]
    assert bool(saved) == bool(pictures)
    assert all(media_type_of(path.read_bytes()).startswith("image/") for path in pictures)


async def run(script: str, folder: Path) -> str:
    """Return the output of a script in its own folder; errors and warnings fail."""
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


async def test_script_that_moves_over(server: LocalServer, tmp_path: Path) -> None:
    """The scripts for openai's client and this one differ only in the client."""
    (place,) = [place for place, block in enumerate(BLOCKS) if "AsyncOpenAI" in block]
    before, after = BLOCKS[place : place + 2]
    moved = before.replace("from openai import AsyncOpenAI", "from elkimg_async import AsyncImages")
    moved = moved.replace("AsyncOpenAI()", "AsyncImages()").replace("client.images.", "client.")
    assert after == moved
    made = []
    for name, script in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        said = await run(script, tmp_path / name)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        made.append((said.partition(" ")[2], files))  # without the time of creation
    assert made[0] == made[1]
    assert sorted(made[1][1]) == ["cat-0.png", "cat-1.png", "cat.png", "kitten.png"]
    assert [asked.fields for asked in server.requests][:2] == [
        asked.fields for asked in server.requests
    ][2:]


async def test_web_backend_serves_an_image(server: LocalServer) -> None:
    """The README's backend returns an image, and 502 for an error response."""
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
            url = f"http://127.0.0.1:{port}/picture?prompt=a+boat"
            async with browser.get(url) as answer:
                assert (answer.status, answer.content_type) == (200, "image/png")
                assert media_type_of(await answer.read()) == "image/png"
            server.inject("error=400/content_policy_violation")
            async with browser.get(url) as answer:
                assert answer.status == 502
            async with browser.get(url.replace("/picture", "/stream")) as answer:
                assert "event: image_generation.completed" in await answer.text()
    finally:
        await runner.cleanup()


async def test_fastapi_backend_relays_a_stream(server: LocalServer) -> None:
    """The README's FastAPI backend sends the browser the events, on uvicorn."""
    names: dict[str, object] = {"__name__": "readme"}
    exec(FASTAPI, names)
    config = uvicorn.Config(names["app"], port=0, log_level="warning")  # type: ignore[arg-type]
    backend = uvicorn.Server(config)
    serving = asyncio.create_task(backend.serve())
    while not backend.started:
        await asyncio.sleep(0.01)
    port = backend.servers[0].sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as browser:
        url = f"http://127.0.0.1:{port}/stream?prompt=a+boat"
        async with browser.get(url) as answer:
            text = await answer.text()
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
