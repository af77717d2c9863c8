"""What every test shares."""

import inspect
import os
import signal
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings

from elkimg_async.image import Image
from elkimg_async.local import LocalServer
from tests.helpers.raw_server import PNG, RawServer, response

# Commands that tests start would ignore Ctrl-C, as the tests do when a shell runs them with &.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, however long they take on a busy machine; with
# `pytest --hypothesis-profile default` it looks for others.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

collect_ignore = ["plugin_project"]  # a separate project, run by test_pytest_plugin


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use two workers for each processor, since the tests mostly wait."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> None:
    """Let anyio run every async test; its own option for this needs a newer anyio than we do."""
    if collector.istestfunction(obj, name):
        function = getattr(getattr(obj, "hypothesis", None), "inner_test", obj)
        if inspect.iscoroutinefunction(function):
            pytest.mark.usefixtures("anyio_backend")(obj)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests time, and keep options in the environment from the runs that tests start."""
    os.environ.pop("PYTEST_ADDOPTS", None)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The tests run on asyncio."""
    return "asyncio"


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A local server that responds at once, with small images."""
    async with LocalServer(light=True, delay=0) as server:
        yield server


@pytest.fixture
async def raw_server() -> AsyncIterator[RawServer]:
    """A server that returns one good image unless other replies are set."""
    async with RawServer(
        response({"created": 1, "data": [{"b64_json": Image(PNG).b64_json}]})
    ) as raw_server:
        yield raw_server
