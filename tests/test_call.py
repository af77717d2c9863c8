"""`elkimg_async.call`: what a call waits for between two exchanges."""

import asyncio

import pytest

from elkimg_async import AsyncImages, ConfigurationError, RetryPolicy
from elkimg_async.hooks import RetryScheduled
from tests.helpers.calls import check_clean, in_both_modes
from tests.helpers.raw_server import API_KEY, RawServer, response


async def generate(client: AsyncImages, streaming: bool) -> None:
    if not streaming:
        await client.generate("a boat")
        return
    async with client.generate("a boat", stream=True) as stream:
        await stream.result()


@in_both_modes
async def test_closing_during_the_api_key_function(streaming: bool) -> None:
    """A call that waits for its API key fails at once when the client is closed."""
    waiting = asyncio.Event()

    async def api_key() -> str:
        waiting.set()
        await asyncio.sleep(60)
        return API_KEY

    async with RawServer(response({})) as server:
        client = AsyncImages(api_key, base_url=server.base_url)
        call = asyncio.create_task(generate(client, streaming))
        await waiting.wait()
        await client.aclose()
        with pytest.raises(ConfigurationError, match="closed while") as caught:
            await call
        assert caught.value.billing == "not_sent"
        assert server.requests == []


@in_both_modes
async def test_closing_during_the_back_off(streaming: bool) -> None:
    """A call that waits for its next attempt fails at once, and names its attempts."""
    waiting = asyncio.Event()

    def hook(record: object) -> None:
        if isinstance(record, RetryScheduled):
            waiting.set()

    busy = response({"error": {"message": "busy"}}, status=429, Retry_After="50")
    async with RawServer(busy) as server:
        client = AsyncImages(
            API_KEY, base_url=server.base_url, hooks=[hook], retry=RetryPolicy(max_retries=1)
        )
        call = asyncio.create_task(generate(client, streaming))
        await waiting.wait()
        await client.aclose()
        with pytest.raises(ConfigurationError, match="closed while") as caught:
            await call
        check_clean(caught.value)
        assert caught.value.attempts == 1
        assert caught.value.idempotency_key is not None
        assert len(server.requests) == 1
