"""Effects that imitate other servers: where they put images, and how they report errors."""

from collections.abc import Callable
from typing import Any

import msgspec

from elkimg_async.local.contract import GatewayError
from elkimg_async.local.effects import (
    EffectTable,
    change_json,
    is_event,
    one_of,
    status,
    with_frames,
)
from elkimg_async.local.responses import error_response, event
from elkimg_async.local.script import ScriptedResponse

EFFECTS = EffectTable()
effect = EFFECTS.add


def _flat(value: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """Return a body without `data`, with the image in fields of its own."""
    return {name: value[name] for name in value if name != "data"} | image


def _encoded(item: dict[str, Any]) -> str:
    return str(item.get("b64_json") or item.get("url"))


def _data_url(item: dict[str, Any]) -> str:
    return f"data:image/png;base64,{item['b64_json']}" if "b64_json" in item else item["url"]


_DIALECTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "array": lambda value: value["data"],
    "object": lambda value: {**value, "data": value["data"][0]},
    "images": lambda value: _flat(value, {"images": value["data"]}),
    "strings": lambda value: _flat(value, {"images": [_encoded(i) for i in value["data"]]}),
    "data-images": lambda value: {**value, "data": {"images": value["data"]}},
    "nested": lambda value: _flat(value, {"output": {"result": value["data"]}}),
    "image": lambda value: _flat(value, {"image": _encoded(value["data"][0])}),
    "image-url": lambda value: _flat(value, {"image_url": _data_url(value["data"][0])}),
    "image-base64": lambda value: {
        **value,
        "data": [{"image_base64": _encoded(item)} for item in value["data"]],
    },
    "url-list": lambda value: {**value, "data": [{"url": [_data_url(i) for i in value["data"]]}]},
    "url-in-base64": lambda value: {
        **value,
        "data": [{"b64_json": _data_url(item)} for item in value["data"]],
    },
    "base64-in-url": lambda value: {
        **value,
        "data": [{"url": _encoded(item)} for item in value["data"]],
    },
    "empty-error": lambda value: {**value, "error": {"message": "", "code": None}},
    "task": lambda value: {"task_id": "task-1", "status": "submitted"},
}


@effect(
    "dialect",
    f"JSON in the shape of another server, =NAME: {', '.join(_DIALECTS)}",
    one_of(*_DIALECTS),
    "images",
    stream=False,
)
def _dialect(response: ScriptedResponse, name: str) -> ScriptedResponse:
    return change_json(response, _DIALECTS[name])


@effect(
    "partial-succeeded",
    "finished images as partial_succeeded events, then a completed event with usage only",
    only_streams=True,
)
def _partial_succeeded(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames: list[bytes] = []
    completed: dict[str, Any] = {}
    count = 0
    for frame in response.frames:
        if not is_event(frame, b".completed"):
            frames.append(frame)
            continue
        value: dict[str, Any] = msgspec.json.decode(frame.partition(b"\ndata: ")[2])
        name = str(value.pop("type")).removesuffix(".completed")
        completed[f"{name}.completed"] = {"usage": value.pop("usage", None)}
        frames.append(event(f"{name}.partial_succeeded", {**value, "image_index": count}))
        count += 1
    last = [event(name, fields) for name, fields in completed.items()]
    return with_frames(response, *frames[:-1], *last, *frames[-1:])


@effect("doubled-data", "each event with a doubled `data: data:` prefix", only_streams=True)
def _doubled_data(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames = (frame.replace(b"data: ", b"data: data: ", 1) for frame in response.frames)
    return with_frames(response, *frames)


@effect("ndjson", "one JSON object per line instead of server-sent events", only_streams=True)
def _ndjson(response: ScriptedResponse, _: None) -> ScriptedResponse:
    frames = (
        frame.partition(b"\ndata: ")[2].rstrip() + b"\n"
        for frame in response.frames
        if frame.startswith(b"event:")
    )
    return with_frames(response, *frames)


# --- errors -----------------------------------------------------------------

_MESSAGE = "The prompt was rejected"
_ERROR_BODIES: dict[str, Any] = {
    "string": {"error": _MESSAGE},
    "nested": {"error": {"error": {"message": _MESSAGE, "code": "rejected"}}},
    "array": [{"error": {"code": 400, "message": _MESSAGE, "status": "INVALID_ARGUMENT"}}],
    "errors": {"errors": [_MESSAGE]},
    "errors-objects": {"errors": [{"message": _MESSAGE, "code": "rejected"}]},
    "message": {"message": _MESSAGE, "code": "rejected"},
    "msg": {"msg": _MESSAGE, "code": 1001},
    "error-msg": {"error_msg": _MESSAGE, "error_code": 1001},
    "capitalized": {"Message": _MESSAGE},
    "detail": {"detail": _MESSAGE},
    "detail-error": {"detail": {"error": _MESSAGE}},
    "detail-list": {"detail": [{"loc": ["body", "prompt"], "msg": _MESSAGE}]},
    "object": {"object": "error", "message": _MESSAGE},
    "success": {"success": False, "message": _MESSAGE},
    "problem": {"title": "Bad Request", "detail": _MESSAGE, "status": 400},
    "item": {"created": 1, "data": [{"error": {"message": _MESSAGE, "code": "rejected"}}]},
}


def _shape_and_status(text: str) -> tuple[str, int]:
    name, _, code = text.partition("/")
    return one_of(*_ERROR_BODIES)(name), status(code or "400")


@effect(
    "error-body",
    "an error in the shape of another server, =NAME or =NAME/STATUS (400 by default): "
    f"{', '.join(_ERROR_BODIES)}; nothing is generated",
    _shape_and_status,
    ("message", 400),
    generates=False,
)
def _error_body(response: ScriptedResponse, shape: tuple[str, int]) -> ScriptedResponse:
    headers = {**response.headers, "Content-Type": "application/json"}
    body = msgspec.json.encode(_ERROR_BODIES[shape[0]])
    return ScriptedResponse(status=shape[1], headers=headers, frames=(body,))


@effect("status-402", "402, out of credit; nothing is generated", generates=False)
def _status_402(response: ScriptedResponse, _: None) -> ScriptedResponse:
    error = GatewayError(402, "Insufficient credits", code="insufficient_credits")
    return error_response(error, response.headers)


_CHALLENGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Attention Required! | Proxy</title>
<h1>Sorry, you have been blocked</h1>
</html>
"""


@effect(
    "web-page",
    "the web page of a proxy in front of the API, 403 or =STATUS; nothing is generated",
    status,
    403,
    generates=False,
)
def _web_page(response: ScriptedResponse, code: int) -> ScriptedResponse:
    # The proxy never passed the request on, so there is no request id of the API either.
    headers = {"Server": "proxy", "Content-Type": "text/html; charset=utf-8"}
    return ScriptedResponse(status=code, headers=headers, frames=(_CHALLENGE,))
