"""`client.edit`: what is sent, how files are read, what is rejected, and how it ends."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image as Pillow

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    DownloadError,
    EditRequest,
    Image,
    InvalidRequestError,
    PartialImage,
    StreamIncompleteError,
)
from elkimg_async.hooks import Record, RequestStarted
from elkimg_async.local import LocalServer
from tests.helpers.calls import B64
from tests.helpers.edits import JPEG, PNG, QUICK, WAYS, WEBP, on_disk, parsed
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    RawServer,
    event,
    stream,
)
from tests.local.test_edits import mask, noise_image


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK) as client:
        yield client


@pytest.fixture
async def local(server: LocalServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=QUICK) as client:
        yield client


@pytest.mark.parametrize("way", WAYS)
async def test_edit_of_each_kind_of_input(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path, way: str
) -> None:
    """Every kind of input arrives with its bytes, and a name and type that fit them."""
    response = await client.edit(WAYS[way](on_disk(tmp_path)), "a hat")
    assert len(response) == 1
    (request,) = raw_server.requests
    assert (request.method, request.target) == ("POST", "/v1/images/edits")
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers
    name = "kitten.png" if way in ("text", "path") else "image.png"
    assert await parsed(request) == [
        ("prompt", None, None, b"a hat"),
        ("model", None, None, b"gpt-image-1.5"),
        ("image", name, "image/png", PNG),
    ]


async def test_edit_of_an_open_file(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """A file object is sent from its beginning, under its name, and left as it was."""
    with on_disk(tmp_path, WEBP, "kitten.webp").open("rb") as file:
        file.seek(7)
        await client.edit(file, "a hat")
        assert (file.closed, file.tell()) == (False, 7)
    assert (await parsed(raw_server.requests[0]))[-1] == (
        "image",
        "kitten.webp",
        "image/webp",
        WEBP,
    )


async def test_edit_of_several_with_every_option(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """Several images are sent as image[], in their order, and each option as text."""
    wrong = on_disk(tmp_path, JPEG, 'a "b".png')
    await client.edit(
        (PNG, wrong, Image(WEBP)),
        "é\r\n🐱",
        mask=mask(),
        input_fidelity="high",
        model="gpt-image-1",
        n=2,
        size="1024x1024",
        quality="low",
        background="opaque",
        user="u",
        output_format="webp",
        output_compression=0,
        extra_body={"seed": 7, "sure": True, "tags": ["a"], "model": "other", "none": None},
        extra_headers={"X-Team": "birds"},
    )
    parts = await parsed(raw_server.requests[0])
    texts = {name: content.decode() for name, filename, _, content in parts if filename is None}
    assert texts == {
        "prompt": "é\r\n🐱",
        "model": "other",
        "n": "2",
        "size": "1024x1024",
        "quality": "low",
        "background": "opaque",
        "user": "u",
        "output_format": "webp",
        "output_compression": "0",
        "input_fidelity": "high",
        "seed": "7",
        "sure": "true",
        "tags": '["a"]',
    }
    assert [part for part in parts if part[1] is not None] == [
        ("image[]", "image.png", "image/png", PNG),
        ("image[]", "a %22b%22.jpg", "image/jpeg", JPEG),  # as browsers write it
        ("image[]", "image.webp", "image/webp", WEBP),
        ("mask", "mask.png", "image/png", mask()),
    ]
    assert raw_server.requests[0].headers["x-team"] == "birds"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "1"),
        ({"partial_images": 0}, "0"),
        ({"model": "dall-e-9"}, None),
    ],
)
async def test_edit_stream_fields(
    client: AsyncImages, raw_server: RawServer, options: dict[str, Any], expected: str | None
) -> None:
    """A stream requests one partial image of a GPT image model, as generate does."""
    raw_server.reply_with(stream(event({"type": "image_edit.completed", "b64_json": B64}), DONE))
    async with client.edit(PNG, "a hat", stream=True, **options) as events:
        assert [type(item) async for item in events] == [CompletedImage]
    texts = {name: content for name, _, _, content in await parsed(raw_server.requests[0])}
    assert texts["stream"] == b"true"
    assert texts.get("partial_images") == (None if expected is None else expected.encode())
    assert raw_server.requests[0].headers["accept"] == "application/json, text/event-stream"


async def test_edit_hooks_see_no_bytes(raw_server: RawServer) -> None:
    """Hooks receive the request, whose images have a short repr."""
    seen: list[Record] = []
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, hooks=[seen.append]) as client:
        await client.edit(PNG, "a hat", n=1)
    assert isinstance(seen[0], RequestStarted)
    request = seen[0].request
    assert isinstance(request, EditRequest)
    assert (request.prompt, request.n) == ("a hat", 1)
    assert f"<InputImage image.png, image/png, {len(PNG):,} bytes>" in repr(request)
    assert len(repr(request)) < 1000


async def rejected(client: AsyncImages, image: Any, param: str, words: str, **options: Any) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        await client.edit(image, "a hat", **options)
    assert caught.value.param == param
    assert caught.value.billing == "not_sent"


def closed_file() -> io.BytesIO:
    file = io.BytesIO(PNG)
    file.close()
    return file


class Awaited:
    async def read(self, size: int) -> bytes:
        return PNG[:size]


@pytest.mark.parametrize("validate", ["strict", "off"])
async def test_edit_with_an_unusable_input(
    raw_server: RawServer, tmp_path: Path, validate: Any
) -> None:
    """An input that cannot be sent is rejected for every model; the error names the reason."""
    empty = on_disk(tmp_path, b"", "empty.png")
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, validate=validate) as client:
        for image, words in (
            (tmp_path / "nope.png", "nope.png' cannot be read: No such file"),
            ("nul\0.png", "cannot be read"),
            (tmp_path, "not a regular file"),
            (empty, "empty.png is empty"),
            (b"", "is empty"),
            (io.BytesIO(), "is empty"),
            ([], "no image"),
            ([PNG, []], "not list"),
            (7, "image must be a path, bytes, .* not int"),
            (None, "needs an image"),
            (io.StringIO("text"), "binary mode"),
            (closed_file(), "closed"),
            (Awaited(), "is async"),
        ):
            await rejected(client, image, "image", words, model="some-model")
        await rejected(client, PNG, "mask", "cannot be read", mask=tmp_path / "nope.png")
        await rejected(client, PNG, "mask", "mask must be a path", mask=[mask()])
        with pytest.raises(TypeError, match=r"AsyncImages.edit\(\) got .* 'styel'"):
            client.edit(PNG, "a", styel="vivid")  # type: ignore[call-overload] # pyright: ignore
        await rejected(client, PNG, "n", "whole number", n="2")
        wrong: Any = {"prompt": "a"}
        with pytest.raises(InvalidRequestError, match="prompt must be a string"):
            await client.edit(PNG, wrong)
        with pytest.raises(InvalidRequestError, match="True or False"):
            client.edit(PNG, "a", stream=wrong)
    assert raw_server.accepted == 0


async def test_edit_against_the_rules_of_its_model(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """The limits of documented models are checked before anything is sent."""
    huge = on_disk(tmp_path, PNG, "huge.png")
    with huge.open("r+b") as file:
        file.truncate(50 << 20)
    gif = noise_image(format="GIF", mode="L")
    square, tall = noise_image((64, 64)), mask((64, 96))
    opaque, mini = noise_image(), "gpt-image-1-mini"
    for image, param, words, options in (
        ([PNG] * 17, "image", "17 images, at most 16", {}),
        (gif, "image", "image.gif is image/gif; choose png, webp, jpeg", {}),
        (b"text", "image", "known type", {}),
        (huge, "image", "huge.png has 52,428,800 bytes", {}),
        ([huge, huge, huge], "image", "huge.png", {}),
        (PNG, "mask", "64x96 and image.png is 96x64; they must have the same size", {"mask": tall}),
        (PNG, "mask", "no transparency", {"mask": opaque}),
        (PNG, "mask", "mask.jpg is image/jpeg; choose png", {"mask": JPEG}),
        (PNG, "model", "cannot edit", {"model": "dall-e-3"}),
        (PNG, "image", "must be square", {"model": "dall-e-2"}),
        ([square] * 2, "image", "at most 1 is", {"model": "dall-e-2"}),
        (JPEG, "image", "choose png", {"model": "dall-e-2"}),
        (square, "input_fidelity", "not for", {"model": "dall-e-2", "input_fidelity": "low"}),
        (PNG, "input_fidelity", "choose low", {"model": mini, "input_fidelity": "high"}),
        (PNG, "n", "1 to 10", {"n": 11}),
        (PNG, "output_compression", "png has no lossy", {"output_compression": 5}),
        (PNG, "partial_images", "streams only", {"partial_images": 1}),
    ):  # fmt: skip
        await rejected(client, image, param, words, **options)
    assert raw_server.accepted == 0


async def test_edit_with_an_unknown_model(client: AsyncImages, raw_server: RawServer) -> None:
    """Nothing is rejected for an unknown model, or with validate off."""
    await client.edit(
        [noise_image(format="GIF", mode="L")] * 17, "a", model="new", mask=noise_image()
    )
    parts = await parsed(raw_server.requests[-1])
    assert [part[1:3] for part in parts[2:4]] == [("image.gif", "image/gif")] * 2
    await client.edit(b"text", "a", model="new")
    assert (await parsed(raw_server.requests[-1]))[-1][1:] == (
        "image", "application/octet-stream", b"text",
    )  # fmt: skip
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, validate="off") as lax:
        await lax.edit(b"text", "a", model="dall-e-3")
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, validate="warn") as warning:
        with pytest.warns(UserWarning, match="cannot edit"):
            await warning.edit(PNG, "a", model="dall-e-3")
    assert len(raw_server.requests) == 4


async def test_mask_of_a_photograph_on_its_side(client: AsyncImages, raw_server: RawServer) -> None:
    """A mask may have the orientation of the photograph as shown, or as stored."""
    for size in ((96, 64), (64, 96)):
        await client.edit(JPEG, "a hat", mask=mask(size))
    assert len(raw_server.requests) == 2


async def test_edit_batch_and_stream(local: AsyncImages, tmp_path: Path) -> None:
    """Batch and stream return the same image, in which only the hole of the mask is new."""
    path = on_disk(tmp_path)
    batch = await local.edit(path, "a hat", mask=mask())
    async with local.edit(path, "a hat", mask=mask(), stream=True, partial_images=2) as events:
        seen = [event async for event in events]
        result = await events.result()
    assert [type(event) for event in seen] == [PartialImage, PartialImage, CompletedImage]
    assert {event.type for event in seen} == {"image_edit.partial_image", "image_edit.completed"}
    assert result[0].content == batch[0].content
    assert batch.usage is not None
    assert batch.usage.input_tokens_details is not None
    assert batch.usage.input_tokens_details.image_tokens == 194
    before, after = (
        Pillow.open(io.BytesIO(c)).convert("RGB") for c in (PNG, batch[0].content or b"")
    )
    assert before.crop((0, 0, 20, 64)).tobytes() == after.crop((0, 0, 20, 64)).tobytes()
    assert before.crop((20, 10, 60, 40)).tobytes() != after.crop((20, 10, 60, 40)).tobytes()


async def test_edit_of_an_image_behind_a_url(server: LocalServer, local: AsyncImages) -> None:
    """An `Image` that is still a URL is downloaded first; if that fails, nothing is sent."""
    made = await local.generate("a boat", model="dall-e-2", size="256x256")
    assert made[0].content is None
    response = await local.edit(made[0], "a hat")
    assert server.requests[-1].fields["image"]["size"] == len(made[0].content or b"")
    assert response.size == "256x256"
    with pytest.raises(DownloadError):
        await local.edit(Image(url="https://example.invalid/a.png"), "a hat")
    assert server.generations == 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 2, "size": "1024x1024", "quality": "low", "user": "u"},
        {"output_format": "jpeg", "output_compression": 40, "input_fidelity": "high"},
        {"model": "dall-e-2", "size": "256x256", "response_format": "b64_json"},
    ],
    ids=lambda options: "+".join(options) or "bare",
)
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
async def test_openai_sends_the_same(
    server: LocalServer, local: AsyncImages, options: dict[str, Any], several: bool
) -> None:
    """Openai's edit has the same fields and files, and returns the same images and usage."""
    square, hole = noise_image((64, 64)), mask((64, 64))
    if several and options.get("model") == "dall-e-2":
        several = False
    options = {"model": "gpt-image-1.5", **options}
    files = [("image.png", square, "image/png")] * 2
    async with openai.AsyncOpenAI(
        api_key=server.api_key, base_url=server.base_url, max_retries=0
    ) as theirs:
        other = await theirs.images.edit(
            image=files if several else files[0],
            mask=("mask.png", hole, "image/png"),
            prompt="a hat",
            **options,
        )
    mine = await local.edit([square] * 2 if several else square, "a hat", mask=hole, **options)
    assert server.requests[-2].fields == server.requests[-1].fields
    assert other.data is not None
    assert [image.b64_json for image in mine] == [image.b64_json for image in other.data]
    assert other.usage is not None
    assert mine.usage is not None
    assert mine.usage.total_tokens == other.usage.total_tokens


async def test_openai_streams_the_same(server: LocalServer, local: AsyncImages) -> None:
    """A stream of an edit has the same events."""
    async with openai.AsyncOpenAI(
        api_key=server.api_key, base_url=server.base_url, max_retries=0
    ) as theirs:
        other = await theirs.images.edit(
            image=("image.png", PNG, "image/png"),
            prompt="a hat",
            model="gpt-image-1.5",
            stream=True,
            partial_images=2,
        )
        expected = [(event.type, event.b64_json) async for event in other]
    async with local.edit(PNG, "a hat", stream=True, partial_images=2) as events:
        assert [(event.type, event.b64_json) async for event in events] == expected
    assert server.requests[-2].fields == server.requests[-1].fields


async def test_edit_stream_that_ends_early(server: LocalServer, local: AsyncImages) -> None:
    """Faults of streams affect edits too, and the error has the partial images."""
    server.inject("no-completed")
    with pytest.raises(StreamIncompleteError) as caught:
        async with local.edit(PNG, "a hat", stream=True, partial_images=2) as events:
            await events.result()
    assert len(caught.value.partials) == 2
