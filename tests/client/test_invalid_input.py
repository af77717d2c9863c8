"""Input that is rejected before anything is sent."""

import asyncio
import inspect
import sys
import warnings
from typing import Any

import pytest

from elkimg_async import (
    AsyncImages,
    BadRequestError,
    ConfigurationError,
    InvalidRequestError,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    failure,
    in_both_modes,
)
from tests.helpers.raw_server import (
    API_KEY,
)


@in_both_modes
@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "needs a prompt"),
        ({"prompt": 5}, "prompt", "must be a string, not int"),
        ({"prompt": b"a boat"}, "prompt", "must be a string, not bytes"),
        ({"prompt": {"n": 1}}, "prompt", "needs a prompt"),
        ({"prompt": {"prompt": "a", "sise": "1024x1024"}}, "sise", "extra_body"),
        ({"prompt": "a" * 32_001}, "prompt", "at most 32,000"),
        ({"prompt": "\ud800"}, "prompt", "valid Unicode"),
        ({"n": 0}, "n", "1 to 10"),
        ({"n": 11}, "n", "1 to 10"),
        ({"n": -1}, "n", "1 to 10"),
        ({"n": 1.5}, "n", "must be a whole number, not float"),
        ({"n": "1"}, "n", "must be a whole number, not str"),
        ({"n": True}, "n", "must be a whole number, not bool"),
        ({"n": 10**30}, "n", ""),
        ({"size": "1000x1000"}, "size", "1024x1024, 1536x1024, 1024x1536, auto"),
        ({"size": 1024}, "size", "must be a string, not int"),
        ({"model": "gpt-image-2", "size": "1000x1000"}, "size", "multiples of 16"),
        ({"model": 5}, "model", "must be a string, not int"),
        ({"quality": "hd"}, "quality", "low, medium, high, auto"),
        ({"background": "transparent", "output_format": "jpeg"}, "background", "png or webp"),
        ({"background": "blue"}, "background", "transparent, opaque, auto"),
        ({"moderation": "none"}, "moderation", "low, auto"),
        ({"output_format": "bmp"}, "output_format", "png, jpeg, webp"),
        ({"output_compression": 50}, "output_compression", "jpeg or webp"),
        ({"output_format": "webp", "output_compression": 101}, "output_compression", "0 to 100"),
        ({"partial_images": 4}, "partial_images", "0 to 3"),
        ({"partial_images": -1}, "partial_images", "0 to 3"),
        ({"style": "vivid"}, "style", "leave it out"),
        ({"response_format": "url"}, "response_format", "leave it out"),
        ({"model": "dall-e-3", "background": "opaque"}, None, "dall-e-3: "),
        ({"user": 5}, "user", "must be a string, not int"),
        ({"extra_body": [1]}, "extra_body", "mapping"),
        ({"extra_body": {"a": frozenset}}, "a", "plain data"),
        ({"extra_headers": {"a b": "c"}}, "extra_headers", "a b"),
    ],
    ids=str,
)
async def test_invalid_input(
    client: AsyncImages,
    server: LocalServer,
    options: dict[str, Any],
    param: str | None,
    words: str,
    streaming: bool,
) -> None:
    """The error names the parameter and says what to do; nothing is sent."""
    error = await failure(InvalidRequestError, client, streaming, **options)
    if param is not None:
        assert error.param == param
    assert words in str(error)
    assert error.billing == "not_sent"
    assert error.attempts == 0
    assert error.request_id is None
    assert isinstance(error, ValueError)
    assert server.connections == 0
    assert not server.requests


async def test_invalid_input_for_the_mode(client: AsyncImages, server: LocalServer) -> None:
    """Partial images are for streams, and dall-e does not stream."""
    error = await failure(InvalidRequestError, client, partial_images=2)
    assert error.param == "partial_images"
    assert "stream=True" in str(error)
    error = await failure(InvalidRequestError, client, streaming=True, model="dall-e-3")
    assert error.param == "stream"
    assert "cannot stream" in str(error)
    assert not server.requests


@pytest.mark.parametrize("stream", ["true", 1, None])
def test_stream_of_the_wrong_type(stream: Any) -> None:
    """`stream` decides what is returned, so anything but a bool is rejected at once."""
    with pytest.raises(InvalidRequestError, match="True or False") as caught:
        AsyncImages(API_KEY).generate("a boat", stream=stream)
    assert caught.value.param == "stream"


@in_both_modes
@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": "5"}, {"timeout": -1}, {"retry": -1}, {"retry": 1.5}],
    ids=str,
)
def test_bad_policy_of_a_call(options: dict[str, Any], streaming: bool) -> None:
    """An impossible limit or number of retries is a ConfigurationError, as for the client."""
    with pytest.raises(ConfigurationError):
        AsyncImages(API_KEY).generate("a boat", stream=streaming, **options)


def test_unknown_argument() -> None:
    """An argument that does not exist is Python's TypeError."""
    with pytest.raises(TypeError, match="sise"):
        AsyncImages(API_KEY).generate("a boat", sise="auto")  # type: ignore[call-overload]


@in_both_modes
async def test_closed_client(client: AsyncImages, server: LocalServer, streaming: bool) -> None:
    """A closed client raises and opens nothing; closing it twice is fine."""
    await client.aclose()
    await client.aclose()
    error = await failure(ConfigurationError, client, streaming)
    assert "closed; create a new one" in str(error)
    assert error.billing == "not_sent"
    assert server.connections == 0
    assert "closed" in repr(client)


@in_both_modes
async def test_missing_api_key(server: LocalServer, streaming: bool) -> None:
    """Without an API key the error names the variable to set and the alternative."""
    async with AsyncImages(base_url=server.base_url) as client:
        error = await failure(ConfigurationError, client, streaming)
    assert "ELKAPI_API_KEY" in str(error)
    assert "LocalServer" in str(error)
    assert error.billing == "not_sent"
    assert server.connections == 0


@in_both_modes
async def test_validate_off(server: LocalServer, streaming: bool) -> None:
    """With `off` only types are checked, and the server decides the rest."""
    async with AsyncImages(server.api_key, base_url=server.base_url, validate="off") as client:
        error = await failure(BadRequestError, client, streaming, n=11)
        assert (error.status, error.code) == (500, "invalid_request")
        assert server.requests[-1].fields["n"] == 11
        await failure(InvalidRequestError, client, streaming, n=1.5)
    assert len(server.requests) == 1


@in_both_modes
async def test_validate_warn(server: LocalServer, streaming: bool) -> None:
    """With `warn` the request is sent, after a warning with the same text as the error."""
    async with AsyncImages(server.api_key, base_url=server.base_url, validate="warn") as client:
        with pytest.warns(UserWarning, match="it must be 1 to 10"):
            await failure(BadRequestError, client, streaming, n=11)
    assert server.requests[-1].fields["n"] == 11


async def test_validate_warn_points_at_the_call(server: LocalServer) -> None:
    """The warning names the line that called `generate`, wherever the call then runs."""
    async with AsyncImages(
        server.api_key, base_url=server.base_url, validate="warn", retry=0
    ) as client:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            coroutine = client.generate("a boat", n=11)
            stream = client.generate("a boat", n=11, stream=True)
            line = inspect.getframeinfo(inspect.currentframe() or sys._getframe()).lineno
            task = asyncio.create_task(coroutine)
            for waiting in (task, stream):
                with pytest.raises(BadRequestError):
                    await waiting
    assert [(warning.filename, warning.lineno) for warning in caught] == [
        (__file__, line - 2),
        (__file__, line - 1),
    ]
    assert all(warning.category is UserWarning for warning in caught)
