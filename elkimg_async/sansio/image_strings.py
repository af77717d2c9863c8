"""Classification of one string of a document: an image, a broken one, or neither."""

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from elkimg_async.sansio.base64_text import BadBase64
from elkimg_async.sansio.field_names import FieldName, field_name
from elkimg_async.sansio.image_spellings import from_hex, respelled, unwrapped
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.prose_images import PROSE_NAMES, shown_images
from elkimg_async.sansio.reading import read_str
from elkimg_async.sansio.signatures import cannot_be_image, is_base64_image, is_image

NOTHING = {"", "null", "none", "undefined", "nan", "n/a", "-"}
"""Text in the place of an image that means that there is none, in lower case."""

_FILE = re.compile(
    r"[^?#]*\.(?:png|jpe?g|webp|gif|svg|avif|bmp|tiff?|heic|jxl)(?:[?#]\S*)?", re.IGNORECASE
)
_MIN_BASE64 = 256  # characters of base64 without a signature under a name that may be an image's
_ADDRESS = re.compile(r"(?:https?:)?//\S+", re.IGNORECASE)
_DATA_URL_REST = re.compile(r"image/[\w.+-]+(?:;[^,]{0,200})?,", re.IGNORECASE)
_NO_IMAGE = "it is not an image"


class Candidate(msgspec.Struct):
    """A string that may be an image: its bytes or its URL, or its `problem`."""

    key: str
    content: bytes | None = None
    url: str | None = None
    problem: str | None = None
    text: str = ""


def classify(
    document: Document, key: str, text: str, *, only_certain: bool = False
) -> list[Candidate]:
    """Return the image that a string is, or the images that it shows in Markdown.

    `only_certain` excludes addresses that only the name of the field suggests.
    """
    # A text that shows images has no other image; one that does not may still be an image itself.
    name = field_name(key)
    if name.plain in PROSE_NAMES and (urls := shown_images(text)):
        shown = (_classify(document, "url", url, field_name("url")) for url in urls)
        return [candidate for candidate in shown if candidate is not None]
    if name.is_text or not text or text[0] in "{[":  # JSON is searched by the caller
        return []
    # The usual spellings first, which are decoded already. What looks broken there may be an
    # unusual spelling, for instance a prefix that base64 cannot have.
    candidate = _classify(document, key, text, name)
    if candidate is None or candidate.problem is not None or _is_odd(candidate.url):
        candidate = _respelled(document, key, text, name) or candidate
    if candidate is None or (only_certain and candidate.url and not _is_certain(name, text)):
        return []
    candidate.text = text
    return [candidate]


def _respelled(document: Document, key: str, text: str, name: FieldName) -> Candidate | None:
    """Return the image in an unusual spelling, which needs no name of a field to be certain."""
    if text in document.images:
        return None
    found = respelled(text)
    if isinstance(found, bytes):
        return Candidate(key, found)
    usable = found is not None and found != text.strip() and name.may_be_image
    return Candidate(key, url=found) if usable else None


def _is_odd(url: str | None) -> bool:
    return url is not None and not url.startswith(("http://", "https://"))


def is_address(key: str, text: str) -> bool:
    """Return whether a string is an http URL under a name that does not exclude an image."""
    name = field_name(key)
    return not name.is_text and not name.is_other and _ADDRESS.fullmatch(text.strip()) is not None


def plain_images(text: str) -> list[Any]:
    """Return documents for the images of a text that is not JSON: base64, or one or more URLs."""
    text = text.strip()
    if _DATA_URL_REST.match(text):
        text = "data:" + text  # whose prefix was read as that of a line of server-sent events
    if text[:5].lower() == "data:" or is_base64_image(text):
        return ["".join(text.split())]
    parts = text.split()
    if parts and all(_ADDRESS.fullmatch(part) for part in parts):
        return [[part] for part in parts]
    return []


def bytes_of(numbers: list[object]) -> bytes | None:
    """Return the image that a list of numbers is, as in the JSON of a Node.js Buffer, or None."""
    try:
        # Java has signed bytes, and some languages have no integers.
        start = bytes(int(number) & 0xFF for number in numbers[:4096])  # type: ignore[call-overload]
        return bytes(int(number) & 0xFF for number in numbers) if is_image(start) else None  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None


def _is_certain(name: FieldName, text: str) -> bool:
    return name.is_image and _FILE.fullmatch(text.strip()) is not None


def _classify(document: Document, key: str, text: str, name: FieldName) -> Candidate | None:
    # A placeholder, for what was decoded as it arrived; only its name and bytes matter.
    decoded = document.images.get(text)
    if decoded is None:
        return _classify_text(document, key, text, name)
    if isinstance(decoded, BadBase64):
        return Candidate(key, problem=decoded.reason) if name.is_base64 else None
    return _judged(key, decoded, name)


def _classify_text(document: Document, key: str, text: str, name: FieldName) -> Candidate | None:
    # In the order of certainty: what the text itself says, then what the name of its field says.
    start = text[:16].lstrip().lower()
    if start in NOTHING:
        return None
    if start.startswith("data:"):
        is_image_url = name.may_be_image or "data:image/" in start
        return _data_url(document, key, text) if is_image_url else None
    if start.startswith(("http://", "https://", "//")):
        named = not name.is_other and _FILE.fullmatch(text.strip())
        # Under the very names of addresses, an odd one is for the download to judge.
        fits = name.may_be_image and (name.is_address or _ADDRESS.fullmatch(text.strip()))
        return Candidate(key, url=read_str(text.strip())) if fits or named else None
    # Before base64, since hexadecimal digits are base64 too.
    if (content := from_hex(text.strip())) is not None:
        return Candidate(key, content)
    # A short text under a name such as `data` or `output` is more likely a word than an image.
    looks_so = is_base64_image(text)
    if name.is_base64 or looks_so or (name.may_be_image and len(text) >= _MIN_BASE64):
        decoded = document.decoded(text)
        if isinstance(decoded, bytes):
            return _judged(key, decoded, name)
        if decoded is not None and (name.is_base64 or (name.may_be_image and looks_so)):
            return Candidate(key, problem=decoded.reason)
    if name.may_be_image and text.startswith("/") and _FILE.fullmatch(text):
        return Candidate(key, url=read_str(text))
    # Relative to the base URL; "cid:" is the address of another part of the same body (RFC 2392).
    is_relative = start[:4] != "cid:" and not any(char.isspace() for char in text)
    return Candidate(key, url=read_str(text)) if name.is_address and is_relative else None


def _judged(key: str, content: bytes, name: FieldName) -> Candidate | None:
    """Classify decoded base64 by its signature and the name of its field."""
    # A signature is certain. Clearly no image is an error under a name for base64 alone. Bytes of
    # an unknown format are an image if the name allows it.
    if (image := unwrapped(content)) is not None:
        return Candidate(key, image)
    if cannot_be_image(content):
        return Candidate(key, content, problem=_NO_IMAGE) if name.is_base64 else None
    return Candidate(key, content) if name.may_be_image else None


def _data_url(document: Document, key: str, text: str) -> Candidate | None:
    head, comma, rest = text.strip().partition(",")
    # RFC 2397: without ";base64" the data are percent-encoded, as is usual for SVG.
    if comma and not head.lower().endswith(";base64") and head.lower().startswith("data:image/"):
        content = unquote_to_bytes(rest)
        return Candidate(key, content, problem=None if is_image(content) else _NO_IMAGE)
    decoded = document.decoded(text)
    if isinstance(decoded, bytes):
        return _judged(key, decoded, field_name("b64_json"))
    return None if decoded is None else Candidate(key, problem=decoded.reason)


def pair(candidates: list[Candidate]) -> list[tuple[Candidate | None, Candidate | None]]:
    """Return the images among the strings of one object, as pairs of bytes and URL.

    Strings under one name are several images; base64 and a URL under two names are the same one,
    and so are an address and the further ones of the same image.
    """
    # Base64 first, each content once. Then the addresses, name by name: if there are as many new
    # ones as there are images without an address, they belong to those, in order; otherwise each is
    # an image of its own.
    groups: dict[str, list[Candidate]] = {}
    for found in candidates:
        groups.setdefault(found.key, []).append(found)
    if any(field_name(key).is_address and len(group) == 1 for key, group in groups.items()):
        groups = {key: group for key, group in groups.items() if not field_name(key).is_variant}
    pairs: list[tuple[Candidate | None, Candidate | None]] = []
    addresses: list[list[Candidate]] = []
    for group in groups.values():
        if all(found.url for found in group):
            addresses.append(group)
            continue
        for found in group:
            if found.url:
                pairs.append((None, found))
            elif all(known is None or known.content != found.content for known, _ in pairs):
                pairs.append((found, None))
    seen: set[str | None] = set()
    for group in addresses:
        new = [found for found in group if found.url not in seen]
        seen |= {found.url for found in group}
        alone = [place for place, (_, url) in enumerate(pairs) if url is None]
        if len(alone) == len(new):
            for place, found in zip(alone, new, strict=True):
                pairs[place] = pairs[place][0], found
        else:
            pairs += [(None, found) for found in new]
    return pairs
