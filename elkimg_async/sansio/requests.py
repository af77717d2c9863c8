"""What a caller may ask for."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.image_headers import InputImage

DEFAULT_MODEL = "gpt-image-1.5"


class ImageRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What every request for images holds. A field that is None is not sent.

    `model` is the exception: None means `gpt-image-1.5`, which is sent, because
    the service's documentation contradicts itself about its own default.
    """

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    user: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    partial_images: int | None = None
    response_format: str | None = None
    extra_body: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that are set, `model` always in; `extra_body` and pictures are left out."""
        return _fields(self if self.extra_body is None else replace(self, extra_body=None))


def _fields(request: ImageRequest) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = msgspec.to_builtins(request)
    except TypeError:  # text of a subclass, an enum's member for instance
        every = msgspec.structs.asdict(request)
        texts = {
            name: str.__str__(value) for name, value in every.items() if isinstance(value, str)
        }
        fields = msgspec.to_builtins(replace(request, **texts))
    fields.setdefault("model", DEFAULT_MODEL)
    return fields


class GenerateRequest(ImageRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request for images from a text. A field that is None is not sent, but for `model`."""

    moderation: str | None = None
    style: str | None = None


class EditRequest(ImageRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request for edits of pictures. A field that is None is not sent, but for `model`."""

    image: tuple[InputImage, ...]
    mask: InputImage | None = None
    input_fidelity: str | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that are set, `model` always in; `extra_body` and pictures are left out."""
        fields = _fields(replace(self, extra_body=None, image=(), mask=None))
        del fields["image"]
        return fields


_Request = TypeVar("_Request", bound=ImageRequest)
_NAMES: dict[type[ImageRequest], frozenset[str]] = {
    kind: frozenset(kind.__struct_fields__) for kind in (GenerateRequest, EditRequest)
}


def make_request(
    prompt: str | GenerateRequest | Mapping[str, Any], options: Mapping[str, Any]
) -> GenerateRequest:
    """The request of a call: `options` that are not None override what `prompt` brings along.

    Raises:
        InvalidRequestError: by the caller; a value of the wrong type, or a field that does not exist.
    """
    if isinstance(prompt, str):
        return _make(GenerateRequest, {**options, "prompt": prompt})
    match prompt:
        case GenerateRequest():
            fields = msgspec.structs.asdict(prompt)
        case Mapping():
            fields = dict(prompt)
        case _:
            fields = {"prompt": prompt}
    given = {name: value for name, value in options.items() if value is not None}
    return _make(GenerateRequest, {**fields, **given})


def make_edit(
    image: tuple[InputImage, ...],
    mask: InputImage | None,
    prompt: str,
    options: Mapping[str, Any],
) -> EditRequest:
    """The request of an edit.

    Raises:
        InvalidRequestError: by the caller; a value of the wrong type, or a field that does not exist.
    """
    return _make(EditRequest, {**options, "image": image, "mask": mask, "prompt": prompt})


def _make(kind: type[_Request], fields: dict[str, Any]) -> _Request:
    """A request of its fields, None among them for what is unset."""
    if not fields.keys() <= _NAMES[kind]:
        name = min(map(str, fields.keys() - _NAMES[kind]))
        raise InvalidRequestError(
            f"A request has no field {name!r}. Put what the client does not know into extra_body.",
            param=name,
        )
    if fields.get("prompt") is None:
        raise InvalidRequestError("A request needs a prompt: some text.", param="prompt")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        path = str(error).partition("`$.")[2]
        param = path.strip("`").partition("[")[0].partition(".")[0]
    except (TypeError, RecursionError):
        param = "extra_body"
    annotation = next(field.type for field in msgspec.structs.fields(kind) if field.name == param)
    raise InvalidRequestError(
        f"{param} must be {_IN_WORDS.get(annotation, 'a mapping of plain data')}, "
        f"not {type(fields[param]).__name__}.",
        param=param,
    )


_IN_WORDS: dict[Any, str] = {str: "a string", str | None: "a string", int | None: "a whole number"}
