"""Paid images that a command cannot save where it was told to, or that only an error carries."""

import asyncio
import base64
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.command import Ended, file_names, run, started
from tests.helpers.raw_server import (
    API_KEY,
    JPEG,
    PNG,
    RawServer,
    Reply,
    event,
    response,
    stream,
)

GENERATE, EDIT = ("generate", "A kitten"), ("edit", "input.png", "A kitten")
NO_SPACE = "No space left on device."
WRITTEN = "The image was written to a temporary file: "


def b64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def body(*images: bytes) -> Reply:
    """Return the response of a batch call."""
    return response({"created": 1, "data": [{"b64_json": b64(image)} for image in images]})


def completed(image: bytes) -> bytes:
    return event({"type": "image_generation.completed", "b64_json": b64(image)})


def cut(image: bytes) -> bytes:
    """Return an event that is cut off after its image, which only the error has."""
    return f'data: {{"b64_json": "{b64(image)}", "created_at": "'.encode()


ERROR = event({"type": "error", "error": {"message": "boom"}})
ONLY_ON_THE_ERROR = [
    (stream(cut(PNG)), [PNG]),
    (stream(completed(PNG), cut(JPEG)), [PNG, JPEG]),
    (stream(completed(PNG), ERROR), [PNG]),
    (stream(completed(PNG), completed(PNG), ERROR), [PNG, PNG]),
]


def variables(server: RawServer, folder: Path) -> dict[str, str]:
    """Return the environment of a command whose temporary files are in `folder`/elsewhere."""
    (folder / "elsewhere").mkdir()
    return {
        "ELKAPI_API_KEY": API_KEY,
        "ELKAPI_BASE_URL": server.base_url,
        "TMPDIR": str(folder / "elsewhere"),
    }


def temporary_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in (folder / "elsewhere").iterdir()]


def named_files(ended: Ended) -> list[bytes]:
    """Return the content of the temporary files that the output names, in its order."""
    lines = [line for line in ended.err.splitlines() if WRITTEN in line]
    return [Path(line.partition(WRITTEN)[2]).read_bytes() for line in lines]


async def remove_folder(*arguments: str, reply: Reply, folder: Path, requests: int = 1) -> Ended:
    """Run a command that saves in the folder `out`, and remove that before the responses."""
    finish = asyncio.Event()
    async with (
        RawServer([finish, *reply]) as server,
        started(*arguments, folder=folder, variables=variables(server, folder)) as command,
    ):
        await server.wait_until(lambda: len(server.requests) == requests)
        shutil.rmtree(folder / "out")
        finish.set()
        return await command.ended()


# --- images that only the error of a call has -----------------------------------


@pytest.mark.parametrize("mode", [(), ("--stream",)], ids=["batch", "stream"])
@pytest.mark.parametrize("arguments", [GENERATE, EDIT], ids=["generate", "edit"])
@pytest.mark.parametrize(("reply", "images"), ONLY_ON_THE_ERROR)
async def test_failed_call_with_images(
    tmp_path: Path,
    arguments: tuple[str, ...],
    mode: tuple[str, ...],
    reply: Reply,
    images: Sequence[bytes],
) -> None:
    """Each image of a failed call is saved once, whether an event or only the error has it."""
    (tmp_path / "input.png").write_bytes(PNG)
    async with RawServer(reply) as server:
        ended = await run(
            *arguments, *mode, "-o", "out/", folder=tmp_path, variables=variables(server, tmp_path)
        )
    assert ended.code == 1
    saved = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert sorted(saved) == sorted(images)
    assert temporary_files(tmp_path) == []


# --- images that cannot be saved ------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "reply"),
    [
        ((), body(PNG)),
        (("--stream",), stream(completed(PNG))),
        (("--stream",), stream(cut(PNG))),
    ],
)
@pytest.mark.parametrize("arguments", [GENERATE, EDIT], ids=["generate", "edit"])
async def test_folder_is_removed_meanwhile(
    tmp_path: Path, arguments: tuple[str, ...], mode: tuple[str, ...], reply: Reply
) -> None:
    """The image is written to a temporary file, which is named."""
    (tmp_path / "input.png").write_bytes(PNG)
    ended = await remove_folder(*arguments, *mode, "-o", "out/", reply=reply, folder=tmp_path)
    assert ended.code == 1
    assert "a-kitten could not be saved: " in ended.err
    assert named_files(ended) == temporary_files(tmp_path) == [PNG]
    assert [Path(name).suffix for name in file_names(tmp_path / "elsewhere")] == [".png"]


async def test_disk_is_full(tmp_path: Path) -> None:
    """Every image of the call is written to a temporary file; previews are not."""
    for name in ("kitten.png", "kitten-2.png", "kitten-partial-0.png"):
        (tmp_path / name).symlink_to("/dev/full")
    partial = event({"type": "image_generation.partial_image", "b64_json": b64(PNG)})
    reply = stream(partial, completed(PNG), completed(JPEG))
    async with RawServer(reply) as server:
        options = ("--stream", "--n", "2", "-o", "kitten.png")
        ended = await run(
            *GENERATE, *options, folder=tmp_path, variables=variables(server, tmp_path)
        )
    assert ended.code == 1
    assert ended.err.count(NO_SPACE) == 3
    assert named_files(ended) == [PNG, JPEG]
    assert len(temporary_files(tmp_path)) == 2


FULL = "descriptor = os.open('/dev/full', os.O_WRONLY)"
CLOSED = "reader, descriptor = os.pipe(); os.close(reader)"


@pytest.mark.parametrize("opening", [FULL, CLOSED], ids=["full", "closed"])
async def test_standard_output_fails(tmp_path: Path, opening: str) -> None:
    """An image that standard output does not take is written to a temporary file."""
    code = (
        f"import os, sys; {opening}; os.dup2(descriptor, 1); "
        "from elkimg_async.cli import main; sys.exit(main())"
    )
    async with RawServer(body(PNG)) as server:
        environment = variables(server, tmp_path)
        arguments = (*GENERATE, "-o", "-")
        begun = started(*arguments, folder=tmp_path, code=code, variables=environment)
        async with begun as command:
            ended = await command.ended()
    assert ended.code == 1
    assert named_files(ended) == temporary_files(tmp_path) == [PNG]


async def test_standard_output_takes_one_image(tmp_path: Path) -> None:
    """Further images, which cannot go to standard output, are written to temporary files."""
    async with RawServer(body(PNG, JPEG)) as server:
        target = tmp_path / "out.png"
        code = (
            "import os, sys; os.dup2(os.open('out.png', os.O_CREAT | os.O_WRONLY), 1); "
            "from elkimg_async.cli import main; sys.exit(main())"
        )
        environment = variables(server, tmp_path)
        arguments = (*GENERATE, "-o", "-")
        begun = started(*arguments, folder=tmp_path, code=code, variables=environment)
        async with begun as command:
            ended = await command.ended()
    assert ended.code == 1
    assert target.read_bytes() == PNG
    assert named_files(ended) == temporary_files(tmp_path) == [JPEG]


@pytest.mark.parametrize("arguments", [GENERATE, ("batch", "p.txt")], ids=["generate", "batch"])
async def test_temporary_folder_is_full_too(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """The command says that the image is in no temporary file either, and leaves no part of it."""
    (tmp_path / "p.txt").write_text("A kitten\n")
    # Larger than the limit for files, which the journal is not.
    code = (
        "import resource, sys; from elkimg_async.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); sys.exit(main())"
    )
    async with RawServer(body(PNG + bytes(100_000))) as server:
        environment = variables(server, tmp_path)
        arguments = (*arguments, "-o", "out/")
        begun = started(*arguments, folder=tmp_path, code=code, variables=environment)
        async with begun as command:
            ended = await command.ended()
    assert ended.code == 1
    assert "saved: File too large." in ended.err
    failed = "The image could not be written to a temporary file either: File too large."
    assert ended.err.count(failed) == 1
    assert temporary_files(tmp_path) == []


# --- elkimg batch ---------------------------------------------------------------


async def test_folder_of_batch_is_removed_meanwhile(tmp_path: Path) -> None:
    """Each image in flight is written to a temporary file, once, and named with its line."""
    (tmp_path / "p.txt").write_text("A kitten\nA fox\n")
    reply = body(PNG, JPEG)
    arguments = ("batch", "p.txt", "-o", "out", "--n", "2")
    ended = await remove_folder(*arguments, reply=reply, folder=tmp_path, requests=2)
    assert ended.code == 1
    assert named_files(ended) == [PNG, JPEG] * 2
    assert len(temporary_files(tmp_path)) == 4
    assert ended.err.count(f"p.txt, line 1, “A kitten”: {WRITTEN}") == 2
    assert ended.err.count(f"p.txt, line 2, “A fox”: {WRITTEN}") == 2


async def test_one_image_of_batch_cannot_be_saved(tmp_path: Path) -> None:
    """Of a response, only what is not in the folder is written to a temporary file."""
    (tmp_path / "p.txt").write_text("A kitten\n")
    (tmp_path / "out" / "000000-a-kitten-2.jpg").mkdir(parents=True)
    async with RawServer(body(PNG, JPEG)) as server:
        arguments = ("batch", "p.txt", "-o", "out", "--n", "2")
        ended = await run(*arguments, folder=tmp_path, variables=variables(server, tmp_path))
    assert ended.code == 1
    assert JPEG in named_files(ended)
    assert len(named_files(ended)) == len(temporary_files(tmp_path))


async def test_failed_requests_of_batch_with_images(tmp_path: Path) -> None:
    """Images of a failed request that are saved in the folder are not written elsewhere."""
    (tmp_path / "p.txt").write_text("A kitten\n")
    async with RawServer(stream(completed(PNG), ERROR)) as server:
        arguments = ("batch", "p.txt", "-o", "out")
        ended = await run(*arguments, folder=tmp_path, variables=variables(server, tmp_path))
    assert ended.code == 1
    [saved] = (tmp_path / "out").glob("*.png")
    assert saved.read_bytes() == PNG
    assert temporary_files(tmp_path) == []
