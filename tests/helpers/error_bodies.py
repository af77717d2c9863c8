"""Error bodies, and the errors they become."""

import json
from typing import Any

from elkimg_async.errors import (
    APIError,
)
from elkimg_async.sansio import error_mapping

NOW = 1_700_000_000.0
WORDS = "the size is not offered"
# A body, and the code and type in it; the message is always `WORDS`.
SHAPES: dict[str, tuple[Any, str | None, str | None]] = {
    "error": ({"error": {"message": WORDS, "type": "t", "param": "size", "code": "c"}}, "c", "t"),
    "error with a number": ({"error": {"message": WORDS, "code": 1113}}, "1113", None),
    "error as text": ({"error": WORDS}, None, None),
    "error in an error": ({"error": {"error": WORDS}}, None, None),
    "error object in an error": ({"error": {"error": {"message": WORDS, "code": "c"}}}, "c", None),
    "Google": (
        [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}],
        "400",
        "INVALID_ARGUMENT",
    ),
    "errors as text": ({"errors": [WORDS]}, None, None),
    "errors": (
        {"success": False, "errors": [{"code": 7003, "message": WORDS}], "result": None},
        "7003",
        None,
    ),
    "message and code": ({"message": WORDS, "code": "c"}, "c", None),
    "msg and code": ({"msg": WORDS, "code": 1}, "1", None),
    "error.msg": ({"error": {"msg": WORDS}}, None, None),
    "message as a list": ({"error": {"message": [WORDS]}}, None, None),
    "error_msg": ({"error_msg": WORDS, "error_code": 6}, "6", None),
    "Message": ({"Message": WORDS}, None, None),
    "detail": ({"detail": WORDS}, None, None),
    "detail.message": ({"detail": {"message": WORDS}}, None, None),
    "detail.error": ({"detail": {"error": WORDS}}, None, None),
    "detail.error.message": ({"detail": {"error": {"message": WORDS, "code": "c"}}}, "c", None),
    "details of FastAPI": (
        {"detail": [{"loc": ["body", "size"], "msg": WORDS, "type": "enum"}]},
        None,
        "enum",
    ),
    "object error": (
        {"object": "error", "message": WORDS, "type": "BadRequestError", "code": 400},
        "400",
        "BadRequestError",
    ),
    "success false": ({"success": False, "message": WORDS}, None, None),
    "problem": (
        {"type": "about:blank", "title": "Bad", "detail": WORDS, "status": 400},
        None,
        "about:blank",
    ),
    "problem with a title": (
        {"type": "about:blank", "title": WORDS, "status": 400},
        None,
        "about:blank",
    ),
    "item": ({"created": 1, "data": [{"error": {"code": "c", "message": WORDS}}]}, "c", None),
    "failed event": (
        {"type": "image_generation.failed", "error": {"message": WORDS, "code": "c"}},
        "c",
        None,
    ),
    "failed response": (
        {"type": "response.failed", "response": {"error": {"code": "c", "message": WORDS}}},
        "c",
        None,
    ),
    "OAuth": ({"error": "invalid_token", "error_description": WORDS}, None, "invalid_token"),
    "name beside a message": (
        {"statusCode": 400, "error": "Bad Request", "message": WORDS},
        "400",
        "Bad Request",
    ),
    "error true": ({"error": True, "message": WORDS}, None, None),
    "DashScope": ({"output": {"task_status": "FAILED", "code": "c", "message": WORDS}}, "c", None),
    "null beside": ({"error": None, "message": WORDS}, None, None),
    "empty beside": ({"error": {}, "message": WORDS}, None, None),
    "GraphQL": ({"errors": [{"message": WORDS, "extensions": {"code": "c"}}]}, "c", None),
    "Volcano Engine": ({"ResponseMetadata": {"Error": {"Code": "c", "Message": WORDS}}}, "c", None),
    "Tencent": ({"Response": {"Error": {"Code": "c", "Message": WORDS}}}, "c", None),
    "MiniMax": ({"base_resp": {"status_code": 1004, "status_msg": WORDS}}, "1004", None),
    "iFlytek": ({"header": {"code": 10013, "message": WORDS}, "payload": None}, "10013", None),
    "meta": ({"meta": {"code": 400, "message": WORDS}}, "400", None),
    "fault": ({"fault": {"faultstring": WORDS}}, None, None),
    "exception": ({"exception": WORDS}, None, None),
    "err": ({"err": WORDS, "code": "c"}, "c", None),
    "status as an object": ({"status": {"code": 400, "message": WORDS}}, "400", None),
    "retcode": ({"retcode": "c", "retmsg": WORDS}, "c", None),
    "resultCode": ({"resultCode": "c", "resultMsg": WORDS}, "c", None),
    "failCode": (
        {
            "code": 200,
            "msg": "success",
            "data": {"state": "fail", "failMsg": WORDS, "failCode": "c"},
        },
        "c",
        None,
    ),
    "last_error": ({"status": "failed", "last_error": {"message": WORDS, "code": "c"}}, "c", None),
    "error_info": ({"error_info": {"message": WORDS, "code": "c"}}, "c", None),
    "capitals": ({"ERROR": {"MESSAGE": WORDS, "CODE": "c"}}, "c", None),
    "JSON in a string": ({"error": json.dumps({"message": WORDS, "code": "c"})}, "c", None),
    "JSON in a message": (
        {"error": {"message": json.dumps({"error": {"message": WORDS, "code": "c"}})}},
        "c",
        None,
    ),
    "problem without a code": ({"title": "Bad", "detail": WORDS, "status": 400}, None, None),
    "XML": (f"<Error><Code>c</Code><Message>{WORDS}</Message></Error>", "c", None),
}


def error_of(status: int, body: bytes | str = b"", **headers: str) -> APIError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body.encode() if isinstance(body, str) else body
    found = error_mapping.response_error(status, named, raw, now=NOW)
    assert isinstance(found, APIError)
    assert found.status == status
    return found


def api_body(code: Any, message: str = "no", **more: Any) -> str:
    return json.dumps({"error": {"message": message, "code": code, **more}}, ensure_ascii=False)
