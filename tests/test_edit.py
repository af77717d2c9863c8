"""`client.edit`: what is sent, how files are read, what is rejected, and how it ends."""

import asyncio
import io
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp.base_protocol import BaseProtocol
from PIL import Image as Pillow

import elkimg_async
from elkimg_async import (
    AsyncImages,
    CompletedImage,
    DisconnectedError,
    DownloadError,
    EditRequest,
    Image,
    InvalidRequestError,
    PartialImage,
    RequestTimeoutError,
    RetryPolicy,
    StreamIncompleteError,
    Timeout,
)
from elkimg_async.hooks import Record, RequestStarted, RetryScheduled
from elkimg_async.local import LocalServer
from tests.helpers.calls import B64, GOOD
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    End,
    RawRequest,
    RawServer,
    event,
    response,
    stream,
)
from tests.local.test_edits import mask, noise_image

PNG, JPEG, WEBP = (noise_image(format=kind) for kind in ("PNG", "JPEG", "WEBP"))
BROKEN = response({"error": {"message": "x", "code": "do_request_failed"}}, status=500)
QUICK = RetryPolicy(initial_backoff=0)


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK) as client:
        yield client


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


@pytest.fixture
async def local(server: LocalServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=QUICK) as client:
        yield client


async def parsed(request: RawRequest) -> list[tuple[str, str | None, str | None, bytes]]:
    """The form as another parser sees it: name, file name, type and content of each part."""
    stream = aiohttp.StreamReader(NoFlow(), 2**16, loop=asyncio.get_running_loop())
    stream.feed_data(request.body)
    stream.feed_eof()
    reader = aiohttp.MultipartReader({"Content-Type": request.headers["content-type"]}, stream)
    parts = []
    async for part in reader:
        assert isinstance(part, aiohttp.BodyPartReader)
        content = bytes(await part.read())
        parts.append((part.name or "", part.filename, part.headers.get("Content-Type"), content))
    return parts


class NoFlow(BaseProtocol):
    """Flow control that does nothing."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())

    def pause_reading(self) -> None:
        pass

    def resume_reading(self, resume_parser: bool = True) -> None:
        pass


class OneWay(io.RawIOBase):
    """A file that cannot seek, such as a pipe."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


class Threads(io.BytesIO):
    """A file that notes the threads in which it is read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.seen: set[threading.Thread] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.seen.add(threading.current_thread())
        return super().read(size)


def on_disk(folder: Path, content: bytes = PNG, name: str = "kitten.png") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def large(folder: Path, size: int, name: str = "large.png") -> Path:
    """Return an image file of so many bytes; those behind its header are random."""
    path = on_disk(folder, PNG[:60], name)
    with path.open("ab") as file:
        block = os.urandom(1 << 20)
        for _ in range(size >> 20):
            file.write(block)
    return path


# --- what is sent -----------------------------------------------------------

WAYS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: str(path),
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "buffer": lambda path: io.BytesIO(path.read_bytes()),
    "pipe": lambda path: OneWay(path.read_bytes()),
    "image": lambda path: Image(path.read_bytes()),
}


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
    """Hooks receive the request, whose images print shortly."""
    seen: list[Record] = []
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, hooks=[seen.append]) as client:
        await client.edit(PNG, "a hat", n=1)
    assert isinstance(seen[0], RequestStarted)
    request = seen[0].request
    assert isinstance(request, EditRequest)
    assert (request.prompt, request.n) == ("a hat", 1)
    assert f"<InputImage image.png, image/png, {len(PNG):,} bytes>" in repr(request)
    assert len(repr(request)) < 1000


# --- retries ----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_retry_sends_the_same_bytes(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path, way: str
) -> None:
    """A retry has the same body and idempotency key, for every kind of input."""
    raw_server.reply_with(BROKEN, GOOD)
    response = await client.edit(WAYS[way](on_disk(tmp_path)), "a hat", mask=mask())
    assert response.meta.attempts == 2
    first, second = raw_server.requests
    assert first.body == second.body
    assert PNG in first.body
    for name in ("content-type", "idempotency-key"):
        assert first.headers[name] == second.headers[name]


async def test_two_calls_share_a_file(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """Calls that run at once over one file object do not disturb each other."""
    content = large(tmp_path, 2 << 20).read_bytes()
    file = io.BytesIO(content)
    await asyncio.gather(*(client.edit([file, file], "a hat") for _ in range(4)))
    assert len(raw_server.requests) == 4
    for request in raw_server.requests:
        assert [part[3] for part in await parsed(request)][2:] == [content, content]


async def test_own_idempotency_key_keeps_the_body(
    client: AsyncImages, raw_server: RawServer
) -> None:
    """Calls with the same Idempotency-Key have the same body; otherwise the boundary is new."""
    for _ in range(2):
        await client.edit(PNG, "a hat", extra_headers={"Idempotency-Key": "order-7"})
    for _ in range(2):
        await client.edit(PNG, "a hat")
    bodies = [request.body for request in raw_server.requests]
    assert bodies[0] == bodies[1]
    assert len(set(bodies)) == 3


async def test_replay_of_a_lost_response(server: LocalServer) -> None:
    """A server that replays returns a lost edit without creating it again."""
    server.inject("reset-in-body")
    async with AsyncImages(
        server.api_key, base_url=server.base_url, retry=QUICK, idempotency="replay"
    ) as client:
        response = await client.edit(PNG, "a hat", mask=mask())
    assert response.meta.attempts == 2
    assert server.generations == 1


async def test_file_changed_between_attempts(raw_server: RawServer, tmp_path: Path) -> None:
    """A file that has changed before a retry ends the call."""
    path = on_disk(tmp_path)

    def change(record: Record) -> None:
        if isinstance(record, RetryScheduled):
            path.write_bytes(WEBP)

    raw_server.reply_with(BROKEN, GOOD)
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, retry=QUICK, hooks=[change]
    ) as client:
        with pytest.raises(InvalidRequestError, match=r"kitten.png' was changed") as caught:
            await client.edit(path, "a hat")
        assert (caught.value.param, caught.value.billing) == ("image", "not_sent")
        assert caught.value.__context__ is None
        await raw_server.wait_disconnected()
        assert len(raw_server.requests) == 1
        raw_server.reply_with(GOOD)
        await client.edit(path, "a hat")


async def test_file_object_that_fails_later(client: AsyncImages, raw_server: RawServer) -> None:
    """A file object that becomes shorter or fails ends the call."""

    class Fading(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 1 and self.breaks:
                raise RuntimeError("the disk is gone")
            return super().read(size) if self.reads == 1 else b""

        def __init__(self, breaks: bool) -> None:
            super().__init__(PNG)
            self.breaks = breaks

    for breaks, words in ((False, "shorter"), (True, "could not be read .*: the disk is gone")):
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await client.edit(Fading(breaks), "a hat")
        assert (caught.value.billing, caught.value.__context__) == ("not_sent", None)
    assert raw_server.requests == []


# --- how it is read ---------------------------------------------------------


async def test_files_are_read_in_other_threads(client: AsyncImages, raw_server: RawServer) -> None:
    """The event loop never waits for a file."""
    file = Threads(PNG + bytes(1 << 20))
    await client.edit(file, "a hat")
    assert file.seen
    assert threading.current_thread() not in file.seen


MEMORY = """
import asyncio, re, sys
from elkimg_async import AsyncImages
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024

async def main():
    small, path, url, whole = sys.argv[1:]
    async with AsyncImages("sk-of-the-test", base_url=url) as client:
        await client.edit(small, "a hat")
        before = peak()
        await client.edit(Path(path).read_bytes() if whole else path, "a hat")
        print(peak() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_memory_of_a_large_file(tmp_path: Path) -> None:
    """A file of 40 MB is never held in memory completely."""
    small, path = on_disk(tmp_path), large(tmp_path, 40 << 20)
    package = str(Path(elkimg_async.__file__).parent.parent)
    peaks = []
    async with RawServer(GOOD, keep_bodies=False) as server:
        for whole in ("", "whole"):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", MEMORY, str(small), str(path), server.base_url, whole),
                env={**os.environ, "PYTHONPATH": os.pathsep.join([package, *sys.path])},
                stdout=subprocess.PIPE,
            )
            out, _ = await process.communicate()
            peaks.append(int(out) >> 20)
    assert peaks[0] < 5
    assert peaks[1] > 35  # what it is with the bytes as an argument, for comparison
    assert sum(request.length > 40 << 20 for request in server.requests) == 2


# --- what is rejected before it is sent -------------------------------------


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
        (b"text", "image", "application/octet-stream", {}),
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
        (PNG, "output_compression", "png is never", {"output_compression": 5}),
        (PNG, "partial_images", "stream only", {"partial_images": 1}),
    ):  # fmt: skip
        await rejected(client, image, param, words, **options)
    assert raw_server.accepted == 0


async def test_edit_with_an_unknown_model(client: AsyncImages, raw_server: RawServer) -> None:
    """An unknown model is sent anything, and so is every model with validate off."""
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
    """A mask may be as a photograph is seen, or as it lies in its file."""
    for size in ((96, 64), (64, 96)):
        await client.edit(JPEG, "a hat", mask=mask(size))
    assert len(raw_server.requests) == 2


# --- against the local server -----------------------------------------------


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


# --- how it ends early ------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancel_while_uploading(tmp_path: Path, streaming: bool) -> None:
    """A cancelled upload closes its connection and file at once; the client goes on working."""
    path = large(tmp_path, 20 << 20)
    async with (
        RawServer(GOOD, reading=False) as silent,
        AsyncImages(API_KEY, base_url=silent.base_url) as client,
    ):
        call: Any
        if streaming:
            call = client.edit(path, "a hat", stream=True)
            source, waiting = call._source, call.result()
        else:
            waiting = call = client.edit(path, "a hat")
            source = call.cr_frame.f_locals["self"]
        task = asyncio.create_task(waiting)
        async with asyncio.timeout(10):
            while not is_uploading(source):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(str(path) in str(link.readlink()) for link in links())
        silent.read_on()
        await silent.wait_disconnected()
        assert not silent.requests
        assert len(await client.edit(PNG, "a hat")) == 1


def is_uploading(call: Any) -> bool:
    """Return whether a part of the body has left."""
    exchange = call._attempt and call._attempt._exchange
    return exchange is not None and exchange.phase == "upload"


def links() -> list[Path]:
    """The open files of this process."""
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


async def test_server_leaves_while_uploading(tmp_path: Path) -> None:
    """If the server breaks off in the middle of an upload, the call is not repeated."""
    path = large(tmp_path, 20 << 20)
    async with (
        RawServer([End.RESET], reply_after=1 << 20) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=QUICK) as client,
    ):
        with pytest.raises(DisconnectedError) as caught:
            await client.edit(path, "a hat")
    assert (caught.value.phase, caught.value.billing) == ("upload", "unknown")
    assert server.accepted == 1


async def test_upload_that_stalls(tmp_path: Path) -> None:
    """The idle limit ends an upload that no longer makes progress."""
    path = large(tmp_path, 20 << 20)
    async with (
        RawServer(GOOD, reading=False) as silent,
        AsyncImages(API_KEY, base_url=silent.base_url, timeout=Timeout(idle=0.2)) as client,
    ):
        with pytest.raises(RequestTimeoutError) as caught:
            await client.edit(path, "a hat")
        assert (caught.value.limit, caught.value.phase) == ("idle", "upload")


async def test_error_before_the_upload_ends(tmp_path: Path) -> None:
    """An error that arrives while the file is still being sent is raised."""
    path = large(tmp_path, 20 << 20)
    error = {"message": "too large", "code": "read_request_body_failed"}
    async with (
        RawServer(response({"error": error}, status=413), reply_after=0) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=QUICK) as client,
    ):
        with pytest.raises(elkimg_async.BadRequestError, match="too large") as caught:
            await client.edit(path, "a hat")
        assert caught.value.status == 413
