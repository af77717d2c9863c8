"""One client in several loops, threads and forks, closed in different ways or never."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

import elkimg_async
from elkimg_async import (
    AsyncImages,
    ConfigurationError,
    DisconnectedError,
    DownloadError,
    ElkImagesError,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import GOOD, PARTIAL, SOON, check_clean, run_call
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    End,
    RawServer,
    Reply,
    head,
    open_stream,
    response,
)

HOME = os.pathsep.join([str(Path(elkimg_async.__file__).parent.parent), *sys.path])


@pytest.fixture
def threaded_server() -> Iterator[LocalServer]:
    """A local server in a thread with its own event loop."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(
            LocalServer(api_key=API_KEY, light=True, delay=0)
        ) as server,
    ):
        yield server


def run_script(tmp_path: Path, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python program in its own process, with all warnings shown."""
    path = tmp_path / "script.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, "-W", "always", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": HOME},
    )


# --- loops and threads ------------------------------------------------------


def test_threads_at_once(threaded_server: LocalServer) -> None:
    """Threads with successive loops share one client; each loop closes its own connections."""
    client = AsyncImages(API_KEY, base_url=threaded_server.base_url)
    threads, loops = 6, 3
    barrier = threading.Barrier(threads)

    async def generate_all_ways() -> int:
        results = await asyncio.gather(
            *(run_call(client, streaming) for streaming in (False, True) * 2)
        )
        return sum(len(result) for _, result in results)

    def work(_: int) -> int:
        barrier.wait(10)
        return sum(asyncio.run(generate_all_ways()) for _ in range(loops))

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(work, range(threads))) == threads * loops * 4
    assert threaded_server.generations == threads * loops * 4
    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(client.aclose)
    gc.collect()


def test_closing_while_threads_generate(threaded_server: LocalServer) -> None:
    """Closing in one thread ends the calls of others, and their loops continue."""
    client = AsyncImages(API_KEY, base_url=threaded_server.base_url, retry=0)
    threaded_server.inject(*["stall-headers"] * 3)
    barrier = threading.Barrier(4)

    async def generate_once() -> ElkImagesError:
        task = asyncio.create_task(client.generate("a boat"))
        while not client._transport._pools:
            await asyncio.sleep(0)
        await asyncio.to_thread(barrier.wait, 10)
        with pytest.raises(ElkImagesError) as caught:
            await task
        check_clean(caught.value)
        return caught.value

    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(asyncio.run, generate_once()) for _ in range(3)]
        barrier.wait(10)
        asyncio.run(client.aclose())
        errors = [end.result(timeout=10) for end in ends]
    assert {type(error) for error in errors} <= {ConfigurationError, DisconnectedError}
    gc.collect()


def test_closing_while_another_loop_stops(threaded_server: LocalServer) -> None:
    """Closing does not depend on a loop that ends before it runs what other threads scheduled."""
    client = AsyncImages(API_KEY, base_url=threaded_server.base_url)
    loop = asyncio.new_event_loop()
    stopping, closing = threading.Event(), threading.Event()

    def stop() -> None:
        loop.stop()
        stopping.set()
        closing.wait(10)

    def run_loop() -> None:
        loop.run_until_complete(client.generate("a boat"))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.call_soon(stop)
        loop.run_forever()
        loop.close()

    async def close() -> None:
        task = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.1)
        closing.set()
        await task

    thread = threading.Thread(target=run_loop)
    thread.start()
    assert stopping.wait(10)
    asyncio.run(close())
    thread.join(10)
    gc.collect()


async def test_closing_while_another_loop_ends() -> None:
    """Closing in one loop while another one ends neither hangs nor is cancelled."""
    for _ in range(10):
        async with RawServer(GOOD) as raw_server:
            client = AsyncImages(API_KEY, base_url=raw_server.base_url)
            requested = asyncio.Event()
            here = asyncio.get_running_loop()

            async def generate_once(
                client: AsyncImages = client, requested: asyncio.Event = requested
            ) -> None:
                await client.generate("a boat")
                here.call_soon_threadsafe(requested.set)  # noqa: B023

            thread = asyncio.create_task(asyncio.to_thread(asyncio.run, generate_once()))
            await requested.wait()
            async with asyncio.timeout(SOON):
                await client.aclose()
            await thread


# --- fork -------------------------------------------------------------------

FORK = """
import asyncio, gc, os, sys, time
from elkimg_async import AsyncImages

client = AsyncImages(sys.argv[1], base_url=sys.argv[2])

async def ask(name):
    result = await client.generate("a boat")
    async with client.generate("a boat", stream=True) as stream:
        streamed = await stream.result()
    print(name, len(result), len(streamed), flush=True)

async def child():
    async with client:
        await ask("child")
    gc.collect()

def fork():
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(child())
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    print("status", status, flush=True)

async def within():
    await ask("parent")
    fork()
    await ask("parent again")

with asyncio.Runner() as runner:
    if sys.argv[3] == "between":
        runner.run(ask("parent"))
        fork()
        runner.run(ask("parent again"))
    else:
        runner.run(within())
    runner.run(client.aclose())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and epoll")
@pytest.mark.parametrize("where", ["between", "within"])
def test_fork(threaded_server: LocalServer, tmp_path: Path, where: str) -> None:
    """A forked child gets its own pool and may close it; the parent's connection works."""
    done = run_script(tmp_path, FORK, API_KEY, threaded_server.base_url, where)
    lines = ["parent 1 1", "child 1 1", "status 0", "parent again 1 1"]
    assert done.stdout.splitlines() == lines
    assert done.stderr == ""
    assert threaded_server.generations == 6


# --- never closed -----------------------------------------------------------

FORGOTTEN = """
import asyncio, gc, sys
from elkimg_async import AsyncImages

async def main():
    client = AsyncImages(sys.argv[1], base_url=sys.argv[2])
    await client.generate("a boat")
    if sys.argv[3] == "kept":
        globals()["kept"] = client
    elif sys.argv[3] == "within":
        del client
        gc.collect()
        await asyncio.sleep(0)

asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["within", "after"])
def test_never_closed(threaded_server: LocalServer, tmp_path: Path, way: str) -> None:
    """A client that is never closed is one ResourceWarning with the line that created it."""
    done = run_script(tmp_path, FORGOTTEN, API_KEY, threaded_server.base_url, way)
    assert done.returncode == 0
    assert done.stderr.count("Warning:") == done.stderr.count("ResourceWarning:") <= 2
    assert done.stderr.count("was never closed") == 1
    assert f"created at {tmp_path / 'script.py'}:6 was never closed" in done.stderr
    assert "Unclosed" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "sk-" not in done.stderr


def test_never_closed_in_a_module(threaded_server: LocalServer, tmp_path: Path) -> None:
    """A client in a global is silent at the end: each loop has closed its connections."""
    done = run_script(tmp_path, FORGOTTEN, API_KEY, threaded_server.base_url, "kept")
    assert (done.returncode, done.stderr) == (0, "")


# --- closed -----------------------------------------------------------------


async def test_closed_twice() -> None:
    """Closing twice, also concurrently, does nothing the second time; later calls raise."""
    async with RawServer(GOOD) as raw_server:
        async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
            await client.generate("a boat")
            await asyncio.gather(client.aclose(), client.aclose())
            await raw_server.wait_disconnected()
        await client.aclose()
        with pytest.raises(ConfigurationError, match="closed"):
            await client.generate("a boat")
        assert raw_server.accepted == 1


PHASES: dict[str, Reply] = {
    "headers": [End.HOLD],
    "body": [head(200, Content_Length="1000"), b'{"data": [{"b64', End.HOLD],
    "stream": [*open_stream(PARTIAL), End.HOLD],
}


@pytest.mark.parametrize("phase", PHASES)
async def test_closed_while_calls_run(phase: str) -> None:
    """All calls in flight when the client is closed fail at once and are not retried."""
    async with RawServer(PHASES[phase]) as raw_server:
        client = AsyncImages(API_KEY, base_url=raw_server.base_url)
        tasks = [
            asyncio.create_task(_failure(client, streaming)) for streaming in (False, True) * 5
        ]
        await raw_server.wait_until(lambda: len(raw_server.requests) == 10)
        started = time.monotonic()
        await client.aclose()
        errors = await asyncio.gather(*tasks)
        assert time.monotonic() - started < SOON
        await raw_server.wait_disconnected()
        assert len(raw_server.requests) == 10
    for error in errors:
        assert isinstance(error, (ConfigurationError, DisconnectedError))
        assert error.billing == "unknown"
        assert "closed" in str(error)


async def test_closed_while_a_call_waits_for_its_api_key() -> None:
    """A call whose API key arrives after closing sends nothing and opens nothing."""
    requested, gate = asyncio.Event(), asyncio.Event()

    async def key() -> str:
        requested.set()
        await gate.wait()
        return API_KEY

    async with RawServer(GOOD) as raw_server:
        client = AsyncImages(key, base_url=raw_server.base_url)
        task = asyncio.create_task(_failure(client, False))
        await requested.wait()
        await client.aclose()
        gate.set()
        try:
            assert isinstance(await task, ConfigurationError)
        finally:
            await client.aclose()
        assert raw_server.accepted == 0


@pytest.mark.parametrize("steps", range(8))
async def test_closed_while_a_download_begins(steps: int) -> None:
    """A download in progress when the client is closed leaves no connection open."""
    async with (
        RawServer(response(PNG)) as host,
        RawServer(response({"data": [{"url": f"{host.origin}/a.png"}]})) as api,
    ):
        client = AsyncImages(API_KEY, base_url=api.base_url)
        (image,) = await client.generate("a boat")
        task = asyncio.create_task(image.read())
        for _ in range(steps):
            await asyncio.sleep(0)
        await client.aclose()
        try:
            (end,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(end, DownloadError)
            async with asyncio.timeout(SOON):
                await host.wait_until(lambda: host.connections == 0)
        finally:
            await client.aclose()


async def _failure(client: AsyncImages, streaming: bool) -> ElkImagesError:
    with pytest.raises(ElkImagesError) as caught:
        await run_call(client, streaming)
    check_clean(caught.value)
    return caught.value


def test_loop_closed_before_the_client(threaded_server: LocalServer) -> None:
    """A client whose loop is closed can be closed in another loop without warnings."""
    client = AsyncImages(API_KEY, base_url=threaded_server.base_url)

    async def generate_once() -> int:
        return len(await client.generate("a boat"))

    assert asyncio.run(generate_once()) == 1
    gc.collect()
    asyncio.run(client.aclose())
    gc.collect()


def test_loop_closed_without_its_generators(threaded_server: LocalServer) -> None:
    """A loop closed with tasks still in it does not keep its client from being closed or used."""
    client = AsyncImages(API_KEY, base_url=threaded_server.base_url)

    async def generate_once() -> int:
        return len(await client.generate("a boat"))

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(generate_once()) == 1
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert asyncio.run(generate_once()) == 1
    asyncio.run(client.aclose())
    gc.collect()
