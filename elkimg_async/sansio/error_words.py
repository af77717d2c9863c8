"""The server's own words about an error, found in any shape that servers use.

`read_words` finds the message, code, type and parameter; `strength` rates how certainly a document
received with status 200 is an error; `pending_task` recognizes asynchronous jobs.
"""

import re
from typing import Any

import msgspec

from elkimg_async.sansio.reading import read_str

_MAX_DEPTH = 8
# Fields in which an error may be nested, the most specific first.
_CONTAINERS = (
    *("error", "errors", "Error", "err", "detail", "details", "response"),
    *("output", "result", "data", "status", "fault", "exception"),
)
_MESSAGES = (
    *(
        "message",
        "msg",
        "error_msg",
        "error_message",
        "errorMessage",
        "Message",
        "errmsg",
        "err_msg",
    ),
    *("errorMsg", "error_description", "detail", "description", "reason", "title"),
    *("fail_reason", "failReason", "failure_reason", "failed_reason", "error_detail"),
)
_MESSAGE_KEYS = {*_MESSAGES}
_CODES = (
    "code",
    "error_code",
    "errorCode",
    "Code",
    "errcode",
    "err_code",
    "status_code",
    "statusCode",
)
_TYPES = ("type", "error_type", "errorType", "Type", "__type")
_PARAMS = ("param", "parameter", "field")
_ERROR_TYPES = {"error", "upstream_error"}
_FAILED = re.compile(r"(?:^|[._-])(?:failed|error|errored)$", re.IGNORECASE)
_ONE_OF_SEVERAL = re.compile(r"(?:partial|image|item)[._-](?:failed|error)$", re.IGNORECASE)
_FINE = {"", "0", "ok", "success", "succeeded", "none", "null", "successful"}
_FINE_CODES = _FINE | {"200", "201", "202", "10000", "20000", "000000"}
_PENDING = re.compile(
    r"^(?:submitted|pending|queued|in_?queue|waiting|processing|running|starting|started|in_?progress|created"
    r"|accepted|not_?start(?:ed)?)$",
    re.IGNORECASE,
)
_TASK_IDS = (
    "task_id",
    "taskId",
    "job_id",
    "jobId",
    "prediction_id",
    "generation_id",
    "generationId",
)


class Words(msgspec.Struct):
    """A server's description of an error; None or "" for what it does not say."""

    message: str = ""
    code: str | None = None
    type: str | None = None
    param: str | None = None
    moderation: Any = None

    @property
    def empty(self) -> bool:
        """Whether the server said nothing."""
        return not (self.message or self.code or self.type)


def read_words(value: Any, depth: int = 0) -> Words:
    """Return the words of an error, wherever in the document they are."""
    if depth > _MAX_DEPTH:
        return Words()
    if isinstance(value, str):
        return Words("" if value.lstrip().startswith("<") else (read_str(value) or "").strip())
    if isinstance(value, list):
        return _words_of_list(value, depth)
    if not isinstance(value, dict):
        return Words()
    own = _own_words(value, depth)
    for name in _CONTAINERS:
        inner = value.get(name)
        if not inner or (name in ("data", "output", "result") and isinstance(inner, str)):
            continue
        if isinstance(inner, str) and own.message:
            # {"error": "Bad Request", "message": "…"}: the name of the error beside its message.
            if name in ("error", "Error") and own.type is None:
                own.type = inner
            continue
        found = read_words(inner, depth + 1)
        if not found.message and not (name in ("error", "errors") and not found.empty):
            continue
        return Words(
            found.message or own.message,
            found.code or own.code,
            found.type or own.type,
            found.param or own.param,
            found.moderation if found.moderation is not None else own.moderation,
        )
    return own


def _own_words(value: dict[str, Any], depth: int) -> Words:
    """Return the words in the fields of an object itself."""
    message = ""
    for name in _MESSAGES:
        inner = value.get(name)
        if inner and isinstance(inner, (str, list, dict)):
            message = read_words(inner, depth + 1).message
        if message:
            break
    code = next((code for name in _CODES if (code := _label(value.get(name)))), None)
    type_ = next((kind for name in _TYPES if (kind := _label(value.get(name)))), None)
    status = value.get("status")
    if type_ is None and isinstance(status, str) and not status.isdigit():
        type_ = status  # Google: {"code": 400, "status": "INVALID_ARGUMENT"}
    param = next((param for name in _PARAMS if (param := _label(value.get(name)))), None)
    if param is None and isinstance(value.get("loc"), list):
        param = ".".join(str(part) for part in value["loc"]) or None
    return Words(message, code, type_, param, value.get("moderation_details"))


def _words_of_list(items: list[Any], depth: int) -> Words:
    """Return the messages of several errors as one; the other words are those of the first."""
    found = [words for item in items[:20] if (words := read_words(item, depth + 1)).message]
    if not found:
        return Words()
    messages = list(dict.fromkeys(words.message for words in found))
    first = found[0]
    return Words("; ".join(messages), first.code, first.type, first.param, first.moderation)


def _label(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**9 else None
    return read_str(value)


def says_something(error: Any, depth: int = 0) -> bool:
    """Return whether an `error` field is an error: not null, empty, or a report of success."""
    if depth > _MAX_DEPTH:
        return True
    if isinstance(error, str):
        return error.strip().lower() not in _FINE
    if isinstance(error, dict):
        words = _own_words(error, _MAX_DEPTH - 1)
        is_fine = (words.code or "").lower() in _FINE_CODES
        if is_fine and words.message.lower() in _FINE and not words.type:
            others = (value for name, value in error.items() if name not in (*_CODES, *_MESSAGES))
            return any(says_something(value, depth + 1) for value in others)
        return True
    if isinstance(error, list):
        return any(says_something(item, depth + 1) for item in error)
    return bool(error)


def is_item_failure(name: str | None) -> bool:
    """Return whether an event of this type reports the failure of one image of several."""
    return name is not None and _ONE_OF_SEVERAL.search(name) is not None


def strength(value: Any, name: str | None = None) -> int:
    """Return how certainly a document that was received as a success is an error.

    0: no error; 1: an error unless images arrive; 2: always an error. `name` is the type
    of the event that contains it.
    """
    if isinstance(value, list):
        return max((strength(item) for item in value[:20] if not _is_quiet(item)), default=0)
    if not isinstance(value, dict):
        return 0
    types = (name, value.get("type"))
    if any(
        isinstance(kind, str) and (kind in _ERROR_TYPES or _FAILED.search(kind)) for kind in types
    ):
        return 2
    if any(says_something(value.get(key)) for key in ("error", "errors", "Error")):
        return 2
    if value.get("object") == "error" or value.get("success") in (False, "false"):
        return 2
    if any(_has_failed(value.get(key)) for key in ("status", "state", "task_status")):
        return 2
    nested = (value.get(key) for key in ("output", "result", "response", "data"))
    if any(isinstance(inner, dict) and strength(inner) == 2 for inner in nested):
        return 2
    if _MESSAGE_KEYS.isdisjoint(value):
        return 0
    words = _own_words(value, 0)
    if not words.message or words.message.lower() in _FINE:
        return 0
    if (words.code or "").lower() in _FINE_CODES and words.code is not None:
        return 0
    certain = words.code is not None or ("detail" in value and "type" not in value)
    return 2 if certain else 1


def _is_quiet(item: Any) -> bool:
    return not isinstance(item, dict) or not says_something(item.get("error"))


def _has_failed(status: Any) -> bool:
    return isinstance(status, str) and status.lower() in ("failed", "failure", "error", "fail")


def pending_task(value: Any, depth: int = 0) -> tuple[str, str | None] | None:
    """Return the id and status of the asynchronous job that a document describes, or None."""
    if depth > 3:
        return None
    if isinstance(value, list):
        found = (pending_task(item, depth + 1) for item in value[:4])
        return next((task for task in found if task), None)
    if not isinstance(value, dict):
        return None
    status = next(
        (
            said
            for key in ("status", "task_status", "state")
            if isinstance(said := value.get(key), str)
        ),
        None,
    )
    task = next((task for key in _TASK_IDS if (task := _label(value.get(key)))), None)
    if task is None and (
        (status is not None and _PENDING.match(status))
        or "polling_url" in value
        or "status_url" in value
    ):
        task = next(
            (task for key in ("id", "request_id") if (task := _label(value.get(key)))), None
        )
    if task is not None:
        return task, status
    for key in ("data", "output", "result", "task", "response"):
        if (found_inside := pending_task(value.get(key), depth + 1)) is not None:
            return found_inside
    return None
