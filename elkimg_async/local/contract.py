"""The gateway's contract: fields are parsed, or rejected with the gateway's error.

Nothing here waits, paints or uses a socket.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.sansio.image_headers import InputImage
from elkimg_async.sansio.model_rules import is_gpt_image, rules_for, validate
from elkimg_async.sansio.requests import DEFAULT_MODEL, EditRequest, GenerateRequest

BODY_LIMIT = 128 * 1024 * 1024
MAX_PIXELS = 40_000_000
"""Limit for an image to edit; larger ones would only slow down tests."""


class GatewayError(Exception):
    """A failed request, which becomes a response in the gateway's error shape."""

    def __init__(
        self, status: int, message: str, *, code: str = "", param: str = "", kind: str = "api_error"
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.code, self.param, self.kind = code, param, kind


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A valid request with every default filled in."""

    request: GenerateRequest | EditRequest
    stream: bool = False
    model: str
    n: int = 1
    width: int = 1024
    height: int = 1024
    quality: str
    transparent: bool = False
    output_format: str = "png"
    compression: int = 100
    partial_images: int = 0
    by_url: bool = False
    frame_count: int = 9
    frame_duration_ms: int = 200
    svg_model: str | None = None
    safety_identifier: str | None = None

    @property
    def event_prefix(self) -> str:
        """The part of event types before the dot."""
        return "image_edit" if isinstance(self.request, EditRequest) else "image_generation"

    @property
    def described(self) -> dict[str, str]:
        """The fields that accompany an image in responses and events."""
        described = {
            "background": "transparent" if self.transparent else "opaque",
            "output_format": self.output_format,
            "quality": self.quality,
            "size": f"{self.width}x{self.height}",
        }
        if self.safety_identifier:
            described["safety_identifier"] = self.safety_identifier
        return described


def check_api_key(headers: Mapping[str, str], api_key: str) -> None:
    """Raise `GatewayError` unless the request carries the expected API key."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or value.strip() != api_key:
        raise GatewayError(401, "Invalid token: the API key is missing or unknown")


def check_accept(headers: Mapping[str, str]) -> None:
    """Raise `GatewayError` if a stream is the preferred type.

    Servers that take the first type literally fail this way even for streams.
    """
    if headers.get("Accept", "").lstrip().startswith("text/event-stream"):
        raise invalid("Accept must name application/json first")


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object; fields that are null are dropped.

    Raises:
        GatewayError: If the body is not a JSON object.
    """
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object")
    return {name: value for name, value in fields.items() if value is not None}


def parse_fields(
    fields: dict[str, Any], kind: type[GenerateRequest] | type[EditRequest]
) -> ParsedRequest:
    """Parse the fields of a body: those of `kind`, and `stream`; others are dropped.

    Raises:
        GatewayError: If a field is not valid, with the gateway's status and code.
    """
    model = fields.get("model") or DEFAULT_MODEL
    if isinstance(model, str) and rules_for(model) is None:
        raise GatewayError(
            503, f"No available channel for model {model}", code="model_not_found", param="model"
        )
    stream = fields.pop("stream", False)
    if not isinstance(stream, bool):
        raise invalid("stream must be a JSON boolean", "stream")
    if "prompt" not in fields:
        raise invalid("prompt is required", "prompt")
    known = {name: fields[name] for name in kind.__struct_fields__ if name in fields}
    known.pop("extra_body", None)
    if is_gpt_image(str(model)) and "response_format" in known:
        raise GatewayError(
            400,
            "Unknown parameter: 'response_format'.",
            code="unknown_parameter",
            param="response_format",
            kind="invalid_request_error",
        )
    try:
        request = msgspec.convert(known, kind)
        validate(request, stream=stream)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None
    except InvalidRequestError as error:
        raise invalid(error.message, error.param or "") from None
    return _with_defaults(request, stream, fields)


def _with_defaults(
    request: GenerateRequest | EditRequest, stream: bool, fields: dict[str, Any]
) -> ParsedRequest:
    model = request.model or DEFAULT_MODEL
    gpt = is_gpt_image(model)
    output_format = request.output_format or "png"
    width, height = _size_of(request)
    quality = "medium" if gpt else "standard"
    if request.quality not in (None, "auto"):
        quality = request.quality or quality
    compression = request.output_compression
    return ParsedRequest(
        request=request,
        stream=stream,
        model=model,
        n=request.n or 1,
        width=width,
        height=height,
        quality=quality,
        transparent=request.background == "transparent",
        output_format=output_format,
        compression=100 if compression is None else compression,
        partial_images=request.partial_images or 0,
        by_url=not gpt and request.response_format != "b64_json",
        frame_count=_whole_number(fields, "frame_count", 9, 2, 16),
        frame_duration_ms=_whole_number(fields, "frame_duration_ms", 200, 1, 60_000),
        svg_model=_svg_model(fields),
        safety_identifier=_text(fields, "safety_identifier") or _text(fields, "user"),
    )


def _whole_number(fields: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(f"{name} must be a whole number from {low} to {high}", name)
    return value


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(f"{name} must be a string", name)
    return value


def _svg_model(fields: dict[str, Any]) -> str | None:
    svg = fields.get("svg", {})
    if not isinstance(svg, dict):
        raise invalid("svg must be an object", "svg")
    return _text(svg, "model")


def _size_of(request: GenerateRequest | EditRequest) -> tuple[int, int]:
    if request.size is not None and request.size != "auto":
        width, height = map(int, request.size.split("x"))
        return width, height
    if not isinstance(request, EditRequest):
        return 1024, 1024
    if any(width * height > MAX_PIXELS for width, height in map(pixels_of, request.image)):
        raise invalid(
            f"the local server edits images of at most {MAX_PIXELS:,} pixels; send a smaller one",
            "image",
        )
    return pixels_of(request.image[0])


def pixels_of(image: InputImage) -> tuple[int, int]:
    """Return width and height, or a default if the header does not contain them."""
    return image.pixels or (1024, 1024)


# --- errors -----------------------------------------------------------------


def invalid(message: str, param: str = "") -> GatewayError:
    """Return the gateway's error for a request that is not valid."""
    return GatewayError(500, message, code="invalid_request", param=param)


def unreadable(param: str) -> GatewayError:
    """Return upstream's error for a file that is not an image."""
    return GatewayError(
        400,
        "Invalid image file or mode, please check your image file.",
        code="invalid_image_file",
        param=param,
        kind="invalid_request_error",
    )


def missing(method: str, path: str) -> GatewayError:
    """Return the error for an endpoint that does not exist, or is not implemented here."""
    if path.startswith("/v1/images/"):
        return GatewayError(501, "API not implemented", code="api_not_implemented")
    return GatewayError(404, f"Invalid URL ({method} {path})", kind="invalid_request_error")


def idempotency_key_reused() -> GatewayError:
    """Return the error for an idempotency key that was used with another body."""
    return GatewayError(
        422,
        "This Idempotency-Key was used with another body",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    )


def idempotency_key_in_flight() -> GatewayError:
    """Return the error for an idempotency key whose request is not finished."""
    return GatewayError(
        409,
        "A request with the same idempotency key is in flight",
        code="idempotency_key_in_flight",
        param="Idempotency-Key",
    )


def too_large() -> GatewayError:
    """Return the error for a body over the limit."""
    return GatewayError(413, "The body is larger than 128 MiB", code="read_request_body_failed")
