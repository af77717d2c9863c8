"""Direct reading of documents in the documented form."""

import base64
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from elkimg_async.sansio.base64_text import BadBase64
from elkimg_async.sansio.documented import read_documented
from elkimg_async.sansio.documents import events_of
from elkimg_async.sansio.error_words import is_item_failure, strength
from elkimg_async.sansio.find_images import find_images
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.responses import COMPLETED_TYPES, PARTIAL_TYPES
from tests.helpers.dialects import PNG, URL, WEBP

IMAGES: dict[str, Any] = {
    "#1": PNG,
    "#2": WEBP,
    "#noise": b"\0" * 80,
    "#text": b"no image",
    "#bad": BadBase64("x"),
}
SHORT = base64.b64encode(PNG[:40]).decode()
TEXTS = st.sampled_from(
    [
        *("", "null", "png", "1024x1024", "auto", "a b", "b64_json", "\ud800", SHORT, *IMAGES),
        *(URL, f" {URL}", "http://x", "//a.b/c.png", "/a.png", "images/1.png"),
        *("data:image/,x", "data:,x", "iVBORw0KGgoAAA", '{"url": "http://x/y.png"}'),
    ]
)
ODD = st.sampled_from([None, True, 1.5, 7, [], {}, {"url": URL}, [URL]]) | TEXTS
USAGE = st.none() | st.fixed_dictionaries(
    {}, optional={"total_tokens": ODD, "input_tokens": ODD, "cost": ODD, "image": TEXTS}
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return usual | usual | usual | ODD


SIDE = {
    "size": mostly(st.sampled_from(["1024x1024", "auto", None])),
    "quality": mostly(st.sampled_from(["low", "high"])),
    "output_format": mostly(st.just("png")),
    "usage": mostly(USAGE),
}
ITEM = {
    "b64_json": mostly(st.sampled_from(["#1", "#2", "", None])),
    "url": mostly(st.sampled_from([URL, "", None])),
    "revised_prompt": mostly(st.sampled_from(["A kitten.", URL, None])),
}
OTHER = {"status": TEXTS, "error": ODD, "image": TEXTS, "metadata": ODD}


def an_object(*optional: dict[str, Any], **required: Any) -> st.SearchStrategy[dict[str, Any]]:
    usual = st.fixed_dictionaries(
        required, optional=dict(item for each in optional for item in each.items())
    )
    odd = st.builds(dict.__or__, usual, st.fixed_dictionaries({}, optional=OTHER))
    return usual | usual | odd


RESPONSES = an_object(
    SIDE,
    {"created": mostly(st.integers(0, 9))},
    data=mostly(st.lists(an_object(ITEM), max_size=3)),
)
EVENTS = an_object(
    SIDE,
    ITEM,
    {"created_at": mostly(st.integers(0, 9)), "partial_image_index": mostly(st.integers(0, 3))},
    type=mostly(st.sampled_from([*COMPLETED_TYPES, *PARTIAL_TYPES])),
)
NAMES = st.sampled_from(["", "message", "image", "error", COMPLETED_TYPES[0], PARTIAL_TYPES[1]])


@given(value=RESPONSES | EVENTS, name=NAMES, streamed=st.booleans())
def test_direct_reading_equals_the_search(value: Any, name: str, streamed: bool) -> None:
    """What is read directly is exactly what the search for images finds."""
    document = Document(value, IMAGES)
    events = read_documented(document, name)
    event("read directly" if events else "searched")
    if events:
        found = find_images(document)
        assert events == events_of(found, document, name, streamed=streamed)
        assert [one.image for one in events] == list(found.images)
        assert not found.broken
        assert not found.without
        assert strength(value, name) == 0
        assert not is_item_failure(value.get("type") or name)


DATA = [{"b64_json": "#1"}, {"url": URL, "b64_json": "", "revised_prompt": "A kitten."}]
SIDE_FIELDS = {
    "size": "1024x1024",
    "quality": "high",
    "background": "opaque",
    "output_format": "png",
}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"created": 1, "data": DATA, **SIDE_FIELDS, "usage": {"total_tokens": 3}}, ""),
        ({"data": [{"url": URL}]}, ""),
        ({"type": PARTIAL_TYPES[0], "b64_json": "#1", "partial_image_index": 0, **SIDE_FIELDS}, ""),
        ({"type": COMPLETED_TYPES[1], "b64_json": "#1", "created_at": 1, "usage": {}}, "message"),
    ],
)
def test_documented_form_is_read_directly(value: Any, name: str) -> None:
    """Responses and events as documented take no search."""
    assert len(read_documented(Document(value, IMAGES), name)) == len(value.get("data", [value]))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        [{"url": URL}],
        {"data": []},
        {"data": [{"url": URL}, {"b64_json": None}]},
        {"data": [{"url": URL}], "images": [{"url": f"{URL}?2"}]},
        {"data": [{"url": URL}], "size": "//a.b/c.png"},
        {"data": [{"url": URL, "image": "#2"}]},
        {"data": [{"url": URL}], "error": {"message": "failed"}},
        {"type": PARTIAL_TYPES[0], "b64_json": "#bad"},
        {"type": "image_generation.partial_succeeded", "url": URL},
    ],
)
def test_other_forms_are_left_to_the_search(value: Any) -> None:
    """A document with anything undocumented is not read directly, so no image can be missed."""
    assert read_documented(Document(value, IMAGES), "") == []
