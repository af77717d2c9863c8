"""The API key: storing it, requesting it, and keeping it out of all output."""

import asyncio
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from elkimg_async.errors import ConfigurationError, ElkImagesError
from elkimg_async.sansio.json_images import map_strings

API_KEY_VARIABLE = "ELKAPI_API_KEY"
MIN_REDACTED = 8
"""Characters of an API key to redact; a shorter one is a test value, and may be part of a word."""

_QUOTES = "\"'`“”‘’«»"  # noqa: RUF001


class Secret:
    """A string that does not print.

    It is true if it is sent in the Authorization header. An API key that the user sends in another
    header, such as `api-key`, is only stored to be redacted.
    """

    __slots__ = ("_is_sent", "_value")

    def __init__(self, value: str, *, is_sent: bool = True) -> None:
        self._value = value
        self._is_sent = is_sent and value != ""

    def reveal(self) -> str:
        """Return the string itself."""
        return self._value

    def redact(self, value: Any) -> Any:
        """Return the same text, mapping or sequence with `***` instead of this string."""
        if len(self._value) < MIN_REDACTED:
            return value
        return map_strings(value, lambda text: text.replace(self._value, "***"))

    def __bool__(self) -> bool:
        return self._is_sent

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> str:
        raise TypeError("a secret cannot be pickled")


ApiKeySource = Secret | Callable[[], Awaitable[str]] | None


def make_api_key(api_key: object) -> Secret:
    """Return an API key that fits into a header; a leading `Bearer ` is removed.

    Raises:
        ConfigurationError: If it is empty, or contains characters that no API key has.
    """
    # What is often copied with an API key: a line break, the whole header, quotes.
    text = api_key.strip() if isinstance(api_key, str) else ""
    text = re.sub(r"^bearer(\s+|$)", "", text, flags=re.IGNORECASE)
    if not text:
        raise ConfigurationError(
            f"There is no API key. Set {API_KEY_VARIABLE}, or pass AsyncImages(api_key=…). To try "
            "things without one, use the local server: elkimg generate --local, or "
            "elkimg_async.local.LocalServer."
        )
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        raise ConfigurationError("The API key is wrapped in quotes; remove them.")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(
            "The API key contains characters that no API key has; copy it again."
        )
    return Secret(text)


def default_api_key() -> Secret:
    """Return the API key from the environment.

    Raises:
        ConfigurationError: If there is none.
    """
    return make_api_key(os.environ.get(API_KEY_VARIABLE, ""))


def source_in(headers: Mapping[str, str]) -> ApiKeySource:
    """Return the API key in the user's `api-key` header, which Azure uses; None without one."""
    for name, value in headers.items():
        if name.lower() == "api-key":
            return Secret(value, is_sent=False)
    return None


def make_source(api_key: object) -> ApiKeySource:
    """Return the `api_key` argument of a client as `resolve_api_key` accepts it.

    Raises:
        ConfigurationError: If it is neither a string nor a function, or cannot be an API key.
    """
    if isinstance(api_key, str):
        # An empty one does not mean the environment's, which may belong to another server.
        return make_api_key(api_key) if api_key.strip() else _empty
    if inspect.iscoroutine(api_key):
        api_key.close()
        raise ConfigurationError(
            "api_key must be a string or an async function; pass the function without calling it."
        )
    if api_key is not None and not callable(api_key):
        raise ConfigurationError(
            f"api_key must be a string or an async function, not {type(api_key).__name__}."
        )
    # Whether the function is async shows only when it is called: it may be a partial or an object.
    source: Any = api_key
    return cast("ApiKeySource", source)


async def resolve_api_key(source: ApiKeySource) -> Secret:
    """Return the API key for one attempt.

    Raises:
        ConfigurationError: If there is no API key, or the function that should return it fails.
            The text names only the type of its exception, which may hold the API key.
    """
    if isinstance(source, Secret):
        return source
    if source is None:
        return default_api_key()
    try:
        # Neither the function's exception nor what it returned is shown: both may hold an API key.
        pending = source()
        if not inspect.isawaitable(pending):
            raise ConfigurationError(
                "api_key must be a string or an async function; this function is not async. "
                "Define it with async def."
            )
        api_key = await pending
        if isinstance(api_key, str):
            return make_api_key(api_key)
        problem = f"returned no API key but an object of type {type(api_key).__name__}"
    except asyncio.CancelledError:
        # A cancellation of this call goes on. One from within, such as that of a task that the
        # function awaits, would look as if the user had cancelled the call.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        problem = "was cancelled from within and returned no API key"
    except ElkImagesError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own, whose text may hold the API key
        problem = f"failed with {type(error).__name__}; fix it"
    raise ConfigurationError(f"The function passed as api_key {problem}.")


async def _empty() -> str:
    return ""
