"""Response bodies, and what they decode to on any split."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from elkimg_async.errors import (
    ElkImagesError,
)
from elkimg_async.sansio.decoder import ImagesDecoder, SkippedEvent
from elkimg_async.sansio.responses import (
    CompletedImage,
    ImagesResponse,
    PartialImage,
    TokenDetails,
    Usage,
)
from tests.helpers.splits import every_split, one_by_one

ONE, TWO, THREE = b"\xff\xd8\xffone", b"\xff\xd8\xff, two", b"\xff\xd8\xff\xfb\xef\xbe three"
BOM = b"\xef\xbb\xbf"
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"
MAX_BYTES = 1 << 20


class Outcome:
    """What a body decodes to, in a form that can be compared."""

    def __init__(
        self,
        chunks: Iterable[bytes],
        *,
        stream: bool,
        max_bytes: int = MAX_BYTES,
        content_type: str = "",
    ) -> None:
        decoder = ImagesDecoder(stream=stream, max_bytes=max_bytes, content_type=content_type)
        self.events: list[PartialImage | CompletedImage] = []
        self.skipped: list[SkippedEvent] = []
        self.failure: ElkImagesError | None = None
        self.response: ImagesResponse | None = None
        try:
            for chunk in chunks:
                decoder.feed(chunk)
                self._take(decoder)
            decoder.finish()
            self._take(decoder)
            self.response = decoder.response()
        except ElkImagesError as error:
            self.failure = error
        self.done = decoder.done
        assert decoder.failure is self.failure

    def _take(self, decoder: ImagesDecoder) -> None:
        while (event := decoder.next_event()) is not None:
            if isinstance(event, SkippedEvent):
                self.skipped.append(event)
            else:
                self.events.append(event)

    def __repr__(self) -> str:
        failure = self.failure and (type(self.failure), vars(self.failure))
        events = [(event, event.image.__reduce__()[1]) for event in self.events]
        response = self.response and {**vars(self.response), "data": self.images}
        carried = self.failure and [
            image.__reduce__()[1]
            for image in (*self.failure.images, *(event.image for event in self.failure.partials))
        ]
        return repr((events, self.skipped, failure, carried, response, self.done))

    @property
    def images(self) -> list[bytes | str | None]:
        """The images of the response, as bytes or as address."""
        assert self.response is not None, self.failure
        return [image.content or image.url for image in self.response]

    @property
    def given(self) -> list[bytes | str | None]:
        """The images of the events."""
        return [event.image.content or event.image.url for event in self.events]


def outcome(body: bytes | str, *, stream: bool = True, exhaustive: bool = True) -> Outcome:
    """Return what the body decodes to, which must be the same on every split."""
    body = body.encode() if isinstance(body, str) else body
    whole = Outcome([body], stream=stream)
    for chunks in every_split(body) if exhaustive else [one_by_one(body)]:
        assert repr(Outcome(chunks, stream=stream)) == repr(whole)
    return whole


def failure(body: bytes | str, *, stream: bool = True) -> ElkImagesError:
    found = outcome(body, stream=stream).failure
    assert found is not None
    assert str(found)
    assert found.__context__ is None
    return found


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def json_body(*items: Any, **more: Any) -> str:
    return json.dumps({"created": 1710000000, "data": list(items), **more})


def item(content: bytes, **more: Any) -> dict[str, Any]:
    return {"b64_json": b64(content), **more}


def frame(type: str | None, content: Any = None, *, name: str | None = None, **more: Any) -> str:
    """Return one event of a stream."""
    value = {"type": type, "b64_json": content and b64(content), **more}
    data = json.dumps({key: value for key, value in value.items() if value is not None})
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


USAGE = {
    "total_tokens": 30,
    "input_tokens": 10,
    "output_tokens": 20,
    "input_tokens_details": {"text_tokens": 7, "image_tokens": 3},
}
READ_USAGE = Usage(
    total_tokens=30,
    input_tokens=10,
    output_tokens=20,
    input_tokens_details=TokenDetails(text_tokens=7, image_tokens=3),
)
PINGS = (
    ": PING\n\n: keepalive\n\ndata:\n\ndata: \n\n"
    + 'data: {"type":"keepalive"}\n\ndata: {"type":"ping"}\n\n'
)
