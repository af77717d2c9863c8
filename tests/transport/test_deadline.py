"""Time limits, and their interruption."""

import asyncio

import pytest

from elkimg_async import ConfigurationError, RequestTimeoutError
from elkimg_async.transport.deadline import Deadline

CLOSED = ConfigurationError("closed")


async def wait_for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_deadline_passes() -> None:
    """A wait ends with an error that names its limit, and leaves the task as it was."""

    async def work() -> None:
        with Deadline(10, soonest=0.01) as deadline:
            deadline.allow("idle", 0.01)
            await wait_for_ever()

    with pytest.raises(RequestTimeoutError) as caught:
        await work()
    assert caught.value.limit == "idle"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_deadline_interrupted() -> None:
    """An interruption ends the wait, and every later one."""
    deadline = Deadline(10)
    asyncio.get_running_loop().call_later(0.01, deadline.interrupt, CLOSED)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="closed"), deadline:
            await wait_for_ever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_deadline_interrupted_and_cancelled() -> None:
    """A cancellation from outside remains a cancellation."""
    deadline = Deadline(10)

    async def work() -> None:
        with deadline:
            await wait_for_ever()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    deadline.interrupt(CLOSED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
