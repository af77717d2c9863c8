"""`elkimg generate`, run as people run it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from elkimg_async.local import LocalServer
from tests.helpers.command import (
    API_KEY,
    SMALL,
    Viewer,
    file_names,
    run,
    run_on_terminal,
    started,
)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        yield server


def pixels(path: Path) -> tuple[int, int]:
    with Pillow.open(path) as image:
        return image.size


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


async def test_generate_locally(tmp_path: Path) -> None:
    """With --local no API key is needed, and the image is announced as a placeholder."""
    ended = await run("generate", "A kitten", *SMALL, "-o", "kitten", folder=tmp_path)
    assert ended.code == 0
    assert "placeholders" in ended.err
    assert file_names(tmp_path) == ["kitten.png"]
    assert pixels(tmp_path / "kitten.png") == (256, 256)
    head, row = ended.out.splitlines()
    assert head.split() == ["file", "pixels", "bytes", "type", "tokens", "seconds"]
    size = f"{(tmp_path / 'kitten.png').stat().st_size:,}"
    assert row.split()[:4] == ["kitten.png", "256x256", size, "png"]


async def test_generate_streaming(tmp_path: Path) -> None:
    """Previews are saved beside the final image as they arrive, and listed in the output."""
    arguments = ("A kitten", "--local", "--stream", "--partial-images", "2", "-o", "kitten.webp")
    async with started("generate", *arguments, folder=tmp_path) as command:
        for number in (0, 1):
            line = await command.wait_for("Saved")
            assert line.startswith(f"Saved kitten-partial-{number}.webp after ")
            assert not (tmp_path / "kitten.webp").exists()
        ended = await command.ended()
    assert ended.code == 0
    names = ["kitten-partial-0.webp", "kitten-partial-1.webp", "kitten.webp"]
    assert file_names(tmp_path) == names
    rows = [line.split() for line in ended.out.splitlines()[1:]]
    assert [row[0] for row in rows] == names
    assert [row[3:5] for row in rows] == [["webp", "-"], ["webp", "-"], ["webp", "1,258"]]


async def test_generate_several_images(tmp_path: Path, server: LocalServer) -> None:
    """Several prompts and images get names of their own; tokens are counted once for each call."""
    arguments = ("generate", "A kitten", "A kitten", "--n", "2")
    ended = await run(*arguments, folder=tmp_path, server=server)
    assert ended.code == 0
    assert file_names(tmp_path) == [f"a-kitten{end}.png" for end in ("-2", "-3", "-4", "")]
    tokens = [line.split()[4] for line in ended.out.splitlines()[1:]]
    assert sorted(tokens) == ["-", "-", "2,114", "2,114"]


async def test_generate_over_existing_file_names(tmp_path: Path, server: LocalServer) -> None:
    """A generated name is never that of an existing file; one named by -o is replaced."""
    for name in ("a-kitten.webp", "a-kitten-2-partial-0.png", "b.png"):
        (tmp_path / name).write_bytes(b"old")
    await run("generate", "A kitten", folder=tmp_path, server=server)
    assert file_names(tmp_path) == [
        "a-kitten-2-partial-0.png",
        "a-kitten-3.png",
        "a-kitten.webp",
        "b.png",
    ]
    assert (tmp_path / "a-kitten.webp").read_bytes() == b"old"
    await run("generate", "A kitten", "-o", "b.png", folder=tmp_path, server=server)
    assert pixels(tmp_path / "b.png") == (1024, 1024)


async def test_generate_into_folder(tmp_path: Path, server: LocalServer) -> None:
    """A missing folder is created, and its files are named after the prompts."""
    prompts = ("Zwei Kätzchen, im Garten!", "../..", "x" * 300, "\x1b[31mred")
    ended = await run("generate", *prompts, "-o", "new/out/", folder=tmp_path, server=server)
    assert ended.code == 0
    expected = ["31mred.png", "image.png", "x" * 40 + ".png", "zwei-kätzchen-im-garten.png"]
    assert file_names(tmp_path / "new" / "out") == expected
    assert "\x1b" not in ended.out + ended.err


async def test_generate_options_reach_server(tmp_path: Path, server: LocalServer) -> None:
    """Each option is sent under its own name, and the suffix chooses the format."""
    options = {
        "model": "gpt-image-1",
        "n": 2,
        "size": "1536x1024",
        "quality": "low",
        "background": "opaque",
        "moderation": "low",
        "user": "me",
        "output_compression": 80,
        "partial_images": 3,
    }
    flags = [text for name, value in options.items() for text in (flag(name), str(value))]
    extra = ("--extra-body", '{"seed": 7}', "--stream", "-o", "k.jpg", "--retries", "0")
    ended = await run("generate", "A kitten", *flags, *extra, folder=tmp_path, server=server)
    assert ended.code == 0
    more = {"prompt": "A kitten", "stream": True, "seed": 7, "output_format": "jpeg"}
    assert server.requests[0].fields == {**options, **more}
    assert "k.jpg" in file_names(tmp_path)


async def test_generate_image_behind_url(tmp_path: Path, server: LocalServer) -> None:
    """An image behind a URL is downloaded under the name that the user gave."""
    arguments = ("--model", "dall-e-3", "--style", "vivid", "--response-format", "url")
    ended = await run(
        "generate", "A kitten", *arguments, "-o", "k.jpg", folder=tmp_path, server=server
    )
    assert ended.code == 0
    assert file_names(tmp_path) == ["k.jpg"]
    assert " png " in ended.out


async def test_generate_without_api_key(tmp_path: Path) -> None:
    """Without an API key the message names both ways on, and nothing is created."""
    ended = await run("generate", "A kitten", "-o", "out/", folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert "ELKAPI_API_KEY" in ended.err
    assert "--local" in ended.err
    assert file_names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n", "0"], "n is 0; it must be 1 to 10."),
        (["--n", "11"], "n is 11; it must be 1 to 10."),
        (["--n", "1.5"], "Invalid value for --n: it must be a whole number."),
        (["--size", "7x7"], "size '7x7' is not offered; choose 1024x1024,"),
        (["--partial-images", "4", "--stream"], "it must be 0 to 3."),
        (["--partial-images", "2"], "partial images are sent in streams only; add --stream."),
        (
            ["--background", "transparent", "--output-format", "jpeg"],
            "jpeg cannot be transparent; choose --output-format png or webp.",
        ),
        (["--base-url", "localhost/v1"], "it must begin with https:// or http://."),
        (["--base-url", "http://x", "--local"], "--local and --base-url cannot be used together."),
        (["--timeout", "0"], "--timeout must be more than 0; for no limit pass inf."),
        (["--retries", "-1"], "--retries must be 0 or more."),
        (["-n", "0"], "n is 0; it must be 1 to 10."),
        (["-o", "k.bmp"], "-o k.bmp: no model creates bmp. Use .png, .jpg, .webp, .gif or .svg."),
        (["-o", "k.avif"], "no model creates avif."),
        (["--extra-body", "[1]"], "it must be a JSON object."),
        (["-o", "/dev/null/out/"], "Images cannot be saved in /dev/null/out"),
        (["--colour", "red"], "Unknown option: --colour."),
    ],
)
async def test_generate_with_wrong_options(
    tmp_path: Path, server: LocalServer, arguments: list[str], sentence: str
) -> None:
    """A wrong option is rejected with a sentence that says what to change; nothing is sent."""
    ended = await run("generate", "A kitten", *arguments, folder=tmp_path, server=server)
    assert ended.code == 2
    assert ended.out == ""
    assert sentence in ended.err.splitlines()[-1]
    assert not server.requests
    assert file_names(tmp_path) == []


async def test_generate_without_prompt(tmp_path: Path) -> None:
    """Without a prompt the message shows a complete command."""
    ended = await run("generate", "--local", folder=tmp_path)
    assert ended.code == 2
    assert 'elkimg generate "A small kitten"' in ended.err


async def test_generate_with_one_failing_prompt(tmp_path: Path, server: LocalServer) -> None:
    """A prompt that fails is named; the others are done, and the exit code is 1."""
    long = "x" * 32_001
    ended = await run("generate", long, "A kitten", folder=tmp_path, server=server)
    assert ended.code == 1
    assert file_names(tmp_path) == ["a-kitten.png"]
    assert f"“{'x' * 39}…”: gpt-image-1.5: the prompt has 32,001 characters" in ended.err
    assert "a-kitten.png" in ended.out


async def test_generate_with_rejected_api_key(tmp_path: Path, server: LocalServer) -> None:
    """A rejected API key is not shown, and the message says what to check."""
    async with started("generate", "A kitten", folder=tmp_path, server=server) as command:
        server.api_key = "another"  # while the command still starts
        ended = await command.ended()
    assert ended.code == 1
    assert "Check the API key (ELKAPI_API_KEY)" in ended.err
    assert API_KEY not in ended.err


async def test_generate_times_out(tmp_path: Path, server: LocalServer) -> None:
    """A time limit is named by its option."""
    server.inject("stall-headers")
    ended = await run("generate", "A kitten", "--timeout", "0.2", folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Raise it with --timeout." in ended.err


async def test_generate_retries(tmp_path: Path, server: LocalServer) -> None:
    """A retry is announced."""
    server.inject("rate-limit=0")
    ended = await run("generate", "A kitten", folder=tmp_path, server=server)
    assert ended.code == 0
    assert "Trying again in 0.0 s." in ended.err


async def test_generate_saves_intact_images(tmp_path: Path, server: LocalServer) -> None:
    """If one image of a call is corrupt, the intact one is saved, and the exit code is 1."""
    server.inject("corrupt-final")
    ended = await run("generate", "A kitten", "--n", "2", folder=tmp_path, server=server)
    assert ended.code == 1
    assert file_names(tmp_path) == ["a-kitten.png"]


# --- output ---------------------------------------------------------------


async def test_generate_json(tmp_path: Path, server: LocalServer) -> None:
    """With --json standard output has one object per image, and --quiet leaves nothing else."""
    arguments = ("generate", "A kitten", "A fox", "--n", "2", "--json", "--quiet")
    ended = await run(*arguments, folder=tmp_path, server=server)
    assert (ended.code, ended.err) == (0, "")
    objects = [json.loads(line) for line in ended.out.splitlines()]
    assert sorted(item["file"] for item in objects) == file_names(tmp_path)
    for item in objects:
        assert item["prompt"] in ("A kitten", "A fox")
        assert (item["media_type"], item["width"], item["height"]) == ("image/png", 1024, 1024)
        assert item["bytes"] == (tmp_path / item["file"]).stat().st_size
        assert item["usage"]["total_tokens"] > 0
        assert item["partial"] is False


async def test_generate_quiet(tmp_path: Path, server: LocalServer) -> None:
    """With --quiet only failures are printed."""
    server.inject("error=400/content_policy_violation")
    ended = await run("generate", "A kitten", "-q", folder=tmp_path, server=server)
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1
    ended = await run("generate", "A kitten", "-q", folder=tmp_path, server=server)
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize("mode", [(), ("--stream", "--partial-images", "2")])
async def test_generate_to_standard_output(
    tmp_path: Path, server: LocalServer, mode: tuple[str, ...]
) -> None:
    """`-o -` writes the bytes of the one image and nothing else, previews excluded."""
    arguments = ("generate", "A kitten", "-o", "-", *mode)
    target = tmp_path / "out.png"
    code = (
        "import os, sys; os.dup2(os.open('out.png', os.O_CREAT | os.O_WRONLY), 1); "
        "from elkimg_async.cli import main; sys.exit(main())"
    )
    async with started(*arguments, folder=tmp_path, server=server, code=code) as command:
        ended = await command.ended()
    assert ended.code == 0
    assert pixels(target) == (1024, 1024)
    assert target.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert file_names(tmp_path) == ["out.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a", "b", "-o", "-"), "exactly one image"),
        (("a", "--n", "2", "-o", "-"), "exactly one image"),
        (("a", "--json", "-o", "-"), "-o - and --json"),
        (("a", "--open", "-o", "-"), "-o - saves no file"),
        (("a", "-o", "--stream"), "-o needs a file or folder; found --stream."),
        (("a", "-o", "k.png", "--output-format", "webp"), "-o k.png means png"),
        (("a", "-o", "k.JPG", "--output-format", "png"), "-o k.JPG means jpeg"),
        (("a", "b", "c", "--quality", "hd"), "quality 'hd' is not offered"),
        (("a", "b", "--extra-body", "{"), "Invalid value for --extra-body"),
    ],
)
async def test_generate_with_contradicting_options(
    tmp_path: Path, server: LocalServer, arguments: tuple[str, ...], sentence: str
) -> None:
    """Options that cannot work are rejected once, with exit code 2, before anything is sent."""
    ended = await run("generate", *arguments, folder=tmp_path, server=server)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert sentence in ended.err
    assert not server.requests
    assert file_names(tmp_path) == []


async def test_generate_on_terminal_rejects_bytes(tmp_path: Path, server: LocalServer) -> None:
    """`-o -` does not write an image to a terminal."""
    code, shown = await run_on_terminal(
        "generate", "a", "-o", "-", folder=tmp_path, columns=80, server=server
    )
    assert code == 2
    assert "redirect them" in shown
    assert not server.requests


async def test_generate_several_prompts_into_named_folder(
    tmp_path: Path, server: LocalServer
) -> None:
    """With several prompts a name without suffix is a folder; one with a suffix is a file."""
    both = ("A red fox", "A grey heron")
    await run("generate", *both, "-o", "pictures", folder=tmp_path, server=server)
    assert file_names(tmp_path / "pictures") == ["a-grey-heron.png", "a-red-fox.png"]
    await run("generate", *both, "-o", "pictures/both.png", folder=tmp_path, server=server)
    assert {"both.png", "both-2.png"} < set(file_names(tmp_path / "pictures"))
    await run("generate", "A kitten", "-o", "kitten", folder=tmp_path, server=server)
    assert file_names(tmp_path) == ["kitten.png", "pictures"]


async def test_generate_takes_model_from_environment(tmp_path: Path, server: LocalServer) -> None:
    """ELKAPI_MODEL is the default of --model."""
    variables = {"ELKAPI_MODEL": "gpt-image-1-mini"}
    await run("generate", "a", folder=tmp_path, server=server, variables=variables)
    await run(
        "generate",
        "a",
        "--model",
        "gpt-image-1",
        folder=tmp_path,
        server=server,
        variables=variables,
    )
    sent = [request.fields["model"] for request in server.requests]
    assert sent == ["gpt-image-1-mini", "gpt-image-1"]


async def test_generate_opens_results(tmp_path: Path, server: LocalServer) -> None:
    """--open runs the desktop's program for each final image."""
    viewer = Viewer(tmp_path)
    arguments = ("generate", "A kitten", "--open", "--stream", "-o", "kitten.png")
    await run(*arguments, folder=tmp_path, server=server, variables=viewer.variables)
    assert viewer.opened() == "kitten.png"


@pytest.mark.parametrize("columns", [40, 60, 80])
async def test_generate_does_not_break_file_names(
    tmp_path: Path, server: LocalServer, columns: int
) -> None:
    """No width of a terminal or a pipe breaks a file name or leaves out a figure."""
    prompt = "A lighthouse keeper counts the waves before breakfast"
    name = "a-lighthouse-keeper-counts-the-waves"
    code, shown = await run_on_terminal(
        "generate", prompt, folder=tmp_path, columns=columns, server=server
    )
    assert code == 0
    assert f"{name}.png" in shown.replace("Saved", "").split()
    for figure in ("1024x1024", "png", "1,0"):
        assert figure in shown
    variables = {"COLUMNS": str(columns)}
    ended = await run("generate", prompt, folder=tmp_path, server=server, variables=variables)
    head, row = ended.out.splitlines()
    assert head.split() == ["file", "pixels", "bytes", "type", "tokens", "seconds"]
    assert row.split()[:2] == [f"{name}-2.png", "1024x1024"]
    assert len(row.split()) == 6
