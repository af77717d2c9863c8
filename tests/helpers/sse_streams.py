"""Decoding of streams of server-sent events in tests."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from elkimg_async.sansio import sse
from elkimg_async.sansio.sse import SSEDecoder

MEGABYTE = 1 << 20


class Event(NamedTuple):
    """An event with the text of its data."""

    data: str
    name: str = ""
    id: str = ""
    terminated: bool = True


def decode(chunks: Iterable[bytes]) -> list[Event]:
    decoder = SSEDecoder()
    events = []
    for chunk in chunks:
        decoder.feed(chunk)
        events += ready(decoder)
    decoder.finish()
    return events + ready(decoder)


def ready(decoder: SSEDecoder) -> list[Event]:
    events = []
    while (event := decoder.next_event()) is not None:
        events.append(Event(event.data.text(1_000), event.name, event.id, event.terminated))
    return events


class Recorder:
    """Replacement for the JSON decoder that keeps the bytes it receives."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data += data[start:end]

    def feed_base64(self, data: bytes, start: int) -> int:
        return start


def recorded(chunks: Iterable[bytes]) -> list[tuple[str, bytes, str, bool]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "JSONDecoder", Recorder)
        decoder = SSEDecoder()
        for chunk in chunks:
            decoder.feed(chunk)
        decoder.finish()
        events = []
        while (event := decoder.next_event()) is not None:
            data: Any = event.data
            if not isinstance(data, Recorder):
                pytest.fail("the data went elsewhere")
            events.append((event.name, data.data, event.id, event.terminated))
    return events
