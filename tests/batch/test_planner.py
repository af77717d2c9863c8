"""Planning: what each item of the input requires, given the journal."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from elkimg_async import (
    AsyncImages,
    ConfigurationError,
    GenerateRequest,
    InvalidRequestError,
    JournalError,
    ServerError,
)
from elkimg_async.batch.journal import DoneRecord, SavedFile
from elkimg_async.batch.planner import Delivery, Planner
from elkimg_async.batch.storage import MANIFEST, OutputFolder
from elkimg_async.sansio.requests import ImageRequest
from tests.helpers.raw_server import API_KEY, PNG
from tests.helpers.runs import Fields, Server, everything, images, in_order, lines, rejection


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
async def test_plan_of_a_bad_item(
    bad: Any, said: str, server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """An item that is not a request costs nothing, and the others are planned."""
    for journal in (None, tmp_path / "run.jsonl"):
        items = in_order(await everything(client.map(["a", bad, "b"], journal=journal)))
        assert [item.ok for item in items] == [True, False, True]
        error = items[1].error
        assert isinstance(error, InvalidRequestError)
        assert said in str(error)
        assert error.billing == "not_sent"
    assert len(server.requests) == 4


async def test_plan_of_a_repeated_run(server: Server, client: AsyncImages, tmp_path: Path) -> None:
    """Finished items are returned from the journal at once; failed ones are sent again."""
    broken = True

    async def respond(fields: Fields) -> Fields | web.Response:
        return rejection(500) if broken and fields["prompt"] == "1" else images(PNG)

    server.respond = respond
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


async def test_plan_idempotency_key(server: Server, client: AsyncImages, tmp_path: Path) -> None:
    """A request that may have been billed keeps its idempotency key."""

    async def respond(fields: Fields) -> Fields | web.Response:
        if fields["prompt"] == "unknown":
            return web.Response(status=502)
        return rejection(400) if fields["prompt"] == "refused" else images(PNG)

    server.respond = respond
    for _ in range(2):
        requests = ["refused", "unknown"]
        await everything(client.map(requests, journal=tmp_path / "j", concurrency=1))
    refused, unknown, refused_again, unknown_again = server.keys
    assert refused != refused_again
    assert unknown == unknown_again


async def test_plan_without_idempotency_keys(server: Server, tmp_path: Path) -> None:
    """With `idempotency="off"` no idempotency key is sent or recorded."""
    async with AsyncImages(API_KEY, base_url=server.base_url, idempotency="off") as client:
        for _ in range(2):
            await everything(client.map(["a"], journal=tmp_path / "j", output_dir=tmp_path))
    assert server.keys == [None]
    assert all(line.get("key") is None for line in lines(tmp_path / "j"))


async def test_plan_with_a_journal_of_other_requests(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """A different request is an error that names it, before it is sent."""
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


def test_plan_of_a_finished_request_without_a_price() -> None:
    """The price of a request matters only if it is sent: no other one is looked up."""

    def price(request: ImageRequest) -> Decimal:
        raise ConfigurationError(f"unknown: {request.prompt}")

    done = DoneRecord(index=0, images=1, files=(SavedFile(0, "a.png", 7, "…"),))
    planner = Planner(
        defaults={},
        stream=False,
        idempotency="send",
        skip_failed=False,
        known={0: done}.get,
        folder=OutputFolder(Path("out")),
        price=price,
    )
    delivery = planner.plan(0, "a")
    assert isinstance(delivery, Delivery)
    assert delivery.item.paths == (Path("out/a.png"),)
    assert (delivery.images, delivery.size, delivery.item.resumed) == (1, 7, True)
    with pytest.raises(ConfigurationError, match="unknown: b"):
        planner.plan(1, "b")
