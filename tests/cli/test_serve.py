"""`elkimg serve`, run as people run it."""

from pathlib import Path

import pytest

import elkimg_async
from elkimg_async import AsyncImages, GenerateRequest
from elkimg_async.local import FAULTS
from tests.helpers.command import run, started


async def test_serve(tmp_path: Path) -> None:
    """The server prints lines that work when copied, and ends with Ctrl-C."""
    arguments = (
        "--api-key",
        "it's mine",
        "--delay",
        "0",
        "--fault",
        "rate-limit",
        "--fault",
        "error",
    )
    async with started("serve", *arguments, folder=tmp_path) as command:
        lines = [await command.line(out=True)]
        while not lines[-1].startswith("Press Ctrl-C"):
            lines.append(await command.line(out=True))
        base_url = lines[0].removeprefix("Base URL: ")
        assert lines[1] == "API key: it's mine"
        assert f"export ELKAPI_BASE_URL={base_url} ELKAPI_API_KEY='it'\"'\"'s mine'" in lines
        assert any(line.startswith(f"curl {base_url}/images/generations -H") for line in lines)
        command.interrupt()
        ended = await command.ended()
    assert ended.code == 130
    assert ended.err == "Interrupted.\n"


async def test_serve_responds(tmp_path: Path) -> None:
    """A client with the printed address gets an image, after the faults in their order."""
    faults = ("--fault", "rate-limit=0", "--fault", "error")
    async with started("serve", "--delay", "0", *faults, folder=tmp_path) as command:
        base_url = (await command.line(out=True)).removeprefix("Base URL: ")
        async with AsyncImages("elkimg-local", base_url=base_url, retry=0) as client:
            small = GenerateRequest(prompt="A kitten", model="dall-e-2", size="256x256")
            with pytest.raises(elkimg_async.RateLimitError):
                await client.generate(small)
            with pytest.raises(elkimg_async.APIError):
                await client.generate(small)
            assert len(await client.generate(small)) == 1
        command.interrupt()
        assert (await command.ended()).code == 130


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fault", "flood"], "fault 'flood'. Choose one of:"),
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--delay", "-1"], "--delay must be 0 or more."),
        (["--delay", "nan"], "--delay must be 0 or more."),
        (["--port", "x"], "Invalid value for --port: it must be a whole number."),
    ],
)
async def test_serve_with_wrong_options(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    """What cannot be served is rejected in one sentence."""
    ended = await run("serve", *arguments, folder=tmp_path)
    assert ended.code == 2
    assert sentence in ended.err
    assert len(ended.err.splitlines()) == 1


async def test_serve_lists_faults(tmp_path: Path) -> None:
    """`--fault list` prints the faults instead of serving."""
    ended = await run("serve", "--fault", "list", folder=tmp_path)
    assert ended.code == 0
    assert set(FAULTS) == {line.split(":")[0] for line in ended.out.splitlines()}
