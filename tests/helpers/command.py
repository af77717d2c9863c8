"""Run `elkimg` as users run it: in its own process, piped or on a terminal.

ended = await run("generate", "A kitten", "--local", folder=tmp_path)
async with started("batch", "prompts.txt", folder=tmp_path, server=server) as command:
    await command.wait_for("done")
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import elkimg_async
from elkimg_async.local import LocalServer

SMALL = ("--local", "--model", "dall-e-2", "--size", "256x256", "--response-format", "b64_json")
"""Options for a small image that is painted quickly."""
API_KEY = "sk-of-the-test"


class Ended(NamedTuple):
    """The exit code and output of a finished command."""

    code: int
    out: str
    err: str


class Command:
    """A running `elkimg`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._err = ""

    async def line(self, *, out: bool = False) -> str:
        """Return the next line of standard error or, with `out`, of standard output."""
        stream = self._process.stdout if out else self._process.stderr
        assert stream is not None
        line = (await stream.readline()).decode()
        assert line, f"the command ended before that: {self._err}"
        self._err += "" if out else line
        return line.strip()

    async def wait_for(self, text: str) -> str:
        """Return the first line of standard error that has `text`."""
        while text not in (line := await self.line()):
            pass
        return line

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        # not `send_signal`, which may take the exit code from asyncio if the process has ended
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGINT)

    async def ended(self, typed: bytes | None = None) -> Ended:
        """Wait for the end; check that nothing is left open and no traceback is printed."""
        out, err = await self._process.communicate(typed)
        assert self._process.returncode is not None
        ended = Ended(self._process.returncode, out.decode(), self._err + err.decode())
        assert "Traceback" not in ended.err, ended.err
        assert "Warning" not in ended.err
        return ended


def environment(server: LocalServer | None, variables: dict[str, str]) -> dict[str, str]:
    """Return the environment, with the API key of `server` only."""
    hidden = ("ELKAPI_", "FORCE_COLOR", "PYTHON", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    package = str(Path(elkimg_async.__file__).parent.parent)
    kept |= {"PYTHONPATH": os.pathsep.join([package, *sys.path]), "PYTHONIOENCODING": "utf-8"}
    if server:
        kept |= {"ELKAPI_API_KEY": server.api_key, "ELKAPI_BASE_URL": server.base_url}
    return kept | variables


@contextlib.asynccontextmanager
async def started(
    *arguments: str,
    folder: Path,
    server: LocalServer | None = None,
    code: str | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
    variables: dict[str, str] | None = None,
) -> AsyncIterator[Command]:
    """Run `elkimg` in a folder; or other Python `code`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Werror::ResourceWarning",
        *(("-c", code) if code else ("-m", "elkimg_async")),
        *arguments,
        cwd=folder,
        env=environment(server, variables or {}),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def run(
    *arguments: str,
    folder: Path,
    server: LocalServer | None = None,
    typed: str | bytes | None = None,
    variables: dict[str, str] | None = None,
) -> Ended:
    """Run `elkimg` to its end, with `typed` as its standard input."""
    if isinstance(typed, str):
        typed = typed.encode()
    stdin = asyncio.subprocess.DEVNULL if typed is None else asyncio.subprocess.PIPE
    begun = started(*arguments, folder=folder, server=server, stdin=stdin, variables=variables)
    async with begun as command:
        return await command.ended(typed)


class Screen:
    """A terminal of a certain width, and the output written to it."""

    def __init__(self, columns: int) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._shown = bytearray()
        self._arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            if data := os.read(self._ours, 65536):
                self._shown += data
                self._arrived.set()
                return
        asyncio.get_running_loop().remove_reader(self._ours)
        self._arrived.set()

    @property
    def text(self) -> str:
        """The output, without escape sequences."""
        text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", bytes(self._shown)).decode()
        return text.replace("\r\n", "\n")

    async def wait_for(self, pattern: str) -> None:
        """Wait until the text has a match of a regular expression."""
        while not re.search(pattern, self.text):
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Close both sides."""
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        with contextlib.suppress(OSError):
            os.close(self.theirs)


async def run_on_terminal(
    *arguments: str, folder: Path, columns: int, server: LocalServer | None = None
) -> tuple[int, str]:
    """Run `elkimg` on a terminal and return its exit code and what it showed."""
    screen = Screen(columns)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "elkimg_async", *arguments),
            cwd=folder,
            env=environment(server, {"TERM": "xterm"}),
            stdin=screen.theirs,
            stdout=screen.theirs,
            stderr=screen.theirs,
        )
        code = await process.wait()
        os.write(screen.theirs, b"\n<end>")
        await screen.wait_for("<end>")
        return code, screen.text
    finally:
        screen.close()


class Viewer:
    """A program that `elkimg --open` finds in place of the desktop's."""

    def __init__(self, folder: Path) -> None:
        self._opened = folder / "opened"
        os.mkfifo(self._opened)
        program = folder / "bin" / "xdg-open"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nprintf %s "$1" > {self._opened}\n')
        program.chmod(0o755)
        self.variables = {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    def opened(self) -> str:
        """Wait until a file or folder is opened, and return its path."""
        return self._opened.read_text()


def file_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
