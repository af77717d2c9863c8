"""Search for the images of a document, wherever the server put them.

Images are searched for first and classified afterwards. A string is an image if its *content* says
so (base64 with the signature of an image, a `data:` URL of one), under any name; or if its *name*
does (`b64_json`, `url`, `image_url`, …) and the content does not contradict; or if it is the only
address of an item in a list of images. Text for people (prompts, messages) and fields repeated from
the request are never searched; JSON inside a string is. In an error, an address is an image only
where nothing else could be meant, since errors link to documentation and quote the request.

Strings of one object belong together: base64 and a URL side by side are one image. An image that is
sent twice, under `data` and again under `images`, is counted once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from elkimg_async.image import Image
from elkimg_async.sansio.error_words import pending_task, strength
from elkimg_async.sansio.field_names import field_name
from elkimg_async.sansio.image_strings import (
    NOTHING,
    Candidate,
    bytes_of,
    classify,
    is_address,
    pair,
)
from elkimg_async.sansio.json_images import Document
from elkimg_async.sansio.lenient_json import InvalidJSON, decode, embedded_json
from elkimg_async.sansio.prose_images import PROSE_NAMES, is_of_user
from elkimg_async.sansio.reading import read_str

_MAX_DEPTH = 100
_MAX_JSON = 8  # levels of JSON inside a string


class FoundImage(msgspec.Struct, frozen=True):
    """One image, the objects around it from the outside in, and the list that contains it."""

    image: Image
    chain: tuple[dict[str, Any], ...]
    container: str
    key: str


class BrokenImage(msgspec.Struct, frozen=True):
    """A string in the place of an image that is not one; `content` is what could be decoded."""

    reason: str
    content: bytes | None
    number: int
    beside: bool
    """Whether the same object has a valid image."""
    chain: tuple[dict[str, Any], ...]


class Findings(msgspec.Struct):
    """The results of a search; `without` has the items without images in lists of images."""

    found: list[FoundImage] = []
    broken: list[BrokenImage] = []
    without: list[Any] = []
    extra: dict[str, Any] = {}

    @property
    def images(self) -> tuple[Image, ...]:
        """The images only."""
        return tuple(entry.image for entry in self.found)


def find_images(document: Document, *, of_error: bool = False) -> Findings:
    """Return the images of a document, in order; `of_error` is whether it reports an error."""
    search = _Search(document)
    search.walk(document.value, "data", _Place((), None, ".error" if of_error else ""))
    return search.finish()


def images_of(documents: list[Document], *, of_error: bool = False) -> tuple[Image, ...]:
    """Return the images of several documents."""
    return tuple(
        image for document in documents for image in find_images(document, of_error=of_error).images
    )


class _Place(NamedTuple):
    """Where a value is in a document."""

    chain: tuple[dict[str, Any], ...]
    """The objects around it, from the outside in."""
    item: Any
    """The innermost list element that it belongs to, or None."""
    container: str
    """The names and lists around it, from the outside in, as in `.data[].image`."""

    def below(self, name: str) -> "_Place":
        """Return the place of what is under a name here."""
        return _Place(self.chain, self.item, f"{self.container}.{name}")


class _Search:
    """One walk through a document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._findings = Findings()
        self._used: set[int] = set()  # the identities of the objects that became images,
        self._taken: set[int] = set()  # and of their strings
        self._holders: list[tuple[Image, Any]] = []  # whose other fields are an image's `extra`
        self._json_depth = 0
        self._parsed: list[Any] = []  # keeps JSON inside strings, and so its identities, alive

    @property
    def _count(self) -> int:
        return len(self._findings.found) + len(self._findings.broken)

    def walk(self, value: Any, key: str, place: _Place) -> None:
        """Search one value, which has the name `key` or is in a list of that name."""
        # A limit on recursion. Lists count apart, since they add nothing to the chain.
        if len(place.chain) > _MAX_DEPTH or place.container.count("[") > _MAX_DEPTH:
            return
        if isinstance(value, dict):
            self._walk_object(value, key, place)
        elif isinstance(value, list):
            self._walk_list(value, key, place)
        elif isinstance(value, str) and not place.chain:
            self._take([("data", value)], place)
            self._walk_json("data", value, place)

    def _walk_object(self, value: dict[str, Any], key: str, place: _Place) -> None:
        if is_of_user(value):
            return
        # A Uint8Array in JSON: {"0": 137, "1": 80, …}.
        if type(value.get("0")) is int and self._take_numbers(value, [*value.values()], key, place):
            return
        # The strings of lists belong to this object too: {"image_base64": ["…", "…"]}.
        strings = [
            (name, text)
            for name, field in value.items()
            for text in (field if isinstance(field, list) else [field])
            if isinstance(text, str)
        ]
        # Only if no name inside says more than the outer one.
        if field_name(key).is_image and not any(
            field_name(name).may_be_image for name, _ in strings
        ):
            # {"images": {"front": "https://…"}}: the outer name is that of the addresses.
            strings = [(_image_name(name, text), text) for name, text in strings]
        # All strings at once and before the fields, since `pair` has to see what belongs together.
        inside = _Place((*place.chain, value), place.item, place.container)
        if strings:
            self._take(strings, inside)
        for name, field in value.items():
            if field_name(name).is_request:
                continue  # an image that the user sent is not one of the response
            if isinstance(field, (dict, list)):
                self.walk(field, name, inside.below(name))
            elif isinstance(field, str):
                self._walk_json(name, field, inside)

    def _walk_list(self, value: list[Any], key: str, place: _Place) -> None:
        # The bytes of an image as numbers, as in the JSON of a Node.js Buffer.
        is_number = value and type(value[0]) in (int, float)
        if is_number and self._take_numbers(value, value, key, place):
            return
        # The strings of a list directly inside an object were taken with that object.
        name = field_name(key)
        if not place.chain or place.container.endswith("[]"):
            self._take([(key, text) for text in value if isinstance(text, str)], place)
        for element in value:
            before = self._count
            if isinstance(element, (dict, list)):
                inside = _Place(place.chain, element, place.container + "[]")
                self.walk(element, key, inside)
                if self._count == before and (name.is_list or name.is_image):
                    self._take_only_address(element, inside)
            elif isinstance(element, str) and element not in NOTHING:
                continue
            # Only near the root does a list have one item for each image that was requested.
            if self._count == before and name.is_list and len(place.chain) <= 2:
                self._findings.without.append(element)

    def _walk_json(self, key: str, text: str, place: _Place) -> None:
        """Search JSON inside a string."""
        name = field_name(key)
        # Only in what a model wrote is JSON searched for behind other words.
        is_prose = name.plain in PROSE_NAMES
        source = embedded_json(text) if is_prose else text
        if source is None or source.lstrip()[:1] not in ("{", "["):
            return
        if (name.is_text and not is_prose) or self._json_depth >= _MAX_JSON:
            return
        try:
            value = decode(source.encode("utf-8", "replace"))
        except InvalidJSON:
            return
        # `_taken` and `_used` know objects by their identity, which another object could have once
        # this one is gone.
        self._parsed.append(value)
        before = self._count
        self._json_depth += 1
        if isinstance(value, list):
            self._take([(key, element) for element in value if isinstance(element, str)], place)
        self.walk(value, key, place.below(key))
        self._json_depth -= 1
        if self._count > before:
            self._taken.add(id(text))  # no field of `extra` repeats the images

    def _take_numbers(self, value: Any, numbers: list[Any], key: str, place: _Place) -> bool:
        """Record the image whose bytes are numbers; return False if they are not an image."""
        if (content := bytes_of(numbers)) is None:
            return False
        self._record([Candidate(key, content)], place)
        self._used.add(id(value))
        return True

    def _take_only_address(self, element: Any, place: _Place) -> None:
        """Record the only address of an item in a list of images, under whatever name."""
        # The address of a failed or pending item is of its status, not of an image.
        if strength(element) == 2 or pending_task(element) is not None:
            return
        found = list(_addresses(element, place.chain, 0))
        if len({text for _, text, _ in found}) == 1:
            name, text, chain = found[0]
            self._take([(_image_name(name, text), text)], _Place(chain, element, place.container))

    def _take(self, strings: list[tuple[str, str]], place: _Place) -> None:
        """Record the images among the strings of one object."""
        only_certain = _is_of_error(place.container)
        candidates = [
            candidate
            for key, text in strings
            for candidate in classify(self._document, key, text, only_certain=only_certain)
        ]
        if candidates:
            self._record(candidates, place)

    def _record(self, candidates: list[Candidate], place: _Place) -> None:
        # A thumbnail is an image only where there is no other.
        good = [found for found in candidates if found.problem is None]
        good = [found for found in good if not field_name(found.key).is_secondary] or good
        # The other fields of the holder become the image's `extra`. Fields of the root are those of
        # the response instead, so an image directly in it has no holder.
        chain, holder = place.chain, place.item
        if holder is None and len(chain) > 1:
            holder = chain[-1]
        for content, url in pair(good):
            image = Image(
                content.content if content else None,
                url=url.url if url else None,
                revised_prompt=_revised_prompt(chain),
            )
            first = content or url
            assert first is not None
            self._findings.found.append(FoundImage(image, chain, place.container, first.key))
            self._taken |= {id(found.text) for found in (content, url) if found is not None}
        if holder is not None and good:
            self._used.add(id(holder))
            self._holders.append((self._findings.found[-1].image, holder))
        # Beside a valid image, only what could be decoded counts as broken; other text may be
        # anything.
        for found in candidates:
            if found.problem is not None and (found.content is not None or not good):
                number = self._count + (not good)
                self._findings.broken.append(
                    BrokenImage(
                        found.problem, found.content, number, beside=bool(good), chain=chain
                    )
                )

    def finish(self) -> Findings:
        """Remove duplicates, and collect the remaining fields of each object."""
        findings = self._findings
        # Within one list, equal images are images of their own; in several, one is a copy.
        if len({entry.container for entry in findings.found}) > 1:
            findings.found = _without_copies(findings.found)
        # What is broken inside an object that has a valid image is not a further image.
        good = {id(entry.chain[-1]) for entry in findings.found if entry.chain}
        findings.broken = [
            broken
            for broken in findings.broken
            if broken.content is not None
            or not any(id(around) in good for around in broken.chain[:-1])
        ]
        for image, holder in self._holders:
            if isinstance(holder, dict):
                image.extra = self._rest(holder, _IMAGE_FIELDS)
        root = self._document.value
        if isinstance(root, dict):
            findings.extra = self._rest(root)
        return findings

    def _rest(
        self, value: dict[str, Any], known: tuple[str, ...] = (), depth: int = 0
    ) -> dict[str, Any]:
        """Return the fields of an object that are neither image nor attribute, as sent."""
        fields = ((name, self._pruned(value[name], depth)) for name in value if name not in known)
        return {name: field for name, field in fields if field is not _GONE}

    def _pruned(self, value: Any, depth: int) -> Any:
        # Objects and lists that are empty now had nothing but images. Those that were empty before
        # are a field as any other.
        if isinstance(value, str):
            if id(value) in self._taken:
                return _GONE
            return self._document.restore(value) if value in self._document.images else value
        if depth > _MAX_DEPTH or not isinstance(value, (dict, list)) or not value:
            return self._document.restore(value)
        if id(value) in self._used:
            return _GONE
        if isinstance(value, dict):
            return self._rest(value, depth=depth + 1) or _GONE
        pruned = (self._pruned(item, depth + 1) for item in value)
        return [item for item in pruned if item is not _GONE] or _GONE


_IMAGE_FIELDS = ("b64_json", "url", "revised_prompt")
_GONE: Any = object()


def _is_of_error(container: str) -> bool:
    """Return whether a place is inside an error, and not in a list of images there."""
    # From the outside in: a list of images inside an error is searched as any other, and an error
    # inside one of its items is an error again.
    error = False
    for part in container.replace("[]", ".[]").split("."):
        if part and part != "[]":
            name = field_name(part)
            error = (error or name.is_error) and not name.is_image and not name.is_list
    return error


def _image_name(name: str, text: str) -> str:
    """Return the name of an image for an address, or else the same name."""
    return f"image_{name}" if is_address(name, text) else name


def _addresses(
    value: Any, chain: tuple[dict[str, Any], ...], depth: int
) -> Iterator[tuple[str, str, tuple[dict[str, Any], ...]]]:
    """Yield the addresses in an object, each with its name and the objects around it."""
    if depth > _MAX_JSON or not isinstance(value, (dict, list)):
        return
    if isinstance(value, list):
        for element in value:
            yield from _addresses(element, chain, depth + 1)
        return
    inside = (*chain, value)
    for name, field in value.items():
        meaning = field_name(name)
        if meaning.is_request or meaning.is_error or meaning.is_other:
            continue
        for text in field if isinstance(field, list) else [field]:
            if isinstance(text, str) and is_address(name, text):
                yield name, text, inside
        yield from _addresses(field, inside, depth + 1)


def _revised_prompt(chain: tuple[dict[str, Any], ...]) -> str | None:
    texts = (read_str(around.get("revised_prompt")) for around in reversed(chain))
    return next((text for text in texts if text is not None), None)


def _without_copies(found: list[FoundImage]) -> list[FoundImage]:
    """Keep each image only in the list that contains it most often."""
    # A response may have `data` with two equal images and `images` with one: the list that has more
    # is right, and the first of them if they have equally many.
    counts: dict[Any, dict[str, int]] = {}
    for entry in found:
        counted = counts.setdefault(identity(entry.image), {})
        counted[entry.container] = counted.get(entry.container, 0) + 1
    best = {image: max(where, key=lambda name: where[name]) for image, where in counts.items()}
    return [entry for entry in found if best[identity(entry.image)] == entry.container]


def identity(image: Image) -> bytes | str | None:
    """Return what makes two images the same: the bytes, or else the URL."""
    return image.content or image.url
