"""Decoding of the body of a 2xx response into images, whatever its shape.

The first non-blank bytes of a body decide what it is: `{` or `[` is JSON, `<` is a web page or
SVG, the signature of an image is the image itself, a boundary begins several parts, and anything
else is server-sent events, or else text that is an image: a JSON string, base64, an address. What
was requested and what Content-Type claims are hints at best: gateways drop the `stream` flag,
label errors as streams, and stream to clients that did not request it.

In any form, a body is a sequence of documents. Each is searched for images first, which are
classified afterwards: *no image is ever dropped*. One that is not known to be partial is a
completed image. A body ends with at least one completed image, or with an error that carries all
images received.
"""

import re

from elkimg_async.errors import ElkImagesError, ResponseError
from elkimg_async.image import Image
from elkimg_async.sansio.body_encodings import BodyEncoding, encoding_of, may_be_encoded
from elkimg_async.sansio.documents import DocumentHandler, ImageEvent, SkippedEvent
from elkimg_async.sansio.error_mapping import MAX_BODY_TEXT, api_error, too_long
from elkimg_async.sansio.events import event_of, type_of
from elkimg_async.sansio.find_images import find_images, images_of
from elkimg_async.sansio.image_strings import plain_images
from elkimg_async.sansio.json_images import Document, InvalidJSON, JSONDecoder
from elkimg_async.sansio.multipart_body import boundary_in, boundary_of, documents_of, parts_of
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse
from elkimg_async.sansio.signatures import cannot_be_image, is_image, is_text, may_begin_image
from elkimg_async.sansio.sse import ServerSentEvent, SSEDecoder

_BLANK = b" \t\r\n\x1e"  # RFC 7464 has a record separator before each JSON text
_BOM = b"\xef\xbb\xbf"
_DONE = "[DONE]"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")  # of server-sent events; or a comment
_WHOLE_PAGE = re.compile("<(!doctype )?html", re.IGNORECASE)
"""A page whose images, such as a logo, are not the response."""
_PING_BYTES = 1024  # an open event that is longer than this is not a ping

__all__ = ["ImageEvent", "ImagesDecoder", "SkippedEvent"]


class ImagesDecoder:
    """Decoder for one body: `feed` it in any split, `finish` it, and read each `next_event`.

    An error in the body is raised by `next_event`, after the events before it. `stream` is whether
    a stream was requested; it only selects the error for a body without images. `max_bytes` limits
    the body; `length` is its expected length, 0 if unknown. `content_type` is a hint, used only
    where the bytes leave open what the body is.
    """

    def __init__(
        self, *, stream: bool, max_bytes: int, length: int = 0, content_type: str = ""
    ) -> None:
        self._stream = stream
        self._length = length
        self._content_type = content_type.lower()
        self._named_boundary = boundary_of(content_type)
        self._encoding: BodyEncoding | None = None  # one that no header declares
        self._remaining = self._max_bytes = max_bytes
        # The start of the body is kept until it is classified. From then on one of the three below
        # is set, or none for a web page, of which no more is needed than its start.
        self._start: bytes | None = b""
        self._json: JSONDecoder | None = None
        self._sse: SSEDecoder | None = None
        self._chunks: list[bytes] | None = None  # of an image, or of parts, which have a boundary
        self._boundary = b""
        self._first_line = False  # whether the first line of JSON is still open
        self._page_text: str | None = None  # the start of a web page
        self._body: str | None = None  # JSON without an image, for the error
        self._documents = DocumentHandler()
        self.events = self._documents.events
        """The events that `next_event` will return."""
        self._text: JSONDecoder | None = None  # all that is not recognized as server-sent events
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
        # A ping is seen to be one only when its event ends, so until then a short event counts as
        # one. A long event is an image on its way, and its progress counts at once.
        if self._sse is not None and self._sse.open_bytes < _PING_BYTES:
            return len(self.events) > ready or self.failure is not None or self.done
        return self._start is None or self._start[:1] == b"<"

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
        return self._documents.response()

    def attach_images(self, error: ElkImagesError) -> None:
        """Add the images received so far to the error that ends the call."""
        completed = [event.image for event in self._documents.completed]
        if self.failure is not None:
            # `_fail` has collected them, together with those of the document that failed.
            completed = [*self.failure.images]
        elif self._json is not None:
            # The call ends early, so this document will never be complete; its strings may be.
            completed += images_of(self._json.salvage())
        elif self._chunks is not None and self._boundary:
            for entry in documents_of(parts_of(b"".join(self._chunks), self._boundary)[0]):
                completed += [Image(entry)] if isinstance(entry, bytes) else images_of([entry])
        extra = [image for image in error.images if not any(image is other for other in completed)]
        error.images = (*completed, *extra)
        error.partials = error.partials or tuple(self._documents.partials)
        if (error.images or error.partials) and error.billing == "refused":
            error.billing = "unknown"  # what arrived may have been billed

    def _fail(self, error: ElkImagesError) -> None:
        error.__context__ = None
        self.attach_images(error)
        self.failure = error

    def _feed(self, chunk: bytes) -> None:
        for piece in (chunk,) if self._encoding is None else self._encoding.decode(chunk):
            self._feed_plain(piece)

    def _feed_plain(self, chunk: bytes) -> None:
        self._remaining -= len(chunk)
        if self._remaining < 0:
            raise too_long(self._max_bytes)
        if self._sse is not None:
            self._feed_sse(self._sse, chunk)
        elif self._json is not None:
            self._feed_json(self._json, chunk)
        elif self._chunks is not None:
            self._chunks.append(chunk)
        elif self._start is not None:
            self._begin(self._start + chunk)

    def _begin(self, start: bytes) -> None:
        """Classify a body by its first bytes; if there are too few, keep them for later.

        The decision must be the same for every split: once made, no further bytes may change it.
        """
        body = start.lstrip(_BLANK)
        while body.startswith(_BOM):
            body = body.removeprefix(_BOM).lstrip(_BLANK)
        self._start = body
        # Encodings come first, since their bytes mean nothing to the other checks. Each is looked
        # for only once, in the bytes as received, so that decoding cannot be repeated without end.
        if self._encoding is None:
            if may_be_encoded(body):
                return
            self._encoding = encoding_of(body)
            if self._encoding is not None:
                self._start = b""
                self._remaining += len(body)  # which counts once
                self._feed(body)
                return
        # An SVG may begin with comments, so as much of a page is kept as an error would show of it.
        # A byte order mark, a signature or a boundary may be cut off by the end of the chunk.
        if _BOM.startswith(body) or (body[0] == 0x3C and len(body) < MAX_BODY_TEXT):
            return
        boundary = boundary_in(body) if body[:1] == b"-" else self._boundary_after(body)
        is_decided = body[0] in b"{[<" or may_begin_image(body) is not None
        if is_decided and boundary is not None:
            self._classify(body, boundary)

    def _boundary_after(self, body: bytes) -> bytes | None:
        """Return the boundary of a body with a preamble, which only its Content-Type shows.

        None while the body may still become server-sent events.
        """
        if body.startswith((b"{", b"[", b"<", *_FIELDS)):
            return b""
        return None if any(field.startswith(body) for field in _FIELDS) else self._named_boundary

    def _classify(self, body: bytes, boundary: bytes) -> None:
        """Decide by its start what the body is."""
        self._start = None
        if body[0] in b"{[":
            self._json = JSONDecoder(self._length)
            # Newline-delimited JSON looks like one document until the end of its first line.
            self._first_line = body[0] == 0x7B
            self._feed_json(self._json, body)
        elif is_image(body):
            self._chunks = [body]
        elif body[0] == 0x3C:
            self._page_text = body[:MAX_BODY_TEXT].decode("utf-8", "replace")
            if not _WHOLE_PAGE.match(self._page_text):
                # PHP, for instance, writes its warnings as HTML in front of a response.
                self._begin_text(body)
        elif boundary:
            self._boundary, self._chunks = boundary, [body]
        elif self._content_type.startswith("image/") and not body.startswith(_FIELDS):
            self._chunks = [body]  # of a format without a known signature, or text after all
        else:
            self._begin_text(body)

    def _begin_text(self, body: bytes) -> None:
        # Nearly any text is a valid stream, of fields that are ignored. So until a line shows that
        # it is one, the body is also kept as text.
        self._sse, self._text = SSEDecoder(), JSONDecoder(self._length)
        self._documents.streamed = True
        self._feed_sse(self._sse, body)

    def _feed_json(self, decoder: JSONDecoder, chunk: bytes) -> None:
        """Decode JSON; if its first line is a complete document, the rest is read line by line."""
        if not self._first_line:
            decoder.feed(chunk)
            return
        # Strict base64 has no line ends, so an open image is decoded without a search for them.
        start = decoder.feed_base64(chunk, 0)
        end = chunk.find(b"\n", start)
        decoder.feed(chunk, start, len(chunk) if end < 0 else end)
        if end < 0:
            return
        self._first_line = False
        try:
            documents = decoder.finish_all()
        except InvalidJSON:
            # An indented document, of which the first line is only a part.
            decoder.feed(chunk, end)
            return
        # Either the whole document or the first of several lines. The event decoder reads the rest
        # in both cases, since it takes each line that begins with a bracket for an event.
        self._body = decoder.text(MAX_BODY_TEXT)
        self._json = None
        self._sse = SSEDecoder()
        self._documents.streamed = True
        self._handle(documents)
        self._feed_sse(self._sse, chunk[end + 1 :])

    def _feed_sse(self, decoder: SSEDecoder, chunk: bytes) -> None:
        decoder.feed(chunk)
        if decoder.recognized:
            self._text = None
        elif self._text is not None:
            self._text.feed(chunk)
        self._handle_server_sent_events(decoder)

    def _finish(self) -> None:
        if self._start:
            self._classify(self._start, b"")  # a boundary that is cut off separates nothing
        if self._encoding is not None:
            self._encoding.finish()
        if self._chunks is not None:
            body = b"".join(self._chunks)
            if self._is_mislabelled_text(body):
                self._chunks, self._boundary = None, b""
                self._begin_text(body)
            else:
                self._finish_whole(body)
        if self._json is not None:
            # Unset first: if this fails, its error has the images, and `attach_images` must not
            # find them again.
            decoder, self._json = self._json, None
            self._finish_json(decoder)
        elif self._sse is not None:
            self._sse.finish()
            self._handle_server_sent_events(self._sse)
            if self._text is not None and not self._sse.recognized:
                self._finish_text(self._text)
        self._documents.handle_end(is_final=self.done)
        if self._documents.completed:
            return
        if self._page_text is not None:
            raise ResponseError(
                "The server returned a web page. Check that the base URL ends in /v1.",
                body=self._page_text,
            )
        raise self._documents.error_without_image(
            body=self._body, streamed=self._sse is not None or self._stream
        )

    def _is_mislabelled_text(self, body: bytes) -> bool:
        """Return whether only the Content-Type made a complete body an image, or several parts."""
        if self._boundary:
            return b"--" + self._boundary not in body
        return not is_image(body) and (body.isascii() or is_text(body))

    def _finish_image(self, content: bytes) -> None:
        if cannot_be_image(content):
            raise ResponseError("The response is not an image.", content=content)
        self._documents.emit(CompletedImage(type=type_of({}, ""), image=Image(content)))

    def _finish_whole(self, body: bytes) -> None:
        """Handle an image, or a body in several parts."""
        if not self._boundary:
            self._finish_image(body)
            return
        parts, is_complete = parts_of(body, self._boundary)
        if not is_complete:
            # `attach_images` adds the complete parts.
            raise ResponseError("The response was cut off within one of its parts.")
        self._chunks = None  # from here on the images are in events or errors
        self._body = body[:MAX_BODY_TEXT].decode("utf-8", "replace")
        for entry in documents_of(parts):
            if isinstance(entry, bytes):
                self._finish_image(entry)
            else:
                self._handle([entry])

    def _finish_text(self, decoder: JSONDecoder) -> None:
        """Handle text: a JSON string, base64, addresses, or another format that has images."""
        body = decoder.text(MAX_BODY_TEXT)
        if documents := _text_documents(decoder):
            self._body = body
            self._handle(documents)
            return
        # XML, YAML, forms, JavaScript. An unbalanced text was cut off, so it is an error that has
        # the images. Addresses alone are not enough, since other texts have links as well.
        saved = [document for document in decoder.salvage() if images_of([document])]
        images = images_of(saved)
        if any(image.content is not None for image in images) and decoder.is_balanced:
            self._handle(saved)
        elif self._page_text is None:
            raise ResponseError(
                "The response is neither JSON nor an event stream.", body=body, images=images
            )

    def _finish_json(self, decoder: JSONDecoder) -> None:
        self._body = decoder.text(MAX_BODY_TEXT)
        try:
            documents = decoder.finish_all()
        except InvalidJSON as error:
            raise ResponseError(
                f"The response is incomplete or not JSON: {error}.",
                body=self._body,
                images=images_of(decoder.salvage()),
            ) from None
        self._handle(documents)

    def _handle(self, documents: list[Document]) -> None:
        for document in documents:
            self._documents.handle(document, "")

    def _handle_server_sent_events(self, decoder: SSEDecoder) -> None:
        while (event := decoder.next_event()) is not None:
            if not self.done:  # nothing after [DONE] belongs to the response
                self._handle_server_sent_event(event)

    def _handle_server_sent_event(self, event: ServerSentEvent) -> None:
        data = event.data
        try:
            documents = data.finish_all()
        except InvalidJSON:
            # Some servers write the field twice: "data: data: [DONE]".
            self._handle_text(event, data.text(data.size).removeprefix("data:").strip())
            return
        for document in documents:
            if isinstance(document.value, str) and not document.images:
                self._handle_text(event, document.value)
            else:
                self._documents.handle(document, event.name)

    def _handle_text(self, event: ServerSentEvent, text: str) -> None:
        """Handle data that is not JSON, but may still contain images."""
        if text == _DONE:
            self.done = True
            self._documents.handle_end(is_final=True)
            return
        if event.name == "error":
            raise api_error(200, text[:MAX_BODY_TEXT])
        # Either JSON with a fault, or cut off by the end of the stream, that has complete strings;
        # or an image or its address as plain text.
        saved = event.data.salvage()
        images = images_of(saved)
        plain = () if images else images_of([Document(value) for value in plain_images(text)])
        if images or plain:
            typed = (one for one in saved if isinstance(one.value, dict) and "type" in one.value)
            around = next(typed, Document({}))
            cut = around.value
            # Without its type, nothing shows whether the image of a cut-off event was partial.
            if images and not event.terminated and not cut and not event.name:
                raise ResponseError(
                    "The stream was cut off within an event.",
                    images=images,
                    body=text[:MAX_BODY_TEXT],
                )
            for image in images or plain:
                type_ = type_of(cut, event.name)
                self._documents.emit(event_of(type_, image, (cut,), document=around))
        elif text and event.terminated:
            self._documents.skip(event.name or None, "its data is not JSON")


def _text_documents(decoder: JSONDecoder) -> list[Document]:
    """Return the documents in text: JSON strings, plain base64, addresses, or JSON behind words.

    The list is empty if it is none of these.
    """
    try:
        documents = decoder.finish_all()
    except InvalidJSON:
        plain = [Document(value) for value in plain_images(decoder.text(decoder.size))]
        documents = plain or decoder.embedded()
    usable = any(
        isinstance(document.value, (dict, list)) or find_images(document).found
        for document in documents
    )
    return documents if usable else []
