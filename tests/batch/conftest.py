"""A server, and a client of it."""

from collections.abc import AsyncIterator

import pytest

from elkimg_async import (
    AsyncImages,
)
from tests.helpers.raw_server import API_KEY
from tests.helpers.runs import Server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().running() as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=server.base_url, retry=0) as client:
        yield client
