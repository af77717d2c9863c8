"""What a client can be told, checked without a server."""

import copy
import math
import pickle
from typing import Any

import pytest

from elkimg_async import AsyncImages, ConfigurationError, Limits, RetryPolicy, Timeout
from elkimg_async.config import (
    DEFAULT_BASE_URL,
    Secret,
    default_key,
    make_base_url,
    make_key,
    make_retry,
    make_timeout,
)

KEY = "sk-options-0123456789abcdef"
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
def test_timeout_given(stream: bool) -> None:
    """What is given holds in both modes, infinity included."""
    limits = Timeout(total=1, connect=2, first_byte=3, idle=math.inf, download=5).limits(
        stream=stream
    )
    assert (limits.total, limits.connect, limits.first_byte) == (1, 2, 3)
    assert (limits.idle, limits.download) == (math.inf, 5)


@pytest.mark.parametrize("name", ["total", "connect", "first_byte", "idle", "download"])
@pytest.mark.parametrize("value", [0, -1, math.nan, -math.inf, "5", True, [5]])
def test_timeout_wrong(name: str, value: Any) -> None:
    """A limit that is not a positive number is refused, and the limit is named."""
    with pytest.raises(ConfigurationError, match=rf"Timeout\({name}=…\)") as caught:
        Timeout(**{name: value})
    assert caught.value.billing == "not_sent"


def test_timeout_from_a_number() -> None:
    """A number is the total, which no other default cuts short; None is the default, a Timeout itself."""
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
        make_timeout("5")  # type: ignore[arg-type]


def test_timeout_is_frozen() -> None:
    """A Timeout cannot be changed once made."""
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
    """A number is how many retries, None the default, and a policy itself."""
    assert make_retry(0) == RetryPolicy(max_retries=0)
    assert make_retry(None) == RetryPolicy()
    given = RetryPolicy(7)
    assert make_retry(given) is given


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_retry_wrong_number(value: Any) -> None:
    """The numbers of retries are whole ones, 0 or more."""
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
    assert RetryPolicy(**{name: 0})


@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_limits_wrong(value: Any) -> None:
    """The limit of an answer is a positive number of bytes."""
    with pytest.raises(ConfigurationError, match="max_response_bytes"):
        Limits(max_response_bytes=value)


@pytest.mark.parametrize("value", [None, math.nan])
def test_limits_without_a_number(value: Any) -> None:
    """The limit of an answer has no default hidden behind None, and is never NaN."""
    with pytest.raises(ConfigurationError, match="max_response_bytes"):
        Limits(max_response_bytes=value)


@pytest.mark.parametrize("name", ["max_retries", "initial_backoff", "max_backoff", "budget"])
def test_retry_without_a_number(name: str) -> None:
    """No field of a policy can be None, which would fail only at the first retry."""
    nothing: Any = None
    with pytest.raises(ConfigurationError, match=name):
        RetryPolicy(**{name: nothing})


def test_limits_default() -> None:
    """An answer has at most 256 MiB unless told otherwise."""
    assert Limits().max_response_bytes == 256 * 2**20


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
        ("https://api.elkapi.com/v1?model=x", "end with its path"),
        ("https://api.elkapi.com/v1#top", "end with its path"),
        ("https://api.elkapi.com:port/v1", "cannot be read"),
        ("https://api.elkapi.com:99999/v1", "cannot be read"),
        ("https://[::1/v1", "cannot be read"),
    ],
)
def test_base_url_wrong(url: str, problem: str) -> None:
    """A base URL that cannot work is refused when the client is made, with an example of a good one."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        AsyncImages(KEY, base_url=url)
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
def test_base_url_good(url: str | None, used: str) -> None:
    """A good base URL is kept without blanks around it and a slash at its end."""
    assert make_base_url(url) == used
    assert AsyncImages(KEY, base_url=url).base_url == used


def test_base_url_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """ELKAPI_BASE_URL is the default, an argument wins over it, and it is checked as well."""
    monkeypatch.setenv("ELKAPI_BASE_URL", "http://localhost:1/v1/")
    assert AsyncImages(KEY).base_url == "http://localhost:1/v1"
    assert AsyncImages(KEY, base_url="http://localhost:2/v1").base_url == "http://localhost:2/v1"
    monkeypatch.setenv("ELKAPI_BASE_URL", "")
    assert AsyncImages(KEY).base_url == DEFAULT_BASE_URL
    monkeypatch.setenv("ELKAPI_BASE_URL", "localhost")
    with pytest.raises(ConfigurationError, match="begin with https://"):
        AsyncImages(KEY)


# --- the key ----------------------------------------------------------------


def test_key_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the environment is read when asked for, blanks around it removed."""
    monkeypatch.setenv("ELKAPI_API_KEY", f" {KEY}\n")
    assert default_key().reveal() == KEY


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_key_missing(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Without a key the error names the variable and the way without one."""
    if value is not None:
        monkeypatch.setenv("ELKAPI_API_KEY", value)
    with pytest.raises(ConfigurationError) as caught:
        default_key()
    assert "ELKAPI_API_KEY" in str(caught.value)
    assert "LocalServer" in str(caught.value)
    assert "--local" in str(caught.value)
    assert caught.value.billing == "not_sent"


@pytest.mark.parametrize("key", ["sk\n-x", "sk x", "sk-ключ", "sk-\x00", "“sk-1”"])
def test_key_that_no_header_holds(key: str) -> None:
    """A key with characters that no header holds is refused at once, and not shown."""
    with pytest.raises(ConfigurationError, match="characters that no key has") as caught:
        AsyncImages(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("key", [5, b"sk", ["sk"]])
def test_key_of_the_wrong_type(key: Any) -> None:
    """A key is a string or an async function."""
    with pytest.raises(ConfigurationError, match="api_key must be a string"):
        AsyncImages(key)


@pytest.mark.parametrize("option", ["idempotency", "validate"])
def test_choice_wrong(option: str) -> None:
    """A mode that does not exist is refused with the list of those that do."""
    options: dict[str, Any] = {option: "sometimes"}
    with pytest.raises(ConfigurationError, match=rf"{option} must be one of .*off.*'sometimes'"):
        AsyncImages(KEY, **options)


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {KEY}"}, {"X-A": "b\r\nX-C: d"}, {"X A": "b"}, {"X-A": 1}, "X-A"],
)
def test_headers_wrong(headers: Any) -> None:
    """Headers that cannot be sent, and the key among them, are refused when the client is made."""
    with pytest.raises(ConfigurationError, match="headers") as caught:
        AsyncImages(KEY, headers=headers)
    assert KEY not in str(caught.value)


# --- Secret -----------------------------------------------------------------


def test_secret_does_not_print() -> None:
    """No usual way to make text of a secret shows it."""
    secret = make_key(KEY)
    assert secret.reveal() == KEY
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", "%s" % secret):  # noqa: UP031
        assert KEY not in text
    assert KEY not in repr([secret])
    assert not hasattr(secret, "__dict__")


def test_secret_does_not_pickle() -> None:
    """A secret does not leave the process by pickle or copy."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(make_key(KEY), protocol)
    with pytest.raises(TypeError):
        copy.deepcopy(make_key(KEY))


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        f"Bearer {KEY}, {KEY}",
        {"authorization": f"Bearer {KEY}", KEY: [KEY]},
        [{"error": {"message": f"no such key: {KEY}"}}],
        (f"a {KEY}",),
    ],
)
def test_secret_redacts(value: Any) -> None:
    """A value of the same shape comes back without the secret anywhere in it."""
    redacted = Secret(KEY).redact(value)
    assert type(redacted) is type(value)
    assert KEY not in repr(redacted)
    assert "***" in repr(redacted)


@pytest.mark.parametrize("value", [None, 3, 1.5, True, "other text", {"a": ["b", 1]}, []])
def test_secret_leaves_the_rest(value: Any) -> None:
    """What does not hold the secret stays as it is."""
    assert Secret(KEY).redact(value) == value
