"""What a body is, whatever its Content-Type claims and wherever it is split."""

import gzip
import json
from collections.abc import Callable

import pytest

from tests.helpers.bodies import Outcome, b64
from tests.helpers.splits import one_by_one, pieces

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
TEXT = "Ein Kätzchen — 小猫"
COMPLETED = {
    "type": "image_generation.completed",
    "b64_json": b64(PNG),
    "revised_prompt": TEXT,
}
PARTIAL = {"type": "image_generation.partial_image", "b64_json": b64(PNG[:99])}


def as_json(value: object, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode()


def in_parts(boundary: str, preamble: bytes = b"") -> bytes:
    edge = b"--" + boundary.encode()
    return preamble + b"\r\n".join(
        (edge, b"Content-Type: image/png", b"", PNG, edge, b"", as_json({"created": 1}), edge)
    ) + b"--\r\n"  # fmt: skip


RESPONSE = as_json({"created": 1, "data": [{"b64_json": b64(PNG), "revised_prompt": TEXT}]})
EVENT = b"data: " + as_json(COMPLETED) + b"\n\n"
ERROR = as_json({"error": {"message": TEXT, "code": "x"}})
PROSE = f"Voilà: {TEXT}. data: ".encode() * 3

WITH_IMAGES = {
    "JSON": RESPONSE,
    "indented JSON": as_json(json.loads(RESPONSE), indent=2),
    "JSON after blanks": b"\xef\xbb\xbf \r\n\r\n" + RESPONSE,
    "lines of JSON": as_json(PARTIAL) + b"\n" + as_json(COMPLETED) + b"\n",
    "a list": b"[" + RESPONSE + b"]",
    "JSON after a warning": b"<br />\n<b>Warning</b>: x\n" + RESPONSE,
    "JSON in gzip": gzip.compress(RESPONSE, mtime=0),
    "JSON in UTF-16": RESPONSE.decode().encode("utf-16"),
    "a JSON string": as_json(b64(PNG)),
    "base64": b64(PNG).encode(),
    "an address": b"https://cdn.example.com/a.png",
    "Markdown": f"{TEXT}: ![image](data:image/png;base64,{b64(PNG)})".encode(),
    "data lines": b"data: " + as_json(PARTIAL) + b"\n\n" + EVENT + b"data: [DONE]\n\n",
    "event lines": b"event: image_generation.completed\n" + EVENT,
    "comments": b": PING\n\n" + EVENT,
    "a comment in other letters": f": {TEXT}\n\n".encode() + EVENT,
    "id lines": b"id: 1\n" + EVENT,
    "retry lines": b"retry: 9\n" + EVENT,
    "unknown lines": b"version: 1\n" + EVENT,
    "unknown lines in other letters": f"x: {TEXT}\n".encode() + EVENT,
    "data without spaces": EVENT.replace(b"data: ", b"data:"),
    "a stream in gzip": gzip.compress(EVENT, mtime=0),
    "a stream after a byte order mark": b"\xef\xbb\xbf" + EVENT,
    "carriage returns": EVENT.replace(b"\n", b"\r"),
    "PNG": PNG,
    "WebP": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(range(99)),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(range(99)),
    "a long first box": b"\x01\0\0\x1cftypavif" + bytes(range(99)),
    "bitmap": b"BM" + bytes(range(99)),
    "Netpbm": b"P2\n2 1\n255\n0 255\n",
    "SVG": b'<?xml version="1.0"?><!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>',
    "parts": in_parts("other"),
    "parts with the same boundary": in_parts("bnd"),
}
WITHOUT_IMAGES = {
    "an error": ERROR,
    "an error in an event": b"event: error\ndata: " + ERROR + b"\n\n",
    "an error after a comment": b": PING\n\n" + ERROR,
    "a stream that was cut off": EVENT[:-9],
    "JSON that was cut off": RESPONSE[:-9],
    "parts that were cut off": in_parts("bnd")[:-40],
    "HTML": f"<!DOCTYPE html><html><p>{TEXT}</p></html>".encode(),
    "HTML without a head": f"<p>{TEXT}</p>".encode(),
    "words": PROSE,
    "words in ASCII": b"Bad gateway. Try again later, or ask for help with the gateway.",
    "words in Latin-1": "Voilà, rien du tout à voir".encode("latin-1") * 3,
    "hyphens": b"--- nothing ---\n" + PROSE,
    "the start of a field": b"dat",
    "a field": b"data:",
    "the start of a boundary": b"--bn",
    "blanks": b" \n ",
    "nothing": b"",
}
# Their Content-Type decides what they are.
BY_LABEL = {
    "an unknown format": b"XYZ\0" + bytes(range(256)),
    "an unknown format with a text header": b"a format of pictures, version 1.0\n" * 3 + PNG,
    "a short unknown format": b"\xfe\0\x01",
    "parts after a preamble": in_parts("bnd", b"This is a message in several parts.\r\n"),
    "parts after a field": in_parts("bnd", b"date: today\r\n\r\n"),
    "parts with a long header": in_parts("bnd").replace(
        b"\r\n", b"\r\n" + b"X" * 90 + b": 1\r\n", 1
    ),
}
BODIES = WITH_IMAGES | WITHOUT_IMAGES | BY_LABEL
TYPES = (
    *("", "application/json", "text/event-stream", "text/html; charset=utf-8", "image/png"),
    *("multipart/mixed; boundary=bnd", "application/octet-stream", "text/plain"),
)


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("name", BODIES)
def test_body_in_any_split(name: str, content_type: str) -> None:
    """Events, errors and images are the same for every split, whatever Content-Type claims."""
    body = BODIES[name]
    for stream in (False, True):
        whole = repr(Outcome([body], stream=stream, content_type=content_type))
        for size in (1, 2, 3, 7, 20):
            chunks = pieces(body, size)
            assert repr(Outcome(chunks, stream=stream, content_type=content_type)) == whole
        for place in range(1, min(len(body), 99), 3):
            chunks = iter((body[:place], body[place:]))
            assert repr(Outcome(chunks, stream=stream, content_type=content_type)) == whole


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_images_under_any_content_type(name: str, content_type: str) -> None:
    """A wrong Content-Type costs no image."""
    body = WITH_IMAGES[name]
    plain = Outcome([body], stream=True)
    assert plain.failure is None
    assert plain.images
    labelled = Outcome([body], stream=True, content_type=content_type)
    assert repr(labelled) == repr(plain)


@pytest.mark.parametrize("encode", [gzip.compress, lambda body: body.decode().encode("utf-16")])
def test_limit_of_an_encoded_body_in_any_split(encode: Callable[[bytes], bytes]) -> None:
    """The first chunk of an encoded body counts once, so the limit does not depend on its size."""
    body = encode(RESPONSE)
    for chunks in ([body], one_by_one(body)):
        assert Outcome(chunks, stream=False, max_bytes=len(RESPONSE) + len(body)).failure is None
