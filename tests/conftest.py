"""What every test shares."""

import pytest

collect_ignore = ["plugin_project"]  # a project of its own, run by test_pytest_plugin


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The tests run on asyncio."""
    return "asyncio"
