"""File names derived from prompts, input files and row ids."""

import io
from pathlib import Path
from typing import Any

import pytest

from elkimg_async.batch.names import input_names, job_stem, prompt_stem, row_stem
from elkimg_async.sansio.requests import EditRequest, GenerateRequest


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A Small  kitten, in a sunny garden", "a-small-kitten-in-a-sunny"),
        ("小船", "小船"),
        ("नीली नाव", "नीली-नाव"),
        ("I \u2764\ufe0f boats", "i-boats"),
        ("???", ""),
        ("", ""),
        ("x" * 100, "x" * 40),
        ("../../etc/passwd", "etc-passwd"),
    ],
)
def test_prompt_stem(prompt: str, stem: str) -> None:
    """The first words in lower case; nothing that a file system may reject."""
    assert prompt_stem(prompt) == stem


@pytest.mark.parametrize(
    ("image", "stem"),
    [
        ("photos/IMG_2043.JPG", "000007-IMG_2043"),
        (Path("photos/summer day.png"), "000007-summer-day"),
        ([Path("first.png"), "second.png"], "000007-first"),
        (("named.png", b"\x89PNG", "image/png"), "000007-named"),
        ("https://host/a/cat.png?sig=secret", "000007-cat"),
        (b"\x89PNG", "000007-add-a-hat"),
        ("data:image/png;base64,AAAA", "000007-add-a-hat"),
        ("x" * 300 + ".png", "000007-" + "x" * 40),
    ],
    ids=range(8),
)
def test_job_stem_of_an_edit(image: Any, stem: str) -> None:
    """An edit is named after its first input, or after its prompt if that has no name."""
    assert job_stem(7, EditRequest(image=image, prompt="Add a hat")) == stem


def test_job_stem_of_a_generation() -> None:
    """The number keeps names apart and in order."""
    assert job_stem(12, GenerateRequest(prompt="A cat")) == "000012-a-cat"
    assert job_stem(12, GenerateRequest(prompt="!")) == "000012"


def test_input_names_of_a_file_object(tmp_path: Path) -> None:
    """An open file has the name of its path; a buffer has none."""
    path = tmp_path / "cat.png"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        request = EditRequest(image=[file, io.BytesIO(b"x")], prompt="p")
        assert input_names(request) == ["cat.png"]
    assert input_names(GenerateRequest(prompt="p")) == []


@pytest.mark.parametrize(
    ("row_id", "stem"),
    [("000012-a-cat", "000012-a-cat"), ("7", "7"), ("", "~"), ("../x", "___x~"), ("A", "a~")],
)
def test_row_stem(row_id: str, stem: str) -> None:
    """An unsafe id becomes its safe characters and a hash, within the folder."""
    assert row_stem(row_id).startswith(stem)
    assert "/" not in row_stem(row_id)
    assert (row_stem(row_id) == row_id) == ("~" not in stem)
