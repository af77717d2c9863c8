"""The API key: asking for it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from elkimg_async.config import Secret, default_key, make_key
from elkimg_async.errors import ConfigurationError, ElkImagesError

ApiKeySource = Secret | Callable[[], Awaitable[str]] | None


async def resolve_api_key(source: ApiKeySource) -> Secret:
    """Return the API key for one attempt; None reads the environment.

    Raises:
        ConfigurationError: If there is no API key, or the function that should return it fails.
            The text names only the type of its exception, which may hold the API key.
    """
    if isinstance(source, Secret):
        return source
    if source is None:
        return default_key()
    try:
        pending = source()
        if not inspect.isawaitable(pending):
            raise ConfigurationError("api_key must be a string or an async function.")
        return make_key(await pending)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        problem = "was cancelled from within and returned no API key"
    except ElkImagesError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own, whose text may hold the API key
        problem = f"failed with {type(error).__name__}; fix it"
    raise ConfigurationError(f"The function passed as api_key {problem}.")
