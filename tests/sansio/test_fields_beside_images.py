"""Fields that contain base64 without being an image: they arrive as the server sent them."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from elkimg_async.errors import APIError, EmptyResultError
from elkimg_async.sansio.error_mapping import response_error
from tests.helpers.bodies import Outcome, b64, outcome

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3
IMAGE = b64(PNG)
OTHER = b64(b"This is no image. " * 50)
NAMES = (
    *("b64_json", "b64", "base64", "image_base64", "image_b64", "partial_image_b64"),
    *("bytesBase64Encoded", "image", "image_url", "url", "data", "result", "output"),
)
USAGE = {"total_tokens": 3, "input_tokens_details": {"text_tokens": 1}}
RESPONSE = {
    "created": 1,
    "data": [{"b64_json": IMAGE, "revised_prompt": "A kitten.", "labels": {"a": 1}}],
    "usage": USAGE,
    "svg_usage": {"model": "m", "total_tokens": 1},
    "metadata": {"a": [{"b": 1}]},
}
COMPLETED = {"type": "image_generation.completed", "b64_json": IMAGE, "usage": USAGE}
PARTIAL = {"type": "image_generation.partial_image", "b64_json": IMAGE, "metadata": {"a": 1}}
TEMPLATES: dict[str, list[Any]] = {
    "a documented response": [{key: RESPONSE[key] for key in ("created", "data", "usage")}],
    "a response": [RESPONSE],
    "addresses": [{"data": [{"url": "https://a.example/1.png"}], "usage": USAGE}],
    "events": [PARTIAL, COMPLETED],
    "an event of usage": [COMPLETED, {"usage": USAGE}],
    "a summary": [
        COMPLETED,
        {"type": "response.done", "data": [{"b64_json": IMAGE}], "usage": USAGE},
    ],
    "a failed image": [
        {"type": "image_generation.partial_failed", "error": {"message": "x"}, "metadata": {}}
    ],
    "a failed item": [{"data": [{"error": {"message": "x", "code": "y"}}, {"b64_json": IMAGE}]}],
    "an error": [{"error": {"message": "x", "code": "y", "metadata": {"a": 1}}}],
    "a message": [{"message": "x", "metadata": {"a": 1}}],
    "a moderation error": [
        {"error": {"code": "moderation_blocked", "moderation_details": {"categories": ["a"]}}}
    ],
    "a task": [{"task_id": "t1", "status": "submitted", "metadata": {"a": 1}}],
    "chat": [{"choices": [{"delta": {"content": f"![x](data:image/png;base64,{IMAGE})"}}]}],
}


def objects_of(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in plain data."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            yield from objects_of(inner)


def variants(values: list[Any]) -> Iterator[list[Any]]:
    """Yield the documents with base64 under each name, in each of their objects."""
    for number in range(sum(1 for _ in objects_of(values))):
        for name in NAMES:
            changed = copy.deepcopy(values)
            [*objects_of(changed)][number].setdefault(name, OTHER)
            yield changed


def bodies(values: list[Any]) -> Iterator[bytes]:
    """Yield the documents in each form of a body."""
    lines = [json.dumps(value) for value in values]
    yield "".join(f"data: {line}\n\n" for line in lines).encode()
    names = [value.get("type", "message") for value in values]
    named = zip(names, lines, strict=True)
    yield "".join(f"event: {name}\ndata: {line}\n\n" for name, line in named).encode()
    yield "\n".join(lines).encode()
    yield f"data: {lines[-1][:-1]}".encode()  # cut off
    if len(values) == 1:
        yield json.dumps(values[0], indent=2).encode()
        yield f"--x\r\nContent-Type: application/json\r\n\r\n{lines[0]}\r\n--x--".encode()
        yield f"<b>Warning</b>: x\n{lines[0]}".encode()
        yield lines[0][:-1].encode()


def everything(found: Outcome) -> str:
    """Return all that a user can see of a result."""
    shown = [event.to_dict() for event in found.events]
    images = [event.image.extra for event in found.events]
    response = found.response and found.response.to_dict()
    error = found.failure
    carried = error and [image.extra for image in error.images]
    reported = error and (str(error), error.args, getattr(error, "moderation", None), carried)
    return repr((found, shown, images, response, reported))


@pytest.mark.parametrize("name", TEMPLATES)
def test_base64_anywhere_in_a_document(name: str) -> None:
    """No placeholder of the decoder can be seen, wherever base64 is and whatever the form."""
    for values in variants(TEMPLATES[name]):
        for body in bodies(values):
            for stream in (False, True):
                assert "#image" not in everything(Outcome([body], stream=stream)), body


@pytest.mark.parametrize("name", TEMPLATES)
def test_base64_anywhere_in_an_error_response(name: str) -> None:
    """The body and message of an error response have no placeholder either."""
    for values in variants(TEMPLATES[name]):
        error = response_error(400, {}, json.dumps(values[0]).encode(), now=0)
        assert isinstance(error, APIError)
        assert error.body == values[0]
        assert "#image" not in repr((str(error), vars(error)))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("field", NAMES)
def test_usage_with_base64(field: str, streamed: bool) -> None:
    """The extra fields of a usage and of its details are exactly as sent."""
    more = {field: OTHER, "deep": [{field: OTHER}]}
    usage = {"total_tokens": 3, "input_tokens_details": {"text_tokens": 1, **more}, **more}
    svg_usage = {"model": "m", "total_tokens": 1, **more}
    for fields in ({"usage": usage}, {"usage": usage, "svg_usage": svg_usage}):
        value = {"data": [{"b64_json": IMAGE}], **fields}
        if streamed:
            value = {"type": "image_generation.completed", "b64_json": IMAGE, **fields}
        body = json.dumps(value)
        found = outcome(f"data: {body}\n\n" if streamed else body, exhaustive=False)
        assert found.response is not None
        assert found.images == [PNG]
        read = found.response.usage
        assert read is not None
        assert read.input_tokens_details is not None
        assert read.extra == read.input_tokens_details.extra == more
        if "svg_usage" in fields:
            assert found.response.svg_usage is not None
            assert found.response.svg_usage.extra == more


def test_usage_of_its_own_event_with_base64() -> None:
    """Usage that arrives apart from the images is as sent too."""
    usage = {"total_tokens": 3, "b64_json": OTHER}
    completed = {"type": "image_generation.completed", "b64_json": IMAGE}
    summary = {"type": "response.done", "data": [{"b64_json": IMAGE}]}
    for last in ({"usage": usage}, {**summary, "usage": usage}):
        body = "".join(f"data: {json.dumps(value)}\n\n" for value in (completed, last))
        found = outcome(body, exhaustive=False)
        assert found.response is not None
        assert found.response.usage is not None
        assert found.response.usage.extra == {"b64_json": OTHER}


def test_extra_with_base64() -> None:
    """Other fields of the response, its images and its events are as sent, at any depth."""
    deep: Any = {"data": OTHER}
    for _ in range(120):
        deep = {"parameters": deep}
    labels = {"parameters": {"image": OTHER}}
    value = {"data": [{"b64_json": IMAGE, "labels": labels}], "request": deep}
    found = outcome(json.dumps(value), exhaustive=False)
    assert found.response is not None
    assert found.response.extra == {"request": deep}
    assert found.response[0].extra == {"labels": labels}


def test_task_with_base64() -> None:
    """The id of a task and the body of its error have no placeholder."""
    value = {"task_id": "t1", "status": "submitted", "request": {"image": OTHER}}
    error = outcome(json.dumps(value), stream=False, exhaustive=False).failure
    assert isinstance(error, EmptyResultError)
    assert error.task_id == "t1"
    assert "#image" not in repr(vars(error))


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "Data:image/x-icon;base64,"])
def test_data_urls_beside_images(prefix: str) -> None:
    """A `data:` URL keeps its prefix."""
    usage = {"total_tokens": 3, "url": prefix + OTHER}
    value = {"data": [{"b64_json": IMAGE, "parameters": usage}], "usage": usage}
    for body in (json.dumps(value), json.dumps(value).replace("/", r"\/")):
        found = outcome(body, exhaustive=False)
        assert found.response is not None
        assert found.response.usage is not None
        assert found.response.usage.extra == {"url": prefix + OTHER}
        assert found.response[0].extra == {"parameters": usage}
