"""Backends that are killed with `kill -9` at random moments, over real files and a real Redis."""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import elkimg_async
from elkimg_async import AsyncImages, CompletedImage, errors
from elkimg_async.jobs import DirectoryStore, ImageJobs, RedisStore
from elkimg_async.local import LocalServer
from tests.helpers.raw_server import DONE, KEY, End, RawServer, event, open_stream, stream
from tests.helpers.redis_server import needs_redis, redis_server
from tests.jobs.test_registry import COMPLETED, partial

ROOT = Path(elkimg_async.__file__).parent.parent
JOBS_PER_ROUND = 3


class Backend:
    """A running backend process and what it has reported."""

    def __init__(self, process: asyncio.subprocess.Process, results: dict[str, str]) -> None:
        self._process, self._results = process, results
        self.ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, store: str, server: LocalServer, ids: list[str], results: dict[str, str], mode: str
    ) -> "Backend":
        """Start a process that starts these jobs and reports into `results`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).parent / "backend.py"),
            store, server.base_url, server.api_key, mode, *ids,
            cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process, results)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode().strip():
            if line == "ready":
                self.ready.set()
                continue
            name, _, result = line.partition(" ")
            assert self._results.setdefault(name, result) == result, "a result changed"

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def end(self) -> None:
        """Wait for its own end."""
        await self._reading
        assert await self._process.wait() == 0


@contextlib.asynccontextmanager
async def store_of(kind: str, folder: Path) -> AsyncIterator[str]:
    """The argument that stands for a store of this kind."""
    if kind == "directory":
        yield f"directory:{folder / 'jobs'}"
        return
    with redis_server(folder) as url:
        yield f"redis:{url}"


async def crash(kind: str, rounds: int, folder: Path) -> None:
    """Kill a backend in each round; nothing is lost, and nothing is generated twice."""
    results, ids = dict[str, str](), list[str]()
    workers = 1 if kind == "directory" else 2
    async with LocalServer(light=True, delay=0.1) as server, store_of(kind, folder) as store:
        for number in range(rounds):
            new = [f"{number}-{index}" for index in range(JOBS_PER_ROUND)]
            ids += new
            backends = [
                await Backend.start(store, server, new, results, "replay") for _ in range(workers)
            ]
            await asyncio.gather(*(backend.ready.wait() for backend in backends))
            await asyncio.sleep(random.uniform(0, 0.5))
            await backends[0].kill()
            for backend in backends[1:]:
                await backend.end()
        last = await Backend.start(store, server, ids, results, "replay")
        await last.end()
        assert results.keys() == set(ids)
        assert all(len(result) == 64 for result in results.values()), results
        assert server.generations == len(ids)


KINDS = ["directory", pytest.param("redis", marks=needs_redis)]


@pytest.mark.parametrize("kind", KINDS)
async def test_kill_at_random_moments(kind: str, tmp_path: Path) -> None:
    """With `replay`, killed backends lose nothing and generate nothing twice."""
    await crash(kind, 5, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
async def test_kill_at_fifty_random_moments(kind: str, tmp_path: Path) -> None:
    """The same, fifty times."""
    await crash(kind, 50, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
async def test_kill_without_replay_loses_the_job_and_says_so(kind: str, tmp_path: Path) -> None:
    """Where the server is not known to replay, a job of a dead process is lost, not sent again."""
    results = dict[str, str]()
    async with LocalServer(light=True, delay=0) as server, store_of(kind, tmp_path) as store:
        server.inject("stall-stream=1")
        first = await Backend.start(store, server, ["one"], results, "send")
        await server.wait_until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.1)
        await first.kill()
        async with asyncio.timeout(10):  # that is how soon a dead worker has to be noticed
            second = await Backend.start(store, server, ["one"], results, "send")
            await second.end()
        assert results == {"one": "JobLostError unknown"}
        assert len(server.requests) == 1


# --- workers on one Redis ---------------------------------------------------


@needs_redis
async def test_workers_serve_each_others_jobs(redis_url: str) -> None:
    """Any worker shows the events of a job, returns its result, and cancels it."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    first = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(first, [head, chunks[0], End.HOLD]) as raw_server,
        AsyncImages(KEY, base_url=raw_server.base_url, retry=0) as client,
        ImageJobs(client, store=RedisStore(redis_url, prefix="two:")) as one,
        ImageJobs(client, store=RedisStore(redis_url, prefix="two:")) as other,
    ):
        job = await one.start("an elk", id="one")
        assert (await other.start("an elk", id="one")).fingerprint == job.fingerprint
        with pytest.raises(errors.JobConflictError):
            await other.start("a fox", id="one")
        events = aiter(other.events("one"))
        preview = await anext(events)
        finish.set()
        done = await anext(events)
        assert isinstance(done, CompletedImage)
        assert preview.id < done.id
        assert [each.id async for each in one.events("one", preview.id)] == [done.id]
        assert (await other.result("one"))[0].content == (await one.result("one"))[0].content
        assert [each.id for each in await other.list()] == ["one"]

        await one.start("an elk", id="two")
        await anext(aiter(other.events("two")))
        assert (await other.cancel("two")).state == "cancelled"
        assert (await one.get("two")).state == "cancelled"
        await raw_server.wait_disconnected()
        assert len(raw_server.requests) == 2


@needs_redis
async def test_worker_starts_while_redis_is_away(tmp_path: Path) -> None:
    """Without Redis, opening and starting fail clearly, and nothing is sent."""
    async with (
        LocalServer(light=True, delay=0) as server,
        AsyncImages(server.api_key, base_url=server.base_url) as client,
    ):
        with redis_server(tmp_path) as url:
            jobs = ImageJobs(client, store=RedisStore(url), grace=0.1)
            await jobs.open()
        with pytest.raises(errors.StoreError, match="Redis cannot be used"):
            await jobs.start("an elk")
        await jobs.aclose()
        with pytest.raises(errors.StoreError, match="Redis cannot be used"):
            async with ImageJobs(client, store=RedisStore(url)):
                pass
        assert not server.requests


@needs_redis
async def test_redis_that_is_full_rejects_new_jobs(tmp_path: Path) -> None:
    """A full Redis is a clear error before anything is sent."""
    options = ("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    with redis_server(tmp_path, *options) as url:
        async with RawServer(stream(event(COMPLETED), DONE)) as raw_server:
            async with AsyncImages(KEY, base_url=raw_server.base_url) as client:
                with pytest.raises(errors.StoreError, match="full"):
                    async with ImageJobs(client, store=RedisStore(url)) as jobs:
                        await jobs.start("an elk")
            assert not raw_server.requests


# --- the folder -------------------------------------------------------------


async def test_folder_of_another_process_or_version(tmp_path: Path, server: LocalServer) -> None:
    """A folder in use, of another version, or that cannot be written is a clear error."""
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        async with ImageJobs(client, store=DirectoryStore(tmp_path / "a")):
            with pytest.raises(errors.StoreError, match="Another process uses"):
                await ImageJobs(client, store=DirectoryStore(tmp_path / "a")).open()
        (tmp_path / "a" / "elkimg-jobs.json").write_text('{"type":"elkimg_async.jobs","version":9}')
        with pytest.raises(errors.StoreError, match="another version"):
            await ImageJobs(client, store=DirectoryStore(tmp_path / "a")).open()
        (tmp_path / "file").touch()
        with pytest.raises(errors.StoreError, match="cannot be used as a store"):
            await ImageJobs(client, store=DirectoryStore(tmp_path / "file")).open()


async def test_folder_with_a_log_cut_at_every_byte(tmp_path: Path, server: LocalServer) -> None:
    """Wherever a log was cut, the folder opens; the image is there or the job is lost."""
    path = tmp_path / "jobs"
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        async with ImageJobs(client, store=DirectoryStore(path)) as jobs:
            await jobs.start("an elk", id="one", partial_images=1)
            content = (await jobs.result("one"))[0].content
        [log] = path.glob("jobs/*/job.jsonl")
        whole = log.read_bytes()
        ends = [index + 1 for index, byte in enumerate(whole) if byte == 10]
        for cut in sorted({*ends[2:], *(end - 7 for end in ends[3:])}):
            log.write_bytes(whole[:cut])
            async with ImageJobs(client, store=DirectoryStore(path)) as jobs:
                if cut >= ends[3]:
                    assert (await jobs.result("one"))[0].content == content
                else:
                    with pytest.raises(errors.JobLostError):
                        await jobs.result("one")
                    break
    assert len(server.requests) == 1
