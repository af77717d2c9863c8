"""The body of a 2xx response → images, whatever its shape.

The first bytes of a body that are not blank decide what it is: `{` or `[` is JSON, `<` is a web
page, the signature of an image is the image itself, and the rest are server-sent events. What was
requested and what Content-Type claims are hints at best: gateways drop the `stream` flag, label
errors as streams, and stream to clients that did not ask for it.

However it came, a body is a sequence of documents. Each is searched for images first, and only
then is decided what they are: *no image is ever dropped*. One that is not known to be partial is a
completed image. A body ends with at least one completed image, or in an error that carries all
images that came.
"""

import logging
from collections import deque
from typing import Any, TypeAlias

import msgspec

from elkimg_async.errors import (
    ElkImagesError,
    EmptyResultError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.image import Image
from elkimg_async.sansio.error_mapping import MAX_BODY_TEXT, api_error
from elkimg_async.sansio.error_words import is_item_failure, pending_task, strength
from elkimg_async.sansio.events import COMPLETED_FIELDS, event_of, type_around, type_of
from elkimg_async.sansio.find_images import Findings, find_images, images_of
from elkimg_async.sansio.json_images import Document, InvalidJSON, JSONDecoder
from elkimg_async.sansio.reading import read_usage
from elkimg_async.sansio.responses import (
    COMPLETED_TYPES,
    CompletedImage,
    ImagesResponse,
    PartialImage,
    Usage,
)
from elkimg_async.sansio.sse import ServerSentEvent, SSEDecoder

ImageEvent: TypeAlias = PartialImage | CompletedImage

_log = logging.getLogger("elkimg_async")
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_RAW_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")
_PINGS = ("keepalive", "keep_alive", "ping", "heartbeat")
_PLACES = {"data", "images", "b64_json", "url"}
_DONE = "[DONE]"
_PING_BYTES = 1024  # an event that has not ended yet and is longer than this is no ping


class SkippedEvent(msgspec.Struct, frozen=True):
    """An event that is passed over, for hooks to see."""

    type: str | None
    reason: str


class ImagesDecoder:
    """Decoder for one body: `feed` it in any split, `finish` it, and take each `next_event`.

    What is wrong with the body is raised by `next_event`, after the events before it. `stream` is
    what was requested; it only chooses the error for a body without images. `max_bytes` limits the
    body; `length` is how long it should be, 0 when unknown.
    """

    def __init__(self, *, stream: bool, max_bytes: int, length: int = 0) -> None:
        self._stream = stream
        self._length = length
        self._remaining = self._max_bytes = max_bytes
        self._json: JSONDecoder | None = None
        self._first_line = False  # whether the first line of JSON is still open
        self._sse: SSEDecoder | None = None
        self._page: bytearray | None = None
        self._image: list[bytes] | None = None  # the chunks of an image that is the body itself
        self._start = b""  # the beginning, while it is not clear what it is
        self._body: str | None = None  # JSON in which there was no image, for the error
        self.events: deque[ImageEvent | SkippedEvent] = deque()
        """What `next_event` will return."""
        self._partials: list[PartialImage] = []
        self._completed: list[CompletedImage] = []
        self._response: ImagesResponse | None = None
        self._usage: Usage | None = None
        self._failed_items: list[Any] = []
        self._empty = False  # whether something that should have an image had none
        self._suspect: Any = None  # a document that is an error unless images come
        self._task: tuple[str, str | None] | None = None
        self.failure: ElkImagesError | None = None
        """What is wrong with the body; None while nothing is."""
        self.done = False
        """Whether the server has said that nothing follows."""

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the body; return False if they are only blanks and pings."""
        ready = len(self.events)
        if self.failure is None:
            try:
                self._feed(chunk)
            except ElkImagesError as error:
                self._fail(error)
        if self._sse is not None and self._sse.open_bytes < _PING_BYTES:
            return len(self.events) > ready or self.failure is not None or self.done
        begun = self._json or self._sse or self._image or self._page
        return begun is not None

    def finish(self) -> None:
        """Take the end of the body."""
        if self.failure is None:
            try:
                self._finish()
            except ElkImagesError as error:
                self._fail(error)

    def next_event(self) -> ImageEvent | SkippedEvent | None:
        """Return the next event that is ready, or None.

        Raises:
            APIError: If the server reports an error inside a 2xx response.
            EmptyResultError, StreamIncompleteError: If the body has no completed image.
            ResponseError: If the body cannot be used for another reason.
        """
        if self.events:
            return self.events.popleft()
        if self.failure is not None:
            raise self.failure
        return None

    def response(self) -> ImagesResponse:
        """Return the whole response, once `finish` has succeeded."""
        if self._response is None:
            last = self._completed[-1]
            self._response = ImagesResponse(
                [event.image for event in self._completed],
                created=last.created_at,
                usage=last.usage or self._usage,
                extra=last.extra,
                **{name: getattr(last, name) for name in COMPLETED_FIELDS},
            )
        return self._response

    def attach_images(self, error: ElkImagesError) -> None:
        """Add the images that have come so far to the error that ends the call."""
        completed = [event.image for event in self._completed]
        if self.failure is not None:
            completed = [*self.failure.images]
        elif self._json is not None:
            # Those of a document that will never be whole.
            completed += images_of(self._json.salvage())
        extra = [image for image in error.images if not any(image is other for other in completed)]
        error.images = (*completed, *extra)
        error.partials = error.partials or tuple(self._partials)
        if error.images and error.billing == "refused":
            error.billing = "unknown"  # what came was made, whatever became of the rest

    def _fail(self, error: ElkImagesError) -> None:
        error.__context__ = None
        self.attach_images(error)
        self.failure = error

    def _feed(self, chunk: bytes) -> None:
        self._remaining -= len(chunk)
        if self._remaining < 0:
            raise ResponseError(
                f"The response is longer than {self._max_bytes:,} bytes. "
                "Raise the limit with Limits(max_response_bytes=…)."
            )
        if self._sse is not None:
            self._feed_sse(self._sse, chunk)
        elif self._json is not None:
            self._feed_json(self._json, chunk)
        elif self._page is not None:
            self._page += chunk[: MAX_BODY_TEXT - len(self._page)]
        elif self._image is not None:
            self._image.append(chunk)
        else:
            self._begin(chunk)

    def _begin(self, chunk: bytes) -> None:
        body = (self._start + chunk).lstrip(_BLANK)
        text = body.removeprefix(_BOM).lstrip(_BLANK)
        if (
            not text
            or _BOM.startswith(text)
            or any(known.startswith(text) for known in _RAW_IMAGES)
        ):
            self._start = body
            return
        self._start = b""
        if text[0] in b"{[":
            self._json = JSONDecoder(self._length)
            self._first_line = text[0] == 0x7B
            self._feed_json(self._json, text)
        elif text[0] == 0x3C:
            self._page = bytearray(text[:MAX_BODY_TEXT])
        elif body.startswith(_RAW_IMAGES):
            self._image = [body]
        else:
            self._sse = SSEDecoder()
            self._feed_sse(self._sse, body)

    def _feed_json(self, decoder: JSONDecoder, chunk: bytes) -> None:
        """Take JSON; where its first line is a whole document, the rest is read line by line."""
        if not self._first_line:
            decoder.feed(chunk)
            return
        start = decoder.feed_base64(chunk, 0)
        end = chunk.find(b"\n", start)
        decoder.feed(chunk, start, len(chunk) if end < 0 else end)
        if end < 0:
            return
        self._first_line = False
        try:
            documents = decoder.finish_all()
        except InvalidJSON:
            decoder.feed(chunk, end)
            return
        self._body = decoder.text(MAX_BODY_TEXT)
        self._json = None
        self._sse = SSEDecoder()
        for document in documents:
            self._take(document, "")
        self._feed_sse(self._sse, chunk[end + 1 :])

    def _feed_sse(self, decoder: SSEDecoder, chunk: bytes) -> None:
        if not decoder.recognized:
            self._start += chunk[: MAX_BODY_TEXT - len(self._start)]
        decoder.feed(chunk)
        self._take_server_sent_events(decoder)

    def _finish(self) -> None:
        if self._page is not None:
            raise ResponseError(
                "The server returned a web page. Check that the base URL ends in /v1.",
                body=self._page.decode("utf-8", "replace"),
            )
        if self._image is not None:
            self._complete(CompletedImage(type=type_of({}, ""), image=Image(b"".join(self._image))))
        elif self._json is not None:
            decoder, self._json = self._json, None
            self._finish_json(decoder)
        elif self._sse is not None:
            self._sse.finish()
            self._take_server_sent_events(self._sse)
        if not self._completed:
            self._fail_without_image()

    def _finish_json(self, decoder: JSONDecoder) -> None:
        self._body = decoder.text(MAX_BODY_TEXT)
        try:
            documents = decoder.finish_all()
        except InvalidJSON as error:
            problem = str(error)
        else:
            for document in documents:
                self._take(document, "")
            return
        raise ResponseError(
            f"The response is incomplete or not JSON: {problem}.",
            body=self._body,
            images=images_of(decoder.salvage()),
        )

    def _fail_without_image(self) -> None:
        """Raise what the lack of a completed image means."""
        if self._failed_items:
            raise api_error(200, self._failed_items[0])
        if self._task is not None:
            task, status = self._task
            raise EmptyResultError(
                f"The server started an asynchronous job instead of returning an image: task {task}"
                + (f" ({status})." if status else ".")
                + " Fetch its result from the server, or use a model that returns images at once.",
                body=self._body,
                task_id=task,
            )
        if self._suspect is not None:
            raise api_error(200, self._suspect)
        if self._sse is not None and not self._sse.recognized and self._body is None:
            raise ResponseError(
                "The response is neither JSON nor an event stream.",
                body=self._start.decode("utf-8", "replace").strip(),
            )
        if (self._body is not None or self._empty) and not self._partials:
            raise EmptyResultError(
                "The server reported success but returned no image.", body=self._body
            )
        if self._sse is None and not self._stream:
            raise EmptyResultError("The server reported success with an empty body.")
        raise StreamIncompleteError(
            "The stream ended without a completed image"
            + (f", after {len(self._partials)} partial images." if self._partials else ".")
        )

    def _take_server_sent_events(self, decoder: SSEDecoder) -> None:
        while (event := decoder.next_event()) is not None:
            if not self.done:
                self._take_server_sent_event(event)

    def _take_server_sent_event(self, event: ServerSentEvent) -> None:
        data = event.data
        try:
            document = data.finish()
        except InvalidJSON:
            self._take_text(event, data.text(MAX_BODY_TEXT).removeprefix("data:").strip())
            return
        if isinstance(document.value, str) and not document.images:
            self._take_text(event, document.value)
        else:
            self._take(document, event.name)

    def _take_text(self, event: ServerSentEvent, text: str) -> None:
        """Take data that is not JSON, in which there may be images all the same."""
        if text == _DONE:
            self.done = True
            return
        if event.name == "error":
            raise api_error(200, text)
        images = images_of(event.data.salvage()) or find_images(Document([text])).images
        if images:
            values = (document.value for document in event.data.salvage())
            cut = next(
                (value for value in values if isinstance(value, dict) and "type" in value), {}
            )
            if not event.terminated and not cut and not event.name:
                raise ResponseError(
                    "The stream was cut off within an event.",
                    images=images,
                    body=text[:MAX_BODY_TEXT],
                )
            for image in images:
                self._emit(event_of(type_of(cut, event.name), image, (cut,)))
        elif text and event.terminated:
            self._skip(event.name or None, "its data is not JSON")

    def _take(self, document: Document, name: str) -> None:
        """Take one document: its images first, then what else it says."""
        value = document.value
        found = find_images(document)
        stated = value.get("type") if isinstance(value, dict) else None
        stated = stated if isinstance(stated, str) else None
        if is_item_failure(stated or name) and not found.found:
            self._note_failed_item(document.restore(value), stated or name)
            return
        certainty = 2 if name == "error" else strength(value, name)
        # An error among the items of a list is that of one image of several.
        if certainty == 2 and not (isinstance(value, list) and found.found):
            error = api_error(200, document.restore(value))
            error.images = found.images
            raise error
        if self._has_broken_partial(found, stated or name):
            return
        fields = value if isinstance(value, dict) else {}
        for entry in found.found:
            type_ = type_around(entry.chain or (fields,), name)
            self._emit(event_of(type_, entry.image, entry.chain, key=entry.key, rest=found.extra))
        for item in found.without:
            if isinstance(item, dict) and strength(item) == 2:
                self._note_failed_item(document.restore(item), stated)
        empty = sum(
            not isinstance(item, dict) or not item or not item.keys().isdisjoint(_PLACES)
            for item in found.without
        )
        if not found.found:
            self._take_without_image(document, stated, name, certainty)
        elif empty:
            _log.warning("%d of the images in the response are empty and left out", empty)

    def _take_without_image(
        self, document: Document, stated: str | None, name: str, certainty: int
    ) -> None:
        """Note what a document without an image says, for the end."""
        value = document.value
        fields = value if isinstance(value, dict) else {}
        self._usage = read_usage(fields.get("usage")) or self._usage
        self._task = self._task or pending_task(value)
        untyped = stated is None and name in ("", "message")
        if certainty and untyped:
            self._suspect = document.restore(value)
        is_final = not untyped and type_of(fields, name) in COMPLETED_TYPES
        self._empty |= is_final or not fields.keys().isdisjoint(_PLACES)
        if (
            self._sse is None
            or stated in _PINGS
            or name in _PINGS
            or (untyped and "usage" in fields)
        ):
            return
        reason = "it has no image" if is_final or untyped else "its type is not known"
        self._skip(stated or (None if untyped else name), reason)

    def _has_broken_partial(self, found: Findings, type_: str | None) -> bool:
        """Return whether all there is is a broken partial image; raise for other broken ones."""
        if not found.broken:
            return False
        first = found.broken[0]
        total = len(found.found) + sum(not broken.beside for broken in found.broken)
        if type_ and "partial" in type_ and not found.found:
            self._skip(type_, f"its image is broken: {first.reason}")
            return True
        which = f"Image {first.number} of {total}" if total > 1 else "The image"
        count = len(found.found) + len(self._completed)
        kept = f" {count} good images are in .images." if count else ""
        raise ResponseError(
            f"{which} is broken: {first.reason}.{kept}", images=found.images, content=first.content
        )

    def _note_failed_item(self, item: Any, type_: str | None) -> None:
        self._failed_items.append(item)
        said = api_error(200, item)
        self._skip(
            type_, f"one image failed: {said.message or said.code or 'the server names no reason'}"
        )

    def _emit(self, event: ImageEvent) -> None:
        if isinstance(event, CompletedImage):
            self._complete(event)
        else:
            self._partials.append(event)
            self.events.append(event)

    def _complete(self, event: CompletedImage) -> None:
        self._completed.append(event)
        self.events.append(event)

    def _skip(self, type_: str | None, reason: str) -> None:
        self.events.append(SkippedEvent(type_, reason))
