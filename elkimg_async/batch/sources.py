"""The requests of a run, read as they are needed.

Collections in memory are read in place, and async iterables in the event loop. Any other iterable
may block (a file, a pipe, a database), so it is read in its own thread, a bounded number of items
ahead.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import (
    AsyncIterator,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from typing import Any, Protocol

from elkimg_async.errors import BatchError, InvalidRequestError

_IN_MEMORY = (list, tuple, set, frozenset, deque, range, KeysView, ItemsView, ValuesView)


class RequestSource(Protocol):
    """Source of the requests of a run."""

    async def next(self) -> Any:
        """Return the next item; raise StopAsyncIteration at the end."""

    def close(self) -> None:
        """Stop reading."""


def open_source(requests: Any, *, ahead: int) -> RequestSource:
    """Return the source that suits an iterable; `ahead` limits how far a thread reads ahead."""
    if isinstance(requests, _IN_MEMORY):
        return _MemorySource(iter(requests))
    if hasattr(requests, "__aiter__"):
        return _AsyncSource(aiter(requests))
    return _ThreadSource(requests, ahead)


def check_iterable(requests: Any) -> None:
    """Check that the input is not a single request, and can be iterated over.

    Raises:
        InvalidRequestError: If it is not an iterable of requests.
    """
    kind = type(requests).__name__
    if isinstance(requests, (str, bytes)) or hasattr(requests, "__struct_fields__"):
        problem = "a single request"
    elif hasattr(requests, "columns") and hasattr(requests, "shape"):
        raise InvalidRequestError(
            f"map takes an iterable of prompts or requests; iterating over this {kind} yields its "
            'columns. Pass one column, as in frame["prompt"], or its rows as mappings: '
            'frame.to_dict("records") in pandas, frame.to_dicts() in polars.',
            param="requests",
        )
    elif isinstance(requests, Mapping) or (
        hasattr(requests, "keys") and not hasattr(requests, "dtype")  # a pandas Series has both
    ):
        problem = "a mapping"
    elif not (hasattr(requests, "__iter__") or hasattr(requests, "__aiter__")):
        problem = f"of type {kind}"
    else:
        return
    raise InvalidRequestError(
        f"map takes an iterable of prompts or requests; this is {problem}. Put a single request "
        "into a list, or use generate or edit.",
        param="requests",
    )


class _MemorySource:
    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    async def next(self) -> Any:
        for item in self._items:
            return item
        raise StopAsyncIteration

    def close(self) -> None:
        self._items = iter(())


class _AsyncSource:
    def __init__(self, items: AsyncIterator[Any]) -> None:
        self._items = items

    async def next(self) -> Any:
        try:
            return await anext(self._items)
        except asyncio.CancelledError:
            # An iterator may raise this by itself, when a task that it awaits was cancelled. If
            # nobody cancels this task, that is an error of the input, and the run must not hang.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        raise BatchError("The requests cannot be read: their iterator was cancelled from within.")

    def close(self) -> None:
        """Do nothing: the iterable is read in `next` only."""


class _EndOfItems(Exception):  # noqa: N818 - the end of the items, not an error
    """The end of the items; its cause is what the iterable raised."""


class _ThreadSource:
    """Items from a thread."""

    def __init__(self, items: Iterable[Any], ahead: int) -> None:
        self._iterable = items
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._room = threading.Semaphore(ahead)
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._thread: threading.Thread | None = None

    async def next(self) -> Any:
        if self._thread is None:
            # As if the iterable were read by the caller, whose context it may depend on.
            run = contextvars.copy_context().run
            # A daemon thread, because nothing can interrupt a read that never ends.
            self._thread = threading.Thread(
                target=run, args=(self._read,), name="elkimg-map-input", daemon=True
            )
            self._thread.start()
        item = await self._items.get()
        if isinstance(item, _EndOfItems):
            raise item.__cause__ or StopAsyncIteration
        self._room.release()
        return item

    def close(self) -> None:
        self._closed = True
        self._room.release()  # the thread may be waiting for room

    def _read(self) -> None:
        # Room first, then the item: of a database or a pipe no more is read than is taken over,
        # `ahead` items at most.
        end = _EndOfItems()
        try:
            self._room.acquire()
            for item in self._iterable:
                self._put(item)
                self._room.acquire()
                if self._closed:
                    return
        except Exception as error:  # noqa: BLE001 - it is raised in the loop
            end.__cause__ = error
        except BaseException as error:  # noqa: BLE001 - in the loop it would end the process
            end.__cause__ = BatchError(f"The requests cannot be read: {error!r}.")
        self._put(end)

    def _put(self, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
