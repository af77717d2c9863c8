"""`client.edit`: retries, and how files are read while they are sent."""

import asyncio
import io
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import elkimg_async
from elkimg_async import (
    AsyncImages,
    InvalidRequestError,
)
from elkimg_async.hooks import Record, RetryScheduled
from elkimg_async.local import LocalServer
from tests.helpers.calls import GOOD
from tests.helpers.edits import (
    PNG,
    QUICK,
    WAYS,
    WEBP,
    large,
    on_disk,
    parsed,
)
from tests.helpers.raw_server import (
    API_KEY,
    RawServer,
    response,
)
from tests.local.test_edits import mask


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK) as client:
        yield client


BROKEN = response({"error": {"message": "x", "code": "do_request_failed"}}, status=500)


class Threads(io.BytesIO):
    """A file that notes the threads in which it is read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.seen: set[threading.Thread] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.seen.add(threading.current_thread())
        return super().read(size)


@pytest.mark.parametrize("way", WAYS)
async def test_retry_sends_the_same_bytes(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path, way: str
) -> None:
    """A retry has the same body and idempotency key, for every kind of input."""
    raw_server.reply_with(BROKEN, GOOD)
    response = await client.edit(WAYS[way](on_disk(tmp_path)), "a hat", mask=mask())
    assert response.meta.attempts == 2
    first, second = raw_server.requests
    assert first.body == second.body
    assert PNG in first.body
    for name in ("content-type", "idempotency-key"):
        assert first.headers[name] == second.headers[name]


async def test_two_calls_share_a_file(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """Concurrent calls with one file object do not disturb each other."""
    content = large(tmp_path, 2 << 20).read_bytes()
    file = io.BytesIO(content)
    await asyncio.gather(*(client.edit([file, file], "a hat") for _ in range(4)))
    assert len(raw_server.requests) == 4
    for request in raw_server.requests:
        assert [part[3] for part in await parsed(request)][2:] == [content, content]


async def test_own_idempotency_key_keeps_the_body(
    client: AsyncImages, raw_server: RawServer
) -> None:
    """Calls with the same Idempotency-Key have the same body; otherwise the boundary is new."""
    for _ in range(2):
        await client.edit(PNG, "a hat", extra_headers={"Idempotency-Key": "order-7"})
    for _ in range(2):
        await client.edit(PNG, "a hat")
    bodies = [request.body for request in raw_server.requests]
    assert bodies[0] == bodies[1]
    assert len(set(bodies)) == 3


async def test_replay_of_a_lost_response(server: LocalServer) -> None:
    """A server that replays returns a lost edit without creating it again."""
    server.inject("reset-in-body")
    async with AsyncImages(
        server.api_key, base_url=server.base_url, retry=QUICK, idempotency="replay"
    ) as client:
        response = await client.edit(PNG, "a hat", mask=mask())
    assert response.meta.attempts == 2
    assert server.generations == 1


async def test_file_changed_between_attempts(raw_server: RawServer, tmp_path: Path) -> None:
    """A file that has changed before a retry ends the call."""
    path = on_disk(tmp_path)

    def change(record: Record) -> None:
        if isinstance(record, RetryScheduled):
            path.write_bytes(WEBP)

    raw_server.reply_with(BROKEN, GOOD)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, retry=QUICK, hooks=[change]
    ) as client:
        with pytest.raises(InvalidRequestError, match=r"kitten.png' was changed") as caught:
            await client.edit(path, "a hat")
        assert (caught.value.param, caught.value.billing) == ("image", "not_sent")
        assert caught.value.__context__ is None
        await raw_server.wait_disconnected()
        assert len(raw_server.requests) == 1
        raw_server.reply_with(GOOD)
        await client.edit(path, "a hat")


async def test_file_object_that_fails_later(client: AsyncImages, raw_server: RawServer) -> None:
    """A file object that becomes shorter or fails ends the call."""

    class Fading(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 1 and self.breaks:
                raise RuntimeError("the disk is gone")
            return super().read(size) if self.reads == 1 else b""

        def __init__(self, breaks: bool) -> None:
            super().__init__(PNG)
            self.breaks = breaks

    for breaks, words in ((False, "shorter"), (True, "could not be read .*: the disk is gone")):
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await client.edit(Fading(breaks), "a hat")
        assert (caught.value.billing, caught.value.__context__) == ("not_sent", None)
    assert raw_server.requests == []


async def test_files_are_read_in_other_threads(client: AsyncImages, raw_server: RawServer) -> None:
    """The event loop never waits for a file."""
    file = Threads(PNG + bytes(1 << 20))
    await client.edit(file, "a hat")
    assert file.seen
    assert threading.current_thread() not in file.seen


MEMORY = """
import asyncio, re, sys
from elkimg_async import AsyncImages
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024

async def main():
    small, path, url, whole = sys.argv[1:]
    async with AsyncImages("sk-of-the-test", base_url=url) as client:
        await client.edit(small, "a hat")
        before = peak()
        await client.edit(Path(path).read_bytes() if whole else path, "a hat")
        print(peak() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_memory_of_a_large_file(tmp_path: Path) -> None:
    """A file of 40 MB is never held in memory completely."""
    small, path = on_disk(tmp_path), large(tmp_path, 40 << 20)
    package = str(Path(elkimg_async.__file__).parent.parent)
    peaks = []
    async with RawServer(GOOD, keep_bodies=False) as server:
        for whole in ("", "whole"):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", MEMORY, str(small), str(path), server.base_url, whole),
                env={**os.environ, "PYTHONPATH": os.pathsep.join([package, *sys.path])},
                stdout=subprocess.PIPE,
            )
            out, _ = await process.communicate()
            peaks.append(int(out) >> 20)
    assert peaks[0] < 5
    assert peaks[1] > 35  # what it is with the bytes as an argument, for comparison
    assert sum(request.length > 40 << 20 for request in server.requests) == 2
