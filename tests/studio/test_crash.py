"""A studio that is killed with `kill -9` at random moments."""

import asyncio
import os
import random
import signal
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from elkimg_async.local import LocalServer
from tests.helpers.command import API_KEY, Command, started
from tests.studio.test_server import PROMPT, Running, events, studio

KILLS = int(os.environ.get("ELKIMG_STUDIO_KILLS", "5"))
JOBS_PER_KILL = 3


class Page:
    """What an open page has received: which jobs were accepted, and the images of finished ones."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.images: dict[str, bytes] = {}

    async def use(self, command: Command, server: LocalServer, ids: list[str]) -> None:
        """Start jobs, and download each image as soon as it is finished, until the studio dies."""
        try:
            url = (await command.line(out=True)).split()[-1]
        except AssertionError:  # killed while it started
            return
        async with aiohttp.ClientSession() as http:
            running = Running(url.rstrip("/"), server, http)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(running))
                    for new in ids:
                        await running.start({**PROMPT, "partial_images": 1}, new)
                        self.accepted.add(new)
            except* (aiohttp.ClientError, OSError):
                pass

    async def _follow(self, running: Running) -> None:
        async with events(running) as messages:
            async for event, data in messages:
                for job in [data] if event == "job" else data.get("jobs", []):
                    if job["state"] == "done" and job["id"] not in self.images:
                        self.images[job["id"]] = await running.image(job)


@pytest.mark.slow
@pytest.mark.timeout(60 + 15 * KILLS)
async def test_kill_at_random_moments(tmp_path: Path) -> None:
    """Every job that was accepted is there, finished images are unchanged, nothing is sent twice.

    ELKIMG_STUDIO_KILLS is the number of kills.
    """
    page, chance = Page(), random.Random()
    options = ("studio", "--port", "0", "--folder", str(tmp_path / "studio"))
    async with LocalServer(api_key=API_KEY, light=True, delay=0.1) as server:
        for _ in range(KILLS):
            ids = [str(uuid.uuid4()) for _ in range(JOBS_PER_KILL)]
            async with started(*options, folder=tmp_path, server=server) as command:
                using = asyncio.create_task(page.use(command, server, ids))
                if chance.random() < 0.8:  # else it is killed while it starts
                    wanted = len(server.requests) + 1
                    await server.wait_until(partial(has_received, server, wanted))
                await asyncio.sleep(chance.uniform(0, 0.6))
                os.kill(command._process.pid, signal.SIGKILL)
                await using
        async with studio(server, folder=tmp_path / "studio") as running:
            jobs = {job["id"]: job for job in await running.jobs()}
            jobs = {name: await running.finished(name) for name in jobs}
            await check(page, running, jobs)
        sent = Counter(each.headers["idempotency-key"] for each in server.requests)
        assert max(sent.values()) == 1
        assert len(sent) <= len(jobs)


def has_received(server: LocalServer, count: int) -> bool:
    """Return whether the server has received so many requests."""
    return len(server.requests) >= count


async def check(page: Page, running: Running, jobs: dict[str, Any]) -> None:
    """Compare what the page has seen with what the studio has kept."""
    assert page.accepted <= jobs.keys()
    assert {job["state"] for job in jobs.values()} <= {"done", "lost"}
    for name, image in page.images.items():
        assert jobs[name]["state"] == "done"
        assert await running.image(jobs[name]) == image
