"""Names and formats of the files that images are saved to."""

from pathlib import Path

import pytest

import elkimg_async
from elkimg_async.cli.console import UsageError
from elkimg_async.cli.output import OutputFiles, choose_format


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("kitten", "kitten.png"),
        ("kitten.JPEG", "kitten.JPEG"),
        ("kitten.v2", "kitten.v2.png"),
        (".", "a-kitten.png"),
        (None, "a-kitten.png"),
    ],
)
def test_file_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str | None, expected: str
) -> None:
    """A suffix of images is kept; any other ending is part of the name."""
    monkeypatch.chdir(tmp_path)
    names = OutputFiles(output)
    image = elkimg_async.Image(b"\x89PNG\r\n\x1a\n")
    assert names.path(names.reserve("A kitten"), image) == Path(expected)


@pytest.mark.parametrize(
    ("output", "options", "expected"),
    [
        ("k.jpg", {}, "jpeg"),
        ("k.WEBP", {}, "webp"),
        ("k.svg", {"model": "gpt-image-2"}, "svg"),
        ("k.jpeg", {"output_format": "jpeg"}, "jpeg"),
        ("k.png", {}, None),
        ("k.jpg", {"model": "dall-e-3"}, None),
        ("folder", {"output_format": "webp"}, "webp"),
        (None, {}, None),
    ],
)
def test_format_follows_suffix(
    output: str | None, options: dict[str, str], expected: str | None
) -> None:
    """The suffix chooses the format where the model has formats, and png is never sent."""
    assert choose_format(options, output).get("output_format") == expected


@pytest.mark.parametrize(
    ("output", "given"), [("k.png", "jpeg"), ("k.jpg", "png"), ("k.gif", "svg")]
)
def test_format_contradicts_suffix(output: str, given: str) -> None:
    """Two different formats are rejected."""
    with pytest.raises(UsageError, match=given):
        choose_format({"output_format": given}, output)
