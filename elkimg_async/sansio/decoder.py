"""Decoding of the body of a 2xx response into images, whatever its shape.

The first non-blank bytes of a body decide what it is: `{` or `[` is JSON, `<` is a web page or
SVG, the signature of an image is the image itself, and anything else is server-sent events, or else
text that is an image: a JSON string, base64, an address. What was
requested and what Content-Type claims are hints at best: gateways drop the `stream` flag, label
errors as streams, and stream to clients that did not request it.

In any form, a body is a sequence of documents. Each is searched for images first, which are
classified afterwards: *no image is ever dropped*. One that is not known to be partial is a
completed image. A body ends with at least one completed image, or with an error that carries all
images received.
"""

import logging
from collections import deque
from typing import Any, TypeAlias

import msgspec

from elkimg_async.errors import ElkImagesError, ResponseError
from elkimg_async.image import Image
from elkimg_async.sansio.documented import read_documented
from elkimg_async.sansio.error_mapping import MAX_BODY_TEXT, api_error
from elkimg_async.sansio.error_words import is_item_failure, pending_task, strength
from elkimg_async.sansio.events import COMPLETED_FIELDS, event_of, type_of
from elkimg_async.sansio.find_images import Findings, find_images, images_of
from elkimg_async.sansio.found_events import error_without_image, events_of, repeats, text_documents
from elkimg_async.sansio.image_strings import plain_images
from elkimg_async.sansio.json_images import Document, InvalidJSON, JSONDecoder, unpacked_json
from elkimg_async.sansio.reading import read_usage
from elkimg_async.sansio.responses import (
    COMPLETED_TYPES,
    CompletedImage,
    ImagesResponse,
    PartialImage,
    Usage,
)
from elkimg_async.sansio.signatures import cannot_be_image, is_image, may_begin_image
from elkimg_async.sansio.sse import ServerSentEvent, SSEDecoder

ImageEvent: TypeAlias = PartialImage | CompletedImage

_log = logging.getLogger("elkimg_async")
_BLANK = b" \t\r\n\x1e"  # RFC 7464 has a record separator before each JSON text
_BOM = b"\xef\xbb\xbf"
_PINGS = ("keepalive", "keep_alive", "ping", "heartbeat")
_PLACES = {"data", "images", "b64_json", "url"}
_DONE = "[DONE]"
_DECISIVE = 4096  # bytes that tell an SVG image from a web page
_PING_BYTES = 1024  # an open event that is longer than this is not a ping


class SkippedEvent(msgspec.Struct, frozen=True):
    """An event that was skipped, for hooks."""

    type: str | None
    reason: str


class ImagesDecoder:
    """Decoder for one body: `feed` it in any split, `finish` it, and read each `next_event`.

    An error in the body is raised by `next_event`, after the events before it. `stream` is whether
    a stream was requested; it only selects the error for a body without images. `max_bytes` limits
    the body; `length` is its expected length, 0 if unknown.
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
        self._start = b""  # the start of the body, until it is classified
        self._body: str | None = None  # JSON without an image, for the error
        self.events: deque[ImageEvent | SkippedEvent] = deque()
        """The events that `next_event` will return."""
        self._partials: list[PartialImage] = []
        self._completed: list[CompletedImage] = []
        self._response: ImagesResponse | None = None
        self._usage: Usage | None = None
        self._failed_items: list[Any] = []
        self._text: JSONDecoder | None = None  # all that is not recognized as server-sent events
        self._empty = False  # whether a document that should have an image had none
        self._suspect: Any = None  # a document that is an error unless images arrive
        self._task: tuple[str, str | None] | None = None
        self.failure: ElkImagesError | None = None
        """The error in the body; None while there is none."""
        self.done = False
        """Whether the server has announced the end."""

    def feed(self, chunk: bytes) -> bool:
        """Decode the next bytes of the body; return False if they are only blanks and pings."""
        ready = len(self.events)
        if self.failure is None:
            try:
                self._feed(chunk)
            except ElkImagesError as error:
                self._fail(error)
        if self._sse is not None and self._sse.open_bytes < _PING_BYTES:
            return len(self.events) > ready or self.failure is not None or self.done
        return (self._json or self._sse or self._image or self._page) is not None

    def finish(self) -> None:
        """Handle the end of the body."""
        if self.failure is None:
            try:
                self._finish()
            except ElkImagesError as error:
                self._fail(error)

    def next_event(self) -> ImageEvent | SkippedEvent | None:
        """Return the next decoded event, or None.

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
        """Return the complete response, once `finish` has succeeded."""
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
        """Add the images received so far to the error that ends the call."""
        completed = [event.image for event in self._completed]
        if self.failure is not None:
            completed = [*self.failure.images]
        elif self._json is not None:
            # The images of a document that will never be complete.
            completed += images_of(self._json.salvage())
        extra = [image for image in error.images if not any(image is other for other in completed)]
        error.images = (*completed, *extra)
        error.partials = error.partials or tuple(self._partials)
        if error.images and error.billing == "refused":
            error.billing = "unknown"  # what arrived may have been billed

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
            self._feed_page(self._page, chunk)
        elif self._image is not None:
            self._image.append(chunk)
        else:
            self._begin(chunk)

    def _begin(self, chunk: bytes) -> None:
        body = (self._start + chunk).lstrip(_BLANK)
        text = body.removeprefix(_BOM).lstrip(_BLANK)
        is_image = may_begin_image(text) if text and text[0] not in b"{[<" else False
        if not text or _BOM.startswith(text) or is_image is None:
            self._start = body
            return
        self._start = b""
        if text[0] in b"{[":
            self._json = JSONDecoder(self._length)
            self._first_line = text[0] == 0x7B
            self._feed_json(self._json, text)
        elif text[0] == 0x3C:
            self._page = bytearray()
            self._feed_page(self._page, text)
        elif is_image:
            self._image = [body]
        else:
            self._begin_text(body)

    def _begin_text(self, body: bytes) -> None:
        self._sse, self._text = SSEDecoder(), JSONDecoder(self._length)
        self._feed_sse(self._sse, body)

    def _feed_page(self, page: bytearray, chunk: bytes) -> None:
        """Add to a web page, unless the first bytes show that it is an SVG image."""
        decided = len(page) >= _DECISIVE
        page += chunk if not decided else chunk[: max(0, MAX_BODY_TEXT - len(page))]
        if not decided and len(page) >= _DECISIVE:
            if is_image(bytes(page)):
                self._page, self._image = None, [bytes(page)]
            else:
                del page[MAX_BODY_TEXT:]

    def _feed_json(self, decoder: JSONDecoder, chunk: bytes) -> None:
        """Decode JSON; if its first line is a complete document, the rest is read line by line."""
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
            self._handle(document, "")
        self._feed_sse(self._sse, chunk[end + 1 :])

    def _feed_sse(self, decoder: SSEDecoder, chunk: bytes) -> None:
        decoder.feed(chunk)
        if decoder.recognized:
            self._text = None
        elif self._text is not None:
            self._text.feed(chunk)
        self._handle_server_sent_events(decoder)

    def _finish(self) -> None:
        if self._page is not None and is_image(page := bytes(self._page)):
            self._page, self._image = None, [page]
        if not _BOM.startswith(self._start):
            self._begin_text(self._start)
        if self._page is not None:
            raise ResponseError(
                "The server returned a web page. Check that the base URL ends in /v1.",
                body=self._page.decode("utf-8", "replace"),
            )
        if self._image is not None:
            self._finish_image(b"".join(self._image))
        elif self._json is not None:
            decoder, self._json = self._json, None
            self._finish_json(decoder)
        elif self._sse is not None:
            self._sse.finish()
            self._handle_server_sent_events(self._sse)
            if self._text is not None and not self._sse.recognized:
                self._finish_text(self._text)
        if not self._completed:
            self._fail_without_image()

    def _finish_image(self, content: bytes) -> None:
        if cannot_be_image(content):
            raise ResponseError("The response is not an image.", content=content)
        self._emit(CompletedImage(type=type_of({}, ""), image=Image(content)))

    def _finish_text(self, decoder: JSONDecoder) -> None:
        """Handle a body that is a JSON string, plain base64, addresses, or none of these."""
        if documents := text_documents(decoder):
            self._body = decoder.text(MAX_BODY_TEXT)
            for document in documents:
                self._handle(document, "")
            return
        raise ResponseError(
            "The response is neither JSON nor an event stream.",
            body=decoder.text(MAX_BODY_TEXT),
            images=images_of(decoder.salvage()),
        )

    def _finish_json(self, decoder: JSONDecoder) -> None:
        self._body = decoder.text(MAX_BODY_TEXT)
        try:
            documents = decoder.finish_all()
        except InvalidJSON as error:
            problem = str(error)
        else:
            for document in documents:
                self._handle(document, "")
            return
        raise ResponseError(
            f"The response is incomplete or not JSON: {problem}.",
            body=self._body,
            images=images_of(decoder.salvage()),
        )

    def _fail_without_image(self) -> None:
        """Raise the error for a body without a completed image."""
        raise error_without_image(
            failed_item=self._failed_items[0] if self._failed_items else self._suspect,
            task=None if self._failed_items else self._task,
            body=self._body,
            is_empty=self._body is not None or self._empty,
            streamed=self._sse is not None or self._stream,
            partials=len(self._partials),
        )

    def _handle_server_sent_events(self, decoder: SSEDecoder) -> None:
        while (event := decoder.next_event()) is not None:
            if not self.done:
                self._handle_server_sent_event(event)

    def _handle_server_sent_event(self, event: ServerSentEvent) -> None:
        data = event.data
        try:
            documents = [*map(unpacked_json, data.finish_all())]
        except InvalidJSON:
            self._handle_text(event, data.text(data.size).removeprefix("data:").strip())
            return
        for document in documents:
            if isinstance(document.value, str) and not document.images:
                self._handle_text(event, document.value)
            else:
                self._handle(document, event.name)

    def _handle_text(self, event: ServerSentEvent, text: str) -> None:
        """Handle data that is not JSON, but may still contain images."""
        if text == _DONE:
            self.done = True
            return
        if event.name == "error":
            raise api_error(200, text[:MAX_BODY_TEXT])
        images = images_of(event.data.salvage())
        plain = () if images else images_of([Document(value) for value in plain_images(text)])
        if images or plain:
            values = (document.value for document in event.data.salvage())
            cut = next(
                (value for value in values if isinstance(value, dict) and "type" in value), {}
            )
            if images and not event.terminated and not cut and not event.name:
                raise ResponseError(
                    "The stream was cut off within an event.",
                    images=images,
                    body=text[:MAX_BODY_TEXT],
                )
            for image in images or plain:
                self._emit(event_of(type_of(cut, event.name), image, (cut,)))
        elif text and event.terminated:
            self._skip(event.name or None, "its data is not JSON")

    def _handle(self, document: Document, name: str) -> None:
        """Handle one document: first its images, then its other fields."""
        if not self._completed and (documented := read_documented(document, name)):
            for event in documented:
                self._emit(event)
            return
        value, found = document.value, find_images(document)
        fields = value if isinstance(value, dict) else {}
        stated = fields.get("type") if isinstance(fields.get("type"), str) else None
        if is_item_failure(stated or name) and not found.found:
            self._note_failed_item(document.restore(value), stated or name)
            return
        certainty = 2 if name == "error" else strength(value, name)
        # An error among the items of a list belongs to one of several images.
        if certainty == 2 and not (isinstance(value, list) and found.found):
            error = api_error(200, document.restore(value))
            error.images = found.images
            raise error
        if self._has_broken_partial(found, stated or name):
            return
        events = events_of(found, fields, name, streamed=self._sse is not None)
        if repeats(events, self._completed):
            self._usage = read_usage(fields.get("usage")) or self._usage
            self._skip(stated or name or None, "it repeats images that were delivered before")
            return
        for event in events:
            self._emit(event)
        for item in found.without:
            if isinstance(item, dict) and strength(item) == 2:
                self._note_failed_item(document.restore(item), stated)
        empty = sum(
            not isinstance(item, dict) or not item or not item.keys().isdisjoint(_PLACES)
            for item in found.without
        )
        if not found.found:
            self._handle_without_image(document, stated, name, certainty)
        elif empty:
            _log.warning("%d of the images in the response are empty and were skipped", empty)

    def _handle_without_image(
        self, document: Document, stated: str | None, name: str, certainty: int
    ) -> None:
        """Record the fields of a document without an image, for the end of the body."""
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
        reason = "it has no image" if is_final or untyped else "its type is unknown"
        self._skip(stated or (None if untyped else name), reason)

    def _has_broken_partial(self, found: Findings, type_: str | None) -> bool:
        """Return whether there is only a broken partial image; raise for other broken ones."""
        if not found.broken:
            return False
        first = found.broken[0]
        total = len(found.found) + sum(not broken.beside for broken in found.broken)
        if type_ and "partial" in type_ and not found.found:
            self._skip(type_, f"its image is broken: {first.reason}")
            return True
        which = f"Image {first.number} of {total}" if total > 1 else "The image"
        count = len(found.found) + len(self._completed)
        kept = f" {count} valid images are in .images." if count else ""
        raise ResponseError(
            f"{which} is broken: {first.reason}.{kept}", images=found.images, content=first.content
        )

    def _note_failed_item(self, item: Any, type_: str | None) -> None:
        self._failed_items.append(item)
        error = api_error(200, item)
        reason = error.message or error.code or "the server gave no reason"
        self._skip(type_, f"one image failed: {reason}")

    def _emit(self, event: ImageEvent) -> None:
        if isinstance(event, CompletedImage):
            self._completed.append(event)
        else:
            self._partials.append(event)
        self.events.append(event)

    def _skip(self, type_: str | None, reason: str) -> None:
        self.events.append(SkippedEvent(type_, reason))
