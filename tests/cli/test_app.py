"""What all commands of `elkimg` share: help, exit codes, Ctrl-C, standard streams."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import elkimg_async
from elkimg_async import GenerateRequest
from elkimg_async.local import LocalServer
from elkimg_async.sansio.requests import EditRequest
from tests.helpers.command import (
    API_KEY,
    SMALL,
    environment,
    file_names,
    run,
    started,
)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        yield server


async def test_command_without_its_packages(tmp_path: Path) -> None:
    """Without its packages the module still imports, and the command says what to install."""
    code = (
        "import sys; sys.modules['rich'] = None; "
        "from elkimg_async.cli import main; sys.exit(main())"
    )
    async with started(folder=tmp_path, code=code) as command:
        ended = await command.ended()
    assert ended.code == 1
    assert ended.err == 'The command needs more packages: pip install "elkimg-async[cli]"\n'


async def test_interrupt_during_imports(tmp_path: Path) -> None:
    """Ctrl-C while the command is loading ends it without a traceback."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from elkimg_async.cli import main; "
    async with started(folder=tmp_path, code=f"{code} sys.exit(main())") as command:
        ended = await command.ended()
    assert (ended.code, ended.err) == (130, "Interrupted.\n")


async def test_interrupt_local_stream(tmp_path: Path) -> None:
    """Ctrl-C in a local stream ends cleanly; what came before is kept and listed."""
    arguments = ("A kitten", "--local", "--stream", "--partial-images", "3")
    async with started("generate", *arguments, folder=tmp_path) as command:
        await command.wait_for("Saved")
        command.interrupt()
        ended = await command.ended()
    assert ended.code == 130
    assert ended.err.endswith("Interrupted.\n")
    assert file_names(tmp_path) == ["a-kitten-partial-0.png"]
    assert "a-kitten-partial-0.png" in ended.out


@pytest.mark.parametrize("mode", ["--stream", "--retries=0"])
async def test_interrupt_closes_connections(tmp_path: Path, server: LocalServer, mode: str) -> None:
    """Ctrl-C while the server is silent closes each connection."""
    server.inject("stall-headers*2")
    async with started("generate", "a", "b", mode, folder=tmp_path, server=server) as command:
        await server.wait_until(lambda: len(server.requests) == 2)
        await server.wait_until(lambda: server.generations == 2)
        command.interrupt()
        ended = await command.ended()
    await server.wait_disconnected(2)
    assert ended.code == 130
    assert ended.err.endswith("Interrupted.\n")
    assert file_names(tmp_path) == []


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize(
    ("command", "request_type"), [("generate", GenerateRequest), ("edit", EditRequest)]
)
async def test_help_names_every_option(
    tmp_path: Path, command: str, request_type: type[GenerateRequest | EditRequest]
) -> None:
    """The help has each field of a request, and no option for the API key."""
    ended = await run(command, "--help", folder=tmp_path)
    assert ended.code == 0
    named = set(re.findall(r"--[a-z0-9-]+", ended.out))
    hidden = {"prompt", "image"} | ({"style"} if command == "edit" else set())
    expected = {flag(name) for name in request_type.__struct_fields__ if name not in hidden}
    assert expected <= named
    assert {"--output", "--stream", "--local", "--base-url", "--timeout", "--retries"} <= named
    assert {"--json", "--quiet", "--open", "--safety-identifier", "--complexity"} <= named
    assert "--api-key" not in named


@pytest.mark.parametrize("command", ["", "generate", "edit", "batch", "models", "serve", "studio"])
async def test_help_is_complete(tmp_path: Path, command: str) -> None:
    """Each help has examples that begin with the command, the variables and the exit codes."""
    ended = await run(*command.split(), "--help", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert f"  elkimg {command}".rstrip() in ended.out.partition("Examples:")[2]
    for name in ("ELKAPI_API_KEY", "ELKAPI_BASE_URL", "ELKAPI_MODEL"):
        assert name in ended.out
    for code in ("0", "1", "2", "130"):
        assert re.search(rf"^  {code} ", ended.out, re.MULTILINE)
    assert not re.search(r"\b(STR|INT|FLOAT|BOOL|ARGS)\b", ended.out)


@pytest.mark.parametrize("flag", ["--version", "-V"])
async def test_version(tmp_path: Path, flag: str) -> None:
    """`--version` and `-V` print the version of the package."""
    ended = await run(flag, folder=tmp_path)
    assert ended.out.strip() == elkimg_async.__version__


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("draw",), 'Unknown command "draw"'),
        (("generate", "a", "--colour", "red"), "Unknown option: --colour."),
        (("batch",), "requires an argument"),
        (("models", "--timeout", "soon"), "--timeout"),
    ],
)
async def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    """Wrong usage is one line on standard error, with exit code 2."""
    ended = await run(*arguments, folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert sentence in ended.err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    """Without standard streams an image is saved all the same, and the exit code is 0."""
    command = f'"{sys.executable}" -m elkimg_async generate a {" ".join(SMALL)} -o a.png {closed}'
    ended = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(None, {}), check=False
    )
    assert ended.returncode == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments", ["generate a -o -", "generate a --json", "edit a.png b -o -", "models --json"]
)
@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_output_that_is_needed(tmp_path: Path, arguments: str, closed: str) -> None:
    """Output that would be lost is rejected where standard output is closed."""
    command = f'"{sys.executable}" -m elkimg_async {arguments} --local {closed}'
    ended = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(None, {}), check=False, stderr=-1
    )
    assert ended.returncode == 2
    assert ("2>&-" in closed) != (b"standard output, which is closed" in ended.stderr)
    assert file_names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "arguments", ["models", "generate a b -o images --json", "generate a -o -", "--help", "-V"]
)
def test_full_standard_output(tmp_path: Path, arguments: str) -> None:
    """Output that cannot be written is one sentence and exit code 1, never a traceback."""
    local = "" if arguments.startswith("-") else "--local"
    command = f'"{sys.executable}" -m elkimg_async {arguments} {local} > /dev/full'
    ended = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(None, {}), check=False, stderr=-1
    )
    assert ended.returncode == 1
    assert b"No space left on device." in ended.stderr.splitlines()[-1]
    assert b"Traceback" not in ended.stderr
    assert b"Errno" not in ended.stderr


def test_closed_pipe(tmp_path: Path) -> None:
    """A reader that leaves early, such as head, ends the command without a traceback."""
    command = f'"{sys.executable}" -m elkimg_async models --local | true'
    ended = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(None, {}), check=False, stderr=-1
    )
    assert b"Traceback" not in ended.stderr
    assert b"BrokenPipe" not in ended.stderr
