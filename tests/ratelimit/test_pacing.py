"""The pace over real sockets; longer and more of it in `benchmarks.bench_pacing`."""

import asyncio
import itertools
import time

import pytest

from benchmarks.bench_pacing import Combination, drive
from elkimg_async import AsyncImages
from elkimg_async.errors import ElkImagesError
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


async def measure(every: int) -> float:
    """Return the seconds of 400 calls; a 503 replaces one response in `every`, 0 means none."""
    replies = [BUSY if every and index % every == 0 else GOOD for index in range(1, 1000)]
    async with (
        RawServer(*replies) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=8) as client,
    ):
        began, prompts = time.monotonic(), iter(range(400))

        async def call_until_done() -> None:
            for prompt in prompts:
                await client.generate(str(prompt))
                await asyncio.sleep(0.05)

        await asyncio.gather(*itertools.starmap(call_until_done, [()] * 16))
        assert client._settings.limiter.rate == float("inf")
        return time.monotonic() - began


async def test_transient_failures_slow_only_their_own_call() -> None:
    """With 5 % of 503s, calls take hardly longer than without, and none fails."""
    try:
        without, with_failures = await measure(0), await measure(20)
    except ElkImagesError as error:
        pytest.fail(str(error))
    assert with_failures < 1.5 * without + 1.0
