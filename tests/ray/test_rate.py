"""The shared rate limit of workers."""

import asyncio
import time

import anyio

from elkimg_async.ray.rate import RateActor
from elkimg_async.sansio.responses import RateLimit

PNG = b"\x89PNG\r\n\x1a\n and so on"


def actor(**limits: float) -> RateActor:
    """Return the actor's object with limits."""
    return RateActor({"max_concurrency": 1, **limits})


async def waiting(actor: RateActor, *takes: tuple[str, int]) -> list[asyncio.Task[bool]]:
    """Return tasks that wait for a turn, in this order."""
    tasks = [asyncio.create_task(actor.take(holder, number, 1)) for holder, number in takes]
    while (await actor.state())["waiting"] < len(tasks):
        await anyio.sleep(0)
    return tasks


async def test_rate_order() -> None:
    """Turns are granted in the order of the requests."""
    rate = actor()
    assert await rate.take("a", 1, 1)
    second, third = await waiting(rate, ("b", 1), ("a", 2))
    await rate.release("a", 1)
    assert await second
    assert not third.done()
    await rate.release("b", 1)
    assert await third
    assert await rate.state() == {"waiting": 0, "in_flight": 1, "workers": 2}


async def test_rate_of_a_dead_worker() -> None:
    """After its lease, a silent worker holds no permits and no places in the queue."""
    rate = actor()
    assert await rate.take("dead", 1, 1)
    dead, alive = await waiting(rate, ("dead", 2), ("alive", 1))
    rate.expire(time.monotonic() + 9.0)
    assert not alive.done()
    rate._holders["alive"].heard += 20.0
    rate.expire(time.monotonic() + 11.0)
    assert not await dead
    assert await alive
    assert await rate.state() == {"waiting": 0, "in_flight": 1, "workers": 1}


async def test_rate_place_released() -> None:
    """A place in the queue is released, and its call returns."""
    rate = actor()
    assert await rate.take("a", 1, 1)
    (second,) = await waiting(rate, ("a", 2))
    await rate.release("a", 2)
    assert not await second
    await rate.release("a", 1)
    assert (await rate.state())["in_flight"] == 0


async def test_rate_message_overtaken() -> None:
    """A turn that is released before it is requested is not granted."""
    rate = actor()
    await rate.release("a", 1)
    assert not await rate.take("a", 1, 1)
    assert await rate.take("a", 2, 1)


async def test_rate_worker_ended() -> None:
    """A worker that has ended holds no permits."""
    rate = actor()
    assert await rate.take("a", 1, 1)
    await rate.forget("a")
    await rate.renew("a")  # overtaken
    await rate.release("a", 1)
    assert not await rate.take("a", 2, 1)
    assert await rate.state() == {"waiting": 0, "in_flight": 0, "workers": 0}


async def test_rate_retry_after() -> None:
    """A Retry-After that one worker received pauses the others."""
    rate = RateActor({})
    assert await rate.take("a", 1, 1)
    await rate.rate_limited("a", 1, {"retry_after": 60.0, "rate_limit": None})
    await waiting(rate, ("b", 1))
    await rate.forget("b")


async def test_rate_headers() -> None:
    """When headers leave no requests, all workers wait for the reset, then continue."""
    rate = RateActor({})
    assert await rate.take("a", 1, 1)
    limit = RateLimit(limit_requests=60, remaining_requests=0, reset_requests=0.5)
    await rate.succeeded("a", 1, limit)
    await rate.release("a", 1)
    (turn,) = await waiting(rate, ("b", 1))
    assert await turn
    await rate.forget("b")
