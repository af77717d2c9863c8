"""The gateway's contract: fields are parsed, or rejected with the gateway's error.

Nothing here waits, paints or uses a socket.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from elkimg_async.errors import InvalidRequestError
from elkimg_async.local.painter import ImageSpec
from elkimg_async.sansio.image_headers import InputImage
from elkimg_async.sansio.model_rules import is_gpt_image, rules_for, validate
from elkimg_async.sansio.requests import DEFAULT_MODEL, EditRequest, GenerateRequest

MAX_FRAME_DURATION = 60_000
"""Limit for a frame of an animation, in milliseconds."""
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


class ParsedRequest(ImageSpec, frozen=True, kw_only=True):
    """A valid request with every default filled in: what to paint, and how to send it."""

    request: GenerateRequest | EditRequest
    stream: bool
    model: str
    n: int
    quality: str
    by_url: bool
    svg_model: str | None = None
    safety_identifier: str | None = None

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
    return {name: value for name, value in decode_object(body).items() if value is not None}


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a body; raise `GatewayError` if it is not a JSON object."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object")
    return fields


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
    # The gateway passes null on and drops unknown fields, but a string here, or a fraction for `n`,
    # fails the whole request.
    stream = fields.pop("stream", False)
    if not isinstance(stream, bool):
        raise invalid("stream must be a JSON boolean", "stream")
    if "prompt" not in fields:
        raise invalid("prompt is required", "prompt")
    known = {name: fields[name] for name in kind.__struct_fields__ if name in fields}
    known.pop("extra_body", None)  # an option of the client, which no server knows
    # These models always return base64; the service behind the gateway does not know the parameter.
    if is_gpt_image(str(model)) and "response_format" in known:
        message = "Unknown parameter: 'response_format'."
        raise rejected_upstream(message, "unknown_parameter", "response_format")
    try:
        request = msgspec.convert(known, kind)
        validate(request, stream=stream)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from None
    except InvalidRequestError as error:
        raise invalid(error.message, error.param or "") from None
    return _with_defaults(request, stream)


def _with_defaults(request: GenerateRequest | EditRequest, stream: bool) -> ParsedRequest:
    model = request.model or DEFAULT_MODEL
    gpt = is_gpt_image(model)
    width, height = _size_of(request)
    quality = request.quality
    if quality is None or quality == "auto":
        quality = "medium" if gpt else "standard"
    compression = request.output_compression
    duration = request.frame_duration_ms or 200
    if duration > MAX_FRAME_DURATION:
        raise invalid(
            f"frame_duration_ms must be at most {MAX_FRAME_DURATION}", "frame_duration_ms"
        )
    return ParsedRequest(
        prompt=request.prompt,
        request=request,
        stream=stream,
        model=model,
        n=request.n or 1,
        width=width,
        height=height,
        quality=quality,
        transparent=request.background == "transparent",
        output_format=request.output_format or "png",
        # 0 is a compression, so only None means the default.
        compression=100 if compression is None else compression,
        partial_images=request.partial_images or 0,
        # The dall-e models return URLs unless base64 is requested; the others have no choice.
        by_url=not gpt and request.response_format != "b64_json",
        frame_count=request.frame_count or 9,
        frame_duration_ms=duration,
        svg_model=request.svg.get("model") if request.svg else None,
        safety_identifier=request.safety_identifier or request.user,
    )


def _size_of(request: GenerateRequest | EditRequest) -> tuple[int, int]:
    if request.size is not None and request.size != "auto":
        width, height = map(int, request.size.split("x"))
        return width, height
    if not isinstance(request, EditRequest):
        return 1024, 1024
    # An edit without a size keeps that of the first image.
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
    # 500 is what the gateway returns for its own checks; 400 comes from the service behind it.
    return GatewayError(500, message, code="invalid_request", param=param)


def rejected_upstream(message: str, code: str, param: str) -> GatewayError:
    """Return the error of the service behind the gateway, which has statuses of its own."""
    return GatewayError(400, message, code=code, param=param, kind="invalid_request_error")


def unreadable(param: str) -> GatewayError:
    """Return upstream's error for a file that is not an image."""
    message = "Invalid image file or mode, please check your image file."
    return rejected_upstream(message, "invalid_image_file", param)


def missing(method: str, path: str) -> GatewayError:
    """Return the error for an endpoint that does not exist, or is not implemented here."""
    if path.startswith("/v1/images/"):  # such as /variations, which has been retired
        return GatewayError(501, "API not implemented", code="api_not_implemented")
    return GatewayError(404, f"Invalid URL ({method} {path})", kind="invalid_request_error")
