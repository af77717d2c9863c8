"""Backends that are killed with `kill -9` at random moments, over real files and a real Redis."""

import asyncio
import contextlib
import functools
import io
import os
import random
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

import elkimg_async
from elkimg_async import AsyncImages, CompletedImage, errors
from elkimg_async.jobs import DirectoryStore, ImageJobs, RedisStore, Store
from elkimg_async.local import LocalServer
from tests.helpers.calls import SOON
from tests.helpers.jobs import COMPLETED, client_of, partial
from tests.helpers.raw_server import API_KEY, DONE, PNG, End, RawServer, event, open_stream, stream
from tests.helpers.redis_server import free_port, needs_redis, redis_server

ROOT = str(Path(elkimg_async.__file__).parent.parent)
KILLS = int(os.environ.get("ELKIMG_JOB_KILLS", "6"))
JOBS_PER_KILL = 3


class Backend:
    """A running backend process and what it has reported."""

    def __init__(self, process: asyncio.subprocess.Process, results: dict[str, str]) -> None:
        self._process, self._results = process, results
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, store: str, server: LocalServer, results: dict[str, str], mode: str
    ) -> "Backend":
        """Start a process that reports into `results`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).parent / "backend.py"),
            store, server.base_url, server.api_key, mode,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path])},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return cls(process, results)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode().strip():
            if line == "ready":
                self._ready.set()
                continue
            name, _, result = line.partition(" ")
            assert self._results.setdefault(name, result) == result, "a result changed"

    async def ready(self) -> None:
        """Wait until its jobs are open; fail if it ends before."""
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait([waiting, self._reading], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert self._ready.is_set(), f"the backend ended with {await self._process.wait()}"

    def collect(self, ids: Iterable[str]) -> None:
        """Let it start these jobs and collect their images."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{each}\n" for each in ids).encode())

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        await self._process.wait()
        await self._reading

    async def end(self) -> None:
        """Wait until it has collected everything, and for its own end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
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


def open_store(argument: str) -> Store:
    """The store that the argument stands for."""
    kind, _, where = argument.partition(":")
    return DirectoryStore(where) if kind == "directory" else RedisStore(where, lease=1)


KINDS = ["directory", pytest.param("redis", marks=needs_redis)]


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize(
    ("kind", "workers"), [("directory", 1), pytest.param("redis", 2, marks=needs_redis)]
)
async def test_kill_at_random_moments(kind: str, workers: int, tmp_path: Path) -> None:
    """With `replay`, killed backends lose nothing and generate nothing twice.

    ELKIMG_JOB_KILLS is the number of kills.
    """
    results, ids, chance = dict[str, str](), list[str](), random.Random()
    async with LocalServer(light=True, delay=0.1) as server, store_of(kind, tmp_path) as store:
        backends = list[Backend]()
        for number in range(KILLS):
            while len(backends) < workers:
                backends.append(await Backend.start(store, server, results, "replay"))
            new = [f"{number}-{index}" for index in range(JOBS_PER_KILL)]
            ids += new
            for backend in backends:
                backend.collect(new)
                if chance.random() < 0.8:
                    await backend.ready()
            await asyncio.sleep(chance.uniform(0, 0.5))
            await backends.pop(chance.randrange(workers)).kill()
        for backend in backends:
            await backend.end()
        last = await Backend.start(store, server, results, "replay")
        last.collect(ids)
        await last.end()
        assert results.keys() == set(ids)
        assert all(len(result) == 64 for result in results.values()), results
        assert server.generations == len(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["replay", "send"])
async def test_kill_in_the_middle_of_a_stream(kind: str, mode: str, tmp_path: Path) -> None:
    """A job of a dead process is sent again if the server replays; else it is lost, and says so."""
    results = dict[str, str]()
    async with LocalServer(light=True, delay=0) as server, store_of(kind, tmp_path) as store:
        server.inject("stall-stream=1")
        backend = await Backend.start(store, server, results, mode)
        backend.collect(["one"])
        await backend.ready()
        await server.wait_until(lambda: len(server.requests) == 1)
        await backend.kill()
        async with (
            client_of(server, idempotency=mode) as client,
            ImageJobs(client, store=open_store(store)) as jobs,
            asyncio.timeout(10),  # that is how soon a dead worker has to be noticed
        ):
            if mode == "replay":
                result = await jobs.result("one")
                assert result[0].media_type == "image/png"
            else:
                with pytest.raises(errors.JobLostError) as lost:
                    await jobs.result("one")
                job = await jobs.get("one")
                assert lost.value.billing == "unknown"
                assert lost.value.idempotency_key == job.idempotency_key is not None
        assert server.generations == 1
        assert mode == "replay" or len(server.requests) == 1
        assert len({sent.headers["idempotency-key"] for sent in server.requests}) == 1
        assert results == {}


# --- workers on one Redis ---------------------------------------------------


@needs_redis
async def test_workers_serve_each_others_jobs(redis_url: str) -> None:
    """Any worker shows the events of a job, returns its result, and cancels it."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    first = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(first, [head, chunks[0], End.HOLD]) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
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
async def test_redis_with_a_damaged_record(redis_url: str) -> None:
    """A record that cannot be read is an error of its own job, and hides no other job."""
    import redis.asyncio

    names = ["damaged:job:record", "damaged:events:events"]
    async with (
        LocalServer(light=True, delay=0) as local,
        AsyncImages(local.api_key, base_url=local.base_url) as client,
        redis.asyncio.from_url(redis_url) as server,
        ImageJobs(client, store=RedisStore(redis_url, prefix="damaged:")) as jobs,
    ):
        for name in ("record", "events", "whole"):
            await jobs.start("A kitten", id=name)
            assert await jobs.result(name)
        await server.set(names[0], b'{"id":')
        await server.delete(names[1])
        await server.xadd(names[1], {"event": b"{}"}, id="1-0")
        async with ImageJobs(client, store=RedisStore(redis_url, prefix="damaged:")) as other:
            for name in ("record", "events"):
                with pytest.raises(errors.StoreError, match=f"job '{name}' in Redis is damaged"):
                    await other.result(name)
            assert len(await other.result("whole")) == 1
            assert {job.id for job in await other.list()} == {"events", "whole"}
            assert await server.exists(names[0])


@needs_redis
async def test_workers_with_the_newer_protocol_of_redis(redis_url: str) -> None:
    """The news of another worker arrive although the URL asks for RESP3."""
    reply = open_stream(event(partial(0)), event(COMPLETED), DONE)
    url = f"{redis_url}?protocol=3"
    async with (
        RawServer([*reply, b"0\r\n\r\n"]) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
        ImageJobs(client, store=RedisStore(url, prefix="resp3:")) as one,
        ImageJobs(client, store=RedisStore(url, prefix="resp3:")) as other,
    ):
        await one.start("an elk", id="one")
        async with asyncio.timeout(20):
            assert len(await other.result("one")) == 1


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
async def test_redis_that_restarts(tmp_path: Path) -> None:
    """Once Redis is back, everything works at the first call, and nothing is lost."""
    finish, port = asyncio.Event(), free_port()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    serve = functools.partial(redis_server, tmp_path, "--appendonly", "yes", port=port)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serve("--appendfsync", "always"))
        async with (
            RawServer([head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]) as raw_server,
            AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
            ImageJobs(client, store=RedisStore(url, lease=1)) as one,
            ImageJobs(client, store=RedisStore(url, lease=1)) as other,
        ):
            await one.start("an elk", id="one")
            readers = [jobs.events("one") for jobs in (one, other)]
            for reader in readers:
                await anext(reader)
            await asyncio.gather(*(other.get("one") for _ in range(9)))  # nine connections
            stack.close()
            finish.set()
            with serve():
                assert [(await other.get("one")).id for _ in range(9)] == ["one"] * 9
                async with asyncio.timeout(SOON):
                    for reader in readers:
                        assert [each.image.content async for each in reader] == [PNG]
                assert (await other.result("one"))[0].content == PNG
                assert (await one.get("one")).state == "done"
                await one.aclose()
                await other.aclose()
        assert len(raw_server.requests) == 1


@needs_redis
async def test_redis_that_loses_its_data(tmp_path: Path) -> None:
    """A running job is stored again in a Redis that restarted empty, and its image delivered."""
    from redis.asyncio import Redis

    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    with redis_server(tmp_path) as url:
        store = functools.partial(RedisStore, url, lease=1)
        async with (
            RawServer([head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]) as raw_server,
            AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
            ImageJobs(client, store=store()) as one,
            ImageJobs(client, store=store()) as other,
            Redis.from_url(url) as redis,
        ):
            await one.start("an elk", id="one")
            readers = [jobs.events("one") for jobs in (one, other)]
            for reader in readers:
                await anext(reader)
            await redis.flushall()
            finish.set()
            async with asyncio.timeout(SOON):
                for reader in readers:
                    assert [each.image.content async for each in reader] == [PNG]
            assert (await other.result("one"))[0].content == PNG
            assert [(job.id, job.state) for job in await other.list()] == [("one", "done")]
            assert len(raw_server.requests) == 1


@needs_redis
async def test_redis_keeps_no_images_of_edits_that_have_finished(
    redis_url: str, server: LocalServer
) -> None:
    """A start that joins a finished job does not store the images to be edited again."""
    from redis.asyncio import Redis

    file = io.BytesIO()
    Pillow.new("RGBA", (64, 64)).save(file, "png")
    edit: Any = {"prompt": "a hat", "id": "hat", "image": file.getvalue()}
    async with (
        AsyncImages(server.api_key, base_url=server.base_url) as client,
        ImageJobs(client, store=RedisStore(redis_url, prefix="hat:")) as one,
        ImageJobs(client, store=RedisStore(redis_url, prefix="hat:")) as other,
        Redis.from_url(redis_url) as redis,
    ):
        await one.start(**edit)
        await one.result("hat")
        assert (await other.start(**edit)).state == "done"
        assert await redis.keys("hat:input:*") == []


@needs_redis
async def test_redis_that_is_full_rejects_new_jobs(tmp_path: Path) -> None:
    """A full Redis is a clear error before anything is sent."""
    options = ("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    with redis_server(tmp_path, *options) as url:
        async with RawServer(stream(event(COMPLETED), DONE)) as raw_server:
            async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
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
