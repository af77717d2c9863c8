"""The options of a client, each checked by itself; reads the environment, as `credentials` does."""

import math
import os
import re
import urllib.request
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec

from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.requests import DEFAULT_MODEL

DEFAULT_BASE_URL = "https://api.elkapi.com/v1"
URL_VARIABLE = "ELKAPI_BASE_URL"
MODEL_VARIABLE = "ELKAPI_MODEL"

# Seconds. An image takes ten seconds to five minutes, during which the server may be silent.
TOTAL, CONNECT, FIRST_BYTE, IDLE, DOWNLOAD = 600.0, 10.0, 600.0, 300.0, 120.0

IdempotencyMode = Literal["off", "send", "replay"]
ValidateMode = Literal["strict", "warn", "off"]


class Timeout(msgspec.Struct, frozen=True):
    """Limits in seconds; None means the default, `math.inf` no limit.

    Args:
        total: The whole call: queueing, every attempt, back-off and body. 600; a stream has none.
        connect: Finding and reaching the server, TLS included. 10. In a borrowed session: each
            address.
        first_byte: From the start of an attempt to the headers of its response. 600.
        idle: Between two chunks of a response, and while no byte of an upload is sent. 300.
        download: Downloading an image that came as a URL. 120.
        pings_count: Whether a ping starts `idle` again. Pings are what servers send only to keep a
            connection open: comments (`: PING`), empty events, and blanks before JSON. By default
            they do not count, so a server that pings but has stopped working is noticed.
    """

    total: float | None = None
    connect: float | None = None
    first_byte: float | None = None
    idle: float | None = None
    download: float | None = None
    pings_count: bool = False

    def __post_init__(self) -> None:
        for name in ("total", "connect", "first_byte", "idle", "download"):
            if getattr(self, name) is not None:
                advice = "; for no limit pass math.inf"
                _check_number(self, name, unit="seconds", zero=False, advice=advice)

    def limits(self, *, stream: bool) -> "TimeoutLimits":
        """Return the limits with the defaults filled in."""
        return TimeoutLimits(
            total=(math.inf if stream else TOTAL) if self.total is None else self.total,
            connect=CONNECT if self.connect is None else self.connect,
            first_byte=FIRST_BYTE if self.first_byte is None else self.first_byte,
            idle=IDLE if self.idle is None else self.idle,
            download=DOWNLOAD if self.download is None else self.download,
            pings_count=self.pings_count,
        )


class TimeoutLimits(msgspec.Struct, frozen=True, kw_only=True):
    """A `Timeout` with its defaults, all in seconds."""

    total: float
    connect: float
    first_byte: float
    idle: float
    download: float
    pings_count: bool

    @property
    def soonest(self) -> float:
        """The shortest limit of a single wait."""
        return min(self.connect, self.first_byte, self.idle)


class RetryPolicy(msgspec.Struct, frozen=True):
    """Retries of a failed call, at most `max_retries`, where they cannot cost a second image.

    The delay before retry n is a random part of `initial_backoff` · 2^(n-1) seconds, at most
    `max_backoff`, unless the server names one; a call fails at once when the server names more than
    `max_retry_after` seconds. `budget` is the number of retries that all calls of a client share;
    each success returns one.

    With `retry_unknown=True`, failures that leave it unknown whether an image was created
    (time-outs, broken connections, unknown 5xx) are retried as well. Each such retry may cost
    another image.
    """

    max_retries: int = 2
    initial_backoff: float = 0.5
    max_backoff: float = 8.0
    max_retry_after: float = 120.0
    budget: int = 100
    retry_unknown: bool = False

    def __post_init__(self) -> None:
        for name in ("max_retries", "budget"):
            _check_number(self, name, unit="a whole number", zero=True)
        for name in ("initial_backoff", "max_backoff", "max_retry_after"):
            _check_number(self, name, unit="seconds", zero=True)
        if type(self.retry_unknown) is not bool:
            raise ConfigurationError("RetryPolicy(retry_unknown=…) must be True or False.")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that all calls of a client share; None sets no limit.

    At most `max_concurrency` requests are in flight, and in each minute at most
    `requests_per_minute` are sent and `images_per_minute` requested, where a request for n images
    counts n. Further calls wait, first come first served, and the wait counts towards
    `Timeout.total`. Each attempt counts, and is in flight until its response has been read to the
    end or closed: an open stream that is not read keeps its place. Regardless of
    these limits, the client slows down when the server returns 429, and keeps to the rate limits in
    its headers.

    `max_response_bytes` limits one response, decompressed, and one downloaded image.
    `private_downloads` allows image URLs with a private, loopback or link-local address, which are
    always allowed if the base URL has such an address itself.

    `keepalive_timeout` is the number of seconds for which an idle connection is kept for the next
    request; 0 opens a new one for each. Many servers close idle connections after five seconds, and
    a request sent at that moment is lost. A server that announces a shorter time
    (`Keep-Alive: timeout=N`) is respected. A borrowed session has its own setting.
    """

    max_concurrency: int | None = None
    requests_per_minute: float | None = None
    images_per_minute: float | None = None
    max_response_bytes: int = 256 * 1024 * 1024
    private_downloads: bool = False
    keepalive_timeout: float = 4.0

    def __post_init__(self) -> None:
        if self.max_concurrency is not None:
            _check_number(self, "max_concurrency", unit="a whole number", zero=False)
        for name in ("requests_per_minute", "images_per_minute"):
            if getattr(self, name) is not None:
                _check_number(self, name, unit="a number", zero=False)
        _check_number(self, "max_response_bytes", unit="bytes", zero=False)
        _check_number(self, "keepalive_timeout", unit="seconds", zero=True)


def make_timeout(timeout: object) -> Timeout:
    """Return a `Timeout`; a number of seconds or a `timedelta` is its `total`.

    No default within the total is shorter than it. A `Timeout` of httpx or openai keeps its
    meaning: no total, `connect` and `read` for each wait.

    Raises:
        ConfigurationError: If it is anything else.
    """
    if isinstance(timeout, Timeout):
        return timeout
    if timeout is None:
        return Timeout()
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if all(hasattr(timeout, name) for name in ("connect", "read", "write", "pool")):
        return _from_httpx(timeout)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise ConfigurationError(
            "timeout must be a number of seconds, a timedelta or elkimg_async.Timeout(…), "
            f"not {type(timeout).__name__}."
        )
    total = Timeout(total=timeout).total or 0.0
    return Timeout(total=total, first_byte=max(total, FIRST_BYTE), idle=max(total, IDLE))


def _from_httpx(timeout: Any) -> Timeout:
    def seconds(value: float | None) -> float:
        return math.inf if value is None else value

    read = seconds(timeout.read)
    return Timeout(total=math.inf, connect=seconds(timeout.connect), first_byte=read, idle=read)


def make_retry(retry: RetryPolicy | int | None) -> RetryPolicy:
    """Return a `RetryPolicy`; a number is its `max_retries`.

    Raises:
        ConfigurationError: If it is anything else.
    """
    if isinstance(retry, RetryPolicy):
        return retry
    if retry is not None and type(retry) is not int:
        raise ConfigurationError(
            "retry must be a whole number or elkimg_async.RetryPolicy(max_retries=…), "
            f"not {type(retry).__name__}."
        )
    return RetryPolicy() if retry is None else RetryPolicy(max_retries=retry)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` if a value is not among `choices`."""
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def make_model(model: object) -> str:
    """Return the default model; None means the environment's, else `gpt-image-1.5`.

    Raises:
        ConfigurationError: If it is not text.
    """
    if model is None:
        return os.environ.get(MODEL_VARIABLE, "").strip() or DEFAULT_MODEL
    if not isinstance(model, str) or not model.strip():
        raise ConfigurationError(
            f"model must be the name of a model, such as {DEFAULT_MODEL!r}, not {model!r}."
        )
    return model


def make_query(query: object) -> dict[str, Any]:
    """Return query parameters as text, with a list for a repeated one. None: no parameters.

    Parameters that are None are left out.

    Raises:
        ConfigurationError: If it is not a mapping of names to text, numbers, booleans or lists of
            them.
    """
    if query is None:
        return {}
    if not isinstance(query, Mapping):
        raise ConfigurationError(f"query must be a mapping, not {type(query).__name__}.")
    found: dict[str, Any] = {}
    for name, value in query.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not isinstance(name, str) or not all(
            each is None or isinstance(each, (str, int, float)) for each in values
        ):
            raise ConfigurationError(
                f"query parameter {name!r} must be text, a number or a boolean, or a list of them."
            )
        present = [each for each in values if each is not None]
        texts = [str(each).lower() if isinstance(each, bool) else str(each) for each in present]
        if texts:
            found[name] = texts if len(texts) > 1 else texts[0]
    return found


def encode_query(query: Mapping[str, Any]) -> str:
    """Return query parameters as they stand in a URL, with a question mark; "" without any."""
    return "?" * bool(query) + urlencode(query, doseq=True, quote_via=quote)


def make_base_url(url: str | None) -> str:
    """Return the base URL, checked; None means the environment's, else ElkAPI's.

    Raises:
        ConfigurationError: If it is not an http or https address.
    """
    address, query = split_base_url(url)
    return address + encode_query(query)


def split_base_url(url: str | None) -> tuple[str, dict[str, Any]]:
    """Return the base URL without a slash at its end, and the parameters of its query.

    Raises:
        ConfigurationError: If it is not an http or https address.
    """
    if url is None:
        url = os.environ.get(URL_VARIABLE) or DEFAULT_BASE_URL
    address, _, query = str(url).strip().partition("?")
    problem = None
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        problem = "it cannot be parsed"
    else:
        if parts.scheme not in ("http", "https"):
            problem = "it must begin with https:// or http://"
        elif not host:
            problem = "it names no host"
        elif parts.username or parts.password:
            problem = "it must not contain a user or password"
        elif parts.fragment or "#" in query:
            problem = "it must not contain a fragment (#…)"
        elif found := re.search(r"/(images/(generations|edits)|models)/?$", parts.path):
            problem = f"it must end before {found[0].rstrip('/')}, which the client adds"
        elif re.search(r"[\s\x00-\x1f\x7f]", address + query):
            problem = "it contains white space"
    if problem:
        raise ConfigurationError(
            f"The base URL is wrong: {problem}. A correct example is {DEFAULT_BASE_URL}."
        )
    parameters: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters.setdefault(name, []).append(value)
    return address.rstrip("/"), parameters


def _check_number(
    options: msgspec.Struct, name: str, *, unit: str, zero: bool, advice: str = ""
) -> None:
    """Raise `ConfigurationError` if an option is not a number, is negative, or 0 without `zero`."""
    value = getattr(options, name)
    option = f"{type(options).__name__}({name}=…)"
    kinds = (int,) if unit == "a whole number" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigurationError(f"{option} must be {unit}, not {type(value).__name__}.")
    if not (value > 0 or (zero and value == 0)):
        least = "0 or more" if zero else "more than 0"
        raise ConfigurationError(f"{option} must be {least}{advice}.")


class ProxySettings(NamedTuple):
    """Proxies by scheme (`http`, `https`, `all`), and the hosts that bypass them."""

    proxies: Mapping[str, str]
    no_proxy: str = ""
    """Hosts for direct connections, as written in NO_PROXY."""
    from_environment: bool = True

    def bypass(self, host: str) -> bool:
        """Return whether the operating system's own settings exclude a host."""
        return not self.from_environment and bool(urllib.request.proxy_bypass(host))

    def variable(self, scheme: str) -> str:
        """Return where the proxy of a scheme is configured: the variable's name, or a phrase."""
        name = f"{scheme}_proxy"
        if not self.from_environment:
            return "the system's proxy settings"
        return name if os.environ.get(name) else name.upper()


def proxy_settings() -> ProxySettings:
    """Read the proxies from the environment, or else from the operating system."""
    proxies = urllib.request.getproxies_environment()
    if proxies:
        return ProxySettings(proxies, proxies.get("no", ""))
    return ProxySettings(urllib.request.getproxies(), from_environment=False)
