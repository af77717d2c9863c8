"""The table of models: every limit at its edge and just beyond."""

from typing import Any

import pytest

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.model_rules import MODELS, FreeSizes, is_gpt_image, validate
from elkimg_async.sansio.requests import GenerateRequest

GPT = ["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"]
FIXED = GPT[:3]
DALLE = ["dall-e-2", "dall-e-3"]


def refusal(model: str | None, *, stream: bool = False, **fields: Any) -> tuple[str, str] | None:
    """The parameter at fault and the sentence, or None when the request is let through."""
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


EVERY_GPT = " ".join(GPT)
LET_THROUGH: dict[str, dict[str, list[Any]]] = {
    EVERY_GPT: {
        "prompt": ["a", "a" * 32_000, "é" * 32_000, "\U0001f431" * 32_000, " a\n"],
        "n": [1, 2, 10],
        "size": ["1024x1024", "1536x1024", "1024x1536", "auto"],
        "quality": ["low", "medium", "high", "auto"],
        "background": ["transparent", "opaque", "auto"],
        "moderation": ["low", "auto"],
        "output_format": ["png", "jpeg", "webp"],
        "output_compression": [100],
        "partial_images": [0],
        "user": ["", "anyone"],
        "extra_body": [{"style": "vivid", "n": 99}],
    },
    "gpt-image-2": {
        "quality": ["xhigh", "max"],
        "output_format": ["gif", "svg"],
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
REFUSED: dict[str, dict[str, list[Any]]] = {
    EVERY_GPT: {
        "prompt": ["", " ", "\n\t", "\u3000", "a" * 32_001],
        "n": [-1, 0, 11, 2**70],
        "quality": ["standard", "hd", "LOW", ""],
        "background": ["none", "Transparent", ""],
        "moderation": ["high", "medium"],
        "output_format": ["jpg", "PNG", "bmp", "image/png"],
        "output_compression": [-1, 101],
        "partial_images": [-1, 1, 4],
        "style": ["vivid", "natural"],
        "response_format": ["url", "b64_json"],
        "size": ["", "AUTO", "1024", "1024X1024", "1024x1024 ", "256x256", "512x512", "1024x-1024"],
    },
    " ".join(FIXED): {
        "quality": ["xhigh", "max"],
        "output_format": ["gif", "svg"],
        "size": ["1792x1024", "2048x2048", "1040x1024"],
    },
    "gpt-image-2": {
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
    },
}


def test_models_are_those_of_the_contract() -> None:
    """The table holds the documented models and no others."""
    assert list(MODELS) == [*DALLE, *GPT]


@pytest.mark.parametrize(("model", "name", "value"), rows(LET_THROUGH))
def test_validate_lets_through(model: str, name: str, value: Any) -> None:
    """What a model is documented to take is let through, up to the very edge."""
    assert refusal(model, **{name: value}) is None


@pytest.mark.parametrize(("model", "name", "value"), rows(REFUSED))
def test_validate_refuses(model: str, name: str, value: Any) -> None:
    """What a model is known to refuse is refused: the sentence names model and parameter."""
    found = refusal(model, **{name: value})
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
    """Transparency needs a format that has it, and compression one that loses."""
    found = refusal(model, **fields)
    assert (found[0] if found else None) == param


@pytest.mark.parametrize("model", [*GPT, None])
@pytest.mark.parametrize(
    ("stream", "count", "refused"),
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
def test_validate_partial_images(model: str, stream: bool, count: int, refused: bool) -> None:
    """Partial images come with a stream only, at most three of them."""
    found = refusal(model, stream=stream, partial_images=count)
    assert (found is not None and found[0] == "partial_images") is refused


@pytest.mark.parametrize("model", [*MODELS, None])
def test_validate_stream(model: str | None) -> None:
    """The dall-e models do not stream; the others do."""
    found = refusal(model, stream=True)
    assert (found[0] if found else None) == ("stream" if model in DALLE else None)


def test_validate_default_model() -> None:
    """A request without a model is held to the rules of the one that is sent."""
    found = refusal(None, size="256x256")
    assert found is not None
    assert found[1].startswith("gpt-image-1.5: ")


def test_validate_says_what_to_choose() -> None:
    """The sentence has the value that is wrong, and what is right instead."""
    assert refusal("dall-e-3", n=2) == ("n", "dall-e-3: n is 2, it must be 1.")
    assert refusal("dall-e-2", n=11) == ("n", "dall-e-2: n is 11, it must be 1 to 10.")
    assert refusal("gpt-image-1", size="1x1") == (
        "size",
        "gpt-image-1: size '1x1' is not offered; choose 1024x1024, 1536x1024, 1024x1536, auto.",
    )
    found = refusal("gpt-image-2", size="1x1")
    assert found is not None
    for part in ("auto", "multiples of 16", "3840", "3:1", "655,360", "8,294,400"):
        assert part in found[1]
    found = refusal("dall-e-2", prompt="a" * 1_001)
    assert found is not None
    assert "1,001" in found[1]
    assert "1,000" in found[1]


@pytest.mark.parametrize(
    "model", ["gpt-image-3", "dall-e-4", "flux", "gpt-image-1 ", "GPT-IMAGE-1", ""]
)
@pytest.mark.parametrize("stream", [False, True])
def test_validate_unknown_model(model: str, stream: bool) -> None:
    """A model that the table does not know is never refused, whatever is asked of it."""
    anything = {"n": 99, "size": "1x1", "quality": "?", "background": "transparent"}
    more: dict[str, Any] = {"output_format": "jpeg", "output_compression": -5, "partial_images": 9}
    found = refusal(
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
        ("dall-e-3", False),
        ("flux", False),
    ],
)
def test_is_gpt_image(model: str, expected: bool) -> None:
    """The GPT image models are told by their name, those to come included."""
    assert is_gpt_image(model) is expected
