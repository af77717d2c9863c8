"""Starting jobs: single flight, conflicts, options and inputs."""

import asyncio
import inspect
import io
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image as Pillow

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    RetryPolicy,
    Timeout,
    errors,
)
from elkimg_async.jobs import ImageJobs, Job, MemoryStore
from elkimg_async.jobs.options import read_options, write_options
from elkimg_async.local import LocalServer
from tests.helpers.jobs import (
    MakeStore,
    collect,
    opened,
)
from tests.helpers.raw_server import (
    PNG,
)


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
