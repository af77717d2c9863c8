"""Two Ctrl-C at random moments: the second one is raised wherever the program is."""

import asyncio
import json
import os
import random
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import anyio
import pytest

from elkimg_async.local import LocalServer
from tests.helpers.command import API_KEY, Command, Ended, started
from tests.studio.test_server import PROMPT, Running, studio

ROUNDS = int(os.environ.get("ELKIMG_INTERRUPTIONS", "3"))
CODE = """
import sys
from elkimg_async.cli import main
print("started", file=sys.stderr, flush=True)
sys.exit(main())
"""
"""The command from where it can handle an interruption; before that, Python has no choice."""

INTERRUPTED = (130, -signal.SIGINT)
"""Python itself ends with the signal if the second one comes when the command has returned."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 30 * ROUNDS)]


async def interrupt_twice(command: Command) -> None:
    """Interrupt a command at a random moment of its start, its work or its end, and again."""
    first, second = moments()
    await asyncio.sleep(first)
    for seconds in (second, 0):
        if command._process.returncode is None:
            command.interrupt()
        await asyncio.sleep(seconds)


async def end(command: Command) -> Ended:
    """Wait for the end, which must come soon, and not with a traceback of the interruption."""
    with anyio.fail_after(20):
        out, err = await command._process.communicate()
    assert command._process.returncode is not None
    assert b"KeyboardInterrupt" not in err or b"elkimg_async" not in err, err.decode()
    return Ended(command._process.returncode, out.decode(), err.decode())


def moments() -> tuple[float, float]:
    """Return the seconds before each interruption."""
    first = random.choice([random.uniform(0, 0.8), random.uniform(0.8, 2.5)])
    return first, random.choice([0.0, random.uniform(0, 0.05), random.uniform(0, 1)])


async def test_generate_interrupted_twice(tmp_path: Path) -> None:
    """An interrupted `elkimg generate` ends at once, and has sent at most one request."""
    async with LocalServer(api_key=API_KEY, light=True, delay=0.3) as server:
        for number in range(ROUNDS):
            sent = len(server.requests)
            arguments = ("generate", "A kitten", "-o", f"{number}.png", "--retries", "2")
            async with started(*arguments, folder=tmp_path, server=server, code=CODE) as command:
                assert await command.line() == "started"
                await interrupt_twice(command)
                ended = await end(command)
            assert ended.code in (0, *INTERRUPTED), ended
            assert len(server.requests) - sent <= 1
            saved = tmp_path / f"{number}.png"
            assert saved.exists() or ended.code != 0
            # The second interruption may come when the image has been saved.
            assert not saved.exists() or saved.read_bytes().endswith(b"IEND\xaeB`\x82")
        assert not list(tmp_path.glob(".*.part"))


async def test_batch_interrupted_twice(tmp_path: Path) -> None:
    """A run that is interrupted again and again continues, and repeats nothing that it recorded."""
    prompts = [f"Kitten {number}" for number in range(8 * ROUNDS)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    arguments = ("batch", "prompts.txt", "-o", "images", "--concurrency", "2")
    async with LocalServer(api_key=API_KEY, light=True, delay=0.1) as server:
        recorded = set[str]()
        for _ in range(ROUNDS):
            sent = len(server.requests)
            async with started(*arguments, folder=tmp_path, server=server, code=CODE) as command:
                assert await command.line() == "started"
                await interrupt_twice(command)
                ended = await end(command)
            assert ended.code in (0, *INTERRUPTED), ended
            repeated = {each.fields["prompt"] for each in list(server.requests)[sent:]}
            assert not repeated & recorded
            recorded = recorded_prompts(tmp_path, prompts)
        async with started(*arguments, folder=tmp_path, server=server, code=CODE) as command:
            assert (await command.ended()).code == 0
        counts = Counter(each.fields["prompt"] for each in server.requests)
    assert counts.keys() == set(prompts)
    assert len(list((tmp_path / "images").glob("*.png"))) == len(prompts)


def recorded_prompts(folder: Path, prompts: list[str]) -> set[str]:
    """Return the prompts whose images the journal has; each of its files exists."""
    found = set[str]()
    for journal in folder.glob("images/*.jsonl"):
        for line in journal.read_text().splitlines():
            record = json.loads(line)
            if record.get("files"):
                found.add(prompts[record["index"]])
    return found


async def test_studio_interrupted_twice(tmp_path: Path) -> None:
    """An interrupted studio ends at once; its jobs are done or lost, and none is sent again."""
    options = ("studio", "--port", "0", "--folder", str(tmp_path / "studio"))
    accepted = set[str]()
    async with LocalServer(api_key=API_KEY, light=True, delay=0.3) as server:
        for _ in range(ROUNDS):
            async with started(*options, folder=tmp_path, server=server, code=CODE) as command:
                assert await command.line() == "started"
                using = asyncio.create_task(use(command, server, accepted.add))
                await interrupt_twice(command)
                await using
                ended = await end(command)
            assert ended.code in INTERRUPTED, ended
        async with studio(server, folder=tmp_path / "studio") as running:
            jobs = {job["id"]: job for job in await running.jobs()}
            states = {(await running.finished(name))["state"] for name in jobs}
        sent = Counter(each.headers["idempotency-key"] for each in server.requests)
    assert states <= {"done", "lost"}
    assert accepted <= jobs.keys()
    assert len(sent) <= len(jobs)
    assert set(sent.values()) <= {1}


async def use(command: Command, server: LocalServer, accept: Callable[[str], None]) -> None:
    """Start jobs until the studio ends."""
    assert command._process.stdout is not None
    line = (await command._process.stdout.readline()).decode()
    if not line:
        return
    async with aiohttp.ClientSession() as http:
        running = Running(line.split()[-1].rstrip("/"), server, http)
        try:
            for _ in range(3):
                new = str(uuid.uuid4())
                status, _text = await running.post(PROMPT, new)
                if status == 202:
                    accept(new)
        except (aiohttp.ClientError, OSError):
            pass
