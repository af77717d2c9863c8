"""The input of `elkimg batch`: encodings, formats, columns and values."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from elkimg_async import ConfigurationError
from elkimg_async.cli.batch_input import BatchInput
from elkimg_async.cli.console import UsageError
from tests.helpers.command import run


def read(
    path: Path, content: str | bytes, encoding: str = "utf-8", **options: Any
) -> list[tuple[int, dict[str, Any]]]:
    """Return the lines and requests of a file; none may be wrong."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    source = BatchInput(str(path), **options)
    rows = list(source.rows())
    assert [str(row.problem) for row in rows if row.problem] == []
    assert rows == list(source.rows())
    return [(row.line, row.request) for row in rows]


def problems(path: Path, content: str, **options: Any) -> list[tuple[int, str | None, str]]:
    """Return what is wrong with the rows of a file: line, column, sentence."""
    path.write_text(content, "utf-8")
    rows = BatchInput(str(path), **options).rows()
    return [(row.line, row.problem.column, str(row.problem)) for row in rows if row.problem]


# --- formats ----------------------------------------------------------------

FOX, OWL = {"prompt": "a fox"}, {"prompt": "an owl"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "a fox\n\n an owl \r\n", [(1, FOX), (3, OWL)]),
        ("p", "a fox\ran owl", [(1, FOX), (2, OWL)]),
        ("p.txt", "[1]\n(a fox)", [(1, {"prompt": "[1]"}), (2, {"prompt": "(a fox)"})]),
        ("p.txt", "Prompt\na fox\nan owl\n", [(2, FOX), (3, OWL)]),
        ("p.jsonl", '"a fox"\n\n{"prompt": "an owl"}', [(1, FOX), (3, OWL)]),
        ("p.ndjson", '{"prompt": "a fox", "size": null}\n', [(1, FOX)]),
        ("p", '{"prompt": "a fox"}\n"an owl"\n', [(1, FOX), (2, OWL)]),
        ("p.txt", '{"prompt": "a fox"}\n', [(1, FOX)]),
        ("p.json", '[\n {"prompt": "a fox"},\n\n "an owl"\n]\n', [(2, FOX), (4, OWL)]),
        ("p.JSON", '["a fox"]', [(1, FOX)]),
        ("p.json", '{"prompt": "a fox"}\n{"prompt": "an owl"}\n', [(1, FOX), (2, OWL)]),
        ("p.json", '{\n"prompt": "a fox"\n}', [(1, FOX)]),
        ("p.jsonl", '["a fox",\n"an owl"]', [(1, FOX), (2, OWL)]),
        ("p.txt", '["a fox"]', [(1, FOX)]),
        ("p.tsv", "prompt\tn\na fox\t\n", [(2, FOX)]),
        ("p.txt", "prompt\tn\na fox\t2\n", [(2, {**FOX, "n": 2})]),
        ("p", "n,prompt\n2,a fox\n", [(2, {**FOX, "n": 2})]),
        ("p.csv", "prompt\na fox\n", [(2, FOX)]),
        ("p.csv", '"prompt"\n"a, fox"\n', [(2, {"prompt": "a, fox"})]),
        ("p.csv", 'prompt,n\n"a\nfox",2\nan owl,\n', [(2, {"prompt": "a\nfox", "n": 2}), (4, OWL)]),
        ("p.csv", "prompt;size\na fox;1024x1024\n", [(2, {**FOX, "size": "1024x1024"})]),
        ("p.csv", "prompt|size\na fox|auto\n", [(2, {**FOX, "size": "auto"})]),
        ("p.csv", "prompt\tsize\na fox\tauto\n", [(2, {**FOX, "size": "auto"})]),
        ("p.csv", "sep=;\nprompt;size\na fox;auto\n", [(3, {**FOX, "size": "auto"})]),
        ("p.csv", "\n\nprompt,size\n\na fox,auto\n,\n", [(5, {**FOX, "size": "auto"})]),
        ("p.csv", " Prompt , Size,,\na fox , auto,,\n", [(2, {**FOX, "size": "auto"})]),
        ("p.csv", 'prompt, size\n"a fox", "auto"\n', [(2, {**FOX, "size": "auto"})]),
        ("p.csv", "PROMPT,Output Format\na fox,webp\n", [(2, {**FOX, "output_format": "webp"})]),
    ],
    ids=range(28),
)
def test_formats(tmp_path: Path, name: str, text: str, expected: list[Any]) -> None:
    """The format is found by the name and the content, and lines count from 1."""
    assert read(tmp_path / name, text) == expected


def test_format_option_wins(tmp_path: Path) -> None:
    """--format decides where the name and the content would say something else."""
    line = '{"prompt": "a fox"}'
    assert read(tmp_path / "p.jsonl", line, format="text") == [(1, {"prompt": line})]
    assert read(tmp_path / "p.md", "a fox", format="text") == [(1, FOX)]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.txt", "", "is empty"),
        ("p.csv", " \n\n", "is empty"),
        ("p.yaml", "- a fox\n- an owl\n", "suffix .yaml"),
        (
            "p.json",
            '[{"prompt": "a fox"},\n{"prompt" "an owl"}]',
            "line 2: the JSON is broken at character 11: ",
        ),
        ("p.json", '["a fox"\n"an owl"]', "line 2: the JSON array is broken"),
        ("p.json", '["a fox"', "the JSON array is broken"),
        ("p.json", '["a fox"]\n["an owl"]', "unexpected text after"),
        ("p.json", '{\n"prompts": ["a fox"]}', "expected an array"),
        ("p.json", "a fox\nan owl", "line 1: the JSON is broken"),
        ("p.json", "[" * 100_000, "nested too deeply"),
        ("p.csv", "text\na fox\n", "line 1: the header needs a column prompt; found text."),
        ("p.csv", "a fox\nan owl\n", "the header needs a column prompt"),
        ("p.csv", "prompt,sise\na fox,1\n", "line 1: unknown column 'sise'"),
        ("p.csv", "prompt,size,Size\na,b,c\n", "two columns 'size'"),
        ("p.csv", 'prompt,n\na fox,1\n"an owl,2\na cat,3\n', "line 3: the row cannot be read"),
        ("p.csv", 'prompt,n\n"a" fox,1\n', "line 2: the row cannot be read"),
    ],
    ids=range(16),
)
def test_unusable_files(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    """A file that cannot be used is rejected with its line."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        list(BatchInput(str(tmp_path / name)).rows())
    assert sentence in str(caught.value)


# --- encodings --------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "ein Käfer\nfrüh € spät\n"),
        ("p.csv", "prompt;size\nein Käfer;auto\nfrüh € spät;\n"),
        ("p.tsv", "Prompt\tn\nein Käfer\t\nfrüh € spät\t2\n"),
        ("p.jsonl", '{"prompt": "ein Käfer"}\n{"prompt": "früh € spät"}\n'),
        ("p.json", '[{"prompt": "ein Käfer"},\n"früh € spät"]'),
    ],
)
def test_encodings(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    """Whatever an editor or Excel writes is read as the text that it is."""
    prompts = [request["prompt"] for _, request in read(tmp_path / name, text, encoding)]
    assert prompts == ["ein Käfer", "früh € spät"]
    warning = BatchInput(str(tmp_path / name)).warning
    assert (warning is not None) == (encoding == "cp1252")
    assert warning is None or "Windows-1252" in warning


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("一只红色的狐狸在雪地里奔跑\n".encode("gbk"), "line 1: the text is neither UTF-8"),
        (
            b"a fox\n" + "雪の中を走る赤い狐".encode("shift_jis"),
            "line 2: the text is neither UTF-8",
        ),
        ("рыжая лиса бежит".encode("cp1251"), "--encoding"),
        (b"a fox\nan \0owl\n", "line 2: there is a NUL"),
        (b"\xff\xfea\0\n\0\0\xd8\n\0", "line 2: the text is not valid utf-16"),
        (b"PK\x03\x04rest", "an Excel workbook"),
        (b"\x89PNG\r\n\x1a\nrest", "an image"),
        (b"\x1f\x8brest", "compressed"),
    ],
    ids=["gbk", "shift_jis", "cp1251", "nul", "surrogate", "xlsx", "png", "gzip"],
)
def test_unreadable_text(tmp_path: Path, content: bytes, sentence: str) -> None:
    """Text that would be read as other text, and files that are no text, are rejected."""
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        BatchInput(str(tmp_path / "p.txt"))
    assert sentence in str(caught.value)


def test_encoding_option(tmp_path: Path) -> None:
    """--encoding names what cannot be found out; a wrong name is rejected."""
    text = "一只红色的狐狸\n"
    (tmp_path / "p.txt").write_bytes(text.encode("gbk"))
    source = BatchInput(str(tmp_path / "p.txt"), encoding="gbk")
    assert [row.request for row in source.rows()] == [{"prompt": text.strip()}]
    with pytest.raises(ConfigurationError, match="no such encoding"):
        BatchInput(str(tmp_path / "p.txt"), encoding="klingon")
    with pytest.raises(ConfigurationError, match="line 1: the text is not valid utf-8"):
        BatchInput(str(tmp_path / "p.txt"), encoding="utf-8")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is read to its end first, and its format is found by its content."""
    typed = io.TextIOWrapper(io.BytesIO("\ufeffprompt,n\na fox,2\n".encode("utf-16-le")))
    monkeypatch.setattr(sys, "stdin", typed)
    source = BatchInput("-")
    assert [row.request for row in source.rows()] == [{"prompt": "a fox", "n": 2}]
    assert source.name == "standard input"


# --- values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "value"), [("2", 2), ("1.0", 1), (" 3 ", 3), ("2,0", 2), ("-1", -1), ("", None)]
)
def test_integers_in_cells(tmp_path: Path, cell: str, value: int | None) -> None:
    """A spreadsheet's 1.0 is 1, and an empty cell is not set."""
    [(_, request)] = read(tmp_path / "p.csv", f'prompt,n\na fox,"{cell}"\n')
    assert request.get("n") == value


def test_values_in_json(tmp_path: Path) -> None:
    """Numbers may be integral floats or text; null, NaN and empty text are not set."""
    line = (
        '{"prompt": "a", "n": 2.0, "output_compression": "80", '
        '"size": "", "user": null, "quality": NaN}'
    )
    [(_, request)] = read(tmp_path / "p.jsonl", line)
    assert request == {"prompt": "a", "n": 2, "output_compression": 80}
    assert type(request["n"]) is int


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.csv", "prompt,n\na fox,two\n", (2, "n", "expected a whole number, found 'two'")),
        ("p.csv", "prompt,N\nx,1\na fox,2.5\n", (3, "N", "expected a whole number, found '2.5'")),
        ("p.jsonl", '{"prompt": "a", "n": true}', (1, "n", "expected a whole number")),
        ("p.jsonl", '{"prompt": "a", "n": [1]}', (1, "n", "found a list")),
        ("p.jsonl", '"a"\n[1]', (2, None, "expected an object or a string, found a list")),
        ("p.jsonl", '"a"\n{"x"', (2, None, "not a JSON object (at character 5): ")),
        ("p.jsonl", '{"n": 1}', (1, "prompt", "there is no prompt")),
        ("p.json", '["a",\n\n{"prompt": " "}]', (3, "prompt", "there is no prompt")),
        (
            "p.jsonl",
            '{"prompt": "a", "sise": 1}',
            (1, "sise", "unknown column 'sise'. Known ones: id,"),
        ),
        ("p.csv", "prompt,n\na fox,1,2\n", (2, None, "more cells than the header has columns")),
        ("p.csv", "prompt,extra_body\na,[1]\n", (2, "extra_body", "expected a JSON object")),
        ("p.csv", "prompt,metadata\na,x\n", (2, "metadata", "expected a JSON object")),
        ("p.jsonl", '{"prompt": "a", "id": [1]}', (1, "id", "expected text or a whole number")),
        ("p.jsonl", '{"prompt": "a", "id": 1, "custom_id": 2}', (1, "custom_id", "two values")),
    ],
    ids=range(14),
)
def test_wrong_rows(
    tmp_path: Path, name: str, text: str, expected: tuple[int, str | None, str]
) -> None:
    """A row that cannot be sent has its line and column; the other rows are read."""
    [(line, column, sentence)] = problems(tmp_path / name, text)
    assert (line, column) == expected[:2]
    assert expected[2] in sentence


def test_unknown_field_names_ways_out(tmp_path: Path) -> None:
    """The message lists the known fields, and names --keep and extra_body."""
    [(_, _, sentence)] = problems(tmp_path / "p.jsonl", '{"prompt": "a", "seed": 1}')
    for word in ("size", "quality", "image", "--keep", "extra_body"):
        assert word in sentence


# --- ids, metadata, files, OpenAI's format -----------------------------------


@pytest.mark.parametrize("column", ["id", "custom_id", "Custom ID", "ID"])
def test_ids(tmp_path: Path, column: str) -> None:
    """`id` and `custom_id` are the id of the row: text in a table, a number may be one in JSON."""
    assert read(tmp_path / "p.csv", f"{column},prompt\n7,a\n,b\n") == [
        (2, {"id": "7", "prompt": "a"}),
        (3, {"prompt": "b"}),
    ]
    line = json.dumps({column: 7.0, "prompt": "a"})
    assert read(tmp_path / "p.jsonl", line) == [(1, {"id": 7, "prompt": "a"})]


def test_kept_columns_are_metadata(tmp_path: Path) -> None:
    """Columns named by --keep become metadata, whatever their case; empty cells are left out."""
    text = "SKU,prompt,Author name\n12,a fox,Ann\n13,an owl,\n"
    assert read(tmp_path / "p.csv", text, keep=["sku", "Author Name"]) == [
        (2, {"prompt": "a fox", "metadata": {"sku": "12", "Author Name": "Ann"}}),
        (3, {"prompt": "an owl", "metadata": {"sku": "13"}}),
    ]
    line = '{"prompt": "a", "sku": 12, "metadata": {"row": 1}}'
    expected = {"prompt": "a", "metadata": {"sku": 12, "row": 1}}
    assert read(tmp_path / "p.jsonl", line, keep=["sku"]) == [(1, expected)]


def test_kept_column_missing(tmp_path: Path) -> None:
    """--keep of a column that is not there is rejected."""
    for name, text in {"p.csv": "prompt\na\n", "p.txt": "a\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match="--keep"):
            list(BatchInput(str(tmp_path / name), keep=["sku"]).rows())


def test_images_are_relative_to_file(tmp_path: Path) -> None:
    """Paths start at the folder of the file; addresses and absolute paths stay as they are."""
    text = (
        "image,mask,prompt\nin/a.png,m.png,add a hat\n"
        f"https://example.com/a.png,,b\n{tmp_path}/c.png,,c\n"
        '"[""a.png"", ""b.png""]",,d\n'
    )
    rows = [request for _, request in read(tmp_path / "p.csv", text)]
    assert rows == [
        {
            "image": str(tmp_path / "in/a.png"),
            "mask": str(tmp_path / "m.png"),
            "prompt": "add a hat",
        },
        {"image": "https://example.com/a.png", "prompt": "b"},
        {"image": f"{tmp_path}/c.png", "prompt": "c"},
        {"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")], "prompt": "d"},
    ]


def test_openai_batch_lines(tmp_path: Path) -> None:
    """The lines of OpenAI's Batch API are read: the body is the request, custom_id its id."""
    lines = [
        {
            "custom_id": "r-1",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"model": "gpt-image-1", "prompt": "a fox", "n": 2, "stream": False},
        },
        {
            "custom_id": "r-2",
            "method": "POST",
            "url": "/v1/images/edits",
            "body": {"prompt": "a hat", "images": [{"image_url": "https://example.com/a.png"}]},
        },
    ]
    text = "\n".join(map(json.dumps, lines))
    assert [request for _, request in read(tmp_path / "p.jsonl", text)] == [
        {"id": "r-1", "model": "gpt-image-1", "prompt": "a fox", "n": 2},
        {"id": "r-2", "prompt": "a hat", "image": ["https://example.com/a.png"]},
    ]


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"url": "/v1/chat/completions"}, "url"),
        ({"method": "GET"}, "method"),
        ({"body": {"prompt": "a", "stream": True}}, "stream"),
        ({"body": {"prompt": "a", "messages": []}}, "messages"),
        ({"body": {}}, "prompt"),
    ],
)
def test_openai_batch_lines_of_other_kinds(
    tmp_path: Path, change: dict[str, Any], column: str
) -> None:
    """A line for another endpoint, or with other fields, is rejected with its column."""
    line = {"custom_id": "r", "method": "POST", "url": "/v1/images/generations"}
    [(number, wrong, _)] = problems(
        tmp_path / "p.jsonl", json.dumps({**line, "body": {"prompt": "a"}, **change})
    )
    assert (number, wrong) == (1, column)


@pytest.mark.parametrize(
    ("name", "text", "column"),
    [
        ("p.jsonl", '{"prompt": "a\\u0000b"}', "column prompt: there is a NUL"),
        ("p.json", '[\n{"prompt": "a", "size": "\\u0000"}]', "column size: there is a NUL"),
        ("p.jsonl", '{"prompt": "a", "image": "\\u0000.png"}', "column image: there is a NUL"),
    ],
)
async def test_batch_with_an_escaped_nul(tmp_path: Path, name: str, text: str, column: str) -> None:
    """An escaped NUL is rejected with its line and column."""
    (tmp_path / name).write_text(text)
    ended = await run("batch", name, "--dry-run", folder=tmp_path)
    assert ended.code == 2
    line = 2 if "\n" in text else 1
    assert f"{name}, line {line}: {column}" in ended.err


async def test_batch_with_a_missing_image(tmp_path: Path) -> None:
    """A file that cannot be read is located by line and column before anything is sent."""
    (tmp_path / "p.csv").write_text("prompt,image\nhat,none.png\n")
    ended = await run("batch", "p.csv", "--dry-run", folder=tmp_path)
    assert "p.csv, line 2: column image: " in ended.err
