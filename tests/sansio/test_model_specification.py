"""Requests that the specification allows or forbids, sent by the client to a real server.

Written from OpenAI's documentation alone, without the table of the rules, so that a mistake there
is not repeated here.
"""

import asyncio
import random
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest

from elkimg_async import AsyncImages, InvalidRequestError
from tests.helpers.dialects import ONE
from tests.helpers.raw_server import API_KEY, RawServer, response

COUNT = 400

OLD = ["gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest"]
TWO = ["gpt-image-2", "gpt-image-2-2026-04-21"]
TWO_FIVE = [
    *("gpt-image-2.5-sunburst", "gpt-image-2.5-flare"),
    *("gpt-image-2.5-sunburst-2026-09-08", "gpt-image-2.5-flare-2026-09-08"),
]
TWO_SIX = ["gpt-image-2.6-sunburst", "gpt-image-2.6-flare"]
FREE = [*TWO, *TWO_FIVE, *TWO_SIX]
GPT = [*OLD, *FREE]
UNKNOWN = ["gpt-image-3", "flux-2-pro", "seedream-5", "gpt-image-2.7-flare", "x"]
EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Sent(NamedTuple):
    """One request: the call, the model and the other arguments."""

    edit: bool
    model: str
    fields: dict[str, Any]
    stream: bool = False


def image(width: int, height: int, *, kind: str = "png", alpha: bool = True) -> Any:
    """Return a small image file with the header of its type."""
    if kind == "jpeg":
        frame = struct.pack(">BHBHHB", 0xC0, 17, 8, height, width, 3) + bytes(9)
        return ("photo.jpg", b"\xff\xd8\xff" + frame + b"\xff\xd9", "image/jpeg")

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 6 if alpha else 2, 0, 0, 0)
    row = b"\0" + bytes((4 if alpha else 3) * width)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * height)) + chunk(b"IEND", b"")
    return ("image.png", b"\x89PNG\r\n\x1a\n" + body, "image/png")


def large(file: Any, size: int) -> Any:
    """Return a file padded to a size."""
    name, content, kind = file
    return name, content + bytes(size - len(content)), kind


def free_size(chance: random.Random) -> str:
    """Return a size that the newer models have, from its definition."""
    while True:
        width, height = chance.randint(1, 240) * 16, chance.randint(1, 240) * 16
        pixels = width * height
        if max(width, height) <= 3 * min(width, height) and 655_360 <= pixels <= 8_294_400:
            return f"{width}x{height}"


def allowed(chance: random.Random, *, edit: bool) -> Sent:
    """Return a request that the specification allows."""
    model = chance.choice(GPT)
    sizes = ["auto", "1024x1024", "1536x1024", "1024x1536"]
    qualities = ["low", "medium", "high", "auto"] + ["xhigh", "max"] * (model in TWO_FIVE)
    optional: dict[str, Any] = {
        "n": chance.randint(1, 10),
        "size": free_size(chance)
        if model in FREE and chance.random() < 0.7
        else chance.choice(sizes),
        "quality": chance.choice(qualities),
        "background": chance.choice(["auto", "opaque"]),
        "moderation": chance.choice(["low", "auto"]),
        "complexity": chance.choice(["low", "medium", "high"]),
        "user": "someone",
        "safety_identifier": "hashed",
    }
    fields = {name: value for name, value in optional.items() if chance.random() < 0.4}
    output = chance.choice(["png", "jpeg", "webp", "gif", "svg", None])
    if output is not None:
        fields["output_format"] = output
    if output in ("jpeg", "webp") and chance.random() < 0.6:
        fields["output_compression"] = chance.randint(0, 100)
    if output in (None, "png", "webp") and chance.random() < 0.3:
        fields["background"] = "transparent"
    if output == "gif":
        fields |= chance.choice([{}, {"frame_count": chance.randint(2, 16)}])
        fields |= chance.choice([{}, {"frame_duration_ms": chance.choice([10, 205, 655_350])}])
    if output == "svg":
        fields["n"] = 1
        reasoning = chance.choice([None, {}, {"effort": chance.choice(EFFORTS)}])
        svg = {"model": "gpt-5.5", "reasoning": reasoning}
        fields |= chance.choice([{}, {"svg": svg}, {"svg": {"model": "any"}}])
    stream = output not in ("gif", "svg") and chance.random() < 0.4
    if stream and chance.random() < 0.7:
        fields["partial_images"] = chance.randint(0, 3)
    if edit:
        fields |= allowed_images(chance, model, output)
    return Sent(edit, model, {"prompt": "p" * chance.choice([1, 900, 32_000]), **fields}, stream)


def allowed_images(chance: random.Random, model: str, output: str | None) -> dict[str, Any]:
    """Return the images of an edit that the specification allows, and their options."""
    width, height = chance.randint(1, 90), chance.randint(1, 90)
    first = image(width, height, alpha=chance.random() < 0.5)
    others = [
        image(5, 7, kind=chance.choice(["png", "jpeg"])) for _ in range(chance.choice([0, 1, 15]))
    ]
    fields: dict[str, Any] = {"image": [first, *others] if others else first}
    if output != "gif" and chance.random() < 0.4:
        fields["mask"] = image(width, height)
    elif model in TWO_FIVE and chance.random() < 0.5:
        fields["markup"] = image(width, height)
    if model == "gpt-image-1.5" and chance.random() < 0.5:
        fields["input_fidelity"] = chance.choice(["high", "low"])
    if model == "gpt-image-1-mini" and chance.random() < 0.5:
        fields["input_fidelity"] = "low"
    return fields


def unknown(chance: random.Random, *, edit: bool) -> Sent:
    """Return a request for a model without documentation, which may allow anything."""
    sent = allowed(chance, edit=edit)
    odd = {
        "n": 11,
        "size": "999x1",
        "quality": "ultra",
        "style": "vivid",
        "response_format": "url",
        "background": "blue",
        "output_format": "avif",
        "moderation": "off",
        "complexity": "extreme",
    }
    fields = {name: value for name, value in odd.items() if chance.random() < 0.3}
    return Sent(edit, chance.choice(UNKNOWN), {**sent.fields, **fields}, sent.stream)


Spoil = Callable[[random.Random, Sent], Sent]


def setting(stream: bool | None = None, model: list[str] | None = None, **values: Any) -> Spoil:
    """Return a function that sets fields; a list is a choice of values."""

    def spoil(chance: random.Random, sent: Sent) -> Sent:
        fields = {
            name: chance.choice(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return Sent(
            sent.edit,
            chance.choice(model) if model else sent.model,
            {**sent.fields, **fields},
            sent.stream if stream is None else stream,
        )

    return spoil


FORBIDDEN: list[Spoil] = [
    setting(prompt="p" * 32_001),
    setting(n=[0, -1, 11, 64], output_format="png"),
    setting(
        model=OLD, size=["1536x864", "2048x2048", "256x256", "512x512", "1792x1024", "3840x2160"]
    ),
    setting(model=FREE, size=["1000x1000", "1025x1024", "1024x1030"]),  # not divisible by 16
    setting(model=FREE, size=["3840x1024", "1024x3088", "4096x1024"]),  # ratio
    setting(model=FREE, size=["3856x2160", "4096x4096", "3840x3840"]),  # too large
    setting(size=["square", "1024", "1024x", "1024*1024"]),
    setting(model=[*OLD, *TWO, *TWO_SIX], quality=["xhigh", "max"]),
    setting(quality=["standard", "hd", "best"]),
    setting(background=["transparent"], output_format="jpeg"),
    setting(background=["none", "white"]),
    setting(moderation=["high", "none"]),
    setting(complexity=["max", "auto"]),
    setting(output_format=["bmp", "jpg", "avif"]),
    setting(output_format="png", output_compression=[0, 50, 99]),
    setting(output_format=["jpeg", "webp"], output_compression=[-1, 101]),
    setting(style=["vivid", "natural"]),
    setting(response_format=["url", "b64_json"]),
    setting(stream=True, output_format="png", partial_images=[-1, 4]),
    setting(stream=False, partial_images=[1, 2, 3]),
    setting(output_format="gif", frame_count=[0, 1, 17]),
    setting(output_format=["png", "jpeg", "webp"], frame_count=[2, 9]),
    setting(output_format=["png", "jpeg", "webp"], frame_duration_ms=[100, 200]),
    setting(stream=True, output_format="gif"),
    setting(output_format="gif", output_compression=[10, 80]),
    setting(stream=True, output_format="svg", n=1),
    setting(output_format="svg", n=[2, 10]),
    setting(output_format="svg", n=1, output_compression=[10, 80]),
    setting(output_format=["png", "webp"], svg={"model": "gpt-5.5"}),
    setting(output_format="svg", n=1, svg={"model": "m", "reasoning": {"effort": "extreme"}}),
]
MIB = 1 << 20
FORBIDDEN_EDITS: list[Spoil] = [
    setting(image=image(9, 9), mask=image(9, 8), output_format="png"),
    setting(image=image(9, 9), mask=image(9, 9, kind="jpeg"), output_format="png"),
    setting(image=image(9, 9), mask=large(image(9, 9), 4 * MIB), output_format="png"),
    setting(image=image(9, 9), mask=image(9, 9), output_format="gif"),
    setting(model=TWO_FIVE, image=image(9, 9), markup=image(9, 9), mask=image(9, 9)),
    setting(model=TWO_FIVE, image=image(9, 9), markup=image(9, 9, alpha=False)),
    setting(model=TWO_FIVE, image=image(9, 9), markup=image(8, 9)),
    setting(model=TWO_FIVE, image=image(9, 9), markup=image(9, 9, kind="jpeg")),
    setting(model=[*OLD, *TWO], image=image(9, 9), markup=image(9, 9)),
    setting(model=["gpt-image-1-mini"], input_fidelity="high"),
    setting(model=TWO, input_fidelity=["high", "low"]),
    setting(input_fidelity=["max", "medium"]),
    setting(image=[[image(9, 9)] * 17]),
    setting(image=("a.gif", b"GIF89a\1\0\1\0\0\0\0;", "image/gif")),
]


def forbidden(chance: random.Random, *, edit: bool) -> Sent:
    """Return a request with one thing that the specification forbids."""
    sent = allowed(chance, edit=edit)
    plain: dict[str, Any] = {
        name: sent.fields[name] for name in ("prompt", "image") if name in sent.fields
    }
    spoil = chance.choice([*FORBIDDEN, *FORBIDDEN_EDITS * edit])
    return spoil(chance, Sent(edit, sent.model, plain, stream=False))


@pytest.fixture
async def client() -> AsyncIterator[AsyncImages]:
    async with (
        RawServer(response({"data": [{"b64_json": ONE}]})) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=0) as client,
    ):
        yield client


async def rejection(client: AsyncImages, sent: Sent) -> InvalidRequestError | None:
    """Return the error if the client rejects a request; otherwise the server gets it."""
    call: Any = client.edit if sent.edit else client.generate
    try:
        made = call(**sent.fields, model=sent.model, stream=sent.stream)
        await (made.result() if sent.stream else made)
    except InvalidRequestError as error:
        return error
    return None


async def rejections(
    client: AsyncImages, requests: list[Sent]
) -> list[tuple[Sent, InvalidRequestError | None]]:
    """Send all requests, some at a time."""
    gate = asyncio.Semaphore(8)

    async def send(sent: Sent) -> tuple[Sent, InvalidRequestError | None]:
        async with gate:
            return sent, await rejection(client, sent)

    return await asyncio.gather(*map(send, requests))


def shown(sent: Sent) -> str:
    """Return a request without its long fields."""
    return f"{sent.model} stream={sent.stream} " + repr(
        {name: str(value)[:30] for name, value in sent.fields.items()}
    )


@pytest.mark.parametrize("make", [allowed, unknown])
@pytest.mark.parametrize("edit", [False, True], ids=["generate", "edit"])
async def test_specification_allows(
    client: AsyncImages, edit: bool, make: Callable[..., Sent]
) -> None:
    """No request that may be sent is rejected; nor one to an unknown model."""
    chance = random.Random(11 + edit)
    count = COUNT if make is allowed else COUNT // 10
    requests = [make(chance, edit=edit) for _ in range(count)]
    for sent, error in await rejections(client, requests):
        assert error is None, (shown(sent), str(error))


@pytest.mark.parametrize("edit", [False, True], ids=["generate", "edit"])
async def test_specification_forbids(client: AsyncImages, edit: bool) -> None:
    """At least 95 % of the requests that the specification forbids are rejected."""
    chance = random.Random(23 + edit)
    requests = [forbidden(chance, edit=edit) for _ in range(COUNT)]
    missed = [shown(sent) for sent, error in await rejections(client, requests) if error is None]
    assert len(missed) <= COUNT * 0.05, sorted(set(missed))[:20]
