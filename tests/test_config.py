"""The options of a client, checked without a server."""

import math
from datetime import timedelta
from typing import Any

import aiohttp
import httpx
import openai
import pytest

from elkimg_async import AsyncImages, ConfigurationError, Limits, RetryPolicy, Timeout
from elkimg_async.config import (
    DEFAULT_BASE_URL,
    make_base_url,
    make_retry,
    make_timeout,
)

API_KEY = "sk-options-0123456789abcdef"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ELKAPI_API_KEY", "ELKAPI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- Timeout ----------------------------------------------------------------


def test_timeout_defaults() -> None:
    """The defaults are the contract's; a stream alone has no total."""
    batch, stream = Timeout().limits(stream=False), Timeout().limits(stream=True)
    assert (batch.total, stream.total) == (600.0, math.inf)
    for limits in (batch, stream):
        assert limits.connect == 10.0
        assert limits.first_byte == 600.0
        assert limits.idle == 300.0
        assert limits.download == 120.0


@pytest.mark.parametrize("stream", [False, True])
def test_timeout_set(stream: bool) -> None:
    """A limit that is set applies in both modes, infinity included."""
    limits = Timeout(total=1, connect=2, first_byte=3, idle=math.inf, download=5).limits(
        stream=stream
    )
    assert (limits.total, limits.connect, limits.first_byte) == (1, 2, 3)
    assert (limits.idle, limits.download) == (math.inf, 5)


@pytest.mark.parametrize("name", ["total", "connect", "first_byte", "idle", "download"])
@pytest.mark.parametrize("value", [0, -1, math.nan, -math.inf, "5", True, [5]])
def test_timeout_wrong(name: str, value: Any) -> None:
    """A limit that is not a positive number is rejected by name."""
    with pytest.raises(ConfigurationError, match=rf"Timeout\({name}=…\)") as caught:
        Timeout(**{name: value})
    assert caught.value.billing == "not_sent"
    if value == 0:
        assert "must be more than 0; for no limit pass math.inf." in str(caught.value)


def test_timeout_from_a_number() -> None:
    """A number is the total, and no default is shorter; None is the default."""
    for seconds in (5, 900, math.inf):
        for stream in (False, True):
            limits = make_timeout(seconds).limits(stream=stream)
            assert limits.total == seconds
            assert limits.first_byte == max(seconds, 600)
            assert limits.idle == max(seconds, 300)
            assert (limits.connect, limits.download) == (10, 120)
    assert make_timeout(None) == Timeout()
    given = Timeout(idle=3)
    assert make_timeout(given) is given
    with pytest.raises(ConfigurationError):
        make_timeout("5")


@pytest.mark.parametrize("settings", [Timeout, RetryPolicy, Limits])
def test_help_has_each_setting(settings: type[Timeout | RetryPolicy | Limits]) -> None:
    """The docstring, which `help()` shows, has the meaning of each parameter."""
    text = settings.__doc__ or ""
    assert [name for name in settings.__struct_fields__ if name not in text] == []


def test_timeout_is_frozen() -> None:
    """A Timeout cannot be changed."""
    with pytest.raises(AttributeError):
        Timeout().total = 1  # type: ignore[misc]


# --- RetryPolicy and Limits -------------------------------------------------


def test_retry_defaults() -> None:
    """The defaults are the contract's: two retries, 0.5 to 8 s, Retry-After up to 120 s."""
    policy = RetryPolicy()
    assert (policy.max_retries, policy.initial_backoff) == (2, 0.5)
    assert (policy.max_backoff, policy.max_retry_after) == (8.0, 120.0)
    assert policy.budget == 100


def test_retry_from_a_number() -> None:
    """A number is that of retries, and None is the default."""
    assert make_retry(0) == RetryPolicy(max_retries=0)
    assert make_retry(None) == RetryPolicy()
    given = RetryPolicy(7)
    assert make_retry(given) is given


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_retry_invalid_number(value: Any) -> None:
    """Numbers of retries are integers of 0 or more."""
    with pytest.raises(ConfigurationError, match="max_retries"):
        make_retry(value)
    with pytest.raises(ConfigurationError, match="budget"):
        RetryPolicy(budget=value)


@pytest.mark.parametrize("name", ["initial_backoff", "max_backoff", "max_retry_after"])
@pytest.mark.parametrize("value", [-0.1, math.nan, "1", True])
def test_retry_wrong_seconds(name: str, value: Any) -> None:
    """The seconds of a policy are numbers, 0 or more, and the wrong one is named."""
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**{name: value})
    zero: dict[str, Any] = {name: 0}
    assert RetryPolicy(**zero)


@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_limits_wrong(value: Any) -> None:
    """The limit of a response is a positive number of bytes."""
    with pytest.raises(ConfigurationError, match="max_response_bytes"):
        Limits(max_response_bytes=value)


@pytest.mark.parametrize("value", [None, math.nan])
def test_limits_without_a_number(value: Any) -> None:
    """The limit of a response is neither None nor NaN."""
    with pytest.raises(ConfigurationError, match="max_response_bytes"):
        Limits(max_response_bytes=value)


@pytest.mark.parametrize("name", ["max_retries", "initial_backoff", "max_backoff", "budget"])
def test_retry_without_a_number(name: str) -> None:
    """No field of a policy can be None, which would fail only at the first retry."""
    nothing: Any = None
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**{name: nothing})


def test_limits_default() -> None:
    """A response has at most 256 MiB by default."""
    assert Limits().max_response_bytes == 256 * 2**20


# --- names of openai --------------------------------------------------------


def test_timeout_of_other_libraries() -> None:
    """A timedelta, and a Timeout of httpx or openai, keep their meaning."""
    assert make_timeout(timedelta(minutes=2)) == make_timeout(120)
    for timeout in (httpx.Timeout(60, connect=5.0), openai.Timeout(60, connect=5.0)):
        limits = make_timeout(timeout).limits(stream=False)
        assert (limits.total, limits.connect) == (math.inf, 5.0)
        assert limits.first_byte == limits.idle == 60.0
    assert make_timeout(httpx.Timeout(None)).limits(stream=False).first_byte == math.inf
    for wrong in (aiohttp.ClientTimeout(5), "5", True, [5]):
        with pytest.raises(ConfigurationError, match=r"elkimg_async\.Timeout\(…\), not "):
            make_timeout(wrong)


def test_options_of_openai() -> None:
    """`max_retries`, `default_headers` and `default_query` are taken under openai's names."""
    client = AsyncImages(
        API_KEY, max_retries=5, default_headers={"X-A": "b"}, default_query={"q": "1"}
    )
    assert client._settings.retry == RetryPolicy(max_retries=5)
    assert client._settings.headers == {"X-A": "b"}
    assert client.with_options(max_retries=0)._settings.retry.max_retries == 0
    options: dict[str, Any]
    for options in (
        {"retry": 1, "max_retries": 2},
        {"headers": {}, "default_headers": {}},
        {"query": {}, "default_query": {}},
    ):
        with pytest.raises(ConfigurationError, match="not both"):
            AsyncImages(API_KEY, **options)
    with pytest.raises(ConfigurationError, match="not both"):
        client.with_options(retry=1, max_retries=2)


# --- the base URL -----------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("api.elkapi.com/v1", "begin with https://"),
        ("//api.elkapi.com/v1", "begin with https://"),
        ("ftp://api.elkapi.com/v1", "begin with https://"),
        ("localhost:8000/v1", "begin with https://"),
        ("", "begin with https://"),
        ("https://", "names no host"),
        ("https:///v1", "names no host"),
        ("https://:443/v1", "names no host"),
        ("https://user@api.elkapi.com/v1", "user or password"),
        ("https://user:word@api.elkapi.com/v1", "user or password"),
        ("https://api.elkapi.com/v1#top", "a fragment"),
        ("https://api.elkapi.com/v1?a=b#top", "a fragment"),
        ("https://api.elkapi.com/v1?a=b c", "white space"),
        ("https://api.elkapi.com:port/v1", "cannot be parsed"),
        ("https://api.elkapi.com:99999/v1", "cannot be parsed"),
        ("https://[::1/v1", "cannot be parsed"),
    ],
)
def test_base_url_wrong(url: str, problem: str) -> None:
    """An invalid base URL is rejected, with a valid example."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        AsyncImages(API_KEY, base_url=url)
    assert DEFAULT_BASE_URL in str(caught.value)
    assert "user:word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "used"),
    [
        (None, "https://api.elkapi.com/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
        ("  https://example.org/proxy/v1//\n", "https://example.org/proxy/v1"),
        ("HTTPS://example.org", "HTTPS://example.org"),
    ],
)
def test_base_url_valid(url: str | None, used: str) -> None:
    """White space around a valid base URL and a slash at its end are removed."""
    assert make_base_url(url) == used
    assert AsyncImages(API_KEY, base_url=url).base_url == used


@pytest.mark.parametrize(
    ("url", "address", "query"),
    [
        ("https://host/v1?version=2025-04-01", "https://host/v1", "version=2025-04-01"),
        ("https://host/v1/?a=1&a=2&b=&c=%2F+x", "https://host/v1", "a=1&a=2&b=&c=%2F%20x"),
        ("https://host?", "https://host", ""),
    ],
)  # fmt: skip
def test_base_url_with_a_query(url: str, address: str, query: str) -> None:
    """A query in the base URL is sent with every request, behind the path of the endpoint."""
    client = AsyncImages(API_KEY, base_url=url)
    assert client.base_url == address
    assert client._settings.url("/models") == f"{address}/models{'?' if query else ''}{query}"
    assert make_base_url(url) == f"{address}{'?' if query else ''}{query}"


def test_query_merges() -> None:
    """The client's query is added to that of the base URL, and a view's to both; None is unset."""
    client = AsyncImages(
        API_KEY, base_url="https://host/v1?a=1&b=2", query={"b": 3, "c": None, "d": True}
    )
    assert client._settings.url("/x") == "https://host/v1/x?a=1&b=3&d=true"
    view = client.with_options(query={"a": ["x", "y"], "e": "ü&="})
    assert view._settings.url("/x") == "https://host/v1/x?a=x&a=y&b=3&d=true&e=%C3%BC%26%3D"
    assert AsyncImages(API_KEY, base_url="https://host", default_query={"q": 1})._settings.url(
        "/"
    ) == ("https://host/?q=1")


@pytest.mark.parametrize("query", ["a=1", [("a", 1)], {1: "a"}, {"a": {}}, {"a": [b"x"]}], ids=repr)
def test_query_wrong(query: Any) -> None:
    """A query that cannot be encoded is rejected when the client is created."""
    with pytest.raises(ConfigurationError, match="query"):
        AsyncImages(API_KEY, query=query)


def test_model_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model is the client's, else the environment's, else gpt-image-1.5."""
    monkeypatch.delenv("ELKAPI_MODEL", raising=False)
    assert AsyncImages(API_KEY).model == "gpt-image-1.5"
    monkeypatch.setenv("ELKAPI_MODEL", " gpt-image-2\n")
    assert AsyncImages(API_KEY).model == "gpt-image-2"
    client = AsyncImages(API_KEY, model="flux")
    view = client.with_options(model="sd")
    assert (client.model, view.model) == ("flux", "sd")
    assert view.with_options(timeout=3).model == "sd"
    wrong: Any
    for wrong in ("", " ", 5):
        with pytest.raises(ConfigurationError, match="model must be the name"):
            AsyncImages(API_KEY, model=wrong)


def test_base_url_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """ELKAPI_BASE_URL is the default, an argument overrides it, and both are checked."""
    monkeypatch.setenv("ELKAPI_BASE_URL", "http://localhost:1/v1/")
    assert AsyncImages(API_KEY).base_url == "http://localhost:1/v1"
    assert (
        AsyncImages(API_KEY, base_url="http://localhost:2/v1").base_url == "http://localhost:2/v1"
    )
    monkeypatch.setenv("ELKAPI_BASE_URL", "")
    assert AsyncImages(API_KEY).base_url == DEFAULT_BASE_URL
    monkeypatch.setenv("ELKAPI_BASE_URL", "localhost")
    with pytest.raises(ConfigurationError, match="begin with https://"):
        AsyncImages(API_KEY)


# --- modes and headers ------------------------------------------------------


@pytest.mark.parametrize("option", ["idempotency", "validate"])
def test_choice_wrong(option: str) -> None:
    """An unknown mode is rejected with the list of the known ones."""
    options: dict[str, Any] = {option: "sometimes"}
    with pytest.raises(ConfigurationError, match=rf"{option} must be one of .*off.*'sometimes'"):
        AsyncImages(API_KEY, **options)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {API_KEY}"},
        {"X-A": "b\r\nX-C: d"},
        {"X A": "b"},
        {"X-A": 1},
        "X-A",
    ],
)
def test_headers_invalid(headers: Any) -> None:
    """Headers that cannot be sent, and the API key's, are rejected at once."""
    with pytest.raises(ConfigurationError, match="headers") as caught:
        AsyncImages(API_KEY, headers=headers)
    assert API_KEY not in str(caught.value)
