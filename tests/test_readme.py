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
from aiohttp import web

from elkimg_async.image import media_type_of
from elkimg_async.local import LocalServer

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SCRIPTS = [block for block in BLOCKS if "web.run_app" not in block]
(WEB,) = [block for block in BLOCKS if "web.run_app" in block]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalServer]:
    """The local server, as the environment's."""
    async with LocalServer(light=True) as running:
        monkeypatch.setenv("ELKAPI_API_KEY", running.api_key)
        monkeypatch.setenv("ELKAPI_BASE_URL", running.base_url)
        yield running


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
async def test_script_runs(script: str, server: LocalServer, tmp_path: Path) -> None:
    """A script of the README runs from a file, without a warning, and makes what it says."""
    (tmp_path / "script.py").write_text(script, "utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Werror",
        str(tmp_path / "script.py"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    assert output
    saved = set(re.findall(r'save\(f?"([\w.-]+)', script))
    pictures = [path for path in tmp_path.iterdir() if path.suffix != ".py"]
    assert bool(saved) == bool(pictures)
    assert all(media_type_of(path.read_bytes()).startswith("image/") for path in pictures)


async def test_web_backend_serves_a_picture(server: LocalServer) -> None:
    """The backend of the README answers with a picture, and with 502 for a refusal."""
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
    finally:
        await runner.cleanup()


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
