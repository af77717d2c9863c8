"""The placeholder images of the local server."""

import io
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFilter, ImageStat

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import painter
from elkimg_async.local.painter import ImageSpec, paint


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def light(prompt: str = "a boat", **options: Any) -> ImageSpec:
    return ImageSpec(prompt=prompt, light=True, **options)


def distance(first: bytes, second: bytes) -> float:
    """The mean difference of two reduced images, of 255."""
    images = (opened(content).convert("L").resize((64, 64)) for content in (first, second))
    return float(ImageStat.Stat(ImageChops.difference(*images)).mean[0])


def test_paint_same_prompt_same_bytes() -> None:
    """The same prompt and index always produce the same bytes, cached or not."""
    first = paint(light(partial_images=1))
    paint.cache_clear()
    assert paint(light(partial_images=1)) == first
    assert paint(light()).image == first.image


def test_paint_other_prompt_other_image() -> None:
    """Images of other prompts, and of other indexes, look different."""
    prompts = [paint(light(f"prompt {number}")).image for number in range(6)]
    indexes = [paint(light(index=number)).image for number in range(6)]
    for images in (prompts, indexes):
        assert all(distance(a, b) > 5 for a in images for b in images if a is not b)


@pytest.mark.parametrize("prompt", ["A small kitten in a sunny garden", "robot", "漢字 ä", ""])
def test_paint_file_size(prompt: str) -> None:
    """A PNG of 1024x1024 has 1 to 3 MB, like real ones."""
    assert 1_000_000 < len(paint(ImageSpec(prompt=prompt)).image) < 3_000_000


def test_paint_light() -> None:
    """A light image has the same size in pixels and less than a tenth of the bytes."""
    image = paint(light()).image
    assert opened(image).size == (1024, 1024)
    assert len(image) < 100_000


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp", "gif"])
def test_paint_formats(output_format: str) -> None:
    """Format and size are the requested ones."""
    image = opened(paint(light(width=512, height=256, output_format=output_format)).image)
    assert image.format == output_format.upper()
    assert image.size == (512, 256)


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_paint_compression(output_format: str) -> None:
    """A lower compression value makes a smaller file."""
    sizes = [
        len(paint(light(output_format=output_format, compression=compression)).image)
        for compression in (0, 50, 100)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_paint_transparent(output_format: str) -> None:
    """A transparent background is clear at the corners and opaque in the middle."""
    image = opened(paint(light(transparent=True, output_format=output_format)).image)
    assert image.mode == "RGBA"
    alpha = image.getchannel("A")
    assert alpha.getpixel((0, 0)) == 0
    assert alpha.getpixel((512, 512)) == 255


def test_paint_partials_sharpen() -> None:
    """Each partial image is closer to the final one than the one before."""
    painted = paint(ImageSpec(prompt="a boat", partial_images=3, width=512, height=512))
    frames = [*painted.partials, painted.image]
    distances = [distance(frame, painted.image) for frame in frames]
    assert distances == sorted(distances, reverse=True)
    edges = [
        ImageStat.Stat(
            opened(frame).convert("L").resize((128, 128)).filter(ImageFilter.FIND_EDGES)
        ).mean[0]
        for frame in frames
    ]
    assert edges[-1] > edges[0]


def test_paint_caption_is_readable() -> None:
    """The caption is light on a dark panel, on partial images too."""
    painted = paint(light(partial_images=1))
    for frame in (*painted.partials, painted.image):
        panel = opened(frame).convert("L").crop((60, 860, 960, 970))
        darkest, brightest = panel.getextrema()
        assert isinstance(darkest, int | float)
        assert isinstance(brightest, int | float)
        assert darkest < 70
        assert brightest > 240
    assert "stand-in, not a model" in painter.NOTICE


def test_paint_gif_is_animated() -> None:
    """A GIF has the requested frames and durations."""
    image = opened(paint(light(output_format="gif", frame_count=4, frame_duration_ms=150)).image)
    assert getattr(image, "n_frames", 1) == 4
    assert image.info["duration"] == 150


@pytest.mark.parametrize("prompt", ["a <b> & c", "\x00\x1b", "\ud800", "", "many words " * 999])
def test_paint_svg_is_xml(prompt: str) -> None:
    """An SVG is well-formed XML of the requested size, whatever the prompt."""
    root = ElementTree.fromstring(paint(light(prompt, output_format="svg", width=512)).image)
    assert root.attrib["viewBox"] == "0 0 512 1024"
    assert painter.NOTICE in "".join(root.itertext())


def test_paint_long_prompts() -> None:
    """A prompt of many words, of one endless word or of control characters can be painted."""
    for prompt in ("many words " * 3_000, "x" * 32_000, "\ud800\n\x00"):
        assert opened(paint(light(prompt, width=256, height=256)).image).size == (256, 256)


def test_paint_grain_is_bounded() -> None:
    """Grain changes no pixel by more than the constant."""
    plain = Image.new("RGB", (64, 64), (128, 128, 128))
    grained = painter._with_grain(plain, b"seed", painter.GRAIN)
    extrema = grained.getextrema()
    assert extrema == ((128 - painter.GRAIN, 128 + painter.GRAIN),) * 3


def test_paint_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow, the error says which extra to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match=r'pip install "elkimg-async\[pil\]"'):
        paint(light("never painted before"))
