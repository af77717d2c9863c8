"""Ctrl-C in the event loop of a command, while its tasks are busy."""

import signal
from pathlib import Path

import anyio
import pytest

from tests.helpers.calls import SOON
from tests.helpers.command import Ended, started

BUSY = """
import asyncio, sys, time
from elkimg_async.cli import interrupts

def busy():
    "Take nearly all the time, so that interrupts arrive here."
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        pass

async def background():
    while True:
        busy()
        await asyncio.sleep(0)

def show(text):
    print(text, file=sys.stderr, flush=True)

async def work():
    task = asyncio.create_task(background())
    try:
        await asyncio.sleep(0)
        show("working")
        await asyncio.sleep(3600)
    finally:
        show("cleaning up")
        try:
            {cleanup}
        finally:
            show("cleaned up")
            task.cancel()

try:
    interrupts.run(work)
except KeyboardInterrupt:
    sys.exit(130)
"""
LONG = "await asyncio.sleep(3600)"


async def interrupted(cleanup: str, *, folder: Path, times: int) -> Ended:
    """Interrupt a program that many times, and return how it ended."""
    async with started(folder=folder, code=BUSY.format(cleanup=cleanup)) as command:
        await command.wait_for("working")
        command.interrupt()
        await command.wait_for("cleaning up")
        for _ in range(times - 1):
            command.interrupt()
        with anyio.fail_after(SOON):
            return await command.ended()


@pytest.mark.parametrize("attempt", range(3))
async def test_interrupts_reach_only_the_command(tmp_path: Path, attempt: int) -> None:
    """The second Ctrl-C ends the cleanup, and the tasks in progress print no traceback."""
    ended = await interrupted(LONG, folder=tmp_path, times=2)
    assert ended.code == 130
    assert ended.err == "working\ncleaning up\ncleaned up\n"


async def test_interrupt_waits_for_cleanup(tmp_path: Path) -> None:
    """A single Ctrl-C lets the command clean up."""
    ended = await interrupted("await asyncio.sleep(0.1)", folder=tmp_path, times=1)
    assert (ended.code, ended.err) == (130, "working\ncleaning up\ncleaned up\n")


async def test_third_interrupt_ends_a_blocked_command(tmp_path: Path) -> None:
    """The third Ctrl-C ends a command whose cleanup blocks the loop."""
    code = BUSY.format(cleanup="time.sleep(3600)")
    async with started(folder=tmp_path, code=code) as command:
        await command.wait_for("working")
        command.interrupt()
        await command.wait_for("cleaning up")
        with anyio.fail_after(SOON):
            while command._process.returncode is None:
                command.interrupt()
                await anyio.sleep(0.05)
        assert command._process.returncode in (130, -signal.SIGINT)
