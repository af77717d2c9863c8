"""Splits of bytes into chunks, for decoders that must not depend on them."""

from collections.abc import Iterable, Iterator


def one_by_one(data: bytes) -> list[bytes]:
    """Return each byte as a chunk."""
    return [data[place : place + 1] for place in range(len(data))]


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """Yield the data in one chunk, byte by byte, and in two at every place, or at a hundred."""
    yield [data]
    yield one_by_one(data)
    for place in range(0, len(data) + 1, max(1, len(data) // 100)):
        yield [data[:place], data[place:]]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Split at these offsets; those beyond the end produce empty chunks."""
    chunks, start = [], 0
    for place in sorted(places):
        chunks.append(data[start:place])
        start = max(start, place)
    return [*chunks, data[start:]]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Yield chunks of one size, created one after the other."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
