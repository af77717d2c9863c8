"""What a caller may ask for."""

from collections.abc import Mapping
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError

DEFAULT_MODEL = "gpt-image-1.5"


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request for images. A field that is None is not sent.

    `model` is the exception: None means `gpt-image-1.5`, which is sent, because
    the service's documentation contradicts itself about its own default.
    """

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    moderation: str | None = None
    style: str | None = None
    user: str | None = None
    output_format: str | None = None
    output_compression: int | None = None
    partial_images: int | None = None
    response_format: str | None = None
    extra_body: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that are set, `extra_body` left out and `model` always in."""
        every = msgspec.structs.asdict(self)
        del every["extra_body"]
        fields = {name: value for name, value in every.items() if value is not None}
        fields.setdefault("model", DEFAULT_MODEL)
        return fields


_FIELDS = frozenset(GenerateRequest.__struct_fields__)


def make_request(
    prompt: str | GenerateRequest | Mapping[str, Any], options: Mapping[str, Any]
) -> GenerateRequest:
    """The request of a call: `options` that are not None override what `prompt` brings along.

    Raises:
        InvalidRequestError: by the caller; a value of the wrong type, or a field that does not exist.
    """
    match prompt:
        case GenerateRequest():
            fields = msgspec.structs.asdict(prompt)
        case Mapping():
            fields = dict(prompt)
        case _:
            fields = {"prompt": prompt}
    fields.update((name, value) for name, value in options.items() if value is not None)
    if unknown := fields.keys() - _FIELDS:
        name = min(map(str, unknown))
        raise InvalidRequestError(
            f"A request has no field {name!r}. Put what the client does not know into extra_body.",
            param=name,
        )
    if fields.get("prompt") is None:
        raise InvalidRequestError("A request needs a prompt: some text.", param="prompt")
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = str.__str__(value)  # the text of an enum's member
    try:
        return msgspec.convert(fields, GenerateRequest)
    except msgspec.ValidationError as error:
        path = str(error).partition("`$.")[2]
        param = path.strip("`").partition("[")[0].partition(".")[0]
    except (TypeError, RecursionError):
        param = "extra_body"
    annotation = next(
        field.type for field in msgspec.structs.fields(GenerateRequest) if field.name == param
    )
    raise InvalidRequestError(
        f"{param} must be {_IN_WORDS.get(annotation, 'a mapping of plain data')}, "
        f"not {type(fields[param]).__name__}.",
        param=param,
    )


_IN_WORDS: dict[Any, str] = {str: "a string", str | None: "a string", int | None: "a whole number"}
