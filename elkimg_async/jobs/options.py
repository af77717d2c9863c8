"""Options of a job's call that are not part of its request, as they are stored."""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from elkimg_async.config import RetryPolicy, Timeout, make_timeout

_SECRET_NAME = re.compile(
    r"auth|key|token|secret|cookie|passw|passphrase|pwd|credential|signature|session|jwt"
    r"|\b(?:sig|code|pass|pat)\b",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\s*(?:bearer|basic|digest|negotiate|token|apikey)\s"
    r"|.*(?:\b(?:sk|pk|rk|org|proj|sess)-\w|\beyJ[\w-]{8,}\.|://[^/\s]*@)",
    re.IGNORECASE | re.DOTALL,
)
"""Credentials with their scheme, API keys, JSON Web Tokens, and URLs with a password."""
_KINDS: tuple[type[msgspec.Struct], ...] = (RetryPolicy, Timeout)


def write_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as plain data, without secrets."""
    plain = dict[str, Any]()
    for name, given in options.items():
        # a timedelta, or a Timeout of httpx, is stored as ours
        value = make_timeout(given) if name == "timeout" else given
        if isinstance(value, _KINDS):
            fields = msgspec.structs.asdict(value)
            plain[name] = {field: _finite(each) for field, each in fields.items()}
        elif isinstance(value, Mapping):
            kept = [item for item in value.items() if not is_secret(*item)]
            plain[name] = {str(key): each for key, each in kept}
        else:
            plain[name] = _finite(value)
    return plain


def read_options(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that `write_options` wrote."""
    options = dict[str, Any](plain)
    for name, kind in (("retry", RetryPolicy), ("timeout", Timeout)):
        value = options.get(name)
        if isinstance(value, Mapping):
            options[name] = kind(**{field: _number(each) for field, each in value.items()})
        elif value is not None:
            options[name] = _number(value)
    return options


def has_secrets(options: Mapping[str, Any]) -> bool:
    """Return whether some of the options are not stored."""
    named = (options.get("extra_headers"), options.get("extra_query"))
    items = (item for each in named if isinstance(each, Mapping) for item in each.items())
    return any(is_secret(name, value) for name, value in items)


def is_secret(name: object, value: object) -> bool:
    """Return whether a header or query parameter may be an API key or the like."""
    return bool(_SECRET_NAME.search(str(name)) or _SECRET_VALUE.match(str(value)))


def _finite(value: Any) -> Any:
    """Return a number as JSON can express it."""
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _number(value: Any) -> Any:
    return math.inf if value == "inf" else value
