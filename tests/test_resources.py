"""The models of a client, mocks of it, and the query of every request."""

import asyncio
import gc
import inspect
import logging
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import pytest

from elkimg_async import (
    AsyncImages,
    BadRequestError,
    ConfigurationError,
    Models,
    NotFoundError,
)
from tests.helpers.calls import GOOD
from tests.helpers.raw_server import API_KEY, PNG, RawServer, response

LISTED = response({"data": [{"id": "a"}, {"id": "b"}]})


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        yield client


# --- models -----------------------------------------------------------------------


async def test_models_both_ways(client: AsyncImages, raw_server: RawServer) -> None:
    """`client.models()` and, as in openai, `client.models.list()` return the models."""
    raw_server.reply_with(LISTED)
    called = await client.models(extra_headers={"X-A": "b"}, extra_query={"v": 1})
    listed = await client.models.list(extra_headers={"X-A": "b"}, extra_query={"v": 1})
    assert isinstance(listed, Models)
    assert called == listed == listed.data
    assert [model.id async for model in client.models.list(extra_query={"v": 1})] == ["a", "b"]
    assert [request.target for request in raw_server.requests] == ["/v1/models?v=1"] * 3
    assert [request.headers.get("x-a") for request in raw_server.requests] == ["b", "b", None]


async def test_models_of_a_view(client: AsyncImages, raw_server: RawServer) -> None:
    """A view lists the models with its own options."""
    raw_server.reply_with(LISTED)
    await client.with_options(headers={"X-A": "b"}, query={"v": 2}).models()
    assert raw_server.requests[0].headers["x-a"] == "b"
    assert raw_server.requests[0].target == "/v1/models?v=2"


@pytest.mark.parametrize(("days", "warns"), [(-3, True), (0, True), (29, True), (40, False)])
async def test_model_that_is_shut_down_soon(
    client: AsyncImages,
    raw_server: RawServer,
    caplog: pytest.LogCaptureFixture,
    days: int,
    warns: bool,
) -> None:
    """A call with a model that the server ends within 30 days logs one warning."""
    end = (datetime.now(UTC) + timedelta(days=days)).date().isoformat()
    listed = [{"id": "old", "shutdown_date": end}, {"id": "new", "shutdown_date": None}]
    raw_server.reply_with(
        response({"data": [*listed, {"id": "odd", "shutdown_date": "soon"}]}), GOOD
    )
    caplog.set_level(logging.WARNING, "elkimg_async")
    models = await client.models()
    if not hasattr(models[0], "shutdown_date"):
        pytest.skip("Model has no shutdown_date")
    view = client.with_options(model="old")
    for _ in range(2):
        await view.generate("a boat")
        await client.generate({"prompt": "a boat", "model": "old"})
        await client.edit(PNG, "a hat", model="old", mask=None)
        await client.generate("a boat", model="new")
        await client.generate("a boat", model="odd")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (1 if warns else 0)
    for line in lines:
        assert "old" in line
        assert end in line
        assert "elkimg models" in line


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (503, {"code": "model_not_found", "message": "No available channel"}, NotFoundError),
        (404, {"code": "model_not_found", "message": "does not exist"}, NotFoundError),
        (404, {"message": "not found"}, NotFoundError),
        (400, {"param": "model", "code": "invalid_value", "message": "?"}, BadRequestError),
    ],
)
async def test_model_that_the_server_does_not_know(
    raw_server: RawServer, status: int, error: dict[str, Any], kind: type[Exception]
) -> None:
    """The error names the model that was sent, and how to list those of the server."""
    raw_server.reply_with(response({"error": error}, status=status))
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, retry=0, model="gpt-image1"
    ) as client:
        calls: list[Any] = [
            client.generate("a boat"),
            client.edit(PNG, "a hat"),
            client.generate("a boat", stream=True).result(),
        ]
        for call in calls:
            with pytest.raises(kind) as caught:
                await call
            assert "'gpt-image1'" in str(caught.value)
            assert "elkimg models" in str(caught.value)
        with pytest.raises(kind) as caught:
            await client.models()
        assert "gpt-image1" not in str(caught.value)


async def test_default_model_is_sent(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's model is used by every call that names none, edits and runs included."""
    monkeypatch.setenv("ELKAPI_MODEL", "from-environment")
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        await client.generate("a boat")
        await client.with_options(model="view").generate("a boat")
        await client.with_options(model="view").generate("a boat", model="own")
        async with client.with_options(model="run").map(["a boat"]) as run:
            assert [item.ok async for item in run] == [True]
        await client.edit(PNG, "a hat")
    sent = [request.fields["model"] for request in raw_server.requests[:4]]
    assert sent == ["from-environment", "view", "own", "run"]
    assert b"from-environment" in raw_server.requests[4].body


# --- queries ------------------------------------------------------------------------


async def test_query_on_every_request(raw_server: RawServer) -> None:
    """The query of the base URL, the client and the call is sent to every endpoint."""
    base = raw_server.base_url.replace("/v1", "/openai/deployments/gpt-image-1")
    async with AsyncImages(
        base_url=f"{base}?api-version=2025-04-01-preview",
        headers={"api-key": API_KEY},
        query={"a": 1},
    ) as client:
        raw_server.reply_with(GOOD)
        await client.generate("a boat")
        await client.edit(PNG, "a hat", extra_query={"b": "ü"})
        async with client.map(["a boat"], extra_query={"c": "3"}) as run:
            assert [item.ok async for item in run] == [True]
        raw_server.reply_with(LISTED)
        await client.models(extra_query={"a": None, "api-version": "2"})
    path, version = "/openai/deployments/gpt-image-1", "api-version=2025-04-01-preview"
    assert [request.target for request in raw_server.requests] == [
        f"{path}/images/generations?{version}&a=1",
        f"{path}/images/edits?{version}&a=1&b=%C3%BC",
        f"{path}/images/generations?{version}&a=1&c=3",
        f"{path}/models?api-version=2&a=1",
    ]
    for request in raw_server.requests:
        assert request.headers["api-key"] == API_KEY
        assert "authorization" not in request.headers


async def test_query_wrong_in_a_call(client: AsyncImages, raw_server: RawServer) -> None:
    """A query that cannot be written is rejected before anything is sent."""
    wrong: Any = {"a": {}}
    with pytest.raises(ConfigurationError, match="query parameter 'a'"):
        await client.generate("a boat", extra_query=wrong)
    assert raw_server.accepted == 0


# --- coroutines -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate", "edit", "models"])
async def test_forgotten_await_is_named(client: AsyncImages, name: str) -> None:
    """The warning about a missing await names the call that the user made."""
    arguments = {"generate": ("a boat",), "edit": (PNG, "a hat"), "models": ()}[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(client, name)(*arguments)
        gc.collect()
    texts = [str(each.message) for each in caught if "never awaited" in str(each.message)]
    assert any(f"coroutine 'AsyncImages.{name}' was never awaited" in text for text in texts)
    with pytest.raises(TypeError, match=rf"^AsyncImages\.{name}\(\)|ModelsResource"):
        getattr(client, name)(nothing=1)


async def test_mocks_are_awaitable() -> None:
    """A mock with the client's specification returns awaitables where the client does."""
    for mock in (AsyncMock(spec=AsyncImages), create_autospec(AsyncImages, instance=True)):
        mock.generate.return_value = ["image"]
        mock.edit.return_value = ["edited"]
        assert await mock.generate("a boat") == ["image"]
        assert await mock.edit(b"", "a hat") == ["edited"]
        await mock.aclose()
    mock = AsyncMock(spec=AsyncImages)
    mock.models.return_value = ["model"]
    assert await mock.models() == ["model"]
    assert inspect.iscoroutinefunction(AsyncImages.aclose)
    assert asyncio.iscoroutinefunction(AsyncImages.generate)


async def test_close_of_openai(raw_server: RawServer) -> None:
    """`close` is `aclose`."""
    client = AsyncImages(API_KEY, base_url=raw_server.base_url)
    assert client.images is client
    await client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await client.generate("a boat")
