"""The API key: its sources, its checks, and that no text shows it."""

import asyncio
import copy
import pickle
from typing import Any

import pytest

from elkimg_async import AsyncImages, AuthenticationError, ConfigurationError
from elkimg_async.credentials import Secret, default_api_key, make_api_key, resolve_api_key
from tests.helpers.raw_server import API_KEY, RawServer, response


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELKAPI_API_KEY", raising=False)


def test_default_api_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's API key is read on use, and white space around it is ignored."""
    monkeypatch.setenv("ELKAPI_API_KEY", f" {API_KEY}\n")
    assert default_api_key().reveal() == API_KEY


@pytest.mark.parametrize("value", [None, "", "  \n", "Bearer ", "bearer"])
def test_default_api_key_missing(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Without an API key the error names the variable and the local server."""
    if value is not None:
        monkeypatch.setenv("ELKAPI_API_KEY", value)
    with pytest.raises(ConfigurationError) as caught:
        default_api_key()
    for words in ("ELKAPI_API_KEY", "LocalServer", "--local"):
        assert words in str(caught.value)
    assert caught.value.billing == "not_sent"


@pytest.mark.parametrize("api_key", ["sk\n-x", "sk x", "sk-ключ", "sk-\x00", "sk-\u200b"])
def test_api_key_with_impossible_characters(api_key: str) -> None:
    """An API key that does not fit into a header is rejected, and not shown."""
    with pytest.raises(ConfigurationError, match="characters that no API key has") as caught:
        AsyncImages(api_key)
    assert api_key not in str(caught.value)


@pytest.mark.parametrize("quotes", ['""', "''", "“”", "``", "«»", '"', "' '"])
def test_api_key_in_quotes(quotes: str) -> None:
    """An API key wrapped in quotes is rejected with a hint."""
    with pytest.raises(ConfigurationError, match="wrapped in quotes; remove them") as caught:
        AsyncImages(quotes[0] + API_KEY + quotes[1:])
    assert API_KEY not in str(caught.value)


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer ", "BEARER \t", " Bearer  "])
async def test_api_key_with_its_scheme(raw_server: RawServer, prefix: str) -> None:
    """`Bearer ` in front of an API key is removed, wherever the API key comes from."""

    async def ask() -> str:
        return prefix + API_KEY

    for api_key in (prefix + API_KEY, ask):
        async with AsyncImages(api_key, base_url=raw_server.base_url) as client:
            await client.generate("a boat")
    assert [each.headers["authorization"] for each in raw_server.requests] == [
        f"Bearer {API_KEY}"
    ] * 2


@pytest.mark.parametrize("api_key", [5, b"sk", ["sk"]])
def test_api_key_of_the_wrong_type(api_key: Any) -> None:
    """An API key is a string or an async function."""
    with pytest.raises(ConfigurationError, match="api_key must be a string"):
        AsyncImages(api_key)


async def test_api_key_header_without_an_api_key(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with an `api-key` header needs no API key, and ignores the environment's."""
    monkeypatch.setenv("ELKAPI_API_KEY", API_KEY)
    async with AsyncImages(base_url=raw_server.base_url, headers={"API-Key": "azure"}) as client:
        await client.generate("a boat")
        with pytest.raises(ConfigurationError, match="no API key"):
            async with AsyncImages("", base_url=raw_server.base_url) as other:
                await other.generate("a boat")
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, headers={"api-key": "azure"}
    ) as client:
        await client.generate("a boat")
        raw_server.reply_with(
            response({"error": {"message": "no such key: azure-key-1"}}, status=401)
        )
        azure = AsyncImages(base_url=raw_server.base_url, headers={"api-key": "azure-key-1"})
        async with azure:
            with pytest.raises(AuthenticationError) as caught:
                await azure.generate("a boat")
        assert "azure-key-1" not in str(caught.value) + repr(caught.value.body)
    bare, both = raw_server.requests[:2]
    assert "authorization" not in bare.headers
    assert bare.headers["api-key"] == both.headers["api-key"] == "azure"
    assert both.headers["authorization"] == f"Bearer {API_KEY}"


# --- an async function ------------------------------------------------------


async def test_resolve_api_key_failures() -> None:
    """Only the type of a function's exception is shown, since its text may be secret."""

    async def fails() -> str:
        raise KeyError(API_KEY)

    async def cancels() -> str:
        raise asyncio.CancelledError

    async def returns_nothing() -> Any:
        return None

    def is_not_async() -> Any:
        return API_KEY

    for source, words in (
        (fails, "failed with KeyError"),
        (cancels, "cancelled from within"),
        (returns_nothing, "no API key"),
        (is_not_async, "an async function"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            await resolve_api_key(source)
        assert API_KEY not in str(caught.value)
        assert caught.value.__context__ is None


# --- Secret -----------------------------------------------------------------


def test_secret_does_not_print() -> None:
    """No usual conversion of a secret to text shows it."""
    secret = make_api_key(API_KEY)
    assert secret.reveal() == API_KEY
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", "%s" % secret):  # noqa: UP031
        assert API_KEY not in text
    assert API_KEY not in repr([secret])
    assert not hasattr(secret, "__dict__")
    assert secret
    assert not Secret("")


def test_secret_does_not_pickle() -> None:
    """A secret cannot be pickled or copied."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(make_api_key(API_KEY), protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(make_api_key(API_KEY))


@pytest.mark.parametrize(
    "value",
    [
        API_KEY,
        f"Bearer {API_KEY}, {API_KEY}",
        {"authorization": f"Bearer {API_KEY}", API_KEY: [API_KEY]},
        [{"error": {"message": f"no such key: {API_KEY}"}}],
        (f"a {API_KEY}",),
    ],
)
def test_secret_redacts(value: Any) -> None:
    """A value keeps its shape, with the secret removed everywhere."""
    redacted = Secret(API_KEY).redact(value)
    assert type(redacted) is type(value)
    assert API_KEY not in repr(redacted)
    assert "***" in repr(redacted)


@pytest.mark.parametrize("value", [None, 3, 1.5, True, "other text", {"a": ["b", 1]}, []])
def test_secret_leaves_the_rest(value: Any) -> None:
    """A value without the secret is unchanged."""
    assert Secret(API_KEY).redact(value) == value
