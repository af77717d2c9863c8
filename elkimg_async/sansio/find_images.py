"""Every image of a document, wherever the server put it.

Images are looked for first, and only then is decided what they are. A string is an image if its
*content* says so (base64 with the signature of an image, a `data:` URL of one), under any key; or
if its *key* does (`b64_json`, `url`, `image_url`, …) and the content does not contradict. Text
that people read (prompts, messages) and what the server repeats of the request are never searched.

Strings of one object belong together: base64 and an address side by side are one image. What a
server sends twice, under `data` and again under `images`, is counted once.
"""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from elkimg_async.image import Image
from elkimg_async.sansio.base64_text import BadBase64
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.reading import read_str
from elkimg_async.sansio.signatures import cannot_be_image, is_base64_image, is_image

_MAX_DEPTH = 100
_NOT_LETTERS = re.compile(r"[^a-z0-9]")
# Keys, without case and punctuation, whose strings are base64 and nothing else.
_BASE64_KEYS = {"b64json", "b64", "base64", "imagebase64", "imageb64", "b64image", "base64image"}
_BASE64_KEYS |= {"partialimageb64", "bytesbase64encoded", "imagebytes"}
# Keys whose strings may be images: an http URL, or base64 that is long enough.
_IMAGE_KEYS = re.compile(
    r"imag|img|picture|photo|artifact|^(?:urls?|uris?|src|srcs|data|outputs?|results?|samples?|files?"
    r"|content|assets?|links?|items|generations?|predictions?|completed?|urllist|filer?ur[il]"
    r"|(?:output|result|file|download|signed|public|cdn|asset|media|sample|hosted|content|object|full)"
    r"(?:ur[il]s?|link))$"
)
_ADDRESS_KEYS = {"url", "imageurl", "urls", "imageurls", "imguri", "uri", "imageuri"}
_OTHER_KEYS = re.compile(
    r"status|poll|cancel|callback|webhook|doc|help|support|terms|privacy|avatar|icon|logo|profile|homepage"
    r"|queue|^next|^prev|mask|reference|source|input|referer|retry|response(?:ur|$)"
)
# Text for people, and what repeats the request.
_TEXT_KEYS = re.compile(
    r"prompt|message|^msg|msg$|^text|text$|caption|description|detail|reason|^title|^notes?$|comment|explanation"
    r"|^logs?$|warning|hint|instruction|^err"
)
_REQUEST_KEYS = {"input", "inputs", "request", "mask", "usage", "messages", "moderationdetails"}
_SECONDARY = re.compile(r"thumb|preview|lowres|small")
_NOTHING = {"", "null", "none", "undefined", "nan", "n/a", "-"}
_FILE = re.compile(
    r"[^?#]*\.(?:png|jpe?g|webp|gif|svg|avif|bmp|tiff?|heic|jxl)(?:[?#]\S*)?", re.IGNORECASE
)
_LISTS = {"data", "images", "output", "outputs", "results", "generations", "predictions", "items"}
_MIN_BASE64 = 256  # characters of base64 without a signature under a key that may be an image
_ADDRESS = re.compile(r"(?:https?:)?//\S+", re.IGNORECASE)


class FoundImage(msgspec.Struct, frozen=True):
    """One image, the objects around it from the outside in, and the list that it came in."""

    image: Image
    chain: tuple[dict[str, Any], ...]
    container: str
    key: str


class BrokenImage(msgspec.Struct, frozen=True):
    """Something in the place of an image that is none; `content` is what could be decoded."""

    reason: str
    content: bytes | None
    number: int
    beside: bool
    """Whether a good image stands in the same object."""
    chain: tuple[dict[str, Any], ...]


class Findings(msgspec.Struct):
    """All that a search found; `without` are the items of lists of images that have none."""

    found: list[FoundImage] = []
    broken: list[BrokenImage] = []
    without: list[Any] = []
    extra: dict[str, Any] = {}

    @property
    def images(self) -> tuple[Image, ...]:
        """The images alone."""
        return tuple(entry.image for entry in self.found)


def find_images(document: Document) -> Findings:
    """Return the images of a document, in order."""
    search = _Search(document)
    search.walk(document.value, "data", (), None, "")
    return search.finish()


def images_of(documents: list[Document]) -> tuple[Image, ...]:
    """Return the images of several documents."""
    return tuple(image for document in documents for image in find_images(document).images)


class _Kind(msgspec.Struct, frozen=True):
    """What a key says about its strings."""

    plain: str
    is_text: bool
    surely: bool
    maybe: bool
    other: bool
    address: bool
    secondary: bool


@lru_cache(maxsize=1024)
def _kind_of(key: str) -> _Kind:
    plain = _NOT_LETTERS.sub("", key.lower())
    surely = plain in _BASE64_KEYS
    other = _OTHER_KEYS.search(plain) is not None
    is_text = _TEXT_KEYS.search(plain) is not None or plain in _REQUEST_KEYS
    return _Kind(
        plain,
        is_text=is_text and not surely,
        surely=surely,
        maybe=surely or (_IMAGE_KEYS.search(plain) is not None and not other),
        other=other,
        address=plain in _ADDRESS_KEYS,
        secondary=_SECONDARY.search(plain) is not None,
    )


class _Candidate(msgspec.Struct):
    """A string that is an image: its bytes or its address, or what is wrong with it."""

    key: str
    content: bytes | None = None
    url: str | None = None
    problem: str | None = None
    text: str = ""


class _Search:
    """One walk through a document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._findings = Findings()
        self._used: set[int] = set()  # the identities of the objects that became images,
        self._taken: set[int] = set()  # and of their strings
        self._items: dict[int, Any] = {}

    @property
    def _count(self) -> int:
        return len(self._findings.found) + len(self._findings.broken)

    def walk(
        self, value: Any, key: str, chain: tuple[dict[str, Any], ...], item: Any, container: str
    ) -> None:
        """Search one value; `item` is the list element that it belongs to."""
        if len(chain) > _MAX_DEPTH or container.count("[") > _MAX_DEPTH:
            return
        if isinstance(value, dict):
            inside = (*chain, value)
            strings = [
                (name, text)
                for name, field in value.items()
                for text in (field if isinstance(field, list) else [field])
                if isinstance(text, str)
            ]
            if strings:
                self._take(strings, inside, item, container)
            for name, field in value.items():
                if isinstance(field, (dict, list)) and _kind_of(name).plain not in _REQUEST_KEYS:
                    self.walk(field, name, inside, item, f"{container}.{name}")
        elif isinstance(value, list):
            if not chain:
                strings = [(key, text) for text in value if isinstance(text, str)]
                self._take(strings, (), None, container)
            for element in value:
                before = self._count
                if isinstance(element, (dict, list)):
                    self.walk(element, key, chain, element, container + "[]")
                elif isinstance(element, str) and element not in _NOTHING:
                    continue
                if self._count == before and _kind_of(key).plain in _LISTS and len(chain) <= 2:
                    self._findings.without.append(element)
        elif isinstance(value, str) and not chain:
            self._take([("", value)], (), None, container)

    def _take(
        self,
        strings: list[tuple[str, str]],
        chain: tuple[dict[str, Any], ...],
        item: Any,
        container: str,
    ) -> None:
        """Take the images among the strings of one object."""
        candidates = []
        for key, text in strings:
            if (candidate := self._classify(key, text)) is not None:
                candidate.text = text
                candidates.append(candidate)
        if not candidates:
            return
        good = [found for found in candidates if found.problem is None]
        primary = [found for found in good if not _kind_of(found.key).secondary]
        good = primary or good
        pairs = _paired(good)
        holder = item if item is not None else (chain[-1] if len(chain) > 1 else None)
        for content, url in pairs:
            image = Image(
                content.content if content else None,
                url=url.url if url else None,
                revised_prompt=_revised_prompt(chain),
            )
            first = content or url
            assert first is not None
            self._findings.found.append(FoundImage(image, chain, container, first.key))
        self._taken |= {id(found.text) for found in good}
        if holder is not None and good:
            self._used.add(id(holder))
            self._items[id(self._findings.found[-1])] = holder
        for found in candidates:
            if found.problem is not None and (found.content is not None or not good):
                number = self._count + (not good)
                self._findings.broken.append(
                    BrokenImage(
                        found.problem, found.content, number, beside=bool(good), chain=chain
                    )
                )

    def _classify(self, key: str, text: str) -> _Candidate | None:
        """Return what a string is as an image; None when it is none."""
        kind = _kind_of(key)
        if kind.is_text or not text:
            return None
        decoded = self._document.images.get(text)
        if decoded is None:
            return self._classify_text(key, kind, text)
        if isinstance(decoded, BadBase64):
            return _Candidate(key, problem=decoded.reason) if kind.surely else None
        return _judged(key, decoded, kind)

    def _classify_text(self, key: str, kind: _Kind, text: str) -> _Candidate | None:
        start = text[:16].lstrip().lower()
        if start in _NOTHING:
            return None
        if start.startswith("data:"):
            is_image_url = kind.maybe or "data:image/" in start
            return _data_url(self._document, key, text) if is_image_url else None
        if start.startswith(("http://", "https://", "//")):
            named = not kind.other and _FILE.fullmatch(text.strip())
            # Under the very keys of addresses, an odd one is for the download to judge.
            is_address = kind.maybe and (kind.address or _ADDRESS.fullmatch(text.strip()))
            is_address = is_address or named
            return _Candidate(key, url=read_str(text.strip())) if is_address else None
        looks_so = is_base64_image(text)
        if kind.surely or looks_so or (kind.maybe and len(text) >= _MIN_BASE64):
            decoded = self._document.decoded(text)
            if isinstance(decoded, bytes):
                return _judged(key, decoded, kind)
            if decoded is not None and (kind.surely or (kind.maybe and looks_so)):
                return _Candidate(key, problem=decoded.reason)
        if kind.maybe and text.startswith("/") and _FILE.fullmatch(text):
            return _Candidate(key, url=read_str(text))
        if kind.address and not any(char.isspace() for char in text):
            return _Candidate(key, url=read_str(text))  # relative to the base URL
        return None

    def finish(self) -> Findings:
        """Count once what was sent twice, and collect what is left over of each object."""
        findings = self._findings
        if len({entry.container for entry in findings.found}) > 1:
            findings.found = _without_copies(findings.found)
        good = {id(entry.chain[-1]) for entry in findings.found if entry.chain}
        findings.broken = [
            broken
            for broken in findings.broken
            if broken.content is not None
            or not any(id(around) in good for around in broken.chain[:-1])
        ]
        for entry in findings.found:
            holder = self._items.get(id(entry))
            if holder is not None and isinstance(holder, dict):
                entry.image.extra = self._rest(holder, _IMAGE_FIELDS)
        root = self._document.value
        if isinstance(root, dict):
            findings.extra = self._rest(root, ())
        return findings

    def _rest(self, value: dict[str, Any], known: Any) -> dict[str, Any]:
        """Return the fields of an object that became neither image nor attribute, as sent."""
        rest = {}
        for name, field in value.items():
            if name in known:
                continue
            left = self._pruned(field)
            if left is not _GONE:
                rest[name] = left
        return rest

    def _pruned(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            if id(value) in self._taken:
                return _GONE
            return self._document.restore(value) if value in self._document.images else value
        if depth > _MAX_DEPTH or not isinstance(value, (dict, list)) or not value:
            return value
        if id(value) in self._used:
            return _GONE
        if isinstance(value, dict):
            fields = ((name, self._pruned(field, depth + 1)) for name, field in value.items())
            return {name: field for name, field in fields if field is not _GONE} or _GONE
        pruned = (self._pruned(item, depth + 1) for item in value)
        return [item for item in pruned if item is not _GONE] or _GONE


_IMAGE_FIELDS = ("b64_json", "url", "revised_prompt")
_GONE: Any = object()


def _judged(key: str, content: bytes, kind: _Kind) -> _Candidate | None:
    """Return whether decoded base64 is an image, by its signature and its key."""
    if is_image(content):
        return _Candidate(key, content)
    if cannot_be_image(content):
        return _Candidate(key, content, problem=_NO_IMAGE) if kind.surely else None
    return _Candidate(key, content) if kind.maybe else None


_NO_IMAGE = "it is not an image"


def _data_url(document: Document, key: str, text: str) -> _Candidate | None:
    head, comma, rest = text.strip().partition(",")
    if comma and not head.lower().endswith(";base64") and head.lower().startswith("data:image/"):
        content = unquote_to_bytes(rest)
        return _Candidate(key, content, problem=None if is_image(content) else _NO_IMAGE)
    decoded = document.decoded(text)
    if isinstance(decoded, bytes):
        return _judged(key, decoded, _kind_of("b64_json"))
    return None if decoded is None else _Candidate(key, problem=decoded.reason)


def _paired(good: list[_Candidate]) -> list[tuple[_Candidate | None, _Candidate | None]]:
    """Return the images of one object as pairs of bytes and address.

    What stands under one key are several images; under two keys, base64 and an address are the
    same one.
    """
    groups: dict[str, list[_Candidate]] = {}
    for found in good:
        groups.setdefault(found.key, []).append(found)
    pairs: list[tuple[_Candidate | None, _Candidate | None]] = []
    addresses: list[list[_Candidate]] = []
    for group in groups.values():
        if all(found.url for found in group):
            addresses.append(group)
            continue
        for found in group:
            if (
                all(known is None or known.content != found.content for known, _ in pairs)
                or found.url
            ):
                pairs.append((None, found) if found.url else (found, None))
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


def _revised_prompt(chain: tuple[dict[str, Any], ...]) -> str | None:
    for around in reversed(chain):
        if (text := read_str(around.get("revised_prompt"))) is not None:
            return text
    return None


def _without_copies(found: list[FoundImage]) -> list[FoundImage]:
    """Keep each image as often as the list that has it most often."""
    counts: dict[Any, dict[str, int]] = {}
    for entry in found:
        counted = counts.setdefault(_identity(entry), {})
        counted[entry.container] = counted.get(entry.container, 0) + 1
    best = {
        identity: max(where, key=lambda name: where[name]) for identity, where in counts.items()
    }
    return [entry for entry in found if best[_identity(entry)] == entry.container]


def _identity(entry: FoundImage) -> Any:
    return entry.image.content or entry.image.url
