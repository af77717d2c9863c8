"""Pictures and a prompt → the first picture, painted over where it is to be edited.

What is painted is the painter's stand-in for the prompt. Where the mask is opaque, the
picture stays as it is, pixel for pixel, as far as the output format keeps pixels.
"""

import io
from typing import TYPE_CHECKING

import msgspec

from elkimg_async.local.forms import unreadable
from elkimg_async.local.painter import ImageSpec, PaintedImage, encode, paint
from elkimg_async.sansio.requests import EditRequest

if TYPE_CHECKING:
    from PIL import Image as Pillow


class Canvas(msgspec.Struct, frozen=True):
    """What an edit begins with: the pictures decoded, the first in its new size, and where to paint."""

    base: "Pillow.Image"
    others: tuple["Pillow.Image", ...]
    region: "Pillow.Image"


def decode_inputs(request: EditRequest, width: int, height: int) -> Canvas:
    """Decode what came in; takes a while, so call it in a worker thread.

    Raises:
        GatewayError: by the client; a file is broken.
    """
    from PIL import ImageChops

    base, *others = (_decoded(image.source, "image") for image in request.image)
    if base.size != (width, height):
        base = base.resize((width, height))
    region = _region(base.size)
    if request.mask is not None:
        mask = _decoded(request.mask.source, "mask").getchannel("A")
        region = ImageChops.invert(mask.resize(base.size))
    return Canvas(base, tuple(others), region)


def paint_edit(canvas: Canvas, spec: ImageSpec) -> PaintedImage:
    """Paint and encode; takes a fraction of a second, so call it in a worker thread."""
    painted = paint(msgspec.structs.replace(spec, output_format="png"))
    image, *partials = (
        encode(_over(canvas, content, spec), spec) for content in (painted.image, *painted.partials)
    )
    return PaintedImage(image, tuple(partials))


def _over(canvas: Canvas, content: bytes, spec: ImageSpec) -> "Pillow.Image":
    from PIL import Image

    painted = _decoded(content, "image")
    _paste_thumbnails(painted, canvas.others)
    edited = Image.composite(painted, canvas.base, canvas.region)
    opaque = edited.getchannel("A").getextrema()[0] == 255
    return edited.convert("RGB") if opaque or spec.output_format == "jpeg" else edited


def _paste_thumbnails(canvas: "Pillow.Image", pictures: tuple["Pillow.Image", ...]) -> None:
    """Show the further pictures, in a row across the middle."""
    edge = canvas.width // max(4, len(pictures) + 1)
    for number, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((edge * 0.9, edge * 0.9))
        canvas.paste(
            small, (round(edge * (number + 0.5)), (canvas.height - small.height) // 2), small
        )


def _region(size: tuple[int, int]) -> "Pillow.Image":
    """Without a mask: the picture stays at the top and gives way to paint further down."""
    from PIL import Image

    ramp = Image.linear_gradient("L").point(
        [max(0, min(255, 3 * (value - 60))) for value in range(256)]
    )
    return ramp.resize(size)


def _decoded(content: bytes, param: str) -> "Pillow.Image":
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGBA")
    except Exception:  # noqa: BLE001
        broken = unreadable(param)
    raise broken
