"""What each documented model accepts: one table, and the check of a request against it.

The table holds what is known to be refused. A model that is not in it is never
refused: models come every month, and the server knows better.

Sources: the service's own documentation of `POST /v1/images/generations` (prompt
length, n, size, background, moderation), and OpenAI's specification of the same
endpoint and of `POST /v1/images/edits` (quality, style, response_format,
output_format, output_compression, partial_images, gpt-image-2's rule for sizes,
input_fidelity, the pictures and the mask).
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.image_headers import InputImage
from elkimg_async.sansio.requests import DEFAULT_MODEL, EditRequest, ImageRequest

_MB = 1024 * 1024
MOST_UPLOADED = 128 * _MB
"""Bytes of a whole body that the gateway takes."""


class FreeSizes(msgspec.Struct, frozen=True):
    """Any `WIDTHxHEIGHT` within these limits, and `auto`; all numbers are pixels, but `ratio`."""

    multiple: int = 16
    edge: int = 3840
    ratio: int = 3
    least: int = 655_360
    most: int = 8_294_400

    def __str__(self) -> str:
        return (
            f"auto or WIDTHxHEIGHT in multiples of {self.multiple}, no edge over {self.edge}, "
            f"at most {self.ratio}:1, {self.least:,} to {self.most:,} pixels"
        )

    def __contains__(self, size: object) -> bool:
        if size == "auto":
            return True
        if not (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size), re.ASCII)):
            return False
        width, height = int(match[1]), int(match[2])
        return (
            width % self.multiple == 0
            and height % self.multiple == 0
            and max(width, height) <= min(self.edge, self.ratio * min(width, height))
            and self.least <= width * height <= self.most
        )


class PictureRules(msgspec.Struct, frozen=True, kw_only=True):
    """What pictures one model edits: how many, of which types and sizes in bytes, and whether only squares."""

    most: int = 16
    types: tuple[str, ...] = ("png", "webp", "jpeg")
    size: int = 50 * _MB
    square: bool = False


class ModelRules(msgspec.Struct, frozen=True, kw_only=True):
    """What one model accepts.

    `values` maps a parameter to its values; `absent` lists parameters it lacks; `pictures` is None where
    it edits none.
    """

    prompt_length: int
    n: int = 10
    sizes: tuple[str, ...] | FreeSizes
    values: dict[str, tuple[str, ...]]
    absent: frozenset[str]
    streams: bool = True
    pictures: PictureRules | None = PictureRules()


_GPT_VALUES = {
    "quality": ("low", "medium", "high", "auto"),
    "background": ("transparent", "opaque", "auto"),
    "moderation": ("low", "auto"),
    "output_format": ("png", "jpeg", "webp"),
    "input_fidelity": ("high", "low"),
}
_GPT_ONLY = frozenset(
    (
        "background",
        "input_fidelity",
        "moderation",
        "output_format",
        "output_compression",
        "partial_images",
    )
)
_GPT_IMAGE_1 = ModelRules(
    prompt_length=32_000,
    sizes=("1024x1024", "1536x1024", "1024x1536", "auto"),
    values=_GPT_VALUES,
    absent=frozenset(("style", "response_format")),
)
MODELS = {
    "dall-e-2": ModelRules(
        prompt_length=1_000,
        sizes=("256x256", "512x512", "1024x1024"),
        values={"quality": ("standard", "auto"), "response_format": ("url", "b64_json")},
        absent=_GPT_ONLY | {"style"},
        streams=False,
        pictures=PictureRules(most=1, types=("png",), size=4 * _MB, square=True),
    ),
    "dall-e-3": ModelRules(
        prompt_length=4_000,
        n=1,
        sizes=("1024x1024", "1792x1024", "1024x1792"),
        values={
            "quality": ("standard", "hd", "auto"),
            "style": ("vivid", "natural"),
            "response_format": ("url", "b64_json"),
        },
        absent=_GPT_ONLY,
        streams=False,
        pictures=None,
    ),
    "gpt-image-1": _GPT_IMAGE_1,
    "gpt-image-1-mini": msgspec.structs.replace(
        _GPT_IMAGE_1, values={**_GPT_VALUES, "input_fidelity": ("low",)}
    ),
    "gpt-image-1.5": _GPT_IMAGE_1,
    "gpt-image-2": msgspec.structs.replace(
        _GPT_IMAGE_1,
        sizes=FreeSizes(),
        absent=_GPT_IMAGE_1.absent | {"input_fidelity"},
        values={
            **_GPT_VALUES,
            "quality": (*_GPT_VALUES["quality"], "xhigh", "max"),
            "output_format": (*_GPT_VALUES["output_format"], "gif", "svg"),
        },
    ),
}


def is_gpt_image(model: str) -> bool:
    """Whether the name is that of a GPT image model, those to come included."""
    return model.startswith("gpt-image")


def validate(request: ImageRequest, *, stream: bool = False) -> None:
    """Refuse what the request's model is known to refuse.

    Raises:
        InvalidRequestError: by the caller, for the first problem found.
    """
    model = request.model or DEFAULT_MODEL
    rules = MODELS.get(model)
    if rules is None:
        return
    problems = _problems(request.fields(), rules, stream)
    if isinstance(request, EditRequest):
        problems = itertools.chain(_picture_problems(request, rules.pictures), problems)
    for param, problem in problems:
        raise InvalidRequestError(f"{model}: {problem}", param=param)


def _picture_problems(
    request: EditRequest, rules: PictureRules | None
) -> Iterator[tuple[str, str]]:
    if rules is None:
        yield "model", "this model cannot edit; choose another."
        return
    images, mask = request.image, request.mask
    if len(images) > rules.most:
        yield (
            "image",
            f"there are {len(images)} images, at most {rules.most} {'is' if rules.most == 1 else 'are'} allowed.",
        )
    for param, image in [
        *(("image", image) for image in images),
        *([("mask", mask)] if mask else []),
    ]:
        kind = image.media_type.removeprefix("image/")
        if kind not in rules.types:
            yield param, f"{image.name} is {image.media_type}; choose {', '.join(rules.types)}."
        if image.size >= rules.size:
            yield (
                param,
                f"{image.name} has {image.size:,} bytes, it must have less than {rules.size:,}.",
            )
    if sum(map(len, images)) + (mask.size if mask else 0) >= MOST_UPLOADED:
        yield "image", f"the files have more than {MOST_UPLOADED:,} bytes together."
    if rules.square and images[0].pixels and images[0].width != images[0].height:
        yield "image", f"{images[0].name} is {_by(images[0])}; it must be square."
    if mask is not None:
        yield from _mask_problems(images[0], mask)


def _mask_problems(image: InputImage, mask: InputImage) -> Iterator[tuple[str, str]]:
    if mask.alpha is False:
        yield (
            "mask",
            f"{mask.name} has no transparency; what is to be edited must be transparent in the mask.",
        )
    sizes = {image.pixels}
    if image.pixels and image.media_type == "image/jpeg":
        # A photograph may lie on its side, with a note in it how it is to be turned.
        width, height = image.pixels
        sizes.add((height, width))
    if image.pixels and mask.pixels and mask.pixels not in sizes:
        yield (
            "mask",
            f"{mask.name} is {_by(mask)} and {image.name} is {_by(image)}; they must be of equal size.",
        )


def _by(image: InputImage) -> str:
    return f"{image.width}x{image.height}"


def _problems(fields: dict[str, Any], rules: ModelRules, stream: bool) -> Iterator[tuple[str, str]]:
    prompt, n, size = fields["prompt"], fields.get("n", 1), fields.get("size")
    if not prompt.strip():
        yield "prompt", "the prompt is empty; say what the picture shows."
    if len(prompt) > rules.prompt_length:
        yield (
            "prompt",
            f"the prompt has {len(prompt):,} characters, at most {rules.prompt_length:,} are allowed.",
        )
    if not 1 <= n <= rules.n:
        yield "n", f"n is {_short(n)}, it must be {'1' if rules.n == 1 else f'1 to {rules.n}'}."
    if size is not None and size not in rules.sizes:
        yield "size", f"size {size!r} is not offered; choose {_choices(rules.sizes)}."
    if stream and not rules.streams:
        yield "stream", "this model cannot stream; leave stream out."
    if special := fields.keys() - _PLAIN:
        yield from _special_problems(fields, special, rules, stream)


_PLAIN = {"prompt", "model", "n", "size"}  # looked at apart, and all that most requests have


def _special_problems(
    fields: dict[str, Any], special: set[str], rules: ModelRules, stream: bool
) -> Iterator[tuple[str, str]]:
    for param in sorted(rules.absent & special):
        yield param, f"{param} is not for this model; leave it out."
    for param in sorted(rules.values.keys() & special):
        if fields[param] not in (allowed := rules.values[param]):
            yield param, f"{param} {fields[param]!r} is not offered; choose {_choices(allowed)}."
    output_format = fields.get("output_format", "png")
    if fields.get("background") == "transparent" and output_format == "jpeg":
        yield "background", "jpeg cannot be transparent; choose output_format png or webp."
    compression = fields.get("output_compression", 100)
    if not 0 <= compression <= 100:
        yield (
            "output_compression",
            f"output_compression is {_short(compression)}, it must be 0 to 100.",
        )
    if compression < 100 and output_format == "png":
        yield (
            "output_compression",
            "png is never compressed with loss; choose output_format jpeg or webp.",
        )
    partial_images = fields.get("partial_images", 0)
    if not 0 <= partial_images <= 3:
        yield "partial_images", f"partial_images is {_short(partial_images)}, it must be 0 to 3."
    if partial_images and not stream:
        yield "partial_images", "partial images come with a stream only; add stream=True."


def _choices(allowed: tuple[str, ...] | FreeSizes) -> str:
    return ", ".join(allowed) if isinstance(allowed, tuple) else str(allowed)


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**9 else "out of all bounds"
