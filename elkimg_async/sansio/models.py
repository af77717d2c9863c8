"""The list of a server's models: tolerant of shapes, strict about there being one."""

from typing import Any

import msgspec

from elkimg_async.errors import ElkImagesError, ResponseError
from elkimg_async.sansio.error_mapping import BODY_IN_ERRORS, api_error
from elkimg_async.sansio.json_images import InvalidJSON, decode
from elkimg_async.sansio.responses import Meta, Number, read_number, read_str


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the server; what is None the server does not say.

    `created` is in seconds since 1970; `is_image` is whether it makes images.
    """

    id: str
    owned_by: str | None = None
    created: Number | None = None
    is_image: bool | None = None


class Models(list[Model]):
    """The models of a server, in its order; `meta` is what is known of the exchange."""

    meta: Meta

    @property
    def data(self) -> list[Model]:
        """The models themselves, for code written for openai."""
        return self


class ListingDecoder:
    """One body, fed in any split, that holds a list; it has no events."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._body = bytearray()
        self._models: Models | None = None
        self.events: tuple[()] = ()
        self.failure: ElkImagesError | None = None
        """What the body turned out to be instead of a list; None while it is one."""
        self.done = False

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes of the body; False when they are nothing but blanks."""
        if len(self._body) + len(chunk) > self._max_bytes:
            self.failure = ResponseError(
                f"The answer is longer than {self._max_bytes:,} bytes; "
                "raise it with Limits(max_response_bytes=…)."
            )
            self.done = True
        else:
            self._body += chunk
        return not chunk.isspace()

    def finish(self) -> None:
        """The body has ended."""
        if self.failure is None:
            try:
                self._models = read_models(bytes(self._body))
            except ElkImagesError as error:
                error.__context__ = None
                self.failure = error

    def next_event(self) -> None:
        """Nothing, for this answer has no events.

        Raises:
            APIError: by the server, for an error inside a good answer.
            ResponseError: by the server, for anything else that is no list of models.
        """
        if self.failure is not None:
            raise self.failure

    def response(self) -> Models:
        """The list, once `finish` has succeeded."""
        assert self._models is not None
        return self._models


def read_models(body: bytes) -> Models:
    """The models in a good answer.

    Raises:
        APIError, ResponseError: by the server, for what is no list of models.
    """
    text = body[: 4 * BODY_IN_ERRORS].decode("utf-8-sig", "replace").strip()
    if text.startswith("<"):
        problem = "with a web page; check that the base URL ends in /v1"
    else:
        try:
            value = decode(body)
        except InvalidJSON:
            problem = "with something that is no JSON"
        else:
            if isinstance(value, dict) and value.get("error"):
                raise api_error(200, value)
            if (items := _items(value)) is not None:
                return Models(model for item in items if (model := _model(item)) is not None)
            problem = "with JSON that holds no list of models"
    raise ResponseError(f"The server answered {problem}.", body=text[:BODY_IN_ERRORS])


def _items(value: Any) -> list[Any] | None:
    """The list itself, or that under `data` (OpenAI, the gateway) or `models`; null counts as empty."""
    if isinstance(value, dict):
        name = next((name for name in ("data", "models") if name in value), None)
        value = None if name is None else value[name] or []
    return value if isinstance(value, list) else None


def _model(item: Any) -> Model | None:
    if not isinstance(item, dict):
        item = {"id": item}
    if (name := read_str(item.get("id"))) is None:
        return None
    return Model(
        id=name,
        owned_by=read_str(item.get("owned_by")),
        created=read_number(item.get("created")),
        is_image=_is_image(item),
    )


def _is_image(item: dict[str, Any]) -> bool | None:
    """By the gateway's endpoints (`image-generation`), or by what else lists the kinds of output."""
    shape = item.get("architecture")
    for place, name in (
        (item, "supported_endpoint_types"),
        (item, "output_modalities"),
        (shape if isinstance(shape, dict) else {}, "output_modalities"),
    ):
        said = place.get(name)
        if isinstance(said, list) and said:
            return any(isinstance(kind, str) and kind.startswith("image") for kind in said)
    return None
