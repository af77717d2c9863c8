"""Runs that cost money, and `max_cost`, checked against the record of the server."""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import elkimg_async
from elkimg_async import (
    AsyncImages,
    BatchStoppedError,
    ConfigurationError,
    ImagePrices,
    JournalError,
    MapRun,
    Pricing,
    RetryPolicy,
    TokenPrices,
)
from elkimg_async.batch.journal import JournalIndex
from elkimg_async.batch.storage import MANIFEST
from tests.helpers import costs
from tests.helpers.costs import MODEL, PRICING, WORST, CostServer
from tests.helpers.raw_server import API_KEY, PNG
from tests.helpers.runs import (
    Fields,
    Server,
    everything,
    hold,
    images,
    in_order,
    lines,
    rejection,
    until_the_end,
)

KILLS = int(os.environ.get("ELKIMG_COST_KILLS", "6"))
PER_IMAGE = Pricing({MODEL: ImagePrices({(None, None): "0.10", (None, "high"): "0.30"})})


@pytest.fixture
async def priced(server: Server) -> AsyncIterator[AsyncImages]:
    """A client for which each image costs ten cents."""
    async with AsyncImages(API_KEY, base_url=server.base_url, retry=0, pricing=PER_IMAGE) as client:
        yield client


def replayed(journal: Path) -> JournalIndex:
    """Return what a journal says."""
    index = JournalIndex()
    for line in journal.read_bytes().splitlines(keepends=True):
        index.feed(line)
    return index


def paid(journal: Path) -> Decimal:
    """Return the amount that a journal counts as spent, in US dollars."""
    return replayed(journal).costs.get("USD", Decimal(0))


def reason(error: Exception | None) -> str | None:
    """Return why a run was stopped."""
    assert isinstance(error, BatchStoppedError)
    return error.reason


async def test_totals_of_costs(server: Server, priced: AsyncImages, tmp_path: Path) -> None:
    """Items, totals, the manifest and the journal have the costs, also in a resumed run."""

    async def respond(fields: Fields) -> Fields | web.Response:
        if fields["prompt"] in ("2", "3"):
            return rejection(502 if fields["prompt"] == "2" else 400)
        return images(*[PNG] * fields.get("n", 1))

    server.respond = respond
    journal = tmp_path / "j.jsonl"

    def run(**options: Any) -> MapRun:
        requests = [{"prompt": str(n), "n": n + 1} for n in range(4)]
        return priced.map(requests, output_dir=tmp_path, journal=journal, **options)

    first = run()
    items = in_order(await everything(first))
    found = [item.meta and item.meta.cost for item in items]
    assert found == [Decimal("0.10"), Decimal("0.20"), None, None]
    assert first.totals.cost == Decimal("0.30")
    assert first.totals.unpriced == 1  # the 502 may have been paid for
    assert sorted(line["cost"] for line in lines(tmp_path / MANIFEST)) == ["0.10", "0.20"]
    assert replayed(journal).costs == {"USD": Decimal("0.60")}
    again = run(skip_failed=True)
    assert [item.meta and item.meta.cost for item in in_order(await everything(again))] == found
    assert again.totals.cost == Decimal("0.30")


async def test_totals_of_unknown_costs(server: Server, client: AsyncImages) -> None:
    """Without prices the total is None, never zero, and every item counts as unpriced."""
    run = client.map(["a", "b"])
    assert run.totals.cost is None
    await everything(run)
    assert run.totals.cost is None
    assert run.totals.unpriced == 2


async def test_max_cost(server: Server, priced: AsyncImages, tmp_path: Path) -> None:
    """The limit holds across runs of one journal, and may be raised."""
    journal = tmp_path / "j.jsonl"

    def run(limit: str) -> MapRun:
        return priced.map(map(str, range(9)), concurrency=4, max_cost=limit, journal=journal)

    items, error = await until_the_end(run("0.35"))
    assert reason(error) == "max_cost"
    assert "max_cost=0.35" in str(error)
    assert len(items) == len(server.requests) == 3
    assert isinstance(error, BatchStoppedError)
    assert error.totals.cost == Decimal("0.30")
    _, error = await until_the_end(run("0.30"))
    assert reason(error) == "max_cost"
    assert len(server.requests) == 3
    items, error = await until_the_end(run("0.90"))
    assert error is None
    assert len(server.requests) == 9
    assert sum(item.resumed for item in items) == 3


async def test_max_cost_of_requests_in_flight(server: Server, priced: AsyncImages) -> None:
    """What is in flight has reserved its cost, so that no more is sent meanwhile."""
    released = hold(server)
    run = priced.map(map(str, range(9)), max_cost=Decimal("0.50"))
    items = []
    async with run:
        await server.wait_until(lambda: server.in_flight == 5)

        async def respond(fields: Fields) -> Fields | web.Response:
            return images(PNG)

        server.respond = respond
        released.set()
        with pytest.raises(BatchStoppedError, match="max_cost"):  # noqa: PT012
            async for item in run:
                items.append(item)  # noqa: PERF401 - kept when it raises
    assert len(items) == len(server.requests) == 5


async def test_max_cost_of_refused_requests(server: Server, priced: AsyncImages) -> None:
    """Rejected requests cost nothing; those whose outcome is unknown cost their worst case."""

    async def refuse(fields: Fields) -> Fields | web.Response:
        return rejection(400)

    async def lose(fields: Fields) -> Fields | web.Response:
        return rejection(502)

    server.respond = refuse
    items, error = await until_the_end(priced.map(map(str, range(9)), max_cost="0.2"))
    assert error is None
    assert len(items) == 9
    server.respond = lose
    items, error = await until_the_end(priced.map(map(str, range(9)), max_cost="0.2"))
    assert reason(error) == "max_cost"
    assert len(items) == 2


@pytest.mark.parametrize(("idempotency", "sent"), [("off", 6), ("replay", 6)])
async def test_max_cost_of_repeated_attempts(server: Server, idempotency: Any, sent: int) -> None:
    """Attempts that are repeated at the risk of a second image are reserved as well."""

    async def lose(fields: Fields) -> Fields | web.Response:
        return rejection(502)

    server.respond = lose
    retry = RetryPolicy(2, initial_backoff=0, retry_unknown=True)
    async with AsyncImages(
        API_KEY, base_url=server.base_url, retry=retry, idempotency=idempotency, pricing=PER_IMAGE
    ) as client:
        limit = "0.6" if idempotency == "off" else "0.2"
        items, error = await until_the_end(client.map(map(str, range(9)), max_cost=limit))
    assert reason(error) == "max_cost"
    assert len(items) == 2
    assert len(server.requests) == sent


async def test_max_cost_of_a_killed_run(
    server: Server, priced: AsyncImages, tmp_path: Path
) -> None:
    """What was in flight when a run ended counts with its worst case, from the journal."""
    journal = tmp_path / "j.jsonl"
    released = hold(server)
    async with priced.map(map(str, range(3)), journal=journal):
        await server.wait_until(lambda: server.in_flight == 3)
    released.set()
    assert paid(journal) == Decimal("0.30")
    items, error = await until_the_end(
        priced.map(map(str, range(3)), journal=journal, max_cost="0.45")
    )
    assert reason(error) == "max_cost"
    assert len(items) == 1


async def test_max_cost_with_a_replaying_server(server: Server, tmp_path: Path) -> None:
    """A lost request that the server replays is paid for once."""
    journal = tmp_path / "j.jsonl"
    async with AsyncImages(
        API_KEY, base_url=server.base_url, idempotency="replay", pricing=PER_IMAGE
    ) as client:
        released = hold(server)
        async with client.map(map(str, range(3)), journal=journal):
            await server.wait_until(lambda: server.in_flight == 3)
        released.set()
        run = client.map(map(str, range(3)), journal=journal, max_cost="0.30")
        items, error = await until_the_end(run)
    assert error is None
    assert len(items) == 3
    assert paid(journal) == Decimal("0.30")


async def test_max_cost_of_downloads(server: Server, priced: AsyncImages, tmp_path: Path) -> None:
    """Images that are paid for are downloaded, though nothing more may be spent."""

    async def link(fields: Fields) -> Fields | web.Response:
        return {"created": 1, "data": [{"url": f"{server.origin}/files/a.png"}]}

    async def missing(name: str) -> web.Response:
        return web.Response(status=410)

    server.respond, served = link, server.file
    server.file = missing

    def run() -> MapRun:
        journal = tmp_path / "j.jsonl"
        return priced.map(["a"], output_dir=tmp_path, journal=journal, max_cost="0.1")

    (item,), error = await until_the_end(run())
    assert (item.ok, error) == (False, None)
    assert item.meta is not None
    assert item.meta.cost == Decimal("0.10")
    server.file = served
    (item,), error = await until_the_end(run())
    assert (item.ok, error) == (True, None)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("pricing", "problem"),
    [
        (None, "pricing=Pricing"),
        (Pricing({}), "max_tokens_per_image"),
        (Pricing({MODEL: TokenPrices(text_input=5, max_tokens_per_image=9)}), "max_input_tokens"),
        (Pricing({MODEL: ImagePrices({("1x1", None): 1})}), "ImagePrices"),
        (Pricing(lambda request, usage: None), "function"),
    ],
)
async def test_max_cost_of_unknown_prices(
    server: Server, pricing: Pricing | None, problem: str
) -> None:
    """A limit that cannot be kept is an error that says what to add; nothing is sent."""
    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=pricing) as client:
        with pytest.raises(ConfigurationError, match=problem):
            await everything(client.map(["a", "b"], max_cost=20))
    assert not server.requests


async def test_max_cost_with_a_journal_without_costs(
    server: Server, client: AsyncImages, priced: AsyncImages, tmp_path: Path
) -> None:
    """What an unpriced run has spent is unknown, so that the limit cannot be kept."""
    journal = tmp_path / "j.jsonl"
    await everything(client.map(["a"], journal=journal))
    items = await everything(priced.map(["a"], journal=journal))
    assert items[0].resumed
    with pytest.raises(ConfigurationError, match="1 images of unknown cost"):
        await everything(priced.map(["a"], journal=journal, max_cost=1))


async def test_max_cost_as_a_float(client: AsyncImages) -> None:
    """A limit that is not exact is rejected at once."""
    with pytest.raises(ConfigurationError, match="exact"):
        client.map(["a"], max_cost=0.1)  # type: ignore[arg-type]


async def test_costs_by_a_function_that_needs_usage(server: Server, tmp_path: Path) -> None:
    """Without `max_cost`, a price function may be unable to price a request in advance."""
    pricing = Pricing(lambda request, usage: Decimal(usage.total_tokens))  # type: ignore
    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=pricing) as client:
        run = client.map(["a"], journal=tmp_path / "j.jsonl")
        await everything(run)
    assert run.totals.cost == 10


@pytest.mark.parametrize("seed", range(3))
async def test_max_cost_under_concurrency(seed: int, tmp_path: Path) -> None:
    """With 256 requests in flight, the server charges no more than the limit."""
    limit, journal = Decimal("15.00"), tmp_path / "journal.jsonl"
    async with (
        CostServer(f"{seed}").running() as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=0, pricing=PRICING) as client,
    ):
        assert isinstance(server, CostServer)
        items, error = await until_the_end(
            client.map(costs.requests(400), concurrency=256, max_cost=limit, journal=journal)
        )
        charged = server.charged
    assert reason(error) == "max_cost"
    known = sum((i.meta.cost for i in items if i.meta and i.meta.cost is not None), Decimal(0))
    assert known <= charged <= paid(journal) <= limit
    assert paid(journal) > limit - 2 * WORST


async def test_max_cost_to_the_cent(tmp_path: Path) -> None:
    """Where every response has its usage, the journal equals the record of the server."""
    journal = tmp_path / "journal.jsonl"
    async with (
        CostServer("exact", failures=0).running() as server,
        AsyncImages(API_KEY, base_url=server.base_url, pricing=PRICING) as client,
    ):
        assert isinstance(server, CostServer)
        run = client.map(costs.requests(300), concurrency=256, max_cost=100, journal=journal)
        await everything(run)
        assert run.totals.cost == paid(journal) == server.charged


async def run_killed_until_done(
    folder: Path, mode: str, kills: int, chance: random.Random, count: int, concurrency: int = 16
) -> None:
    """Start a run again and again, kill it at random moments, and compare with the charges.

    The modes are `plain` and `retry_unknown`.
    """
    journal = folder / "journal.jsonl"
    limit = Decimal("0.02") * count + kills * concurrency * Decimal("0.05")
    package = str(Path(elkimg_async.__file__).parent.parent)
    async with CostServer(str(chance.random())).running() as server:
        assert isinstance(server, CostServer)
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, *sys.path]),
            "ELKAPI_API_KEY": API_KEY,
            "ELKAPI_BASE_URL": server.base_url,
        }
        stdout, spent = b"", Decimal(0)
        for number in range(kills + 1):
            seen = len(server.requests)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, costs.__file__, str(folder), str(count), mode, str(limit)),
                str(concurrency),
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            ended = asyncio.create_task(process.communicate())
            if number < kills:
                goal = seen + chance.randint(0, concurrency + 8)
                waiting = asyncio.create_task(
                    server.wait_until(lambda goal=goal: len(server.requests) >= goal)  # type: ignore[misc]
                )
                await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if len(server.requests) > seen:  # so that it has the journal
                    await _check_second_run(server, journal, ended)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            stdout, stderr = await ended
            assert process.returncode in ((0, -9) if number < kills else (0,)), stderr.decode()
            spent = paid(journal) if journal.exists() else Decimal(0)
            assert server.charged <= spent <= limit
        assert json.loads(stdout)["reason"] in (None, "max_cost")
        states = [replayed(journal).state(index) for index in range(count)]
        assert "done" in states
        if json.loads(stdout)["reason"]:
            assert spent > limit - 6 * WORST


async def _check_second_run(server: Server, journal: Path, first: asyncio.Task[Any]) -> None:
    """Check that a second process cannot use the journal while the first one does."""
    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=PRICING) as client:
        try:
            await everything(client.map([], journal=journal, max_cost=1))
        except JournalError:
            return
    await asyncio.wait([first], timeout=5)
    assert first.done()


@pytest.mark.parametrize("mode", ["plain", "retry_unknown"])
async def test_max_cost_of_killed_runs(mode: str, tmp_path: Path) -> None:
    """After 5 kills at random moments, the amount that the server charged is within the limit."""
    await run_killed_until_done(tmp_path, mode, 5, random.Random(f"{mode}-1"), 150)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("concurrency", [16, 256])
@pytest.mark.parametrize("mode", ["plain", "retry_unknown"])
async def test_max_cost_of_runs_killed_often(mode: str, concurrency: int, tmp_path: Path) -> None:
    """The same with more kills, and with more requests in flight."""
    chance, count = random.Random(f"{mode}-2"), (24 + concurrency // 4) * KILLS
    await run_killed_until_done(tmp_path, mode, KILLS, chance, count, concurrency)


async def test_max_cost_of_two_runs_of_one_journal(
    server: Server, priced: AsyncImages, tmp_path: Path
) -> None:
    """A second run cannot use the journal, so that both together cannot exceed the limit."""
    hold(server)
    journal = tmp_path / "j.jsonl"
    async with priced.map(["a"], journal=journal, max_cost=1):
        await server.wait_until(lambda: server.in_flight == 1)
        with pytest.raises(JournalError):
            await everything(priced.map(["a"], journal=journal, max_cost=1))


async def test_item_to_dict(server: Server, priced: AsyncImages) -> None:
    """Items and totals are plain data that JSON can encode, also those that failed."""

    async def answer(fields: Fields) -> Fields | web.Response:
        return rejection(400) if fields["prompt"] == "1" else images(PNG)

    server.respond = answer
    run = priced.map([{"prompt": str(n), "id": n, "size": "1024x1024"} for n in range(2)])
    good, bad = (item.to_dict() for item in in_order(await everything(run)))
    assert json.loads(json.dumps([good, bad])) == [good, bad]
    assert good["request"] == {"prompt": "0", "size": "1024x1024", "model": MODEL}
    assert good["result"]["data"][0]["b64_json"]
    assert (good["ok"], good["id"], good["meta"]["cost"]) == (True, 0, "0.10")
    assert (bad["ok"], bad["error"]["status"]) == (False, 400)
    assert run.totals.model_dump()["cost"] == "0.10"


async def test_item_to_dict_without_images(priced: AsyncImages) -> None:
    """The images may be omitted."""
    (item,) = await everything(priced.map(["a"]))
    assert item.model_dump(images=False)["result"]["data"] == [{}]


async def test_totals_of_mixed_currencies(server: Server, tmp_path: Path) -> None:
    """Costs in several currencies are summed apart, in the totals, the journal and later runs."""

    async def respond(fields: Fields) -> Fields:
        currency = fields["prompt"].partition(" ")[0]
        usage = {"total_tokens": 5, "cost": 0.25, "currency": currency}
        return {**images(PNG), "usage": usage if currency != "none" else None}

    server.respond = respond
    journal = tmp_path / "j.jsonl"
    prompts = ["EUR a", "EUR b", "USD a", "USD b", "none a", "credits a"]
    pricing = Pricing({MODEL: ImagePrices({(None, None): "0.10"})}, currency="EUR")
    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=pricing) as client:
        for _ in range(2):  # the second run reads the journal
            run = client.map(prompts, output_dir=tmp_path, journal=journal)
            assert run.totals.currency == "EUR"
            await everything(run)
            assert (run.totals.cost, run.totals.currency) == (Decimal("0.70"), "EUR")
            assert run.totals.other_costs == {"USD": Decimal("0.50")}
            assert run.totals.unpriced == 0
        assert len(server.requests) == len(prompts)
        assert replayed(journal).costs == {"EUR": Decimal("0.90")}  # USD counts as the maximum
    written = {
        (line["prompt"], line["cost"], line["currency"]) for line in lines(tmp_path / MANIFEST)
    }
    assert ("USD a", "0.25", "USD") in written
    assert ("none a", "0.10", "EUR") in written
    async with AsyncImages(API_KEY, base_url=server.base_url) as client:
        run = client.map(prompts)
        await everything(run)
    assert (run.totals.cost, run.totals.currency) in (
        (Decimal("0.50"), "EUR"),
        (Decimal("0.50"), "USD"),
    )
    assert len(run.totals.other_costs) == 1
    assert run.totals.unpriced == 2


async def test_max_cost_with_costs_in_another_currency(server: Server, tmp_path: Path) -> None:
    """A cost in another currency counts as the maximum in the currency of the limit."""

    async def respond(fields: Fields) -> Fields:
        usage = {"total_tokens": 5, "cost": "0.000001", "currency": "USD"}
        return {**images(PNG), "usage": usage}

    server.respond = respond
    journal = tmp_path / "j.jsonl"
    prices = {MODEL: ImagePrices({(None, None): "0.10"})}
    for currency in ("EUR", "GBP"):
        pricing = Pricing(prices, currency=currency)
        async with AsyncImages(API_KEY, base_url=server.base_url, pricing=pricing) as client:
            run = client.map(map(str, range(9)), max_cost="0.45", journal=journal)
            if currency == "EUR":
                _, error = await until_the_end(run)
                assert reason(error) == "max_cost"
            else:
                with pytest.raises(ConfigurationError, match="costs in EUR"):
                    await everything(run)
    assert len(server.requests) == 4
