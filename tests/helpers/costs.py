"""A server that records what it has charged, and a run that it serves.

    python costs.py FOLDER COUNT MODE LIMIT CONCURRENCY

The run continues until it is done or `max_cost` stops it; it prints its totals as JSON.
"""

import asyncio
import json
import random
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from aiohttp import web

from elkimg_async import AsyncImages, BatchStoppedError, Pricing, RetryPolicy, TokenPrices
from tests.helpers.raw_server import PNG
from tests.helpers.runs import Server, images, rejection

MODEL = "gpt-image-1.5"
MAX_INPUT, MAX_OUTPUT = 100, 6000
TEXT, OUTPUT = Decimal(5), Decimal(32)
PRICING = Pricing(
    {
        MODEL: TokenPrices(
            text_input=TEXT,
            image_input=8,
            image_output=OUTPUT,
            max_tokens_per_image=MAX_OUTPUT,
            max_input_tokens=MAX_INPUT,
        )
    }
)
WORST = Decimal("0.1928")
"""The most that one image can cost: the input at the higher price, and all output tokens."""


class CostServer(Server):
    """A server that charges when a request arrives, even if its response is lost.

    Attributes:
        charged: What it has charged, exactly.
        delay: Seconds until it responds, at most.
    """

    def __init__(self, seed: str, *, failures: float = 0.3, delay: float = 0.02) -> None:
        super().__init__()
        self.charged = Decimal(0)
        self.delay = delay
        self._failures, self._chance = failures, random.Random(seed)
        self.respond = self._charge

    async def _charge(self, fields: dict[str, Any]) -> dict[str, Any] | web.Response:
        chance, n = self._chance, fields.get("n", 1)
        failure = chance.random() < self._failures and chance.choice((400, 429, 500, 502, 0))
        wait = chance.random() * self.delay
        if failure in (400, 429):
            await asyncio.sleep(wait)
            return rejection(failure)
        text, output = chance.randint(1, MAX_INPUT), n * chance.randint(1, MAX_OUTPUT)
        self.charged += (TEXT * text + OUTPUT * output) / 1_000_000
        await asyncio.sleep(wait)
        if failure in (500, 502):  # painted and charged, and lost on the way
            return rejection(failure)
        usage = {"input_tokens": text, "output_tokens": output, "total_tokens": text + output}
        body = {**images(*[PNG] * n, tokens=None), "usage": usage}
        if failure is not False:
            body["usage"] = None
        return body


def requests(count: int) -> list[dict[str, Any]]:
    """Return the requests of the run."""
    return [{"prompt": f"image {number}", "n": 1 + number % 2} for number in range(count)]


async def main(folder: Path, count: int, mode: str, limit: str, concurrency: str) -> None:
    """Continue until every request is done; address and API key are those of the environment."""
    retry = RetryPolicy(2, initial_backoff=0.001, retry_unknown=mode == "retry_unknown")
    async with (
        AsyncImages(pricing=PRICING, idempotency="off", retry=retry) as client,
        client.map(
            requests(count),
            concurrency=int(concurrency),
            output_dir=folder,
            journal=folder / "journal.jsonl",
            max_cost=limit,
        ) as run,
    ):
        reason = None
        try:
            async for _ in run:
                pass
        except BatchStoppedError as error:
            reason = error.reason
        print(json.dumps({"reason": reason, "cost": str(run.totals.cost)}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
