"""Errors that are not failures of the network are not reported as such."""

from typing import Any

import aiohttp
import pytest

from elkimg_async import AsyncImages, ConfigurationError, ConnectError
from elkimg_async.errors import ElkImagesError
from tests.helpers.calls import QUICK, check_secret, in_both_modes
from tests.helpers.raw_server import API_KEY, RawServer


class BrokenConnector(aiohttp.TCPConnector):
    """Connector that raises an exception instead of connecting."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def connect(self, req: Any, *_: Any, **__: Any) -> Any:
        held = req.headers["Authorization"]  # in the locals of the traceback
        assert held
        raise self.error


class HeaderError(TypeError):
    """An exception that holds the API key."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.request = {"Authorization": f"Bearer {API_KEY}"}


async def failure_through(error: Exception, raw_server: RawServer) -> ElkImagesError:
    """Make a call through a connector that raises `error`, and return how it fails."""
    async with (
        aiohttp.ClientSession(connector=BrokenConnector(error)) as session,
        AsyncImages(API_KEY, base_url=raw_server.base_url, session=session, retry=QUICK) as client,
    ):
        with pytest.raises(ElkImagesError) as caught:
            await client.generate("a boat")
    assert raw_server.accepted == 0
    assert caught.value.billing == "not_sent"
    check_secret(caught.value)
    links: list[BaseException | None] = [caught.value]
    for link in links:
        if link is not None:
            check_secret(link)
            links += [link.__cause__, link.__context__]
    return caught.value


@pytest.mark.parametrize(
    ("error", "chained"),
    [
        (RuntimeError("no event loop"), True),
        (AssertionError("impossible"), True),
        (KeyError("socket"), True),
        (RuntimeError(f"cannot send Authorization: Bearer {API_KEY}"), True),
        (AttributeError("no attribute", name="x", obj={"Authorization": API_KEY}), False),
        (RuntimeError(["not", "text"]), False),
    ],
)
async def test_python_error(raw_server: RawServer, error: Exception, chained: bool) -> None:
    """A bug or an incompatibility is reported as such, with its type and text; no retry."""
    failure = await failure_through(error, raw_server)
    assert type(failure) is ConfigurationError
    assert type(error).__name__ in str(failure)
    assert aiohttp.__version__ in str(failure)
    assert "bug" in str(failure)
    assert "broke" not in str(failure)
    assert failure.attempts == 1
    assert failure.__cause__ is (error if chained else None)


async def test_settings_of_a_borrowed_session(raw_server: RawServer) -> None:
    """A ValueError from a borrowed session's own settings is quoted."""
    failure = await failure_through(ValueError("Cannot combine this and that"), raw_server)
    assert type(failure) is ConfigurationError
    assert "borrowed session" in str(failure)
    assert "Cannot combine this and that" in str(failure)


async def test_error_of_a_foreign_connector(raw_server: RawServer) -> None:
    """An exception of another package's connector becomes a ConnectError, and is not chained."""
    failure = await failure_through(HeaderError("tunnel rejected"), raw_server)
    assert type(failure) is ConnectError
    assert "tunnel rejected (HeaderError)" in str(failure)
    assert failure.attempts == 3


@in_both_modes
@pytest.mark.filterwarnings("ignore:BasicAuth is deprecated")
@pytest.mark.filterwarnings("ignore:The 'auth' parameter")
async def test_borrowed_session_with_credentials(raw_server: RawServer, streaming: bool) -> None:
    """Credentials of a borrowed session that collide with the API key are reported."""
    auth = aiohttp.BasicAuth("user", "password")
    async with (
        aiohttp.ClientSession(auth=auth) as session,
        AsyncImages(API_KEY, base_url=raw_server.base_url, session=session) as client,
    ):
        with pytest.raises(ConfigurationError, match="Cannot combine AUTHORIZATION") as caught:
            await (
                client.generate("a", stream=True).result() if streaming else client.generate("a")
            )
    check_secret(caught.value)
    assert caught.value.billing == "not_sent"
    assert raw_server.requests == []
