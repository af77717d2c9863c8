"""Scenes of the painter: shapes whose kind, colours and places come from a seed."""

import hashlib
import math
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL import Image as Pillow

_Item = TypeVar("_Item")
Colour = tuple[int, int, int]


# Three colours of the sky from the top down, the light, the far and the near ground.
_PALETTES = (
    ("2b2d6e", "c25b8a", "ffc58f", "fff1cf", "a8668f", "2a1f45"),
    ("5fb4e5", "b5e0ee", "fdf3d8", "fffbe8", "8fbf9f", "1f5b4f"),
    ("0b1433", "1f3a6e", "5c7fb0", "fdf6d8", "3c5886", "0a1024"),
    ("f28a5b", "f9b97a", "fde6b8", "fffaf0", "d98a6a", "5b2b3f"),
    ("3c6e71", "8fb9a8", "f4e4c1", "fff6e0", "7a9e87", "24403f"),
    ("6a4c93", "b68fc4", "f7cfd8", "fff4f4", "9a7bb0", "33214f"),
    ("14505c", "2f9c95", "a3e7c8", "f4ffe3", "3f8f86", "0c2f38"),
    ("8c2f39", "dd6e42", "f2c078", "fdf0c4", "b4553f", "3b1420"),
)


def draw_scene(seed: bytes, width: int, height: int, *, light: bool) -> "Pillow.Image":
    """Draw a scene, at twice its size and reduced for smooth edges; a light one in large pixels."""
    from PIL import Image

    dice = Dice(seed)
    palette = dice.palette()
    draw: Callable[[Pillow.Image, Dice, list[Colour]], None]
    draw = dice.pick((_hills, _rings))
    scale = 0.25 if light else 2 if width * height <= 2_000_000 else 1
    canvas = Image.new("RGB", (round(width * scale), round(height * scale)))
    draw(canvas, dice, palette)
    if light:
        few_colours = canvas.quantize(24).convert("RGB")
        return few_colours.resize((width, height), Image.Resampling.NEAREST)
    return canvas.resize((width, height), Image.Resampling.BOX)


class Dice:
    """Pseudo-random choices that depend on the seed alone."""

    def __init__(self, seed: bytes) -> None:
        self._values = hashlib.shake_256(b"dice" + seed).digest(8192)
        self._at = 0

    def between(self, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""
        value = int.from_bytes(self._values[self._at : self._at + 2], "big") / 65_535
        self._at = (self._at + 2) % len(self._values)
        return low + (high - low) * value

    def pick(self, options: Sequence[_Item]) -> _Item:
        return options[min(int(self.between(0, len(options))), len(options) - 1)]

    def palette(self) -> list[Colour]:
        return [_colour(text) for text in self.pick(_PALETTES)]


def _colour(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _blend(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _gradient(size: tuple[int, int], colours: Sequence[Colour]) -> "Pillow.Image":
    """Return an image that fades through the colours from top to bottom."""
    from PIL import Image

    column = Image.new("RGB", (1, len(colours)))
    for row, colour in enumerate(colours):
        column.putpixel((0, row), colour)
    return column.resize((1, size[1]), Image.Resampling.BICUBIC).resize(size)


def _glow(
    canvas: "Pillow.Image",
    centre: tuple[float, float],
    radius: float,
    colour: Colour,
    strength: float,
) -> None:
    """Paint light that fades towards `radius`; `strength` is its share in the middle."""
    from PIL import Image

    fade = [round(strength * max(0.0, 1 - value / 180) ** 2 * 255) for value in range(256)]
    edge = round(radius * 2)
    mask = Image.radial_gradient("L").point(fade).resize((edge, edge))
    canvas.paste(colour, (round(centre[0] - radius), round(centre[1] - radius)), mask)


def _disc(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    return centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius


def _sky(canvas: "Pillow.Image", dice: Dice, palette: list[Colour], horizon: float) -> None:
    """Paint the sky, stars if it is dark, and the sun."""
    from PIL import ImageDraw

    width, height = canvas.size
    unit = min(width, height)
    canvas.paste(_gradient(canvas.size, palette[:3]))
    draw = ImageDraw.Draw(canvas)
    if sum(palette[0]) < 240:
        for _ in range(120):
            star = dice.between(0, width), dice.between(0, height * horizon * 0.8)
            shade = _blend(palette[1], palette[3], dice.between(0.2, 1))
            draw.ellipse(_disc(star, unit * dice.between(0.0006, 0.0018)), shade)
    sun = width * dice.between(0.2, 0.8), height * horizon * dice.between(0.45, 0.85)
    _glow(canvas, sun, unit * dice.between(0.4, 0.6), palette[3], 0.75)
    draw.ellipse(_disc(sun, unit * dice.between(0.06, 0.11)), palette[3])


def _hills(canvas: "Pillow.Image", dice: Dice, palette: list[Colour]) -> None:
    """Paint ranges of hills, each darker than the one behind it."""
    from PIL import Image, ImageDraw

    width, height = canvas.size
    _sky(canvas, dice, palette, 0.6)
    ranges = round(dice.between(4, 6))
    steep = dice.between(0.6, 1.5)
    for number in range(ranges):
        share = number / (ranges - 1)
        base = height * (0.5 + 0.36 * share)
        waves = [
            (
                dice.between(0.6, 1.3) * 2**octave,
                dice.between(0, math.tau),
                0.05 * steep / 2**octave,
            )
            for octave in range(5)
        ]
        line = [
            (
                x,
                base
                + height * sum(a * math.sin(f * math.tau * x / width + p) for f, p, a in waves),
            )
            for x in range(0, width + 8, 8)
        ]
        near = _blend(palette[4], palette[5], share)
        layer = _gradient(canvas.size, [near, near, _blend(near, palette[2], 0.45 * (1 - share))])
        mask = Image.new("L", canvas.size)
        ImageDraw.Draw(mask).polygon([*line, (width, height), (0, height)], 255)
        canvas.paste(layer, mask=mask)


def _rings(canvas: "Pillow.Image", dice: Dice, palette: list[Colour]) -> None:
    """Paint overlapping discs of coloured glass with fine circles around them."""
    from PIL import Image, ImageDraw

    width, height = canvas.size
    unit = min(width, height)
    canvas.paste(_gradient(canvas.size, [palette[5], palette[0], palette[1]]))
    for _ in range(round(dice.between(7, 11))):
        centre = width * dice.between(0.1, 0.9), height * dice.between(0.1, 0.85)
        radius = unit * dice.between(0.08, 0.32)
        colour = dice.pick(palette[1:5])
        edge = round(2 * radius)
        mask = Image.new("L", (edge, edge))
        ImageDraw.Draw(mask).ellipse((0, 0, edge, edge), round(dice.between(110, 210)))
        glass = _gradient((edge, edge), [colour, dice.pick(palette[:4])])
        canvas.paste(glass, (round(centre[0] - radius), round(centre[1] - radius)), mask)
        draw = ImageDraw.Draw(canvas)
        for ring in range(round(dice.between(0, 4))):
            reach = radius * (1.12 + 0.1 * ring)
            draw.ellipse(_disc(centre, reach), outline=palette[3], width=max(1, unit // 700))
        _glow(canvas, centre, radius * 1.5, palette[3], 0.28)


# --- as SVG -----------------------------------------------------------------


def draw_svg(seed: bytes, width: int, height: int, prompt: str, notice: str) -> bytes:
    """Draw discs over a gradient, with the prompt and the notice as text."""
    dice = Dice(seed)
    sky, ground, *discs = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in dice.palette())
    unit = min(width, height)
    shapes = "".join(
        f'<circle cx="{dice.between(0, width):.0f}" cy="{dice.between(0, height):.0f}" '
        f'r="{dice.between(unit * 0.05, unit * 0.25):.0f}" fill="{colour}" opacity=".8"/>'
        for colour in discs * 2
    )
    lines = [*textwrap.wrap(prompt, 60, max_lines=3, placeholder=" …"), notice]
    top = height - unit * 0.05 * len(lines)
    text = "".join(
        f'<text x="{unit // 24}" y="{top + unit * 0.05 * number:.0f}">{escape(_clean(line))}</text>'
        for number, line in enumerate(lines)
    )
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}">
<defs><linearGradient id="g" x2="0" y2="1"><stop stop-color="{sky}"/>\
<stop offset="1" stop-color="{ground}"/></linearGradient></defs>
<rect width="100%" height="100%" fill="url(#g)"/>{shapes}
<g fill="#fff" stroke="#000" stroke-width=".5" font-family="sans-serif" \
font-size="{unit // 32}">{text}</g>
</svg>
"""
    return svg.encode("utf-8", "replace")


def _clean(text: str) -> str:
    """Replace the control characters that XML does not allow."""
    return "".join(character if character.isprintable() else " " for character in text)
