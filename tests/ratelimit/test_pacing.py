"""The pace over real sockets; longer and more of it in `benchmarks.bench_pacing`."""

import asyncio
import itertools
from typing import Any

import pytest

from benchmarks.bench_pacing import Combination, drive
from elkimg_async import AsyncImages
from tests.helpers.raw_server import API_KEY, RawServer, response

GOOD = response({"created": 1, "data": [{"b64_json": "iVBORw0KGgo="}]})
BUSY = response({"error": {"message": "busy"}}, status=503)


@pytest.mark.slow
async def test_rate_of_servers_is_reached() -> None:
    """Most of the admitted rate is used and few requests are refused, whatever the headers."""
    combinations = [
        Combination(rate=20, burst=10, headers="none", pattern="steady", seconds=30),
        Combination(rate=30, burst=8, headers="contradictory", retry_after=True,
                    pattern="steady", seconds=30),
        Combination(rate=20, burst=20, headers="true", pattern="steady", seconds=30),
    ]  # fmt: skip
    results = await asyncio.gather(*map(drive, combinations))
    for result in results:
        values = result["values"]
        assert values["paced_percent"] >= 90
        assert values["refused_percent"] <= 5
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
