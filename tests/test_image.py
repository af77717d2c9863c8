"""`Image`: properties of its bytes, and reading, saving and downloading them."""

import asyncio
import base64
import copy
import io
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from elkimg_async import (
    ConfigurationError,
    DownloadError,
    Image,
)
from elkimg_async.media_types import media_type_of
from tests.helpers.raw_server import (
    JPEG,
    PNG,
)

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
CONTENTS = {
    "image/png": PNG,
    "image/jpeg": JPEG,
    "image/webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "image/gif": b"GIF89a\x01\x00",
    "image/svg+xml": SVG,
    "image/avif": b"\x00\x00\x00\x20ftypavif\x00",
    "image/bmp": b"BM" + bytes(30),
    "image/tiff": b"II*\x00\x08\x00",
}


@pytest.mark.parametrize(("media_type", "content"), list(CONTENTS.items()))
def test_media_type(media_type: str, content: bytes) -> None:
    """The media type follows from the bytes."""
    assert Image(content).media_type == media_type


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"GIF87a", "image/gif"),
        (b"MM\x00*", "image/tiff"),
        (b"\x00\x00\x00\x20ftypavis", "image/avif"),
        (b'<?xml version="1.0"?>\n' + SVG, "image/svg+xml"),
        (b"\xef\xbb\xbf \n" + SVG, "image/svg+xml"),
        (b"<!-- " + b"licence " * 1000 + b"-->" + SVG, "image/svg+xml"),
        (b"<!DOCTYPE html>" + SVG, "application/octet-stream"),
        (b"", "application/octet-stream"),
        (b"<?xml version='1.0'?><html/>", "application/octet-stream"),
        (b"<html>", "application/octet-stream"),
        (b"BM", "application/octet-stream"),
        (b"RIFF\x10\x00\x00\x00WAVE", "application/octet-stream"),
        (PNG[:7], "application/octet-stream"),
    ],
)
def test_media_type_of_other_bytes(content: bytes, media_type: str) -> None:
    """Other brands of formats are recognized, and other data is not an image."""
    assert media_type_of(content) == media_type


@pytest.mark.parametrize("output_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_media_type_of_real_files(output_format: str) -> None:
    """Files that Pillow writes are recognized."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(file, output_format)
    assert Image(file.getvalue()).media_type == f"image/{output_format.lower()}"


@pytest.mark.parametrize("content", [b"", b"a", b"ab", bytes(range(256)) * 33])
def test_b64_json_round_trip(content: bytes) -> None:
    """`b64_json` is the bytes in standard base64."""
    text = Image(content).b64_json
    assert isinstance(text, str)
    assert base64.b64decode(text, validate=True) == content


def test_image_that_is_only_a_url() -> None:
    """An image that is only a URL has no bytes, base64 or type yet."""
    image = Image(url="https://host/a.png", revised_prompt="a boat, in oil")
    assert image.content is None
    assert image.b64_json is None
    assert image.media_type is None
    assert image.revised_prompt == "a boat, in oil"


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (Image(PNG), "<Image image/png, 264 bytes>"),
        (Image(JPEG * 10), "<Image image/jpeg, 2,590 bytes>"),
        (Image(url="https://host/a.png?sig=hush"), "<Image at https://host/a.png>"),
        (Image(), "<Image at None>"),
    ],
)
def test_repr(image: Image, text: str) -> None:
    """The repr shows type and size, or the URL without its signature; never the bytes."""
    assert repr(image) == text


@pytest.mark.parametrize(
    "image",
    [
        Image(PNG),
        Image(PNG, url="https://host/a.png", revised_prompt="a boat"),
        Image(url="https://host/a.png"),
    ],
)
def test_pickle_and_copy(image: Image) -> None:
    """An image pickles and copies to an equal one."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(image, protocol)) == image
    assert copy.copy(image) == copy.deepcopy(image) == image


def test_equality() -> None:
    """Images are equal by bytes, address and revised prompt."""
    assert Image(PNG) == Image(PNG)
    assert Image(PNG) != Image(JPEG)
    assert Image(PNG) != Image(PNG, url="https://host/a.png")
    assert Image(PNG) != Image(PNG, revised_prompt="a boat")
    assert Image(PNG) != PNG


def test_notebook() -> None:
    """A notebook shows a small image as it is, and a line of text while it is only a URL."""
    bundle = Image(PNG)._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {"image/png": PNG, "text/plain": "<Image image/png, 264 bytes>"}
    address = Image(url="https://host/a.png")._repr_mimebundle_()
    assert address == {"text/plain": "<Image at https://host/a.png>"}


def test_notebook_preview() -> None:
    """A large image is a preview with a bounded edge and with alternative text from the prompt."""
    for mode, media_type in (("RGB", "jpeg"), ("RGBA", "webp"), ("L", "jpeg")):
        file = io.BytesIO()
        noise = random.Random(7).randbytes(1200 * 900 * len(mode))
        PIL.Image.frombytes(mode, (1200, 900), noise).save(file, "png")
        image = Image(file.getvalue())
        image.describe_with('a "boat"\n& more')
        bundle = image._repr_mimebundle_()
        assert bundle.keys() == {"text/plain", "text/html"}
        shown = str(bundle["text/html"])
        assert 'alt="a &quot;boat&quot; &amp; more"' in shown
        start, _, data = shown.partition('src="')[2].partition('"')[0].partition(",")
        assert start == f"data:image/{media_type};base64"
        preview = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
        assert preview.size == (512, 384)
        assert "href" not in shown  # only a notebook keeps originals


def test_notebook_preview_of_a_truncated_image() -> None:
    """An image that cannot be reduced is embedded unchanged."""
    content = PNG + bytes(100_000)
    encoded = base64.b64encode(content).decode()
    assert f'src="data:image/png;base64,{encoded}"' in str(
        Image(content)._repr_mimebundle_()["text/html"]
    )


def test_notebook_svg() -> None:
    """An SVG is shown as an image element, in which its scripts do not run."""
    bundle = Image(SVG)._repr_mimebundle_()
    assert bundle.keys() == {"text/plain", "text/html"}
    encoded = base64.b64encode(SVG).decode()
    assert f'src="data:image/svg+xml;base64,{encoded}"' in str(bundle["text/html"])


def test_notebook_of_unsupported_types() -> None:
    """Bytes that browsers cannot show are described as text."""
    for content in (CONTENTS["image/tiff"], b"whatever"):
        assert Image(content)._repr_mimebundle_().keys() == {"text/plain"}


def test_to_pil() -> None:
    """`to_pil` opens the bytes."""
    file = io.BytesIO()
    PIL.Image.new("RGBA", (3, 2), (1, 2, 3, 4)).save(file, "PNG")
    pil_image = Image(file.getvalue()).to_pil()
    assert (pil_image.size, pil_image.format, pil_image.getpixel((2, 1))) == (
        (3, 2),
        "PNG",
        (1, 2, 3, 4),
    )


def test_to_pil_of_a_url() -> None:
    """`to_pil` of a URL says to read it first."""
    with pytest.raises(DownloadError, match="read") as caught:
        Image(url="https://host/a.png").to_pil()
    assert caught.value.url == "https://host/a.png"


def pattern(mode: str) -> PIL.Image.Image:
    """Return a small image of some colours, with transparency if the mode has it."""
    pil_image = PIL.Image.new("RGBA", (16, 16))
    pil_image.putdata([(x * 16, y * 16, 128, x * 17) for y in range(16) for x in range(16)])
    return pil_image.convert(mode)


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_from_pil_round_trip(mode: str, format: Any) -> None:
    """A grey or RGB image, transparent or not, is unchanged pixel for pixel."""
    pil_image = pattern(mode)
    image = Image.from_pil(pil_image, format=format)
    assert image.media_type == f"image/{format}"
    again = image.to_pil()
    assert again.convert("RGBA").tobytes() == pil_image.convert("RGBA").tobytes()
    if format == "png":
        assert again.mode == mode


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_from_pil_converts(mode: str, format: Any) -> None:
    """Other modes are converted to RGB of the same appearance."""
    pil_image = pattern("RGB").convert(mode)
    again = Image.from_pil(pil_image, format=format).to_pil()
    assert again.mode == "RGB"
    wanted = pil_image.convert("RGB")
    if format != "jpeg":
        assert again.tobytes() == wanted.tobytes()
    assert again.size == wanted.size


def test_from_pil_keeps_the_transparency_of_a_palette() -> None:
    """A palette with a transparent colour becomes RGBA."""
    pil_image = PIL.Image.new("P", (2, 1), 1)
    pil_image.putpalette([0, 0, 0, 10, 20, 30])
    pil_image.putpixel((1, 0), 0)
    pil_image.info["transparency"] = 0
    for image in (Image.from_pil(pil_image), Image.from_pil(pil_image, format="webp")):
        again = image.to_pil()
        assert again.mode == "RGBA"
        assert again.getpixel((0, 0)) == (10, 20, 30, 255)
        pixel = again.getpixel((1, 0))
        assert isinstance(pixel, tuple)
        assert pixel[3] == 0


def test_from_pil_drops_a_profile_that_no_longer_fits() -> None:
    """The colour profile of a CMYK image is dropped in RGB; that of an RGB image is kept."""
    for mode, kept in (("CMYK", None), ("RGB", b"profile")):
        pil_image = pattern("RGB").convert(mode)
        pil_image.info["icc_profile"] = b"profile"
        assert Image.from_pil(pil_image).to_pil().info.get("icc_profile") == kept


@pytest.mark.parametrize(
    ("pil_image", "format", "message"),
    [
        (PIL.Image.new("RGBA", (1, 1)), "jpeg", "transparency"),
        (PIL.Image.new("I;16", (1, 1)), "png", "more than 8 bits"),
        (PIL.Image.new("F", (1, 1)), "png", "more than 8 bits"),
        (PIL.Image.new("La", (1, 1)), "png", "mode La"),
        (PIL.Image.new("RGB", (1, 1)), "gif", "png, jpeg or webp"),
        (b"bytes", "png", "not bytes"),
    ],
)
def test_from_pil_rejects(pil_image: Any, format: Any, message: str) -> None:
    """Modes that would lose data or cannot be saved are an error that says what to do."""
    with pytest.raises(ConfigurationError, match=message):
        Image.from_pil(pil_image, format=format)


def test_from_pil_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow, `from_pil` names the extra to install."""
    pil_image = PIL.Image.new("L", (1, 1))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[pil\]"):
        Image.from_pil(pil_image)


def test_to_pil_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow, `to_pil` names the extra to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[pil\]"):
        Image(PNG).to_pil()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("as_path", [False, True])
async def test_save(tmp_path: Path, as_path: bool) -> None:
    """`save` writes the bytes and returns the path, which may be text or a path."""
    target = tmp_path / "boat.png"
    written = await Image(PNG).save(target if as_path else str(target))
    assert isinstance(written, Path)
    assert written == target
    assert target.read_bytes() == PNG
    assert names_in(tmp_path) == ["boat.png"]


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [
        ("image/png", ".png"),
        ("image/jpeg", ".jpg"),
        ("image/webp", ".webp"),
        ("image/gif", ".gif"),
        ("image/svg+xml", ".svg"),
        ("image/avif", ".avif"),
        ("image/bmp", ".bmp"),
        ("image/tiff", ".tiff"),
    ],
)
async def test_save_fills_in_the_extension(tmp_path: Path, media_type: str, extension: str) -> None:
    """A path without an extension gets that of the image's type."""
    written = await Image(CONTENTS[media_type]).save(tmp_path / "boat")
    assert written == tmp_path / f"boat{extension}"
    assert written.read_bytes() == CONTENTS[media_type]


@pytest.mark.parametrize("name", ["boat.xyz", "boat.JPG", "boat.jpeg"])
async def test_save_with_a_suffix(tmp_path: Path, name: str) -> None:
    """A suffix in the path is kept."""
    assert (await Image(JPEG).save(tmp_path / name)).name == name


async def test_save_with_the_suffix_of_another_type(tmp_path: Path) -> None:
    """A suffix that contradicts the bytes is a warning that names the user's line."""
    with pytest.warns(
        UserWarning, match=r"boat.png holds image/jpeg; save it as boat.jpg"
    ) as caught:
        path = await Image(JPEG).save(tmp_path / "boat.png")
    assert caught[0].filename == __file__
    assert path.read_bytes() == JPEG


async def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    """The error names the missing folder, not a temporary file."""
    with pytest.raises(FileNotFoundError, match="folder does not exist") as caught:
        await Image(PNG).save(tmp_path / "missing" / "boat.png")
    assert caught.value.filename == str(tmp_path / "missing")


async def test_save_without_overwriting(tmp_path: Path) -> None:
    """With overwrite=False an existing file stays as it was."""
    path = await Image(PNG).save(tmp_path / "boat", overwrite=False)
    with pytest.raises(FileExistsError):
        await Image(PNG + b"more").save(path, overwrite=False)
    assert path.read_bytes() == PNG


async def test_save_unknown_bytes(tmp_path: Path) -> None:
    """Bytes of no known type get no extension."""
    assert (await Image(b"whatever").save(tmp_path / "boat")).name == "boat"


async def test_save_overwrites(tmp_path: Path) -> None:
    """A file of the same name is replaced, however long it was."""
    target = tmp_path / "boat.png"
    target.write_bytes(bytes(10_000))
    await Image(PNG).save(target)
    assert target.read_bytes() == PNG
    assert names_in(tmp_path) == ["boat.png"]


async def test_save_onto_a_folder(tmp_path: Path) -> None:
    """A folder with that name is an OSError, and no incomplete file remains."""
    (tmp_path / "boat.png").mkdir()
    with pytest.raises(OSError, match="boat"):
        await Image(PNG).save(tmp_path / "boat.png")
    assert names_in(tmp_path) == ["boat.png"]


async def test_save_concurrently(tmp_path: Path) -> None:
    """Many saves to one name leave one complete file."""
    target = tmp_path / "boat.png"
    contents = [PNG + bytes([number]) * 50_000 for number in range(10)]
    await asyncio.gather(*(Image(content).save(target) for content in contents))
    assert target.read_bytes() in contents
    assert names_in(tmp_path) == ["boat.png"]


async def test_save_a_long_name(tmp_path: Path) -> None:
    """A name of the maximum length of the file system can be saved to."""
    name = "b" * 251 + ".png"
    assert (await Image(PNG).save(tmp_path / name)).read_bytes() == PNG


async def test_save_a_long_name_of_wide_characters(tmp_path: Path) -> None:
    """A long name of characters that take several bytes can be saved to."""
    name = "猫" * 80 + ".png"
    assert (await Image(PNG).save(tmp_path / name)).read_bytes() == PNG


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
async def test_save_to_a_special_file_without_a_suffix(tmp_path: Path) -> None:
    """A FIFO, a symbolic link and a path in /dev/fd keep their names."""
    image = Image(content=b"\x89PNG\r\n\x1a\n" + bytes(64))
    fifo, link, target = tmp_path / "fifo", tmp_path / "link", tmp_path / "target"
    os.mkfifo(fifo)
    link.symlink_to(target)
    reading = asyncio.create_task(asyncio.to_thread(fifo.read_bytes))
    assert await image.save(fifo) == fifo
    assert await reading == image.content
    assert await image.save(link) == link
    assert target.read_bytes() == image.content
    receiving, sending = os.pipe()
    try:
        await image.save(f"/dev/fd/{sending}")
        assert os.read(receiving, 1_000) == image.content
    finally:
        os.close(receiving)
        os.close(sending)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "target"]
