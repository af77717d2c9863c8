"""A server's list of models, and its lenient decoding."""

from typing import Any

import msgspec

from elkimg_async.errors import ElkImagesError, ResponseError
from elkimg_async.sansio.error_mapping import MAX_BODY_TEXT, api_error, too_long
from elkimg_async.sansio.error_words import strength
from elkimg_async.sansio.json_images import InvalidJSON, decode
from elkimg_async.sansio.reading import read_number, read_str
from elkimg_async.sansio.responses import Meta, Number, ResponseData

_ATTRIBUTES = {"id", "owned_by", "created", "object", "shutdown_date"}


class Model(ResponseData, frozen=True, kw_only=True):
    """One model of the server; attributes are None if the server does not say.

    `created` is in seconds since 1970, `shutdown_date` an ISO date; `is_image` is whether the model
    creates images. `extra` has all other fields, as they were sent.
    """

    id: str
    owned_by: str | None = None
    created: Number | None = None
    object: str | None = None
    shutdown_date: str | None = None
    is_image: bool | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Models(list[Model]):
    """The models of a server, in its order; `meta` describes the exchange."""

    meta: Meta

    @property
    def data(self) -> list[Model]:
        """The models themselves, for code written for openai."""
        return self

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data, as the API sends it; `images` is accepted as by other results."""
        return {"object": "list", "data": [model.to_dict() for model in self]}

    model_dump = to_dict


class ModelsDecoder:
    """Decoder for a body that is a list of models, fed in any split; it has no events.

    `max_bytes` limits the body. The other options of a decoder make no difference here.
    """

    def __init__(self, *, max_bytes: int, **_: Any) -> None:
        self._max_bytes = max_bytes
        self._body = bytearray()
        self._models: Models | None = None
        self.events: tuple[()] = ()
        self.failure: ElkImagesError | None = None
        """The error in the body; None while there is none."""
        self.done = False

    def feed(self, chunk: bytes) -> bool:
        """Add the next bytes of the body; return False if they are only blanks."""
        if len(self._body) + len(chunk) > self._max_bytes:
            self.failure = too_long(self._max_bytes)
            self.done = True
        else:
            self._body += chunk
        return not chunk.isspace()

    def finish(self) -> None:
        """Decode the complete body."""
        if self.failure is None:
            try:
                self._models = read_models(bytes(self._body))
            except ElkImagesError as error:
                error.__context__ = None
                self.failure = error

    def next_event(self) -> None:
        """Return None, since a list of models has no events.

        Raises:
            APIError: If the server reports an error inside a 2xx response.
            ResponseError: If the body is not a list of models for another reason.
        """
        if self.failure is not None:
            raise self.failure

    def response(self) -> Models:
        """Return the list, once `finish` has succeeded."""
        assert self._models is not None
        return self._models

    def attach_images(self, error: ElkImagesError) -> None:
        """Do nothing, since a list of models has no images."""


def read_models(body: bytes) -> Models:
    """Return the models in a 2xx response.

    Raises:
        APIError: If it is an error.
        ResponseError: If it is not a list of models for another reason.
    """
    text = body.decode("utf-8-sig", "replace").strip()[:MAX_BODY_TEXT]
    if text.startswith("<"):
        problem = "a web page. Check that the base URL ends in /v1"
    else:
        try:
            value = decode(body)
        except InvalidJSON:
            problem = "something that is not JSON"
        else:
            items = _items(value)
            if strength(value) > (1 if items is not None else 0):
                raise api_error(200, value)
            if items is not None:
                return Models(model for item in items if (model := _model(item)) is not None)
            problem = "JSON without a list of models"
    raise ResponseError(f"The server returned {problem}.", body=text)


def _items(value: Any) -> list[Any] | None:
    """Return the list itself, or that under `data` or `models`; null counts as empty."""
    if isinstance(value, dict):
        name = next((name for name in ("data", "models") if name in value), None)
        value = None if name is None else value[name] or []
    return value if isinstance(value, list) else None


def _model(item: Any) -> Model | None:
    if not isinstance(item, dict):
        item = {"id": item}
    if (model := read_str(item.get("id"))) is None:
        return None
    return Model(
        id=model,
        owned_by=read_str(item.get("owned_by")),
        created=read_number(item.get("created")),
        object=read_str(item.get("object")),
        shutdown_date=read_str(item.get("shutdown_date")),
        is_image=_is_image(item),
        extra={name: field for name, field in item.items() if name not in _ATTRIBUTES},
    )


def _is_image(item: dict[str, Any]) -> bool | None:
    """Return whether the endpoints (`image-generation`) or the output modalities are images."""
    shape = item.get("architecture")
    for fields, name in (
        (item, "supported_endpoint_types"),
        (item, "output_modalities"),
        (shape if isinstance(shape, dict) else {}, "output_modalities"),
    ):
        kinds = fields.get(name)
        if isinstance(kinds, list) and kinds:
            return any(isinstance(kind, str) and kind.startswith("image") for kind in kinds)
    return None
