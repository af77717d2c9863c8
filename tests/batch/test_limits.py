"""Runs that reach a limit."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from elkimg_async import (
    AsyncImages,
    BatchStoppedError,
    MapItem,
    MapRun,
    ServerError,
    Totals,
    Usage,
)
from elkimg_async.config import IdempotencyMode
from tests.helpers.raw_server import API_KEY, PNG
from tests.helpers.runs import (
    Fields,
    Server,
    everything,
    hold,
    images,
    in_order,
    rejection,
    until_the_end,
)


async def test_max_images(server: Server, client: AsyncImages, tmp_path: Path) -> None:
    """Requests in flight count, rejected ones do not; a higher limit continues the run."""

    async def respond(fields: Fields) -> Fields | web.Response:
        return rejection(400) if fields["prompt"] in ("1", "2") else images(*[PNG] * fields["n"])

    server.respond = respond
    journal = tmp_path / "j.jsonl"

    async def run(limit: int) -> tuple[list[MapItem], BatchStoppedError | None]:
        requests = ({"prompt": f"{n}", "n": 2} for n in range(20))
        items, error = await until_the_end(
            client.map(requests, concurrency=8, max_images=limit, journal=journal)
        )
        assert error is None or isinstance(error, BatchStoppedError)
        return items, error

    items, error = await run(11)
    assert error is not None
    assert error.reason == "max_images"
    assert sum(len(item.result or ()) for item in items) == 10
    assert sum(not item.ok for item in items) == 2
    assert isinstance(error.totals, Totals)
    assert (error.totals.done, error.totals.failed, error.totals.images) == (5, 2, 10)
    assert "max_images=11" in str(error)
    items, error = await run(14)
    assert error is not None
    assert error.totals.images == 14
    items, error = await run(36)
    assert error is None
    assert len(items) == 20
    assert sum(item.ok for item in items) == 18


async def test_max_images_with_unknown_failures(server: Server, client: AsyncImages) -> None:
    """A failure with an unknown outcome counts its images."""

    async def respond(fields: Fields) -> Fields | web.Response:
        return web.Response(status=502, text="<html>")

    server.respond = respond
    _, error = await until_the_end(client.map(map(str, range(9)), max_images=3, concurrency=2))
    assert isinstance(error, BatchStoppedError)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("mode", "given"), [("off", 2), ("send", 2), ("replay", 8)])
async def test_max_images_after_killed_runs(
    server: Server, tmp_path: Path, mode: IdempotencyMode, given: int
) -> None:
    """Requests in flight when a run was killed count each time, or once if replayed."""
    requests = [{"prompt": f"{number}", "n": 2} for number in range(20)]

    async def respond(fields: Fields) -> Fields | web.Response:
        return images(PNG, PNG)

    async with AsyncImages(API_KEY, base_url=server.base_url, idempotency=mode) as client:

        def run(limit: int | None = None) -> MapRun:
            journal = tmp_path / "j.jsonl"
            return client.map(requests, concurrency=3, journal=journal, max_images=limit)

        hold(server)
        for _ in range(2):
            async with run():
                await server.wait_until(lambda: server.in_flight == 3)
            await server.wait_until(lambda: server.in_flight == 0)
        server.respond = respond
        items, error = await until_the_end(run(16))
        assert isinstance(error, BatchStoppedError)
        assert (len(items), error.reason) == (given, "max_images")
        paid = set(server.keys) if mode == "replay" else server.requests
        assert 2 * len(paid) == 16
        items, _ = await until_the_end(run(19))
        assert sum(not item.resumed for item in items) == 1


async def test_max_total_tokens_after_a_killed_run(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Images of unknown price are assumed to cost as much as the others."""

    async def respond(fields: Fields) -> Fields | web.Response:
        if not released and fields["prompt"] != "0":
            await asyncio.Event().wait()
        return images(PNG, tokens=100)

    server.respond, released = respond, False
    options: Any = {"concurrency": 3, "journal": tmp_path / "j.jsonl"}
    async with client.map(map(str, range(9)), **options) as run:
        await anext(run)
        await server.wait_until(lambda: server.in_flight == 3)
    released = True
    run = client.map(map(str, range(9)), max_total_tokens=650, **options)
    items, error = await until_the_end(run)
    assert isinstance(error, BatchStoppedError)
    assert error.reason == "max_total_tokens"
    assert len(items) == 3
    assert len(server.requests) == 6


async def test_max_total_tokens(server: Server, client: AsyncImages) -> None:
    """The first request sets the price at which those in flight are counted."""

    async def respond(fields: Fields) -> Fields | web.Response:
        return images(PNG, tokens=100)

    server.respond = respond
    run = client.map(map(str, range(90)), max_total_tokens=1050, concurrency=7)
    _, error = await until_the_end(run)
    assert isinstance(error, BatchStoppedError)
    assert error.reason == "max_total_tokens"
    assert error.totals.usage == Usage(total_tokens=1000)
    assert len(server.requests) == 10


async def test_max_errors_with_invalid_items(client: AsyncImages) -> None:
    """Invalid items end a run like other failures."""
    seen, error = await until_the_end(client.map([{"wrong": 1}] * 50, max_errors=3))
    assert isinstance(error, BatchStoppedError)
    assert len(seen) == 3


async def test_max_errors(server: Server, client: AsyncImages) -> None:
    """At the limit nothing more starts, and what is in flight is delivered first."""

    async def respond(fields: Fields) -> Fields | web.Response:
        return rejection(500) if int(fields["prompt"]) >= 10 else images(PNG)

    server.respond = respond
    run = client.map(map(str, range(1000)), max_errors=3, concurrency=4)
    seen, error = await until_the_end(run)
    assert isinstance(error, BatchStoppedError)
    assert "max_errors=3" in str(error)
    failed = [item for item in seen if not item.ok]
    assert 3 <= len(failed) <= 3 + 3
    assert all(isinstance(item.error, ServerError) for item in failed)
    assert error.totals.failed == len(failed)
    assert len(server.requests) == len(seen)


async def test_limit_reached_by_the_last_request(server: Server, client: AsyncImages) -> None:
    """A limit reached by the last request does not stop the run early."""
    mixed: list[Any] = ["1", "2", 3]
    items = await everything(client.map(mixed, max_images=2, max_errors=1))
    assert [item.ok for item in in_order(items)] == [True, True, False]
