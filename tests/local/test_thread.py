"""The local server in a thread: for callers without a loop, with one, with several."""

import asyncio
import threading

import pytest

from elkimg_async import AsyncImages, ConfigurationError
from elkimg_async.local import LocalServer, ThreadedServer


def make(**options: object) -> ThreadedServer:
    return ThreadedServer(LocalServer(light=True, delay=0, **options))  # type: ignore[arg-type]


async def ask(server: ThreadedServer) -> int:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client:
        return len(await client.generate("a boat"))


def test_threaded_server_serves_several_loops() -> None:
    """Clients of one loop after the other, and of two at once, are served; the records are there for all."""
    with make() as server:
        assert asyncio.run(ask(server)) == 1
        beside = threading.Thread(target=lambda: asyncio.run(ask(server)))
        beside.start()
        assert asyncio.run(ask(server)) == 1
        beside.join()
        assert server.generations == 3
    assert len(server.requests) == 3
    assert {request.outcome for request in server.requests} == {"answered"}


def test_threaded_server_ends_with_its_thread() -> None:
    """After the block neither thread nor port is left; closing again does nothing, and it may start anew."""
    server = make()
    with server:
        (thread,) = [each for each in threading.enumerate() if each.name == "elkimg-local"]
        server.start()
        assert [each for each in threading.enumerate() if each.name == "elkimg-local"] == [thread]
    server.close()
    assert not thread.is_alive()
    with server:
        assert asyncio.run(ask(server)) == 1


def test_threaded_server_breaks_off_what_is_under_way() -> None:
    """Closing does not wait for an answer that never ends."""

    async def hang(server: ThreadedServer) -> None:
        call = asyncio.create_task(ask(server))
        await server.wait_until(lambda: len(server.requests) == 1)
        await asyncio.to_thread(server.close)
        with pytest.raises(Exception, match="connection"):
            await call

    with make(faults=["stall-headers"]) as server:
        asyncio.run(hang(server))


def test_threaded_server_that_cannot_start() -> None:
    """What keeps it from starting is raised where it is started, and it is not left half alive."""
    with make() as first:
        port = int(first.base_url.rpartition(":")[2].removesuffix("/v1"))
        second = make(port=port)
        with pytest.raises(ConfigurationError, match="port"):
            second.start()
        second.close()
        assert sum(each.name == "elkimg-local" for each in threading.enumerate()) == 1


def test_threaded_server_refuses_an_unknown_fault() -> None:
    """A wrong fault is the caller's error, raised in the caller's thread."""
    with make() as server, pytest.raises(ConfigurationError, match="earthquake"):
        server.inject("earthquake")


async def test_threaded_server_wait_until() -> None:
    """A wait ends when its condition holds, passes on what the condition raises, and has a limit."""
    with make() as server:

        def broken() -> bool:
            raise LookupError("oops")

        with pytest.raises(LookupError, match="oops"):
            await server.wait_until(broken)
        with pytest.raises(TimeoutError):
            await server.wait_until(lambda: bool(server.requests), within=0.01)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.wait_until(lambda: server.generations == 2))
            tasks.create_task(ask(server))
            tasks.create_task(ask(server))
    assert repr(server) == "<ThreadedServer of <LocalServer not started, 2 generations>>"
