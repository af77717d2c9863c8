"""The pace over real sockets; more of it in `benchmarks.bench_pacing`."""

import asyncio
import itertools
from typing import Any

import pytest

from benchmarks.bench_pacing import Combination, drive
from benchmarks.rate_simulation import ADMITTED, refused_limit
from elkimg_async import AsyncImages
from tests.helpers.raw_server import API_KEY, RawServer, response
from tests.helpers.simulated_time import run_in_simulated_time

GOOD = response({"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]})
BUSY = response({"error": {"message": "busy"}}, status=503)
CHANGE = "double and halve"


@pytest.mark.slow
@pytest.mark.parametrize("combination", [
    Combination(rate=20, burst=10, pattern=CHANGE),
    Combination(rate=20, burst=20, pattern=CHANGE, headers="true"),
    Combination(rate=30, burst=8, pattern="steady", headers="contradictory", retry_after=True),
    Combination(rate=20, burst=1, pattern="steady"),
    Combination(rate=5, burst=5, pattern="steady"),
], ids=lambda combination: combination.name)  # fmt: skip
def test_rate_of_servers_is_reached(
    combination: Combination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes use most of the admitted rate, and few requests are rejected."""
    values = run_in_simulated_time(monkeypatch, drive(combination))["values"]
    assert values["paced_percent"] >= 100 * ADMITTED
    assert values["refused_percent"] <= 100 * refused_limit(combination.rate)
    assert values["failed"] == 0


async def test_transient_failures_slow_only_their_own_call() -> None:
    """After 5 % of 503s no call has failed, and neither pace nor concurrency is limited."""
    replies = [BUSY if index % 20 == 0 else GOOD for index in range(1, 1000)]
    async with (
        RawServer(*replies) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=8) as client,
    ):
        prompts = iter(range(200))
        limiter: Any = client._settings.limiter

        async def call_until_done() -> None:
            for prompt in prompts:
                await client.generate(str(prompt))

        await asyncio.gather(*itertools.starmap(call_until_done, [()] * 16))
        assert len(raw_server.requests) == 200 + 10
        assert limiter.rate == float("inf")
        assert (limiter.waiting, limiter.in_flight) == (0, 0)
