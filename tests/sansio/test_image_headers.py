"""Image properties in the first bytes, compared with those that Pillow reads."""

import io
import random
from typing import Any

import pytest
from PIL import Image as Pillow

from elkimg_async.sansio.image_headers import HEAD, file_name, inspect


def saved(mode: str, format: str, size: tuple[int, int] = (33, 17), **options: Any) -> bytes:
    """Return a small image in a file format."""
    out = io.BytesIO()
    Pillow.new(mode, size).save(out, format, **options)
    return out.getvalue()


def translucent_palette() -> bytes:
    return saved("P", "PNG", transparency=0)


FILES = {
    "png-rgb": (saved("RGB", "PNG"), "image/png", False),
    "png-rgba": (saved("RGBA", "PNG"), "image/png", True),
    "png-grey-alpha": (saved("LA", "PNG"), "image/png", True),
    "png-palette": (saved("P", "PNG"), "image/png", False),
    "png-palette-transparent": (translucent_palette(), "image/png", True),
    "png-colour-key": (saved("RGB", "PNG", transparency=(0, 0, 0)), "image/png", True),
    "webp-lossy": (saved("RGB", "WEBP"), "image/webp", False),
    "webp-lossless": (saved("RGB", "WEBP", lossless=True), "image/webp", False),
    "webp-extended": (saved("RGB", "WEBP", exif=b"Exif\0\0MM\0*"), "image/webp", False),
    "jpeg": (saved("RGB", "JPEG"), "image/jpeg", False),
    "jpeg-progressive": (saved("L", "JPEG", progressive=True), "image/jpeg", False),
    "jpeg-with-exif": (saved("RGB", "JPEG", exif=b"Exif\0\0" + bytes(60_000)), "image/jpeg", False),
}


@pytest.mark.parametrize("name", FILES)
def test_inspect_reads_the_header(name: str) -> None:
    """Type, pixels and transparency are those of the file."""
    content, media_type, alpha = FILES[name]
    image = inspect(content[:HEAD], size=len(content), name="kitten")
    assert (image.media_type, image.pixels, image.alpha) == (media_type, (33, 17), alpha)
    assert len(image) == len(content)
    with Pillow.open(io.BytesIO(content)) as opened:
        assert opened.size == image.pixels
        assert (opened.mode in ("RGBA", "LA") or "transparency" in opened.info) == alpha


@pytest.mark.parametrize("alpha", [255, 128])
@pytest.mark.parametrize("lossless", [True, False])
def test_inspect_webp_with_alpha(lossless: bool, alpha: int) -> None:
    """A WebP with translucent pixels has transparency; one that is opaque may lack the channel."""
    out = io.BytesIO()
    Pillow.new("RGBA", (300, 2), (9, 9, 9, alpha)).save(out, "WEBP", lossless=lossless)
    image = inspect(out.getvalue(), size=1, name="kitten")
    assert image.pixels == (300, 2)
    assert alpha == 255 or image.alpha is True


@pytest.mark.parametrize("name", FILES)
def test_inspect_of_a_cut_header(name: str) -> None:
    """However few bytes there are, each property is correct or None."""
    content, media_type, alpha = FILES[name]
    for length in [*range(min(len(content), 400)), *range(400, len(content), 997)]:
        image = inspect(content[:length], size=len(content), name="kitten")
        assert image.media_type in (media_type, "application/octet-stream")
        assert image.pixels in ((33, 17), None)
        assert image.alpha in (alpha, None)


def test_inspect_of_noise() -> None:
    """Random bytes after a signature raise nothing, and are read in bounded time."""
    dice = random.Random(7)
    for start in (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\xff\xd8\xff",
        b"RIFF1234WEBPVP8 ",
        b"GIF89a",
    ):
        for _ in range(300):
            inspect(start + dice.randbytes(dice.randrange(200)), size=9, name="noise")
    assert inspect(b"\xff\xd8" + b"\xff" * HEAD, size=HEAD, name="fill").pixels is None


@pytest.mark.parametrize(
    ("name", "media_type", "expected"),
    [
        ("kitten.png", "image/png", "kitten.png"),
        ("KITTEN.PNG", "image/png", "KITTEN.png"),
        ("kitten.jpeg", "image/jpeg", "kitten.jpeg"),
        ("kitten.png", "image/jpeg", "kitten.jpg"),
        ("kitten.webp.png", "image/webp", "kitten.webp.webp"),
        ("kitten", "image/webp", "kitten.webp"),
        ("v1.2", "image/png", "v1.2.png"),
        (".png", "image/png", ".png.png"),
        ("", "image/png", "image.png"),
        ("a/b\r\n\0c.png", "image/png", "a_b___c.png"),
        ("notes.txt", "application/octet-stream", "notes.txt"),
        ("", "application/octet-stream", "image"),
        ("子猫 “a”.png", "image/png", "子猫 “a”.png"),
    ],
)
def test_file_name(name: str, media_type: str, expected: str) -> None:
    """A name ends in the extension of its type, and is safe in a header."""
    assert file_name(name, media_type) == expected


def test_repr_is_short() -> None:
    """An image prints without its bytes."""
    content = FILES["png-rgb"][0]
    image = inspect(content, size=len(content), name="kitten", source=content)
    assert repr(image) == f"<InputImage kitten.png, image/png, {len(content)} bytes>"
