"""Reading the requests of a run from iterables."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from elkimg_async import (
    AsyncImages,
    BatchError,
    GenerateRequest,
    InvalidRequestError,
)
from tests.helpers.runs import (
    Server,
    hold,
    in_order,
    until_the_end,
)


@pytest.mark.parametrize("kind", ["list", "generator", "async generator", "file"])
async def test_source_lazy_reading(
    kind: str, server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A long input is read as there is room for it, by a thread a few items ahead."""
    read: list[int] = []

    def count() -> Iterator[str]:
        for number in range(1000):
            read.append(number)
            yield f"{number}"

    async def count_later() -> AsyncIterator[str]:
        for prompt in count():
            yield prompt

    (tmp_path / "prompts.txt").write_text("".join(f"{number}\n" for number in range(1000)))
    released = hold(server)
    with (tmp_path / "prompts.txt").open() as file:
        given: Any = {
            "list": list(map(str, range(1000))),
            "generator": count(),
            "async generator": count_later(),
            "file": file,
        }[kind]
        async with client.map(given, concurrency=4) as run:
            await server.wait_until(lambda: server.in_flight == 4)
            released.set()
            assert (await anext(run)).ok
    assert len(read) <= {"generator": 4 + 4 + 3, "async generator": 4 + 3}.get(kind, 0)


async def test_source_that_blocks(server: Server, client: AsyncImages) -> None:
    """While a plain iterable waits, the loop keeps running, and leaving does not wait for it."""
    blocked, wake = threading.Event(), threading.Event()

    def prompts() -> Iterator[str]:
        yield "a boat"
        blocked.set()
        wake.wait()
        yield "never requested"

    async with client.map(prompts()) as run:
        assert (await anext(run)).ok
        assert blocked.wait(5)
        with anyio.move_on_after(0.05) as scope:
            await anext(run)
        assert scope.cancelled_caught
    wake.set()
    assert len(server.requests) == 1


@pytest.mark.parametrize("later", [False, True])
async def test_source_that_raises(later: bool, server: Server, client: AsyncImages) -> None:
    """The items in flight are delivered before the iterable's own exception."""

    def broken() -> Iterator[str]:
        yield from ("1", "2", "3")
        raise LookupError("the table is gone")

    async def broken_later() -> AsyncIterator[str]:
        for prompt in broken():
            yield prompt

    run = client.map(broken_later() if later else broken(), concurrency=8)
    items, error = await until_the_end(run)
    assert [item.index for item in in_order(items)] == [0, 1, 2]
    assert isinstance(error, LookupError)
    assert str(error) == "the table is gone"


@pytest.mark.parametrize("given", ["a boat", b"a", GenerateRequest(prompt="a"), {"prompt": "a"}, 7])
async def test_source_of_a_single_request(given: Any, client: AsyncImages) -> None:
    """A single prompt is an error, not an iterable of characters."""
    with pytest.raises(InvalidRequestError, match="iterable"):
        client.map(given)


async def test_source_cancelled_from_within(server: Server, client: AsyncImages) -> None:
    """An input whose own task was cancelled is an error, after the items in flight."""

    async def prompts() -> AsyncIterator[str]:
        yield "0"
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    seen, error = await until_the_end(client.map(prompts()))
    assert [item.ok for item in seen] == [True]
    assert isinstance(error, BatchError)
    assert "cancelled from within" in str(error)
