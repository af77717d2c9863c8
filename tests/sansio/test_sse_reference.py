"""The decoder of server-sent events against a reference, and its cost."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.sansio import sse
from elkimg_async.sansio.json_images import InvalidJSON, JSONDecoder
from elkimg_async.sansio.sse import SSEDecoder
from tests.helpers.splits import cut, one_by_one, pieces
from tests.helpers.sse_streams import MEGABYTE, decode, recorded

places = st.lists(st.integers(0, 200), max_size=6)


def reference(stream: bytes) -> list[tuple[str, bytes, str, bool]]:
    """Return the events of a whole stream, read line by line."""
    events: list[tuple[str, bytes, str, bool]] = []
    name, identity = b"", b""
    data: list[bytes] = []
    *lines, last = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))

    def text(value: bytes) -> str:
        return value.decode("utf-8", "replace")

    for number, line in enumerate([*lines, last] if last else lines):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                events.append((text(name), b"\n".join(data), text(identity), True))
            name, data = b"", []
        elif line.startswith(b"{"):
            if data:
                events.append((text(name), b"\n".join(data), text(identity), True))
            name, data = b"", []
            if data:
                events.append((text(name), b"\n".join(data), text(identity), True))
            events.append(("", line, text(identity), number < len(lines)))
            name, data = b"", []
        elif field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"id" and b"\0" not in value:
            identity = value
    if data:
        events.append((text(name), b"\n".join(data), text(identity), False))
    return events


PARTS = [
    *(bytes((code,)) for code in b"\n\r: {ax7\0\xff"),
    b"\n",
    b"\r\n",
    b"\n\n",
    b"data",
    b"data:",
    b"data: ",
    b"event",
    b"event: x",
    b"id: 7",
    b"retry: 5",
    b": ping",
    b'{"a":1}',
    b"\xef\xbb\xbf",
]
streams = st.lists(st.sampled_from(PARTS), max_size=25).map(b"".join)


@settings(max_examples=100)
@given(stream=streams, where=places)
def test_sse_against_reference(stream: bytes, where: list[int]) -> None:
    """Any stream on any split has the events that reading it line by line finds."""
    expected = reference(stream)
    for chunks in ([stream], cut(stream, where), one_by_one(stream)):
        assert recorded(chunks) == expected


@settings(max_examples=100)
@given(stream=st.binary(max_size=120), where=places)
def test_sse_of_any_bytes(stream: bytes, where: list[int]) -> None:
    """Arbitrary bytes raise nothing, and splits change nothing."""
    whole = decode([stream])
    assert decode(cut(stream, where)) == whole
    assert decode(one_by_one(stream)) == whole


JSON_PARTS = [
    *[b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"\r"],
    b"data: ",
    b"data:",
    b'data: {"a":1,"b64_json":"QUJDREVG"}\n\n',
    b'event: x\ndata: {"b64_json":"QUJDREVGR0hJ","url":"data:;base64,QUJD"}\n\n',
    b'data: {"b64_json" : "',
    b'{"b64_json":"',
    b"QUJD",
    b"QUJDREVGR0hJ",
    b"QQ==",
    b"Q",
    b'"',
    b'"}',
    b"\\",
    b"event: x\n",
    b": ping\n",
    b"id: 7\n",
    b'{"error":1}',
]


@settings(max_examples=100)
@given(stream=st.lists(st.sampled_from(JSON_PARTS), max_size=10).map(b"".join), where=places)
def test_sse_with_images_against_reference(stream: bytes, where: list[int]) -> None:
    """Images in a stream equal those in the data of each event, on any split."""
    expected = []
    for name, data, _, _ in reference(stream):
        decoder = JSONDecoder()
        decoder.feed(data)
        expected.append((name, finished(decoder)))
    for chunks in ([stream], cut(stream, where), one_by_one(stream)):
        sse_decoder = SSEDecoder()
        for chunk in chunks:
            sse_decoder.feed(chunk)
        sse_decoder.finish()
        found = []
        while (event := sse_decoder.next_event()) is not None:
            found.append((event.name, finished(event.data)))
        assert found == expected


def finished(decoder: Any) -> str:
    try:
        document = decoder.finish()
    except InvalidJSON:
        return "invalid"
    value = document.value
    if not isinstance(value, dict):
        return repr(value)
    return repr([(key, document.restore(item)) for key, item in value.items()])


class Counted(bytes):
    """Chunk that counts the bytes searched."""

    touched = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        place = super().find(sub, start, end)
        last = len(self) if end is None else min(len(self), end)
        Counted.touched += (place if place >= 0 else last) - start
        return place


class CountedPattern:
    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern

    def search(self, data: bytes, start: int = 0) -> re.Match[bytes] | None:
        match = self._pattern.search(data, start)
        Counted.touched += (match.end() if match else len(data)) - start
        return match

    def match(self, data: bytes, start: int = 0) -> re.Match[bytes] | None:
        match = self._pattern.match(data, start)
        Counted.touched += match.end() - start if match else 0
        return match


def touched(stream: bytes, size: int, patch: pytest.MonkeyPatch) -> int:
    """Return the number of bytes searched for line ends and quotes."""
    with patch.context() as inner:
        for name, value in vars(sse).items():
            if isinstance(value, re.Pattern):
                inner.setattr(sse, name, CountedPattern(value))
        Counted.touched = 0
        decoder = SSEDecoder()
        decoder.feed(b": the first chunk is copied\n")
        for chunk in pieces(stream, size):
            decoder.feed(Counted(chunk))
        decoder.finish()
        return Counted.touched


SHAPES = {
    "one event": (b'event: x\ndata: {"b64_json":"', b"QUJDREVGR0hJSktM", b'"}\n\n'),
    "one event with CRLF": (b'event: x\r\ndata: {"b64_json":"', b"QUJDREVGR0hJ", b'"}\r\n\r\n'),
    "one event with escapes": (b'data: {"b64_json":"\\u0041', b"QUJDREVGR0hJ", b'"}\n\n'),
    "one event with another field": (b'data: {"a":"', b"hello world ", b'"}\n\n'),
    "many events": (b"", b'data: {"b64_json":"QUJDREVGR0hJSktM"}\n\n', b""),
    "many events with CRLF": (b"", b'data: {"b64_json":"QUJDREVGR0hJ"}\r\n\r\n', b""),
    "many events cut short": (b"", b'data: {"b64_json":"QUJDREVGR0hJ\n\n', b""),
    "one event of many lines": (b'data: {"b64_json":"QUJD', b"\ndata: QUJD", b'"}\n\n'),
    "many empty events": (b"", b"data:\n\n", b""),
    "many comments": (b"", b": ping\n\n", b""),
    "many bare lines": (b"", b"{}\n", b""),
    "one comment": (b":", b"x", b"\n"),
    "one unknown field": (b"foo: ", b"xy", b"\n"),
    "one line without end": (b"", b'data: {"b64_json":"', b""),
    "only quotes": (b'data: {"b64_json":"', b'"', b"\n\n"),
}


@pytest.mark.parametrize("size", [100, 10_000, 1 << 30])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sse_cost_doubles_with_the_input(
    shape: tuple[bytes, bytes, bytes], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the stream takes at most twice the search; each byte is examined a few times."""
    head, unit, tail = shape
    count = 50_000 // len(unit)
    once, twice = (
        touched(head + unit * times + tail, size, monkeypatch) for times in (count, 2 * count)
    )
    assert twice <= 2 * once + 20_000
    assert once <= 8 * len(unit) * count


@pytest.mark.parametrize("shape", list(SHAPES.values())[:4], ids=list(SHAPES)[:4])
def test_sse_cost_of_64_megabytes(
    shape: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte of a 64 MB event costs as much as a byte of a 1 MB event."""
    head, unit, tail = shape
    per_byte = []
    for size in (MEGABYTE, 64 * MEGABYTE):
        stream = head + unit * (size // len(unit)) + tail
        per_byte.append(touched(stream, 262_144, monkeypatch) / len(stream))
    assert per_byte[1] <= 1.5 * per_byte[0]
