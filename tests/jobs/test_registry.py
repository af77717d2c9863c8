"""`ImageJobs` over every store: single flight, readers, results, cancel, recovery and closing."""

import asyncio
import base64
import contextlib
import inspect
import io
import math
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from PIL import Image as Pillow

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    Image,
    PartialImage,
    RetryPolicy,
    Timeout,
    errors,
)
from elkimg_async.jobs import ImageJobs, Job, JobEvent, MemoryStore
from elkimg_async.jobs.options import read_options, write_options
from elkimg_async.local import LocalServer
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    End,
    RawServer,
    event,
    open_stream,
    response,
    stream,
)
from tests.jobs.conftest import MakeStore

COMPLETED = {
    "type": "image_generation.completed",
    "b64_json": base64.b64encode(PNG).decode(),
    "usage": {"total_tokens": 7},
}


def partial(index: int) -> dict[str, Any]:
    """A partial image that differs from the others."""
    content = base64.b64encode(PNG + bytes([index])).decode()
    return {
        "type": "image_generation.partial_image",
        "b64_json": content,
        "partial_image_index": index,
    }


def client_of(server: LocalServer | RawServer, **options: Any) -> AsyncImages:
    """A client of this server that does not retry."""
    api_key = server.api_key if isinstance(server, LocalServer) else API_KEY
    return AsyncImages(api_key, base_url=server.base_url, **{"retry": 0, **options})


@contextlib.asynccontextmanager
async def opened(
    server: LocalServer | RawServer, make_store: MakeStore, *, client: Any = None, **options: Any
) -> AsyncIterator[ImageJobs]:
    """Jobs over this server and store."""
    async with (
        client_of(server, **(client or {})) as own,
        ImageJobs(own, store=make_store(), **options) as jobs,
    ):
        yield jobs


async def collect(jobs: ImageJobs, id: str, after: int | None = None) -> list[JobEvent]:
    """All events of a job."""
    return [each async for each in jobs.events(id, after)]


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def reach(jobs: ImageJobs, id: str, state: str) -> Job:
    """Wait for a state of a job."""
    async with asyncio.timeout(15):
        while (job := await jobs.get(id)).state != state:
            await asyncio.sleep(0.01)
    return job


# --- starting ---------------------------------------------------------------


async def test_start_returns_at_once_and_result_has_everything(
    server: LocalServer, make_store: MakeStore
) -> None:
    """A job is there before its image; its result is what the call would have returned."""
    async with opened(server, make_store) as jobs:
        job = await jobs.start("a red fox", id="order-17", partial_images=2, size="1024x1024")
        assert (job.id, job.state, job.prompt) == ("order-17", "queued", "a red fox")
        assert job.parameters == {"partial_images": 2, "size": "1024x1024"}
        result = await jobs.result("order-17")
        assert result[0].media_type == "image/png"
        assert result.usage is not None
        assert result.meta.attempts == 1
        job = await jobs.get("order-17")
        assert job.state == "done"
        assert job.usage == result.usage
        assert job.request_id == result.meta.request_id is not None
        assert job.sent_at is not None
        assert job.finished_at is not None
        assert job.created_at <= job.sent_at <= job.finished_at
        assert job.error is None
        [sent] = server.requests
        assert sent.headers["idempotency-key"] == job.idempotency_key
        again = await jobs.result("order-17")
        assert again[0].content == result[0].content
        assert [each.id for each in await jobs.list()] == ["order-17"]


async def test_start_of_one_id_a_thousand_times_is_one_generation(
    server: LocalServer, make_store: MakeStore
) -> None:
    """Simultaneous starts of one id join one job."""
    async with opened(server, make_store) as jobs:
        started = await asyncio.gather(*(jobs.start("an elk", id="one") for _ in range(1000)))
        assert {job.id for job in started} == {"one"}
        await jobs.result("one")
    assert server.generations == 1


async def test_start_without_id_creates_one(server: LocalServer, make_store: MakeStore) -> None:
    """Jobs without an id of the caller's are different jobs."""
    async with opened(server, make_store) as jobs:
        one, other = await jobs.start("an elk"), await jobs.start("an elk")
        assert one.id != other.id
        await asyncio.gather(jobs.result(one.id), jobs.result(other.id))
    assert server.generations == 2


async def test_start_with_other_parameters_is_a_conflict(
    server: LocalServer, make_store: MakeStore
) -> None:
    """An id identifies one request: running, finished, and after a restart."""
    async with opened(server, make_store) as jobs:
        await jobs.start("an elk", id="one", n=1)
        with pytest.raises(errors.JobConflictError, match="'one' belongs to a job with other"):
            await jobs.start("an elk", id="one", n=2)
        await jobs.result("one")
        changes: list[dict[str, Any]] = [
            {"prompt": "a fox"},
            {"size": "1024x1024"},
            {"extra_body": {"seed": 1}},
        ]
        for change in changes:
            given: dict[str, Any] = {"prompt": "an elk", "id": "one", "n": 1, **change}
            with pytest.raises(errors.JobConflictError):
                await jobs.start(**given)
        assert (await jobs.start({"n": 1, "prompt": "an elk"}, id="one")).state == "done"
    assert server.generations == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"n": 11}, errors.InvalidRequestError),
        ({"n": "2"}, errors.InvalidRequestError),
        ({"sise": "x"}, TypeError),
        ({"prompt": None}, errors.InvalidRequestError),
        ({"id": ""}, errors.InvalidRequestError),
        ({"id": "x" * 201}, errors.InvalidRequestError),
        ({"id": "a\nb"}, errors.InvalidRequestError),
        ({"id": 7}, errors.InvalidRequestError),
        ({"image": "missing.png"}, errors.InvalidRequestError),
        ({"image": []}, errors.InvalidRequestError),
        ({"mask": PNG}, errors.InvalidRequestError),
        ({"extra_body": {"x": object()}}, errors.InvalidRequestError),
    ],
)
async def test_start_with_bad_input(
    arguments: dict[str, Any], error: type[Exception], server: LocalServer
) -> None:
    """A request that cannot work is no job, and is not sent."""
    async with opened(server, MemoryStore) as jobs:
        given: dict[str, Any] = {"prompt": "an elk", **arguments}
        with pytest.raises(error):
            await jobs.start(**given)
        assert await jobs.list() == []
    assert not server.requests


def test_start_has_the_parameters_of_generate_and_edit() -> None:
    """Every option of both calls can be passed by name, with the same type and default."""
    known = inspect.signature(ImageJobs.start).parameters
    for call in (AsyncImages.generate, AsyncImages.edit):
        for name, parameter in inspect.signature(call).parameters.items():
            if name not in ("self", "prompt", "image", "stream"):
                assert known[name] == parameter, name


async def test_options_of_the_call_survive_a_restart(
    server: LocalServer, make_store: MakeStore
) -> None:
    """A job that is sent by a later process has the headers, query and limits it started with."""
    async with opened(server, make_store, concurrency=1, grace=0) as jobs:
        server.inject("stall-headers")
        await jobs.start("an elk", id="first")
        await server.wait_until(lambda: len(server.requests) == 1)
        limits: Any = {"timeout": timedelta(seconds=77), "retry": 1}
        more: Any = {"extra_headers": {"X-Team": "a"}, "extra_query": {"tag": "b"}}
        await jobs.start("a fox", id="second", **more, **limits)
        await jobs.start("a bear", id="third", extra_headers={"Authorization": "Bearer secret-1"})
        assert b"secret-1" not in msgspec.json.encode(await jobs.list())
    async with opened(server, make_store) as jobs:
        await jobs.result("second")
        job = await jobs.get("second")
        stored = read_options(job.options)
        assert stored.pop("timeout").total == 77
        assert stored == {**more, "retry": 1}
        whole = {"timeout": Timeout(total=math.inf, idle=7.0), "retry": RetryPolicy(budget=3)}
        assert read_options(write_options(whole)) == whole
        with pytest.raises(errors.JobLostError, match="secret headers") as lost:
            await jobs.result("third")
        assert lost.value.billing == "not_sent"
    [sent] = [each for each in server.requests if each.fields["prompt"] == "a fox"]
    assert sent.headers["x-team"] == "a"
    assert sent.query["tag"] == "b"
    assert not any(each.fields["prompt"] == "a bear" for each in server.requests)


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, 1),
        ({"n": 2}, 2),
        ({"n": 2, "extra_body": {"n": 3}}, 3),
        ({"extra_body": {"n": "3"}}, 1),
    ],
)
def test_number_of_images_of_a_job(parameters: dict[str, Any], wanted: int) -> None:
    """A job wants as many images as its request, `extra_body` included."""
    job = Job(id="1", prompt="a", parameters=parameters, created_at=0.0, first_id=0, fingerprint="")
    assert job.wanted == wanted


async def test_start_of_an_edit(server: LocalServer, make_store: MakeStore, tmp_path: Path) -> None:
    """An edit reads its images when it starts; another image is another job."""
    files = []
    for color in ("red", "blue"):
        file = io.BytesIO()
        Pillow.new("RGBA", (64, 64), color).save(file, "png")
        files.append(file.getvalue())
    async with opened(server, make_store) as jobs:
        job = await jobs.start("a hat", id="hat", image=files[0], mask=files[0])
        with pytest.raises(errors.JobConflictError):
            await jobs.start("a hat", id="hat", image=files[1], mask=files[0])
        assert (await jobs.start("a hat", id="hat", image=files[0], mask=files[0])).id == job.id
        assert len(await jobs.result("hat")) == 1
        [done] = await collect(jobs, "hat")
        assert done.type == "image_edit.completed"
        paths = tuple(str(tmp_path / name) for name in ("red.png", "blue.png"))
        for path, content in zip(paths, files, strict=True):
            Path(path).write_bytes(content)
        assert len((await jobs.start("two hats", image=paths)).inputs) == 2
    assert {each.path for each in server.requests} == {"/v1/images/edits"}


async def test_start_of_a_model_that_cannot_stream(
    server: LocalServer, make_store: MakeStore
) -> None:
    """What cannot be streamed is generated without a stream, and has its completed event."""
    async with opened(server, make_store) as jobs:
        await jobs.start("an elk", id="old", model="dall-e-3", response_format="url")
        assert (await jobs.result("old"))[0].content is not None
        [done] = await collect(jobs, "old")
        assert isinstance(done, CompletedImage)
    assert server.requests[0].fields.get("stream") is None


# --- readers ----------------------------------------------------------------


async def test_events_are_those_of_the_stream_with_ids(make_store: MakeStore) -> None:
    """Readers see partial and completed images, with rising ids, before and after the end."""
    gates = [asyncio.Event() for _ in range(3)]
    chunks = open_stream(*(event(each) for each in [partial(0), partial(1), COMPLETED]), DONE)
    reply = [chunks[0]]
    for gate, chunk in zip(gates, chunks[1:4], strict=True):
        reply += [gate, chunk]
    async with (
        RawServer([*reply, *chunks[4:], b"0\r\n\r\n"]) as raw_server,
        opened(raw_server, make_store) as jobs,
    ):
        job = await jobs.start("an elk", partial_images=2)
        gates[0].set()
        seen = list[JobEvent]()
        async for each in jobs.events(job.id):
            seen.append(each)
            if len(seen) < 3:
                gates[len(seen)].set()
        assert isinstance(seen[0], PartialImage)
        assert isinstance(seen[-1], CompletedImage)
        assert [each.image.content for each in seen] == [PNG + b"\0", PNG + b"\1", PNG]
        assert sorted({each.id for each in seen}) == [each.id for each in seen]
        assert await collect(jobs, job.id, seen[1].id) == [seen[2]]
        assert await collect(jobs, job.id, seen[2].id) == []


async def test_events_that_come_at_once_are_all_seen_by_a_reader_who_waits(
    server: LocalServer, make_store: MakeStore
) -> None:
    """A reader who keeps up gets each partial image, the same object as all readers."""
    async with opened(server, make_store) as jobs:
        job = await jobs.start("an elk", partial_images=2)
        one, other = await asyncio.gather(collect(jobs, job.id), collect(jobs, job.id))
        assert len(one) == 3
        assert all(a.image.content is b.image.content for a, b in zip(one, other, strict=True))


async def test_events_after_a_deleted_job_begin_again(
    server: LocalServer, make_store: MakeStore
) -> None:
    """The event ids of an earlier job of the same name hide nothing of the next one."""
    async with opened(server, make_store) as jobs:
        await jobs.start("an elk", id="one", partial_images=3)
        *_, last = await collect(jobs, "one")
        await jobs.delete("one")
        with pytest.raises(errors.JobNotFoundError, match="no job 'one'"):
            await jobs.result("one")
        await jobs.start("a fox", id="one", partial_images=0)
        [done] = await collect(jobs, "one", last.id)
        assert isinstance(done, CompletedImage)


async def test_events_of_a_slow_reader_skip_old_partial_images(make_store: MakeStore) -> None:
    """A reader who does not read holds nothing up, and gets the newest and the final image."""
    finish = asyncio.Event()
    head, *chunks = open_stream(*(event(partial(index)) for index in range(5)))
    last = open_stream(event(COMPLETED), DONE)[1:]
    async with (
        RawServer([head, *chunks, finish, *last, b"0\r\n\r\n"]) as raw_server,
        opened(raw_server, make_store) as jobs,
    ):
        job = await jobs.start("an elk", partial_images=3)
        slow = aiter(jobs.events(job.id))
        first = await anext(slow)
        quick = aiter(jobs.events(job.id))
        while (seen := await anext(quick)).partial_image_index != 4:  # type: ignore[union-attr]  # pyright: ignore
            pass
        newest = await anext(slow)
        assert newest.image.content == seen.image.content != first.image.content
        finish.set()
        assert isinstance(await anext(slow), CompletedImage)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)
        await quick.aclose()  # pyright: ignore


async def test_events_left_stop_nothing(make_store: MakeStore) -> None:
    """A job whose readers have all left continues, and the next reader receives its image."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    async with (
        RawServer([head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]) as raw_server,
        opened(raw_server, make_store) as jobs,
    ):
        job = await jobs.start("an elk")
        async with jobs.events(job.id) as events:
            await anext(events)
        waiting = asyncio.create_task(jobs.result(job.id))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        finish.set()
        assert (await jobs.result(job.id))[0].content == PNG
        assert len(raw_server.requests) == 1


async def test_jobs_and_events_used_synchronously(server: LocalServer) -> None:
    """`with` and `for` raise an error that shows the asynchronous form."""
    async with client_of(server) as client:
        jobs: Any = ImageJobs(client)
        with pytest.raises(TypeError, match="async with ImageJobs"), jobs:
            pass
        async with jobs:
            with pytest.raises(TypeError, match=r"async for event in jobs\.events"):
                list(jobs.events("one"))


@pytest.mark.parametrize("after", ["x", "1.5", True, 1.5, "9" * 30])
async def test_events_after_something_else(after: Any, server: LocalServer) -> None:
    """What is not the id of an event is rejected."""
    async with opened(server, MemoryStore) as jobs:
        with pytest.raises(errors.InvalidRequestError, match="after must be the id of an event"):
            jobs.events("one", after)


async def test_unknown_id(server: LocalServer, make_store: MakeStore) -> None:
    """Every question about an unknown id is a JobNotFoundError."""
    async with opened(server, make_store) as jobs:
        for ask in (jobs.get, jobs.result, jobs.cancel, jobs.delete):
            with pytest.raises(errors.JobNotFoundError):
                await ask("nothing")
        with pytest.raises(errors.JobNotFoundError):
            await jobs.events("nothing")
        with pytest.raises(errors.JobNotFoundError):
            await collect(jobs, "nothing")


# --- failures ---------------------------------------------------------------


async def test_failed_job_raises_its_error_everywhere(make_store: MakeStore) -> None:
    """Result and events raise the recorded error, with billing, and after a restart as well."""
    said = {"error": {"message": "No such style.", "code": "bad_style"}}
    async with RawServer(response(said, status=400)) as raw_server:
        for _ in range(2):
            async with opened(raw_server, make_store) as jobs:
                await jobs.start("an elk", id="one")
                for _ in range(2):
                    with pytest.raises(errors.BadRequestError, match="No such style") as caught:
                        await jobs.result("one")
                    assert caught.value.billing == "refused"
                    assert caught.value.attempts == 1
                with pytest.raises(errors.BadRequestError, match="No such style"):
                    await collect(jobs, "one")
                job = await jobs.get("one")
                assert job.state == "failed"
                assert isinstance(job.error, errors.BadRequestError)
        assert len(raw_server.requests) == 1


async def test_failed_job_keeps_what_had_arrived(make_store: MakeStore) -> None:
    """The partial image before a failure is delivered, and is attached to the error."""
    async with (
        RawServer(stream(event(partial(0)))) as raw_server,
        opened(raw_server, make_store) as jobs,
    ):
        job = await jobs.start("an elk")
        with pytest.raises(errors.StreamIncompleteError) as caught:
            await jobs.result(job.id)
        [kept] = caught.value.partials
        assert kept.image.content == PNG + b"\0"
        events = aiter(jobs.events(job.id))
        assert (await anext(events)).image.content == PNG + b"\0"
        with pytest.raises(errors.StreamIncompleteError):
            await anext(events)


async def test_image_that_cannot_be_downloaded(make_store: MakeStore) -> None:
    """A result that stays a URL fails as billed, and its URL is not lost."""
    async with RawServer(response(b"", status=410)) as images:
        url = f"{images.origin}/x.png"
        sent = event({"type": "image_generation.completed", "url": url})
        async with (
            RawServer(stream(sent, DONE)) as raw_server,
            opened(raw_server, make_store, client={"timeout": Timeout(download=0.5)}) as jobs,
        ):
            job = await jobs.start("an elk")
            with pytest.raises(errors.DownloadError) as caught:
                await jobs.result(job.id)
            assert caught.value.billing == "billed"
            assert (await anext(aiter(jobs.events(job.id)))).image.url == url


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
        done, _ = await asyncio.wait([task], timeout=2)
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
        with anyio.fail_after(10), pytest.raises(interruption):  # noqa: PT012
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


# --- side data --------------------------------------------------------------


async def test_result_keeps_several_images_and_their_fields(make_store: MakeStore) -> None:
    """Every image of a request is stored, and so is what the server said of it."""
    more = {"size": "1024x1024", "quality": "low", "created_at": 5, "revised_prompt": "a big elk"}
    other = {**COMPLETED, "b64_json": base64.b64encode(PNG + b"2").decode(), **more}
    async with RawServer(stream(event({**COMPLETED, **more}), event(other), DONE)) as raw_server:
        for _ in range(2):
            async with opened(raw_server, make_store) as jobs:
                await jobs.start("an elk", id="two", n=2)
                result = await jobs.result("two")
                assert [image.content for image in result] == [PNG, PNG + b"2"]
                assert result[0].revised_prompt == "a big elk"
                assert (result.size, result.quality) == ("1024x1024", "low")
                events = await collect(jobs, "two")
                assert [each.created_at for each in events] == [5, 5]
                assert isinstance(events[0], CompletedImage)
                assert events[0].usage == result.usage
    assert Image(PNG).media_type == "image/png"
