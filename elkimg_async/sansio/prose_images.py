"""Images that a model shows inside its text: in Markdown, in HTML, as data: URLs, in JSON."""

import re
from collections.abc import Mapping
from typing import Any

PROSE_NAMES = {"content", "text", "outputtext", "response", "answer", "reply", "completion"}
"""The plain names of fields with text that a model wrote."""
_ADDRESS = r"(?:https?://|/(?!/))(?:[^\s<>()\"']++|\([^\s<>()\"']*\))++"
_DATA = r"data:image/[^()<>\"']+"
_SHOWN = re.compile(
    rf"!\[[^\]]*\]\(\s*<?(?:(?P<address>{_ADDRESS})|(?P<data>{_DATA}))(?=[\s>\"')]*[>\"')])"
    rf"|<img\s[^>]*?src\s*=\s*(?P<quote>[\"'])(?P<source>(?:https?://|/|data:image/)[^\"'>]+)(?P=quote)"
    r"|(?P<bare>data:image/[\w.+-]+(?:;[\w=.+-]+)*,[^\s()<>\"'`]+)",
    re.IGNORECASE,
)
_REFERENCE = re.compile(r"!\[[^\]]*\]\[([^\]]+)\]")
_HINTS = ("](", "][", "<img", "data:image/")
_OTHER_ROLES = ("user", "system", "developer", "tool")


def shown_images(text: str) -> list[str]:
    """Return the addresses and data: URLs of the images that a text shows, each once.

    A link is not shown, even if it leads to an image.
    """
    if not any(hint in text for hint in _HINTS):
        return []
    found = []
    for match in _SHOWN.finditer(text):
        url = match["address"] or match["data"] or match["source"] or match["bare"]
        found.append(url.strip())
    for name in _REFERENCE.findall(text):
        definition = re.search(
            rf"^ {{0,3}}\[{re.escape(name)}\]:\s*<?(https?://[^\s>]+)", text, re.MULTILINE
        )
        if definition is not None:
            found.append(definition[1])
    return list(dict.fromkeys(found))


def ends_within_image(text: str) -> bool:
    """Return whether a text may be cut off within its last image."""
    if "data:image/" not in text:
        return not any(mark in text for mark in " {[](")
    bare = [match for match in _SHOWN.finditer(text) if match["bare"]]
    return bool(bare) and bare[-1].end() == len(text)


def is_of_user(fields: Mapping[str, Any]) -> bool:
    """Return whether a message is not the model's, but a repetition of the conversation."""
    return fields.get("role") in _OTHER_ROLES
