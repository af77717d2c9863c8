"""The fields of a request, and its construction from arguments."""

import enum
import types
from typing import Any

import msgspec
import pytest

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.requests import (
    DEFAULT_MODEL,
    EditRequest,
    GenerateRequest,
    make_edit,
    make_request,
)

OPTIONS: dict[str, Any] = {
    "model": "m",
    "n": 2,
    "size": "1x1",
    "quality": "q",
    "background": "b",
    "moderation": "low",
    "style": "s",
    "user": "u",
    "output_format": "png",
    "output_compression": 0,
    "partial_images": 0,
    "response_format": "url",
    "safety_identifier": "hashed",
    "complexity": "low",
    "frame_count": 2,
    "frame_duration_ms": 100,
    "svg": {"model": "gpt-5", "reasoning": {"effort": "low"}},
    "extra_body": {"seed": 1},
}
TEXTS = sorted(name for name, value in OPTIONS.items() if isinstance(value, str))
NUMBERS = sorted(name for name, value in OPTIONS.items() if isinstance(value, int))


class Size(enum.StrEnum):
    """Sizes in an enumeration of the user's."""

    SMALL = "256x256"


class Count(enum.IntEnum):
    """Numbers in an enumeration of the user's."""

    TWO = 2


class Text(str):
    """A subclass of `str`, as some libraries have."""

    __slots__ = ()


class Number(int):
    """A subclass of `int`, as some libraries have."""

    __slots__ = ()


def test_request_fields() -> None:
    """A request has the documented fields, is frozen, and only its prompt is positional."""
    assert set(GenerateRequest.__struct_fields__) == {"prompt", *OPTIONS}
    request = GenerateRequest(prompt="a")
    with pytest.raises(AttributeError):
        request.prompt = "b"  # type: ignore[misc]
    assert GenerateRequest("a") == request
    assert repr(request) == "GenerateRequest(prompt='a')"
    with pytest.raises(TypeError):
        GenerateRequest("a", "m")  # type: ignore[call-arg] # pyright: ignore


@pytest.mark.parametrize(
    "prompt",
    [
        "a boat",
        {"prompt": "a boat"},
        types.MappingProxyType({"prompt": "a boat", "n": None}),
        GenerateRequest(prompt="a boat"),
    ],
    ids=["text", "mapping", "other mapping", "request"],
)
def test_make_request_from_any_prompt(prompt: Any) -> None:
    """Text, a mapping of fields and a ready request become the same request."""
    assert make_request(prompt, {}) == GenerateRequest(prompt="a boat")
    assert make_request(prompt, OPTIONS) == GenerateRequest(prompt="a boat", **OPTIONS)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_make_request_options_override(as_mapping: bool) -> None:
    """Options that are set override the fields of the prompt; None does not."""
    fields = {"prompt": "a", **OPTIONS}
    prompt = fields if as_mapping else GenerateRequest(**fields)
    options = {"n": 5, "size": None, "prompt": None, "partial_images": 3, "extra_body": {"x": 1}}
    expected = {**fields, "n": 5, "partial_images": 3, "extra_body": {"x": 1}}
    assert make_request(prompt, options) == GenerateRequest(**expected)
    assert fields == {"prompt": "a", **OPTIONS}


def test_make_request_keeps_zero_and_empty() -> None:
    """Zero and empty text are values, unlike None."""
    request = make_request({"prompt": "", "n": 0}, {"partial_images": 0, "user": ""})
    assert request.fields() == {
        "prompt": "",
        "model": DEFAULT_MODEL,
        "n": 0,
        "partial_images": 0,
        "user": "",
    }


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [1, 1.5, True, b"x", ["x"], {"x": 1}, frozenset()], ids=repr)
def test_make_request_text_of_the_wrong_type(name: str, value: Any) -> None:
    """A text field accepts text only; the error names the field and the type."""
    cases: list[tuple[Any, dict[str, Any]]] = [
        ("a", {name: value}),
        ({"prompt": "a", name: value}, {}),
    ]
    for prompt, options in cases:
        with pytest.raises(InvalidRequestError) as caught:
            make_request(prompt, options)
        assert caught.value.param == name
        assert str(caught.value) == f"{name} must be a string, not {type(value).__name__}."


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", 1.5, 1.0, True, b"1", [1], {}, frozenset()], ids=repr)
def test_make_request_number_of_the_wrong_type(name: str, value: Any) -> None:
    """A number field accepts whole numbers only: `1.0` and `"1"` are errors at the server too."""
    with pytest.raises(InvalidRequestError) as caught:
        make_request("a", {name: value})
    assert caught.value.param == name
    correction = f" Write {name}=1." if value in ("1", 1.0) and value is not True else ""
    problem = f"{name} must be a whole number, not {type(value).__name__}."
    assert str(caught.value) == problem + correction


@pytest.mark.parametrize("value", ["x", 5, [1], [("a", 1)], {1: 2}, frozenset()], ids=repr)
def test_make_request_extra_body_of_the_wrong_type(value: Any) -> None:
    """`extra_body` is a mapping with text as keys."""
    with pytest.raises(
        InvalidRequestError, match="extra_body must be a mapping of plain data"
    ) as caught:
        make_request("a", {"extra_body": value})
    assert caught.value.param == "extra_body"


@pytest.mark.parametrize("name", ["svg", "extra_body"])
def test_make_request_with_data_that_is_not_plain(name: str) -> None:
    """A mapping whose keys are not text is rejected under its own name."""
    with pytest.raises(
        InvalidRequestError, match=f"{name} must be a mapping of plain data"
    ) as caught:
        make_request("a", {name: {1: object()}})
    assert caught.value.param == name


def test_make_request_default_model() -> None:
    """The client's default model is used if nothing else names one."""
    for prompt in ("a", {"prompt": "a"}, {"prompt": "a", "model": None}, GenerateRequest("a")):
        assert make_request(prompt, {"model": None}, model="m").model == "m"
        assert make_request(prompt, {"model": "other"}, model="m").model == "other"
    assert make_request(GenerateRequest("a", model="own"), {}, model="m").model == "own"
    assert make_edit(b"x", {"prompt": "a"}, model="m").model == "m"
    assert make_request("a", {}, model=DEFAULT_MODEL) == GenerateRequest("a")


def test_fields_of_svg() -> None:
    """Fields within `svg` that are None are not sent."""
    svg: Any = {"model": "m", "reasoning": {"effort": None}, "other": None}
    request = GenerateRequest("a", svg=svg)
    assert request.fields()["svg"] == {"model": "m", "reasoning": {}}
    assert request.svg is svg


def test_make_edit() -> None:
    """Arguments, a mapping and a ready request become the same edit; images stay as they are."""
    image, mask = object(), b"mask"
    fields = {"image": image, "mask": mask, "prompt": "a hat", "n": 2}
    expected = EditRequest("a hat", image=image, mask=mask, n=2)
    assert make_edit(image, {"mask": mask, "prompt": "a hat", "n": 2, "size": None}) == expected
    assert make_edit(fields, {"n": None}) == expected
    assert make_edit(expected, {}) == expected
    assert make_edit(expected, {"n": 3}).n == 3
    assert expected.fields() == {"prompt": "a hat", "n": 2, "model": DEFAULT_MODEL}
    for wrong in (None, {"prompt": "a"}, {"prompt": "a", "image": None}):
        with pytest.raises(InvalidRequestError, match="needs an image") as caught:
            make_edit(wrong, {})
        assert caught.value.param == "image"
    with pytest.raises(InvalidRequestError, match="needs a prompt"):
        make_edit(image, {})
    with pytest.raises(InvalidRequestError, match="no field 'styel'"):
        make_edit(image, {"prompt": "a", "styel": "vivid"})


@pytest.mark.parametrize("prompt", [None, {}, {"prompt": None}, {"n": 1}], ids=repr)
def test_make_request_without_a_prompt(prompt: Any) -> None:
    """A request without a prompt is rejected."""
    with pytest.raises(InvalidRequestError, match="needs a prompt") as caught:
        make_request(prompt, {})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "prompt", [5, b"a", ["a"], frozenset(), {"prompt": 5}, GenerateRequest(prompt=5)], ids=repr  # type: ignore[arg-type]
)  # fmt: skip
def test_make_request_prompt_of_the_wrong_type(prompt: Any) -> None:
    """A prompt of the wrong type is rejected, however it is passed."""
    with pytest.raises(InvalidRequestError, match="prompt must be a string") as caught:
        make_request(prompt, {})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("name", ["nope", "Prompt", "stream", "", 5, None], ids=repr)
def test_make_request_with_an_unknown_field(name: Any) -> None:
    """An unknown field is rejected; the error lists the fields and the alternatives."""
    with pytest.raises(
        InvalidRequestError, match=r"prompt, model, n, .*extra_body.*metadata"
    ) as caught:
        make_request({"prompt": "a", name: None}, {})
    assert caught.value.param == str(name)
    assert repr(str(name)) in str(caught.value)


def test_make_request_takes_enumerations() -> None:
    """Members of an enumeration of strings or numbers are sent like plain values."""
    request = make_request("a", {"size": Size.SMALL, "n": Count.TWO})
    assert (request.size, request.n) == ("256x256", 2)
    sent = msgspec.json.decode(msgspec.json.encode(request.fields()))
    assert (sent["size"], sent["n"]) == ("256x256", 2)


def test_make_request_takes_subclasses_of_text() -> None:
    """Strings of a subclass, such as `numpy.str_`, are sent like plain ones."""
    request = make_request(Text("a"), {"size": Text("auto"), "n": Number(2)})
    sent = msgspec.json.decode(msgspec.json.encode(request.fields()))
    assert (sent["prompt"], sent["size"], sent["n"]) == ("a", "auto", 2)


def test_request_fields_that_are_sent() -> None:
    """`fields` has the set fields, always the model, and never `extra_body`."""
    assert GenerateRequest(prompt="a").fields() == {"prompt": "a", "model": DEFAULT_MODEL}
    request = GenerateRequest(prompt="a", **OPTIONS)
    assert request.fields().keys() == {"prompt", *OPTIONS} - {"extra_body"}
    assert DEFAULT_MODEL == "gpt-image-1.5"
