"""Fixtures of the client's tests."""

from collections.abc import AsyncIterator

import pytest

from elkimg_async import (
    AsyncImages,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    QUICK,
)
from tests.helpers.raw_server import (
    API_KEY,
    RawServer,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ELKAPI_API_KEY", "ELKAPI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=QUICK) as client:
        yield client


@pytest.fixture
async def raw_client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    """A client of the raw server."""
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK) as client:
        yield client
