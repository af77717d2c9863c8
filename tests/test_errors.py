"""The tree of errors, and the fields of each."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from fastapi.encoders import jsonable_encoder

from elkimg_async import errors
from elkimg_async.errors import (
    APIError,
    BadRequestError,
    BatchStoppedError,
    ConfigurationError,
    ConnectError,
    DownloadError,
    ElkImagesError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
    StreamIncompleteError,
)
from elkimg_async.image import Image

TREE = {
    "ElkImagesError": ["Exception"],
    "ConfigurationError": ["ElkImagesError"],
    "InvalidRequestError": ["ElkImagesError", "ValueError"],
    "APIError": ["ElkImagesError"],
    "BadRequestError": ["APIError"],
    "ModerationError": ["BadRequestError"],
    "AuthenticationError": ["APIError"],
    "PermissionDeniedError": ["APIError"],
    "QuotaExceededError": ["PermissionDeniedError"],
    "NotFoundError": ["APIError"],
    "RateLimitError": ["APIError"],
    "ServerError": ["APIError"],
    "NetworkError": ["ElkImagesError"],
    "ConnectError": ["NetworkError"],
    "RequestTimeoutError": ["NetworkError", "TimeoutError"],
    "DisconnectedError": ["NetworkError"],
    "ResponseError": ["ElkImagesError"],
    "EmptyResultError": ["ResponseError"],
    "StreamError": ["ElkImagesError"],
    "StreamIncompleteError": ["StreamError"],
    "StreamStateError": ["StreamError"],
    "DownloadError": ["ElkImagesError"],
    "BatchError": ["ElkImagesError"],
    "BatchStoppedError": ["BatchError"],
    "JournalError": ["BatchError"],
    "JobError": ["ElkImagesError"],
    "JobNotFoundError": ["JobError"],
    "JobConflictError": ["JobError"],
    "JobCancelledError": ["JobError"],
    "JobLostError": ["JobError"],
    "StoreError": ["JobError"],
}
FIELDS: dict[str, Any] = {
    "request_id": "r-1",
    "attempts": 3,
    "billing": "billed",
    "param": "size",
    "status": 418,
    "code": "teapot",
    "type": "kettle",
    "headers": {"x-a": "1"},
    "body": {"error": ["x"]},
    "retry_after": 1.5,
    "images": (Image(b"abc"), Image(url="https://x/y")),
    "phase": "body",
    "idempotency_key": "i-1",
    "moderation": {"categories": ["x"]},
    "content": b"string",
    "task_id": "t-1",
    "limit": "idle",
    "partials": ("p",),
    "url": "https://x/y",
    "reason": "max_errors",
    "totals": {"done": 1},
}
OWN_FIELDS = {
    "InvalidRequestError": {"param"},
    "APIError": {"status", "code", "type", "param", "headers", "body", "retry_after"},
    "ModerationError": {"moderation"},
    "NetworkError": {"phase"},
    "ConnectError": {"status"},
    "RequestTimeoutError": {"limit"},
    "ResponseError": {"status", "body", "content"},
    "EmptyResultError": {"task_id"},
    "DownloadError": {"url", "status"},
    "BatchStoppedError": {"reason", "totals"},
}
BILLING = {
    "ElkImagesError": "unknown",
    "ConfigurationError": "not_sent",
    "InvalidRequestError": "not_sent",
    "APIError": "refused",
    "NetworkError": "unknown",
    "ConnectError": "not_sent",
    "ResponseError": "unknown",
    "StreamError": "unknown",
    "StreamStateError": "not_sent",
    "DownloadError": "billed",
    "BatchError": "not_sent",
    "JobError": "not_sent",
    "JobLostError": "unknown",
}
COPIES: dict[str, Callable[[ElkImagesError], ElkImagesError]] = {
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(  # type: ignore[misc]
            pickle.dumps(error, protocol)
        )
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
classes = pytest.mark.parametrize("cls", [getattr(errors, name) for name in TREE], ids=TREE.keys())


def fields_of(cls: type[ElkImagesError]) -> dict[str, Any]:
    own = {"request_id", "idempotency_key", "attempts", "billing", "images", "partials"}
    return {
        name: FIELDS[name]
        for name in own.union(*(OWN_FIELDS.get(base.__name__, ()) for base in cls.__mro__))
    }


def inherited(table: dict[str, Any], cls: type[ElkImagesError]) -> Any:
    return next(table[base.__name__] for base in cls.__mro__ if base.__name__ in table)


def test_errors_tree() -> None:
    """The classes and their bases are those of the documented tree, no more and no less."""
    found = {
        name: [base.__name__ for base in value.__bases__]
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert found == TREE
    assert set(errors.__all__) == {*TREE, "Billing"}


def test_errors_tree_is_drawn() -> None:
    """The module's docstring draws every class below its base."""
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        indent = len(line) - len(line.lstrip("│├└─ "))
        name = line[indent:].partition(" ")[0]
        if name.endswith("Error"):
            above[indent // 4 :] = [name]
            drawn[name] = above[-2] if len(above) > 1 else "Exception"
    assert drawn == {name: bases[0] for name, bases in TREE.items()}


@classes
def test_error_defaults(cls: type[ElkImagesError]) -> None:
    """A new error has every field of its class, and says whether it may have been billed."""
    error = cls("What happened.")
    assert error.billing == inherited(BILLING, cls)
    assert (error.request_id, error.attempts, error.message) == (None, 0, "What happened.")
    for name in fields_of(cls).keys() - {"billing", "attempts"}:
        assert not getattr(error, name)


@classes
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES.keys())
def test_error_copies_to_itself(
    cls: type[ElkImagesError], make_copy: Callable[[ElkImagesError], ElkImagesError]
) -> None:
    """Pickled and copied, an error keeps its own type, its text and all its fields."""
    fields = fields_of(cls)
    error = cls("What happened.", **fields)
    error.add_note("a note")
    copied = make_copy(error)
    assert type(copied) is cls
    assert {name: getattr(copied, name) for name in fields} == fields
    assert (str(copied), repr(copied), copied.args) == (str(error), repr(error), error.args)
    assert copied.__notes__ == ["a note"]


@classes
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES.keys())
def test_error_without_fields_copies_to_itself(
    cls: type[ElkImagesError], make_copy: Callable[[ElkImagesError], ElkImagesError]
) -> None:
    """An error with nothing in it keeps its defaults."""
    copied = make_copy(cls())
    assert type(copied) is cls
    assert copied.billing == cls.billing
    assert str(copied) == str(cls())


@classes
def test_error_text(cls: type[ElkImagesError]) -> None:
    """The text is what happened, then what to do, then the request id, each of them once."""
    error = cls("What happened.", request_id="r-42")
    text = str(error)
    assert text.startswith("What happened.")
    assert text.count("What happened.") == 1
    assert text.count("(request id: r-42)") == text.count("r-42") == 1
    assert text.count(cls.advice or "What happened.") == 1
    assert "  " not in text
    assert repr(error) == f"{cls.__name__}({text!r})"
    assert "request id" not in str(cls("What happened."))


@classes
def test_error_advice(cls: type[ElkImagesError]) -> None:
    """The advice is a whole sentence; a class without one has it in its messages.

    If an image may have been created, that is the advice.
    """
    speaking = {"ElkImagesError", "ConfigurationError", "InvalidRequestError", "APIError"}
    speaking |= {"NetworkError", "RequestTimeoutError", "ResponseError", "EmptyResultError"}
    speaking |= {"StreamError", "StreamStateError", "BatchError", "BatchStoppedError"}
    speaking |= {"JournalError", "DisconnectedError", "StreamIncompleteError", "ServerError"}
    speaking |= {"JobError", "JobNotFoundError", "JobConflictError", "JobCancelledError"}
    speaking |= {"JobLostError", "StoreError"}
    assert "An image may have been created" in str(cls("What.", billing="unknown"))
    assert bool(cls.advice) is (cls.__name__ not in speaking)
    assert not cls.advice or (cls.advice[0].isupper() and cls.advice.endswith("."))


@pytest.mark.parametrize(
    ("fields", "base_url", "model"),
    [
        ({"status": 404, "model": "m"}, True, True),
        ({"status": 404}, True, False),
        ({"status": 501, "code": "api_not_implemented", "model": "m"}, True, False),
        ({"status": 503, "code": "model_not_found", "model": "m"}, False, True),
        ({"status": 404, "param": "model", "model": "m"}, False, True),
        ({"status": 503, "code": "model_not_found"}, False, True),
    ],
)
def test_error_text_of_what_is_not_found(
    fields: dict[str, Any], base_url: bool, model: bool
) -> None:
    """The advice is about what may be wrong: the base URL, the model, or either."""
    text = str(NotFoundError("no such thing", **fields))
    assert ("base URL ends in /v1" in text) is base_url
    assert ("heck the model 'm'" in text or "heck the name of the model" in text) is model


def test_error_text_with_the_request_id_in_the_message() -> None:
    """A request id in the server's own message is not repeated."""
    error = APIError("It failed (request id: r-42).", request_id="r-42")
    assert str(error) == "It failed (request id: r-42)."


def test_error_text_of_a_timeout() -> None:
    """A time-out names the limit that can be raised."""
    error = RequestTimeoutError("Nothing came for 5 s.", limit="idle", request_id="r-42")
    assert "Timeout(idle=" in str(error)
    assert "An image may have been created" in str(error)
    assert str(RequestTimeoutError("Nothing came.", billing="not_sent")) == "Nothing came."


@classes
def test_error_text_names_the_idempotency_key(cls: type[ElkImagesError]) -> None:
    """If an image may have been billed, the text has the idempotency key."""
    assert "(idempotency key: i-1)" in str(cls("What.", billing="unknown", idempotency_key="i-1"))
    assert "i-1" not in str(cls("What.", billing="not_sent", idempotency_key="i-1"))


def test_error_text_of_an_api_error() -> None:
    """The text has the status, the code, the server's message and the advice."""
    error = BadRequestError("no such size", status=400, code="invalid_request", request_id="r")
    assert str(error) == (
        "The server returned 400 (invalid_request): no such size. "
        "Change the request; sending it again unchanged will fail again. (request id: r)"
    )
    assert (
        str(APIError("busy", status=200, type="t"))
        == "The server returned an error with status 200 (t): busy."
    )
    assert str(APIError(status=429, code="429")) == "The server returned 429."


@classes
def test_error_to_dict(cls: type[ElkImagesError]) -> None:
    """Every error becomes plain data for JSON, with or without its images."""
    error = cls("What happened.", **fields_of(cls))
    for fields in (error.to_dict(), error.model_dump()):
        assert json.loads(json.dumps(fields)) == fields
        assert (fields["error"], fields["text"]) == (cls.__name__, str(error))
        assert fields["message"] == "What happened."
    assert "b64_json" in str(error.to_dict())
    assert "b64_json" not in str(error.to_dict(images=False))


@classes
def test_error_encodes(cls: type[ElkImagesError]) -> None:
    """Both msgspec and FastAPI encode an error with its class, text and fields."""
    error = cls("What happened.", **fields_of(cls))
    encoded = msgspec.to_builtins(error), jsonable_encoder(error)
    for plain in (*encoded, json.loads(msgspec.json.encode(error))):
        assert (plain["error"], plain["text"]) == (cls.__name__, str(error))
        assert plain.keys() == error.to_dict(images=False).keys()
        assert json.loads(json.dumps(plain))


@classes
@pytest.mark.parametrize("name", ["nonsense", "advice", "Status", "__nothing__", "colour"])
def test_error_with_an_unknown_field(cls: type[ElkImagesError], name: str) -> None:
    """A field that the class does not have is a `TypeError` that names both."""
    with pytest.raises(TypeError, match=rf"{cls.__name__} has no field '{name}'"):
        cls("What happened.", **{name: 1})


@pytest.mark.parametrize("name", ["args", "locate", "with_traceback", "add_note", "__str__"])
def test_error_with_a_method_as_field(name: str) -> None:
    """A method of an exception is not a field."""
    with pytest.raises(TypeError, match="has no field"):
        BadRequestError("What happened.", **{name: 1})


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (ConfigurationError, "param"),
        (ConnectError, "limit"),
        (ResponseError, "code"),
        (StreamIncompleteError, "content"),
        (BatchStoppedError, "status"),
        (ElkImagesError, "code"),
    ],
)
def test_error_with_a_field_of_another_class(cls: type[ElkImagesError], name: str) -> None:
    """A field of another class is unknown."""
    fields: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match="has no field"):
        cls(**fields)


def test_error_fields_are_its_own() -> None:
    """A field set on one error does not change another."""
    first, second = APIError("a", headers={"x": "1"}), APIError("b")
    first.images = (1,)
    assert (second.headers, second.images, APIError.headers) == ({}, (), {})


def test_error_is_caught_as_a_builtin() -> None:
    """Two of the errors are also Python's own exceptions."""
    assert issubclass(RequestTimeoutError, TimeoutError)
    assert issubclass(InvalidRequestError, ValueError)
    assert not issubclass(ConnectError, OSError)
    assert RequestTimeoutError("a").args == ("a",)
    assert RequestTimeoutError("a").errno is None


def test_error_locate() -> None:
    """`locate` sets the request id once, and returns the error."""
    error = DownloadError("a")
    assert error.locate(None) is error
    assert error.request_id is None
    assert error.locate("r-1").locate("r-2").request_id == "r-1"


def test_error_raised_and_pickled_with_a_cause() -> None:
    """An error that was raised from another one is pickled without it."""
    with pytest.raises(RateLimitError) as caught:
        raise RateLimitError("a", retry_after=2.0) from KeyError("secret")
    data = pickle.dumps(caught.value)
    assert b"secret" not in data
    assert pickle.loads(data).retry_after == 2.0
