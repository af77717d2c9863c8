"""The command, run as people run it: a process of its own."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image as Pillow

import elkimg_async
from elkimg_async import AsyncImages, GenerateRequest
from elkimg_async.cli.generate import Names
from elkimg_async.local import FAULTS, LocalServer

SMALL = ("--local", "--model", "dall-e-2", "--size", "256x256", "--response-format", "b64_json")
KEY = "sk-of-the-test"


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


class Command:
    """A running `elkimg`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._err = ""

    async def line(self, *, out: bool = False) -> str:
        """The next line on stderr or, with `out`, on stdout."""
        stream = self._process.stdout if out else self._process.stderr
        assert stream is not None
        line = (await stream.readline()).decode()
        assert line, f"the command ended before that: {self._err}"
        self._err += "" if out else line
        return line.strip()

    async def wait_for(self, text: str) -> str:
        """The first line on stderr that holds `text`."""
        while text not in (line := await self.line()):
            pass
        return line

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    async def ended(self) -> Ended:
        """Wait for the end; nothing may have been left open, or have escaped as a traceback."""
        out, err = await self._process.communicate()
        assert self._process.returncode is not None
        ended = Ended(self._process.returncode, out.decode(), self._err + err.decode())
        assert "Traceback" not in ended.err
        assert "Warning" not in ended.err
        return ended


@contextlib.asynccontextmanager
async def started(
    *arguments: str, folder: Path, server: LocalServer | None = None, code: str | None = None
) -> AsyncIterator[Command]:
    """Run `elkimg`, without a key but that of `server`; or other Python `code`."""
    hidden = ("ELKAPI_", "FORCE_COLOR", "PYTHON", "COLUMNS")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    package = str(Path(elkimg_async.__file__).parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join([package, *sys.path])
    variables["PYTHONIOENCODING"] = "utf-8"
    if server:
        variables |= {"ELKAPI_API_KEY": server.api_key, "ELKAPI_BASE_URL": server.base_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Werror::ResourceWarning",
        *(("-c", code) if code else ("-m", "elkimg_async")),
        *arguments,
        cwd=folder,
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def run(*arguments: str, folder: Path, server: LocalServer | None = None) -> Ended:
    async with started(*arguments, folder=folder, server=server) as command:
        return await command.ended()


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=KEY, light=True, delay=0) as server:
        yield server


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: Path) -> tuple[int, int]:
    with Pillow.open(path) as image:
        return image.size


# --- generate ---------------------------------------------------------------


async def test_generate_local(tmp_path: Path) -> None:
    """With --local a picture is made without a key, and said to be a stand-in."""
    ended = await run("generate", "A kitten", *SMALL, "-o", "kitten", folder=tmp_path)
    assert ended.code == 0
    assert "stand-in" in ended.err
    assert files(tmp_path) == ["kitten.png"]
    assert pixels(tmp_path / "kitten.png") == (256, 256)
    head, row = ended.out.splitlines()
    assert head.split() == ["file", "pixels", "bytes", "type", "tokens", "seconds"]
    size = f"{(tmp_path / 'kitten.png').stat().st_size:,}"
    assert row.split()[:4] == ["kitten.png", "256x256", size, "png"]


async def test_generate_streaming(tmp_path: Path) -> None:
    """Partial images are saved beside the final one as they come, and named in the output."""
    arguments = ("A kitten", "--local", "--stream", "--partial-images", "2", "-o", "kitten.webp")
    async with started("generate", *arguments, folder=tmp_path) as command:
        for number in (0, 1):
            line = await command.wait_for("Saved")
            assert line.startswith(f"Saved kitten-partial-{number}.webp after ")
            assert not (tmp_path / "kitten.webp").exists()
        ended = await command.ended()
    assert ended.code == 0
    names = ["kitten-partial-0.webp", "kitten-partial-1.webp", "kitten.webp"]
    assert files(tmp_path) == names
    rows = [line.split() for line in ended.out.splitlines()[1:]]
    assert [row[0] for row in rows] == names
    assert [row[3:5] for row in rows] == [["webp", "-"], ["webp", "-"], ["webp", "1,258"]]


async def test_generate_several_images(tmp_path: Path, server: LocalServer) -> None:
    """Several prompts and several images of each get names of their own, the tokens once a call."""
    arguments = ("generate", "A kitten", "A kitten", "--n", "2")
    ended = await run(*arguments, folder=tmp_path, server=server)
    assert ended.code == 0
    assert files(tmp_path) == [f"a-kitten{end}.png" for end in ("-2", "-3", "-4", "")]
    tokens = [line.split()[4] for line in ended.out.splitlines()[1:]]
    assert sorted(tokens) == ["-", "-", "2,114", "2,114"]


async def test_generate_over_existing_files(tmp_path: Path, server: LocalServer) -> None:
    """A name made up is never that of an old file; one given by -o replaces it."""
    for name in ("a-kitten.webp", "a-kitten-2-partial-0.png", "b.png"):
        (tmp_path / name).write_bytes(b"old")
    await run("generate", "A kitten", folder=tmp_path, server=server)
    assert files(tmp_path) == [
        "a-kitten-2-partial-0.png",
        "a-kitten-3.png",
        "a-kitten.webp",
        "b.png",
    ]
    assert (tmp_path / "a-kitten.webp").read_bytes() == b"old"
    await run("generate", "A kitten", "-o", "b.png", folder=tmp_path, server=server)
    assert pixels(tmp_path / "b.png") == (1024, 1024)


async def test_generate_into_folder(tmp_path: Path, server: LocalServer) -> None:
    """A folder is made where needed, and its files are named after the prompts."""
    prompts = ("Zwei Kätzchen, im Garten!", "../..", "x" * 300, "\x1b[31mred")
    ended = await run("generate", *prompts, "-o", "new/out/", folder=tmp_path, server=server)
    assert ended.code == 0
    expected = ["31mred.png", "image.png", "x" * 40 + ".png", "zwei-kätzchen-im-garten.png"]
    assert files(tmp_path / "new" / "out") == expected
    assert "\x1b" not in ended.out + ended.err


async def test_generate_options_reach_server(tmp_path: Path, server: LocalServer) -> None:
    """Each option goes out under its own name, and the format follows the file's."""
    options = {
        "model": "gpt-image-1",
        "n": 2,
        "size": "1536x1024",
        "quality": "low",
        "background": "opaque",
        "moderation": "low",
        "user": "me",
        "output_compression": 80,
        "partial_images": 3,
    }
    flags = [text for name, value in options.items() for text in (flag(name), str(value))]
    extra = ("--extra-body", '{"seed": 7}', "--stream", "-o", "k.jpg", "--retries", "0")
    ended = await run("generate", "A kitten", *flags, *extra, folder=tmp_path, server=server)
    assert ended.code == 0
    more = {"prompt": "A kitten", "stream": True, "seed": 7, "output_format": "jpeg"}
    assert server.requests[0].fields == {**options, **more}
    assert "k.jpg" in files(tmp_path)


async def test_generate_image_behind_url(tmp_path: Path, server: LocalServer) -> None:
    """An image that comes as a URL is downloaded, and keeps the name that the user gave."""
    arguments = ("--model", "dall-e-3", "--style", "vivid", "--response-format", "url")
    ended = await run(
        "generate", "A kitten", *arguments, "-o", "k.jpg", folder=tmp_path, server=server
    )
    assert ended.code == 0
    assert files(tmp_path) == ["k.jpg"]
    assert " png " in ended.out


# --- what goes wrong --------------------------------------------------------


async def test_key_missing(tmp_path: Path) -> None:
    """Without a key both ways out are named, and nothing is made."""
    ended = await run("generate", "A kitten", "-o", "out/", folder=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1
    assert "ELKAPI_API_KEY" in ended.err
    assert "--local" in ended.err
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n", "0"], "n is 0, it must be 1 to 10."),
        (["--n", "11"], "n is 11, it must be 1 to 10."),
        (["--n", "1.5"], "Invalid value for --n: it must be a whole number."),
        (["--size", "7x7"], "size '7x7' is not offered; choose 1024x1024,"),
        (["--partial-images", "4", "--stream"], "it must be 0 to 3."),
        (["--partial-images", "2"], "partial images come with a stream only; add --stream."),
        (
            ["--background", "transparent", "--output-format", "jpeg"],
            "jpeg cannot be transparent; choose --output-format png or webp.",
        ),
        (["--base-url", "localhost/v1"], "it must begin with https:// or http://."),
        (["--base-url", "http://x", "--local"], "--local and --base-url do not go together."),
        (["--timeout", "0"], "--timeout must be more than 0."),
        (["--retries", "-1"], "--retries must be 0 or more."),
        (["--extra-body", "[1]"], "it must be a JSON object."),
        (["-o", "/dev/null/out/"], "The images cannot go to /dev/null/out"),
        (["--colour", "red"], "Unknown option: --colour."),
    ],
)
async def test_input_wrong(
    tmp_path: Path, server: LocalServer, arguments: list[str], sentence: str
) -> None:
    """Bad input is answered with a sentence that says what to change; nothing is sent."""
    ended = await run("generate", "A kitten", *arguments, folder=tmp_path, server=server)
    assert ended.code in (1, 2)
    assert ended.out == ""
    assert sentence in ended.err.splitlines()[-1]
    assert not server.requests
    assert files(tmp_path) == []


async def test_prompt_missing(tmp_path: Path) -> None:
    """Without a prompt the command says how to give one."""
    ended = await run("generate", "--local", folder=tmp_path)
    assert ended.code == 1
    assert 'elkimg generate "A small kitten"' in ended.err


async def test_one_prompt_failing(tmp_path: Path, server: LocalServer) -> None:
    """A prompt that fails is named, and costs the others nothing but the exit code."""
    long = "x" * 32_001
    ended = await run("generate", long, "A kitten", folder=tmp_path, server=server)
    assert ended.code == 1
    assert files(tmp_path) == ["a-kitten.png"]
    assert f"“{'x' * 39}…”: gpt-image-1.5: the prompt has 32,001 characters" in ended.err
    assert "a-kitten.png" in ended.out


async def test_key_refused(tmp_path: Path, server: LocalServer) -> None:
    """A key that the server refuses is not shown, and the sentence says what to check."""
    async with started("generate", "A kitten", folder=tmp_path, server=server) as command:
        server.api_key = "another"  # while the command still starts
        ended = await command.ended()
    assert ended.code == 1
    assert "Check the API key (ELKAPI_API_KEY)" in ended.err
    assert KEY not in ended.err


async def test_timeout_passed(tmp_path: Path, server: LocalServer) -> None:
    """A limit that has passed is called by the name of its option."""
    server.inject("stall-headers")
    ended = await run("generate", "A kitten", "--timeout", "0.2", folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Raise it with --timeout." in ended.err


async def test_retry_told(tmp_path: Path, server: LocalServer) -> None:
    """A failure that is tried again is said while waiting."""
    server.inject("rate-limit=0")
    ended = await run("generate", "A kitten", folder=tmp_path, server=server)
    assert ended.code == 0
    assert "Trying again in 0.0 s." in ended.err


async def test_image_corrupt_beside_good_one(tmp_path: Path, server: LocalServer) -> None:
    """When one image of a call is corrupt, the good one is saved, and the exit code is 1."""
    server.inject("corrupt-final")
    ended = await run("generate", "A kitten", "--n", "2", folder=tmp_path, server=server)
    assert ended.code == 1
    assert files(tmp_path) == ["a-kitten.png"]


async def test_extra_missing(tmp_path: Path) -> None:
    """Without the extra the module still imports, and the command says what to install."""
    code = "import sys; sys.modules['rich'] = None; from elkimg_async.cli import main; sys.exit(main())"
    async with started(folder=tmp_path, code=code) as command:
        ended = await command.ended()
    assert ended.code == 1
    assert ended.err == 'The command needs its extra: pip install "elkimg-async[cli]"\n'


# --- Ctrl-C -----------------------------------------------------------------


async def test_interrupt_local_stream(tmp_path: Path) -> None:
    """Ctrl-C in a local stream ends cleanly; what came before is kept, and listed."""
    arguments = ("A kitten", "--local", "--stream", "--partial-images", "3")
    async with started("generate", *arguments, folder=tmp_path) as command:
        await command.wait_for("Saved")
        command.interrupt()
        ended = await command.ended()
    assert ended.code == 130
    assert ended.err.endswith("Interrupted.\n")
    assert files(tmp_path) == ["a-kitten-partial-0.png"]
    assert "a-kitten-partial-0.png" in ended.out


@pytest.mark.parametrize("mode", ["--stream", "--retries=0"])
async def test_interrupt_closes_connections(tmp_path: Path, server: LocalServer, mode: str) -> None:
    """Ctrl-C while the server says nothing closes each connection."""
    server.inject("stall-headers*2")
    async with started("generate", "a", "b", mode, folder=tmp_path, server=server) as command:
        await server.wait_until(lambda: len(server.requests) == 2)
        await server.wait_until(lambda: server.generations == 2)
        command.interrupt()
        ended = await command.ended()
    await server.wait_disconnected(2)
    assert ended.code == 130
    assert ended.err.endswith("Interrupted.\n")
    assert files(tmp_path) == []


async def test_serve(tmp_path: Path) -> None:
    """The server prints lines to copy that work, plays faults, and ends with Ctrl-C."""
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


async def test_serve_answers(tmp_path: Path) -> None:
    """A client that goes where the server says gets an image, after the faults in their order."""
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
        (["--fault", "flood"], "Unknown fault 'flood'. Choose one of:"),
        (["--port", "70000"], "0-65535"),
        (["--port", "x"], "Invalid value for --port: it must be a whole number."),
    ],
)
async def test_serve_input_wrong(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """What cannot be served is refused in one sentence."""
    ended = await run("serve", *arguments, folder=tmp_path)
    assert ended.code in (1, 2)
    assert sentence in ended.err
    assert len(ended.err.splitlines()) == 1


async def test_serve_lists_faults(tmp_path: Path) -> None:
    """`--fault list` names the faults instead of serving."""
    ended = await run("serve", "--fault", "list", folder=tmp_path)
    assert ended.code == 0
    assert set(FAULTS) == {line.split(":")[0] for line in ended.out.splitlines()}


# --- help and names ---------------------------------------------------------


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


async def test_help_names_every_option(tmp_path: Path) -> None:
    """The help of generate has each field of a request."""
    ended = await run("generate", "--help", folder=tmp_path)
    assert ended.code == 0
    named = set(re.findall(r"--[a-z-]+", ended.out))
    expected = {flag(name) for name in GenerateRequest.__struct_fields__ if name != "prompt"}
    assert expected <= named
    assert {"--output", "--stream", "--local", "--base-url", "--timeout", "--retries"} <= named
    assert "--api-key" not in named


async def test_version(tmp_path: Path) -> None:
    """`--version` is that of the package."""
    ended = await run("--version", folder=tmp_path)
    assert ended.out.strip() == elkimg_async.__version__


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("kitten", "kitten.png"),
        ("kitten.JPEG", "kitten.JPEG"),
        ("kitten.v2", "kitten.v2.png"),
        (".", "a-kitten.png"),
    ],
)
def test_names_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, expected: str
) -> None:
    """An extension of images is kept; any other ending is part of the name."""
    monkeypatch.chdir(tmp_path)
    names = Names(output)
    image = elkimg_async.Image(b"\x89PNG\r\n\x1a\n")
    assert names.path(names.reserve("A kitten"), image) == Path(expected)
