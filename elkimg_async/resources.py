"""The `models` attribute of a client, and names by which mocks and warnings know its calls."""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Coroutine, Generator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, overload

from elkimg_async.hints import missing_attribute
from elkimg_async.sansio.models import Model, Models
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


class ListsModels(Protocol):
    """The part of a client that `models` uses."""

    def _list_models(
        self,
        *,
        extra_headers: Mapping[str, str] | None,
        extra_query: Mapping[str, Any] | None,
        timeout: TimeoutLike | None,
        retry: RetryLike | None,
    ) -> Coroutine[Any, Any, Models]: ...


class ModelsResource:
    """The models of the server: `await client.models()`."""

    def __init__(self, client: ListsModels) -> None:
        self._client = client

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
        # `_list_models` is the client's own; only this attribute may call it.
        return named(
            self._client._list_models(  # noqa: SLF001
                extra_headers=extra_headers,
                extra_query=extra_query,
                timeout=timeout,
                retry=retry,
            ),
            "models",
        )

    def list(
        self,
        *,
        extra_headers: Mapping[str, str] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        timeout: TimeoutLike | None = None,
    ) -> "ModelsPage":
        """Return the models as openai does: await the result, or iterate with `async for`."""
        return ModelsPage(self, extra_headers, extra_query, timeout)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = "the models are in await client.models()." if name == "retrieve" else None
            raise missing_attribute(self, name, advice)


class ModelsPage:
    """The result of `client.models.list()`."""

    def __init__(
        self,
        models: ModelsResource,
        extra_headers: Mapping[str, str] | None,
        extra_query: Mapping[str, Any] | None,
        timeout: TimeoutLike | None,
    ) -> None:
        self._models = models
        self._extra_headers, self._extra_query = extra_headers, extra_query
        self._timeout = timeout

    def __await__(self) -> Generator[Any, Any, Models]:
        return self._fetch().__await__()

    def __aiter__(self) -> AsyncIterator[Model]:
        return _ModelIterator(self._fetch)

    def _fetch(self) -> Coroutine[Any, Any, Models]:
        return self._models(
            extra_headers=self._extra_headers,
            extra_query=self._extra_query,
            timeout=self._timeout,
        )


class _ModelIterator:
    """Iterator over the models, which are fetched on its first step."""

    def __init__(self, fetch: Any) -> None:
        self._fetch = fetch
        self._models: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Model:
        if self._models is None:
            self._models = iter(await self._fetch())
        for model in self._models:
            assert isinstance(model, Model)
            return model
        raise StopAsyncIteration


class ModelsAttribute:
    """The attribute `AsyncImages.models`."""

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: ListsModels, owner: type) -> ModelsResource: ...
    def __get__(self, client: ListsModels | None, owner: type) -> Self | ModelsResource:
        return self if client is None else ModelsResource(client)
