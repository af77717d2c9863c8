"""Prepared responses: complete HTTP responses, and the hashes of their images.

The URL contains the `Spec` of a response, so server and client need to share nothing else. The
bytes depend on the spec alone.
"""

import base64
import hashlib
import json
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

KINDS = ("url", "json", "stream")
CREATED = 1_710_000_000
USAGE = {
    "total_tokens": 4210,
    "input_tokens": 50,
    "output_tokens": 4160,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
}
SETTINGS = {
    "size": "1024x1024",
    "quality": "high",
    "background": "opaque",
    "output_format": "png",
}
PNG_HEAD = bytes.fromhex("89504e470d0a1a0a0000000d494844520000040000000400080200000026")
# Bytes of the last image's base64 that a held response sends late.
TAIL = 64


@dataclass(frozen=True)
class Spec:
    """The kind of a response, its number of images or events, and their size in bytes."""

    kind: str
    count: int = 1
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind}-{self.count}-{self.size}"

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Parse the output of `str`.

        Raises:
            ValueError: If the text is not a spec.
        """
        kind, count, size = text.split("-")
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of response")
        return cls(kind, int(count), int(size))

    @property
    def decoded(self) -> int:
        """The decoded size of all images, in bytes."""
        return self.count * self.size


class PreparedResponse(NamedTuple):
    """A prepared response."""

    wire: bytes
    """Status line, headers and body, framed."""
    cut: int
    """Where the held tail of `wire` starts: shortly before the end of the last image."""
    hashes: list[str]
    """SHA-256 of each image, or of its URL, in order."""
    body: str
    """SHA-256 of the body without framing."""


def image(index: int, size: int) -> bytes:
    """Return `size` bytes that start like a PNG, followed by noise."""
    noise = random.Random(f"{index}/{size}").randbytes(size)
    return (PNG_HEAD + noise)[:size]


def build(spec: Spec) -> PreparedResponse:
    """Return the response for a spec."""
    if spec.kind == "url":
        return _url_response(spec)
    images = [image(index, spec.size) for index in range(spec.count)]
    texts = [base64.b64encode(one).decode("ascii") for one in images]
    hashes = [digest(one) for one in images]
    return (
        _stream_response(texts, hashes) if spec.kind == "stream" else _json_response(texts, hashes)
    )


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def simple(body: bytes, status: str = "200 OK") -> bytes:
    """Return a JSON response with a Content-Length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode("ascii") + b"\r\n\r\n" + body


def _url_response(spec: Spec) -> PreparedResponse:
    urls = [f"https://images.example/{index:04d}.png" for index in range(spec.count)]
    body = _dump({"created": CREATED, "data": [{"url": url} for url in urls], "usage": USAGE})
    wire = simple(body)
    return PreparedResponse(
        wire, len(wire) - TAIL, [digest(url.encode()) for url in urls], digest(body)
    )


def _json_response(texts: list[str], hashes: list[str]) -> PreparedResponse:
    data = [{"b64_json": text} for text in texts]
    body = _dump({"created": CREATED, **SETTINGS, "data": data, "usage": USAGE})
    wire = simple(body)
    return PreparedResponse(wire, _cut(wire, texts[-1]), hashes, digest(body))


def _stream_response(texts: list[str], hashes: list[str]) -> PreparedResponse:
    frames = [_partial(index, text) for index, text in enumerate(texts[:-1])]
    frames += [_completed(texts[-1]), b"data: [DONE]\n\n"]
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames]
    wire = b"".join([head, *chunks, b"0\r\n\r\n"])
    return PreparedResponse(wire, _cut(wire, texts[-1]), hashes, digest(b"".join(frames)))


def _partial(index: int, text: str) -> bytes:
    kind = "image_generation.partial_image"
    return _frame(
        kind,
        {
            "type": kind,
            "b64_json": text,
            "created_at": CREATED,
            **SETTINGS,
            "partial_image_index": index,
        },
    )


def _completed(text: str) -> bytes:
    kind = "image_generation.completed"
    fields = {"b64_json": text, "created_at": CREATED, **SETTINGS, "usage": USAGE}
    return _frame(kind, {"type": kind, **fields})


def _frame(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode("ascii"), _dump(fields))


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _cut(wire: bytes, text: str) -> int:
    end = text[-TAIL:].encode("ascii")
    return wire.rindex(end) + len(end) - min(TAIL, len(end))
