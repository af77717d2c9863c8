"""Paint a placeholder image, and its partial images, from a prompt.

Images are compositions of shapes whose kind, colours and places come from a hash of the prompt.
Nothing here understands the prompt, and each image says so. The same prompt and index always
produce the same bytes.
"""

import functools
import hashlib
import importlib.util
import io
import unicodedata
from typing import TYPE_CHECKING, Any

import msgspec

from elkimg_async.errors import ConfigurationError
from elkimg_async.local.scenes import draw_scene, draw_svg

if TYPE_CHECKING:
    from PIL import Image as Pillow
    from PIL import ImageFont

NOTICE = "elkimg local server · stand-in, not a model"
GRAIN = 7
"""The largest change of a pixel by grain, which makes a PNG as large as one of a photograph."""


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to paint; `index` is that of the image in its request, `light` omits the grain."""

    prompt: str
    index: int = 0
    width: int = 1024
    height: int = 1024
    output_format: str = "png"
    compression: int = 100
    transparent: bool = False
    partial_images: int = 0
    frame_count: int = 9
    frame_duration_ms: int = 200
    light: bool = False


class PaintedImage(msgspec.Struct, frozen=True):
    """The encoded image, and its partial images from the coarsest to the finest."""

    image: bytes
    partials: tuple[bytes, ...] = ()


def require_pillow() -> None:
    """Raise `ConfigurationError` if Pillow is not installed, without importing it."""
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError(
            'The local server paints with Pillow: pip install "elkimg-async[pil]".'
        )


@functools.lru_cache(maxsize=16)
def paint(spec: ImageSpec) -> PaintedImage:
    """Paint and encode; slow, so call it in a worker thread.

    Raises:
        ConfigurationError: If Pillow is not installed.
    """
    require_pillow()
    seed = f"{spec.index}\0{spec.prompt}".encode("utf-8", "surrogatepass")
    if spec.output_format == "svg":
        return PaintedImage(draw_svg(seed, spec.width, spec.height, spec.prompt, NOTICE))
    scene = draw_scene(seed, spec.width, spec.height, light=spec.light)
    partials = tuple(
        _finish(_coarse(scene, 256 // 4**number, spec.light), spec, seed, 1 + number)
        for number in range(spec.partial_images, 0, -1)
    )
    return PaintedImage(_finish(scene, spec, seed, 1), partials)


def _finish(scene: "Pillow.Image", spec: ImageSpec, seed: bytes, strength: int) -> bytes:
    """Add what partial and final images share: grain, transparency, caption, encoding."""
    image = scene if spec.light else _with_grain(scene, seed, GRAIN * strength)
    if spec.transparent:
        image = _cut_oval(image)
    return encode(_with_caption(image, spec.prompt), spec)


def _coarse(scene: "Pillow.Image", cells: int, light: bool) -> "Pillow.Image":
    """Return the scene reduced to `cells` on each edge, in blocks if `light`, else smoothed."""
    from PIL import Image

    small = scene.resize((cells, cells), Image.Resampling.BOX)
    how = Image.Resampling.NEAREST if light else Image.Resampling.BICUBIC
    return small.resize(scene.size, how)


def _with_grain(image: "Pillow.Image", seed: bytes, strength: int) -> "Pillow.Image":
    """Make each channel of each pixel up to `strength` lighter or darker."""
    from PIL import Image, ImageChops

    noise = hashlib.shake_256(seed).digest(image.width * image.height * 3)
    spread = bytes(round(value * 2 * strength / 255) for value in range(256))
    grain = Image.frombytes("RGB", image.size, noise.translate(spread))
    return ImageChops.add(image, grain, offset=-strength)


def encode(image: "Pillow.Image", spec: ImageSpec) -> bytes:
    """Encode an image in the requested format; a GIF is an animation that sharpens."""
    options: dict[str, Any] = {
        "png": {"compress_level": 6 if spec.light else 1},
        "jpeg": {"quality": max(1, spec.compression)},
        "webp": {"quality": spec.compression, "method": 0},
        "gif": {"save_all": True, "duration": spec.frame_duration_ms, "loop": 0},
    }.get(spec.output_format, {})
    if spec.output_format == "gif":
        frames = [_coarse(image, 8 + number, light=True) for number in range(spec.frame_count - 1)]
        image, *options["append_images"] = *frames, image
    out = io.BytesIO()
    image.save(out, format=spec.output_format, **options)
    return out.getvalue()


# --- on every image ---------------------------------------------------------


def _cut_oval(image: "Pillow.Image") -> "Pillow.Image":
    """Make everything around an oval transparent."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (image.width * 2, image.height * 2))
    edge = min(mask.size) // 50
    box = (edge, edge, mask.width - edge, mask.height - edge)
    ImageDraw.Draw(mask).ellipse(box, 255)
    image = image.convert("RGBA")
    image.putalpha(mask.reduce(2))
    return image


def _with_caption(image: "Pillow.Image", prompt: str) -> "Pillow.Image":
    """Write the prompt and the notice on a dark panel near the lower edge."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = image.size
    unit = min(width, height)
    large, small = (
        ImageFont.load_default(max(least, unit // share)) for least, share in ((12, 32), (10, 44))
    )
    assert isinstance(large, ImageFont.FreeTypeFont)
    assert isinstance(small, ImageFont.FreeTypeFont)
    margin, inset = unit // 24, unit // 40
    lines = _wrapped(prompt, large, width - 2 * (margin + inset))
    step, last = round(large.size * 1.3), round(small.size * 1.6)
    top = height - margin - 2 * inset - step * len(lines) - last
    panel = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(panel)
    box = (margin, top, width - margin, height - margin)
    draw.rounded_rectangle(box, inset, (12, 14, 24, 205))
    y = top + inset
    for line in lines:
        draw.text((margin + inset, y), line, (255, 255, 255, 255), large)
        y += step
    draw.text((margin + inset, y + last - small.size * 1.2), NOTICE, (255, 214, 150, 255), small)
    return Image.alpha_composite(image.convert("RGBA"), panel).convert(image.mode)


def _wrapped(text: str, font: "ImageFont.FreeTypeFont", width: float, limit: int = 3) -> list[str]:
    """Wrap the words to at most `limit` lines, without accents, which Pillow's font lacks."""
    letters = unicodedata.normalize("NFKD", text[:600])
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    lines = [""]
    for word in plain.split():
        start = f"{lines[-1]} {word}".strip()
        if font.getlength(start) <= width:
            lines[-1] = start
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    if len(lines) > limit:
        lines = [*lines[: limit - 1], lines[limit - 1][:-2].rstrip() + " …"]
    return lines
