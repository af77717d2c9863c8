"""Images that a model shows inside its text: in Markdown, in HTML, as data: URLs, in JSON.

A stream sends such text in pieces, event by event. A piece alone proves nothing: half an address is
an address too. So the pieces of one text are joined before they are searched, and a piece is
removed from its event.
"""

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from elkimg_async.sansio.json_images import Document

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
_DELTA = re.compile(r"(?:[._-]|\A)delta\Z", re.IGNORECASE)
# Pieces of something other than the text that the model shows.
_OTHER_TEXT = re.compile(
    r"reason|think|argument|json|transcript|audio|refusal|signature", re.IGNORECASE
)
_PLACES = ("item_id", "output_index", "content_index", "index")
_ENDS = re.compile(r"(?:done|stop|completed?|finish(?:ed)?)\Z", re.IGNORECASE)
_IMAGE_NAMES = ("b64_json", "partial_b64", "image", "data", "base64", "b64")


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


class TextDeltas:
    """The texts of a stream so far: `take` each event, and `flush` at the end of the stream."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[Hashable, str], list[str]] = {}
        self.is_final = False
        """Whether an event has said that the texts are complete."""

    def take(self, document: Document, name: str) -> None:
        """Move the pieces of text in an event here."""
        value = document.value
        if not isinstance(value, dict):
            return
        self.is_final |= _ends_text(value, name)
        for place, holder, field in _pieces_of(value, name):
            text = holder[field]
            if text:
                key = (place, field if field in ("content", *_IMAGE_NAMES) else "text")
                self._pieces.setdefault(key, []).append(document.restore(text))
                holder[field] = ""

    def flush(self) -> list[tuple[Document, bool]]:
        """Return each text, and whether it may end within an image; forget all of them."""
        texts = [(place, "".join(pieces)) for place, pieces in self._pieces.items()]
        self._pieces.clear()
        return [
            (Document({name: text}), not self.is_final and ends_within_image(text))
            for (_, name), text in texts
        ]


def _ends_text(value: dict[str, Any], name: str) -> bool:
    """Return whether an event says that a text is complete."""
    stated = value.get("type")
    kind = stated if isinstance(stated, str) else name
    if _ENDS.search(kind) or value.get("done") is True:
        return True
    choices = [*_items(value, "choices"), *_items(value, "candidates")]
    return any(choice.get("finish_reason") or choice.get("finishReason") for _, choice in choices)


def _items(value: dict[str, Any], name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    items = value.get(name)
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield item.get("index", number), item


def _pieces_of(value: dict[str, Any], name: str) -> Iterator[tuple[Hashable, dict[str, Any], str]]:
    """Yield the pieces of an event: the text that each belongs to, the object and the field."""
    for number, choice in _items(value, "choices"):
        delta = choice.get("delta")
        if isinstance(delta, dict) and not is_of_user(delta):
            yield from _texts(f"choice {number}", delta, PROSE_NAMES)
        elif delta is None and "message" not in choice and isinstance(choice.get("text"), str):
            yield f"choice {number}", choice, "text"
    for number, candidate in _items(value, "candidates"):
        content = candidate.get("content")
        for _, part in _items(content, "parts") if isinstance(content, dict) else ():
            if isinstance(part.get("text"), str) and not part.get("thought"):
                yield f"candidate {number}", part, "text"
    stated = value.get("type")
    kind = stated if isinstance(stated, str) else name
    if _DELTA.search(kind) and not _OTHER_TEXT.search(kind):
        where = (kind, *(str(value.get(place)) for place in _PLACES))
        delta = value.get("delta")
        if isinstance(delta, str):
            yield where, value, "delta"
        elif isinstance(delta, dict) and not _OTHER_TEXT.search(str(delta.get("type", ""))):
            yield from _texts(where, delta, {*PROSE_NAMES, *_IMAGE_NAMES})
        yield from _texts(where, value, _IMAGE_NAMES)
    if value.get("done") is False:  # Ollama
        yield from _texts("response", value, ("response",))
        message = value.get("message")
        if isinstance(message, dict):
            yield from _texts("message", message, ("content",))


def _texts(
    where: Hashable, holder: dict[str, Any], names: Any
) -> Iterator[tuple[Hashable, dict[str, Any], str]]:
    for field in names:
        text = holder.get(field)
        if isinstance(text, str):
            yield where, holder, field
        for _, part in _items(holder, field):
            if isinstance(part.get("text"), str):
                yield where, part, "text"
