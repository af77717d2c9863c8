"""The ways to cut bytes into chunks, for decoders that must not care."""

from collections.abc import Iterable, Iterator


def one_by_one(data: bytes) -> list[bytes]:
    """Each byte as a chunk of its own."""
    return [data[place : place + 1] for place in range(len(data))]


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and cut in two at every place, the ends included."""
    yield [data]
    yield one_by_one(data)
    for place in range(len(data) + 1):
        yield [data[:place], data[place:]]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut at these places; those beyond the end give empty chunks."""
    chunks, start = [], 0
    for place in sorted(places):
        chunks.append(data[start:place])
        start = max(start, place)
    return [*chunks, data[start:]]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Chunks of one size, made one after the other."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
