"""The documents of one body: their images become events, everything else is kept for the end."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from elkimg_async.errors import (
    ElkImagesError,
    EmptyResultError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.sansio.documented import read_documented
from elkimg_async.sansio.error_mapping import api_error
from elkimg_async.sansio.error_words import is_item_failure, pending_task, strength
from elkimg_async.sansio.events import (
    COMPLETED_FIELDS,
    event_of,
    says_unfinished,
    type_around,
    type_of,
)
from elkimg_async.sansio.find_images import Findings, find_images, identity
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.prose_images import TextDeltas
from elkimg_async.sansio.reading import read_usage
from elkimg_async.sansio.responses import (
    COMPLETED_TYPES,
    CompletedImage,
    ImagesResponse,
    PartialImage,
    Usage,
)

ImageEvent: TypeAlias = PartialImage | CompletedImage

_log = logging.getLogger("elkimg_async")
_PINGS = ("keepalive", "keep_alive", "ping", "heartbeat")
_PLACES = {"data", "images", "b64_json", "url"}


class SkippedEvent(msgspec.Struct, frozen=True):
    """An event that was skipped, for hooks."""

    type: str | None
    reason: str


class DocumentHandler:
    """Everything received so far from one body, document by document.

    `streamed` is whether the documents are events of a stream.
    """

    def __init__(self) -> None:
        self.streamed = False
        self.events: deque[ImageEvent | SkippedEvent] = deque()
        """The events that have not been read yet."""
        # Kept to the end of the body, since an error that ends the call has to carry all images.
        self.partials: list[PartialImage] = []
        self.completed: list[CompletedImage] = []
        self._response: ImagesResponse | None = None
        self._usage: Usage | None = None
        self._failed_item: Any = None  # what reported the first failure of one of several images
        self._empty = False  # whether a document that should have an image had none
        self._suspect: Any = None  # a document that is an error unless images arrive
        self._task: tuple[str, str | None] | None = None
        self._deltas = TextDeltas()

    def response(self) -> ImagesResponse:
        """Return the complete response, once `finish` has succeeded."""
        # Each completed event repeats what belongs to the whole response.
        if self._response is None:
            last = self.completed[-1]
            self._response = ImagesResponse(
                [event.image for event in self.completed],
                created=last.created_at,
                usage=last.usage or self._usage,
                extra=last.extra,
                **{name: getattr(last, name) for name in COMPLETED_FIELDS},
            )
        return self._response

    def handle_end(self, *, is_final: bool) -> None:
        """Handle the text that arrived in pieces; `is_final` is whether the end was announced.

        Raises:
            ResponseError: If the stream may have been cut off within an image.
        """
        self._deltas.is_final |= is_final
        for document, cut_off in self._deltas.flush():
            found = find_images(document)
            # Half an address is an address as well, and half of base64 decodes.
            if cut_off and found.found:
                raise ResponseError("The stream was cut off within an image.", images=found.images)
            delivered = {identity(event.image) for event in self.completed}
            # A later event may have repeated the whole text, and so delivered its images.
            for entry in found.found:
                if identity(entry.image) not in delivered:
                    self.emit(event_of(COMPLETED_TYPES[0], entry.image, ()))

    def handle(self, document: Document, name: str) -> None:
        """Handle one document: first its images, then its other fields.

        Raises:
            APIError: If the document reports an error.
            ResponseError: If an image in it is broken.
        """
        # First, since it removes pieces of text, which would be searched as if they were complete.
        if self.streamed:
            self._deltas.take(document, name)
        # Not after a completed image, which the next event may repeat.
        if not self.completed and (documented := read_documented(document, name)):
            for event in documented:
                self.emit(event)
            return
        value = document.value
        found = find_images(document)
        stated = value.get("type") if isinstance(value, dict) else None
        stated = stated if isinstance(stated, str) else None
        # One of several images failed; the others may follow, so the call goes on.
        if is_item_failure(stated or name) and not found.found:
            self._note_failed_item(document.restore(value), stated or name)
            return
        certainty = 2 if name == "error" else strength(value, name)
        # An error among the items of a list belongs to one of several images.
        if certainty == 2 and not (isinstance(value, list) and found.found):
            error = api_error(200, document.restore(value))
            error.images = found.images
            raise error
        # After the errors, so that a server's own words come before a complaint about its image.
        if self._has_broken_partial(found, stated or name):
            return
        fields = value if isinstance(value, dict) else {}
        events = events_of(found, document, name, streamed=self.streamed)
        # A summary at the end of a stream has the images again, and the usage.
        if _repeats(events, self.completed):
            self._usage = read_usage(document.restore(fields.get("usage"))) or self._usage
            self.skip(stated or name or None, "it repeats images that were delivered before")
            return
        for event in events:
            self.emit(event)
        for item in found.without:
            if isinstance(item, dict) and strength(item) == 2:
                self._note_failed_item(document.restore(item), stated)
        # An object without any field for an image, such as one of text beside images, is not empty.
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
        self._usage = read_usage(document.restore(fields.get("usage"))) or self._usage
        self._task = self._task or pending_task(value)
        # The specification's name for an event without one is "message".
        untyped = stated is None and name in ("", "message")
        if certainty and untyped:
            self._suspect = document.restore(value)
        # A completed event and a field for images both promise an image. Usage alone, keep-alives
        # and events of an unknown type do not.
        is_final = not untyped and type_of(fields, name) in COMPLETED_TYPES
        self._empty |= is_final or not fields.keys().isdisjoint(_PLACES)
        if (
            not self.streamed
            or stated in _PINGS
            or name in _PINGS
            or (untyped and "usage" in fields)
        ):
            return
        reason = "it has no image" if is_final or untyped else "its type is unknown"
        self.skip(stated or (None if untyped else name), reason)

    def error_without_image(self, *, body: str | None, streamed: bool) -> ElkImagesError:
        """Return the error for a body without a completed image; `body` is its JSON."""
        # In the order of how much each explains: the server's own words about a failure come before
        # what only the absence of an image shows.
        if self._task is not None and self._failed_item is None:
            job, status = self._task
            return EmptyResultError(
                f"The server started an asynchronous job instead of returning an image: task {job}"
                + (f" ({status})." if status else ".")
                + " Fetch its result from the server, or use a model that returns images at once.",
                body=body,
                task_id=job,
            )
        failure = self._suspect if self._failed_item is None else self._failed_item
        if failure is not None:
            return api_error(200, failure)
        partials = len(self.partials)
        # After partial images, what is missing is the end of the stream, not the image.
        if (body is not None or self._empty) and not partials:
            return EmptyResultError("The server reported success but returned no image.", body=body)
        if not streamed:
            return EmptyResultError("The server reported success with an empty body.")
        return StreamIncompleteError(
            "The stream ended without a completed image"
            + (f", after {partials} partial images." if partials else ".")
        )

    def _has_broken_partial(self, found: Findings, type_: str | None) -> bool:
        """Return whether there is only a broken partial image; raise for other broken ones."""
        if not found.broken:
            return False
        # A broken string beside a valid image of the same object is not a further image.
        first = found.broken[0]
        total = len(found.found) + sum(not broken.beside for broken in found.broken)
        # A partial image is only a preview, so the stream goes on without it.
        if type_ and "partial" in type_ and not found.found:
            self.skip(type_, f"its image is broken: {first.reason}")
            return True
        which = f"Image {first.number} of {total}" if total > 1 else "The image"
        count = len(found.found) + len(self.completed)
        kept = f" {count} valid images are in .images." if count else ""
        raise ResponseError(
            f"{which} is broken: {first.reason}.{kept}", images=found.images, content=first.content
        )

    def _note_failed_item(self, item: Any, type_: str | None) -> None:
        if self._failed_item is None:
            self._failed_item = item
        error = api_error(200, item)
        reason = error.message or error.code or "the server gave no reason"
        self.skip(type_, f"one image failed: {reason}")

    def emit(self, event: ImageEvent) -> None:
        """Add an image."""
        if isinstance(event, CompletedImage):
            self.completed.append(event)
        else:
            self.partials.append(event)
        self.events.append(event)

    def skip(self, type_: str | None, reason: str) -> None:
        """Note that an event was skipped, and why."""
        self.events.append(SkippedEvent(type_, reason))


def events_of(
    found: Findings, document: Document, name: str, *, streamed: bool
) -> list[PartialImage | CompletedImage]:
    """Return the events of the images found in a document.

    `name` is that of its `event:` line. Only in a stream can fields such as a status say that an
    image is not finished.
    """
    fields = document.value if isinstance(document.value, dict) else {}
    events = []
    for entry in found.found:
        chain = entry.chain or (fields,)
        unfinished = streamed and says_unfinished(chain)
        type_ = type_around(chain, name, unfinished=unfinished)
        events.append(
            event_of(
                type_,
                entry.image,
                entry.chain,
                key=entry.key,
                rest=found.extra,
                unfinished=unfinished,
                document=document,
            )
        )
    return events


def _repeats(
    events: Sequence[PartialImage | CompletedImage], completed: Sequence[CompletedImage]
) -> bool:
    """Return whether an event of another type only repeats images, as a summary at the end does."""
    before = {
        identity(event.image) for event in completed if events and event.type != events[0].type
    }
    return bool(before) and all(
        isinstance(event, CompletedImage) and identity(event.image) in before for event in events
    )
