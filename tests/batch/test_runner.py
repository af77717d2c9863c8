"""The items of a run: which, in which order, and how many at a time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import elkimg_async
from elkimg_async import (
    AsyncImages,
    BadRequestError,
    ConfigurationError,
    GenerateRequest,
    InvalidRequestError,
    Usage,
)
from elkimg_async.local import LocalServer
from tests.helpers.raw_server import API_KEY, PNG
from tests.helpers.runs import (
    Fields,
    Server,
    everything,
    hold,
    images,
    in_order,
    rejection,
)


async def test_map_of_mixed_requests(server: Server, client: AsyncImages) -> None:
    """Prompts, mappings and requests may be mixed.

    An item's own fields win over the run's options.
    """
    requests: list[Any] = [
        "a boat",
        {"prompt": "a hut", "n": 2, "size": None},
        GenerateRequest(prompt="an owl", quality="high"),
    ]
    items = in_order(await everything(client.map(requests, size="1024x1024", quality="low")))
    assert [item.index for item in items] == [0, 1, 2]
    assert [item.ok for item in items] == [True] * 3
    received = sorted(server.requests, key=lambda fields: fields["prompt"])
    model = "gpt-image-1.5"
    assert received == [
        {"prompt": "a boat", "model": model, "size": "1024x1024", "quality": "low"},
        {"prompt": "a hut", "model": model, "n": 2, "size": "1024x1024", "quality": "low"},
        {"prompt": "an owl", "model": model, "size": "1024x1024", "quality": "high"},
    ]
    item = items[2]
    assert item.request == GenerateRequest(prompt="an owl", quality="high", size="1024x1024")
    assert item.result is not None
    assert item.result[0].content == PNG
    assert item.meta is item.result.meta
    assert (item.error, item.paths, item.attempts, item.resumed) == (None, (), 1, False)
    assert item.usage == Usage(total_tokens=10)


async def test_map_with_a_slow_request(server: Server, client: AsyncImages) -> None:
    """A slow request does not hold up the others."""
    released = hold(server, "0")
    async with client.map(map(str, range(5)), concurrency=2) as run:
        order = []
        async for item in run:
            order.append(item.index)
            if len(order) == 4:
                released.set()
    assert sorted(order[:4]) == [1, 2, 3, 4]
    assert order[4] == 0


async def test_map_ordered_with_a_slow_request(server: Server, client: AsyncImages) -> None:
    """In order, a slow request lets at most twice the concurrency start."""
    released = hold(server, "0")
    async with client.map(map(str, range(30)), concurrency=4, ordered=True) as run:
        await server.wait_until(lambda: len(server.requests) == 8 and server.in_flight == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.requests) == 8
        released.set()
        assert [item.index async for item in run] == list(range(30))


async def test_map_concurrency_bound(server: Server, client: AsyncImages) -> None:
    """`concurrency` is reached, and never exceeded."""

    async def respond(fields: Fields) -> Fields | web.Response:
        await server.wait_until(lambda: server.in_flight == 5 or len(server.requests) > 40)
        return images(PNG)

    server.respond = respond
    async with client.map(map(str, range(50)), concurrency=5) as run:
        async for _ in run:
            assert run.in_flight <= 5
    assert server.peak == 5


async def test_map_with_a_slow_reader(server: Server, client: AsyncImages) -> None:
    """Items that were not read yet count towards the concurrency."""
    async with client.map(map(str, range(100)), concurrency=3) as run:
        for taken in range(1, 5):
            await server.wait_until(lambda: server.in_flight == 0 and len(server.requests) >= 3)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(server.requests) <= 2 + taken
            await anext(run)


async def test_map_after_a_failure(server: Server, client: AsyncImages) -> None:
    """A failed request is an item with its error; the others succeed."""

    async def respond(fields: Fields) -> Fields | web.Response:
        return rejection(400, "moderation_blocked") if "bad" in fields["prompt"] else images(PNG)

    server.respond = respond
    async with client.map(["1", "bad", "2"]) as run:
        items = in_order([item async for item in run])
    assert [item.ok for item in items] == [True, False, True]
    error = items[1].error
    assert isinstance(error, BadRequestError)
    assert (items[1].result, items[1].attempts, error.code) == (None, 1, "moderation_blocked")
    assert (run.totals.done, run.totals.failed, run.totals.images) == (2, 1, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"concurrency": None},
        {"max_errors": 0},
        {"max_images": 1.5},
        {"max_total_tokens": "7"},
    ],
    ids=str,
)
async def test_map_options_out_of_range(options: Any, client: AsyncImages) -> None:
    """Options out of range are rejected before anything is opened."""
    with pytest.raises(ConfigurationError, match="at least 1"):
        client.map([], **options)


async def test_map_options_unknown(client: AsyncImages) -> None:
    """An unknown option is a TypeError, as for any function."""
    with pytest.raises(TypeError, match="'sise'"):
        client.map([], sise="1024x1024")  # type: ignore[call-arg]
    with pytest.raises(InvalidRequestError, match="headers"):
        client.map([], extra_headers={"a b": "c"})


async def test_map_of_nothing(client: AsyncImages) -> None:
    """A run without requests yields no items."""
    assert await everything(client.map([])) == []
    assert await everything(client.map(iter(()))) == []


async def test_map_stream() -> None:
    """With `stream=True` each request is streamed, and the finished images are the result."""
    async with (
        LocalServer(light=True, delay=0) as local,
        AsyncImages(local.api_key, base_url=local.base_url) as streaming,
    ):
        run = streaming.map(["a boat", "a hut"], stream=True, partial_images=0)
        items = await everything(run)
        assert [len(item.result or ()) for item in items] == [1, 1]
        assert all(seen.fields["stream"] is True for seen in local.requests)
        assert all(seen.fields["partial_images"] == 0 for seen in local.requests)


async def test_map_call_options(server: Server, client: AsyncImages) -> None:
    """Headers, `timeout` and `retry` apply to each call."""
    failures = iter([rejection(503)])

    async def respond(fields: Fields) -> Fields | web.Response:
        return next(failures, None) or images(PNG)

    server.respond = respond
    policy = elkimg_async.RetryPolicy(initial_backoff=0, max_retries=1)
    (item,) = await everything(client.map(["a"], extra_headers={"X-Team": "t"}, retry=policy))
    assert (item.ok, item.attempts) == (True, 2)
    assert [headers["X-Team"] for headers in server.headers] == ["t", "t"]
    assert len(set(server.keys)) == 1
    hold(server)
    (item,) = await everything(client.map(["a"], timeout=0.05))
    assert isinstance(item.error, TimeoutError)


async def test_map_default_total_time(server: Server) -> None:
    """The default total time does not apply in a run, where calls wait for each other."""
    from elkimg_async.config import TOTAL

    async with AsyncImages(API_KEY, base_url=server.base_url) as client:
        run = client.map(["a"])
        settings = run._backend._sender._client._settings  # type: ignore[attr-defined]
        assert settings.timeout.total > TOTAL
        run = client.map(["a"], timeout=5)
        settings = run._backend._sender._client._settings  # type: ignore[attr-defined]
        assert settings.timeout.total == 5


async def test_map_item_never_delivered(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """An item whose delivery was cancelled while it was recorded is sent again."""
    journal = tmp_path / "run.jsonl"
    async with client.map(["0"], journal=journal) as run:
        await server.wait_until(lambda: len(server.requests) == 1 and not server.in_flight)
        while not run._backend._ready:  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
        taking = asyncio.create_task(anext(run))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
    again = await everything(client.map(["0"], journal=journal))
    assert [(item.ok, item.resumed, item.result is None) for item in again] == [
        (True, False, False)
    ]
    assert server.keys[0] == server.keys[1]


async def test_map_journal_without_a_folder(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Without an output folder, an item is finished when the user has received it."""
    async with client.map(["0", "1", "2"], journal=tmp_path / "j", ordered=True) as run:
        await anext(run)
        await server.wait_until(lambda: len(server.requests) == 3 and server.in_flight == 0)
        await asyncio.sleep(0.05)
    items = in_order(await everything(client.map(["0", "1", "2"], journal=tmp_path / "j")))
    assert [item.resumed for item in items] == [True, False, False]
    assert items[0].result is None
    assert items[1].result is not None
    assert set(server.keys[1:3]) == set(server.keys[3:])
