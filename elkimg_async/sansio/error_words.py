"""The server's own words about an error, found in any shape that servers use.

`read_words` finds the message, code, type and parameter; `strength` rates how certainly a document
received with status 200 is an error; `pending_task` recognizes asynchronous jobs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from elkimg_async.sansio.reading import read_str

_MAX_DEPTH = 8
# The names of fields, in lower case and without punctuation. First those in which an error may be
# nested, the most specific first.
_CONTAINERS = (
    *("error", "errors", "err", "detail", "details", "errorinfo", "lasterror", "responsemetadata"),
    *("response", "output", "result", "data", "fault", "exception", "baseresp", "header", "meta"),
    *("promptfeedback", "candidates", "choices", "predictions", "status"),
)
_MESSAGES = (
    *("message", "msg", "errormsg", "errormessage", "errmsg", "statusmsg", "statusmessage"),
    *("failmsg", "failmessage", "retmsg", "resultmsg", "resultmessage", "finishmessage"),
    *("errordescription", "faultstring", "detail", "description", "reason", "title"),
    *("failreason", "failurereason", "failedreason", "errordetail", "blockreasonmessage"),
    *("blockreason", "raifilteredreason"),
)
_MESSAGE_NAMES = {*_MESSAGES}
_CODES = ("code", "errorcode", "errcode", "failcode", "retcode", "resultcode", "statuscode")
_TYPES = ("type", "errortype")
_PARAMS = ("param", "parameter", "field")
_ERROR_NAMES = ("error", "errors", "err", "exception", "fault", "errorinfo", "lasterror")
_BLOCKED = ("raifilteredreason", "blockreason")
_BLOCKED_REASON = re.compile(
    r"safety|prohibit|content_?filter|blocklist|recitation|moderat", re.IGNORECASE
)
_NOT_LETTERS = re.compile(r"[^a-z0-9]")
_XML_MESSAGE = re.compile(r"<(?:\w+:)?Message>(.{1,4000}?)</", re.IGNORECASE | re.DOTALL)
_XML_CODE = re.compile(r"<(?:\w+:)?Code>([\w.-]{1,200})</", re.IGNORECASE)
_STATUS_CODE = re.compile("[45][0-9][0-9]")
_JSON = json.JSONDecoder()
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
_TASK_IDS = ("taskid", "jobid", "predictionid", "generationid")


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

    def or_else(self, other: "Words") -> "Words":
        """Return these words, with those of another description for what they do not say."""
        return Words(
            self.message or other.message,
            self.code or other.code,
            self.type or other.type,
            self.param or other.param,
            other.moderation if self.moderation is None else self.moderation,
        )


def read_words(value: Any, depth: int = 0) -> Words:
    """Return the words of an error, wherever in the document they are."""
    if depth > _MAX_DEPTH:
        return Words()
    if isinstance(value, str):
        return _words_of_text(value, depth)
    if isinstance(value, list):
        return _words_of_list(value, depth)
    if not isinstance(value, dict):
        return Words()
    fields = _plain_fields(value)
    own = _own_words(fields, depth)
    for name in _CONTAINERS:
        inner = fields.get(name)
        if not inner or (name in ("data", "output", "result") and isinstance(inner, str)):
            continue
        if isinstance(inner, str) and own.message:
            # {"error": "Bad Request", "message": "…"}: the name of the error beside its message.
            if name == "error" and own.type is None:
                own.type = inner
            continue
        found = read_words(inner, depth + 1)
        if not found.message and not (name in ("error", "errors") and not found.empty):
            continue
        return found.or_else(own)
    return own


def with_upstream_labels(words: Words) -> Words:
    """Return the words with the code and type of the upstream's error, if the message quotes it.

    LiteLLM puts the upstream's body into its message and the status into the code:
    `litellm.BadRequestError: OpenAIException - {"error": {…}}`.
    """
    start = words.message.find(' - {"error"')
    if start < 0 or not (words.code is None or _STATUS_CODE.fullmatch(words.code)):
        return words
    try:
        value, _ = _JSON.raw_decode(words.message, start + len(" - "))
    except (ValueError, RecursionError):
        return words
    inner = read_words(value)
    inner.message = words.message
    return inner.or_else(words)


@lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    return _NOT_LETTERS.sub("", name.lower())


def _plain_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields under their plain names; of two that are equal, the first that is set."""
    fields: dict[str, Any] = {}
    for name, field in value.items():
        if fields.get(_plain(name)) is None:
            fields[_plain(name)] = field
    return fields


def _words_of_text(text: str, depth: int) -> Words:
    """Return the words of a message, of JSON in a string, or of the XML of an object store."""
    start = text.lstrip()[:1]
    if start in ("{", "["):
        try:
            found = read_words(msgspec.json.decode(text), depth + 1)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            found = Words()
        if found.message:
            return found
    if start == "<":
        message, code = _XML_MESSAGE.search(text), _XML_CODE.search(text)
        return Words(message[1].strip() if message else "", code[1] if code else None)
    return Words((read_str(text) or "").strip())


def _own_words(fields: Mapping[str, Any], depth: int) -> Words:
    """Return the words in the fields of an object itself, under their plain names."""
    message, inner_code = "", None
    for name in _MESSAGES:
        inner = fields.get(name)
        if inner and isinstance(inner, (str, list, dict)):
            found = read_words(inner, depth + 1)
            message, inner_code = found.message, found.code
        if message:
            break
    code = _first_label(fields, _CODES)
    if code is None:
        extensions = fields.get("extensions")  # GraphQL
        inner = extensions.get("code") if isinstance(extensions, dict) else None
        code = _label(inner) or _blocked_reason(fields) or inner_code
    type_ = _first_label(fields, _TYPES)
    status = fields.get("status")
    if type_ is None and isinstance(status, str) and not status.isdigit():
        type_ = status  # Google: {"code": 400, "status": "INVALID_ARGUMENT"}
    param = _first_label(fields, _PARAMS)
    if param is None and isinstance(fields.get("loc"), list):
        param = ".".join(str(part) for part in fields["loc"]) or None
    moderation = fields.get("moderationdetails")
    if moderation is None and any(fields.get(name) for name in _BLOCKED):
        moderation = {name: fields[name] for name in _BLOCKED if fields.get(name)}
    return Words(message, code, type_, param, moderation)


def _blocked_reason(fields: Mapping[str, Any]) -> str | None:
    """Return why generation stopped, if that was moderation."""
    reason = fields.get("finishreason")
    blocked = isinstance(reason, str) and _BLOCKED_REASON.search(reason)
    return reason if blocked else None


def _words_of_list(items: list[Any], depth: int) -> Words:
    """Return the messages of several errors as one; the other words are those of the first."""
    found = [words for item in items[:20] if (words := read_words(item, depth + 1)).message]
    if not found:
        return Words()
    found[0].message = "; ".join(dict.fromkeys(words.message for words in found))
    return found[0]


def _first_label(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of these fields that is a word or a number, as text."""
    return next((label for name in names if (label := _label(fields.get(name)))), None)


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
        words = _own_words(_plain_fields(error), _MAX_DEPTH - 4)
        is_fine = (words.code or "").lower() in _FINE_CODES
        if is_fine and words.message.lower() in _FINE and not words.type:
            others = (
                value for name, value in error.items() if _plain(name) not in (*_CODES, *_MESSAGES)
            )
            return any(says_something(value, depth + 1) for value in others)
        return True
    if isinstance(error, list):
        return any(says_something(item, depth + 1) for item in error)
    return bool(error)


def is_item_failure(name: str | None) -> bool:
    """Return whether an event of this type reports the failure of one image of several."""
    return name is not None and _ONE_OF_SEVERAL.search(name) is not None


def strength(value: Any, name: str | None = None, depth: int = 0) -> int:
    """Return how certainly a document that was received as a success is an error.

    0: no error; 1: an error unless images arrive; 2: always an error. `name` is the type
    of the event that contains it.
    """
    if isinstance(value, list):
        return max((strength(item) for item in value[:20] if not _is_quiet(item)), default=0)
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        return 0
    fields = _plain_fields(value)
    types = (name, fields.get("type"))
    if any(
        isinstance(kind, str) and (kind in _ERROR_TYPES or _FAILED.search(kind)) for kind in types
    ):
        return 2
    if any(says_something(fields.get(key)) for key in _ERROR_NAMES):
        return 2
    if fields.get("object") == "error" or fields.get("success") in (False, "false"):
        return 2
    if any(_has_failed(fields.get(key)) for key in ("status", "state", "taskstatus")):
        return 2
    if any(isinstance(fields.get(key), str) and fields[key] for key in _BLOCKED):
        return 2
    nested = (fields.get(key) for key in _NESTED)
    if any(isinstance(inner, dict) and strength(inner, None, depth + 1) == 2 for inner in nested):
        return 2
    return _strength_of_words(fields)


_NESTED = (
    *("output", "result", "response", "data", "responsemetadata", "baseresp", "header", "meta"),
    *("promptfeedback", "status"),
)


def _strength_of_words(fields: Mapping[str, Any]) -> int:
    """Return how certainly an object is an error that only its message and code can show."""
    for key in ("candidates", "choices", "artifacts"):
        items = fields.get(key)
        if isinstance(items, list) and any(
            isinstance(item, dict) and _blocked_reason(_plain_fields(item)) for item in items[:20]
        ):
            return 1
    if _blocked_reason(fields) is not None:
        return 1
    if _MESSAGE_NAMES.isdisjoint(fields):
        return 0
    words = _own_words(fields, 0)
    if not words.message or words.message.lower() in _FINE:
        return 0
    status = fields.get("status")
    if isinstance(status, int) and status >= 400:
        return 2
    if (words.code or "").lower() in _FINE_CODES and words.code is not None:
        return 0
    certain = words.code is not None or ("detail" in fields and "type" not in fields)
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
    fields = _plain_fields(value)
    stated = [fields.get(name) for name in ("status", "taskstatus", "state")]
    status = next((status for status in stated if isinstance(status, str)), None)
    task = _first_label(fields, _TASK_IDS)
    is_pending = status is not None and _PENDING.match(status)
    if task is None and (is_pending or "pollingurl" in fields or "statusurl" in fields):
        task = _first_label(fields, ("id", "requestid"))
    if task is not None:
        return task, status
    for key in ("data", "output", "result", "task", "response"):
        if (found_inside := pending_task(fields.get(key), depth + 1)) is not None:
            return found_inside
    return None
