"""The API key: where it comes from, and that it is never shown."""

import asyncio
from typing import Any

import pytest

from elkimg_async import (
    AsyncImages,
    ConfigurationError,
    RequestTimeoutError,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    BUSY,
    GOOD,
    QUICK,
    check_secret,
    failure,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    End,
    RawServer,
)


async def test_api_key_from_the_environment(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an argument the environment's API key is used, as set at the time of the call."""
    async with AsyncImages(base_url=server.base_url) as client:
        monkeypatch.setenv("ELKAPI_API_KEY", server.api_key)
        assert len(await client.generate("a boat")) == 1


@in_both_modes
async def test_api_key_function_runs_before_each_attempt(
    raw_server: RawServer, streaming: bool
) -> None:
    """The function for the API key is called before each attempt."""
    api_keys = [f"key-{number}" for number in range(9)]
    remaining = iter(api_keys)

    async def next_api_key() -> str:
        await asyncio.sleep(0)
        return next(remaining)

    raw_server.reply_with(BUSY, BUSY, GOOD)
    async with AsyncImages(next_api_key, base_url=raw_server.base_url, retry=QUICK) as client:
        await run_call(client, streaming)
        await run_call(client, streaming)
    sent = [request.headers["authorization"] for request in raw_server.requests]
    assert sent == [f"Bearer {api_key}" for api_key in api_keys[:4]]


@in_both_modes
async def test_api_key_function_that_fails(raw_server: RawServer, streaming: bool) -> None:
    """An exception of the function is reported by type only: its text may hold the API key."""

    async def fail() -> str:
        raise LookupError(f"the vault is shut: {API_KEY}")

    async with AsyncImages(fail, base_url=raw_server.base_url) as client:
        error = await failure(ConfigurationError, client, streaming)
    assert "failed with LookupError" in str(error)
    assert API_KEY not in str(error)
    assert error.__context__ is error.__cause__ is None
    assert raw_server.accepted == 0


@pytest.mark.parametrize("api_key", ["", None, b"sk", "a\nb"])
async def test_api_key_function_without_an_api_key(raw_server: RawServer, api_key: Any) -> None:
    """A function that returns no usable API key is a ConfigurationError."""

    async def get_api_key() -> Any:
        return api_key

    async with AsyncImages(get_api_key, base_url=raw_server.base_url) as client:
        await failure(ConfigurationError, client)
    assert raw_server.accepted == 0


async def test_api_key_function_that_is_not_async(raw_server: RawServer) -> None:
    """A plain function in place of an async one is an error that says so."""

    def get_api_key() -> Any:
        return API_KEY

    async with AsyncImages(get_api_key, base_url=raw_server.base_url) as client:
        error = await failure(ConfigurationError, client)
    assert "async" in str(error)


@in_both_modes
async def test_api_key_function_that_hangs(raw_server: RawServer, streaming: bool) -> None:
    """Waiting for the API key counts towards the total, and nothing was sent."""

    async def hang() -> str:
        return str(await asyncio.get_running_loop().create_future())

    async with AsyncImages(hang, base_url=raw_server.base_url, timeout=0.1, retry=0) as client:
        error = await failure(RequestTimeoutError, client, streaming)
    assert (error.limit, error.billing) == ("total", "not_sent")
    assert raw_server.accepted == 0


@in_both_modes
@pytest.mark.parametrize("outer", [False, True])
async def test_cancelled_call_does_not_show_the_api_key(
    raw_client: AsyncImages, raw_server: RawServer, streaming: bool, outer: bool
) -> None:
    """The traceback of a cancellation or an outer timeout does not show the API key."""
    raw_server.reply_with([End.HOLD])
    if outer:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await run_call(raw_client, streaming)
        assert type(caught.value) is TimeoutError
        check_secret(caught.value)
        return
    task = asyncio.create_task(run_call(raw_client, streaming))
    await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    check_secret(cancelled.value)


async def test_repr(raw_server: RawServer) -> None:
    """The client's repr shows the base URL but not the API key."""
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        assert repr(client) == f"<AsyncImages for {raw_server.base_url}>"
        assert API_KEY not in repr(vars(client))
        assert API_KEY not in repr(client._settings)
