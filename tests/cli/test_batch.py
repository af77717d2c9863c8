"""`elkimg batch` in its own process, piped and on a terminal."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image as Pillow

from elkimg_async.cli.batch_report import clock, command_line, per_minute
from elkimg_async.local import LocalServer
from tests.helpers.command import (
    SMALL,
    Ended,
    Screen,
    Viewer,
    environment,
    file_names,
    run,
    run_on_terminal,
    started,
)
from tests.local.test_edits import mask, noise_image


async def batch(
    *arguments: str,
    folder: Path,
    server: LocalServer | None = None,
    typed: str | bytes | None = None,
) -> Ended:
    return await run("batch", *arguments, folder=folder, server=server, typed=typed)


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


def summary(out: str) -> dict[str, str]:
    """Return the rows of the summary."""
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2}


# --- runs -------------------------------------------------------------------


async def test_batch_resumes(server: LocalServer, tmp_path: Path) -> None:
    """Each line is a prompt; a second run sends only what failed; the exit code says so."""
    (tmp_path / "prompts.txt").write_text("a red fox\n\n  a grey heron  \na cat\n", "utf-8")
    server.inject("error=400/content_policy_violation")
    ended = await batch("prompts.txt", "--concurrency", "1", folder=tmp_path, server=server)
    assert ended.code == 1
    assert re.search(r"prompts.txt, line 1, “a red fox”: .*Reword the prompt", ended.err)
    assert ended.err.splitlines()[-2:] == [
        "1 request failed. To retry it:",
        "python3 -m elkimg_async batch prompts.txt --concurrency 1",
    ]
    rows = summary(ended.out)
    assert (rows["done"], rows["failed"], rows["images"]) == ("2", "1", "2")
    assert rows["folder"] == "prompts-images"
    assert "not started" not in rows

    ended = await batch("prompts.txt", "--skip-failed", folder=tmp_path, server=server)
    assert (ended.code, server.generations) == (1, 2)
    ended = await batch("prompts.txt", folder=tmp_path, server=server)
    assert (ended.code, server.generations, ended.err) == (0, 3, "")
    rows = summary(ended.out)
    assert (rows["done"], rows["done before"], rows["failed"]) == ("3", "2", "0")
    assert file_names(tmp_path / "prompts-images") == [
        "000000-a-red-fox.png",
        "000001-a-grey-heron.png",
        "000002-a-cat.png",
        "journal.jsonl",
        "manifest.jsonl",
    ]


async def test_batch_failure_has_line_and_id(server: LocalServer, tmp_path: Path) -> None:
    """A failure is named by its line in the file, counted from 1, and the id of its row."""
    (tmp_path / "p.csv").write_text('prompt\n"a fox\nin snow"\n\nan owl\n', "utf-8")
    server.inject("none", "error=400/content_policy_violation")
    ended = await batch("p.csv", "--concurrency", "1", folder=tmp_path, server=server)
    assert "p.csv, line 5, “an owl”: " in ended.err


async def test_batch_repeats_no_error(server: LocalServer, tmp_path: Path) -> None:
    """The second failure of a kind refers to the line of the first, without its words."""
    (tmp_path / "p.txt").write_text("a fox\nan owl\na cat\n")
    server.inject("error=400/content_policy_violation*3")
    ended = await batch("p.txt", "--concurrency", "1", folder=tmp_path, server=server)
    assert ended.err.count("Reword the prompt") == 1
    assert "p.txt, line 3, “a cat”: the same error as line 1." in ended.err


async def test_batch_rejects_folder_of_other_kind_of_run(
    server: LocalServer, tmp_path: Path
) -> None:
    """A folder of a run with Ray is not paid for again without it, nor the reverse."""
    (tmp_path / "prompts.txt").write_text("a red fox\n", "utf-8")
    folder = tmp_path / "pictures"
    folder.mkdir()
    record = folder / "000000-a-red-fox.json"
    record.write_text("{}", "utf-8")
    ended = await batch("prompts.txt", "-o", "pictures", folder=tmp_path, server=server)
    assert (ended.code, server.generations) == (2, 0)
    assert "pictures holds a run with --ray" in ended.err
    record.rename(folder / "package.json")
    ended = await batch("prompts.txt", "-o", "pictures", folder=tmp_path, server=server)
    assert ended.code == 0
    ended = await batch("prompts.txt", "-o", "pictures", "--ray", folder=tmp_path, server=server)
    assert ended.code == 2
    assert "pictures holds a run without --ray" in ended.err
    assert server.generations == 1


async def test_batch_reads_standard_input(server: LocalServer, tmp_path: Path) -> None:
    """With - requests come from a pipe, and their format is found by their content."""
    typed = '{"prompt": "a fox", "size": "1536x1024"}\n{"prompt": "an owl", "n": 1.0}\n'
    arguments = ("-", "--quality", "low", "--journal", "j.jsonl", "-o", "out")
    ended = await batch(*arguments, folder=tmp_path, server=server, typed=typed)
    assert ended.code == 0
    sent = sorted((seen.fields for seen in server.requests), key=lambda fields: fields["prompt"])
    assert [fields.get("size") for fields in sent] == ["1536x1024", None]
    assert [fields.get("n") for fields in sent] == [None, 1]
    assert [fields.get("quality") for fields in sent] == ["low", "low"]
    assert file_names(tmp_path) == ["j.jsonl", "out"]


async def test_batch_reads_what_windows_writes(server: LocalServer, tmp_path: Path) -> None:
    """A table from Excel in Windows-1252 is read with a warning, and its options are sent."""
    table = "Prompt;Size;N\nein Käfer;1024x1024;2,0\n;;\nein Bär;;\n"
    (tmp_path / "p.csv").write_bytes(table.encode("cp1252"))
    ended = await batch("p.csv", "--concurrency", "1", folder=tmp_path, server=server)
    assert ended.code == 0
    assert "p.csv is not UTF-8; it was read as Windows-1252. Check line 2: ein Käfer" in ended.err
    sent = [seen.fields for seen in server.requests]
    assert [fields["prompt"] for fields in sent] == ["ein Käfer", "ein Bär"]
    assert [fields.get("n") for fields in sent] == [2, None]
    assert [fields.get("size") for fields in sent] == ["1024x1024", None]


async def test_batch_json(server: LocalServer, tmp_path: Path) -> None:
    """With --json standard output has one object per image, those of earlier runs included."""
    (tmp_path / "p.json").write_text('["a fox",\n{"prompt": "an owl", "n": 2}]')
    ended = await batch("p.json", "--json", folder=tmp_path, server=server)
    assert ended.code == 0
    objects = sorted(map(json.loads, ended.out.splitlines()), key=lambda item: item["file"])
    assert [item["line"] for item in objects] == [1, 2, 2]
    assert [item["prompt"] for item in objects] == ["a fox", "an owl", "an owl"]
    for item in objects:
        assert item["bytes"] == (tmp_path / item["file"]).stat().st_size
        assert item["resumed"] is False
    assert "done" in ended.err
    ended = await batch("p.json", "--json", "--quiet", folder=tmp_path, server=server)
    assert ended.err == ""
    assert {json.loads(line)["resumed"] for line in ended.out.splitlines()} == {True}


async def test_batch_local_is_kept_apart(tmp_path: Path) -> None:
    """Stand-ins of the local server never count as done for the real one."""
    (tmp_path / "p.txt").write_text("a fox\n")
    ended = await batch("p.txt", *SMALL, folder=tmp_path)
    assert ended.code == 0
    assert "placeholders" in ended.err
    assert file_names(tmp_path / "p-local") == [
        "000000-a-fox.png",
        "journal-local.jsonl",
        "manifest.jsonl",
    ]


async def test_batch_draws_contact_sheet(server: LocalServer, tmp_path: Path) -> None:
    """The sheet has all images as thumbnails, those of an earlier run and failures included."""
    (tmp_path / "p.txt").write_text("a fox\nan owl\na cat\n")
    server.inject("error=500/do_request_failed")
    arguments = ("p.txt", "--concurrency", "1", "--retries", "0", "--contact-sheet", "sheet.png")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Saved sheet.png" in ended.err
    with Pillow.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 200 + 8, 2 * 228 + 8)
        assert sheet.convert("RGB").getpixel((8, 8)) == (150, 30, 30)
        colours = sheet.convert("RGB").crop((210, 10, 390, 190)).getcolors(100_000)
        assert colours is not None
        assert len(colours) > 20


async def test_batch_opens_what_there_is(server: LocalServer, tmp_path: Path) -> None:
    """--open shows the folder, also if a request failed, and with --quiet only that is printed."""
    viewer = Viewer(tmp_path)
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    server.inject("error=400/content_policy_violation")
    arguments = ("batch", "p.txt", "--concurrency", "1", "--open", "--quiet")
    ended = await run(*arguments, folder=tmp_path, server=server, variables=viewer.variables)
    assert viewer.opened() == "p-images"
    assert (ended.code, ended.out) == (1, "")
    assert len(ended.err.splitlines()) == 1


async def test_batch_rows_keep_their_identity(server: LocalServer, tmp_path: Path) -> None:
    """Ids and kept columns come back in the manifest, in JSON output and in errors."""
    (tmp_path / "p.csv").write_text(
        "ID;Prompt;SKU;Note\nf-1;a fox;12;x\n;an owl;;\nc-3;a cat;14;y\n"
    )
    server.inject("none", "none", "error=400/content_policy_violation")
    arguments = ("p.csv", "--keep", "sku", "note", "--json", "--concurrency", "1")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "p.csv, line 4 (id c-3), “a cat”: " in ended.err
    objects = [json.loads(line) for line in ended.out.splitlines()]
    assert [item["id"] for item in objects] == ["f-1", None]
    assert [item["metadata"] for item in objects] == [{"sku": "12", "note": "x"}, None]
    lines = (tmp_path / "p-images" / "manifest.jsonl").read_text().splitlines()
    manifest = {line["index"]: line for line in map(json.loads, lines)}
    assert manifest[0]["id"] == "f-1"
    assert manifest[0]["metadata"] == {"sku": "12", "note": "x"}
    assert [set(seen.fields) & {"id", "metadata"} for seen in server.requests] == [set()] * 3


async def test_batch_reads_openai_batch_file(server: LocalServer, tmp_path: Path) -> None:
    """A file for OpenAI's Batch API is sent request by request, and custom_id is the id."""
    lines = [
        {
            "custom_id": f"r-{n}",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"model": "gpt-image-1", "prompt": f"fox {n}", "quality": "low"},
        }
        for n in range(2)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = await batch("p.jsonl", "--json", folder=tmp_path, server=server)
    assert ended.code == 0
    assert {json.loads(line)["id"] for line in ended.out.splitlines()} == {"r-0", "r-1"}
    assert {seen.fields["model"] for seen in server.requests} == {"gpt-image-1"}


async def test_batch_edits(server: LocalServer, tmp_path: Path) -> None:
    """Rows with an image are edits; paths are relative to the file, wherever the command runs."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "kitten.png").write_bytes(noise_image())
    (inputs / "mask.png").write_bytes(mask())
    table = "prompt,image,mask\nadd a hat,kitten.png,mask.png\na fox,,\nadd a bow,gone.png,\n"
    (inputs / "p.csv").write_text(table)
    arguments = ("in/p.csv", "-o", "out", "--input-fidelity", "high", "--concurrency", "1")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "in/p.csv, line 4, “add a bow”: column image: " in ended.err
    assert "gone.png" in ended.err
    assert summary(ended.out)["done"] == "2"
    edit, generation = server.requests
    assert edit.fields["input_fidelity"] == "high"
    assert [edit.fields[name]["filename"] for name in ("image", "mask")] == [
        "kitten.png",
        "mask.png",
    ]
    assert "input_fidelity" not in generation.fields
    assert "000000-kitten.png" in file_names(tmp_path / "out")


async def test_batch_that_cannot_succeed_stops(server: LocalServer, tmp_path: Path) -> None:
    """A rejected API key stops the run at once, with exit code 1 and the command to go on."""
    (tmp_path / "p.txt").write_text("".join(f"fox {n}\n" for n in range(500)))
    arguments = ("batch", "p.txt", "--concurrency", "2")
    wrong = {"ELKAPI_API_KEY": "sk-wrong"}
    ended = await run(*arguments, folder=tmp_path, server=server, variables=wrong)
    assert ended.code == 1
    assert len(server.requests) <= 2
    assert "Stopped, 500 requests not done, because every request would fail: " in ended.err
    assert "Check the API key" in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert ended.err.count("Check the API key") == 2


async def test_batch_without_network_says_so_once(tmp_path: Path) -> None:
    """A host that cannot be resolved is one line and the reason for the end, not 32 lines."""
    (tmp_path / "p.txt").write_text("".join(f"fox {n}\n" for n in range(500)))
    variables = {"ELKAPI_API_KEY": "sk-wrong", "ELKAPI_BASE_URL": "http://host.invalid/v1"}
    ended = await run("batch", "p.txt", folder=tmp_path, variables=variables)
    assert ended.code == 1
    assert "Stopped, 500 requests not done, because every request would fail: " in ended.err
    assert ended.err.count("host.invalid cannot be reached") == 2
    assert "the same error as" not in ended.err


# --- limits and interruption --------------------------------------------------


async def test_batch_stopped_by_max_images(server: LocalServer, tmp_path: Path) -> None:
    """`--max-images` stops before it is passed; the command to go on has the number needed."""
    (tmp_path / "p.csv").write_text("prompt,n\na fox,2\nan owl,\na cat,2\n", "utf-8")
    arguments = ("p.csv", "--max-images", "3", "--concurrency", "1", "--rpm", "600", "--ipm", "600")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Stopped by --max-images, 1 request not done." in ended.err
    command = ended.err.splitlines()[-1]
    assert command.startswith("python3 -m elkimg_async batch p.csv --max-images 5 --concurrency 1")
    rows = summary(ended.out)
    assert (rows["images"], rows["not started"]) == ("3", "1")
    ended = await batch(*command.split()[4:], folder=tmp_path, server=server)
    assert (ended.code, server.generations) == (0, 3)


async def test_batch_stopped_by_max_images_counts_lost_ones(
    server: LocalServer, tmp_path: Path
) -> None:
    """Images that may have been paid for without a response raise the number needed."""
    (tmp_path / "p.txt").write_text("a fox\nan owl\na cat\n", "utf-8")
    server.inject("error=500/bad_response_body")
    arguments = ("p.txt", "--max-images=2", "--concurrency", "1", "--retries", "0")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    command = ended.err.splitlines()[-1]
    assert "--max-images=4" in command
    ended = await batch(*command.split()[4:], folder=tmp_path, server=server)
    assert (ended.code, summary(ended.out)["done"]) == (0, "3")


async def test_batch_stopped_by_max_errors(server: LocalServer, tmp_path: Path) -> None:
    """`--max-errors` stops the run; the same command goes on."""
    (tmp_path / "p.txt").write_text("".join(f"fox {n}\n" for n in range(5)))
    server.inject("error=400/content_policy_violation*2")
    arguments = ("p.txt", "--max-errors", "2", "--concurrency", "1")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 1
    assert "Stopped by --max-errors, 5 requests not done." in ended.err
    assert ended.err.splitlines()[-1].endswith(f"batch {' '.join(arguments)}")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert (ended.code, summary(ended.out)["done"]) == (0, "5")


async def test_batch_interrupted(server: LocalServer, tmp_path: Path) -> None:
    """Ctrl-C cancels what is in flight, keeps the journal, and prints the command to go on."""
    (tmp_path / "my prompts.txt").write_text("".join(f"fox {n}\n" for n in range(20)))
    server.inject("none*3", "stall-headers*")
    arguments = ("batch", "my prompts.txt", "--concurrency", "4")
    async with started(*arguments, folder=tmp_path, server=server) as command:
        await server.wait_until(lambda: server.generations >= 3 and len(server.requests) >= 7)
        command.interrupt()
        ended = await command.ended()
    assert ended.code == 130
    assert ended.err.splitlines()[-2:] == [
        "Interrupted, 17 requests not done. To continue:",
        "python3 -m elkimg_async batch 'my prompts.txt' --concurrency 4",
    ]
    assert summary(ended.out)["done"] == "3"
    await server.wait_disconnected(4)
    journal = (tmp_path / "my prompts-images" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in journal].count("done") == 3
    server._faults.clear()
    ended = await batch("my prompts.txt", folder=tmp_path, server=server)
    assert (ended.code, summary(ended.out)["done before"]) == (0, "3")


async def test_batch_progress_on_terminal(server: LocalServer, tmp_path: Path) -> None:
    """One line that changes has what is known: done, in flight, pace, time left, tokens."""
    (tmp_path / "p.txt").write_text("".join(f"fox {n}\n" for n in range(6)))
    server.inject("none*5", "stall-headers")
    screen = Screen(100)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "elkimg_async", "batch", "p.txt"),
        cwd=tmp_path,
        env=environment(server, {"TERM": "xterm"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=screen.theirs,
    )
    try:
        await screen.wait_for(
            r"5 of 6 done, 1 in flight, [\d,]+ a minute, \d+:\d\d left, [\d,]+ tokens"
        )
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
        await screen.wait_for("To continue")
    finally:
        screen.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 130
    assert summary(out.decode())["done"] == "5"
    assert "inf" not in screen.text
    assert "0 failed" not in screen.text


@pytest.mark.parametrize("columns", [40, 60, 80])
async def test_batch_does_not_break_the_folder_name(
    server: LocalServer, tmp_path: Path, columns: int
) -> None:
    """No width breaks the name of the folder in the summary."""
    folder = "pictures-of-the-second-week-of-the-long-winter-by-the-sea"
    (tmp_path / "p.txt").write_text("a fox\n")
    arguments = ("batch", "p.txt", "-o", folder)
    code, shown = await run_on_terminal(*arguments, folder=tmp_path, columns=columns, server=server)
    assert code == 0
    assert folder in shown


# --- what is rejected before the first request ----------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("none.txt",), "none.txt cannot be read: No such file"),
        ((".",), "cannot be read: Is a directory"),
        (("empty.txt",), "empty.txt is empty; it needs at least one prompt."),
        (("header.csv",), "header.csv has no prompts."),
        (("p.csv",), "p.csv, line 1: the header needs a column prompt"),
        (("p.txt", "--journal", "p.txt"), "not a journal"),
        (("p.txt", "--format", "xml"), "--format must be one of text, csv, tsv, json, jsonl."),
        (("p.txt", "--concurrency", "0"), "--concurrency must be at least 1."),
        (("p.txt", "--max-images", "0"), "--max-images must be at least 1."),
        (("p.txt", "--rpm", "0"), "--rpm must be more than 0."),
        (("p.txt", "--ipm", "-3"), "--ipm must be more than 0."),
        (("p.txt", "--timeout", "0"), "--timeout must be more than 0; for no limit pass inf."),
        (("p.txt", "--retries", "-1"), "--retries must be 0 or more."),
        (("p.txt", "--base-url", "host/v1"), "it must begin with https:// or http://."),
        (("p.txt", "--base-url", "host/v1", "--dry-run"), "it must begin with https://"),
        (("p.txt", "--contact-sheet", "a.xyz"), "the suffix is not that of an image."),
        (("p.txt", "--contact-sheet", "no/a.png"), "the folder no does not exist."),
        (("p.txt", "-o", "p.txt"), "p.txt/journal.jsonl cannot be used"),
        (("p.txt", "--quality", "hd"), "quality 'hd' is not offered"),
        (("p.txt", "--n", "11"), "n is 11"),
        (("p.txt", "--keep", "sku"), "--keep"),
        (("p.txt", "--ray", "--max-images", "1"), "--max-images and --ray"),
    ],
    ids=range(22),
)
async def test_batch_with_wrong_arguments(
    arguments: tuple[str, ...], sentence: str, server: LocalServer, tmp_path: Path
) -> None:
    """What cannot work is one sentence, not one for each prompt, and nothing is sent."""
    (tmp_path / "p.txt").write_text("a fox\nan owl\n")
    (tmp_path / "p.csv").write_text("text\na fox\n")
    (tmp_path / "header.csv").write_text("prompt,n\n,\n")
    (tmp_path / "empty.txt").write_text("\n")
    ended = await batch(*arguments, folder=tmp_path, server=server)
    assert ended.code == 2
    assert ended.err.count(sentence) == 1
    assert ended.out == ""
    assert not server.requests


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("p.csv", "id,prompt,n\nfox,a fox,\nowl,,1\n", "p.csv, line 3 (id owl): column prompt: "),
        ("p.csv", "custom_id,prompt,n\nowl,an owl,x\n", "p.csv, line 2 (id owl): column n: "),
        (
            "p.jsonl",
            '{"prompt": "a"}\n\n{"id": 7, "text": "b"}\n',
            "p.jsonl, line 3 (id 7): column text: ",
        ),
        ("p.json", '[{"id": "x", "prompt": ["b"]}]', "p.json, line 1 (id x): "),
    ],
)
async def test_batch_with_wrong_row_names_its_id(
    name: str, content: str, place: str, server: LocalServer, tmp_path: Path
) -> None:
    """A row that cannot be read is named by its line and id, in one sentence with one full stop."""
    (tmp_path / name).write_text(content)
    ended = await batch(name, folder=tmp_path, server=server)
    assert ended.code == 2
    assert ended.err.startswith(place)
    assert ".." not in ended.err
    assert not server.requests


async def test_batch_with_wrong_rows_sends_nothing(server: LocalServer, tmp_path: Path) -> None:
    """Each wrong row is named by line and column before a cent is spent."""
    table = "prompt,n,size\na fox,2.5,\nan owl,,\na cat,11,\n,1,\na dog,,7x7\n"
    (tmp_path / "p.csv").write_text(table)
    ended = await batch("p.csv", folder=tmp_path, server=server)
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert lines[0] == "p.csv, line 2: column n: expected a whole number, found '2.5'."
    assert lines[1].startswith("p.csv, line 4: column n: gpt-image-1.5: n is 11")
    assert lines[2] == "p.csv, line 5: column prompt: there is no prompt."
    assert lines[3].startswith("p.csv, line 6: column size: ")
    assert lines[4].startswith("4 of 5 requests cannot be sent, so nothing was sent.")
    assert not server.requests


async def test_batch_with_many_wrong_rows(tmp_path: Path) -> None:
    """A long list of problems is cut short."""
    (tmp_path / "p.csv").write_text("prompt,n\n" + "a fox,x\n" * 500)
    ended = await batch("p.csv", "--local", folder=tmp_path)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 22
    assert "… and 480 more." in ended.err


async def test_batch_without_api_key(tmp_path: Path) -> None:
    """500 prompts without an API key are one error, before anything is opened."""
    (tmp_path / "p.txt").write_text("a fox\n" * 500)
    ended = await batch("p.txt", folder=tmp_path)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "ELKAPI_API_KEY" in ended.err
    assert file_names(tmp_path) == ["p.txt"]


async def test_batch_dry_run_sends_nothing(server: LocalServer, tmp_path: Path) -> None:
    """A dry run prints what would be sent, needs no API key, and writes nothing."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox"}\n{"prompt": "owl", "n": 3}\n', "utf-8")
    ended = await batch("p.jsonl", "--dry-run", "--size", "1024x1024", folder=tmp_path)
    assert ended.code == 0
    assert "line 1: “a fox” " in ended.out
    assert re.search(r"line 2: “owl” .*n=3 .*size=1024x1024", ended.out) or "n=3" in ended.out
    assert "2 requests for 4 images would be sent." in ended.out
    assert file_names(tmp_path) == ["p.jsonl"]
    await batch("p.jsonl", "--max-images", "1", folder=tmp_path, server=server)
    ended = await batch("p.jsonl", "--dry-run", folder=tmp_path)
    assert "1 request for 3 images would be sent, 1 is done already." in ended.out
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('{"prompt": "a cat", "n": 11}\n{"prompt": "a cat", "sise": 1}\n')
    ended = await batch("p.jsonl", "--dry-run", folder=tmp_path)
    assert ended.code == 2
    assert "p.jsonl, line 3: column n: gpt-image-1.5: n is 11" in ended.err
    assert "p.jsonl, line 4: column sise: unknown column" in ended.err
    assert server.generations == 1


# --- texts ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (1.0, "60 a minute"),
        (0.99, "59 a minute"),
        (1.234, "74 a minute"),
        (20.57, "1,200 a minute"),
        (1 / 60, "1 a minute"),
        (1 / 200, "1 every 3:20"),
        (0.0, "0 a minute"),
    ],
)
def test_rates_are_rounded(rate: float, words: str) -> None:
    """Rates are rounded to a readable number."""
    assert per_minute(rate) == words


def test_clock() -> None:
    """Times are minutes and seconds, with hours where there are any."""
    assert [clock(5.4), clock(65), clock(3725)] == ["0:05", "1:05", "1:02:05"]


def test_command_line_with_other_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of an option is replaced in either spelling, and the rest is quoted."""
    arguments = [
        "/usr/bin/elkimg",
        "batch",
        "my prompts.txt",
        "--max-images",
        "3",
        "--max-images=3",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    expected = "elkimg batch 'my prompts.txt' --max-images 7 --max-images=7"
    assert command_line({"--max-images": "7"}) == expected
