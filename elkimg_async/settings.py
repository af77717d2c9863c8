"""All settings of a client, from the options of `AsyncImages` and of a single call."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, get_args

import msgspec

from elkimg_async.config import (
    IdempotencyMode,
    Limits,
    RetryPolicy,
    Timeout,
    ValidateMode,
    check_choice,
    encode_query,
    make_model,
    make_query,
    make_retry,
    make_timeout,
    split_base_url,
)
from elkimg_async.credentials import ApiKeySource, source_in
from elkimg_async.errors import ConfigurationError, InvalidRequestError
from elkimg_async.hooks import Hook
from elkimg_async.ratelimit.limiter import Limiter, Permit
from elkimg_async.sansio.headers import check_headers, merge
from elkimg_async.sansio.pricing import Pricing, make_pricing
from elkimg_async.sansio.responses import RateLimit
from elkimg_async.sansio.retry import RetryBudget
from elkimg_async.types import RetryLike, TimeoutLike


class Pacing(Protocol):
    """Interface for deciding when an attempt may be sent: that of `ratelimit.limiter.Limiter`."""

    @property
    def rate(self) -> float:
        """The current pace in requests per second; `math.inf` while no limit is known."""
        ...

    def reserve(self, weight: int) -> Permit:
        """Return a permit for `weight` images; if its `started` is None, `wait` for it."""
        ...

    async def wait(self, permit: Permit, *, remaining: float = math.inf) -> None:
        """Wait for the start; fail at once if it cannot come within `remaining` seconds."""

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
        """End the attempt, or its wait; idempotent."""

    def close(self) -> None:
        """Fail every pending wait, because the client is being closed."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a client, checked and complete.

    `base_url` has no query; `query` is that of the base URL and of the client, sent with every
    request. `shutdowns` is shared by all views of a client.
    """

    api_key: ApiKeySource
    base_url: str
    query: dict[str, Any]
    model: str
    timeout: Timeout
    retry: RetryPolicy
    idempotency: IdempotencyMode
    validate: ValidateMode
    limits: Limits
    headers: dict[str, str]
    hooks: tuple[Hook, ...]
    budget: RetryBudget
    limiter: Pacing
    shutdowns: dict[str, str]
    pricing: Pricing | None = None

    def url(self, path: str) -> str:
        """Return the URL of an endpoint, with the query that every request has."""
        return self.base_url + path + encode_query(self.query)


def create_settings(
    source: ApiKeySource | None,
    *,
    base_url: str | None,
    model: str | None,
    timeout: TimeoutLike | None,
    retry: RetryLike | None,
    idempotency: IdempotencyMode,
    validate: ValidateMode,
    limits: Limits | None,
    headers: Mapping[str, str] | None,
    query: Mapping[str, Any] | None,
    hooks: Iterable[Hook],
    pricing: Pricing | None,
) -> Settings:
    """Return the settings of a new client, whose docstring explains the options.

    Raises:
        ConfigurationError: If an option is invalid.
    """
    check_choice("idempotency", idempotency, get_args(IdempotencyMode))
    check_choice("validate", validate, get_args(ValidateMode))
    limits = limits or Limits()
    if not isinstance(limits, Limits):
        raise ConfigurationError(
            "limits must be elkimg_async.Limits(…), such as Limits(requests_per_minute=60), "
            f"not {type(limits).__name__}."
        )
    policy = make_retry(retry)
    sent = _client_headers(headers)
    address, parameters = split_base_url(base_url)
    return Settings(
        api_key=source_in(sent) if source is None else source,
        base_url=address,
        query=parameters | make_query(query),
        model=make_model(model),
        timeout=make_timeout(timeout),
        retry=policy,
        budget=RetryBudget(policy.budget),
        idempotency=idempotency,
        validate=validate,
        limits=limits,
        headers=sent,
        hooks=_hooks(hooks),
        limiter=Limiter(
            max_concurrency=limits.max_concurrency,
            requests_per_minute=limits.requests_per_minute,
            images_per_minute=limits.images_per_minute,
        ),
        shutdowns={},
        pricing=make_pricing(pricing),
    )


def change_settings(
    settings: Settings,
    *,
    model: str | None = None,
    timeout: TimeoutLike | None = None,
    retry: RetryLike | None = None,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, Any] | None = None,
) -> Settings:
    """Return settings with some options replaced; None keeps the current value.

    Headers and query are added to the current ones.

    Raises:
        ConfigurationError: If an option is invalid.
    """
    if all(option is None for option in (model, timeout, retry, headers, query)):
        return settings
    return msgspec.structs.replace(
        settings,
        model=settings.model if model is None else make_model(model),
        timeout=settings.timeout if timeout is None else make_timeout(timeout),
        retry=settings.retry if retry is None else make_retry(retry),
        headers=merge(settings.headers, _client_headers(headers)),
        query=settings.query | make_query(query),
    )


def either(name: str, value: Any, other_name: str, other: Any) -> Any:
    """Return the value passed under either of two names.

    Raises:
        ConfigurationError: If both were passed.
    """
    if value is not None and other is not None:
        raise ConfigurationError(f"Pass either {name} or {other_name}, not both.")
    return other if value is None else value


def _hooks(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    found = tuple(hooks) if isinstance(hooks, Iterable) else None
    if found is None or not all(map(callable, found)):
        raise ConfigurationError("hooks must be a list of functions, as in hooks=[function].")
    return found


def _client_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    try:
        return check_headers(headers)
    except InvalidRequestError as error:
        problem = error.message
    raise ConfigurationError(problem)
