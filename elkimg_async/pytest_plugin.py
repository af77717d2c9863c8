"""Pytest fixtures for code that uses `elkimg_async`; pytest loads them automatically.

    @pytest.mark.elkimg_faults("rate-limit=1*2")
    async def test_thumbnail(elkimg_client, elkimg_server):
        assert await my_code(elkimg_client) == …
        assert elkimg_server.requests[-1].fields["size"] == "1024x1024"

Both fixtures are synchronous: the server runs in its own thread, and the client works in any event
loop, so pytest-asyncio, anyio's plugin and `asyncio.run` all work. They need the extra `pil`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from elkimg_async import AsyncImages
    from elkimg_async.local import ThreadedServer

# Every pytest run imports this module where the package is installed, so it imports late.


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "elkimg_faults(*faults): faults that elkimg_server injects, one per request for images, "
        "such as 'rate-limit=1*2'; `elkimg serve --fault list` lists them.",
    )


@pytest.fixture
def elkimg_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[ThreadedServer]":
    """Yield a local server for one test, in its own thread.

    `requests` has the received requests, `inject` adds faults to those of the marker
    `elkimg_faults`, `wait_until` waits for a state. During the test ELKAPI_API_KEY and
    ELKAPI_BASE_URL point to it, so that no client of the tested code can spend money.
    """
    from elkimg_async.config import URL_VARIABLE
    from elkimg_async.credentials import API_KEY_VARIABLE
    from elkimg_async.errors import ConfigurationError
    from elkimg_async.local import LocalServer, ThreadedServer

    marker = request.node.get_closest_marker("elkimg_faults")
    faults = marker.args if marker else ()
    try:
        server = ThreadedServer(LocalServer(light=True, delay=0, faults=faults))
        server.start()
    except ConfigurationError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    monkeypatch.setenv(API_KEY_VARIABLE, server.api_key)
    monkeypatch.setenv(URL_VARIABLE, server.base_url)
    with server:
        yield server


@pytest.fixture
def elkimg_client(elkimg_server: "ThreadedServer") -> "Iterator[AsyncImages]":
    """Yield an `AsyncImages` for `elkimg_server`, with short retry delays, and close it."""
    from elkimg_async import AsyncImages, RetryPolicy

    client = AsyncImages(
        elkimg_server.api_key,
        base_url=elkimg_server.base_url,
        retry=RetryPolicy(initial_backoff=0.01),
    )
    yield client
    # The test's own event loop may have ended already, and its connections with it.
    elkimg_server.wait_for(client.aclose())


__all__ = ["elkimg_client", "elkimg_server"]
