"""Rules of the documented model families, and the check of a request against them.

The table lists what a model is known to reject. Requests to a model without a row are never
rejected: new models appear every month, and the server knows better.

Sources: ElkAPI's documentation of `POST /v1/images/generations`, and OpenAI's specification of that
endpoint and of `POST /v1/images/edits`, as `openai.types.ImageGenerateParams` and `ImageEditParams`
quote it.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.media_types import UNKNOWN_TYPE
from elkimg_async.sansio.image_headers import ImageReference, InputImage
from elkimg_async.sansio.requests import DEFAULT_MODEL, EditRequest, ImageRequest

_MB = 1024 * 1024
MAX_UPLOAD = 128 * _MB
"""Bytes of a request body that the gateway accepts."""
_MAX_MASK = 4 * _MB  # `ImageEditParams.mask`: a PNG of less than 4 MB

_QUALITIES = ("low", "medium", "high", "auto")
_GPT_SIZES = ("1024x1024", "1536x1024", "1024x1536", "auto")
_GPT_VALUES = {
    "quality": _QUALITIES,
    "background": ("transparent", "opaque", "auto"),
    "moderation": ("low", "auto"),
    "output_format": ("png", "jpeg", "webp", "gif", "svg"),
    "complexity": ("low", "medium", "high"),
    "input_fidelity": ("high", "low"),
}
# Both are parameters of DALL·E; GPT image models always return base64, and reject them.
_NOT_GPT = frozenset({"style", "response_format"})
_GPT_NUMBERS: dict[str, tuple[int, float]] = {
    "output_compression": (0, 100),
    "frame_count": (2, 16),
    "frame_duration_ms": (1, math.inf),
    "partial_images": (0, 3),
}
# What only the GPT image models have, as the descriptions of the parameters say.
_GPT_ONLY = frozenset({*_GPT_VALUES, *_GPT_NUMBERS, "svg"} - {"quality"})


class FreeSizes(msgspec.Struct, frozen=True):
    """Any `WIDTHxHEIGHT` within these limits, and `auto`; all numbers but `ratio` are pixels."""

    multiple: int = 16
    edge: int = 3840
    ratio: int = 3
    min_pixels: int = 655_360
    max_pixels: int = 3840 * 2160

    def __str__(self) -> str:
        return (
            f"auto or WIDTHxHEIGHT in multiples of {self.multiple}, no edge over {self.edge}, "
            f"at most {self.ratio}:1, {self.min_pixels:,} to {self.max_pixels:,} pixels"
        )

    def __contains__(self, size: object) -> bool:
        if size == "auto":
            return True
        # Five digits at most, so that no number is too long to compute with.
        if not (match := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size), re.ASCII)):
            return False
        width, height = int(match[1]), int(match[2])
        return (
            width % self.multiple == 0
            and height % self.multiple == 0
            and max(width, height) <= min(self.edge, self.ratio * min(width, height))
            and self.min_pixels <= width * height <= self.max_pixels
        )


class EditRules(msgspec.Struct, frozen=True, kw_only=True):
    """The images that a model edits: how many, their types, and their size in bytes."""

    # `ImageEditParams.image`: up to 16 files of less than 50 MB each.
    count: int = 16
    types: tuple[str, ...] = ("png", "webp", "jpeg")
    size: int = 50 * _MB
    square: bool = False
    markup: bool = False


class ModelRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of one model family; the defaults are those of the newest GPT image models.

    `values` maps a parameter to its values; `absent` lists parameters that do not exist; `edits` is
    None if the family cannot edit; `legacy` marks those that OpenAI has retired, though other
    servers may still offer them. `names` omits dated snapshots, which follow the same rules.
    """

    names: tuple[str, ...]
    prompt_length: int = 32_000
    n: int = 10
    sizes: tuple[str, ...] | FreeSizes = FreeSizes()
    values: dict[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: _GPT_VALUES)
    absent: frozenset[str] = _NOT_GPT
    streams: bool = True
    edits: EditRules | None = EditRules()
    legacy: bool = False


# From the oldest to the newest. Lengths of prompts, sizes and numbers of the first three are those
# of ElkAPI's documentation; the others are OpenAI's.
FAMILIES = (
    ModelRules(
        names=("dall-e-2",),
        prompt_length=1_000,
        sizes=("256x256", "512x512", "1024x1024"),
        values={"quality": ("standard", "auto"), "response_format": ("url", "b64_json")},
        absent=_GPT_ONLY | {"style"},
        streams=False,
        edits=EditRules(count=1, types=("png",), size=4 * _MB, square=True),
        legacy=True,
    ),
    ModelRules(
        names=("dall-e-3",),
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
        edits=None,
        legacy=True,
    ),
    ModelRules(names=("gpt-image-1",), sizes=_GPT_SIZES),
    ModelRules(
        names=("gpt-image-1-mini",),
        sizes=_GPT_SIZES,
        values={**_GPT_VALUES, "input_fidelity": ("low",)},
    ),
    ModelRules(names=("gpt-image-1.5", "chatgpt-image-latest"), sizes=_GPT_SIZES),
    ModelRules(names=("gpt-image-2",), absent=_NOT_GPT | {"input_fidelity"}),
    ModelRules(
        names=("gpt-image-2.5-sunburst", "gpt-image-2.5-flare"),
        values={**_GPT_VALUES, "quality": (*_QUALITIES, "xhigh", "max")},
        edits=EditRules(markup=True),
    ),
    ModelRules(names=("gpt-image-2.6-sunburst", "gpt-image-2.6-flare")),
)
MODELS = {name: family for family in FAMILIES for name in family.names}
"""The rules of each model by its name, the newest last."""

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def rules_for(model: str) -> ModelRules | None:
    """Return the rules of a model or of a dated snapshot of it; None for an unknown model."""
    # A name with a date is a snapshot; a row of its own, if there is one, comes first.
    return MODELS.get(model) or MODELS.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model))


def is_gpt_image(model: str) -> bool:
    """Return whether the name is that of a GPT image model, including future ones."""
    return model.startswith(("gpt-image", "chatgpt-image"))


def validate(request: ImageRequest, *, stream: bool = False) -> None:
    """Check a request against the rules of its model.

    Raises:
        InvalidRequestError: If the model is known to reject it; names the first problem found.
    """
    model = request.model or DEFAULT_MODEL
    rules = rules_for(model)
    if rules is None:
        return
    # `extra_body` is not checked: it is the way to send what this table does not know.
    problems = _problems(request.fields(), rules, stream)
    if isinstance(request, EditRequest):
        problems = itertools.chain(_edit_problems(request, rules.edits), problems)
    else:  # `ImageEditParams` does not require the model of an SVG
        problems = itertools.chain(problems, _svg_model_problems(request))
    for param, problem in problems:
        raise InvalidRequestError(f"{model}: {problem}", param=param)


# --- the images of an edit ----------------------------------------------------


def _edit_problems(request: EditRequest, rules: EditRules | None) -> Iterator[tuple[str, str]]:
    if rules is None:
        yield "model", "this model cannot edit; choose another."
        return
    images, mask, markup = request.images, request.mask, request.markup
    if len(images) > rules.count:
        allowed = f"{rules.count} {'is' if rules.count == 1 else 'are'} allowed"
        yield "image", f"there are {len(images)} images, at most {allowed}."
    for image in images:
        yield from _file_problems("image", image, rules.types, rules.size)
    # Masks and markup apply to the first of several images.
    first = images[0] if images else None
    if rules.square and isinstance(first, InputImage) and first.width != first.height:
        yield "image", f"{first.name} is {_by(first)}; it must be square."
    if mask is not None:
        yield from _file_problems("mask", mask, ("png",), _MAX_MASK)
        yield from _overlay_problems("mask", mask, first)
        if request.output_format == "gif":
            yield "mask", "gif cannot be combined with a mask; leave the mask out."
    if markup is not None:
        if not rules.markup:
            yield "markup", "markup is not for this model; leave it out."
        if mask is not None:
            yield "markup", "markup and mask cannot be combined; leave one of them out."
        yield from _file_problems("markup", markup, ("png",), rules.size)
        yield from _overlay_problems("markup", markup, first)
    files = [each for each in (*images, mask, markup) if isinstance(each, InputImage)]
    if sum(map(len, files)) >= MAX_UPLOAD:
        yield "image", f"the files have more than {MAX_UPLOAD:,} bytes in total."


def _file_problems(
    param: str, image: InputImage | ImageReference, types: tuple[str, ...], size: int
) -> Iterator[tuple[str, str]]:
    if isinstance(image, ImageReference):
        return  # only the server will see the file
    if image.media_type.removeprefix("image/") not in types:
        known = image.media_type != UNKNOWN_TYPE
        what = image.media_type if known else "not an image of a known type"
        yield param, f"{image.name} is {what}; choose {', '.join(types)}."
    if image.size >= size:
        yield param, f"{image.name} has {image.size:,} bytes; it must have fewer than {size:,}."


def _overlay_problems(
    param: str, overlay: InputImage | ImageReference, image: InputImage | ImageReference | None
) -> Iterator[tuple[str, str]]:
    """Check an image that covers another: it must have transparency and the same size."""
    if isinstance(overlay, ImageReference):
        return
    if overlay.alpha is False:
        yield param, f"{overlay.name} has no transparency; a {param} must be transparent in part."
    if not isinstance(image, InputImage) or not image.pixels or not overlay.pixels:
        return
    sizes = {image.pixels}
    if image.media_type == "image/jpeg":
        # A photograph may be stored sideways, with an EXIF orientation.
        width, height = image.pixels
        sizes.add((height, width))
    if overlay.pixels not in sizes:
        yield (
            param,
            f"{overlay.name} is {_by(overlay)} and {image.name} is {_by(image)}; "
            "they must have the same size.",
        )


def _by(image: InputImage) -> str:
    return f"{image.width}x{image.height}"


# --- the other fields ---------------------------------------------------------

_PLAIN = {"prompt", "model", "n", "size"}  # checked apart, and all that most requests have


def _problems(fields: dict[str, Any], rules: ModelRules, stream: bool) -> Iterator[tuple[str, str]]:
    prompt, n, size = fields["prompt"], fields.get("n", 1), fields.get("size")
    if not prompt.strip():
        yield "prompt", "the prompt is empty; describe the image."
    if len(prompt) > rules.prompt_length:
        yield (
            "prompt",
            f"the prompt has {len(prompt):,} characters, "
            f"at most {rules.prompt_length:,} are allowed.",
        )
    if not 1 <= n <= rules.n:
        yield "n", f"n is {_short(n)}; it must be {'1' if rules.n == 1 else f'1 to {rules.n}'}."
    if size is not None and size not in rules.sizes:
        # "1024 X 1024", "1024*1024" and the like, as people write sizes.
        similar = re.sub(r"\s*[xX*\u00d7]\s*", "x", size.strip())
        choice = f"write {similar}" if similar in rules.sizes else f"choose {_choices(rules.sizes)}"
        yield "size", f"size {size!r} is not offered; {choice}."
    if stream and not rules.streams:
        yield "stream", "this model cannot stream; leave stream out."
    # Sorted, so that the same request always has the same first problem.
    if special := fields.keys() - _PLAIN:
        for param in sorted(rules.absent & special):
            yield param, f"{param} is not for this model; leave it out."
        for param in sorted(rules.values.keys() & special):
            if fields[param] not in (allowed := rules.values[param]):
                yield (
                    param,
                    f"{param} {fields[param]!r} is not offered; choose {_choices(allowed)}.",
                )
        for param, (low, high) in _GPT_NUMBERS.items():
            if not low <= fields.get(param, low) <= high:
                limits = f"{low} to {high}" if high < math.inf else f"{low} or more"
                yield param, f"{param} is {_short(fields[param])}; it must be {limits}."
        yield from _format_problems(fields, stream)
        yield from _animation_problems(fields)
        yield from _svg_problems(fields)
        if fields.get("partial_images", 0) and not stream:
            yield "partial_images", "partial images are sent in streams only; add stream=True."


def _format_problems(fields: dict[str, Any], stream: bool) -> Iterator[tuple[str, str]]:
    output_format = fields.get("output_format", "png")
    if fields.get("background") == "transparent" and output_format not in ("png", "webp"):
        yield (
            "background",
            f"{output_format} cannot be transparent; choose output_format png or webp.",
        )
    # 100 is the default, and means no loss.
    if fields.get("output_compression", 100) < 100 and output_format == "png":
        yield (
            "output_compression",
            "png has no lossy compression; choose output_format jpeg or webp.",
        )
    # What the descriptions of `output_format`, `frame_count` and `svg` exclude for these two.
    if output_format not in ("gif", "svg"):
        return
    if "output_compression" in fields:
        yield "output_compression", f"{output_format} has no compression; leave it out."
    if stream:
        yield "stream", f"{output_format} cannot be streamed; leave stream out."
    if fields.get("partial_images", 0):
        yield "partial_images", f"{output_format} has no partial images; leave partial_images out."
    if output_format == "svg" and fields.get("n", 1) != 1:
        yield "n", f"n is {_short(fields['n'])}; it must be 1 with output_format svg."


def _animation_problems(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for param in ("frame_count", "frame_duration_ms"):
        if param in fields and fields.get("output_format") != "gif":
            yield param, f"{param} is for gif only; add output_format gif."


def _svg_problems(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if (svg := fields.get("svg")) is None:
        return
    if fields.get("output_format") != "svg":
        yield "svg", "svg is for output_format svg only; add it, or leave svg out."
    reasoning = svg.get("reasoning")
    if not isinstance(svg.get("model", ""), str):
        yield "svg", "svg['model'] must be a string."
    if not isinstance(reasoning, Mapping | None):
        yield "svg", "svg['reasoning'] must be a mapping, such as {'effort': 'low'}."
    elif (effort := (reasoning or {}).get("effort")) is not None and effort not in _EFFORTS:
        yield "svg", f"effort {effort!r} is not offered; choose {_choices(_EFFORTS)}."


def _svg_model_problems(request: ImageRequest) -> Iterator[tuple[str, str]]:
    if request.svg is not None and not request.svg.get("model"):
        yield "svg", "svg needs a model, as in svg={'model': …}; or leave svg out."


def _choices(allowed: tuple[str, ...] | FreeSizes) -> str:
    return ", ".join(allowed) if isinstance(allowed, tuple) else str(allowed)


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**9 else "out of range"
