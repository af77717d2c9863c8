"""The body of a 2xx answer → images, whatever its shape.

What a body is, is decided by its first bytes that are not blank: `{` or `[` is JSON,
`<` is a web page, and the rest are server-sent events. What was asked for and what
Content-Type claims are hints at best: gateways drop the `stream` flag, label errors as
streams, and stream to those who did not ask.

However it came, an answer is a sequence of events that ends with at least one
completed image, or an error.
"""

import logging
from collections import deque
from typing import Any, TypeAlias

import msgspec

from elkimg_async.errors import (
    APIError,
    ElkImagesError,
    EmptyResultError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.image import Image
from elkimg_async.sansio.error_mapping import BODY_IN_ERRORS, api_error
from elkimg_async.sansio.json_images import (
    BadBase64,
    Document,
    InvalidJSON,
    JSONDecoder,
    SplicedDocument,
)
from elkimg_async.sansio.responses import (
    COMPLETED_TYPES,
    PARTIAL_TYPES,
    CompletedImage,
    ImagesResponse,
    PartialImage,
    Usage,
    read_completed,
    read_number,
    read_partial,
    read_plain_answer,
    read_plain_partial,
    read_side_data,
    read_slot,
    read_slots,
    read_str,
    read_usage,
)
from elkimg_async.sansio.sse import ServerSentEvent, SSEDecoder

ImageEvent: TypeAlias = PartialImage | CompletedImage

_log = logging.getLogger("elkimg_async")
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_ERROR_TYPES = ("error", "upstream_error")
_PINGS = ("keepalive", "ping")
_DONE = "[DONE]"
_PING_BYTES = 1024  # an event that has not ended yet and is longer than this is no ping


class SkippedEvent(msgspec.Struct, frozen=True):
    """An event that is passed over, for hooks to see."""

    type: str | None
    reason: str


class AnswerDecoder:
    """One body, fed in any split: `feed` bytes, `finish` when it ends, and ask for `next_event`.

    What is wrong with the body is raised by `next_event`, after the events before it.
    `stream` is what was asked for; it only chooses the error for an answer without images.
    `max_bytes` limits the body; `length` is how long it says it is, 0 where it does not say.
    """

    def __init__(self, *, stream: bool, max_bytes: int, length: int = 0) -> None:
        self._stream = stream
        self._length = length
        self._left = self._max_bytes = max_bytes
        self._json: JSONDecoder | None = None
        self._sse: SSEDecoder | None = None
        self._page: bytes | None = None
        self._start = b""  # the beginning, for as long as it is not known what it is
        self.events: deque[ImageEvent | SkippedEvent] = deque()
        """What `next_event` will give."""
        self._partials: list[PartialImage] = []
        self._completed: list[CompletedImage] = []
        self._response: ImagesResponse | None = None
        self._usage: Usage | None = None
        self._empty_slots = 0
        self.failure: ElkImagesError | None = None
        """What the body turned out to be instead of an answer; None while it is one."""
        self.done = False
        """Whether the server has said that nothing follows."""

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the body; False when they are nothing but blanks and pings."""
        ready = len(self.events)
        if self.failure is None:
            try:
                self._feed(chunk)
            except ElkImagesError as error:
                self._fail(error)
        if self._sse is not None and self._sse.open_bytes < _PING_BYTES:
            return len(self.events) > ready or self.failure is not None or self.done
        return self._sse is not None or self._json is not None or self._page is not None

    def finish(self) -> None:
        """The body has ended."""
        if self.failure is None:
            try:
                self._finish()
            except ElkImagesError as error:
                self._fail(error)

    def next_event(self) -> ImageEvent | SkippedEvent | None:
        """The next event that is ready, or None.

        Raises:
            APIError: by the server, for an error inside a good answer.
            EmptyResultError, StreamIncompleteError: by the server, for an answer without an image.
            ResponseError: by the server, for anything else that is no answer.
        """
        if self.events:
            return self.events.popleft()
        if self.failure is not None:
            raise self.failure
        return None

    def _fail(self, error: ElkImagesError) -> None:
        error.__context__ = None
        if isinstance(error, (APIError, ResponseError)):
            completed = tuple(event.image for event in self._completed)
            error.images = (*completed, *error.images)
            if error.images and error.billing == "refused":
                error.billing = "unknown"  # what came was made, whatever became of the rest
        self.failure = error

    def _feed(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            raise ResponseError(
                f"The answer is longer than {self._max_bytes:,} bytes; "
                "raise it with Limits(max_response_bytes=…)."
            )
        if self._sse is not None:
            self._feed_sse(self._sse, chunk)
        elif self._json is not None:
            self._json.feed(chunk)
        elif self._page is not None:
            self._page += chunk[: BODY_IN_ERRORS - len(self._page)]
        else:
            self._begin(chunk)

    def _finish(self) -> None:
        if self._page is not None:
            raise ResponseError(
                "The server answered with a web page; check that the base URL ends in /v1.",
                body=self._page.decode("utf-8", "replace"),
            )
        if self._json is not None:
            self._finish_json(self._json)
        elif self._sse is not None:
            self._sse.finish()
            self._take_server_sent_events(self._sse)
        if self._completed:
            return
        if self._sse is not None and not self._sse.recognized:
            raise ResponseError(
                "The server's answer is neither JSON nor a stream.",
                body=self._start.decode("utf-8", "replace").strip(),
            )
        if self._json is not None or self._empty_slots:
            said = self._json.text(BODY_IN_ERRORS) if self._json is not None else ""
            raise EmptyResultError(
                "The server reported success but gave no image.", body=said or None
            )
        if self._sse is None and not self._stream:
            raise EmptyResultError("The server reported success with an empty answer.")
        raise StreamIncompleteError(
            "The stream ended without a completed image"
            + (f", after {len(self._partials)} partial ones." if self._partials else "."),
            partials=tuple(self._partials),
        )

    def response(self) -> ImagesResponse:
        """The whole answer, once `finish` has succeeded."""
        if self._response is not None:
            return self._response
        last = self._completed[-1]
        return ImagesResponse(
            [event.image for event in self._completed],
            created=last.created_at,
            usage=last.usage or self._usage,
            size=last.size,
            quality=last.quality,
            background=last.background,
            output_format=last.output_format,
        )

    def _begin(self, chunk: bytes) -> None:
        body = (self._start + chunk).lstrip(_BLANK)
        text = body.removeprefix(_BOM).lstrip(_BLANK)
        if not text or _BOM.startswith(text):
            self._start = body
            return
        self._start = b""
        if text[0] in b"{[":
            self._json = JSONDecoder(self._length)
            self._json.feed(text)
        elif text[0] == 0x3C:
            self._page = text[:BODY_IN_ERRORS]
        else:
            self._sse = SSEDecoder()
            self._feed_sse(self._sse, body)

    def _feed_sse(self, decoder: SSEDecoder, chunk: bytes) -> None:
        if not decoder.recognized:
            self._start += chunk[: BODY_IN_ERRORS - len(self._start)]
        decoder.feed(chunk)
        self._take_server_sent_events(decoder)

    def _finish_json(self, decoder: JSONDecoder) -> None:
        if (response := read_plain_answer(decoder)) is not None:
            self._respond(response)
            return
        try:
            document = decoder.finish()
        except InvalidJSON as error:
            problem = str(error)
        else:
            self._take_response(document)
            return
        raise ResponseError(
            f"The server's answer is not whole or not JSON: {problem}.",
            body=decoder.text(BODY_IN_ERRORS),
        )

    def _take_response(self, document: Document) -> None:
        """A JSON answer: each of its images is a completed event with the whole usage."""
        value = document.value
        if isinstance(value, list):
            value = {"data": value}
        if value.get("error") or value.get("type") in _ERROR_TYPES:
            raise _error_inside(value, document)
        slots = read_slots(value, document)
        images = [slot for slot in slots if isinstance(slot, Image)]
        for number, slot in enumerate(slots, 1):
            if isinstance(slot, BadBase64):
                raise ResponseError(
                    f"Image {number} of {len(slots)} is broken: {slot.reason}."
                    + (f" The {len(images)} good ones are in .images." if images else ""),
                    images=tuple(images),
                )
        usage = read_usage(value.get("usage"))
        self._usage = usage or self._usage
        self._note_empty(len(slots) - len(images) if slots or not self._completed else 0)
        created, side = read_number(value.get("created")), read_side_data(value)
        self._respond(ImagesResponse(images, created=created, usage=usage, **side))

    def _respond(self, response: ImagesResponse) -> None:
        for image in response:
            self._complete(
                CompletedImage(
                    type=COMPLETED_TYPES[0],
                    image=image,
                    created_at=response.created,
                    usage=response.usage,
                    size=response.size,
                    quality=response.quality,
                    background=response.background,
                    output_format=response.output_format,
                )
            )
        if self._json is not None and response.data:
            self._response = response

    def _take_server_sent_events(self, decoder: SSEDecoder) -> None:
        while (event := decoder.next_event()) is not None:
            if not self.done:
                self._take_server_sent_event(event)

    def _take_server_sent_event(self, event: ServerSentEvent) -> None:
        data = event.data
        if isinstance(data, SplicedDocument) and (partial := read_plain_partial(event.name, data)):
            self._take_partial(partial)
            return
        if isinstance(data, JSONDecoder) and data.size == len(_DONE) and data.text(8) == _DONE:
            self.done = True
            return
        try:
            document = data.finish()
        except InvalidJSON:
            self._take_text(event, None)
            return
        value = document.value
        if not isinstance(value, dict):
            self._take_text(event, value)
            return
        if value.get("error") or value.get("type") in _ERROR_TYPES or event.name == "error":
            raise _error_inside(value, document)
        stated = read_str(value.get("type"))
        for name in (stated, event.name):
            if name in COMPLETED_TYPES or name in PARTIAL_TYPES:
                self._take_image(name, value, document)
                return
        if stated is None and event.name in ("", "message"):
            self._take_untyped(value, document)
        elif stated not in _PINGS and event.name not in _PINGS:
            self._skip(stated or event.name, "its type is not known")

    def _take_text(self, event: ServerSentEvent, value: Any) -> None:
        """Data that is no JSON object; `value` is what it is as JSON, or None."""
        text = value if isinstance(value, str) else event.data.text(BODY_IN_ERRORS)
        if text == _DONE:
            self.done = True
        elif event.name == "error":
            raise api_error(200, text)
        elif text and event.terminated:
            self._skip(event.name or None, "its data is not JSON")

    def _take_untyped(self, value: dict[str, Any], document: Document) -> None:
        """An event without a type: a whole JSON answer, a lone image, or only the usage."""
        if isinstance(value.get("data"), list):
            self._take_response(document)
        elif "b64_json" in value or "url" in value:
            types = PARTIAL_TYPES if "partial_image_index" in value else COMPLETED_TYPES
            self._take_image(types[0], value, document)
        elif "usage" in value:
            self._usage = read_usage(value["usage"])
        else:
            self._skip(None, "it has no type")

    def _take_image(self, type: str, value: dict[str, Any], document: Document) -> None:
        slot = read_slot(value, document)
        if isinstance(slot, Image):
            if type in COMPLETED_TYPES:
                self._complete(read_completed(type, slot, value))
            else:
                self._take_partial(read_partial(type, slot, value))
        elif type in PARTIAL_TYPES:
            self._skip(type, f"its image is broken: {slot.reason}" if slot else "it has no image")
        elif slot is None:
            self._note_empty(1)
            self._skip(type, "it has no image")
        else:
            good = len(self._completed)
            raise ResponseError(
                f"A completed image is broken: {slot.reason}."
                + (f" The {good} good ones before it are in .images." if good else "")
            )

    def _take_partial(self, partial: PartialImage) -> None:
        self._partials.append(partial)
        self.events.append(partial)

    def _complete(self, event: CompletedImage) -> None:
        self._completed.append(event)
        self.events.append(event)

    def _note_empty(self, count: int) -> None:
        self._empty_slots += count
        if count:
            _log.warning("%d of the answer's images is empty and left out", count)

    def _skip(self, type: str | None, reason: str) -> None:
        self.events.append(SkippedEvent(type, reason))


def _error_inside(value: dict[str, Any], document: Document) -> APIError:
    """The error of a good answer, with the images that stand beside it."""
    error = api_error(200, document.readable(value))
    error.images = tuple(slot for slot in read_slots(value, document) if isinstance(slot, Image))
    return error
