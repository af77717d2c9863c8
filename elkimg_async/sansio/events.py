"""Construction of events, partial or completed, from an image and the objects around it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from elkimg_async.image import Image
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.reading import (
    SIDE_FIELDS,
    lookup,
    read_number,
    read_str,
    read_svg_usage,
    read_usage,
)
from elkimg_async.sansio.responses import (
    COMPLETED_TYPES,
    PARTIAL_TYPES,
    CompletedImage,
    PartialImage,
)

COMPLETED_FIELDS = (*SIDE_FIELDS, "svg_usage", "safety_identifier")
"""The attributes shared by completed events and responses, apart from the usage."""

_PARTIAL = re.compile(r"partial|preview|progress|intermediate|draft", re.IGNORECASE)
_WORKING = re.compile(r"(?:processing|generating|running|rendering|denoising)$", re.IGNORECASE)
_FINISHED = re.compile(r"succe|complet|finish|done|final", re.IGNORECASE)
_FINAL_FLAGS = ("is_final", "isFinal", "final", "is_finished", "finished", "done", "completed")
# Flags, and whether true means unfinished.
_FLAGS = {
    **dict.fromkeys(("is_partial", "isPartial", "partial"), True),
    **dict.fromkeys(_FINAL_FLAGS, False),
}
_KINDS = ("event", "object", "kind", "stage", "state", "status")
_OF_IMAGES = {"b64_json", "url", "revised_prompt", "created", "data"}
# What is an attribute of an event or of its image, and so not in `extra`. Fields of the server that
# are called like the attributes `image` and `extra` are something else.
_KNOWN = {
    kind: {*kind.__struct_fields__} - {"image", "extra"} | _OF_IMAGES
    for kind in (PartialImage, CompletedImage)
}


def type_of(value: Mapping[str, Any], name: str, *, unfinished: bool = False) -> str:
    """Return the type of an event, from its data, its `event:` line, or else its fields."""
    stated = read_str(value.get("type"))
    for known in (stated, name):
        if known in COMPLETED_TYPES or known in PARTIAL_TYPES:
            return str(known)
    # The name of an event that has no `event:` line.
    if name == "message":
        name = ""
    if stated is None and not name:
        unfinished = unfinished or "partial_image_index" in value
        return (PARTIAL_TYPES if unfinished else COMPLETED_TYPES)[0]
    return stated or name


def type_around(chain: Sequence[Mapping[str, Any]], name: str, *, unfinished: bool = False) -> str:
    """Return the type of the event that an image belongs to, even if the event is nested."""
    for around in reversed(chain):
        for field in ("type", "event", "object"):
            stated = around.get(field)
            if isinstance(stated, str) and stated in (*COMPLETED_TYPES, *PARTIAL_TYPES):
                return stated
    unfinished = unfinished or lookup(chain, "partial_image_index") is not None
    return type_of(chain[0], name, unfinished=unfinished)


def says_unfinished(chain: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether fields beside an image say that it is not finished, without a type."""
    # The innermost object decides; in it, a flag says more than a status.
    for around in reversed(chain):
        for name, unfinished in _FLAGS.items():
            if isinstance(around.get(name), bool):
                return around[name] is unfinished
        for name in _KINDS:
            kind = around.get(name)
            if isinstance(kind, str) and _FINISHED.search(kind):
                return False
            if isinstance(kind, str) and (_PARTIAL.search(kind) or _WORKING.match(kind)):
                return True
    return False


def is_partial(type_: str, key: str = "") -> bool:
    """Return whether the image of such an event, under such a field, is not finished."""
    if _PARTIAL.search(type_) and not _FINISHED.search(type_):
        return True
    return key.startswith("partial") and type_ not in COMPLETED_TYPES


def event_of(
    type_: str,
    image: Image,
    chain: Sequence[Mapping[str, Any]],
    *,
    key: str = "",
    rest: Mapping[str, Any] | None = None,
    unfinished: bool = False,
    document: Document | None = None,
) -> PartialImage | CompletedImage:
    """Return the event of an image; `chain` has the objects around it, `rest` other fields.

    `document` is that of the chain; None if none of its placeholders can be in a usage.
    """
    fields: dict[str, Any] = {name: read_str(lookup(chain, name)) for name in SIDE_FIELDS}
    kind: type[PartialImage | CompletedImage]
    if is_partial(type_, key) or (unfinished and type_ not in COMPLETED_TYPES):
        kind = PartialImage
        index = read_number(lookup(chain, "partial_image_index"))
        fields["partial_image_index"] = None if index is None else int(index)
    else:
        kind = CompletedImage
        usage, svg_usage = lookup(chain, "usage"), lookup(chain, "svg_usage")
        if document is not None:
            usage, svg_usage = document.restore(usage), document.restore(svg_usage)
        fields["usage"], fields["svg_usage"] = read_usage(usage), read_svg_usage(svg_usage)
        fields["safety_identifier"] = read_str(lookup(chain, "safety_identifier"))
    return kind(
        type=type_,
        image=image,
        created_at=read_number(lookup(chain, "created_at", "created")),
        extra={name: field for name, field in (rest or {}).items() if name not in _KNOWN[kind]},
        **fields,
    )
