"""`client.map` against real servers, on real files, and in processes that are killed."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

import elkimg_async
from elkimg_async import (
    APIError,
    AsyncImages,
    BadRequestError,
    BatchError,
    BatchStoppedError,
    ConfigurationError,
    DownloadError,
    GenerateRequest,
    InvalidRequestError,
    JournalError,
    MapItem,
    MapRun,
    PermissionDeniedError,
    RetryPolicy,
    ServerError,
    Totals,
    Usage,
)
from elkimg_async.batch import storage
from elkimg_async.batch.journal import JournalIndex
from elkimg_async.batch.storage import MANIFEST, OutputFolder, RunStore, stem_of
from elkimg_async.config import IdempotencyMode
from elkimg_async.image import media_type_of
from elkimg_async.local import LocalServer
from tests.helpers.canned import JPEG, KEY, PNG

Fields = dict[str, Any]


def images(*contents: bytes, tokens: int | None = 10) -> Fields:
    """The answer with these images."""
    data = [{"b64_json": base64.b64encode(content).decode()} for content in contents]
    usage = {"usage": {"total_tokens": tokens}} if tokens is not None else {}
    return {"created": 1, "data": data, **usage}


def refusal(status: int, code: str = "") -> web.Response:
    """An error of the API."""
    return web.json_response({"error": {"message": "no", "code": code}}, status=status)


Answer = Callable[[Fields], Awaitable[Fields | web.Response]]


async def one_image(fields: Fields) -> Fields | web.Response:
    """The answer to a request, unless a test has another."""
    return images(PNG)


async def one_file(name: str) -> web.Response:
    """The answer to a download."""
    return web.Response(body=PNG, content_type="image/png")


class Server:
    """Answers as `answer` says, and counts; `answer` may wait, and by default gives one image."""

    def __init__(self) -> None:
        self.requests: list[Fields] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.peak = 0
        self.changed = asyncio.Event()
        self.origin = self.base_url = ""
        self.answer: Answer = one_image
        self.file: Callable[[str], Awaitable[web.Response]] = one_file

    async def _generate(self, request: web.Request) -> web.Response:
        fields = await request.json()
        self.requests.append(fields)
        self.keys.append(request.headers.get("Idempotency-Key"))
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._notify()
        try:
            answer = await self.answer(fields)
        finally:
            self.in_flight -= 1
            self._notify()
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    async def _download(self, request: web.Request) -> web.Response:
        return await self.file(request.match_info["name"])

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is asked whenever a request comes or ends."""
        async with asyncio.timeout(20):
            while not condition():
                await self.changed.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        """Listen on a free port."""
        app = web.Application()
        app.add_routes(
            [
                web.post("/v1/images/generations", self._generate),
                web.get("/files/{name}", self._download),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.base_url = f"{self.origin}/v1"
            yield self
        finally:
            await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().running() as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(KEY, base_url=server.base_url, retry=0) as client:
        yield client


async def everything(run: MapRun) -> list[MapItem]:
    """All items of a run, in the order in which they came."""
    async with run:
        return [item async for item in run]


async def until_the_end(run: MapRun) -> tuple[list[MapItem], Exception | None]:
    """All items of a run, and what it raised after them."""
    items = []
    async with run:
        try:
            async for item in run:
                items.append(item)  # noqa: PERF401 - kept when it raises
        except Exception as error:  # noqa: BLE001
            assert await anext(run, None) is None
            return items, error
    return items, None


def in_order(items: list[MapItem]) -> list[MapItem]:
    return sorted(items, key=lambda item: item.index)


def lines(path: Path) -> list[Fields]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def hold(server: Server, *held: str) -> asyncio.Event:
    """Let requests with these prompts, or all, wait until the event is set."""
    released = asyncio.Event()

    async def answer(fields: Fields) -> Fields | web.Response:
        if not held or fields["prompt"] in held:
            await released.wait()
        return images(PNG)

    server.answer = answer
    return released


# --- requests in, items out -------------------------------------------------


async def test_map_gives_one_item_for_each_request(server: Server, client: AsyncImages) -> None:
    """Prompts, mappings and requests may be mixed; what an item says for itself wins over the run's options."""
    requests: list[Any] = [
        "a boat",
        {"prompt": "a hut", "n": 2, "size": None},
        GenerateRequest(prompt="an owl", quality="high"),
    ]
    items = in_order(await everything(client.map(requests, size="1024x1024", quality="low")))
    assert [item.index for item in items] == [0, 1, 2]
    assert [item.ok for item in items] == [True] * 3
    asked = sorted(server.requests, key=lambda fields: fields["prompt"])
    model = "gpt-image-1.5"
    assert asked == [
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


async def test_map_gives_items_as_they_end(server: Server, client: AsyncImages) -> None:
    """A slow request does not keep the others."""
    released = hold(server, "0")
    async with client.map(map(str, range(5)), concurrency=2) as run:
        order = []
        async for item in run:
            order.append(item.index)
            if len(order) == 4:
                released.set()
    assert sorted(order[:4]) == [1, 2, 3, 4]
    assert order[4] == 0


async def test_map_ordered_waits_with_a_bounded_window(server: Server, client: AsyncImages) -> None:
    """In order, a slow request holds the others back, of which at most twice the concurrency are begun."""
    released = hold(server, "0")
    async with client.map(map(str, range(30)), concurrency=4, ordered=True) as run:
        await server.wait_until(lambda: len(server.requests) == 8 and server.in_flight == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(server.requests) == 8
        released.set()
        assert [item.index async for item in run] == list(range(30))


async def test_map_bounds_the_requests_under_way(server: Server, client: AsyncImages) -> None:
    """`concurrency` is reached, and never passed."""

    async def answer(fields: Fields) -> Fields | web.Response:
        await server.wait_until(lambda: server.in_flight == 5 or len(server.requests) > 40)
        return images(PNG)

    server.answer = answer
    async with client.map(map(str, range(50)), concurrency=5) as run:
        async for _ in run:
            assert run.in_flight <= 5
    assert server.peak == 5


async def test_map_waits_for_a_slow_caller(server: Server, client: AsyncImages) -> None:
    """What was not taken yet takes up room: at most `concurrency` results wait."""
    async with client.map(map(str, range(100)), concurrency=3) as run:
        for taken in range(1, 5):
            await server.wait_until(lambda: server.in_flight == 0 and len(server.requests) >= 3)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(server.requests) <= 2 + taken
            await anext(run)


@pytest.mark.parametrize("kind", ["list", "generator", "async generator", "file"])
async def test_map_reads_any_iterable_lazily(
    kind: str, server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Of a long input only so much is read as there is room for, and a few items more by a thread."""
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


async def test_map_survives_an_iterable_that_blocks(server: Server, client: AsyncImages) -> None:
    """While a plain iterable waits for its next item, the loop runs on, and leaving does not wait for it."""
    blocked, wake = threading.Event(), threading.Event()

    def prompts() -> Iterator[str]:
        yield "a boat"
        blocked.set()
        wake.wait()
        yield "never asked for"

    async with client.map(prompts()) as run:
        assert (await anext(run)).ok
        assert blocked.wait(5)
        with anyio.move_on_after(0.05) as scope:
            await anext(run)
        assert scope.cancelled_caught
    wake.set()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "a", "sise": "1024x1024"}, "no field 'sise'"),
        ({"size": "1024x1024"}, "needs a prompt"),
        (17, "prompt must be a string"),
        (None, "needs a prompt"),
        ({"prompt": "a", "n": "two"}, "n must be a whole number"),
        ({1: 2}, "no field"),
        (GenerateRequest(prompt="a", n=99), "n is 99"),
        ("\ud800", "cannot be written as JSON"),
    ],
    ids=range(8),
)
async def test_map_makes_a_bad_item_a_failed_one(
    bad: Any, said: str, server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """What is no request costs nothing and does not stop the rest, with a journal and without."""
    for journal in (None, tmp_path / "run.jsonl"):
        items = in_order(await everything(client.map(["a", bad, "b"], journal=journal)))
        assert [item.ok for item in items] == [True, False, True]
        error = items[1].error
        assert isinstance(error, InvalidRequestError)
        assert said in str(error)
        assert error.billing == "not_sent"
    assert len(server.requests) == 4


async def test_map_goes_on_after_failures(server: Server, client: AsyncImages) -> None:
    """A failed request is an item with its error; the others succeed."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return refusal(400, "moderation_blocked") if "bad" in fields["prompt"] else images(PNG)

    server.answer = answer
    async with client.map(["1", "bad", "2"]) as run:
        items = in_order([item async for item in run])
    assert [item.ok for item in items] == [True, False, True]
    error = items[1].error
    assert isinstance(error, BadRequestError)
    assert (items[1].result, items[1].attempts, error.code) == (None, 1, "moderation_blocked")
    assert (run.totals.done, run.totals.failed, run.totals.images) == (2, 1, 2)


@pytest.mark.parametrize("later", [False, True])
async def test_map_raises_what_its_input_raises_at_the_end(
    later: bool, server: Server, client: AsyncImages
) -> None:
    """First come the items of what was under way, then the iterable's own exception, as it is."""

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
async def test_map_refuses_what_is_no_collection(given: Any, client: AsyncImages) -> None:
    """A single prompt is not taken for its letters."""
    with pytest.raises(InvalidRequestError, match="iterable"):
        client.map(given)


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
async def test_map_refuses_options_that_cannot_work(options: Any, client: AsyncImages) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigurationError, match="at least 1"):
        client.map([], **options)


async def test_map_refuses_options_that_there_are_not(client: AsyncImages) -> None:
    """A misspelt option is an error as with any function."""
    with pytest.raises(TypeError, match="'sise'"):
        client.map([], sise="1024x1024")  # type: ignore[call-arg]
    with pytest.raises(InvalidRequestError, match="headers"):
        client.map([], extra_headers={"a b": "c"})


async def test_map_of_nothing_ends_at_once(client: AsyncImages) -> None:
    """No requests, no items."""
    assert await everything(client.map([])) == []
    assert await everything(client.map(iter(()))) == []


async def test_map_streams_where_asked() -> None:
    """With `stream=True` each request asks for a stream, and the finished images are the result."""
    async with (
        LocalServer(light=True, delay=0) as local,
        AsyncImages(local.api_key, base_url=local.base_url) as streaming,
    ):
        run = streaming.map(["a boat", "a hut"], stream=True, partial_images=0)
        items = await everything(run)
        assert [len(item.result or ()) for item in items] == [1, 1]
        assert all(seen.fields["stream"] is True for seen in local.requests)
        assert all(seen.fields["partial_images"] == 0 for seen in local.requests)


async def test_map_passes_headers_timeout_and_retries_to_each_call(
    server: Server, client: AsyncImages
) -> None:
    """What is said of calls holds for each of them."""
    failures = iter([refusal(503)])

    async def answer(fields: Fields) -> Fields | web.Response:
        return next(failures, None) or images(PNG)

    server.answer = answer
    policy = elkimg_async.RetryPolicy(initial_backoff=0, max_retries=1)
    (item,) = await everything(client.map(["a"], extra_headers={"X-Team": "t"}, retry=policy))
    assert (item.ok, item.attempts) == (True, 2)
    assert [headers["X-Team"] for headers in server.headers] == ["t", "t"]
    assert len(set(server.keys)) == 1
    hold(server)
    (item,) = await everything(client.map(["a"], timeout=0.05))
    assert isinstance(item.error, TimeoutError)


async def test_map_lets_calls_wait_for_their_turn(server: Server) -> None:
    """The default total time is for a single call; in a run, it would end those that only wait."""
    from elkimg_async.config import TOTAL

    async with AsyncImages(KEY, base_url=server.base_url) as client:
        run = client.map(["a"])
        generate = run._work._generate  # type: ignore[attr-defined]
        assert generate.keywords["timeout"].total > TOTAL
        run = client.map(["a"], timeout=5)
        generate = run._work._generate  # type: ignore[attr-defined]
        assert generate.keywords["timeout"].total == 5


# --- the rules of use -------------------------------------------------------


async def test_run_used_wrongly_says_so(server: Server, client: AsyncImages) -> None:
    """Outside its block, twice, or by two tasks: a plain sentence."""
    run = client.map(["a"])
    assert repr(run) == "<MapRun new, 0 done, 0 failed>"
    with pytest.raises(BatchError, match="async with"):
        aiter(run)
    with pytest.raises(BatchError, match="async with"):
        await anext(run)
    released = hold(server)
    async with run:
        first = asyncio.create_task(anext(run))
        await server.wait_until(lambda: server.in_flight == 1)
        with pytest.raises(BatchError, match="Two tasks"):
            await anext(run)
        released.set()
        assert (await first).ok
        assert [item async for item in run] == []
        with pytest.raises(BatchError, match="iterated once"):
            aiter(run)
    with pytest.raises(BatchError, match="closed"):
        await anext(run)
    with pytest.raises(BatchError, match="entered once"):
        await run.__aenter__()
    assert repr(run) == "<MapRun closed, 1 done, 0 failed>"
    assert not server.requests[1:]


async def test_run_closed_under_a_reader_says_so(server: Server, client: AsyncImages) -> None:
    """A task that waits for an item learns that another one has left the block."""
    hold(server)
    async with client.map(["a"]) as run:
        reader = asyncio.create_task(anext(run))
        await server.wait_until(lambda: server.in_flight == 1)
    with pytest.raises(BatchError, match="closed"):
        await reader


@pytest.mark.parametrize("how", ["break", "exception", "cancellation", "timeout"])
async def test_leaving_cancels_what_is_under_way(
    how: str, server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """However the block is left, the connections are closed, the journal is true, and it is free again."""
    hold(server, *map(str, range(1, 100)))
    journal, folder = tmp_path / "run.jsonl", tmp_path / "out"

    async def use() -> None:
        async with client.map(
            map(str, range(100)), concurrency=4, journal=journal, output_dir=folder
        ) as run:
            assert (await anext(run)).index == 0
            await server.wait_until(lambda: server.in_flight == 4)
            if how == "exception":
                raise LookupError
            if how == "cancellation":
                asyncio.current_task().cancel()  # type: ignore[union-attr]
            if how != "break":
                await anext(run)

    task = asyncio.create_task(asyncio.wait_for(use(), 0.3) if how == "timeout" else use())
    wanted = {
        "exception": LookupError,
        "cancellation": asyncio.CancelledError,
        "timeout": TimeoutError,
    }
    with pytest.raises(wanted[how]) if how in wanted else contextlib.nullcontext():
        await task
    await server.wait_until(lambda: server.in_flight == 0)
    records = lines(journal)
    assert [record["index"] for record in records if record["type"] == "done"] == [0]
    sent = {record["index"] for record in records if record["type"] == "sent"}
    assert sent >= {0, 1, 2, 3, 4}
    server.answer = one_image
    items = await everything(client.map(map(str, range(100)), journal=journal, output_dir=folder))
    assert [item.index for item in items if item.resumed] == [0]
    assert len(items) == 100
    assert all(item.ok for item in items)


async def test_leaving_waits_until_an_answer_is_on_the_disk(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """An answer that has come is saved and noted, even when the block is left just then: it is paid for."""
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
        stems = {stem_of(n, f"{number * 10 + n}") + ".png" for n in range(5)}
        saved = {path.name for path in (tmp_path / "out").iterdir()} & stems
        assert saved == done
    assert not journal.exists()


# --- files ------------------------------------------------------------------


async def test_output_dir_holds_images_and_manifest(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Names tell the request, extensions the content; the manifest has prompt, parameters, usage and hashes."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return images(*[PNG, JPEG, PNG][: fields.get("n", 1)])

    server.answer = answer
    folder = tmp_path / "deep" / "out"
    requests: list[Any] = [
        "A Small  kitten, in a sunny garden — at noon",
        {"prompt": "小船", "n": 2},
    ]
    items = in_order(await everything(client.map(requests, output_dir=folder, size="1024x1024")))
    assert [item.result for item in items] == [None, None]
    assert [path.name for item in items for path in item.paths] == [
        "000000-a-small-kitten-in-a-sunny.png",
        "000001-小船-1.png",
        "000001-小船-2.jpg",
    ]
    assert items[1].paths[1].read_bytes() == JPEG
    manifest = sorted(lines(folder / MANIFEST), key=lambda line: line["index"])
    assert manifest[1]["prompt"] == "小船"
    assert manifest[1]["parameters"] == {"model": "gpt-image-1.5", "n": 2, "size": "1024x1024"}
    assert manifest[1]["usage"]["total_tokens"] == 10
    assert [file["sha256"] for file in manifest[1]["files"]] == [
        hashlib.sha256(content).hexdigest() for content in (PNG, JPEG)
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [MANIFEST, *(path.name for item in items for path in item.paths)]
    )


async def test_output_dir_is_for_one_run_at_a_time(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A second run on the same folder or journal is refused while the first lasts, and touches nothing."""
    part = tmp_path / f".{'0' * 16}.part"
    async with client.map(["a"], output_dir=tmp_path, journal=tmp_path / "j.jsonl"):
        part.write_bytes(b"of the first run")
        for options in ({"output_dir": tmp_path}, {"journal": tmp_path / "j.jsonl"}):
            with pytest.raises(JournalError, match="Another run"):
                await everything(client.map(["b"], **options))  # type: ignore[arg-type]
        assert part.exists()
    await everything(client.map(["a"], output_dir=tmp_path, journal=tmp_path / "j.jsonl"))
    assert not part.exists()


@pytest.mark.parametrize("where", ["output_dir", "journal"])
async def test_places_that_cannot_be_used_are_refused(
    where: str, client: AsyncImages, server: Server, tmp_path: Path
) -> None:
    """Before anything is paid for."""
    (tmp_path / "file").write_text("x")
    options: Any = {where: tmp_path / "file" / "below"}
    with pytest.raises(
        (ConfigurationError, JournalError),
        match=r"(cannot be used|cannot go to).*(directory|exists)",
    ):
        await everything(client.map(["a"], **options))
    with pytest.raises(JournalError, match="not a journal"):
        await everything(client.map(["a"], journal=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"
    assert not server.requests


async def test_disk_that_takes_no_more_stops_the_run(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Nothing more is asked for, the image that was made is handed over, and the error says what to do."""
    folder = tmp_path / "out"

    async def answer(fields: Fields) -> Fields | web.Response:
        shutil.rmtree(folder, ignore_errors=True)
        return images(PNG)

    server.answer = answer
    run = client.map(map(str, range(50)), concurrency=1, output_dir=folder)
    items, error = await until_the_end(run)
    assert isinstance(error, BatchError)
    assert "cannot be saved" in str(error)
    assert len(items) == len(server.requests) == 1
    assert items[0].error is not None
    assert items[0].error.billing == "billed"
    assert items[0].result is not None
    assert items[0].result[0].content == PNG


async def test_good_images_of_a_broken_answer_are_saved(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Where one of several images is broken, the item has failed and the others are on the disk."""

    async def answer(fields: Fields) -> Fields | web.Response:
        broken = images(PNG, JPEG)
        broken["data"].append({"b64_json": "%%%"})
        return broken

    server.answer = answer
    (item,) = await everything(client.map([{"prompt": "a", "n": 3}], output_dir=tmp_path))
    assert not item.ok
    assert [path.read_bytes() for path in item.paths] == [PNG, JPEG]


def by_url(server: Server, count: int) -> Answer:
    async def answer(fields: Fields) -> Fields | web.Response:
        urls = [f"{server.origin}/files/{fields['prompt']}-{n}" for n in range(count)]
        return {"data": [{"url": url} for url in urls], "usage": {"total_tokens": 5}}

    return answer


async def test_images_behind_urls_are_downloaded(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """With an output folder they are fetched; without one they are left to the caller."""
    server.answer = by_url(server, 2)
    (item,) = await everything(client.map(["a"], output_dir=tmp_path, model="dall-e-2", n=2))
    assert [path.read_bytes() for path in item.paths] == [PNG, PNG]
    (item,) = await everything(client.map(["a"], model="dall-e-2"))
    assert item.result is not None
    assert [image.content for image in item.result] == [None, None]
    assert await item.result[0].read() == PNG


async def test_download_that_failed_is_repeated_and_not_the_generation(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A failed download is a failed item, billed; the same run again fetches what is missing, and no more."""
    server.answer = by_url(server, 3)
    asked: list[str] = []

    async def file(name: str) -> web.Response:
        asked.append(name)
        return (
            web.Response(status=503) if name == "a-1" and len(asked) < 4 else web.Response(body=PNG)
        )

    server.file = file

    def run() -> MapRun:
        return client.map(["a"], output_dir=tmp_path, journal=tmp_path / "j", model="dall-e-2", n=3)

    (item,) = await everything(run())
    assert isinstance(item.error, DownloadError)
    assert item.error.billing == "billed"
    assert [path.name for path in item.paths] == ["000000-a-1.png", "000000-a-3.png"]
    asked += ["", ""]
    again = run()
    (item,) = await everything(again)
    assert item.ok
    assert [path.name for path in item.paths] == [f"000000-a-{n}.png" for n in (1, 2, 3)]
    assert all(path.read_bytes() == PNG for path in item.paths)
    assert len(server.requests) == 1
    assert asked == ["a-0", "a-1", "a-2", "", "", "a-1"]
    assert (again.totals.images, again.totals.usage) == (3, Usage(total_tokens=5))
    assert len(lines(tmp_path / MANIFEST)) == 1


async def test_download_that_was_left_is_repeated_and_not_the_generation(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Where an image is, the journal knows before it is fetched."""
    server.answer = by_url(server, 1)
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


async def test_download_that_the_disk_did_not_take_is_repeated_and_not_the_generation(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Where the images are stays known, so that after the disk is mended they are only fetched."""
    server.answer = by_url(server, 1)
    folder = tmp_path / "out"

    async def file(name: str) -> web.Response:
        shutil.rmtree(folder)
        return web.Response(body=PNG)

    server.file = file
    options: Any = {"output_dir": folder, "journal": tmp_path / "j", "model": "dall-e-2"}
    _, error = await until_the_end(client.map(["a"], **options))
    assert isinstance(error, BatchError)
    assert "cannot be saved" in str(error)
    server.file = one_file
    (item,) = await everything(client.map(["a"], **options))
    assert item.ok
    assert len(server.requests) == 1


# --- budget -----------------------------------------------------------------


async def test_max_images_is_reached_and_not_passed(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """What is in flight counts, refusals do not; the run can go on with a higher limit."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return refusal(400) if fields["prompt"] in ("1", "2") else images(*[PNG] * fields["n"])

    server.answer = answer
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


async def test_max_images_counts_what_may_have_been_paid_for(
    server: Server, client: AsyncImages
) -> None:
    """A failure whose result is unknown may have made its images."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return web.Response(status=502, text="<html>")

    server.answer = answer
    _, error = await until_the_end(client.map(map(str, range(9)), max_images=3, concurrency=2))
    assert isinstance(error, BatchStoppedError)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("mode", "given"), [("off", 2), ("send", 2), ("replay", 8)])
async def test_max_images_counts_what_earlier_runs_have_lost(
    server: Server, tmp_path: Path, mode: IdempotencyMode, given: int
) -> None:
    """What was under way when a run died may have been paid for each time; once where its key is replayed."""
    requests = [{"prompt": f"{number}", "n": 2} for number in range(20)]

    async def answer(fields: Fields) -> Fields | web.Response:
        return images(PNG, PNG)

    async with AsyncImages(KEY, base_url=server.base_url, idempotency=mode) as client:

        def run(limit: int | None = None) -> MapRun:
            journal = tmp_path / "j.jsonl"
            return client.map(requests, concurrency=3, journal=journal, max_images=limit)

        hold(server)
        for _ in range(2):
            async with run():
                await server.wait_until(lambda: server.in_flight == 3)
            await server.wait_until(lambda: server.in_flight == 0)
        server.answer = answer
        items, error = await until_the_end(run(16))
        assert isinstance(error, BatchStoppedError)
        assert (len(items), error.reason) == (given, "max_images")
        paid = set(server.keys) if mode == "replay" else server.requests
        assert 2 * len(paid) == 16
        items, _ = await until_the_end(run(19))
        assert sum(not item.resumed for item in items) == 1


async def test_max_total_tokens_counts_what_an_earlier_run_has_lost(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """What nobody told the price of is taken to have cost what the others did."""

    async def answer(fields: Fields) -> Fields | web.Response:
        if not released and fields["prompt"] != "0":
            await asyncio.Event().wait()
        return images(PNG, tokens=100)

    server.answer, released = answer, False
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


async def test_refusal_of_what_an_earlier_run_has_lost_leaves_it_unknown(
    server: Server, tmp_path: Path
) -> None:
    """Where the server replays keys, what may have been made is not given up for a refusal of today."""
    async with AsyncImages(KEY, base_url=server.base_url, retry=0, idempotency="replay") as client:
        options: Any = {"journal": tmp_path / "j.jsonl", "max_images": 1}
        hold(server)
        async with client.map(["0", "1"], **options):
            await server.wait_until(lambda: server.in_flight == 1)

        async def answer(fields: Fields) -> Fields | web.Response:
            return refusal(403)

        server.answer = answer
        items, error = await until_the_end(client.map(["0", "1"], **options))
        assert isinstance(error, BatchStoppedError)
        assert [item.error.billing for item in items if item.error] == ["unknown"]
        server.answer = one_image
        items, _ = await until_the_end(client.map(["0"], journal=options["journal"]))
    assert [item.ok for item in items] == [True]
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1


async def test_max_total_tokens_stops_before_it_is_passed(
    server: Server, client: AsyncImages
) -> None:
    """The first request tells the price; then those in flight count at that price."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return images(PNG, tokens=100)

    server.answer = answer
    run = client.map(map(str, range(90)), max_total_tokens=1050, concurrency=7)
    _, error = await until_the_end(run)
    assert isinstance(error, BatchStoppedError)
    assert error.reason == "max_total_tokens"
    assert error.totals.usage == Usage(total_tokens=1000)
    assert len(server.requests) == 10


async def test_max_errors_counts_items_that_are_no_requests(client: AsyncImages) -> None:
    """Wrong items end a run like other failures."""
    seen, error = await until_the_end(client.map([{"wrong": 1}] * 50, max_errors=3))
    assert isinstance(error, BatchStoppedError)
    assert len(seen) == 3


async def test_input_cancelled_from_within_is_told(server: Server, client: AsyncImages) -> None:
    """An input whose own task was cancelled is no good end, and harms nothing in flight."""

    async def prompts() -> AsyncIterator[str]:
        yield "0"
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    seen, error = await until_the_end(client.map(prompts()))
    assert [item.ok for item in seen] == [True]
    assert isinstance(error, BatchError)
    assert "cancelled from within" in str(error)


async def test_key_function_that_fails_once_costs_one_item(server: Server) -> None:
    """A foreign error of the function for the key is a failure of one item, without its text."""
    asked = 0

    async def key() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise OSError(f"no vault for {KEY}")
        return KEY

    async with AsyncImages(key, base_url=server.base_url) as client:
        seen, error = await until_the_end(client.map(map(str, range(4)), concurrency=1))
    assert error is None
    assert [item.ok for item in in_order(seen)] == [True, False, True, True]
    (failed,) = (item.error for item in seen if item.error is not None)
    assert isinstance(failed, ConfigurationError)
    assert "OSError" in str(failed)
    assert KEY not in repr(failed)


async def test_item_that_was_never_given_is_done_again(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Cancelled while an item is being noted, before anybody had it, the run says that it is still to be done."""
    journal = tmp_path / "run.jsonl"
    async with client.map(["0"], journal=journal) as run:
        await server.wait_until(lambda: len(server.requests) == 1 and not server.in_flight)
        while not run._work._ready:  # type: ignore[attr-defined]
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


async def test_outcome_of_an_earlier_attempt_stays_unknown(server: Server, tmp_path: Path) -> None:
    """What an attempt may have made is not forgotten for the refusal of the next, and its key is used again."""
    calls = 0

    async def answer(fields: Fields) -> Fields | web.Response:
        nonlocal calls
        calls += 1
        return refusal(502) if calls == 1 else refusal(403) if calls == 2 else images(PNG)

    server.answer = answer
    async with AsyncImages(
        KEY, base_url=server.base_url, idempotency="replay", retry=RetryPolicy(initial_backoff=0)
    ) as client:
        journal = tmp_path / "run.jsonl"
        (item,) = await everything(client.map(["0"], journal=journal))
        assert isinstance(item.error, PermissionDeniedError)
        assert item.error.billing == "unknown"
        (item,) = await everything(client.map(["0"], journal=journal))
    assert item.ok
    assert len(set(server.keys)) == 1


async def test_max_errors_stops_the_run(server: Server, client: AsyncImages) -> None:
    """So many failures end it: what was in flight is given first, and nothing more begins."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return refusal(500) if int(fields["prompt"]) >= 10 else images(PNG)

    server.answer = answer
    run = client.map(map(str, range(1000)), max_errors=3, concurrency=4)
    seen, error = await until_the_end(run)
    assert isinstance(error, BatchStoppedError)
    assert "max_errors=3" in str(error)
    failed = [item for item in seen if not item.ok]
    assert 3 <= len(failed) <= 3 + 3
    assert all(isinstance(item.error, ServerError) for item in failed)
    assert error.totals.failed == len(failed)
    assert len(server.requests) == len(seen)


async def test_limit_reached_by_the_last_request_is_no_stop(
    server: Server, client: AsyncImages
) -> None:
    """A run that is through has not stopped before its input ended."""
    mixed: list[Any] = ["1", "2", 3]
    items = await everything(client.map(mixed, max_images=2, max_errors=1))
    assert [item.ok for item in in_order(items)] == [True, True, False]


async def test_stop_pickles_with_its_totals() -> None:
    """It may come from another process."""
    totals = Totals(done=1, usage=Usage(total_tokens=3))
    error = BatchStoppedError("stopped", reason="max_images", totals=totals)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.reason, again.totals) == (BatchStoppedError, "max_images", totals)
    item = MapItem(index=1, request=GenerateRequest(prompt="a"), error=error)
    assert pickle.loads(pickle.dumps(item)).error.reason == "max_images"


# --- the journal ------------------------------------------------------------


async def test_journal_leaves_what_is_left(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """The same run again: finished items come at once from the journal, failed ones are tried again."""
    broken = True

    async def answer(fields: Fields) -> Fields | web.Response:
        return refusal(500) if broken and fields["prompt"] == "1" else images(PNG)

    server.answer = answer
    options: Any = {"journal": tmp_path / "sub" / "j.jsonl", "output_dir": tmp_path / "out"}
    first = in_order(await everything(client.map(map(str, range(4)), **options)))
    assert [item.ok for item in first] == [True, False, True, True]

    run = client.map(map(str, range(4)), skip_failed=True, **options)
    again = in_order(await everything(run))
    assert [item.resumed for item in again] == [True] * 4
    assert isinstance(again[1].error, ServerError)
    assert (again[1].error.status, again[1].attempts) == (500, 1)
    for item, before in zip(again, first, strict=True):
        assert (item.paths, item.usage, item.request) == (
            before.paths,
            before.usage,
            before.request,
        )
    assert again[0].meta == first[0].meta
    assert (run.totals.done, run.totals.failed, run.totals.resumed) == (3, 1, 4)
    assert (run.totals.images, run.totals.bytes) == (3, 3 * len(PNG))
    assert len(server.requests) == 4

    broken = False
    run = client.map(map(str, range(6)), **options)  # two more at the end
    last = in_order(await everything(run))
    assert [item.resumed for item in last] == [True, False, True, True, False, False]
    assert all(item.ok for item in last)
    assert sorted(fields["prompt"] for fields in server.requests[4:]) == ["1", "4", "5"]
    assert sorted(line["index"] for line in lines(tmp_path / "out" / MANIFEST)) == list(range(6))
    assert len(await everything(client.map(["0"], **options))) == 1  # fewer are the same, too


async def test_journal_knows_the_key_before_the_request_leaves(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """When a request arrives, its Idempotency-Key is in the file already."""
    journal = tmp_path / "j.jsonl"
    known = []

    async def answer(fields: Fields) -> Fields | web.Response:
        sent = {line.get("key") for line in lines(journal) if line["type"] == "sent"}
        known.append(server.keys[-1] in sent)
        return images(PNG)

    server.answer = answer
    items = await everything(client.map(map(str, range(9)), journal=journal))
    assert known == [True] * 9
    assert len(set(server.keys)) == 9
    assert {item.meta.idempotency_key for item in items if item.meta} == set(server.keys)


async def test_journal_uses_the_key_again_unless_it_was_refused(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """What may have been made keeps its key, so that a server that replays makes nothing twice."""

    async def answer(fields: Fields) -> Fields | web.Response:
        if fields["prompt"] == "unknown":
            return web.Response(status=502)
        return refusal(400) if fields["prompt"] == "refused" else images(PNG)

    server.answer = answer
    for _ in range(2):
        requests = ["refused", "unknown"]
        await everything(client.map(requests, journal=tmp_path / "j", concurrency=1))
    refused, unknown, refused_again, unknown_again = server.keys
    assert refused != refused_again
    assert unknown == unknown_again


async def test_journal_without_keys(server: Server, tmp_path: Path) -> None:
    """With `idempotency="off"` none is sent, and the journal claims none."""
    async with AsyncImages(KEY, base_url=server.base_url, idempotency="off") as client:
        for _ in range(2):
            await everything(client.map(["a"], journal=tmp_path / "j", output_dir=tmp_path))
    assert server.keys == [None]
    assert all(line.get("key") is None for line in lines(tmp_path / "j"))


async def test_journal_of_other_requests_is_refused(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A request that is another one than then ends the run before it is sent, and names itself."""
    journal = tmp_path / "j.jsonl"
    await everything(client.map(["0", "1", "2"], journal=journal))
    before = journal.read_bytes()
    run = client.map(["0", "other", "2"], journal=journal)
    async with run:
        assert (await anext(run)).resumed
        with pytest.raises(JournalError, match="number 1 "):
            await anext(run)
    with pytest.raises(JournalError, match="number 0 "):
        await everything(client.map(["0"], journal=journal, size="1024x1024"))
    assert journal.read_bytes() == before
    assert len(server.requests) == 3


async def test_journal_that_was_torn_goes_on(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """What a killed process left of its last line is cut off, and what follows is whole."""
    journal = tmp_path / "j.jsonl"
    options: Any = {"journal": journal, "output_dir": tmp_path, "concurrency": 1}
    await everything(client.map(["0", "1"], **options))
    whole = journal.read_bytes()
    for cut in (1, 2, 40, len(whole) - 3):
        journal.write_bytes(whole[:-cut])
        manifest = (tmp_path / MANIFEST).read_bytes()
        (tmp_path / MANIFEST).write_bytes(manifest[:-3])
        items = await everything(client.map(["0", "1"], **options))
        assert all(item.ok for item in items)
        lines(journal)
        assert journal.read_bytes().endswith(b"\n")
    assert {line["index"] for line in lines(tmp_path / MANIFEST)} <= {0, 1}
    journal.write_bytes(whole.replace(b'"index":0', b'"index":zero', 1))
    with pytest.raises(JournalError, match="Line 2"):
        await everything(client.map(["0", "1"], **options))


async def test_journal_without_folder_counts_what_was_taken(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """Without an output folder an item is finished when the caller has it in hand, and not before."""
    async with client.map(["0", "1", "2"], journal=tmp_path / "j", ordered=True) as run:
        await anext(run)
        await server.wait_until(lambda: len(server.requests) == 3 and server.in_flight == 0)
        await asyncio.sleep(0.05)
    items = in_order(await everything(client.map(["0", "1", "2"], journal=tmp_path / "j")))
    assert [item.resumed for item in items] == [True, False, False]
    assert items[0].result is None
    assert items[1].result is not None
    assert set(server.keys[1:3]) == set(server.keys[3:])


async def test_journal_waits_for_an_attempt_that_is_still_running(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A server that is still making what a killed run asked for is asked again until it answers."""
    released = hold(server)
    async with client.map(["a"], journal=tmp_path / "j"):
        await server.wait_until(lambda: server.in_flight == 1)
    released.set()
    answers = iter([refusal(409, "idempotency_key_in_flight") for _ in range(2)])

    async def answer(fields: Fields) -> Fields | web.Response:
        return next(answers, None) or images(PNG)

    server.answer = answer
    (item,) = await everything(client.map(["a"], journal=tmp_path / "j"))
    assert item.ok
    assert len(server.requests) == 4
    assert len(set(server.keys)) == 1
    answers = iter([refusal(409, "idempotency_key_in_flight")])
    (item,) = await everything(client.map(["b"], journal=tmp_path / "k"))
    assert isinstance(item.error, APIError)  # nobody else can have asked for this one


async def test_manifest_of_an_unfinished_request_is_taken_back(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A run that died between manifest and journal leaves no request there twice; other runs' lines stay."""
    options: Any = {"journal": tmp_path / "j", "output_dir": tmp_path, "concurrency": 1}
    await everything(client.map(["0", "1"], **options))
    journal = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "j").write_bytes(b"".join(journal[:-1]))
    other = {**lines(tmp_path / MANIFEST)[1], "key": "of another run"}
    with (tmp_path / MANIFEST).open("a") as file:
        file.write(json.dumps(other) + "\n")
    await everything(client.map(["0", "1"], **options))
    keys = [line["key"] for line in lines(tmp_path / MANIFEST)]
    assert keys == [server.keys[0], "of another run", server.keys[2]]
    assert server.keys[1] == server.keys[2]


@pytest.mark.skipif(sys.platform == "win32", reason="it replaces no file that is open")
@pytest.mark.parametrize("moment", ["opened before", "just before", "just after"])
def test_manifest_being_mended_lets_nobody_else_in(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment can another run take the folder, not even one that had opened the old manifest by then."""
    manifest = tmp_path / MANIFEST
    manifest.write_text("torn")
    store, lock, replace = RunStore(None, OutputFolder(tmp_path)), storage._lock, Path.replace

    def intrude() -> None:
        with pytest.raises(JournalError, match="Another run"):
            storage._open_locked(manifest)
        intruded.append(moment)

    def lock_late(descriptor: int, path: Path) -> None:
        monkeypatch.setattr(storage, "_lock", lock)
        store.open()
        lock(descriptor, path)

    def replace_watched(part: Path, path: Path) -> Path:
        if moment == "just before":
            intrude()
        replaced = replace(part, path)
        if moment == "just after":
            intrude()
        return replaced

    intruded: list[str] = []
    monkeypatch.setattr(Path, "replace", replace_watched)
    if moment == "opened before":
        monkeypatch.setattr(storage, "_lock", lock_late)
        intrude()
    else:
        store.open()
    intrude()
    store.close()
    assert intruded == [moment] * 2
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert manifest.read_bytes() == b""
    os.close(storage._open_locked(manifest))


async def test_call_with_a_key_of_the_callers_uses_it(server: Server, client: AsyncImages) -> None:
    """In any case, and the caller's last word; the result tells it."""
    view = client.with_options(headers={"Idempotency-Key": "client's"})
    result = await view.generate("a")
    assert result.meta.idempotency_key == "client's"
    result = await view.generate("a", extra_headers={"idempotency-key": "own"})
    assert result.meta.idempotency_key == "own"
    assert server.keys == ["client's", "own"]
    await everything(client.map(["a"], extra_headers={"idempotency-key": "one for all"}))
    assert server.keys[2] == "one for all"


# --- kill -9 ----------------------------------------------------------------


async def killed_until_done(
    folder: Path, mode: str, kills: int, chance: random.Random, count: int = 60
) -> None:
    """Start a run again and again, kill it at random moments, let the last one end, and check everything."""
    package = str(Path(elkimg_async.__file__).parent.parent)
    journal = folder / "journal.jsonl"
    async with LocalServer(light=True, delay=0.02) as server:
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *sys.path]),
            "ELKAPI_API_KEY": server.api_key,
            "ELKAPI_BASE_URL": server.base_url,
        }
        allowed, finished, replay = count, set[int](), JournalIndex()
        for number in range(kills + 1):
            seen = len(server.requests)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(Path(__file__).parents[1] / "helpers/map_until_done.py"),
                *(str(folder), str(count), mode),
                env=variables,
                stderr=subprocess.PIPE,
            )
            ended = asyncio.create_task(process.communicate())
            if number < kills:
                goal = seen + chance.randint(0, count // (kills + 1) + 8)
                waiting = asyncio.create_task(
                    server.wait_until(lambda goal=goal: len(server.requests) >= goal)  # type: ignore[misc]
                )
                await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                await asyncio.sleep(chance.random() * 0.05)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            _, stderr = await ended
            assert process.returncode in ((0, -9) if number < kills else (0,)), stderr.decode()
            asked = {int(r.fields["prompt"].split()[1]) for r in list(server.requests)[seen:]}
            assert not asked & finished, "a finished request was done again"
            replay = JournalIndex()
            if journal.exists():
                for line in journal.read_bytes().splitlines(keepends=True):
                    replay.feed(line)
            assert server.generations <= replay.images, "more was made than the journal knows of"
            states = [replay.state(index) for index in range(count)]
            finished = {index for index in range(count) if states[index] == "done"}
            if number < kills:
                allowed += states.count("sent")
        assert finished == set(range(count))
        generations = server.generations
    assert mode != "replay" or replay.images == count
    assert generations == count if mode == "replay" else count <= generations <= allowed
    manifest = lines(folder / MANIFEST)
    assert sorted(line["index"] for line in manifest) == list(range(count))
    names = {file["name"] for line in manifest for file in line["files"]}
    assert {path.name for path in folder.iterdir()} == names | {MANIFEST, journal.name}
    for row in manifest:
        (file,) = row["files"]
        content = (folder / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            file["bytes"],
            file["sha256"],
        )
        assert media_type_of(content) == "image/png"


@pytest.mark.parametrize("mode", ["off", "replay"])
async def test_run_that_is_killed_loses_and_repeats_nothing(mode: str, tmp_path: Path) -> None:
    """`kill -9` at random moments: all images are there and whole, none was made twice but what was in flight."""
    await killed_until_done(tmp_path, mode, 3, random.Random(f"{mode}-5"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["off", "replay"])
async def test_run_that_is_killed_at_many_moments(mode: str, tmp_path: Path) -> None:
    """The same with ten kills for each of ELKIMG_KILLED_RUNS runs; 5 make fifty."""
    for number in range(int(os.environ.get("ELKIMG_KILLED_RUNS", "1"))):
        chance = random.Random(f"{mode}-{number}")
        await killed_until_done(tmp_path / f"{number}", mode, 10, chance, count=120)


# --- memory -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells the peak")
@pytest.mark.parametrize("journal", [False, True])
def test_memory_does_not_grow_with_the_number_of_requests(journal: bool, tmp_path: Path) -> None:
    """ELKIMG_MAP_REQUESTS small requests run at the memory of a thousand, and are resumed at little more."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment
    ) as canned:
        assert canned.stdin is not None
        assert canned.stdout is not None
        url = f"http://127.0.0.1:{int(canned.stdout.readline())}/url-1-0/v1"

        def peak(count: int) -> int:
            arguments = [url, str(count), *([str(tmp_path / f"{count}.jsonl")] if journal else [])]
            script = Path(__file__).parents[1] / "helpers/map_many.py"
            run = subprocess.run(
                [sys.executable, str(script), *arguments],
                stdout=subprocess.PIPE,
                env=environment,
                check=True,
            )
            return int(run.stdout)

        count = int(os.environ.get("ELKIMG_MAP_REQUESTS", "10000"))
        few, many = peak(1_000), peak(count)
        again = peak(count) if journal else many
        canned.stdin.close()
    print(f"peak memory in KiB: {few:,} for 1,000; {many:,} for {count:,}; {again:,} once more")
    assert many < few + 8 * 1024
    assert again < few + 16 * 1024
