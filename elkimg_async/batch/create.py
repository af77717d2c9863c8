"""Construction of a run of `map` from the settings of a client."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from elkimg_async.batch.executor import Sender, WaitingCalls
from elkimg_async.batch.run import MapRun
from elkimg_async.batch.runner import Runner, RunOptions
from elkimg_async.config import Timeout
from elkimg_async.sansio.headers import check_headers
from elkimg_async.sansio.requests import DEFAULT_MODEL
from elkimg_async.settings import Settings

CALL_OPTIONS = ("extra_headers", "extra_query", "timeout", "retry")
"""Options of a call that are not part of its request."""


def create_run(
    requests: Any,
    run_options: RunOptions,
    call_options: Mapping[str, Any],
    *,
    settings: Settings,
    view: Callable[[Settings], Any],
) -> MapRun:
    """Return a run that has not been started.

    Args:
        requests: The input of the run.
        run_options: The options of the run.
        call_options: The options of `generate` and `edit` for all requests; None means unset.
        settings: The settings of the client, with `timeout`, `retry` and `extra_query` of the
            `call_options` applied.
        view: Returns a view of the client with other settings.

    Raises:
        ConfigurationError: If an option is invalid.
        InvalidRequestError: If the input is not an iterable of requests.
    """
    defaults = {
        name: value
        for name, value in call_options.items()
        if value is not None and name not in CALL_OPTIONS
    }
    if settings.model != DEFAULT_MODEL:
        defaults.setdefault("model", settings.model)
    timeout = without_total(settings.timeout)
    waiting = WaitingCalls()
    hooks = (*settings.hooks, waiting.observe)
    sender = Sender(
        view(msgspec.structs.replace(settings, timeout=timeout, hooks=hooks)),
        headers=check_headers(call_options.get("extra_headers")),
        stream=run_options.stream,
        waiting=waiting,
    )
    return MapRun(
        Runner(requests, run_options, defaults=defaults, sender=sender, settings=settings)
    )


def without_total(timeout: Timeout) -> Timeout:
    """Return time limits without a default for the total, since turns depend on other requests."""
    if timeout.total is None:
        return msgspec.structs.replace(timeout, total=math.inf)
    return timeout
