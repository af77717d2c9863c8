"""Fixtures for the tests of code that uses `elkimg_async`; pytest finds them by itself.

    @pytest.mark.elkimg_faults("rate-limit=1*2")
    async def test_thumbnail(elkimg_client, elkimg_server):
        assert await my_code(elkimg_client) == …
        assert elkimg_server.requests[-1].fields["size"] == "1024x1024"

Both are ordinary fixtures, not asynchronous ones: the server runs in a thread of its own, and the
client goes with any loop, so that pytest-asyncio, anyio's plugin and `asyncio.run` serve equally.
They need the extra `pil`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from elkimg_async import AsyncImages
    from elkimg_async.local import ThreadedServer

# This module is imported in every run of pytest where the package is installed: what it needs comes late.


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "elkimg_faults(*faults): what elkimg_server plays, one for each request for images, "
        "such as 'rate-limit=1*2'; `elkimg serve --fault list` names them.",
    )


@pytest.fixture
def elkimg_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[ThreadedServer]":
    """A local server for one test, in a thread of its own.

    `requests` has what was asked, `inject` adds faults to those of the marker `elkimg_faults`, `wait_until` waits.
    During the test ELKAPI_API_KEY and ELKAPI_BASE_URL lead to it, so that no client of the code
    under test can spend anything.
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
    """An `AsyncImages` on `elkimg_server`, closed after the test; it waits but briefly before it tries again."""
    from elkimg_async import AsyncImages, RetryPolicy

    client = AsyncImages(
        elkimg_server.api_key,
        base_url=elkimg_server.base_url,
        retry=RetryPolicy(initial_backoff=0.01),
    )
    yield client
    # The test's own loop, which may have ended already, closes the connections with itself.
    elkimg_server.wait_for(client.aclose())


__all__ = ["elkimg_client", "elkimg_server"]
