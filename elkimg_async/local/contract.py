"""The gateway's side of the contract: what was asked → the answer to script.

Nothing here waits, paints or touches a socket. Section numbers in comments are
those of the contract that the client is written against.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pybase64

from elkimg_async.errors import InvalidRequestError
from elkimg_async.local.script import ScriptedResponse
from elkimg_async.sansio.image_headers import InputImage
from elkimg_async.sansio.model_rules import MODELS, is_gpt_image, validate
from elkimg_async.sansio.requests import DEFAULT_MODEL, EditRequest, GenerateRequest

REQUEST_ID = "X-Oneapi-Request-Id"
BODY_LIMIT = 128 * 1024 * 1024
PARTIAL_IMAGE_TOKENS = 100
"""What each partial image costs in output tokens."""

MOST_PIXELS = 40_000_000
"""What a picture to be edited may have; a stand-in need not take more."""

_TOKENS = {"low": 272, "standard": 1_056, "medium": 1_056, "high": 4_160, "hd": 4_160}
_PING = b": PING\n\n"
_DONE = b"data: [DONE]\n\n"
_PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>elkimg local server</title>
<h1>elkimg local server</h1>
<p>A stand-in for an image API, not a model. The API itself is under <code>/v1</code>.</p>
</html>
"""


class GatewayError(Exception):
    """The gateway says no; becomes an answer in its error shape (section 5)."""

    def __init__(
        self, status: int, message: str, *, code: str = "", param: str = "", kind: str = "api_error"
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.code, self.param, self.kind = code, param, kind


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is in order, with every default filled in."""

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

    @property
    def event(self) -> str:
        """What the types of its events begin with."""
        return "image_edit" if isinstance(self.request, EditRequest) else "image_generation"

    @property
    def described(self) -> dict[str, str]:
        """What stands beside the image in answers and events."""
        return {
            "background": "transparent" if self.transparent else "opaque",
            "output_format": self.output_format,
            "quality": self.quality,
            "size": f"{self.width}x{self.height}",
        }


class GeneratedImages(msgspec.Struct, frozen=True, kw_only=True):
    """What was made for an order. `created` is a Unix time; `urls` stand in for `images` if asked for."""

    created: int
    images: tuple[bytes, ...]
    partials: tuple[bytes, ...] = ()
    urls: tuple[str, ...] = ()


# --- what was asked ---------------------------------------------------------


def check_key(headers: Mapping[str, str], api_key: str) -> None:
    """Raise `GatewayError` unless the Bearer key is the one expected."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or key.strip() != api_key:
        raise GatewayError(401, "Invalid token: the API key is missing or unknown")


def parse_generation(body: bytes) -> ParsedRequest:
    """The order in the body of POST /v1/images/generations; keys that are not known are dropped.

    Raises:
        GatewayError: by the client; the status and code are the gateway's.
    """
    return parse_fields(_fields(body), GenerateRequest)


def parse_fields(
    fields: dict[str, Any], kind: type[GenerateRequest] | type[EditRequest]
) -> ParsedRequest:
    """The order in the fields of a body, which are those of `kind` and `stream`; others are dropped.

    Raises:
        GatewayError: by the client; the status and code are the gateway's.
    """
    model = fields.get("model") or DEFAULT_MODEL
    if isinstance(model, str) and model not in MODELS:
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
    return _resolved(request, stream)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise invalid("the body must be a JSON object")
    return {name: value for name, value in fields.items() if value is not None}


def invalid(message: str, param: str = "") -> GatewayError:
    return GatewayError(500, message, code="invalid_request", param=param)


def _resolved(request: GenerateRequest | EditRequest, stream: bool) -> ParsedRequest:
    model = request.model or DEFAULT_MODEL
    gpt = is_gpt_image(model)
    output_format = request.output_format or "png"
    if output_format == "svg":
        raise invalid("this stand-in draws no svg; choose another output_format", "output_format")
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
    )


def _size_of(request: GenerateRequest | EditRequest) -> tuple[int, int]:
    if request.size is not None and request.size != "auto":
        width, height = map(int, request.size.split("x"))
        return width, height
    if not isinstance(request, EditRequest):
        return 1024, 1024
    if any(width * height > MOST_PIXELS for width, height in map(_pixels, request.image)):
        raise invalid(
            f"this stand-in edits no picture of more than {MOST_PIXELS:,} pixels", "image"
        )
    return _pixels(request.image[0])


def _pixels(image: InputImage) -> tuple[int, int]:
    return image.pixels or (1024, 1024)


# --- what is answered -------------------------------------------------------


def success_response(
    parsed: ParsedRequest,
    result: GeneratedImages,
    headers: Mapping[str, str],
    *,
    stream: bool,
    delay: float = 0.0,
) -> ScriptedResponse:
    """The result as JSON or as a stream, whatever the order asked for; `delay` is in seconds."""
    if stream:
        return ScriptedResponse(
            headers={
                **headers,
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
            },
            frames=(_PING, *_events(parsed, result), _DONE),
            framing="chunked",
            delay=delay,
        )
    items: list[dict[str, str]] = [_shown(result, index) for index in range(len(result.images))]
    if parsed.model == "dall-e-3":
        items = [{"revised_prompt": parsed.request.prompt, **item} for item in items]
    value = {
        "created": result.created,
        "data": items,
        **parsed.described,
        "usage": usage(parsed),
    }
    return json_response(value, headers, delay=delay)


def _events(parsed: ParsedRequest, result: GeneratedImages) -> list[bytes]:
    """Section 4: the partial images, then a completed event for each image, each with the whole usage."""
    side = {"created_at": result.created, **parsed.described}
    partials = [
        {"b64_json": _base64(partial), **side, "partial_image_index": index}
        for index, partial in enumerate(result.partials)
    ]
    completed = [
        {**_shown(result, index), **side, "usage": usage(parsed)}
        for index in range(len(result.images))
    ]
    return [
        *(event(f"{parsed.event}.partial_image", fields) for fields in partials),
        *(event(f"{parsed.event}.completed", fields) for fields in completed),
    ]


def event(name: str, fields: Mapping[str, Any]) -> bytes:
    """One server-sent event, its name in the `event:` line and in the JSON."""
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        msgspec.json.encode({"type": name, **fields}),
    )


def _shown(result: GeneratedImages, index: int) -> dict[str, str]:
    if result.urls:
        return {"url": result.urls[index]}
    return {"b64_json": _base64(result.images[index])}


def _base64(content: bytes) -> str:
    return pybase64.b64encode_as_string(content)


def usage(parsed: ParsedRequest) -> dict[str, Any]:
    """Tokens that add up: about four characters of text each, images by quality and size.

    Pictures that came in count by tiles of 512 pixels, and a faithful edit counts the first once more.
    """
    text = max(1, math.ceil(len(parsed.request.prompt) / 4))
    area = parsed.width * parsed.height / (1024 * 1024)
    seen = 0
    if isinstance(parsed.request, EditRequest):
        counted = [_picture_tokens(image) for image in parsed.request.image]
        seen = sum(counted) + (counted[0] if parsed.request.input_fidelity == "high" else 0)
    each = round(_TOKENS.get(parsed.quality, 4_160) * area)
    made = each * parsed.n + PARTIAL_IMAGE_TOKENS * parsed.partial_images
    return {
        "total_tokens": text + seen + made,
        "input_tokens": text + seen,
        "output_tokens": made,
        "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
    }


def _picture_tokens(image: InputImage) -> int:
    width, height = _pixels(image)
    return 65 + 129 * math.ceil(width / 512) * math.ceil(height / 512)


def json_response(
    value: object, headers: Mapping[str, str], *, status: int = 200, delay: float = 0.0
) -> ScriptedResponse:
    """Any value as JSON."""
    return ScriptedResponse(
        status=status,
        headers={**headers, "Content-Type": "application/json"},
        frames=(msgspec.json.encode(value),),
        delay=delay,
    )


def error_value(error: GatewayError, headers: Mapping[str, str]) -> dict[str, Any]:
    """The gateway's error shape; its messages end in the request id."""
    return {
        "error": {
            "message": f"{error.message} (request id: {headers.get(REQUEST_ID, '')})",
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: GatewayError, headers: Mapping[str, str]) -> ScriptedResponse:
    """A error with its status."""
    return json_response(error_value(error, headers), headers, status=error.status)


def models_response(headers: Mapping[str, str]) -> ScriptedResponse:
    """GET /v1/models, in OpenAI's list shape; the gateway adds which endpoints a model serves."""
    models: Sequence[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "elkimg-local",
            "supported_endpoint_types": ["image-generation"],
        }
        for name in MODELS
    ]
    return json_response({"object": "list", "data": models}, headers)


def page_response(headers: Mapping[str, str]) -> ScriptedResponse:
    """What the gateway says outside /v1, to any method: 200 and a web page (section 3)."""
    return ScriptedResponse(
        headers={**headers, "Content-Type": "text/html; charset=utf-8"}, frames=(_PAGE,)
    )


def image_response(
    content: bytes, output_format: str, headers: Mapping[str, str]
) -> ScriptedResponse:
    """The file behind the URL of an image."""
    return ScriptedResponse(
        headers={**headers, "Content-Type": f"image/{output_format}"}, frames=(content,)
    )


def rate_limit_headers(limit: int, remaining: int, reset: float) -> dict[str, str]:
    """The `x-ratelimit-*` headers; `reset` is in seconds until the allowance is whole again."""
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": duration(reset),
    }


def duration(seconds: float) -> str:
    """Seconds as the text that rate-limit headers use: `6m30s`, `59.5s`."""
    minutes, rest = divmod(max(0.0, round(seconds, 3)), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"


# --- other refusals ---------------------------------------------------------


def missing(method: str, path: str) -> GatewayError:
    """No such endpoint; those of images that the real gateway has are not implemented here."""
    if path.startswith("/v1/images/"):
        return GatewayError(501, "API not implemented", code="api_not_implemented")
    return GatewayError(404, f"Invalid URL ({method} {path})", kind="invalid_request_error")


def reused_key() -> GatewayError:
    return GatewayError(
        422,
        "This Idempotency-Key was used with another body",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    )


def key_in_flight() -> GatewayError:
    return GatewayError(
        409,
        "A request with the same idempotency key is in flight",
        code="idempotency_key_in_flight",
        param="Idempotency-Key",
    )


def too_large() -> GatewayError:
    return GatewayError(413, "The body is larger than 128 MiB", code="read_request_body_failed")
