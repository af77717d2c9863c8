"""Valid bodies of every known dialect, mutated, with the images that must come out of each.

A body is one document, a stream, several parts, text of a model in pieces, or any of these encoded.

`make_body` builds one from a seed; `check_body` feeds it to the decoder and compares. The
mutations rename keys, nest, reorder, wrap, duplicate, add siblings and re-spell base64; the
siblings include text that contains base64 and addresses and is not an image.
"""

import base64
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import quote

import msgspec

from elkimg_async.errors import ElkImagesError
from elkimg_async.sansio.decoder import ImagesDecoder, SkippedEvent
from elkimg_async.sansio.responses import CompletedImage

SIGNATURES = [
    b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
    b"\xff\xd8\xff\xe0\0\x10JFIF",
    b"RIFF\x24\0\0\0WEBPVP8 ",
    b"GIF89a\x01\0\x01\0",
    b"\0\0\0\x1cftypavif",
    b'<svg xmlns="http://www.w3.org/2000/svg">',
]
WORDS = ["foo", "x1", "blob", "payload", "asset_bytes", "thing", "v", "art", "sigma"]
WRAPPERS = ["result", "output", "response", "data", "payload", "body", "wrapped", "x", "zz_9"]
URL_KEYS = ["url", "image_url", "imageUrl", "uri", "image", "output_url", "download_url", "img_url"]
ODD_PREFIXES = [
    *("data:;base64,", "data:base64,", "base64,", "base64:", "data:image/png; base64,"),
    *("data:image/png,", "data:image/png;charset=utf-8;base64,", "image/png;base64,", "\n "),
    *('data:image/png;name="a,b.png";base64,', "data:image/png;base64,data:image/png;base64,"),
]
DIALECTS = [
    *("batch", "batch", "batch", "stream", "stream", "stream", "failing"),
    *("chat", "parts", "encoded"),
]
PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"


class Made(msgspec.Struct):
    """One image as generated: its bytes or its URL, and its form in JSON."""

    identity: bytes | str
    text: Any
    """A string, or a list of bytes as numbers."""
    partial: bool = False
    named: bool = False
    """Whether only the name of its field shows that it is an image."""

    @property
    def is_url(self) -> bool:
        """Whether only its URL is sent."""
        return isinstance(self.identity, str)


class Body(msgspec.Struct):
    """A body to decode: its bytes in chunks, and the expected images."""

    dialect: str
    chunks: list[bytes]
    images: list[Made]
    fails: bool = False
    whole: bool = True


class Maker:
    """Generator of bodies from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.images: list[Made] = []

    def image(self, *, url: bool | None = None, partial: bool = False) -> Made:
        """Return a new image, different from all others."""
        random = self.random
        number = random.getrandbits(64)
        if random.random() < 0.4 if url is None else url:
            name = random.choice(["{:x}.png", "{:x}", "out/{:x}.webp?sig=a%2Fb&se=1", "f?id={:x}"])
            address = "https://cdn.example.com/" + name.format(number)
            made = Made(address, address, partial)
        else:
            size = random.choice([0, 1, 40, 380, 400, 800, 3_000, 20_000])
            content = random.choice(SIGNATURES) + b"%x" % number + random.randbytes(size)
            if random.random() < 0.1:
                made = self.oddly_spelled(number, content, partial=partial)
            else:
                made = Made(content, self.spell(content), partial)
        self.images.append(made)
        return made

    def spell(self, content: bytes) -> str:
        """Return base64 of the content, in one of the forms that servers use."""
        text = base64.b64encode(content).decode()
        way = self.random.random()
        if way < 0.1:
            text = text.rstrip("=")
        elif way < 0.2:
            text = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
        elif way < 0.25:
            text = text.translate(str.maketrans("+/", "-_"))
        if self.random.random() < 0.15:
            text = "data:image/png;base64," + text
        return text

    def oddly_spelled(self, number: int, content: bytes, *, partial: bool) -> Made:
        """Return an image in a form that only its content shows."""
        random = self.random
        text = base64.b64encode(content).decode()
        way = random.randrange(7)
        if len(content) < 400 and way in (2, 3):
            way = 0  # under most names, short base64 without a signature is not an image
        if way == 0:
            text = random.choice(ODD_PREFIXES) + text
        elif way == 1:
            text = "data:image/png;base64," + quote(text, safe="")
        elif way == 2:
            text = base64.b64encode(gzip.compress(content, mtime=0)).decode()
            return Made(content, text, partial, named=True)
        elif way == 3:
            text = base64.b64encode(text.encode()).decode()
            return Made(content, text, partial, named=True)
        elif way == 4:
            return Made(content, list(content), partial)
        elif way == 5:
            content = b'<svg xmlns="http://www.w3.org/2000/svg"><g id="%x"/></svg>' % number
            start = random.choice(
                ["", "", "data:image/svg+xml,", "data:image/svg+xml;charset=utf-8,"]
            )
            text = start + quote(content) if start else content.decode()
        elif content[:4] in (b"\x89PNG", b"RIFF", b"\xff\xd8\xff\xe0"):
            text = content.hex()
        return Made(content, text, partial)

    # The surroundings of images

    def item(self, made: Made) -> dict[str, Any]:
        """Return an object with one image, under a usual key or one that only its content shows."""
        random = self.random
        if made.is_url:
            key = random.choice(URL_KEYS)
        elif random.random() < 0.25 and not made.named:
            key = random.choice(WORDS)
        else:
            key = random.choice(["b64_json", "b64_json", "image_base64", "base64", "image", "url"])
        fields: dict[str, Any] = {key: made.text}
        if not made.is_url and key != "url" and random.random() < 0.2:
            fields["url"] = random.choice(["", None])
        if random.random() < 0.3:
            fields["revised_prompt"] = self.prose()
        return self.with_siblings(fields)

    def prose(self) -> str:
        """Return text that mentions images but contains none."""
        decoy = base64.b64encode(SIGNATURES[0] + self.random.randbytes(30)).decode()
        return self.random.choice(
            [
                "a kitten",
                f"a kitten like https://cdn.example.com/{self.random.getrandbits(32)}.png",
                f"https://cdn.example.com/{self.random.getrandbits(32)}.png",
                decoy,
                f'render "b64_json": "{decoy}" exactly',
                f"data:image/png;base64,{decoy}",
            ]
        )

    def with_siblings(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the object with additional fields, in any order."""
        random = self.random
        more: list[tuple[str, Callable[[], Any]]] = [
            ("prompt", self.prose),
            ("revised_prompt", self.prose),
            ("seed", lambda: random.getrandbits(40)),
            ("nsfw", lambda: False),
            ("documentation_url", lambda: "https://docs.example.com/images.png"),
            ("status_url", lambda: "https://api.example.com/tasks/1"),
            (
                "error",
                lambda: random.choice(
                    [None, {}, "", {"message": ""}, {"code": None, "message": None}]
                ),
            ),
            ("size", lambda: "1024x1024"),
            ("timings", lambda: {"inference": random.random(), "steps": [1, 2, None]}),
            ("input", lambda: {"image": base64.b64encode(SIGNATURES[1] + b"input").decode()}),
            ("note", lambda: "nothing"),
            ("code", lambda: random.choice([0, 200, "success", None])),
            ("message", lambda: random.choice(["", "success", "ok", None])),
        ]
        for name, value in random.sample(more, random.choice([0, 0, 1, 3, 6])):
            fields.setdefault(name, value())
        pairs = list(fields.items())
        random.shuffle(pairs)
        return dict(pairs)

    def nested(self, value: Any) -> Any:
        """Return the value inside up to four additional objects or lists."""
        random = self.random
        for _ in range(random.choice([0, 0, 0, 1, 2, 4])):
            if random.random() < 0.2:
                value = [value] if isinstance(value, dict) else value
            else:
                value = self.with_siblings({random.choice(WRAPPERS): value})
        return value

    def images_of(self, least: int = 1) -> list[Made]:
        """Return one to four new images."""
        return [self.image() for _ in range(self.random.choice([least, 1, 1, 2, 4]))]

    # Bodies

    def document(self, images: list[Made]) -> Any:
        """Return a document with these images, in a dialect of a batch response."""
        random = self.random
        items = [self.item(made) for made in images]
        texts = [made.text for made in images]
        choices: list[Callable[[], Any]] = [
            lambda: {"created": 1, "data": items, "usage": {"total_tokens": 3}},
            lambda: {"data": items},
            lambda: items,
            lambda: {"images": items},
            lambda: {"images": texts},
            lambda: {"data": {"images": items}},
            lambda: {"data": {"url": texts}} if images[0].is_url else {"data": items},
            lambda: {"output": texts},
            lambda: {"output": {"results": items}},
            lambda: {"result": {"data": items, "usage": None}},
            lambda: {
                "output": [{"type": "image_generation_call", "result": text} for text in texts]
            },
            lambda: {"image_urls": texts} if images[0].is_url else {"images": texts},
            lambda: {
                "choices": [
                    {
                        "message": {
                            "role": "assistant",
                            "images": [{"image_url": {"url": text}} for text in texts],
                        }
                    }
                ]
            },
            lambda: {"created": 1, "data": items, "images": items},  # the same twice
        ]
        if len(images) == 1:
            choices += [
                lambda: {"data": items[0]},
                lambda: items[0],
                lambda: {"image": texts[0]},
                lambda: {"output": texts[0]},
                lambda: {"data": texts[0]},
                lambda: (
                    {
                        "candidates": [
                            {
                                "content": {
                                    "parts": [
                                        {"text": "Here"},
                                        {"inlineData": {"mimeType": "image/png", "data": texts[0]}},
                                    ]
                                }
                            }
                        ]
                    }
                    if not images[0].is_url
                    else {"data": items}
                ),
            ]
        value = random.choice(choices)()
        if isinstance(value, dict):
            value = self.with_siblings(value)
        return self.nested(value)

    def dump(self, value: Any, *, one_line: bool = False) -> str:
        """Return JSON in one of the layouts that servers use."""
        random = self.random
        indent = random.choice([None, None, None, 1]) if not one_line else None
        text = json.dumps(value, indent=indent, ensure_ascii=random.random() < 0.5)
        if random.random() < 0.15:
            text = text.replace("/", r"\/")
        return text

    def batch(self) -> str:
        """Return a body that is one document."""
        text = self.dump(self.document(self.images_of()))
        return (
            self.random.choice(["", "", "\n", " \r\n", "\ufeff"])
            + text
            + self.random.choice(["", "\n"])
        )

    def events(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Return the events of a stream, each with its type."""
        random = self.random
        style = random.choice(["openai", "openai", "succeeded", "unknown", "untyped", "edit"])
        kind = "image_edit" if style == "edit" else "image_generation"
        events: list[tuple[str | None, dict[str, Any]]] = []
        if style in ("openai", "edit"):
            for index in range(random.choice([0, 1, 3])):
                made = self.image(partial=True)
                events.append(
                    (f"{kind}.partial_image", {**self.item(made), "partial_image_index": index})
                )
        for index, made in enumerate(self.images_of()):
            fields = self.item(made)
            if style == "succeeded":
                events.append((f"{kind}.partial_succeeded", {**fields, "image_index": index}))
            elif style == "unknown":
                events.append(
                    (random.choice(["image.ready", "x", "done", "image_generation.done"]), fields)
                )
            elif style == "untyped":
                fields.pop("partial_image_index", None)
                events.append((None, fields))
            else:
                events.append((f"{kind}.completed", {**fields, "usage": {"total_tokens": 1}}))
        if style == "succeeded":
            events.append((f"{kind}.completed", {"usage": {"total_tokens": 1}}))
        return events

    def stream(self) -> str:
        """Return a body of server-sent events or of lines of JSON."""
        random = self.random
        events = self.events()
        as_lines = random.random() < 0.2
        prefix = "data: data: " if random.random() < 0.1 else "data: "
        end = random.choice(["\n", "\n", "\r\n"])
        parts = []
        for type_, fields in events:
            in_name = type_ is not None and not as_lines and random.random() < 0.3
            in_data = type_ is not None and (not in_name or random.random() < 0.5)
            value = {"type": type_, **fields} if in_data else fields
            if random.random() < 0.3:
                pairs = list(value.items())
                random.shuffle(pairs)
                value = dict(pairs)
            if random.random() < 0.15:
                value = {random.choice(WRAPPERS): value}
            text = self.dump(value, one_line=True)
            if as_lines:
                parts.append(text + end)
            else:
                head = f"event: {type_}{end}" if in_name else ""
                parts.append(head + prefix + text + end + end)
            if random.random() < 0.2 and not as_lines:
                parts.append(
                    random.choice([": PING", "data:", 'data: {"type":"keepalive"}']) + end + end
                )
        if not as_lines and random.random() < 0.7:
            parts.append("data: [DONE]" + end + end)
        return "".join(parts)

    def chat(self) -> str:
        """Return a stream of chat completions that show images in text, in pieces."""
        random = self.random
        shown = [self.image(url=True) for _ in range(random.choice([1, 1, 2]))]
        shown += [self.inline() for _ in range(random.choice([0, 0, 1]))]
        text = "\n".join(
            random.choice(["![image]({})", "Here: ![a cat]({})", '<img src="{}">']).format(
                made.text
            )
            for made in shown
        )
        text = (
            random.choice(["", "Of course! See [the terms](https://example.com/t.png).\n"]) + text
        )
        size = random.choice([1, 3, 17, 400, len(text)])
        style = random.choice(["chat", "responses", "messages", "ollama"])
        parts = []
        for start in range(0, len(text), size):
            piece = text[start : start + size]
            values: dict[str, dict[str, Any]] = {
                "chat": {"choices": [{"index": 0, "delta": {"content": piece}}]},
                "responses": {"type": "response.output_text.delta", "item_id": "i", "delta": piece},
                "messages": {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": piece},
                },
                "ollama": {"response": piece, "done": False},
            }
            line = json.dumps({**values[style], "id": "x"})
            parts.append(line + "\n" if style == "ollama" else f"data: {line}\n\n")
        if random.random() < 0.7 and style != "ollama":
            parts.append("data: [DONE]\n\n")
        return "".join(parts)

    def inline(self) -> Made:
        """Return a new image as a `data:` URL."""
        content = SIGNATURES[0] + b"%x" % self.random.getrandbits(64)
        made = Made(content, "data:image/png;base64," + base64.b64encode(content).decode())
        self.images.append(made)
        return made

    def parts(self) -> bytes:
        """Return a body of several parts: a document, and images as they are or in base64."""
        random = self.random
        made = [self.image(url=False) for _ in range(random.choice([1, 1, 3]))]
        parts = [
            (
                b"Content-Type: image/png\r\n" * (random.random() < 0.8)
                + b"Content-Transfer-Encoding: base64\r\n" * (encoded := random.random() < 0.3),
                base64.encodebytes(content) if encoded else content,
            )
            for content in (each.identity for each in made)
            if isinstance(content, bytes)
        ]
        if random.random() < 0.5:
            text = self.dump(self.with_siblings({"created": 1}))
            parts.insert(
                random.choice([0, len(parts)]), (b"Content-Type: text/json\r\n", text.encode())
            )
        if random.random() < 0.3:
            head = b'Content-Disposition: form-data; name="prompt"\r\n'
            parts.append((head, self.prose().encode()))
        end = random.choice([b"--\r\n", b"--", b"--\r\nThe end\r\n"])
        bodies = (b"--e/1\r\n" + head + b"\r\n" + body + b"\r\n" for head, body in parts)
        return b"".join(bodies) + b"--e/1" + end

    def encoded(self) -> bytes:
        """Return another body, encoded once more."""
        random = self.random
        way = random.randrange(5)
        if way == 2:
            values = [self.document(self.images_of()) for _ in range(random.choice([2, 3]))]
            between = random.choice(["\n", "", ",", "\n\n"])
            return between.join(self.dump(value, one_line=True) for value in values).encode()
        is_batch = way > 2 or random.random() < 0.7
        text = (self.batch() if is_batch else self.chat()).strip("\ufeff \r\n")
        if way == 0:
            return gzip.compress(text.encode(), mtime=0)
        if way == 1:
            bare = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"] * is_batch
            return text.encode(random.choice(["utf-16", "utf-32", *bare]))
        if way == 4:
            return f"Warning: [slow] {text}{random.choice(['', ' Done.'])}".encode()
        for _ in range(random.choice([1, 2])):
            text = json.dumps(text)
        return text.encode()

    def failing(self) -> str:
        """Return a body with images beside an error of the whole call."""
        value = self.document(self.images_of())
        error = {"message": self.prose(), "code": "server_error"}
        fields = {**value} if isinstance(value, dict) else {"data": value}
        fields["error"] = error
        return self.dump(fields)

    def cut(self, data: bytes) -> list[bytes]:
        """Return the data in chunks of any size."""
        random = self.random
        way = random.random()
        if way < 0.4:
            return [data]
        if way < 0.5 and len(data) < 3_000:
            return [data[place : place + 1] for place in range(len(data))]
        places = sorted(
            random.randrange(len(data) + 1) for _ in range(random.choice([1, 2, 8, 40]))
        )
        return [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)])]


def make_body(seed: int) -> Body:
    """Return the body for a seed."""
    maker = Maker(seed)
    dialect = maker.random.choice(DIALECTS)
    made = getattr(maker, dialect)()
    data = made if isinstance(made, bytes) else made.encode()
    whole = maker.random.random() < 0.85 or dialect not in ("batch", "stream", "failing")
    if not whole:
        data = data[: maker.random.randrange(len(data))]
    fails = dialect == "failing" and whole
    return Body(dialect, maker.cut(data), maker.images, fails=fails, whole=whole)


def is_in(made: Made, data: bytes) -> bool:
    """Return whether an image is complete in a body that was cut off."""
    spellings = (json.dumps(made.text, ensure_ascii=ascii_only) for ascii_only in (True, False))
    texts = [text[1:] for text in spellings]
    return any(
        text.encode() in data for text in (*texts, *(text.replace("/", r"\/") for text in texts))
    )


def check_body(seed: int) -> tuple[int, int]:
    """Feed the body of a seed; return how many images went in and came out.

    Raises:
        AssertionError: If an image is missing, or something came out that is none.
    """
    body = make_body(seed)
    decoder = ImagesDecoder(stream=bool(seed % 2), max_bytes=1 << 26)
    came: list[tuple[bytes | str | None, bool]] = []
    data = b"".join(body.chunks)
    report = (seed, body.dialect, data[:2000])
    try:
        for chunk in body.chunks:
            decoder.feed(chunk)
            _take(decoder, came)
        decoder.finish()
        _take(decoder, came)
    except ElkImagesError as error:
        if body.whole and not body.fails:
            raise AssertionError(repr(error), *report) from None
        came = [(image.content or image.url, False) for image in error.images]
        came += [(event.image.content or event.image.url, True) for event in error.partials]
    else:
        assert not body.fails, report
    found: Counter[tuple[bytes | str | None, bool]] = Counter(came)
    wanted: Counter[tuple[bytes | str | None, bool]] = Counter(
        (made.identity, made.partial) for made in body.images
    )
    if body.whole:
        assert found == wanted, ({"missing": wanted - found, "beyond": found - wanted}, *report)
        return len(body.images), len(came)
    # Of a body that was cut off, all that had arrived; whether it was partial may have been cut
    # off.
    known = {made.identity for made in body.images}
    arrived = {made.identity for made in body.images if is_in(made, data)}
    identities = {identity for identity, _ in came}
    assert arrived <= identities <= known, (arrived - identities, identities - known, *report)
    return len(arrived), len(arrived & identities)


def _take(decoder: ImagesDecoder, came: list[tuple[bytes | str | None, bool]]) -> None:
    while (event := decoder.next_event()) is not None:
        if not isinstance(event, SkippedEvent):
            image = event.image
            came.append((image.content or image.url, not isinstance(event, CompletedImage)))
