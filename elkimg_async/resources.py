"""The `models` attribute of a client, and names by which mocks and warnings know its calls."""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from elkimg_async.call import Call
from elkimg_async.hints import missing_attribute
from elkimg_async.sansio.endpoints import MODELS
from elkimg_async.sansio.models import Model, Models
from elkimg_async.settings import Settings, change_settings
from elkimg_async.transport.session import Transport
from elkimg_async.types import RetryLike, TimeoutLike

T = TypeVar("T")


def returns_awaitable(function: T) -> T:
    """Mark a call of `AsyncImages` as returning an awaitable, so that `AsyncMock(spec=…)` does too.

    A function also gets that class in its qualified name, wherever it is defined.
    """
    if inspect.isfunction(function):
        function.__qualname__ = f"AsyncImages.{function.__name__}"
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)  # type: ignore[arg-type]
    else:
        function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
    return function


def named(result: T, name: str) -> T:
    """Name a coroutine after the public call, for the warning about a missing await."""
    if isinstance(result, Coroutine):
        result.__qualname__ = f"AsyncImages.{name}"  # type: ignore[attr-defined]
        result.__name__ = name  # type: ignore[attr-defined]
    return result


class ModelsResource:
    """The models of the server: `await client.models()`."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        self._settings, self._transport = settings, transport

    def __call__(
        self,
        *,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        timeout: TimeoutLike | None = None,
        retry: RetryLike | None = None,
    ) -> Coroutine[Any, Any, Models]:
        """Return the server's models, in its order; `Model.is_image` marks those for images.

        Afterwards, calls that use a model due to be shut down within 30 days log a warning.

        Args:
            extra_headers: Additional headers of this request.
            extra_query: Additional query parameters of this request.
            timeout: Time limits of this call in seconds; a number is the total. None: the client's.
            retry: When to retry this call; a number is the maximum number of retries. None: the
                client's.

        Raises:
            ElkImagesError: As for `generate`. The call costs nothing, so every transient failure is
                retried.
        """
        return named(self._fetch(extra_headers, extra_query, timeout, retry), "models")

    async def _fetch(
        self,
        extra_headers: Mapping[str, str] | None,
        extra_query: Mapping[str, Any] | None,
        timeout: TimeoutLike | None,  # noqa: ASYNC109 - `Timeout` has more limits
        retry: RetryLike | None,
    ) -> Models:
        settings = change_settings(self._settings, timeout=timeout, retry=retry, query=extra_query)
        models = await Call(settings, self._transport, MODELS, extra_headers=extra_headers).result()
        for model in models:
            if model.shutdown_date is not None:
                settings.shutdowns.setdefault(model.id, model.shutdown_date)
        return models

    def list(
        self,
        *,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        timeout: TimeoutLike | None = None,
    ) -> "ModelsPage":
        """Return the models as openai does: await the result, or iterate with `async for`."""
        return ModelsPage(
            partial(self, extra_headers=extra_headers, extra_query=extra_query, timeout=timeout)
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = "the models are in await client.models()." if name == "retrieve" else None
            raise missing_attribute(self, name, advice)


class ModelsPage:
    """The result of `client.models.list()`."""

    def __init__(self, fetch: Callable[[], Coroutine[Any, Any, Models]]) -> None:
        self._fetch = fetch

    def __await__(self) -> Generator[Any, Any, Models]:
        return self._fetch().__await__()

    async def __aiter__(self) -> AsyncIterator[Model]:
        for model in await self._fetch():
            yield model


class ModelsAttribute:
    """The attribute `AsyncImages.models`."""

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: object, owner: type) -> ModelsResource: ...
    def __get__(self, client: Any, owner: type) -> Self | ModelsResource:
        if client is None:
            return self
        return ModelsResource(client._settings, client._transport)  # noqa: SLF001 - its part
