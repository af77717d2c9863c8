"""Draw placeholder images as SVG."""

import textwrap
from html import escape

from elkimg_async.local.scenes import Dice


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
