"""`ImageStream`: awaitable, context manager and iterator in one."""

from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from elkimg_async.errors import StreamStateError
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse

T = TypeVar("T")


class EventSource(Protocol):
    """Where a stream gets its events from."""

    async def open(self) -> None:
        """Begin; raises where the server refuses."""

    def ready_event(self) -> ImageEvent | None:
        """The next event if it is here already, without waiting."""

    async def next_event(self) -> ImageEvent | None:
        """The next event; None at the end of a whole answer."""

    async def drain(self) -> ImagesResponse:
        """Read what is left, and return the whole answer."""
        ...

    def abort(self) -> None:
        """Let go of everything at once; more than once is fine."""


class ImageStream:
    """The events of one streaming call, `PartialImage` and `CompletedImage`, as they come.

    Use it as `async with client.generate(…, stream=True) as stream:`, which closes the connection at the
    end of the block whatever happens in it. `async for event in client.generate(…, stream=True):` works
    as well, and so does `stream = await client.generate(…, stream=True)`.

    Iterating ends after at least one `CompletedImage`, or raises an error.
    """

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._state = "new"
        self._busy = False
        self._iterated = False
        self._failure: BaseException | None = None
        self._response: ImagesResponse | None = None

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        if self._iterated:
            raise StreamStateError("A stream can be iterated once; ask for a new one.")
        self._iterated = True
        return self

    async def __anext__(self) -> ImageEvent:
        event = None
        if self._state == "open" and not self._busy:
            event = self._source.ready_event()
        if event is None and self._state != "finished":
            event = await self._run(self._source.next_event())
            self._state = "finished" if event is None else "open"
        if event is None:
            raise StopAsyncIteration
        return event

    async def result(self) -> ImagesResponse:
        """Read what is left, and return what the batch call would have returned."""
        if self._response is None:
            self._response = await self._run(self._source.drain())
            self._state = "finished"
        return self._response

    async def display(self) -> ImagesResponse:
        """Show the pictures in a notebook, each in the place of the one before, and return all of the answer.

        Raises:
            ConfigurationError: by the caller; no notebook runs here. Nothing was sent, unless the stream was open.
        """
        from elkimg_async.notebook import LiveDisplay

        place = LiveDisplay()
        async with self:
            async for event in self:
                place.show(event.image, finished=isinstance(event, CompletedImage))
            return await self.result()

    async def aclose(self) -> None:
        """Close the connection; more than once is fine."""
        if self._state not in ("finished", "failed"):
            self._state = "closed"
        self._source.abort()

    def __del__(self) -> None:
        if getattr(self, "_state", "new") == "open":
            self._source.abort()

    def __repr__(self) -> str:
        return f"<ImageStream {self._state}>"

    async def _open(self) -> Self:
        if self._state == "new":
            await self._run(self._source.open())
            self._state = "open"
        else:
            self._check()
        return self

    async def _run(self, step: Coroutine[Any, Any, T]) -> T:
        """Do one step, alone; a failure or cancellation ends the stream."""
        try:
            self._check()
        except StreamStateError:
            step.close()
            raise
        self._busy = True
        try:
            done = await step
        except BaseException as error:
            self._source.abort()
            if self._state != "closed":
                self._state = "failed"
                self._failure = error
                raise
            if not isinstance(error, Exception):
                raise
        else:
            if self._state != "closed":
                return done
        finally:
            self._busy = False
        raise StreamStateError("This stream was closed while it was being read.", billing="unknown")

    def _check(self) -> None:
        if self._busy:
            raise StreamStateError("Two tasks use this stream at once; give each its own.")
        if self._state == "closed":
            raise StreamStateError("This stream is closed; ask for a new one.")
        if self._state == "failed":
            raise StreamStateError(f"This stream has failed already: {self._failure!r}.")
