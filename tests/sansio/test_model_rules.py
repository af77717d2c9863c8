"""The rules of the model families, at the edge of every limit, just beyond it, and at random."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.image_headers import ImageReference, InputImage
from elkimg_async.sansio.model_rules import (
    FAMILIES,
    MODELS,
    FreeSizes,
    is_gpt_image,
    rules_for,
    validate,
)
from elkimg_async.sansio.requests import EditRequest, GenerateRequest

FIXED = ["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "chatgpt-image-latest"]
MARKUP = ["gpt-image-2.5-sunburst", "gpt-image-2.5-flare"]
NEW = ["gpt-image-2.6-sunburst", "gpt-image-2.6-flare"]
GPT = [*FIXED, "gpt-image-2", *MARKUP, *NEW]
FREE = [*GPT[4:], "gpt-image-2-2026-04-21", "gpt-image-2.5-sunburst-2026-09-08"]
DALLE = ["dall-e-2", "dall-e-3"]


def rejection(model: str | None, *, stream: bool = False, **fields: Any) -> tuple[str, str] | None:
    """Return the parameter at fault and the sentence, or None for a request that is allowed."""
    request = GenerateRequest(**{"prompt": "a", "model": model, **fields})
    try:
        validate(request, stream=stream)
    except InvalidRequestError as error:
        return str(error.param), str(error)
    return None


def rows(allowed: dict[str, dict[str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(model, name, value, id=f"{model}-{name}-{str(value)[:20]}")
        for models, fields in allowed.items()
        for model in models.split()
        for name, values in fields.items()
        for value in values
    ]


EVERY_GPT = " ".join([*GPT, *FREE[-2:]])
ALLOWED: dict[str, dict[str, list[Any]]] = {
    EVERY_GPT: {
        "prompt": ["a", "a" * 32_000, "é" * 32_000, "\U0001f431" * 32_000, " a\n"],
        "n": [1, 2, 10],
        "size": ["1024x1024", "1536x1024", "1024x1536", "auto"],
        "quality": ["low", "medium", "high", "auto"],
        "background": ["transparent", "opaque", "auto"],
        "moderation": ["low", "auto"],
        "output_format": ["png", "jpeg", "webp", "gif", "svg"],
        "complexity": ["low", "medium", "high"],
        "safety_identifier": ["", "hashed"],
        "output_compression": [100],
        "partial_images": [0],
        "user": ["", "anyone"],
        "extra_body": [{"style": "vivid", "n": 99}],
    },
    " ".join([*MARKUP, FREE[-1]]): {"quality": ["xhigh", "max"]},
    " ".join(FREE): {
        "size": [
            "3840x2160",  # the most pixels
            "2160x3840",
            "1024x640",  # the fewest
            "640x1024",
            "1536x512",  # three to one
            "512x1536",
            "2880x2880",
            "1040x1024",
        ],
    },
    "dall-e-2": {
        "prompt": ["a", "a" * 1_000],
        "n": [1, 10],
        "size": ["256x256", "512x512", "1024x1024"],
        "response_format": ["url", "b64_json"],
        "quality": ["standard"],
        "user": ["anyone"],
    },
    "dall-e-3": {
        "prompt": ["a", "a" * 4_000],
        "n": [1],
        "size": ["1024x1024", "1792x1024", "1024x1792"],
        "quality": ["standard", "hd"],
        "style": ["vivid", "natural"],
        "response_format": ["url", "b64_json"],
        "user": ["anyone"],
    },
}
REJECTED: dict[str, dict[str, list[Any]]] = {
    EVERY_GPT: {
        "prompt": ["", " ", "\n\t", "\u3000", "a" * 32_001],
        "n": [-1, 0, 11, 2**70],
        "quality": ["standard", "hd", "LOW", ""],
        "background": ["none", "Transparent", ""],
        "moderation": ["high", "medium"],
        "output_format": ["jpg", "PNG", "bmp", "image/png"],
        "output_compression": [-1, 101],
        "partial_images": [-1, 1, 4],
        "complexity": ["", "max", "auto"],
        "frame_count": [2, 9],  # without gif
        "frame_duration_ms": [200],
        "svg": [{"model": "gpt-5"}],
        "style": ["vivid", "natural"],
        "response_format": ["url", "b64_json"],
        "size": ["", "AUTO", "1024", "1024X1024", "1024x1024 ", "256x256", "512x512", "1024x-1024"],
    },
    " ".join([*FIXED, "gpt-image-2", *NEW, FREE[-2]]): {"quality": ["xhigh", "max"]},
    " ".join(FIXED): {
        "size": ["1792x1024", "2048x2048", "1040x1024"],
    },
    " ".join(FREE): {
        "size": [
            "3856x2144",  # edge
            "2144x3856",
            "3840x2176",  # pixels
            "2176x3840",
            "1024x624",  # too few of them
            "1008x640",
            "1552x512",  # ratio
            "512x1552",
            "3840x1264",
            "1032x1024",  # multiple
            "1024x1025",
            "0x0",
            "01024x1024",
            "1024x1024x1024",
            "1024.0x1024",
            "1024x",
            "x1024",
            "1\uff1024x1024",
            "1024x1024\n",
            "99999999999999999999x1024",
        ]
    },
    "dall-e-2": {
        "prompt": ["", "a" * 1_001],
        "n": [0, 11],
        "size": ["auto", "1536x1024", "1792x1024", "128x128"],
        "quality": ["hd", "low", "high"],
        "style": ["vivid"],
        "response_format": ["b64", "png"],
    },
    "dall-e-3": {
        "prompt": ["", "a" * 4_001],
        "n": [0, 2, 10],
        "size": ["auto", "256x256", "512x512", "1536x1024"],
        "quality": ["low", "medium", "high"],
        "style": ["bright", "Vivid"],
        "response_format": ["b64", ""],
    },
    "dall-e-2 dall-e-3": {
        "background": ["auto", "transparent"],
        "moderation": ["auto", "low"],
        "output_format": ["png", "jpeg"],
        "output_compression": [100, 50],
        "partial_images": [0, 1],
        "complexity": ["low"],
        "frame_count": [9],
        "svg": [{"model": "gpt-5"}],
    },
}


def test_models_are_those_of_the_contract() -> None:
    """The table holds exactly the documented models; only DALL·E is legacy."""
    assert list(MODELS) == [*DALLE, *GPT]
    assert [name for name in MODELS if MODELS[name].legacy] == DALLE
    assert [name for family in FAMILIES for name in family.names] == list(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_rules_for_snapshots(model: str) -> None:
    """A dated snapshot follows the rules of its model."""
    assert rules_for(f"{model}-2026-09-08") is rules_for(model) is MODELS[model]
    for other in (f"{model}-2026-9-8", f"{model}-latest", f"{model}2026-09-08", f"my-{model}", ""):
        assert rules_for(other) is None


@pytest.mark.parametrize(("model", "name", "value"), rows(ALLOWED))
def test_validate_allows(model: str, name: str, value: Any) -> None:
    """A documented value is allowed, up to the limit."""
    assert rejection(model, **{name: value}) is None


@pytest.mark.parametrize(("model", "name", "value"), rows(REJECTED))
def test_validate_rejects(model: str, name: str, value: Any) -> None:
    """A value that the model is known to reject raises an error that names model and parameter."""
    found = rejection(model, **{name: value})
    assert found is not None
    assert found[0] == name
    assert found[1].startswith(f"{model}: ")
    assert name.replace("partial_images", "partial") in found[1]
    assert found[1].endswith(".")


@pytest.mark.parametrize("model", GPT)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": "transparent"}, None),
        ({"background": "transparent", "output_format": "png"}, None),
        ({"background": "transparent", "output_format": "webp"}, None),
        ({"background": "transparent", "output_format": "jpeg"}, "background"),
        ({"background": "opaque", "output_format": "jpeg"}, None),
        ({"background": "auto", "output_format": "jpeg"}, None),
        ({"output_compression": 100, "output_format": "png"}, None),
        ({"output_compression": 99}, "output_compression"),
        ({"output_compression": 99, "output_format": "png"}, "output_compression"),
        ({"output_compression": 0, "output_format": "png"}, "output_compression"),
        ({"output_compression": 0, "output_format": "jpeg"}, None),
        ({"output_compression": 99, "output_format": "webp"}, None),
        ({"output_compression": 100, "output_format": "jpeg"}, None),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"output_compression": -1, "output_format": "webp"}, "output_compression"),
    ],
)
def test_validate_combinations(model: str, fields: dict[str, Any], param: str | None) -> None:
    """Transparency needs a format that supports it, and compression a lossy one."""
    found = rejection(model, **fields)
    assert (found[0] if found else None) == param


@pytest.mark.parametrize("model", [*GPT, None])
@pytest.mark.parametrize(
    ("stream", "count", "rejected"),
    [
        (True, -1, True),
        (True, 0, False),
        (True, 1, False),
        (True, 3, False),
        (True, 4, True),
        (False, 0, False),
        (False, 1, True),
        (False, 3, True),
    ],
)
def test_validate_partial_images(model: str, stream: bool, count: int, rejected: bool) -> None:
    """Partial images are allowed in streams only, at most three."""
    found = rejection(model, stream=stream, partial_images=count)
    assert (found is not None and found[0] == "partial_images") is rejected


@pytest.mark.parametrize("model", [*MODELS, None])
def test_validate_stream(model: str | None) -> None:
    """The dall-e models do not stream; the others do."""
    found = rejection(model, stream=True)
    assert (found[0] if found else None) == ("stream" if model in DALLE else None)


def test_validate_default_model() -> None:
    """A request without a model is checked against the default model."""
    found = rejection(None, size="256x256")
    assert found is not None
    assert found[1].startswith("gpt-image-1.5: ")


def test_validate_says_what_to_choose() -> None:
    """The error has the invalid value and the valid ones."""
    assert rejection("dall-e-3", n=2) == ("n", "dall-e-3: n is 2; it must be 1.")
    assert rejection("dall-e-2", n=11) == ("n", "dall-e-2: n is 11; it must be 1 to 10.")
    assert rejection("gpt-image-1", size="1x1") == (
        "size",
        "gpt-image-1: size '1x1' is not offered; choose 1024x1024, 1536x1024, 1024x1536, auto.",
    )
    found = rejection("gpt-image-2", size="1x1")
    assert found is not None
    for part in ("auto", "multiples of 16", "3840", "3:1", "655,360", "8,294,400"):
        assert part in found[1]
    found = rejection("dall-e-2", prompt="a" * 1_001)
    assert found is not None
    assert "1,001" in found[1]
    assert "1,000" in found[1]


@pytest.mark.parametrize(
    "model", ["gpt-image-3", "dall-e-4", "flux", "gpt-image-1 ", "GPT-IMAGE-1", ""]
)
@pytest.mark.parametrize("stream", [False, True])
def test_validate_unknown_model(model: str, stream: bool) -> None:
    """An unknown model is never rejected, whatever the request."""
    anything = {"n": 99, "size": "1x1", "quality": "?", "background": "transparent"}
    more: dict[str, Any] = {"output_format": "jpeg", "output_compression": -5, "partial_images": 9}
    found = rejection(
        model, stream=stream, prompt="", **anything, **more, style="?", response_format="?"
    )
    assert found is None or model == ""


def test_free_sizes_against_the_rule() -> None:
    """The rule for free sizes holds for a whole grid of sizes."""
    sizes = FreeSizes()
    for width in range(496, 3900, 8):
        for height in (512, 640, 1008, 1024, 1264, 1280, 2144, 2160, 2176, 3840, 3856):
            allowed = (
                not (width % 16 or height % 16)
                and max(width, height) <= 3840
                and max(width, height) <= 3 * min(width, height)
                and 655_360 <= width * height <= 8_294_400
            )
            assert (f"{width}x{height}" in sizes) is allowed
    assert 1024 not in sizes
    assert None not in sizes


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        *((model, True) for model in GPT),
        ("gpt-image-9", True),
        ("gpt-image-2-2026-04-21", True),
        ("dall-e-3", False),
        ("flux", False),
    ],
)
def test_is_gpt_image(model: str, expected: bool) -> None:
    """The GPT image models are known by their name, future ones included."""
    assert is_gpt_image(model) is expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_format": "gif"}, None),
        ({"output_format": "gif", "n": 10, "frame_count": 2, "frame_duration_ms": 1}, None),
        ({"output_format": "gif", "frame_count": 16, "frame_duration_ms": 700_000}, None),
        ({"output_format": "gif", "partial_images": 0, "stream": False}, None),
        ({"output_format": "gif", "frame_count": 1}, "frame_count"),
        ({"output_format": "gif", "frame_count": 17}, "frame_count"),
        ({"output_format": "gif", "frame_duration_ms": 0}, "frame_duration_ms"),
        ({"output_format": "gif", "frame_duration_ms": -200}, "frame_duration_ms"),
        ({"output_format": "gif", "stream": True}, "stream"),
        ({"output_format": "gif", "output_compression": 50}, "output_compression"),
        ({"output_format": "gif", "background": "transparent"}, "background"),
        ({"output_format": "webp", "frame_count": 9}, "frame_count"),
        ({"frame_duration_ms": 200}, "frame_duration_ms"),
        ({"output_format": "svg"}, None),
        ({"output_format": "svg", "n": 1, "svg": {"model": "gpt-5"}, "complexity": "high"}, None),
        ({"output_format": "svg", "svg": {"model": "m", "reasoning": {"effort": "max"}}}, None),
        ({"output_format": "svg", "svg": {"model": "m", "reasoning": None}}, None),
        ({"output_format": "svg", "svg": {"model": "m", "reasoning": {"effort": None}}}, None),
        ({"output_format": "svg", "svg": {"model": "m", "reasoning": {"effort": "?"}}}, "svg"),
        ({"output_format": "svg", "svg": {"model": "m", "reasoning": "low"}}, "svg"),
        ({"output_format": "svg", "svg": {"model": 5}}, "svg"),
        ({"output_format": "svg", "svg": {"reasoning": {"effort": "low"}}}, "svg"),
        ({"output_format": "svg", "n": 2}, "n"),
        ({"output_format": "svg", "stream": True}, "stream"),
        ({"output_format": "svg", "output_compression": 50}, "output_compression"),
        ({"output_format": "png", "svg": {"model": "gpt-5"}}, "svg"),
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["gpt-image-1.5", "gpt-image-2", *MARKUP, "chatgpt-image-latest"])
def test_validate_gif_and_svg(model: str, fields: dict[str, Any], param: str | None) -> None:
    """GIF and SVG output have rules of their own."""
    found = rejection(model, **fields)
    assert (found[0] if found else None) == param


# --- edits ------------------------------------------------------------------


def image(name: str = "image.png", **changes: Any) -> InputImage:
    media_type = "image/" + name.rpartition(".")[2].replace("jpg", "jpeg")
    fields = {"size": 1000, "width": 64, "height": 32, "alpha": True, **changes}
    return InputImage(name=name, media_type=media_type, **fields)


def edit_rejection(model: str, images: Any = None, **fields: Any) -> str | None:
    """Return the parameter at fault, or None for an edit that is allowed."""
    images = (image(),) if images is None else images
    try:
        validate(EditRequest("a", image=images, model=model, **fields))
    except InvalidRequestError as error:
        return str(error.param)
    return None


URL = ImageReference(url="https://host/a.png")
MB = 1024 * 1024


@pytest.mark.parametrize("model", [*GPT, "gpt-image-2.5-flare-2026-09-08"])
def test_validate_edit(model: str) -> None:
    """The images, the mask and the fidelity of an edit, for each GPT image model."""
    markup = model.startswith("gpt-image-2.5")
    for images, fields, param in (
        ((image("a.png"), image("b.webp"), image("c.jpg")), {}, None),
        ((image(size=50 * MB - 1),), {}, None),
        ((image(size=50 * MB),), {}, "image"),
        ((image("a.gif"),), {}, "image"),
        ((image(),) * 16, {}, None),
        ((image(),) * 17, {}, "image"),
        ((URL,) * 16, {"mask": URL}, None),
        ((URL,) * 17, {}, "image"),
        (None, {"mask": image(size=4 * MB - 1)}, None),
        (None, {"mask": image(alpha=None)}, None),
        (None, {"mask": image(size=4 * MB)}, "mask"),
        (None, {"mask": image("m.webp")}, "mask"),
        (None, {"mask": image(alpha=False)}, "mask"),
        (None, {"mask": image(width=65)}, "mask"),
        (None, {"mask": image(width=32, height=64)}, "mask"),
        ((image("a.jpg"),), {"mask": image(width=32, height=64)}, None),
        ((URL,), {"mask": image(width=65)}, None),
        ((image(), image(width=9)), {"mask": image()}, None),
        (None, {"mask": image(), "output_format": "gif"}, "mask"),
        (None, {"output_format": "gif", "frame_count": 9}, None),
        (None, {"output_format": "svg", "svg": {"reasoning": {"effort": "low"}}}, None),
        (None, {"markup": image()}, None if markup else "markup"),
        (None, {"markup": image(), "mask": image()}, "markup"),
        (None, {"markup": image(alpha=False)}, "markup"),
        (None, {"markup": image("m.webp")}, "markup"),
        (None, {"markup": image(width=65)}, "markup"),
        (None, {"input_fidelity": "low"}, "input_fidelity" if model == "gpt-image-2" else None),
        (None, {"input_fidelity": "max"}, "input_fidelity"),
        (None, {"moderation": "low"}, None),
        (None, {"moderation": "high"}, "moderation"),
    ):
        assert edit_rejection(model, images, **fields) == param, (images, fields)
    high = edit_rejection(model, input_fidelity="high")
    assert high == ("input_fidelity" if model in ("gpt-image-1-mini", "gpt-image-2") else None)


# --- at random --------------------------------------------------------------


def free_size(chance: random.Random) -> str:
    while True:
        width, height = chance.randrange(16, 3841, 16), chance.randrange(16, 3841, 16)
        if f"{width}x{height}" in FreeSizes():
            return f"{width}x{height}"


def allowed_fields(chance: random.Random, model: str) -> dict[str, Any]:
    """Return the fields of a request that the specification allows; `stream` may be among them."""
    choose = chance.choice
    qualities = ["low", "medium", "high", "auto"]
    if model in MARKUP:
        qualities += ["xhigh", "max"]
    fields: dict[str, Any] = {
        "prompt": choose(["a boat", "é" * 32_000, "x" * chance.randrange(1, 32_001)]),
        "n": chance.randrange(1, 11),
        "size": free_size(chance) if model in FREE else choose(["1024x1024", "auto", "1536x1024"]),
        "quality": choose(qualities),
        "background": choose(["auto", "opaque"]),
        "moderation": choose(["low", "auto"]),
        "complexity": choose(["low", "medium", "high"]),
        "user": "u",
        "safety_identifier": "s",
    }
    match chance.randrange(4):
        case 0:
            fields |= {"output_format": "gif", "frame_count": chance.randrange(2, 17)}
            fields["frame_duration_ms"] = chance.randrange(10, 655_351)
        case 1:
            fields |= {"output_format": "svg", "n": 1}
            effort = choose(["none", "minimal", "low", "medium", "high", "xhigh", "max", None])
            fields["svg"] = {"model": "gpt-5", "reasoning": choose([None, {}, {"effort": effort}])}
        case 2:
            fields |= {"output_format": choose(["jpeg", "webp"])}
            fields["output_compression"] = chance.randrange(101)
            fields |= choose([{}, {"stream": True, "partial_images": chance.randrange(4)}])
        case _:
            fields |= {"output_format": choose(["png", "webp"]), "background": "transparent"}
            fields |= choose([{}, {"stream": True, "partial_images": chance.randrange(4)}])
    kept = {"prompt", "output_format", "n", "stream", "background"}
    if "stream" in fields:
        kept.add("partial_images")
    return {name: value for name, value in fields.items() if name in kept or chance.random() < 0.6}


SPOIL: list[Callable[[random.Random], dict[str, Any]]] = [
    lambda chance: {"prompt": chance.choice(["", "  ", "x" * chance.randrange(32_001, 40_000)])},
    lambda chance: {"n": chance.choice([0, -1, 11, 100])},
    lambda chance: {
        "size": chance.choice(["1000x1000", "4096x2160", "3840x1024", "3840x3840", "big"])
    },
    lambda chance: {"quality": chance.choice(["standard", "hd", "ultra", "best"])},
    lambda chance: {"background": chance.choice(["white", "none"])},
    lambda chance: {"background": "transparent", "output_format": chance.choice(["jpeg", "gif"])},
    lambda chance: {"moderation": chance.choice(["high", "off"])},
    lambda chance: {"output_format": chance.choice(["bmp", "jpg", "tiff"])},
    lambda chance: {"output_format": "png", "output_compression": chance.randrange(100)},
    lambda chance: {"output_format": "webp", "output_compression": chance.choice([-1, 101])},
    lambda chance: {"stream": True, "partial_images": chance.choice([-1, 4, 9])},
    lambda chance: {"style": chance.choice(["vivid", "natural"])},
    lambda chance: {"response_format": chance.choice(["url", "b64_json"])},
    lambda chance: {"complexity": chance.choice(["xhigh", "none"])},
    lambda chance: {"output_format": "gif", "frame_count": chance.choice([0, 1, 17])},
    lambda chance: {"output_format": "png", "frame_count": chance.randrange(2, 17)},
    lambda chance: {"output_format": chance.choice(["gif", "svg"]), "stream": True},
    lambda chance: {"output_format": chance.choice(["gif", "svg"]), "output_compression": 50},
    lambda chance: {"output_format": "svg", "n": chance.randrange(2, 11)},
    lambda chance: {"output_format": "png", "svg": {"model": "gpt-5"}},
    lambda chance: {"output_format": "svg", "svg": {"model": "m", "reasoning": {"effort": "all"}}},
]


@pytest.mark.parametrize("seed", range(4))
def test_validate_allows_what_the_specification_allows(seed: int) -> None:
    """No valid request is rejected: 500 at random for each seed."""
    chance = random.Random(seed)
    for _ in range(500):
        model = chance.choice([*GPT, *FREE])
        fields = allowed_fields(chance, model)
        assert rejection(model, **fields) is None, (model, {**fields, "prompt": "…"})


@pytest.mark.parametrize("seed", range(4))
def test_validate_rejects_what_the_specification_forbids(seed: int) -> None:
    """A request with one invalid field is rejected: 500 at random for each seed."""
    chance = random.Random(seed)
    for _ in range(500):
        model = chance.choice([*GPT, *FREE])
        fields = allowed_fields(chance, model) | chance.choice(SPOIL)(chance)
        assert rejection(model, **fields) is not None, (model, {**fields, "prompt": "…"})
