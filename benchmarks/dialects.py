"""Dialects and error shapes, beside the `openai` client: `python -m benchmarks.dialects`.

Sends every dialect of a successful response and every shape of an error from a local server, and
prints two Markdown tables: the images that went in and came out of a batch call, a stream and an
edit, and the message, code and class of each error. Ends with status 1 if this client loses or
invents an image, or does not find the server's message.
"""

import asyncio
import base64
import binascii
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal, NamedTuple

import openai

from elkimg_async import AsyncImages, ElkImagesError
from tests.helpers.dialects import DIALECTS, MULTIPARTS, PNG, RAW, STREAMS, TEXTS, Came, sse
from tests.helpers.error_bodies import SHAPES, WORDS
from tests.helpers.raw_server import API_KEY, RawServer, Reply, response, stream

Way = Literal["batch", "stream", "edit"]
Images = Callable[[Way, bool], Awaitable[Came]]
WAYS: tuple[Way, ...] = ("batch", "stream", "edit")
MODEL = "any-image-model"
PAGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
# Shapes that depend on the status: name, status, body, message and class.
STATUSES: list[tuple[str, int, object, str, str]] = [
    ("no credit", 402, {"error": {"message": WORDS}}, WORDS, "QuotaExceededError"),
    ("a web page", 403, PAGE, "", "PermissionDeniedError"),
    ("a web page", 503, PAGE, "", "ServerError"),
    ("a web page", 524, PAGE, "", "ServerError"),
    ("an empty body", 429, b"", "", "RateLimitError"),
    *(
        ("moderation", 400, {"error": {"message": WORDS, "code": code}}, WORDS, "ModerationError")
        for code in (
            "moderation_blocked",
            "content_filter",
            "contentFilter",
            "data_inspection_failed",
            "OutputImageSensitiveContentDetected",
        )
    ),
]


class Case(NamedTuple):
    """One dialect: its responses to a batch call and a stream, and the images in them."""

    name: str
    batch: Reply | None
    stream: Reply
    images: Came

    @property
    def ways(self) -> tuple[Way, ...]:
        """The calls that the dialect can be sent to."""
        return WAYS if self.batch is not None else ("stream", "edit")

    def reply(self, way: Way) -> Reply:
        """Return the response to one call; an edit is a stream only where no batch exists."""
        return self.stream if way == "stream" or self.batch is None else self.batch


class Row(NamedTuple):
    """The results of one dialect: images out, and what became of them in the other client."""

    case: Case
    ours: dict[Way, int | str]
    theirs: dict[Way, str]
    right: bool


class ErrorRow(NamedTuple):
    """The result of one error shape."""

    name: str
    status: int
    message: str
    code: str | None
    kind: str
    right: bool


def cases() -> Iterator[Case]:
    """Return every dialect."""
    for name, (value, images) in DIALECTS.items():
        yield Case(name, response(value), stream(sse(value)), images)
    for name, (events, expected) in STREAMS.items():
        sent: Came = [PNG if image == "PNG" else image for image, _ in expected]
        yield Case(f"stream: {name}", None, stream(events), sent)
    for name, (text, images) in TEXTS.items():
        whole = response(text.encode(), content_type="text/plain")
        yield Case(f"body: {name}", whole, whole, images)
    for name, (raw, images) in MULTIPARTS.items():
        whole = response(raw, content_type='multipart/mixed; boundary="edge"')
        yield Case(f"parts: {name}", whole, whole, images)
    for name, (raw, content_type, images) in RAW.items():
        whole = response(raw, content_type=content_type)
        yield Case(f"body: {name}", whole, whole, images)


async def measure_images() -> list[Row]:
    """Send every dialect to both clients."""
    async with (
        RawServer(response(b"")) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=0, timeout=20) as ours,
        openai.AsyncOpenAI(
            api_key=API_KEY, base_url=server.base_url, max_retries=0, timeout=20
        ) as theirs,
    ):
        return [await _measure(case, server, ours, theirs) for case in cases()]


async def _measure(
    case: Case, server: RawServer, ours: AsyncImages, theirs: openai.AsyncOpenAI
) -> Row:
    out: dict[Way, int | str] = {}
    other: dict[Way, str] = {}
    right = True
    for way in case.ways:
        server.reply_with(case.reply(way))
        streaming = way == "stream" or case.batch is None
        try:
            came = [_relative(image, server.origin) for image in await _ours(ours, way, streaming)]
        except ElkImagesError as error:
            out[way], right = type(error).__name__, False
        else:
            out[way], right = len(came), right and came == case.images
        try:
            found = await _theirs(theirs, way, streaming)
        except Exception:  # noqa: BLE001 - pydantic's, httpx's and Python's errors are all seen
            other[way] = "error"
        else:
            other[way] = "lost" if Counter(case.images) - Counter(found) else "delivered"
    return Row(case, out, other, right)


async def _ours(client: AsyncImages, way: Way, streaming: bool) -> Came:
    if streaming:
        opened = (
            client.edit(PNG, "an otter", model=MODEL, stream=True)
            if way == "edit"
            else client.generate("an otter", model=MODEL, stream=True)
        )
        async with opened as events:
            return [event.image.content or event.image.url async for event in events]
    result = await (
        client.edit(PNG, "an otter", model=MODEL)
        if way == "edit"
        else client.generate("an otter", model=MODEL)
    )
    return [image.content or image.url for image in result]


def _relative(image: bytes | str | None, origin: str) -> bytes | str | None:
    """Return a path that was completed with the server's origin as it was sent."""
    return image.removeprefix(origin) if isinstance(image, str) else image


async def _theirs(client: openai.AsyncOpenAI, way: Way, streaming: bool) -> Came:
    call: Any = client.images.edit if way == "edit" else client.images.generate
    files = {"image": ("image.png", PNG, "image/png")} if way == "edit" else {}
    result = await call(prompt="an otter", model=MODEL, stream=streaming, **files)
    images = [item async for item in result] if streaming else result.data
    return [content for image in images for content in _contents(image)]


def _contents(image: Any) -> Iterator[bytes | str]:
    """Return what a reader of `b64_json` and `url` gets."""
    if text := getattr(image, "b64_json", None):
        try:
            yield base64.b64decode(text)
        except binascii.Error:
            return
    if url := getattr(image, "url", None):
        yield url if isinstance(url, str) else ""


async def measure_errors() -> list[ErrorRow]:
    """Send every error shape with status 400 and 200, and those that depend on the status."""
    rows = []
    async with (
        RawServer(response(b"")) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=0, timeout=20) as client,
    ):

        async def measure(
            name: str,
            status: int,
            body: object,
            message: str,
            kind: str,
            expected: str | None = None,
        ) -> None:
            text = isinstance(body, bytes)
            content_type = "text/html" if text else "application/json"
            server.reply_with(response(body, status=status, content_type=content_type))
            try:
                await client.generate("an otter", model=MODEL)
            except ElkImagesError as error:
                found = type(error).__name__
                words = str(getattr(error, "message", error))
                right = words == message and kind in ("", found)
                code = getattr(error, "code", None)
                right = right and expected in (None, code)
                rows.append(ErrorRow(name, status, words, code, found, right))
            else:
                rows.append(ErrorRow(name, status, "", None, "no error", False))

        for name, (body, code, _) in SHAPES.items():
            xml = isinstance(body, str)
            for status in (400,) if xml else (400, 200):
                await measure(name, status, body.encode() if xml else body, WORDS, "", code)
        for row in STATUSES:
            await measure(*row)
    return rows


def image_table(rows: list[Row]) -> str:
    """Return the table of dialects, with the totals as its last line."""
    lines = [
        "| dialect | images in | batch | stream | edit | `openai`: batch, stream, edit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours = " | ".join(str(row.ours.get(way, "-")) for way in WAYS)
        theirs = ", ".join(row.theirs.get(way, "-") for way in WAYS)
        lines.append(f"| {_cell(row.case.name)} | {len(row.case.images)} | {ours} | {theirs} |")
    went_in = {way: sum(len(row.case.images) for row in rows if way in row.ours) for way in WAYS}
    came = {
        way: sum(count for row in rows if isinstance(count := row.ours.get(way), int))
        for way in WAYS
    }
    totals = " | ".join(f"{came[way]} of {went_in[way]}" for way in WAYS)
    counts = Counter(result for row in rows for result in row.theirs.values())
    theirs = ", ".join(f"{counts[name]} {name}" for name in ("delivered", "lost", "error"))
    lines.append(f"| **{len(rows)} dialects** | | {totals} | {theirs} |")
    return "\n".join(lines)


def error_table(rows: list[ErrorRow]) -> str:
    """Return the table of errors."""
    lines = ["| error shape | status | message | code | class |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row.name} | {row.status} | {_cell(row.message)} | {row.code or ''} | {row.kind} |"
        for row in rows
    ]
    right = sum(row.right for row in rows)
    lines.append(f"| **{right} of {len(rows)} as expected** | | | | |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("|", "\\|")


async def main() -> int:
    images, failures = await measure_images(), await measure_errors()
    print(image_table(images), error_table(failures), sep="\n\n")
    return 0 if all(row.right for row in images) and all(row.right for row in failures) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
