"""`elkimg batch`, run as people run it: a process of its own, piped and on a terminal."""

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image as Pillow

import elkimg_async
from elkimg_async import ConfigurationError, InvalidRequestError
from elkimg_async.cli.prompts import Input
from elkimg_async.cli.sheet import Tile, draw
from elkimg_async.local import LocalServer


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def environment(server: LocalServer | None) -> Mapping[str, str]:
    """Variables without a key but that of `server`."""
    hidden = ("ELKAPI_", "FORCE_COLOR", "PYTHON", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    package = str(Path(elkimg_async.__file__).parent.parent)
    kept |= {"PYTHONPATH": os.pathsep.join([package, *sys.path]), "PYTHONIOENCODING": "utf-8"}
    if server:
        kept |= {"ELKAPI_API_KEY": server.api_key, "ELKAPI_BASE_URL": server.base_url}
    return kept


async def start(
    *arguments: str,
    folder: Path,
    server: LocalServer | None,
    stdin: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
) -> asyncio.subprocess.Process:
    """Run `elkimg batch` in a folder."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-Werror::ResourceWarning", "-m", "elkimg_async", "batch"),
        *arguments,
        cwd=folder,
        env=environment(server),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


async def run(
    *arguments: str, folder: Path, server: LocalServer | None = None, typed: str | None = None
) -> Ended:
    """Run it to its end; nothing may escape as a traceback or warning."""
    stdin = subprocess.DEVNULL if typed is None else subprocess.PIPE
    process = await start(*arguments, folder=folder, server=server, stdin=stdin)
    out, err = await process.communicate(None if typed is None else typed.encode())
    assert process.returncode is not None
    ended = Ended(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in ended.err
    assert "Warning" not in ended.err
    return ended


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def summary(out: str) -> dict[str, str]:
    """The rows of the summary table."""
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


# --- runs -------------------------------------------------------------------


async def test_batch_makes_all_and_then_what_is_left(server: LocalServer, tmp_path: Path) -> None:
    """Each line is a prompt; run again, only what has failed is asked for; the exit code tells."""
    (tmp_path / "prompts.txt").write_text("a red fox\n\n  a grey heron  \na cat\n", "utf-8")
    server.inject("error=400/content_policy_violation")
    ended = await run("prompts.txt", "--concurrency", "1", folder=tmp_path, server=server)
    assert ended.code == 1
    assert re.search(r"“a red fox”: 0: The server returned .*Reword the prompt", ended.err)
    rows = summary(ended.out)
    assert (rows["done"], rows["failed"], rows["images"]) == ("2", "1", "2")
    assert rows["folder"] == "prompts-images"

    ended = await run("prompts.txt", "--skip-failed", folder=tmp_path, server=server)
    assert (ended.code, server.generations) == (1, 2)
    ended = await run("prompts.txt", folder=tmp_path, server=server)
    assert (ended.code, server.generations, ended.err) == (0, 3, "")
    rows = summary(ended.out)
    assert (rows["done"], rows["done before"], rows["failed"]) == ("3", "2", "0")
    assert files(tmp_path / "prompts-images") == [
        "000000-a-red-fox.png",
        "000001-a-grey-heron.png",
        "000002-a-cat.png",
        "journal.jsonl",
        "manifest.jsonl",
    ]


async def test_batch_refuses_what_the_other_kind_of_run_has_made(
    server: LocalServer, tmp_path: Path
) -> None:
    """A folder of a run with Ray is not paid for again without it, nor the reverse; other JSON files are no matter."""
    (tmp_path / "prompts.txt").write_text("a red fox\n", "utf-8")
    folder = tmp_path / "pictures"
    folder.mkdir()
    record = folder / "000000-a-red-fox.json"
    record.write_text("{}", "utf-8")
    ended = await run("prompts.txt", "-o", "pictures", folder=tmp_path, server=server)
    assert (ended.code, server.generations) == (1, 0)
    assert "pictures holds a run with --ray" in ended.err
    record.rename(folder / "package.json")
    ended = await run("prompts.txt", "-o", "pictures", folder=tmp_path, server=server)
    assert ended.code == 0
    ended = await run("prompts.txt", "-o", "pictures", "--ray", folder=tmp_path, server=server)
    assert ended.code == 1
    assert "pictures holds a run without --ray" in ended.err
    assert server.generations == 1


async def test_batch_reads_standard_input(server: LocalServer, tmp_path: Path) -> None:
    """With - requests come from a pipe, and their form is told by the first line."""
    typed = '{"prompt": "a fox", "size": "1536x1024"}\n{"prompt": "an owl"}\n{"broken\n'
    arguments = ("-", "--quality", "low", "--journal", "j.jsonl", "-o", "out")
    ended = await run(*arguments, folder=tmp_path, server=server, typed=typed)
    assert ended.code == 1
    assert 'neither a JSON object nor a JSON string: {"broken' in ended.err
    asked = sorted((seen.fields for seen in server.requests), key=lambda fields: fields["prompt"])
    assert [fields.get("size") for fields in asked] == ["1536x1024", None]
    assert [fields.get("quality") for fields in asked] == ["low", "low"]
    assert files(tmp_path) == ["j.jsonl", "out"]


async def test_batch_keeps_to_its_limits(server: LocalServer, tmp_path: Path) -> None:
    """`--max-images` stops before it is passed, and says how to go on."""
    (tmp_path / "p.csv").write_text("prompt,n\na fox,2\nan owl,\na cat,2\n", "utf-8")
    arguments = ("p.csv", "--max-images", "3", "--concurrency", "1", "--rpm", "600", "--ipm", "600")
    ended = await run(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Stopped by --max-images. To go on, raise it:" in ended.err
    assert f"python3 -m elkimg_async batch {' '.join(arguments)}" in ended.err
    assert summary(ended.out)["images"] == "3"
    ended = await run("p.csv", "--max-images", "5", folder=tmp_path, server=server)
    assert (ended.code, server.generations) == (0, 3)


async def test_batch_dry_run_sends_nothing(server: LocalServer, tmp_path: Path) -> None:
    """It says what would be sent and what is wrong, needs no key, and leaves no trace."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox"}\n{"prompt": "owl", "n": 3}\n', "utf-8")
    ended = await run("p.jsonl", "--dry-run", "--size", "1024x1024", folder=tmp_path)
    assert ended.code == 0
    assert "1: “owl” n=3 size=1024x1024" in ended.out or "1: “owl”" in ended.out
    assert "2 requests for 4 images would be sent, 0 are done before, 0 are wrong." in ended.out
    assert files(tmp_path) == ["p.jsonl"]
    await run("p.jsonl", "--max-images", "1", folder=tmp_path, server=server)
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('{"prompt": "a cat", "n": 11}\n{"sise": 1}\n')
    ended = await run("p.jsonl", "--dry-run", folder=tmp_path)
    assert ended.code == 1
    assert "1 requests for 3 images would be sent, 1 are done before, 2 are wrong." in ended.out
    assert "n is 11" in ended.err
    assert "no field" in ended.err
    assert server.generations == 1


async def test_batch_local_is_kept_apart(tmp_path: Path) -> None:
    """Stand-ins of the local server never count as done for the real one."""
    (tmp_path / "p.txt").write_text("a fox\n")
    small = ("--model", "dall-e-2", "--size", "256x256", "--response-format", "b64_json")
    ended = await run("p.txt", "--local", *small, folder=tmp_path)
    assert ended.code == 0
    assert "stand-in" in ended.err
    assert files(tmp_path / "p-local") == [
        "000000-a-fox.png",
        "journal-local.jsonl",
        "manifest.jsonl",
    ]


async def test_batch_draws_a_contact_sheet(server: LocalServer, tmp_path: Path) -> None:
    """All pictures small, those of an earlier run and the failures among them."""
    (tmp_path / "p.txt").write_text("a fox\nan owl\na cat\n")
    server.inject("error=500/do_request_failed")
    arguments = ("p.txt", "--concurrency", "1", "--retries", "0", "--contact-sheet", "sheet.png")
    ended = await run(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Drew sheet.png" in ended.err
    with Pillow.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 200 + 8, 2 * 228 + 8)
        assert sheet.convert("RGB").getpixel((8, 8)) == (150, 30, 30)
        colours = sheet.convert("RGB").crop((210, 10, 390, 190)).getcolors(100_000)
        assert colours is not None
        assert len(colours) > 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.txt",), "none.txt cannot be read: No such file"),
        (("p.txt", "--format", "xml"), "--format must be one of text, jsonl, csv."),
        (("p.txt", "--concurrency", "0"), "concurrency must be a whole number of at least 1"),
        (("p.csv",), "needs a header with the column prompt"),
        (("p.txt", "--journal", "p.txt"), "not a journal"),
    ],
    ids=range(5),
)
async def test_batch_says_what_is_wrong(
    arguments: tuple[str, ...], said: str, server: LocalServer, tmp_path: Path
) -> None:
    """A plain sentence, and nothing is sent."""
    (tmp_path / "p.txt").write_text("a fox\n")
    (tmp_path / "p.csv").write_text("text\na fox\n")
    ended = await run(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert said in ended.err
    assert server.requests == type(server.requests)()


async def test_batch_without_a_key_says_so(tmp_path: Path) -> None:
    """Before anything is opened."""
    (tmp_path / "p.txt").write_text("a fox\n")
    ended = await run("p.txt", folder=tmp_path)
    assert ended.code == 1
    assert "ELKAPI_API_KEY" in ended.err
    assert files(tmp_path) == ["p.txt"]


async def test_batch_interrupted_says_how_to_go_on(server: LocalServer, tmp_path: Path) -> None:
    """Ctrl-C cancels what is under way, leaves the journal true, prints the command, and exits with 130."""
    (tmp_path / "my prompts.txt").write_text("".join(f"fox {n}\n" for n in range(20)))
    server.inject("none*3", "stall-headers*")
    process = await start("my prompts.txt", "--concurrency", "4", folder=tmp_path, server=server)
    await server.wait_until(lambda: server.generations >= 3 and len(server.requests) >= 7)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert err.decode().splitlines()[-2:] == [
        "Interrupted. To go on:",
        "python3 -m elkimg_async batch 'my prompts.txt' --concurrency 4",
    ]
    assert summary(out.decode())["done"] == "3"
    await server.wait_disconnected(4)
    journal = (tmp_path / "my prompts-images" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in journal].count("done") == 3
    server._faults.clear()
    ended = await run("my prompts.txt", folder=tmp_path, server=server)
    assert (ended.code, summary(ended.out)["done before"]) == (0, "3")


async def test_batch_shows_progress_on_a_terminal(server: LocalServer, tmp_path: Path) -> None:
    """One line that changes: done, failed, in flight, pace, time left, tokens."""
    (tmp_path / "p.txt").write_text("".join(f"fox {n}\n" for n in range(6)))
    server.inject("none*5", "stall-headers")
    ours, theirs = pty.openpty()
    shown = bytearray()
    arrived = asyncio.Event()

    def read() -> None:
        with contextlib.suppress(OSError):
            shown.extend(os.read(ours, 65536))
        arrived.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(ours, read)
    process = await start("p.txt", folder=tmp_path, server=server, stderr=theirs)
    os.close(theirs)
    try:
        wanted = rb"5 of 6 done, 0 failed, 1 in flight, [\d.]+/min, \d+:\d\d left, [\d,]+ tokens"
        while not re.search(wanted, shown):
            arrived.clear()
            await arrived.wait()
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
        while b"To go on" not in shown:
            arrived.clear()
            await arrived.wait()
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert summary(out.decode())["done"] == "5"


# --- the input --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "a\n\n b \r\nc", ["a", "b", "c"]),
        ("p.txt", "\ufeffa\n", ["a"]),
        ("p", '{"prompt": "a"}\n"b"\n', [{"prompt": "a"}, "b"]),
        ("p.txt", '{"prompt": "a"}\n', ['{"prompt": "a"}']),
        ("p", "[1]\n", ["[1]"]),
        ("p.jsonl", '"a"\n\n{"n": 2}', ["a", {"n": 2}]),
        ("p.csv", 'prompt,n\n"a, b\nc",2\nd,\n', [{"prompt": "a, b\nc", "n": 2}, {"prompt": "d"}]),
        ("p.csv", "prompt,n,user\na,two,7\n", [{"prompt": "a", "n": "two", "user": "7"}]),
        ("p.csv", 'prompt,extra_body\na,"{""x"": 1}"\n', [{"prompt": "a", "extra_body": {"x": 1}}]),
        ("p.txt", "", []),
        ("p.csv", "prompt\n", []),
    ],
    ids=range(11),
)
def test_input_is_read(tmp_path: Path, name: str, text: str, expected: list[Any]) -> None:
    """Lines, objects and rows, told by the name or by the first line; blank ones are passed over."""
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert list(Input(str(path), None).read()) == expected
    assert list(Input(str(path), None).read()) == expected


def test_input_that_cannot_be_read_stands_in_its_place(tmp_path: Path) -> None:
    """A line that is no request is an error among the others."""
    (tmp_path / "p.jsonl").write_bytes(b'"a"\n{"x"\n[1]\n')
    items = list(Input(str(tmp_path / "p.jsonl"), None).read())
    assert [type(item) for item in items] == [str, InvalidRequestError, InvalidRequestError]
    (tmp_path / "p.csv").write_bytes(b"prompt\na,b\n")
    assert [type(item) for item in Input(str(tmp_path / "p.csv"), None).read()] == [
        InvalidRequestError
    ]


def test_input_with_an_unknown_column_is_refused(tmp_path: Path) -> None:
    """Nobody means to pay for a misspelt column."""
    (tmp_path / "p.csv").write_text("prompt,sise\na,1\n")
    with pytest.raises(ConfigurationError, match="'sise'"):
        list(Input(str(tmp_path / "p.csv"), None).read())


# --- the contact sheet ------------------------------------------------------


async def test_sheet_of_very_many_has_pages(tmp_path: Path) -> None:
    """Four hundred tiles to a page, which stays of a size that can be looked at."""
    Pillow.new("RGB", (30, 60), (0, 200, 0)).save(tmp_path / "p.png")
    tiles = [Tile(n, "小船 " * 50, tmp_path / "p.png") for n in range(450)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    tiles[0] = Tile(0, "broken", tmp_path / "broken.png")
    pages = await draw(tiles, tmp_path / "sheet.png")
    assert [page.name for page in pages] == ["sheet.png", "sheet-2.png"]
    for page, columns, rows in zip(pages, (20, 8), (20, 7), strict=True):
        with Pillow.open(page) as sheet:
            edge = 128 if columns == 20 else 192
            assert sheet.size == (columns * (edge + 8) + 8, rows * (edge + 36) + 8)


async def test_sheet_that_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    """A sentence says where it cannot go, or that its name has no ending."""
    for name in ("none/sheet.png", "sheet.nothing"):
        with pytest.raises(ConfigurationError, match="cannot be saved"):
            await draw([Tile(0, "a", error="failed")], tmp_path / name)
