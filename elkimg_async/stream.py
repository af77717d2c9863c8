"""`ImageStream`, the events of a streaming call: awaitable, context manager and iterator in one."""

import dataclasses
from abc import abstractmethod
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TypeVar

from elkimg_async.errors import StreamStateError
from elkimg_async.hints import AsyncIterableOnly, missing_attribute
from elkimg_async.image import Image
from elkimg_async.logs import WarningSite
from elkimg_async.notebook import LiveDisplay
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse

T = TypeVar("T")

_OF_RESPONSES = frozenset(field.name for field in dataclasses.fields(ImagesResponse))


class EventSource(Protocol):
    """The call behind a stream."""

    async def open(self) -> None:
        """Send the request until a response begins with status 2xx, or raise."""

    def ready_event(self) -> ImageEvent | None:
        """Return the next event if it has been decoded already, else None."""

    async def next_event(self) -> ImageEvent | None:
        """Return the next event, or None when the response is complete."""

    async def result(self) -> ImagesResponse:
        """Read the rest of the response, and return all of it."""
        ...

    def abort(self) -> None:
        """Release everything at once; idempotent."""


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


class ImageStream(EventIterator):
    """The events of one streaming call, `PartialImage` and `CompletedImage`, as they arrive.

    Use it as `async with client.generate(…, stream=True) as stream:`, which closes the connection
    at the end of the block, whatever happens in it. `async for event in client.generate(…,
    stream=True):` works as well, and so does `stream = await client.generate(…, stream=True)`,
    which raises at once if the server returns an error.

    Iteration ends after at least one `CompletedImage`, or raises.
    """

    _usage = "async with client.generate(…, stream=True) as stream: async for event in stream: …"

    def __init__(self, source: EventSource) -> None:
        self._source = source
        # "new" until a step has succeeded, then "open"; "finished" after the last event, "failed"
        # after an error or cancellation, "closed" by `aclose`. The last three are final.
        self._state = "new"
        self._busy = False
        self._iterated = False
        self._failure: BaseException | None = None
        self._response: ImagesResponse | None = None
        self._created_at = WarningSite()

    def __aiter__(self) -> Self:
        if self._iterated:
            raise StreamStateError(
                "A stream can be iterated once; call generate again for another."
            )
        self._iterated = True
        return self

    async def __anext__(self) -> ImageEvent:
        event = None
        # Several events may have arrived in one chunk. Those are returned without entering the
        # call's deadline and retry loop again.
        if self._state == "open" and not self._busy:
            event = self._source.ready_event()
        if event is None and self._state != "finished":
            event = await self._run(self._source.next_event())
            self._state = "finished" if event is None else "open"
        if event is None:
            raise StopAsyncIteration
        return event

    async def result(self) -> ImagesResponse:
        """Read the rest of the stream, and return what the batch call would have returned."""
        if self._response is None:
            self._response = await self._run(self._source.result())
            self._state = "finished"
        return self._response

    async def display(self) -> ImagesResponse:
        """Show the images in a notebook, each replacing the previous one, and return the response.

        Raises:
            ConfigurationError: If the code is not running in a notebook; the stream is closed.
        """
        try:
            output = LiveDisplay()
        except BaseException:
            await self.aclose()
            raise
        async with self:
            async for event in self:
                output.show(event.image, finished=isinstance(event, CompletedImage))
            return await self.result()

    async def aclose(self) -> None:
        """Close the connection; idempotent."""
        if self._state not in ("finished", "failed"):
            self._state = "closed"
        self._source.abort()

    async def close(self) -> None:
        """Close the connection as `aclose` does; openai's name for it."""
        await self.aclose()

    def __del__(self) -> None:
        state = getattr(self, "_state", "closed")
        if state == "open":
            # As when `break` leaves an `async for` without `async with`: nobody can close it later.
            self._source.abort()
        elif state == "new" and not self._iterated:
            self._created_at.warn(
                f"An ImageStream created at {self._created_at} was never read; use "
                "`async with client.generate(…, stream=True) as stream:`.",
                ResourceWarning,
            )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = None
            if name in _OF_RESPONSES:
                advice = f"the response has it, as in (await stream.result()).{name}."
            elif not name.startswith("_") and hasattr(Image, name):
                advice = f"each event has an image, as in event.image.{name}."
            elif name == "response":
                advice = "its details are in (await stream.result()).meta."
            raise missing_attribute(self, name, advice)

        def __getitem__(self, index: object) -> NoReturn:
            raise TypeError(
                "A stream has no images to index; read it first, as in (await stream.result())[0]."
            )

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
        """Run one step, one at a time; a failure or cancellation ends the stream."""
        try:
            self._check()
        except StreamStateError:
            step.close()  # else Python would warn that it was never awaited
            raise
        # The call behind the stream has one deadline, which can be entered by one task at a time.
        self._busy = True
        try:
            result = await step
        except BaseException as error:
            self._source.abort()
            if self._state != "closed":
                self._state = "failed"
                self._failure = error
                raise
            # Another task closed the stream meanwhile, so the step failed for that reason, unless
            # it was cancelled as well: a cancellation is never replaced.
            if not isinstance(error, Exception):
                raise
        else:
            if self._state != "closed":
                return result
            # Closed by another task, although the step succeeded.
        finally:
            self._busy = False
        raise StreamStateError("The stream was closed while it was being read.", billing="unknown")

    def _check(self) -> None:
        if self._busy:
            raise StreamStateError("Two tasks are reading this stream; use one stream per task.")
        if self._state == "closed":
            raise StreamStateError("The stream is closed; call generate again for another.")
        if self._state == "failed":
            raise StreamStateError(f"The stream has already failed: {self._failure!r}.")
