"""Base of the iterators over the events of one call."""

from abc import abstractmethod
from collections.abc import Generator
from typing import Any, Self

from elkimg_async.hints import AsyncIterableOnly


class EventIterator(AsyncIterableOnly):
    """An async iterator that can be awaited, or entered, to open it early.

    Leaving the `async with` block closes it.
    """

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Close the events; idempotent."""

    @abstractmethod
    async def _open(self) -> Self: ...
