"""Responses of the gateway: images, errors, models, rate-limit headers.

Nothing here waits, paints or touches a socket.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from pybase64 import b64encode_as_string

from elkimg_async.local.contract import GatewayError, ParsedRequest, pixels_of
from elkimg_async.local.script import ScriptedResponse
from elkimg_async.sansio.image_headers import InputImage
from elkimg_async.sansio.model_rules import MODELS
from elkimg_async.sansio.requests import EditRequest

REQUEST_ID = "X-Oneapi-Request-Id"
PARTIAL_IMAGE_TOKENS = 100
"""Output tokens per partial image."""

_TOKENS = {"low": 272, "standard": 1_056, "medium": 1_056, "high": 4_160, "hd": 4_160}
_SHUTDOWN_DATES = {
    "dall-e-2": "2026-05-12",
    "dall-e-3": "2026-05-12",
    "gpt-image-1": "2026-10-23",
    "gpt-image-1-mini": "2026-12-01",
    "gpt-image-1.5": "2026-12-01",
    "chatgpt-image-latest": "2026-12-01",
}
_PING = b": PING\n\n"
_DONE = b"data: [DONE]\n\n"
_PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>elkimg local server</title>
<h1>elkimg local server</h1>
<p>An image API for development, without a model. The API itself is under <code>/v1</code>.</p>
</html>
"""


class GeneratedImages(msgspec.Struct, frozen=True, kw_only=True):
    """The images of a request.

    `created` is a Unix time. `urls` is empty unless the request wants URLs instead of base64.
    """

    created: int
    images: tuple[bytes, ...]
    partials: tuple[bytes, ...] = ()
    urls: tuple[str, ...] = ()


def success_response(
    parsed: ParsedRequest,
    result: GeneratedImages,
    headers: Mapping[str, str],
    *,
    stream: bool,
    delay: float = 0.0,
) -> ScriptedResponse:
    """Return the images as JSON or as a stream; `delay` is in seconds."""
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
    items = _image_fields(result)
    if parsed.model == "dall-e-3":
        items = [{"revised_prompt": parsed.prompt, **item} for item in items]
    value = {"created": result.created, "data": items, **parsed.described, "usage": usage(parsed)}
    if parsed.output_format == "svg":
        value["svg_usage"] = _svg_usage(parsed, result)
    return json_response(value, headers, delay=delay)


def _events(parsed: ParsedRequest, result: GeneratedImages) -> list[bytes]:
    """Partial images, then a completed event per image, each with the whole usage."""
    side = {"created_at": result.created, **parsed.described}
    kind = "image_edit" if isinstance(parsed.request, EditRequest) else "image_generation"
    partials = [
        event(
            f"{kind}.partial_image",
            {"b64_json": b64encode_as_string(partial), **side, "partial_image_index": index},
        )
        for index, partial in enumerate(result.partials)
    ]
    completed = [
        event(f"{kind}.completed", {**image, **side, "usage": usage(parsed)})
        for image in _image_fields(result)
    ]
    return partials + completed


def event(name: str, fields: Mapping[str, Any]) -> bytes:
    """Encode one server-sent event, with its name in the `event:` line and in the JSON."""
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        msgspec.json.encode({"type": name, **fields}),
    )


def _image_fields(result: GeneratedImages) -> list[dict[str, str]]:
    if result.urls:
        return [{"url": url} for url in result.urls]
    return [{"b64_json": b64encode_as_string(image)} for image in result.images]


def usage(parsed: ParsedRequest) -> dict[str, Any]:
    """Return plausible token counts that add up.

    A token is about four characters of text. Images that come in count by tiles of 512 pixels,
    and the first one twice when `input_fidelity` is high.
    """
    text = max(1, math.ceil(len(parsed.prompt) / 4))
    area = parsed.width * parsed.height / (1024 * 1024)
    image_input = 0
    if isinstance(parsed.request, EditRequest):
        counted = [_input_tokens(image) for image in parsed.request.image]
        image_input = sum(counted) + (counted[0] if parsed.request.input_fidelity == "high" else 0)
    per_image = round(_TOKENS.get(parsed.quality, 4_160) * area)
    output = per_image * parsed.n + PARTIAL_IMAGE_TOKENS * parsed.partial_images
    return {
        "total_tokens": text + image_input + output,
        "input_tokens": text + image_input,
        "output_tokens": output,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image_input},
    }


def _input_tokens(image: InputImage) -> int:
    width, height = pixels_of(image)
    return 65 + 129 * math.ceil(width / 512) * math.ceil(height / 512)


def _svg_usage(parsed: ParsedRequest, result: GeneratedImages) -> dict[str, Any]:
    text = max(1, math.ceil(len(parsed.prompt) / 4))
    output = math.ceil(sum(map(len, result.images)) / 4)
    return {
        "model": parsed.svg_model or "local-svg",
        "input_tokens": text,
        "output_tokens": output,
        "reasoning_tokens": 0,
        "total_tokens": text + output,
    }


def json_response(
    value: object, headers: Mapping[str, str], *, status: int = 200, delay: float = 0.0
) -> ScriptedResponse:
    return ScriptedResponse(
        status=status,
        headers={**headers, "Content-Type": "application/json"},
        frames=(msgspec.json.encode(value),),
        delay=delay,
    )


def error_value(error: GatewayError, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return an error in the gateway's shape; messages end in the request id."""
    return {
        "error": {
            "message": f"{error.message} (request id: {headers.get(REQUEST_ID, '')})",
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: GatewayError, headers: Mapping[str, str]) -> ScriptedResponse:
    return json_response(error_value(error, headers), headers, status=error.status)


def models_response(headers: Mapping[str, str]) -> ScriptedResponse:
    """Return the models in OpenAI's list shape, with the endpoint types that the gateway adds."""
    models = [
        {
            "id": name,
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "elkimg-local",
            "supported_endpoint_types": ["image-generation"],
            "shutdown_date": _SHUTDOWN_DATES.get(name),
        }
        for name in MODELS
    ]
    return json_response({"object": "list", "data": models}, headers)


def page_response(headers: Mapping[str, str]) -> ScriptedResponse:
    """Return the web page that the gateway serves, with status 200, for every path outside /v1."""
    return ScriptedResponse(
        headers={**headers, "Content-Type": "text/html; charset=utf-8"}, frames=(_PAGE,)
    )


def image_response(
    content: bytes, output_format: str, headers: Mapping[str, str]
) -> ScriptedResponse:
    """Return the file behind the URL of an image."""
    subtype = "svg+xml" if output_format == "svg" else output_format
    return ScriptedResponse(
        headers={**headers, "Content-Type": f"image/{subtype}"}, frames=(content,)
    )


def duration(seconds: float) -> str:
    """Format seconds as rate-limit headers do: `6m30s`, `59.5s`."""
    minutes, rest = divmod(max(0.0, round(seconds, 3)), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
