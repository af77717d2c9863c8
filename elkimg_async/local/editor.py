"""Edit images by painting over the first one, where the mask allows it.

Where the mask is opaque, the image keeps every pixel, as far as the output format allows.
"""

import io
from typing import TYPE_CHECKING

import msgspec

from elkimg_async.local.contract import unreadable
from elkimg_async.local.painter import ImageSpec, PaintedImage, encode, paint
from elkimg_async.sansio.requests import EditRequest

if TYPE_CHECKING:
    from PIL import Image as Pillow


class EditInputs(msgspec.Struct, frozen=True):
    """Decoded inputs of an edit: the first image in its new size, the others, the region."""

    base: "Pillow.Image"
    others: tuple["Pillow.Image", ...]
    region: "Pillow.Image"


def decode_inputs(request: EditRequest, width: int, height: int) -> EditInputs:
    """Decode the files of a request; slow, so call it in a worker thread.

    Raises:
        GatewayError: If a file is not a complete image.
    """
    from PIL import ImageChops

    base, *others = (_decoded(image.source, "image") for image in request.image)
    if base.size != (width, height):
        base = base.resize((width, height))
    region = _region(base.size)
    if request.mask is not None:
        mask = _decoded(request.mask.source, "mask").getchannel("A")
        region = ImageChops.invert(mask.resize(base.size))
    return EditInputs(base, tuple(others), region)


def paint_edit(inputs: EditInputs, spec: ImageSpec) -> PaintedImage:
    """Paint and encode; slow, so call it in a worker thread."""
    if spec.output_format == "svg":
        return paint(spec)
    painted = paint(msgspec.structs.replace(spec, output_format="png"))
    image, *partials = (
        encode(_over(inputs, content, spec), spec) for content in (painted.image, *painted.partials)
    )
    return PaintedImage(image, tuple(partials))


def _over(inputs: EditInputs, content: bytes, spec: ImageSpec) -> "Pillow.Image":
    from PIL import Image

    painted = _decoded(content, "image")
    _paste_thumbnails(painted, inputs.others)
    edited = Image.composite(painted, inputs.base, inputs.region)
    opaque = edited.getchannel("A").getextrema()[0] == 255
    return edited.convert("RGB") if opaque or spec.output_format == "jpeg" else edited


def _paste_thumbnails(canvas: "Pillow.Image", images: tuple["Pillow.Image", ...]) -> None:
    """Paste the other images, in a row across the middle."""
    edge = canvas.width // max(4, len(images) + 1)
    for number, image in enumerate(images):
        small = image.copy()
        small.thumbnail((edge * 0.9, edge * 0.9))
        canvas.paste(
            small, (round(edge * (number + 0.5)), (canvas.height - small.height) // 2), small
        )


def _region(size: tuple[int, int]) -> "Pillow.Image":
    """Return the region used without a mask: the image stays at the top and fades out below."""
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
