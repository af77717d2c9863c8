"""What every test shares."""

import os
from collections.abc import AsyncIterator

import pytest

from elkimg_async.image import Image
from tests.helpers.canned import PNG, Canned, answer

os.environ.pop("PYTEST_ADDOPTS", None)  # not for the pytest runs that tests start

collect_ignore = ["plugin_project"]  # a project of its own, run by test_pytest_plugin


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The tests run on asyncio."""
    return "asyncio"


@pytest.fixture
async def canned() -> AsyncIterator[Canned]:
    """A server that answers with one good image, unless it is told otherwise."""
    async with Canned(
        answer({"created": 1, "data": [{"b64_json": Image(PNG).b64_json}]})
    ) as canned:
        yield canned
