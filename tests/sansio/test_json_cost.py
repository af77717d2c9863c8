"""The cost of decoding JSON with base64: bytes examined, and memory."""

import re
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any, Self

import pybase64
import pytest

from elkimg_async.sansio import base64_text, json_images
from elkimg_async.sansio.json_images import (
    JSONDecoder,
)
from tests.helpers.json_documents import MEGABYTE
from tests.helpers.splits import pieces


class Meter:
    """Counter of the bytes that the decoder searches, matches, decodes, slices or moves."""

    def __init__(self) -> None:
        self.bytes = 0

    def attach(self, patch: pytest.MonkeyPatch) -> None:
        for module in (json_images, base64_text):
            every: dict[str, Any] = dict(vars(module))
            for name, pattern in every.items():
                if isinstance(pattern, re.Pattern):
                    patch.setattr(module, name, MeteredPattern(pattern, self))
        patch.setattr(base64_text, "pybase64", MeteredPybase64(self))
        patch.setattr(json_images, "bytearray", partial(MeteredBytearray, self), raising=False)

    def searched(self, data: Sized, place: int, start: int | None, end: int | None) -> int:
        stop = len(data) if end is None else end
        self.bytes += (stop if place < 0 else place) - (start or 0)
        return place


class MeteredPattern:
    def __init__(self, pattern: re.Pattern[bytes], meter: Meter) -> None:
        self._pattern = pattern
        self._meter = meter

    def search(self, data: bytes, start: int = 0, end: int = sys.maxsize) -> re.Match[bytes] | None:
        match = self._pattern.search(data, start, end)
        self._meter.bytes += (match.end() if match else min(end, len(data))) - start
        return match

    def match(self, data: bytes, start: int = 0, end: int = sys.maxsize) -> re.Match[bytes] | None:
        self._meter.bytes += min(end, len(data)) - start
        return self._pattern.match(data, start, end)

    def fullmatch(self, data: bytes) -> re.Match[bytes] | None:
        self._meter.bytes += len(data)
        return self._pattern.fullmatch(data)

    def sub(self, new: Callable[[re.Match[bytes]], bytes], data: bytes) -> bytes:
        self._meter.bytes += len(data)
        return self._pattern.sub(new, data)


class MeteredPybase64:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def b64decode(self, data: bytes | memoryview, validate: bool) -> bytes:
        self._meter.bytes += len(data)
        return pybase64.b64decode(data, validate=validate)


class MeteredBytearray(bytearray):
    """Skeleton that counts the bytes added, removed or searched."""

    def __init__(self, meter: Meter, *content: Any) -> None:
        super().__init__(*content)
        self._meter = meter

    def find(self, sub: Any, start: Any = None, end: Any = None) -> int:
        return self._meter.searched(self, super().find(sub, start, end), start, end)

    def __iadd__(self, more: Any) -> Self:  # type: ignore[misc]
        self._meter.bytes += len(more)
        return super().__iadd__(more)

    def __delitem__(self, where: Any) -> None:
        before = len(self)
        super().__delitem__(where)
        self._meter.bytes += before - len(self)


class MeteredBytes(bytes):
    """Chunk that counts the bytes searched or copied."""

    meter: Meter

    def find(self, sub: Any, start: Any = None, end: Any = None) -> int:
        return self.meter.searched(self, super().find(sub, start, end), start, end)

    def __getitem__(self, where: Any) -> Any:
        self.meter.bytes += len(range(*where.indices(len(self)))) if isinstance(where, slice) else 1
        return super().__getitem__(where)


def work(chunks: Iterable[bytes]) -> int:
    """Return the number of bytes touched while feeding these chunks."""
    meter = Meter()
    with pytest.MonkeyPatch.context() as patch:
        meter.attach(patch)
        decoder = JSONDecoder()
        for chunk in chunks:
            metered = MeteredBytes(chunk)
            metered.meter = meter
            decoder.feed(metered)
        decoder.finish()
        return meter.bytes


SHAPES = {
    "one image": (b'{"b64_json":"', b"QUJDREVGR0hJSktM", b'"}'),
    "one image with an escape first": (b'{"b64_json":"\\u0041AAA', b"QUJDREVGR0hJSktM", b'"}'),
    "escapes everywhere": (b'{"b64_json":"', rb"QU\u004aD\/\/\/\/", b'"}'),
    "white space everywhere": (b'{"b64_json":"', b"QUJD\nREVG\n", b'"}'),
    "a prefix": (b'{"b64_json":"data:image/png;base64,', b"QUJDREVGR0hJSktM", b'"}'),
    "a prefix without end": (b'{"b64_json":"data:', b"AAAAAAAA", b'"}'),
    "not base64": (b'{"b64_json":"%', b"QUJDREVGR0hJSktM", b'"}'),
    "escaped quotes": (b'{"b64_json":"', rb"QUJDREVG\"", b'"}'),
    "backslashes": (b'{"b64_json":"', rb"\\", b'"}'),
    "line ends after padding": (b'{"b64_json":"QQ==', b"\n", b'"}'),
    "a data URL": (b'{"url":"data:;base64,', b"QUJDREVGR0hJSktM", b'"}'),
    "many small images": (b"[0", b',{"b64_json":"QUJDREVGR0hJ"}', b"]"),
    "many images of 9 KB": (b"[0", b',{"b64_json":"' + b"QUJD" * 2300 + b'"}', b"]"),
    "another field": (b'{"a":"', b"hello world ", b'"}'),
    "a string full of keys": (b'{"a":"', rb"\"b64_json\":\"", b'"}'),
    "keys without images": (b"[0", b',{"url":"x"},"b64_json"', b"]"),
    "keys with blanks": (b"[0", b',{"b64_json"               :null}', b"]"),
    "only blanks": (b"{", b" ", b"}"),
    "only quotes": (b"[0", b',""', b"]"),
}


@pytest.mark.parametrize("size", [100, 20_000, MEGABYTE])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_cost_doubles_with_the_input(shape: tuple[bytes, bytes, bytes], size: int) -> None:
    """Twice the input takes at most twice the work, in any form and split."""
    head, unit, tail = shape
    count = 100_000 // len(unit)
    once, twice = (work(pieces(head + unit * times + tail, size)) for times in (count, 2 * count))
    chance = 2 * count * len(unit) + 3 * 4096  # one more look at each byte, and the last steps
    assert twice <= 2 * once + chance


@pytest.mark.parametrize("name", ["one image", "one image with an escape first", "a data URL"])
def test_cost_of_64_megabytes(name: str) -> None:
    """A byte of a 64 MB string costs as much as a byte of a 1 MB string."""
    head, unit, tail = SHAPES[name]
    per_byte = []
    for size in (MEGABYTE, 64 * MEGABYTE):
        text = head + unit * (size // len(unit)) + tail
        per_byte.append(work(pieces(text, 262_144)) / len(text))
    assert per_byte[1] <= 1.1 * per_byte[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_cost_of_a_byte(shape: tuple[bytes, bytes, bytes]) -> None:
    """Each byte is examined a small, fixed number of times."""
    head, unit, tail = shape
    text = head + unit * (200_000 // len(unit)) + tail
    assert work(pieces(text, 65_536)) <= 12 * len(text)


def test_cost_of_clean_base64() -> None:
    """A byte of clean base64 is examined twice: by the search for a quote and by decoding."""
    text = b'{"b64_json":"' + b"QUJD" * MEGABYTE + b'"}'
    assert work(pieces(text, 65_536)) <= 2.02 * len(text)


def test_meter_counts_a_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter detects a decoder that searches its whole skeleton for each chunk."""
    monkeypatch.setattr(json_images, "_MAX_KEY", MEGABYTE)
    once, twice = (work(pieces(b'"' + b"x" * size + b'"', 100)) for size in (50_000, 100_000))
    assert twice > 3 * once


@pytest.mark.parametrize("beginning", [b"QUJD", b"\\u0051UJD", b"data:image/png;base64,QUJD"])
def test_memory_of_one_image(beginning: bytes) -> None:
    """An image is held once, with some room to grow, and its base64 never."""
    unit, count = b"QUJDREVGR0hJSktM" * 4096, 256
    size = 3 + len(unit) * count * 3 // 4
    decoder = JSONDecoder()
    decoder.feed(b'{"b64_json":"' + beginning)
    tracemalloc.start()
    try:
        for _ in range(count):
            decoder.feed(unit)
        held = tracemalloc.get_traced_memory()[0]
        fed = tracemalloc.get_traced_memory()[1]
        decoder.feed(b'"}')
        found = decoder.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.decoded(found.value["b64_json"]) == b"ABC" + b"ABCDEFGHIJKL" * (size // 12)
    assert held <= fed <= peak <= 1.15 * size  # an eighth in advance, and what is being decoded


@pytest.mark.parametrize("length", [0, 1, 50, 10_000, 10**15])
def test_length_that_a_document_is_said_to_have(length: int) -> None:
    """A wrong expected length does not change the images."""
    images = [bytes(range(250)) * times for times in (1, 40, 3)]
    text = b'{"data":[%b]}' % b",".join(
        b'{"b64_json":"%b"}' % pybase64.b64encode(image) for image in images
    )
    for size in (1, 100, len(text)):
        decoder = JSONDecoder(length)
        for start in range(0, len(text), size):
            decoder.feed(text[start : start + size])
        document = decoder.finish()
        assert [document.decoded(item["b64_json"]) for item in document.value["data"]] == images


def test_memory_of_several_images() -> None:
    """Each of several images is held once."""
    unit, count = b"QUJDREVGR0hJSktM" * 4096, 32
    size = len(unit) * count * 3 // 4
    decoder = JSONDecoder()
    tracemalloc.start()
    try:
        for _ in range(8):
            decoder.feed(b'{"b64_json":"')
            for _ in range(count):
                decoder.feed(unit)
            decoder.feed(b'"}')
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 8.2 * size
