"""What a client can be told; the only reader of the environment."""

import math
import os
import re
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from elkimg_async.errors import ConfigurationError
from elkimg_async.hooks import Hook
from elkimg_async.ratelimit.limiter import Permit
from elkimg_async.sansio.json_images import map_strings
from elkimg_async.sansio.responses import RateLimit
from elkimg_async.sansio.retry import RetryBudget

DEFAULT_BASE_URL = "https://api.elkapi.com/v1"
KEY_VARIABLE = "ELKAPI_API_KEY"
URL_VARIABLE = "ELKAPI_BASE_URL"

# Seconds. An image takes ten seconds to five minutes, and the server may say nothing until it is done.
TOTAL, CONNECT, FIRST_BYTE, IDLE, DOWNLOAD = 600.0, 10.0, 600.0, 300.0, 120.0

IdempotencyMode = Literal["off", "send", "replay"]
ValidateMode = Literal["strict", "warn", "off"]


class Timeout(msgspec.Struct, frozen=True):
    """Limits in seconds; None means the default, `math.inf` no limit."""

    total: float | None = None
    """The whole call: queueing, every attempt, back-off and body. 600; a stream has none."""
    connect: float | None = None
    """Finding and reaching the server, TLS included. 10. In a borrowed session: each connection that is tried."""
    first_byte: float | None = None
    """From the beginning of an attempt to the headers of its answer. 600."""
    idle: float | None = None
    """Between two pieces of an answer, and while nothing of an upload leaves. 300."""
    download: float | None = None
    """Fetching an image that came as a URL. 120."""
    pings_count: bool = False
    """Whether a ping is a piece of an answer; without it, `idle` ends a stream of nothing but pings."""

    def __post_init__(self) -> None:
        for name in ("total", "connect", "first_byte", "idle", "download"):
            if (seconds := getattr(self, name)) is not None:
                _check_number(f"Timeout({name}=…)", seconds, unit="seconds", zero=False)

    def limits(self, *, stream: bool) -> "TimeoutLimits":
        """The same with the defaults filled in."""
        return TimeoutLimits(
            total=(math.inf if stream else TOTAL) if self.total is None else self.total,
            connect=CONNECT if self.connect is None else self.connect,
            first_byte=FIRST_BYTE if self.first_byte is None else self.first_byte,
            idle=IDLE if self.idle is None else self.idle,
            download=DOWNLOAD if self.download is None else self.download,
            pings_count=self.pings_count,
        )


class TimeoutLimits(msgspec.Struct, frozen=True, kw_only=True):
    """A `Timeout` without gaps, all in seconds; `soonest` is the shortest limit of a wait."""

    total: float
    connect: float
    first_byte: float
    idle: float
    download: float
    pings_count: bool
    soonest: float = math.inf

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(
            self, "soonest", min(self.connect, self.first_byte, self.idle)
        )


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often a failed attempt is repeated, where that cannot cost a second image.

    The wait before retry n is a random part of `initial_backoff` · 2^(n-1) seconds, at most
    `max_backoff`, unless the server says how long; a server that asks for more than
    `max_retry_after` seconds is not waited for. `budget` is the number of retries that all calls of a
    client have together; each success gives one back.
    """

    max_retries: int = 2
    initial_backoff: float = 0.5
    max_backoff: float = 8.0
    max_retry_after: float = 120.0
    budget: int = 100

    def __post_init__(self) -> None:
        for name in ("max_retries", "budget"):
            if type(getattr(self, name)) is not int:
                raise ConfigurationError(f"RetryPolicy({name}=…) must be a whole number.")
        for name in self.__struct_fields__:
            _check_number(f"RetryPolicy({name}=…)", getattr(self, name), unit="a number", zero=True)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What all calls of a client share.

    At most `max_concurrency` requests are in flight, and in each minute at most `requests_per_minute`
    are sent and `images_per_minute` asked for, where a request of n images counts n; None sets no limit. What
    goes beyond waits, first come first served, and the wait counts towards `Timeout.total`. Each attempt
    counts, and is in flight until its answer was read to the end or left: a stream that is open but
    not read holds its place until it is closed. Whatever is set here, the client slows down when the
    server refuses for haste, and keeps to the rate limits that its headers tell.

    `max_response_bytes` limits one answer, decompressed, and one downloaded image. `private_downloads`
    lets an image's URL lead to a private, loopback or link-local address, as it may anyway when
    the base URL itself does.
    """

    max_concurrency: int | None = None
    requests_per_minute: float | None = None
    images_per_minute: float | None = None
    max_response_bytes: int = 256 * 1024 * 1024
    private_downloads: bool = False

    def __post_init__(self) -> None:
        if self.max_concurrency is not None and type(self.max_concurrency) is not int:
            raise ConfigurationError("Limits(max_concurrency=…) must be a whole number.")
        for name in ("max_concurrency", "requests_per_minute", "images_per_minute"):
            if (value := getattr(self, name)) is not None:
                _check_number(f"Limits({name}=…)", value, unit="a number", zero=False)
        _check_number(
            "Limits(max_response_bytes=…)", self.max_response_bytes, unit="bytes", zero=False
        )


class Pacing(Protocol):
    """What decides when an attempt may be sent: the `Limiter` of a client, or one shared by workers."""

    @property
    def rate(self) -> float:
        """Starts per second held to; `math.inf` while nothing limits them."""
        ...

    def reserve(self, weight: int) -> Permit:
        """Join the queue with a request of `weight` images; `started` is None if it has to `wait`."""
        ...

    async def wait(self, permit: Permit, *, remaining: float = math.inf) -> None:
        """Wait until the permit has started; fail at once if that takes longer than `remaining` seconds."""

    def succeeded(self, permit: Permit, rate_limit: RateLimit | None = None) -> None:
        """Record a successful response and its rate-limit headers."""

    def rate_limited(
        self,
        permit: Permit,
        *,
        retry_after: float | None = None,
        rate_limit: RateLimit | None = None,
    ) -> None:
        """Record a 429 about the rate."""

    def release(self, permit: Permit) -> None:
        """Return the slot, or leave the queue; a second time does nothing."""

    def close(self) -> None:
        """Fail everything that waits or comes later."""


_LEAST_SECRET = 8  # characters; a shorter key is somebody's test, and part of ordinary words


class Secret:
    """A string that does not print."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself; the only way to it."""
        return self._value

    def redact(self, value: Any) -> Any:
        """The same text, mapping or sequence without this string in it, unless it is too short to tell."""
        if len(self._value) < _LEAST_SECRET:
            return value
        return map_strings(value, lambda text: text.replace(self._value, "***"))

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> str:
        raise TypeError("a secret cannot be pickled")


class Settings(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What a client was told, checked and complete."""

    api_key: Secret | Callable[[], Awaitable[str]] | None
    base_url: str
    timeout: Timeout
    retry: RetryPolicy
    idempotency: IdempotencyMode
    validate: ValidateMode
    limits: Limits
    headers: dict[str, str]
    hooks: tuple[Hook, ...]
    budget: RetryBudget
    limiter: "Pacing"

    @cached_property
    def batch_limits(self) -> TimeoutLimits:
        """The limits of a batch call."""
        return self.timeout.limits(stream=False)

    @cached_property
    def stream_limits(self) -> TimeoutLimits:
        """The limits of a streaming call."""
        return self.timeout.limits(stream=True)


def make_timeout(timeout: Timeout | float | None) -> Timeout:
    """A `Timeout`; a number is its `total`, and no limit within it is shorter by default."""
    if isinstance(timeout, Timeout):
        return timeout
    if timeout is None:
        return Timeout()
    total = Timeout(total=timeout).total or 0.0
    return Timeout(total=total, first_byte=max(total, FIRST_BYTE), idle=max(total, IDLE))


def make_retry(retry: RetryPolicy | int | None) -> RetryPolicy:
    """A `RetryPolicy`; a number is its `max_retries`."""
    if isinstance(retry, RetryPolicy):
        return retry
    return RetryPolicy() if retry is None else RetryPolicy(max_retries=retry)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not among `choices`."""
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def default_key() -> Secret:
    """The key of the environment.

    Raises:
        ConfigurationError: by the caller, where there is none.
    """
    return make_key(os.environ.get(KEY_VARIABLE, ""))


def make_key(key: object) -> Secret:
    """A key fit for a header.

    Raises:
        ConfigurationError: by the caller, for an empty one or one that a header cannot hold.
    """
    if not isinstance(key, str) or not key.strip():
        raise ConfigurationError(
            f"There is no API key. Set {KEY_VARIABLE}, or pass AsyncImages(api_key=…). To try things "
            "without a key, run against the local server: elkimg generate --local, or "
            "elkimg_async.local.LocalServer."
        )
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError("The API key holds characters that no key has; copy it once more.")
    return Secret(key)


def make_base_url(url: str | None) -> str:
    """The base URL without a slash at its end; None means the environment's, else ElkAPI's.

    Raises:
        ConfigurationError: by the caller, for what is not an http or https address.
    """
    if url is None:
        url = os.environ.get(URL_VARIABLE) or DEFAULT_BASE_URL
    problem = None
    try:
        parts = urlsplit(str(url).strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        problem = "it cannot be read"
    else:
        if parts.scheme not in ("http", "https"):
            problem = "it must begin with https:// or http://"
        elif not host:
            problem = "it names no host"
        elif parts.username or parts.password:
            problem = "it must not hold a user or password"
        elif parts.query or parts.fragment:
            problem = "it must end with its path, such as /v1"
        elif re.search(r"[\s\x00-\x1f\x7f]", str(url).strip()):
            problem = "it holds white space"
    if problem:
        raise ConfigurationError(
            f"The base URL is wrong: {problem}. An example of a good one is {DEFAULT_BASE_URL}."
        )
    return str(url).strip().rstrip("/")


def _check_number(name: str, value: object, *, unit: str, zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name} must be {unit}, not {type(value).__name__}.")
    if not (value > 0 or (zero and value == 0)):
        raise ConfigurationError(f"{name} must be {'0 or more' if zero else 'more than 0'}.")


def _is_loopback(host: str) -> bool:
    import ipaddress  # late, as what else only a proxy needs

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address, or None; none for this machine itself."""
    import urllib.request

    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    host = parts.hostname
    if not proxies or not host or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")
