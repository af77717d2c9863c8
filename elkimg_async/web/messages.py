"""Image events as messages of server-sent events, complete or in chunks."""

import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import msgspec
import pybase64

from elkimg_async import errors, logs
from elkimg_async.errors import ElkImagesError
from elkimg_async.image import Image
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.sansio.responses import COMPLETED_TYPES, CompletedImage
from elkimg_async.web.error_body import error_body

if TYPE_CHECKING:
    from elkimg_async.jobs import JobEvent, JobEvents

_log = logging.getLogger("elkimg_async")
_CHUNK = 96 * 1024  # bytes of an image per chunk, a multiple of 3: 128 KiB of base64
_END = b"\n\n"
DONE = "[DONE]"


class Message(NamedTuple):
    """One message for a browser; `event` and `id` are None if there is no such line."""

    event: str | None
    data: str
    id: str | None = None


def messages(events: AsyncIterable[ImageEvent], *, pass_urls: bool = False) -> "Messages":
    """Return complete messages, for frameworks that write server-sent events themselves.

        @app.get("/image", response_class=EventSourceResponse)       # FastAPI
        async def image(prompt: str):
            async for event, data, id in web.messages(client.generate(prompt, stream=True)):
                yield ServerSentEvent(raw_data=data, event=event, id=id)

    The last message is `[DONE]`, or an `error` event with `error_body` as its data; nothing is
    raised.

    Args:
        events: As for `ServerSentEvents`; closed at the end.
        pass_urls: As for `ServerSentEvents`.
    """
    return Messages(events, pass_urls=pass_urls)


class Messages(AsyncIterator[Message]):
    """The messages of one stream; `aclose` ends it early."""

    def __init__(self, events: AsyncIterable[ImageEvent], *, pass_urls: bool) -> None:
        self._events = iterate(events)
        self._pass_urls = pass_urls
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if self._ended:
            await self.aclose()
            raise StopAsyncIteration
        try:
            event = await read(self._events, self._pass_urls)
            if event is not None:
                data = b"".join(_write_data(event, self._events)).removesuffix(_END)
                return Message(event.type, data.decode(), _text(event_id(event)))
            self._ended = True
            return Message(None, DONE, _text(end_id(self._events)))
        except Exception as error:  # noqa: BLE001
            self._ended = True
            return Message("error", failed(error).decode(), _text(end_id(self._events)))

    async def aclose(self) -> None:
        """Close the events; calling it again does nothing."""
        self._ended = True
        await close(self._events)


def _text(id: int | None) -> str | None:
    return None if id is None else str(id)


# --- what a relay does with events ------------------------------------------


class _PlainEvents(AsyncIterator[ImageEvent]):
    """The events of a plain stream; images that only its error carries come before the error."""

    def __init__(self, events: AsyncIterator[ImageEvent]) -> None:
        self._events = events
        self._type = COMPLETED_TYPES[0]
        self._completed: list[Image] = []
        self._failure: ElkImagesError | None = None
        self._left: Iterator[Image] = iter(())

    async def __anext__(self) -> ImageEvent:
        if self._failure is None:
            try:
                event = await anext(self._events)
            except ElkImagesError as error:
                self._failure = error
                self._left = iter([each for each in error.images if not self._has_relayed(each)])
            else:
                self._type = f"{event.type.rpartition('.')[0]}.completed"
                if isinstance(event, CompletedImage):
                    self._completed.append(event.image)
                return event
        for image in self._left:
            return CompletedImage(type=self._type, image=image)
        raise self._failure

    async def aclose(self) -> None:
        """Close the stream."""
        await close(self._events)

    def _has_relayed(self, image: Image) -> bool:
        return any(image is each for each in self._completed)


def iterate(events: AsyncIterable[ImageEvent]) -> AsyncIterator[ImageEvent]:
    """Return an iterator over events that delivers every image, whatever fails."""
    iterator = aiter(events)
    return iterator if as_job(iterator) is not None else _PlainEvents(iterator)


def as_job(events: AsyncIterator[ImageEvent]) -> "JobEvents | None":
    """Return the events as those of a job, if they are, without importing jobs."""
    return cast("JobEvents", events) if getattr(events, "resumable", False) else None


async def read(events: AsyncIterator[ImageEvent], pass_urls: bool) -> ImageEvent | None:
    """Return the next event with its image's bytes, or None at the end."""
    event = await anext(events, None)
    if event is not None and not pass_urls:
        await event.image.read()
    return event


async def close(events: AsyncIterator[ImageEvent]) -> None:
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await aclose()


def event_id(event: ImageEvent) -> int | None:
    """Return the id of a job's event; None for an event of a plain stream."""
    return getattr(event, "id", None)


def end_id(events: AsyncIterator[ImageEvent]) -> int | None:
    """Return the id of a job's end; None for a plain stream."""
    job = as_job(events)
    return None if job is None or job.job is None else job.job.last_id


def write_event(event: ImageEvent, events: AsyncIterator[ImageEvent]) -> Iterator[bytes]:
    """Yield the lines of an event in chunks, so that the base64 of an image is not held in full.

    While several viewers follow one job, it is held in full once for all of them.
    """
    head = b"event: %b\ndata: " % event.type.encode()
    number = event_id(event)
    if number is not None:
        head = b"id: %d\n" % number + head
    chunks = iter(_write_data(event, events))
    yield head + next(chunks)
    yield from chunks


def write_end(data: bytes, *, id: int | None, event: bytes = b"") -> bytes:
    """Return the lines of the last message."""
    lines = b"" if id is None else b"id: %d\n" % id
    return lines + (b"event: %b\n" % event if event else b"") + b"data: %b\n\n" % data


def _write_data(event: ImageEvent, events: AsyncIterator[ImageEvent]) -> Iterable[bytes]:
    """Return the JSON of an event and the end of its message, in chunks."""
    job = as_job(events)
    return _encode(event) if job is None else job.share(cast("JobEvent", event), _encode)


def _encode(event: ImageEvent) -> Iterator[bytes]:
    content = event.image.content
    fields = {name: _filled(getattr(event, name)) for name in event.__struct_fields__}
    for name in ("image", "id"):
        fields.pop(name, None)
    fields = {**(fields.pop("extra", None) or {}), **fields}
    if content is None:
        fields["url"] = event.image.url
    # Without line breaks, which would end the `data:` line.
    text = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    if content is None:
        yield text + _END
        return
    # The image goes between the last field and the closing brace, encoded a part at a time.
    yield text[:-1] + b',"b64_json":"'
    view = memoryview(content)
    for start in range(0, len(view) or 1, _CHUNK):
        encoded = pybase64.b64encode(view[start : start + _CHUNK])
        last = start + _CHUNK >= len(view)
        yield encoded + b'"}' + _END if last else encoded


def _filled(value: Any) -> Any:
    """Return a value of an event without the fields that the server did not fill."""
    if not isinstance(value, msgspec.Struct):
        return value
    fields = msgspec.structs.asdict(value)
    fields = {**(fields.pop("extra", None) or {}), **fields}
    return {name: _filled(field) for name, field in fields.items() if field is not None}


def failed(error: Exception) -> bytes:
    """Return the data of an `error` event in general words, and log the error in full."""
    if isinstance(error, ElkImagesError):
        described = logs.describe(error) if isinstance(error, errors.APIError) else repr(error)
        _log.warning(
            "a stream that was relayed to a browser failed: %s (request id: %s)",
            described, error.request_id,
        )  # fmt: skip
    else:
        _log.error("a stream that was relayed to a browser failed", exc_info=error)
    return msgspec.json.encode(error_body(error))
