"""Clients, sessions and event loops."""

import asyncio
import gc
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import anyio
import anyio.from_thread
import pytest

from elkimg_async import (
    AsyncImages,
    AuthenticationError,
    ConfigurationError,
    Image,
    ImageStream,
    NotFoundError,
    RateLimitError,
    RequestTimeoutError,
)
from elkimg_async.hooks import Record, RetryScheduled
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    BUSY,
    GOOD,
    NO_RESPONSE,
    QUICK,
    error_response,
    failure,
    failure_of_any_kind,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    RawServer,
)


def test_generate_return_types() -> None:
    """A batch call returns a coroutine, which task groups accept; a stream an ImageStream."""
    client = AsyncImages(API_KEY)
    batch = client.generate("a boat")
    assert inspect.iscoroutine(batch)
    batch.close()
    with pytest.warns(ResourceWarning, match="never read"):
        assert isinstance(client.generate("a boat", stream=True), ImageStream)


async def test_tasks(client: AsyncImages) -> None:
    """Tasks, task groups, gather and anyio take the call as it is."""
    task = asyncio.create_task(client.generate("a boat"))
    async with asyncio.TaskGroup() as group:
        other = group.create_task(client.generate("a boat"))
    (third,) = await asyncio.gather(client.generate("a boat"))
    async with anyio.create_task_group() as anyio_group:
        anyio_group.start_soon(client.generate, "a boat")
    assert (await task).data == other.result().data == third.data


async def test_errors_in_a_task_group(raw_client: AsyncImages, raw_server: RawServer) -> None:
    """One call that fails in a task group cancels the others, whose connections are closed."""
    raw_server.reply_with(NO_RESPONSE, error_response(401))

    async def generate_twice() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(raw_client.generate("a boat"))
            await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
            group.create_task(raw_client.generate("a boat"))

    with pytest.raises(ExceptionGroup) as caught:
        # In a task of its own, since Python 3.11 may leave the parent of a failed group cancelled.
        await asyncio.create_task(generate_twice())
    (error,) = caught.value.exceptions
    assert isinstance(error, AuthenticationError)
    await raw_server.wait_until(
        lambda: raw_server.connections == 1
    )  # that of the error response is kept


async def test_nothing_is_opened_before_the_first_call(server: LocalServer) -> None:
    """A client that is created, entered and left opens nothing."""
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        assert repr(client)
    assert server.connections == 0


async def test_connections_are_reused(client: AsyncImages, server: LocalServer) -> None:
    """Successive calls share one connection, also after an error response."""
    for model in ("gpt-image-1", "unknown-model", "gpt-image-1"):
        with pytest.raises(NotFoundError) if model == "unknown-model" else anyio.CancelScope():
            await client.generate("a boat", model=model)
        assert server.connections == 1


async def test_closing_closes_the_connections(server: LocalServer) -> None:
    """After the block the server sees no connection any more."""
    async with AsyncImages(server.api_key, base_url=server.base_url) as client:
        await client.generate("a boat")
        assert server.connections == 1
    await server.wait_until(lambda: server.connections == 0)


@in_both_modes
async def test_closing_while_a_call_runs(raw_server: RawServer, streaming: bool) -> None:
    """A call in flight when its client is closed fails and is not tried again."""
    raw_server.reply_with(NO_RESPONSE)
    client = AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK)
    task = asyncio.create_task(failure_of_any_kind(client, streaming))
    await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
    await client.aclose()
    error = await task
    assert isinstance(error, ConfigurationError)
    assert "closed" in str(error)
    assert error.billing == "unknown"
    assert raw_server.accepted == 1


@in_both_modes
async def test_closing_while_a_call_waits_for_its_retry(
    raw_server: RawServer, streaming: bool
) -> None:
    """A call between two attempts opens no connection for a closed client."""
    scheduled = asyncio.Event()

    def hook(record: Record) -> None:
        if isinstance(record, RetryScheduled):
            scheduled.set()

    raw_server.reply_with(error_response(429, Retry_After_Ms="50"), GOOD)
    client = AsyncImages(API_KEY, base_url=raw_server.base_url, hooks=[hook])
    task = asyncio.create_task(failure_of_any_kind(client, streaming))
    try:
        await scheduled.wait()
        await client.aclose()
        assert isinstance(await task, ConfigurationError)
    finally:
        await client.aclose()
    assert len(raw_server.requests) == 1


async def test_client_never_closed(server: LocalServer) -> None:
    """A client that is never closed is a ResourceWarning, not a crash."""
    client = AsyncImages(server.api_key, base_url=server.base_url)
    await client.generate("a boat")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
        await server.wait_until(lambda: server.connections == 0)
        gc.collect()
    assert ResourceWarning in {warning.category for warning in caught}


async def test_with_options(raw_server: RawServer) -> None:
    """A view has other options on the same connections, and does not change the client."""
    raw_server.reply_with(BUSY)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        view = client.with_options(retry=QUICK, headers={"X-View": "yes"})
        assert (await failure(RateLimitError, view)).attempts == 3
        assert (await failure(RateLimitError, client)).attempts == 1
        raw_server.reply_with(NO_RESPONSE)
        # Not shorter: after four error responses the client has slowed down.
        error = await failure(RequestTimeoutError, client.with_options(timeout=3))
        assert (error.limit, error.phase) == ("total", "first_byte")
        assert raw_server.accepted == 1
    sent = [request.headers.get("x-view") for request in raw_server.requests]
    assert sent == ["yes", "yes", "yes", None, None]


async def test_with_options_of_a_view(raw_server: RawServer) -> None:
    """Views of views keep the options they do not change; closing one closes all."""
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, headers={"X-A": "1"}) as client:
        view = client.with_options(headers={"X-B": "2"}).with_options(retry=0)
        await view.generate("a boat")
        sent = raw_server.requests[-1].headers
        assert (sent["x-a"], sent["x-b"]) == ("1", "2")
        await view.aclose()
        await failure(ConfigurationError, client)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"retry": -1}, {"headers": {"authorization": "x"}}], ids=str
)
def test_with_options_invalid(options: dict[str, Any]) -> None:
    """A view is checked as a client is."""
    with pytest.raises(ConfigurationError):
        AsyncImages(API_KEY).with_options(**options)


async def test_borrowed_session(server: LocalServer) -> None:
    """A session passed by the user is used and not closed."""
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as session:
        async with AsyncImages(server.api_key, base_url=server.base_url, session=session) as client:
            _, result = await run_call(client, streaming=True)
            assert len(result) == 1
        assert not session.closed
        assert server.requests[-1].headers["x-mine"] == "yes"
        assert server.connections == 1
        async with session.get(f"{server.base_url}/models") as response:
            assert response.status == 401


async def test_borrowed_session_that_is_closed(server: LocalServer) -> None:
    """A closed session is an error that says so, before anything is sent."""
    session = aiohttp.ClientSession()
    await session.close()
    async with AsyncImages(server.api_key, base_url=server.base_url, session=session) as client:
        error = await failure(ConfigurationError, client)
    assert "session is closed" in str(error)
    assert error.billing == "not_sent"


@in_both_modes
async def test_borrowed_session_that_raises_for_status(
    raw_server: RawServer, streaming: bool
) -> None:
    """A session with `raise_for_status` does not hide the error response."""
    raw_server.reply_with(error_response(401))
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        AsyncImages(API_KEY, base_url=raw_server.base_url, session=session) as client,
    ):
        error = await failure(AuthenticationError, client, streaming)
    assert error.status == 401


async def test_borrowed_session_with_short_timeouts(raw_server: RawServer) -> None:
    """The session's own timeouts do not cut a call short: images take minutes."""
    gate = asyncio.Event()
    raw_server.reply_with([gate, *GOOD])
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05, sock_read=0.05))
    async with (
        session,
        AsyncImages(API_KEY, base_url=raw_server.base_url, session=session) as client,
    ):
        task = asyncio.create_task(client.generate("a boat"))
        await asyncio.wait([task], timeout=0.15)
        gate.set()
        assert len(await task) == 1


@pytest.fixture
def threaded_server() -> Iterator[LocalServer]:
    """A local server in a thread with its own event loop."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(LocalServer(light=True, delay=0)) as server,
    ):
        yield server


def test_two_loops_in_turn(threaded_server: LocalServer) -> None:
    """One client serves successive `asyncio.run` calls without a warning."""
    client = AsyncImages(threaded_server.api_key, base_url=threaded_server.base_url)

    async def generate_twice() -> list[Image]:
        await client.generate("a boat")
        async with client.generate("a boat", stream=True) as stream:
            return (await stream.result()).data

    async def generate_and_close() -> list[Image]:
        async with client:
            return await generate_twice()

    first = asyncio.run(generate_twice())
    assert asyncio.run(generate_and_close()) == first
    gc.collect()
    assert len(threaded_server.requests) == 4


def test_many_loops_in_turn(threaded_server: LocalServer) -> None:
    """The pools of finished loops do not accumulate in a long-lived client."""
    client = AsyncImages(threaded_server.api_key, base_url=threaded_server.base_url)

    async def generate_once() -> None:
        await client.generate("a boat")

    for _ in range(5):
        asyncio.run(generate_once())
    pools = len(client._transport._pools)
    asyncio.run(client.aclose())
    gc.collect()
    assert pools <= 1


def test_two_loops_at_once(threaded_server: LocalServer) -> None:
    """One client serves two threads with a loop each; closing it in one closes both pools."""
    client = AsyncImages(threaded_server.api_key, base_url=threaded_server.base_url)

    async def generate_once() -> list[Image]:
        return (await client.generate("a boat")).data

    with (
        anyio.from_thread.start_blocking_portal() as one,
        anyio.from_thread.start_blocking_portal() as two,
    ):
        assert one.call(generate_once) == two.call(generate_once)
        one.call(client.aclose)
        with pytest.raises(ConfigurationError, match="closed"):
            two.call(generate_once)
    gc.collect()


@in_both_modes
async def test_call_leaves_nothing_to_the_garbage_collector(
    raw_server: RawServer, raw_client: AsyncImages, streaming: bool
) -> None:
    """The objects of a call, images included, are freed with its last reference."""

    def held() -> Counter[str]:
        names = (type(thing).__name__ for thing in gc.get_objects())
        return Counter(name for name in names if name in ("Call", "Exchange", "Deadline", "Image"))

    await run_call(raw_client, streaming)
    gc.collect()
    gc.disable()
    try:
        before = held()
        await run_call(raw_client, streaming)
        assert held() == before
    finally:
        gc.enable()
