"""Events and results of jobs, for readers that come, leave and fall behind."""

import asyncio
import base64
import json
from typing import Any

import pytest

from elkimg_async import (
    CompletedImage,
    Image,
    PartialImage,
    Timeout,
    errors,
    web,
)
from elkimg_async.jobs import ImageJobs, JobCompletedImage, JobEvent, MemoryStore
from elkimg_async.local import LocalServer
from tests.helpers.jobs import (
    COMPLETED,
    MakeStore,
    client_of,
    collect,
    opened,
    partial,
)
from tests.helpers.raw_server import (
    DONE,
    PNG,
    End,
    Piece,
    RawServer,
    event,
    open_stream,
    response,
    stream,
)

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


IMAGES: dict[str, Any] = {"created": 5, "data": [{"b64_json": COMPLETED["b64_json"]}]}
SECOND_FAILED = {"message": "The second image failed."}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        # The stream is cut off in the event of an image, after all of its base64.
        (
            stream(event(partial(0)), event({**IMAGES["data"][0], "x": ""}).rstrip(b"\n")[:-2]),
            errors.ResponseError,
        ),
        (response({**IMAGES, "error": SECOND_FAILED}), errors.APIError),
        (response({**IMAGES, "error": SECOND_FAILED}, status=500), errors.ServerError),
        (
            [*response(IMAGES)[:-1], json.dumps(IMAGES).encode()[:-3], End.CLOSE],
            errors.DisconnectedError,
        ),
    ],
    ids=["cut-stream", "error-in-200", "error-status", "cut-json"],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_failed_job_delivers_images_that_only_its_error_carries(
    reply: list[Piece],
    kind: type[errors.ElkImagesError],
    streamed: bool,
    make_store: MakeStore,
) -> None:
    """Events, result and relay deliver them as those of `generate`, and after a restart as well."""
    model = "gpt-image-1.5" if streamed else "dall-e-3"
    async with RawServer(reply) as raw_server:
        async with client_of(raw_server) as client:
            with pytest.raises(kind) as direct:
                await client.generate("an elk", model=model)
            assert [image.content for image in direct.value.images] == [PNG]
        for _ in range(2):
            async with opened(raw_server, make_store) as jobs:
                await jobs.start("an elk", id="one", model=model)
                with pytest.raises(kind) as caught:
                    await jobs.result("one")
                assert [image.content for image in caught.value.images] == [PNG]
                assert str(caught.value)[:30] == str(direct.value)[:30]
                last: JobEvent | None = None
                with pytest.raises(kind) as caught:  # noqa: PT012
                    async for each in jobs.events("one"):
                        last = each
                assert isinstance(last, JobCompletedImage)
                assert last.image.content == PNG
                assert [image.content for image in caught.value.images] == [PNG]
                assert (await jobs.get("one")).state == "failed"
                relayed = [message async for message in web.messages(jobs.events("one"))]
                assert [message.event for message in relayed] == [last.type, "error"]
        assert len(raw_server.requests) == 2


async def test_failed_job_delivers_partial_images_that_only_its_error_carries(
    make_store: MakeStore,
) -> None:
    """A call that does not stream may receive partial images, which only its error has."""
    async with RawServer(stream(event(partial(0)))) as raw_server:
        for _ in range(2):
            async with opened(raw_server, make_store) as jobs:
                await jobs.start("an elk", id="one", model="dall-e-3")
                with pytest.raises(errors.StreamIncompleteError) as caught:
                    await jobs.result("one")
                [kept] = caught.value.partials
                assert kept.image.content == PNG + b"\0"
                assert (await anext(aiter(jobs.events("one")))).image.content == PNG + b"\0"


async def test_failed_job_delivers_each_image_once(make_store: MakeStore) -> None:
    """An image of an event is not delivered again because the error carries it too."""
    reply = stream(event(partial(0)), event(COMPLETED), event({"error": SECOND_FAILED}))
    async with RawServer(reply) as raw_server, opened(raw_server, make_store) as jobs:
        job = await jobs.start("an elk")
        with pytest.raises(errors.APIError) as caught:
            await jobs.result(job.id)
        assert [image.content for image in caught.value.images] == [PNG]
        events = jobs.events(job.id)
        assert (await anext(events)).image.content == PNG
        with pytest.raises(errors.APIError):
            await anext(events)


@pytest.mark.parametrize("streamed", [True, False])
async def test_image_after_one_that_cannot_be_downloaded(
    streamed: bool, make_store: MakeStore
) -> None:
    """A failed download does not lose the images that come after it."""
    async with RawServer(response(b"", status=410)) as images:
        gone = {"type": "image_generation.completed", "url": f"{images.origin}/x.png"}
        frames = [event(gone), event(COMPLETED), DONE]
        async with (
            RawServer(stream(*frames)) as raw_server,
            opened(raw_server, make_store, client={"timeout": Timeout(download=0.5)}) as jobs,
        ):
            model = "gpt-image-1.5" if streamed else "dall-e-2"
            job = await jobs.start("an elk", n=2, model=model)
            with pytest.raises(errors.DownloadError) as caught:
                await jobs.result(job.id)
            assert [image.content for image in caught.value.images] == [None, PNG]
            assert caught.value.images[0].url == gone["url"]


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
