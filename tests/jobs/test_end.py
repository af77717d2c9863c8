"""The end of jobs: cancel, delete, expiry and closing."""

import asyncio
import contextlib
from typing import Any

import anyio
import pytest

from elkimg_async import (
    CompletedImage,
    errors,
)
from elkimg_async.jobs import ImageJobs
from elkimg_async.local import LocalServer
from tests.helpers.calls import SOON
from tests.helpers.jobs import (
    COMPLETED,
    MakeStore,
    client_of,
    opened,
    partial,
)
from tests.helpers.raw_server import (
    DONE,
    PNG,
    End,
    RawServer,
    event,
    open_stream,
    stream,
)

# --- cancel and delete ------------------------------------------------------


async def test_cancel_closes_upstream(make_store: MakeStore) -> None:
    """Cancelling ends the connection and every reader; what had arrived stays."""
    async with (
        RawServer([*open_stream(event(partial(0))), End.HOLD]) as raw_server,
        opened(raw_server, make_store) as jobs,
    ):
        job = await jobs.start("an elk")
        events = aiter(jobs.events(job.id))
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        cancelled = await jobs.cancel(job.id)
        await raw_server.wait_disconnected()
        assert cancelled.state == "cancelled"
        with pytest.raises(errors.JobCancelledError) as caught:
            await waiting
        assert caught.value.billing == "unknown"
        with pytest.raises(errors.JobCancelledError) as caught:
            await jobs.result(job.id)
        assert len(caught.value.partials) == 1
        assert (await jobs.cancel(job.id)).state == "cancelled"
        assert (await jobs.start("an elk", id=job.id)).state == "cancelled"
        await jobs.delete(job.id)
        with pytest.raises(errors.JobNotFoundError):
            await jobs.get(job.id)


async def test_cancel_while_queued_costs_nothing(make_store: MakeStore) -> None:
    """A job that waits for its turn is cancelled before anything is sent."""
    async with (
        RawServer([*open_stream(event(partial(0))), End.HOLD]) as raw_server,
        opened(raw_server, make_store, concurrency=1) as jobs,
    ):
        first = await jobs.start("an elk")
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
        second = await jobs.start("a fox")
        assert (await jobs.get(second.id)).state == "queued"
        cancelled = await jobs.cancel(second.id)
        assert cancelled.error is not None
        assert cancelled.error.billing == "not_sent"
        await jobs.cancel(first.id)
        assert len(raw_server.requests) == 1


async def test_delete_of_a_running_job(make_store: MakeStore) -> None:
    """A job is cancelled before it is deleted, not by deleting it."""
    async with (
        RawServer([*open_stream(event(partial(0))), End.HOLD]) as raw_server,
        opened(raw_server, make_store) as jobs,
    ):
        job = await jobs.start("an elk")
        with pytest.raises(errors.JobConflictError, match="cancel it first"):
            await jobs.delete(job.id)
        await jobs.cancel(job.id)


async def test_keep_deletes_finished_jobs(server: LocalServer, make_store: MakeStore) -> None:
    """A finished job is gone after `keep` seconds."""
    async with opened(server, make_store, keep=0.3) as jobs:
        job = await jobs.start("an elk")
        await jobs.result(job.id)
        async with asyncio.timeout(10):
            while await jobs.list():
                await asyncio.sleep(0.02)
        with pytest.raises(errors.JobNotFoundError):
            await jobs.result(job.id)


# --- closing ----------------------------------------------------------------


async def test_closing_waits_for_running_jobs(make_store: MakeStore) -> None:
    """Jobs are paid for, so closing waits for them; readers get everything."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    async with RawServer([head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]) as raw_server:
        async with opened(raw_server, make_store) as jobs:
            job = await jobs.start("an elk", id="one")
            events = aiter(jobs.events(job.id))
            await anext(events)
            asyncio.get_running_loop().call_later(0.1, finish.set)
        assert isinstance(await anext(events), CompletedImage)
        async with opened(raw_server, make_store) as jobs:
            assert (await jobs.result("one"))[0].content == PNG
        assert len(raw_server.requests) == 1


@pytest.mark.parametrize(("mode", "state"), [("send", "lost"), ("replay", "running")])
async def test_closing_after_grace_leaves_the_store_true(
    mode: str, state: str, make_store: MakeStore
) -> None:
    """What did not finish in time is lost, or is left for the next process to send again."""
    hold = [*open_stream(event(partial(0))), End.HOLD]
    async with RawServer(hold, stream(event(COMPLETED), DONE)) as raw_server:
        client = {"idempotency": mode}
        async with opened(raw_server, make_store, client=client, grace=0.05) as jobs:
            job = await jobs.start("an elk", id="one")
            await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
            await anext(aiter(jobs.events("one")))
            waiting = asyncio.create_task(jobs.result("one"))
        with contextlib.suppress(errors.JobLostError, errors.ConfigurationError):
            await waiting
        await raw_server.wait_disconnected()
        store = make_store()
        await store.open(None)
        kept = await store.get("one")
        assert kept is not None
        assert kept.state == state
        await store.aclose()
        async with opened(raw_server, make_store, client=client) as jobs:
            if mode == "replay":
                assert (await jobs.result("one"))[0].content == PNG
                first, second = raw_server.requests
                assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
                assert first.body == second.body
            else:
                with pytest.raises(errors.JobLostError) as caught:
                    await jobs.result("one")
                assert caught.value.billing == "unknown"
                assert caught.value.idempotency_key == job.idempotency_key is not None
                assert len(raw_server.requests) == 1


async def test_closing_cancelled_a_second_time_ends_at_once(make_store: MakeStore) -> None:
    """The first cancellation waits for what is paid for, the second does not."""
    entered = asyncio.Event()

    async def serve(raw_server: RawServer) -> None:
        async with opened(raw_server, make_store) as jobs:
            await jobs.start("an elk", id="one")
            await anext(aiter(jobs.events("one")))
            entered.set()
            await asyncio.Event().wait()

    async with RawServer([*open_stream(event(partial(0))), End.HOLD]) as raw_server:
        task = asyncio.create_task(serve(raw_server))
        await entered.wait()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.2)
        assert not done
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=SOON)
        assert done
        assert task.cancelled()
        async with opened(raw_server, make_store) as jobs:
            assert (await jobs.get("one")).state == "lost"
        assert len(raw_server.requests) == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
async def test_block_left_by_an_interruption_ends_at_once(
    interruption: type[BaseException], make_store: MakeStore
) -> None:
    """The second Ctrl-C is raised in whatever runs at that moment, which may be the block."""
    async with RawServer([*open_stream(event(partial(0))), End.HOLD]) as raw_server:
        with anyio.fail_after(SOON), pytest.raises(interruption):  # noqa: PT012
            async with opened(raw_server, make_store) as jobs:
                await jobs.start("an elk", id="one")
                await anext(aiter(jobs.events("one")))
                raise interruption
        async with opened(raw_server, make_store) as jobs:
            assert (await jobs.get("one")).state == "lost"
        assert len(raw_server.requests) == 1


async def test_closing_leaves_queued_jobs_for_the_next_process(make_store: MakeStore) -> None:
    """What was never sent is sent by the next process, whatever the idempotency."""
    finish = asyncio.Event()
    reply = stream(event(COMPLETED), DONE)
    async with RawServer([reply[0], finish, *reply[1:]], reply) as raw_server:
        async with opened(raw_server, make_store, concurrency=1) as jobs:
            await jobs.start("an elk", id="one")
            await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
            await jobs.start("a fox", id="two")
            finish.set()
            await jobs.result("one")
            if len(raw_server.requests) > 1:
                pytest.skip("the second was sent already")
        async with opened(raw_server, make_store) as jobs:
            assert len(await jobs.result("two")) == 1
        assert len(raw_server.requests) == 2


async def test_closed_jobs(server: LocalServer, make_store: MakeStore) -> None:
    """Closed jobs say so, and closing again does nothing."""
    async with opened(server, make_store) as jobs:
        pass
    await jobs.aclose()
    for step in (jobs.start("an elk"), jobs.get("x"), jobs.list(), jobs.result("x")):
        with pytest.raises(errors.ConfigurationError, match="closed"):
            await step
    async with client_of(server) as client:
        with pytest.raises(errors.ConfigurationError, match="Open ImageJobs first"):
            await ImageJobs(client).start("an elk")


@pytest.mark.parametrize("options", [{"keep": 0}, {"grace": -1}, {"concurrency": 0}, {"keep": "1"}])
async def test_options_that_cannot_be(options: dict[str, Any], server: LocalServer) -> None:
    """An option that is not usable is rejected at once."""
    async with client_of(server) as client:
        with pytest.raises(errors.ConfigurationError):
            ImageJobs(client, **options)


@pytest.mark.parametrize("wrong", [None, "store", 5, {}])
async def test_arguments_of_another_type(wrong: Any, server: LocalServer) -> None:
    """What is not a client, a store or a mapping of headers is rejected with what to pass."""
    with pytest.raises(errors.ConfigurationError, match="AsyncImages"):
        ImageJobs(wrong)
    if wrong is None:
        return
    async with client_of(server) as client:
        with pytest.raises(errors.ConfigurationError, match="DirectoryStore"):
            ImageJobs(client, store=wrong)
        async with ImageJobs(client) as jobs:
            headers: Any = wrong or {1: "a"}
            with pytest.raises(errors.InvalidRequestError, match="headers"):
                await jobs.start("an elk", extra_headers=headers)
