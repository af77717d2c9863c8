"""Fixtures of the relay tests."""

import logging
from collections.abc import AsyncIterator

import pytest

from elkimg_async.local import LocalServer
from tests.test_cancellation import running, until


@pytest.fixture
async def quiet(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Whatever a test does, it leaves no task behind, and no other logger warns."""
    before = running()
    yield
    await until(lambda: running() <= before)
    noise = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno >= logging.WARNING and record.name != "elkimg_async"
    ]
    assert noise == []


@pytest.fixture
async def upstream() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server
