"""Error bodies, and the errors they become."""

import json
from typing import Any

from elkimg_async.errors import (
    APIError,
)
from elkimg_async.sansio import error_mapping

NOW = 1_700_000_000.0


def error_of(status: int, body: bytes | str = b"", **headers: str) -> APIError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body.encode() if isinstance(body, str) else body
    found = error_mapping.response_error(status, named, raw, now=NOW)
    assert isinstance(found, APIError)
    assert found.status == status
    return found


def api_body(code: Any, message: str = "no", **more: Any) -> str:
    return json.dumps({"error": {"message": message, "code": code, **more}}, ensure_ascii=False)
