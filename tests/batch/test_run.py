"""The rules of using a run."""

import asyncio
import contextlib
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.encoders import jsonable_encoder

from elkimg_async import (
    AsyncImages,
    BatchError,
    BatchStoppedError,
    EditRequest,
    GenerateRequest,
    Totals,
    Usage,
)
from elkimg_async.batch.run import make_item
from tests.helpers.raw_server import PNG
from tests.helpers.runs import (
    Server,
    everything,
    hold,
    lines,
    one_image,
)


async def test_run_used_wrongly(server: Server, client: AsyncImages) -> None:
    """Using a run outside its block, twice, or from two tasks is an error that says so."""
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


async def test_run_closed_under_a_reader(server: Server, client: AsyncImages) -> None:
    """A task that waits for an item fails when another one leaves the block."""
    hold(server)
    async with client.map(["a"]) as run:
        reader = asyncio.create_task(anext(run))
        await server.wait_until(lambda: server.in_flight == 1)
    with pytest.raises(BatchError, match="closed"):
        await reader


@pytest.mark.parametrize("how", ["break", "exception", "cancellation", "timeout"])
async def test_run_left_early(
    how: str, server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """However the block is left, the connections are closed.

    The journal is complete and unlocked.
    """
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
    server.respond = one_image
    items = await everything(client.map(map(str, range(100)), journal=journal, output_dir=folder))
    assert [item.index for item in items if item.resumed] == [0]
    assert len(items) == 100
    assert all(item.ok for item in items)


async def test_stop_pickled() -> None:
    """The error of a stopped run can be pickled."""
    totals = Totals(done=1, usage=Usage(total_tokens=3))
    error = BatchStoppedError("stopped", reason="max_images", totals=totals)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.reason, again.totals) == (BatchStoppedError, "max_images", totals)
    item = make_item(index=1, request=GenerateRequest(prompt="a"), error=error)
    assert pickle.loads(pickle.dumps(item)).error.reason == "max_images"


@pytest.mark.parametrize("folder", ["out", None])
async def test_items_encode(folder: str | None, client: AsyncImages, tmp_path: Path) -> None:
    """Items of all kinds are encoded by msgspec and FastAPI, pickled and copied."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(PNG)
    rows: list[Any] = [
        {"prompt": "a", "id": 3, "metadata": {"sku": 7}, "extra_body": {"seed-1": 5}},
        {"prompt": "a", "n": 77},
        EditRequest(image=photo, prompt="hat"),
        EditRequest(image=[PNG, photo], prompt="hat"),
        {"prompt": "a", "image": tmp_path / "missing.png"},
        17,
    ]
    options: dict[str, Any] = {} if folder is None else {"output_dir": tmp_path / folder}
    async with client.map(rows, ordered=True, **options) as run:
        items = [item async for item in run]
    assert [item.ok for item in items] == [True, False, True, True, False, False]
    for item in items:
        plain = json.loads(msgspec.json.encode(item))
        assert json.loads(json.dumps(msgspec.to_builtins(item))) == plain
        assert json.loads(json.dumps(jsonable_encoder(item))) == item.to_dict()
        assert plain.get("request") == item.to_dict().get("request")
        assert plain.get("paths", []) == list(map(str, item.paths))
        assert all(isinstance(path, Path) for path in item.paths)
        if item.error is not None:
            assert plain["error"]["error"] == type(item.error).__name__
            assert plain["error"]["text"] == str(item.error)
        for again in (pickle.loads(pickle.dumps(item)), copy.deepcopy(item), copy.copy(item)):
            assert (again.index, again.paths, str(again.error)) == (
                *(item.index, item.paths, str(item.error)),
            )
            assert again.request == item.request
    assert isinstance(items[2].request, EditRequest)
    assert items[2].request.image == photo
    totals = run.totals
    assert msgspec.to_builtins(totals)["done"] == 3
    assert jsonable_encoder(totals) == totals.to_dict()
