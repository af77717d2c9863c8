"""Requests for images, and their construction from the arguments of a call."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.image_headers import InputImage

if TYPE_CHECKING:
    from elkimg_async.sansio.values import (
        Background,
        Complexity,
        InputFidelity,
        ModelName,
        Moderation,
        OutputFormat,
        Quality,
        ResponseFormat,
        Size,
        Style,
        Svg,
    )
else:  # at run time any text is accepted, and msgspec has no union of a Literal and str
    Background = Complexity = InputFidelity = ModelName = Moderation = OutputFormat = str
    Quality = ResponseFormat = Size = Style = str
    Svg = dict[str, Any]

DEFAULT_MODEL = "gpt-image-1.5"

InputField: TypeAlias = Literal["image", "mask", "markup"]
INPUT_FIELDS: tuple[InputField, ...] = ("image", "mask", "markup")
"""Fields of edits that are files."""


class _Prompt(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    repr_omit_defaults=True,
):
    prompt: str


class ImageRequest(_Prompt, frozen=True, kw_only=True):
    """The fields that all requests for images share. A field that is None is not sent.

    `model` is the exception: if it is None the default is sent, `gpt-image-1.5` unless the client
    has another, because the service's documentation contradicts itself about its own default.
    """

    model: ModelName | None = None
    n: int | None = None
    size: Size | None = None
    quality: Quality | None = None
    background: Background | None = None
    moderation: Moderation | None = None
    style: Style | None = None
    user: str | None = None
    safety_identifier: str | None = None
    output_format: OutputFormat | None = None
    output_compression: int | None = None
    partial_images: int | None = None
    response_format: ResponseFormat | None = None
    complexity: Complexity | None = None
    frame_count: int | None = None
    frame_duration_ms: int | None = None
    svg: Svg | None = None
    extra_body: dict[str, Any] | None = None

    @property
    def image_count(self) -> int:
        """The number of images requested."""
        return image_count(self.n, self.extra_body)

    def fields(self) -> dict[str, Any]:
        """Return the fields that are set, and always `model`, without `extra_body` and images."""
        return _fields(replace(self, extra_body=None))


def image_count(n: object, extra_body: Mapping[str, Any] | None) -> int:
    """Return the number of images of a request with these fields; 1 if `n` is not valid."""
    n = (extra_body or {}).get("n", n)
    return n if type(n) is int and n > 0 else 1


def _fields(request: ImageRequest) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = msgspec.to_builtins(request)
    except TypeError:  # text of a subclass, such as a member of an enumeration
        every = msgspec.structs.asdict(request)
        texts = {
            name: str.__str__(value) for name, value in every.items() if isinstance(value, str)
        }
        fields = msgspec.to_builtins(replace(request, **texts))
    fields.setdefault("model", DEFAULT_MODEL)
    if "svg" in fields:
        fields["svg"] = _without_null(fields["svg"])
    return fields


def _without_null(value: Any) -> Any:
    """Return plain data without the entries of mappings that are None."""
    if not isinstance(value, dict):
        return value
    return {name: _without_null(item) for name, item in value.items() if item is not None}


class GenerateRequest(ImageRequest, frozen=True, kw_only=True):
    """One request for images from a prompt, with the options of `AsyncImages.generate`."""


class EditRequest(ImageRequest, frozen=True, kw_only=True):
    """One request for edits of images, with the arguments of `AsyncImages.edit`."""

    image: Any
    mask: Any = None
    markup: Any = None
    input_fidelity: InputFidelity | None = None

    @property
    def images(self) -> tuple[InputImage, ...]:
        """The images of a request whose files have been opened, else an empty tuple."""
        return self.image if isinstance(self.image, tuple) else ()

    def fields(self) -> dict[str, Any]:
        """Return the fields that are set, and always `model`, without `extra_body` and images."""
        fields = _fields(replace(self, extra_body=None, image=(), mask=None, markup=None))
        del fields["image"]
        return fields


_Request = TypeVar("_Request", bound=ImageRequest)


def make_request(
    prompt: str | GenerateRequest | Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    model: str | None = None,
) -> GenerateRequest:
    """Return the request of a call: `options` that are not None override the fields of `prompt`.

    `model` is used if neither names one.

    Raises:
        InvalidRequestError: If a value has the wrong type, or a field does not exist.
    """
    if isinstance(prompt, str):
        return _make(GenerateRequest, {**options, "prompt": prompt}, model)
    fields = _fields_of(GenerateRequest, prompt, "prompt") | _without_none(options)
    return _make(GenerateRequest, fields, model)


def make_edit(image: Any, options: Mapping[str, Any], *, model: str | None = None) -> EditRequest:
    """Return the request of an edit, like `make_request`.

    `image` is what to edit, an `EditRequest`, or a mapping of its fields.

    Raises:
        InvalidRequestError: If a value has the wrong type, or a field does not exist.
    """
    fields = _fields_of(EditRequest, image, "image") | _without_none(options)
    if fields.get("image") is None:
        raise InvalidRequestError("An edit needs an image.", param="image")
    return _make(EditRequest, fields, model)


def _fields_of(kind: type[ImageRequest], value: Any, name: str) -> dict[str, Any]:
    """Return the fields of a request, of a mapping, or of a value that is the field `name`."""
    if isinstance(value, kind):
        return msgspec.structs.asdict(value)
    return dict(value) if isinstance(value, Mapping) else {name: value}


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _make(kind: type[_Request], fields: dict[str, Any], model: str | None) -> _Request:
    """Return a request with these fields, of which None means unset."""
    if unknown := fields.keys() - kind.__struct_fields__:
        name = min(map(str, unknown))
        raise InvalidRequestError(_unknown_field(kind, name), param=name)
    if fields.get("prompt") is None:
        raise InvalidRequestError("A request needs a prompt; pass some text.", param="prompt")
    if model not in (None, DEFAULT_MODEL) and fields.get("model") is None:
        fields["model"] = model
    images = {name: fields.pop(name) for name in INPUT_FIELDS if name in fields}
    blank = {"image": ()} if images else {}
    try:
        request = msgspec.convert({**fields, **blank}, kind)
    except msgspec.ValidationError as error:
        path = str(error).partition("`$.")[2]
        param = path.strip("`").partition("[")[0].partition(".")[0]
    except (TypeError, RecursionError):
        param = "svg" if _is_deep(fields.get("svg")) else "extra_body"
    else:
        return replace(request, **images) if images else request
    annotation = next(field.type for field in msgspec.structs.fields(kind) if field.name == param)
    raise InvalidRequestError(
        f"{param} must be {_IN_WORDS.get(annotation, 'a mapping of plain data')}, "
        f"not {type(fields[param]).__name__}.{_correction(param, fields[param])}",
        param=param,
    )


def _correction(param: str, value: Any) -> str:
    match param, value:
        case "prompt", list() | tuple():
            return " For several prompts use client.map(prompts)."
        case "size", (int(width), int(height)):
            return f" Write size='{width}x{height}'."
        case "size", int(edge) if edge > 1:
            return f" Write size='{edge}x{edge}'."
        case _, str(text) if param in _NUMBERS and text.isdecimal():
            return f" Write {param}={int(text)}."
        case _, float(number) if param in _NUMBERS and number.is_integer():
            return f" Write {param}={int(number)}."
        case _:
            return ""


def _unknown_field(kind: type[ImageRequest], name: str) -> str:
    similar = difflib.get_close_matches(name, kind.__struct_fields__, 1, cutoff=0.75)
    meant = f"did you mean {similar[0]!r}? Its" if similar else "its"
    return (
        f"A request has no field {name!r}; {meant} fields are {', '.join(kind.__struct_fields__)}. "
        "Put other fields for the server into extra_body and, in map, data of your own into "
        "metadata."
    )


def _is_deep(value: Any) -> bool:
    try:
        msgspec.convert(value, dict[str, Any] | None)
    except (TypeError, RecursionError):
        return True
    return False


_NUMBERS = {
    field.name for field in msgspec.structs.fields(ImageRequest) if field.type == int | None
}
_IN_WORDS: dict[Any, str] = {str: "a string", str | None: "a string", int | None: "a whole number"}
