"""The local server in a thread, used without an event loop, with one, and with several."""

import asyncio
import threading

import pytest

from elkimg_async import AsyncImages, ConfigurationError
from elkimg_async.local import LocalServer, ThreadedServer


def make(**options: object) -> ThreadedServer:
    return ThreadedServer(LocalServer(light=True, delay=0, **options))  # type: ignore[arg-type]


async def generate(server: ThreadedServer) -> int:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client:
        return len(await client.generate("a boat"))


def test_threaded_server_serves_several_loops() -> None:
    """Clients of consecutive and of concurrent event loops are served."""
    with make() as server:
        assert asyncio.run(generate(server)) == 1
        beside = threading.Thread(target=lambda: asyncio.run(generate(server)))
        beside.start()
        assert asyncio.run(generate(server)) == 1
        beside.join()
        assert server.generations == 3
    assert len(server.requests) == 3
    assert {request.outcome for request in server.requests} == {"answered"}


def test_threaded_server_ends_with_its_thread() -> None:
    """The thread ends with the block; closing is idempotent, and the server can start again."""
    server = make()
    with server:
        (thread,) = [each for each in threading.enumerate() if each.name == "elkimg-local"]
        server.start()
        assert [each for each in threading.enumerate() if each.name == "elkimg-local"] == [thread]
    server.close()
    assert not thread.is_alive()
    with server:
        assert asyncio.run(generate(server)) == 1


def test_threaded_server_close_in_flight() -> None:
    """Closing does not wait for a response that never ends."""

    async def hang(server: ThreadedServer) -> None:
        call = asyncio.create_task(generate(server))
        await server.wait_until(lambda: len(server.requests) == 1)
        await asyncio.to_thread(server.close)
        with pytest.raises(Exception, match="connection"):
            await call

    with make(faults=["stall-headers"]) as server:
        asyncio.run(hang(server))


def test_threaded_server_port_taken() -> None:
    """An error of the start is raised by `start`, and no thread remains."""
    with make() as first:
        port = int(first.base_url.rpartition(":")[2].removesuffix("/v1"))
        second = make(port=port)
        with pytest.raises(ConfigurationError, match="port"):
            second.start()
        second.close()
        assert sum(each.name == "elkimg-local" for each in threading.enumerate()) == 1


def test_threaded_server_unknown_fault() -> None:
    """An unknown fault is raised in the calling thread."""
    with make() as server, pytest.raises(ConfigurationError, match="earthquake"):
        server.inject("earthquake")


async def test_threaded_server_wait_until() -> None:
    """`wait_until` ends with its condition, raises its exceptions, and has a limit."""
    with make() as server:

        def broken() -> bool:
            raise LookupError("oops")

        with pytest.raises(LookupError, match="oops"):
            await server.wait_until(broken)
        with pytest.raises(TimeoutError):
            await server.wait_until(lambda: bool(server.requests), within=0.01)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.wait_until(lambda: server.generations == 2))
            tasks.create_task(generate(server))
            tasks.create_task(generate(server))
    assert repr(server) == "<ThreadedServer of <LocalServer not started, 2 generations>>"
