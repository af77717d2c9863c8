"""What a caller may ask for."""

import enum
import types
from typing import Any

import msgspec
import pytest

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.requests import DEFAULT_MODEL, GenerateRequest, make_request

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
    "extra_body": {"seed": 1},
}
TEXTS = sorted(name for name, value in OPTIONS.items() if isinstance(value, str))
NUMBERS = sorted(name for name, value in OPTIONS.items() if isinstance(value, int))


class Size(enum.StrEnum):
    """A caller's own list of sizes."""

    SMALL = "256x256"


class Count(enum.IntEnum):
    """A caller's own list of numbers."""

    TWO = 2


class Text(str):
    """Text as some libraries have it."""

    __slots__ = ()


class Number(int):
    """A number as some libraries have it."""

    __slots__ = ()


def test_request_fields() -> None:
    """A request has the documented fields, keyword-only and frozen."""
    assert set(GenerateRequest.__struct_fields__) == {"prompt", *OPTIONS}
    request = GenerateRequest(prompt="a")
    with pytest.raises(AttributeError):
        request.prompt = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        GenerateRequest("a")  # type: ignore[call-arg]


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
    """Text, a mapping of fields and a ready request all make the same request."""
    assert make_request(prompt, {}) == GenerateRequest(prompt="a boat")
    assert make_request(prompt, OPTIONS) == GenerateRequest(prompt="a boat", **OPTIONS)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_make_request_options_override(as_mapping: bool) -> None:
    """Options that are set replace what the prompt brings along; None leaves it."""
    fields = {"prompt": "a", **OPTIONS}
    prompt = fields if as_mapping else GenerateRequest(**fields)
    options = {"n": 5, "size": None, "prompt": None, "partial_images": 3, "extra_body": {"x": 1}}
    expected = {**fields, "n": 5, "partial_images": 3, "extra_body": {"x": 1}}
    assert make_request(prompt, options) == GenerateRequest(**expected)
    assert fields == {"prompt": "a", **OPTIONS}


def test_make_request_keeps_zero_and_empty() -> None:
    """Zero and empty text are values, not absence."""
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
def test_make_request_with_what_is_no_text(name: str, value: Any) -> None:
    """A text field takes text only; the error names the field and the type."""
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
def test_make_request_with_what_is_no_whole_number(name: str, value: Any) -> None:
    """A number field takes whole numbers only: `1.0` and `"1"` are errors at the server too."""
    with pytest.raises(InvalidRequestError) as caught:
        make_request("a", {name: value})
    assert caught.value.param == name
    assert str(caught.value) == f"{name} must be a whole number, not {type(value).__name__}."


@pytest.mark.parametrize("value", ["x", 5, [1], [("a", 1)], {1: 2}, frozenset()], ids=repr)
def test_make_request_with_what_is_no_extra_body(value: Any) -> None:
    """`extra_body` takes a mapping with text as keys."""
    with pytest.raises(
        InvalidRequestError, match="extra_body must be a mapping of plain data"
    ) as caught:
        make_request("a", {"extra_body": value})
    assert caught.value.param == "extra_body"


@pytest.mark.parametrize("prompt", [None, {}, {"prompt": None}, {"n": 1}], ids=repr)
def test_make_request_without_a_prompt(prompt: Any) -> None:
    """A request without a prompt is refused."""
    with pytest.raises(InvalidRequestError, match="needs a prompt") as caught:
        make_request(prompt, {})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "prompt", [5, b"a", ["a"], frozenset(), {"prompt": 5}, GenerateRequest(prompt=5)], ids=repr  # type: ignore[arg-type]
)  # fmt: skip
def test_make_request_with_what_is_no_prompt(prompt: Any) -> None:
    """A prompt of the wrong type is refused, wherever it stands."""
    with pytest.raises(InvalidRequestError, match="prompt must be a string") as caught:
        make_request(prompt, {})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("name", ["nope", "Prompt", "stream", "", 5, None], ids=repr)
def test_make_request_with_an_unknown_field(name: Any) -> None:
    """A field that does not exist is refused, with the way out."""
    with pytest.raises(InvalidRequestError, match="extra_body") as caught:
        make_request({"prompt": "a", name: None}, {})
    assert caught.value.param == str(name)
    assert repr(str(name)) in str(caught.value)


def test_make_request_takes_enumerations() -> None:
    """A caller's own enumeration of strings or numbers does for plain ones, on the wire too."""
    request = make_request("a", {"size": Size.SMALL, "n": Count.TWO})
    assert (request.size, request.n) == ("256x256", 2)
    sent = msgspec.json.decode(msgspec.json.encode(request.fields()))
    assert (sent["size"], sent["n"]) == ("256x256", 2)


def test_make_request_takes_subclasses_of_text() -> None:
    """Text of a subclass, such as `numpy.str_`, is as good as plain text, on the wire too."""
    request = make_request(Text("a"), {"size": Text("auto"), "n": Number(2)})
    sent = msgspec.json.decode(msgspec.json.encode(request.fields()))
    assert (sent["prompt"], sent["size"], sent["n"]) == ("a", "auto", 2)


def test_request_fields_that_are_sent() -> None:
    """`fields` has what is set, the model always, and never `extra_body`."""
    assert GenerateRequest(prompt="a").fields() == {"prompt": "a", "model": DEFAULT_MODEL}
    request = GenerateRequest(prompt="a", **OPTIONS)
    assert request.fields().keys() == {"prompt", *OPTIONS} - {"extra_body"}
    assert DEFAULT_MODEL == "gpt-image-1.5"
