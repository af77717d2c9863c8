"""Execution of one job, from its first record to its last."""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from elkimg_async import (
    APIError,
    AsyncImages,
    BatchError,
    BatchStoppedError,
    DownloadError,
    MapRun,
    PermissionDeniedError,
    RetryPolicy,
    Usage,
)
from elkimg_async.batch.storage import MANIFEST
from tests.helpers.raw_server import API_KEY, JPEG, PNG
from tests.helpers.runs import (
    Fields,
    Responder,
    Server,
    everything,
    hold,
    images,
    lines,
    one_file,
    one_image,
    rejection,
    until_the_end,
)


def by_url(server: Server, count: int) -> Responder:
    async def respond(fields: Fields) -> Fields | web.Response:
        urls = [f"{server.origin}/files/{fields['prompt']}-{n}" for n in range(count)]
        return {"data": [{"url": url} for url in urls], "usage": {"total_tokens": 5}}

    return respond


async def test_execute_cancelled_after_the_response(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A response that has arrived is saved, even if the block is left at that moment."""
    journal = tmp_path / "run.jsonl"
    for number in range(10):
        seen = len(server.requests)
        async with client.map(
            [f"{n}" for n in range(number * 10, number * 10 + 5)],
            journal=tmp_path / f"{number}.jsonl",
            output_dir=tmp_path / "out",
        ):
            await server.wait_until(lambda seen=seen: len(server.requests) > seen)  # type: ignore[misc]
            await asyncio.sleep(0.002 * number)
        done = {
            file["name"]
            for record in lines(tmp_path / f"{number}.jsonl")
            if record["type"] == "done"
            for file in record["files"]
        }
        stems = {f"{n:06d}-{number * 10 + n}" + ".png" for n in range(5)}
        saved = {path.name for path in (tmp_path / "out").iterdir()} & stems
        assert saved == done
    assert not journal.exists()


async def test_execute_with_a_full_disk(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Nothing more is sent, the item has the image, and the error says what to do."""
    folder = tmp_path / "out"

    async def respond(fields: Fields) -> Fields | web.Response:
        shutil.rmtree(folder, ignore_errors=True)
        return images(PNG)

    server.respond = respond
    run = client.map(map(str, range(50)), concurrency=1, output_dir=folder)
    items, error = await until_the_end(run)
    assert isinstance(error, BatchError)
    assert "cannot be saved" in str(error)
    assert len(items) == len(server.requests) == 1
    assert items[0].error is not None
    assert items[0].error.billing == "billed"
    assert items[0].result is not None
    assert items[0].result[0].content == PNG
    assert items[0].error.images[0].content == PNG
    assert ".images of this error, and item.result" in str(error)
    assert "sends this request, and may bill its image, again" in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
async def test_execute_with_a_disk_that_takes_no_records_either(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Every response that has arrived is an item with its images, and nothing more is sent."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def respond(fields: Fields) -> Fields | web.Response:
        await server.wait_until(lambda: len(server.requests) == 3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))  # for files, as on a full disk
        return images(PNG)

    server.respond = respond
    options: Any = {"journal": tmp_path / "run.jsonl", "output_dir": tmp_path / "out"}
    try:
        items, error = await until_the_end(client.map(map(str, range(9)), concurrency=3, **options))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(error, BatchError)
    assert len(items) == len(server.requests) == 3
    for item in items:
        assert item.error is not None
        assert [image.content for image in item.error.images] == [PNG]


async def test_execute_with_a_failed_call_and_a_full_disk(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """The error of the item has the images of a failed call, and the call's own error."""
    folder = tmp_path / "out"

    async def respond(fields: Fields) -> Fields | web.Response:
        shutil.rmtree(folder, ignore_errors=True)
        return {**images(PNG), "error": {"message": "The second image failed."}}

    server.respond = respond
    items, error = await until_the_end(client.map(["a"], output_dir=folder))
    assert isinstance(error, BatchError)
    assert items[0].error is error
    assert [image.content for image in error.images] == [PNG]
    assert isinstance(error.__cause__, APIError)
    assert "The second image failed." in str(error)
    assert "(.images of this error)" in str(error)
    assert error.attempts == items[0].attempts == 1


async def test_execute_with_a_broken_image(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """If one of several images is broken, the item has failed and the others are on disk."""

    async def respond(fields: Fields) -> Fields | web.Response:
        broken = images(PNG, JPEG)
        broken["data"].append({"b64_json": "%%%"})
        return broken

    server.respond = respond
    (item,) = await everything(client.map([{"prompt": "a", "n": 3}], output_dir=tmp_path))
    assert not item.ok
    assert [path.read_bytes() for path in item.paths] == [PNG, JPEG]


async def test_execute_with_urls(server: Server, client: AsyncImages, tmp_path: Path) -> None:
    """URLs are downloaded into an output folder; without one, the caller receives them."""
    server.respond = by_url(server, 2)
    (item,) = await everything(client.map(["a"], output_dir=tmp_path, model="dall-e-2", n=2))
    assert [path.read_bytes() for path in item.paths] == [PNG, PNG]
    (item,) = await everything(client.map(["a"], model="dall-e-2"))
    assert item.result is not None
    assert [image.content for image in item.result] == [None, None]
    assert await item.result[0].read() == PNG


async def test_execute_with_a_failed_download(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A failed download is a failed item, billed.

    Started again, the run downloads only what is missing.
    """
    server.respond = by_url(server, 3)
    downloads: list[str] = []

    async def file(name: str) -> web.Response:
        downloads.append(name)
        return (
            web.Response(status=410)
            if name == "a-1" and len(downloads) < 4
            else web.Response(body=PNG)
        )

    server.file = file

    def run() -> MapRun:
        return client.map(["a"], output_dir=tmp_path, journal=tmp_path / "j", model="dall-e-2", n=3)

    (item,) = await everything(run())
    assert isinstance(item.error, DownloadError)
    assert item.error.billing == "billed"
    assert [path.name for path in item.paths] == ["000000-a-1.png", "000000-a-3.png"]
    downloads += ["", ""]
    again = run()
    (item,) = await everything(again)
    assert item.ok
    assert [path.name for path in item.paths] == [f"000000-a-{n}.png" for n in (1, 2, 3)]
    assert all(path.read_bytes() == PNG for path in item.paths)
    assert len(server.requests) == 1
    assert downloads == ["a-0", "a-1", "a-2", "", "", "a-1"]
    assert (again.totals.images, again.totals.usage) == (3, Usage(total_tokens=5))
    assert len(lines(tmp_path / MANIFEST)) == 1


async def test_execute_with_an_interrupted_download(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """The journal has the URL of an image before it is downloaded."""
    server.respond = by_url(server, 1)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def file(name: str) -> web.Response:
        began.set()
        await go_on.wait()
        return web.Response(body=PNG)

    server.file = file
    options: Any = {"output_dir": tmp_path, "journal": tmp_path / "j", "model": "dall-e-2"}
    async with client.map(["a"], **options):
        await began.wait()
    go_on.set()
    (item,) = await everything(client.map(["a"], **options))
    assert item.ok
    assert len(server.requests) == 1


async def test_execute_with_a_download_and_a_full_disk(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """The URLs are recorded, so that images are only downloaded once the disk works again."""
    server.respond = by_url(server, 1)
    folder = tmp_path / "out"

    async def file(name: str) -> web.Response:
        shutil.rmtree(folder)
        return web.Response(body=PNG)

    server.file = file
    options: Any = {"output_dir": folder, "journal": tmp_path / "j", "model": "dall-e-2"}
    _, error = await until_the_end(client.map(["a"], **options))
    assert isinstance(error, BatchError)
    assert "cannot be saved" in str(error)
    assert "downloads what is missing" in str(error)
    server.file = one_file
    (item,) = await everything(client.map(["a"], **options))
    assert item.ok
    assert len(server.requests) == 1


async def test_execute_rejected_after_a_lost_attempt(server: Server, tmp_path: Path) -> None:
    """A later rejection does not erase an attempt that may have created an image."""
    async with AsyncImages(
        API_KEY, base_url=server.base_url, retry=0, idempotency="replay"
    ) as client:
        options: Any = {"journal": tmp_path / "j.jsonl", "max_images": 1}
        hold(server)
        async with client.map(["0", "1"], **options):
            await server.wait_until(lambda: server.in_flight == 1)

        async def respond(fields: Fields) -> Fields | web.Response:
            return rejection(403)

        server.respond = respond
        items, error = await until_the_end(client.map(["0", "1"], **options))
        assert isinstance(error, BatchStoppedError)
        assert [item.error.billing for item in items if item.error] == ["unknown"]
        server.respond = one_image
        items, _ = await until_the_end(client.map(["0"], journal=options["journal"]))
    assert [item.ok for item in items] == [True]
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1


async def test_execute_rejected_after_an_unknown_failure(server: Server, tmp_path: Path) -> None:
    """A later rejection does not erase an attempt with an unknown outcome.

    Its idempotency key is used again.
    """
    calls = 0

    async def respond(fields: Fields) -> Fields | web.Response:
        nonlocal calls
        calls += 1
        return rejection(502) if calls == 1 else rejection(403) if calls == 2 else images(PNG)

    server.respond = respond
    async with AsyncImages(
        API_KEY,
        base_url=server.base_url,
        idempotency="replay",
        retry=RetryPolicy(initial_backoff=0),
    ) as client:
        journal = tmp_path / "run.jsonl"
        (item,) = await everything(client.map(["0"], journal=journal))
        assert isinstance(item.error, PermissionDeniedError)
        assert item.error.billing == "unknown"
        (item,) = await everything(client.map(["0"], journal=journal))
    assert item.ok
    assert len(set(server.keys)) == 1


async def test_execute_records_first(server: Server, client: AsyncImages, tmp_path: Path) -> None:
    """A request is recorded with its Idempotency-Key before it is sent."""
    journal = tmp_path / "j.jsonl"
    known = []

    async def respond(fields: Fields) -> Fields | web.Response:
        sent = {line.get("key") for line in lines(journal) if line["type"] == "sent"}
        known.append(server.keys[-1] in sent)
        return images(PNG)

    server.respond = respond
    items = await everything(client.map(map(str, range(9)), journal=journal))
    assert known == [True] * 9
    assert len(set(server.keys)) == 9
    assert {item.meta.idempotency_key for item in items if item.meta} == set(server.keys)


async def test_execute_while_an_earlier_attempt_runs(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A request that still runs for a killed process is sent again until it has a response."""
    released = hold(server)
    async with client.map(["a"], journal=tmp_path / "j"):
        await server.wait_until(lambda: server.in_flight == 1)
    released.set()
    responses = iter([rejection(409, "idempotency_key_in_flight") for _ in range(2)])

    async def respond(fields: Fields) -> Fields | web.Response:
        return next(responses, None) or images(PNG)

    server.respond = respond
    (item,) = await everything(client.map(["a"], journal=tmp_path / "j"))
    assert item.ok
    assert len(server.requests) == 4
    assert len(set(server.keys)) == 1
    responses = iter([rejection(409, "idempotency_key_in_flight")])
    (item,) = await everything(client.map(["b"], journal=tmp_path / "k"))
    assert isinstance(item.error, APIError)  # no other run can have sent this one


async def test_execute_with_a_key_of_the_user(server: Server, client: AsyncImages) -> None:
    """An idempotency key set by the user is sent and is in the result; the call's own wins."""
    view = client.with_options(headers={"Idempotency-Key": "client's"})
    result = await view.generate("a")
    assert result.meta.idempotency_key == "client's"
    result = await view.generate("a", extra_headers={"idempotency-key": "own"})
    assert result.meta.idempotency_key == "own"
    assert server.keys == ["client's", "own"]
    await everything(client.map(["a"], extra_headers={"idempotency-key": "one for all"}))
    assert server.keys[2] == "one for all"
