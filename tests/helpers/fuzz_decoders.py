"""Properties of the decoders for any bytes, and a coverage-guided search for exceptions.

    python -m tests.helpers.fuzz_decoders [json|sse|body] -max_total_time=60

needs atheris (https://github.com/google/atheris) and takes the options of libFuzzer. Without it,
`tests/sansio/test_fuzz.py` checks the same for what hypothesis grows.

The results are compared with an independent parser, slow and simple, so that no mistake
is made twice. Where a document is valid, an image must have the very bytes that it finds.
"""

import base64
import binascii
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elkimg_async.errors import (
    APIError,
    ElkImagesError,
    EmptyResultError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.sansio.base64_text import BadBase64
from elkimg_async.sansio.decoder import ImagesDecoder, SkippedEvent
from elkimg_async.sansio.json_images import Document, InvalidJSON, JSONDecoder
from elkimg_async.sansio.responses import CompletedImage, PartialImage
from elkimg_async.sansio.signatures import cannot_be_image
from elkimg_async.sansio.sse import SSEDecoder

# The only errors that each decoder may raise, and from where: `JSONDecoder.finish`, the same for
# the data of an event of `SSEDecoder`, which itself raises none, and `ImagesDecoder.next_event`.
JSON_ERRORS = (InvalidJSON,)
EVENT_DATA_ERRORS = (InvalidJSON,)
BODY_ERRORS = (APIError, EmptyResultError, ResponseError, StreamIncompleteError)

MAX_BYTES = 1 << 16
BROKEN = "broken"
Given = bytes | str | None

IMAGE = b"\xff\xd8\xff" + bytes(range(256)) + b"\xfb\xef\xbe\xff"
TEXT = base64.b64encode(IMAGE)
COMPLETED, PARTIAL = b"image_generation.completed", b"image_generation.partial_image"
USAGE = b'"usage":{"total_tokens":7,"input_tokens_details":{"text_tokens":1.5}}'
SEEDS = {
    "json": b'{"created":1,"data":[{"b64_json":"%b","revised_prompt":"\\u00e9"},'
    b'{"b64_json":"/9j/QUJD"}],%b}' % (TEXT, USAGE),
    "json spelt out": b' {\r\n "data": [\n {"url": "data:image/png;base64,%b",'
    b' "b64_json": null}\n]}\r\n' % TEXT,
    "json escaped": b'{"data":[{"b64_json":"%b"}]}'
    % TEXT.replace(b"+", rb"\u002B").replace(b"/", rb"\/"),
    "error": b'{"error":{"message":"no (request id: 1)","type":"x","code":"rate_limit_exceeded"}}',
    "stream": b'event: %b\ndata: {"type":"%b","b64_json":"%b","partial_image_index":0}\n\n'
    % (PARTIAL, PARTIAL, TEXT)
    + b'event: %b\ndata: {"type":"%b","b64_json":"%b",%b}\n\ndata: [DONE]\n\n'
    % (COMPLETED, COMPLETED, TEXT, USAGE),
    "stream with carriage returns": b": PING\r\n\r\nid: 7\r\ndata: "
    + b'{"type":"%b",\r\ndata: "b64_json":"%b"}\r\n\r\n' % (COMPLETED, TEXT),
    "bare error": b': PING\n\n{"error":{"message":"no","code":429}}\n',
    "page": b"<!doctype html><title>404</title>",
}
"""Bodies as servers send them."""

TOKENS = [
    *(bytes((code,)) for code in b'"\\{}[]:,\n\r =-+/_01A\0\xff\xed<'),
    *(b"\n\n", b"\r\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xef\xbb"),
    *(b"data:", b"data: ", b"event: ", b"event: error\n", b"id: ", b"retry: 1", b": PING\n\n"),
    *(b"data: [DONE]\n\n", b"[DONE]", b"event: " + COMPLETED + b"\n", b'"type":"' + PARTIAL + b'"'),
    *(
        b'"b64_json"',
        b'"b64_json":"',
        b'"b64_json" : "',
        rb"\"b64_json\":\"",
        rb'"b64\u005fjson":"',
    ),
    *(b'"url":"', b'"url":"data:', b"data:image/png;base64,", b";base64,", b"https://a/b.png"),
    *(
        b'{"error":',
        b'"error":',
        b'"data":[',
        b'"usage":{',
        b'"created":',
        b'"partial_image_index":',
    ),
    *(rb"\u002B", rb"\u002b", rb"\/", rb"\n", rb"\u000a", rb"\ud800", rb"\ud83d\ude00", rb"\u0022"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"9" * 30, b"0.0000001", b"-0"),
    *(b"QUJD", b"QUJDREVGR0hJ", b"QQ==", b"QQ", b"Q", b"====", b"-_-_", TEXT, TEXT[:-4]),
    *(b"[" * 200, b'{"a":' * 100, b"]" * 200, b"}" * 100, b"#image 0", b" " * 70),
]
"""Text with a meaning for one of the decoders."""


# --- the slow parser ---------------------------------------------------------


def slow_image(text: str) -> Given:
    """Return the bytes of a base64 string, None for an empty one, or `BROKEN`."""
    if not text:
        return None
    text = re.sub(r"[ \t\r\n]", "", text)
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64") or len(head) > 256:
            return BROKEN
    text = text.replace("-", "+").replace("_", "/")
    text += "=" * (-len(text) % 4)
    if not re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", text, re.ASCII):
        return BROKEN
    try:
        return binascii.a2b_base64(text, strict_mode=True) or None
    except binascii.Error:
        return BROKEN


def slow_value(data: bytes) -> Any:
    """Return a JSON document with images in place; `InvalidJSON` if it is invalid."""
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"), strict=False, parse_int=float)
    except (ValueError, RecursionError):
        return InvalidJSON
    return _with_images(value)


def _with_images(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _with_images(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_images(item) for item in value]
    if key == "b64_json":
        return slow_image(value) if isinstance(value, str) else None
    if key == "url" and isinstance(value, str) and value[:5].lower() == "data:":
        return slow_image(value)
    return value


class SlowEvent(NamedTuple):
    """A server-sent event, byte for byte."""

    name: str
    data: bytes
    terminated: bool


def is_bare(line: bytes) -> bool:
    """Return whether a line is an event of its own."""
    return line.startswith((b"{", b"[")) and not line.startswith(b"[DONE]")


def slow_events(stream: bytes) -> list[SlowEvent]:
    """Return the events of a whole stream, read line by line."""
    events: list[SlowEvent] = []
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    name, data = "", list[bytes]()
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        if not line or is_bare(line):
            if data:
                events.append(SlowEvent(name, b"\n".join(data), bool(line) or not last))
            name, data = "", []
        if is_bare(line):
            events.append(SlowEvent("", line, not last))
            continue
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.removeprefix(b" ").decode("utf-8", "replace")
        elif field == b"data":
            data.append(value.removeprefix(b" "))
    if data:
        events.append(SlowEvent(name, b"\n".join(data), terminated=False))
    return events


def slow_images(body: bytes) -> list[tuple[bytes, bool]] | None:
    """Return the images of a flawless body, and whether it completed; None for any other."""
    if body.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"<"):
        return None  # a web page, whatever follows
    value = slow_value(body)
    if value is not InvalidJSON:
        items = value.get("data") if isinstance(value, dict) and not _is_error(value) else None
        return _all_good(items) if isinstance(items, list) and items else None
    found: list[Any] = []
    for event in slow_events(body):
        if event.data == b"[DONE]":
            break
        value = slow_value(event.data)
        if (
            not isinstance(value, dict)
            or _is_error(value)
            or event.name not in ("", value.get("type"))
        ):
            return None
        if value.get("type") not in (COMPLETED.decode(), PARTIAL.decode()):
            return None
        found.append(value)
    return _all_good(found) or None


def _is_error(value: dict[str, Any]) -> bool:
    return bool(value.get("error")) or value.get("type") in ("error", "upstream_error")


def _all_good(items: list[Any]) -> list[tuple[bytes, bool]] | None:
    found = []
    for item in items:
        image = item.get("b64_json") if isinstance(item, dict) and "url" not in item else None
        if not isinstance(image, bytes) or cannot_be_image(image):
            return None
        found.append((image, item.get("type") != PARTIAL.decode()))
    return found


def every_image(body: bytes) -> set[Given]:
    """Return every string of a body, and its value as an image."""
    found: set[Given] = {body.strip(b" \t\r\n\xef\xbb\xbf")}
    texts = [body, *(event.data for event in slow_events(body))]
    texts += [line.removeprefix(b"data:").strip() for line in re.split(rb"[\r\n]", body)]
    for text in texts:
        for inside in re.findall(rb'"((?:[^"\\]|\\.)*+)', text, re.DOTALL):
            written = inside.decode("utf-8", "replace")
            try:
                string = json.loads(f'"{written}"', strict=False)
            except ValueError:
                string = written
            found |= {
                string,
                slow_image(string),
                slow_image(re.split("[,:;]", string[:512])[-1] + string[512:]),
            }
        found.add(slow_image(text.decode("utf-8", "replace").strip()))
    return found


# --- what must hold ----------------------------------------------------------


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return chunks of these sizes in turn; everything as one chunk without sizes."""
    chunks: list[bytes] = []
    start = 0
    while start < len(data):
        size = sizes[len(chunks) % len(sizes)] if sizes and any(sizes) else len(data)
        chunks.append(data[start : start + size])
        start += size
    return chunks


def read_value(decoder: Any) -> Any:
    """Return a finished document with images in place; the class `InvalidJSON` if invalid."""
    try:
        found: Document = decoder.finish()
    except EVENT_DATA_ERRORS:
        return InvalidJSON
    return _resolved(found, found.value)


def _resolved(found: Document, value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _resolved(found, item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolved(found, item) for item in value]
    if isinstance(value, str) and (
        key == "b64_json"
        or value in found.images
        or (key == "url" and value[:5].lower() == "data:")
    ):
        image = found.decoded(value) if value else None
        return BROKEN if isinstance(image, BadBase64) else image
    if key == "b64_json":
        return None if isinstance(value, (int, float, type(None))) else value
    return float(value) if type(value) is int else value  # its precision does not matter here


def check_json(chunks: Iterable[bytes]) -> None:
    """Check that a document equals the slow parser's, or raises `InvalidJSON`."""
    decoder, fed = JSONDecoder(), b""
    for chunk in chunks:
        decoder.feed(chunk)
        fed += chunk
    assert decoder.size == len(fed)
    assert len(decoder.text(50)) <= 50
    found, expected = read_value(decoder), slow_value(fed)
    if expected is not InvalidJSON:
        assert repr(found) == repr(expected), (fed, found, expected)


def check_sse(chunks: Iterable[bytes]) -> None:
    """Check that the events equal the slow parser's, and that nothing is raised."""
    decoder, fed = SSEDecoder(), b""
    events: list[Any] = []
    for chunk in chunks:
        decoder.feed(chunk)
        fed += chunk
        while (event := decoder.next_event()) is not None:
            events.append(event)
    decoder.finish()
    while (event := decoder.next_event()) is not None:
        events.append(event)
    slow = slow_events(fed)
    assert [(event.name, event.terminated) for event in events] == [
        (event.name, event.terminated) for event in slow
    ], fed
    for event, expected in zip(events, slow, strict=True):
        assert len(event.data.text(50)) <= 50
        found, value = read_value(event.data), slow_value(expected.data)
        if value is not InvalidJSON:
            assert repr(found) == repr(value), (fed, found, value)


def check_body(chunks: Iterable[bytes], *, stream: bool) -> None:
    """Check that a body becomes its images or an error, and that no image is lost."""
    decoder, fed = ImagesDecoder(stream=stream, max_bytes=MAX_BYTES), b""
    given: list[PartialImage | CompletedImage] = []
    failure: ElkImagesError | None = None
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            fed += chunk
            _take(decoder, given)
        decoder.finish()
        _take(decoder, given)
    except BODY_ERRORS as error:
        failure = error
    if failure is not None:
        assert failure is decoder.failure
        assert str(failure)
        assert repr(failure)
        assert failure.__context__ is None
        assert failure.billing in ("refused", "unknown")
    images = [event.image.content or event.image.url for event in given]
    completed = [event.image for event in given if isinstance(event, CompletedImage)]
    assert len({id(event) for event in given}) == len(given)
    known = every_image(fed)
    assert all(image in known or not isinstance(image, bytes) for image in images), (fed, images)
    expected = slow_images(fed)
    if expected is not None:
        kinds = [isinstance(event, CompletedImage) for event in given]
        assert list(zip(images, kinds, strict=True)) == expected, (fed, images)
    if failure is None:
        assert completed
        assert list(decoder.response()) == completed
    else:
        assert expected is None or not any(kind for _, kind in expected), (fed, failure)
    if isinstance(failure, (APIError, ResponseError)):
        assert list(failure.images)[: len(completed)] == completed


def _take(decoder: ImagesDecoder, given: list[PartialImage | CompletedImage]) -> None:
    while (event := decoder.next_event()) is not None:
        if not isinstance(event, SkippedEvent):
            given.append(event)


# --- the search --------------------------------------------------------------


def check(target: str, data: bytes) -> None:
    """Check one input: four bytes select the split, and a fifth the decoder."""
    sizes = [size % 64 for size in data[:3]] if data[3:4] > b"\x40" else []
    chunks = cut(data[5:], sizes)
    stream = data[4:5] > b"\x7f"
    match target if target in CHECKS else ("json", "sse", "body")[sum(data[4:5]) % 3]:
        case "json":
            check_json(chunks)
        case "sse":
            check_sse(chunks)
        case _:
            check_body(chunks, stream=stream)


CHECKS = ("json", "sse", "body")


def main(arguments: list[str]) -> None:
    """Search with libFuzzer, with the seeds, and the tokens as its dictionary."""
    atheris: Any = importlib.import_module("atheris")

    target = arguments.pop(1) if arguments[1:2] and arguments[1] in CHECKS else ""
    for function in _instrumented():
        atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS.values()):
            for how in (b"\x00\x00\x00\x00\x00", b"\x01\x01\x01\xff\x01", b"\x07\x1f\x03\xff\xff"):
                (corpus / f"{number}-{how.hex()}").write_bytes(how + seed)
        words = Path(folder, "tokens")
        words.write_text("".join(f'"{_quoted(token)}"\n' for token in TOKENS if len(token) <= 64))
        options = [f"-dict={words}", f"-max_len={MAX_BYTES // 16}", "-timeout=10", *arguments[1:]]
        if all(
            argument.startswith("-") for argument in arguments[1:]
        ):  # otherwise a finding is reproduced
            options.append(str(corpus))
        atheris.Setup([arguments[0], *options], lambda data: check(target, data))
        atheris.Fuzz()


def _instrumented() -> Iterable[Callable[..., Any]]:
    from elkimg_async.sansio import decoder, error_mapping, json_images, responses, sse

    for module in (decoder, error_mapping, json_images, responses, sse):
        for owner in (
            module,
            *(thing for thing in vars(module).values() if isinstance(thing, type)),
        ):
            if getattr(owner, "__module__", module.__name__) == module.__name__:
                yield from (
                    thing
                    for thing in vars(owner).values()
                    if callable(thing)
                    and hasattr(thing, "__code__")
                    and thing.__module__ == module.__name__
                )


def _quoted(token: bytes) -> str:
    return "".join(f"\\x{code:02x}" for code in token)


if __name__ == "__main__":
    main(sys.argv)
