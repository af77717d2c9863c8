"""The decoder for JSON that contains base64, fed in any split."""

import base64
import binascii
import json
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sized
from functools import partial
from random import Random
from typing import Any, Self

import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.sansio import base64_text, json_images
from elkimg_async.sansio.base64_text import BadBase64, Base64Decoder, Decoded
from elkimg_async.sansio.json_images import (
    Document,
    InvalidJSON,
    JSONDecoder,
)
from tests.helpers.splits import cut, every_split, one_by_one, pieces

IMAGE = b"\x89PNG\r\n\xfb\xef\xbe\xff\xff\xff>?>\xfb\xff\x00data:\xfb\xf0"
TEXT = base64.b64encode(IMAGE)
assert TEXT.endswith(b"==")
assert {*b"+/"} <= {*TEXT}
URL_SAFE = TEXT.translate(bytes.maketrans(b"+/", b"-_"))
MEGABYTE = 1 << 20

places = st.lists(st.integers(0, 400), max_size=6)


def escaped(text: bytes, form: str = r"\u{:04x}") -> bytes:
    return "".join(form.format(code) for code in text).encode()


def document(chunks: Iterable[bytes]) -> Document:
    decoder = JSONDecoder()
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()


def decoded(chunks: Iterable[bytes]) -> Decoded:
    decoder = Base64Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()


def resolved(found: Document) -> Any:
    """Return the document with its images in place, and one value for all broken ones."""

    def resolve(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: resolve(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [resolve(item) for item in value]
        if key == "b64_json" or (isinstance(value, str) and is_image(found, value, key)):
            image = found.decoded(value) if isinstance(value, str) and value else None
            return "bad" if isinstance(image, BadBase64) else image
        return value

    return resolve(found.value)


def is_image(found: Document, value: str, key: str) -> bool:
    """Return whether a string is a placeholder of an image, or a `data:` URL."""
    return value in found.images or (key == "url" and value[:5].lower() == "data:")


def outcome(chunks: Iterable[bytes]) -> Any:
    try:
        return resolved(document(chunks))
    except InvalidJSON:
        return InvalidJSON


def reference_image(text: str) -> bytes | None:
    """Return what a string should decode to, by the simplest means; None if it is broken."""
    text = re.sub(r"[ \t\r\n]", "", text)
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            return None
    text = text.replace("-", "+").replace("_", "/")
    text += "=" * (-len(text) % 4)
    if not re.fullmatch(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?", text):
        return None
    return binascii.a2b_base64(text, strict_mode=True)


def reference_string(inside: bytes) -> bytes | None:
    """Do the same for the inside of a JSON string."""
    try:
        text = json.loads(b'"' + inside + b'"', strict=False)
    except ValueError:
        return None
    return reference_image(text) if isinstance(text, str) else None


# Base64 in every spelling


SPELLINGS = {
    "plain": TEXT,
    "slash escaped": TEXT.replace(b"/", rb"\/"),
    "plus as code": TEXT.replace(b"+", rb"\u002B"),
    "plus as small code": TEXT.replace(b"+", rb"\u002b"),
    "slash as code": TEXT.replace(b"/", rb"\u002F"),
    "padding as code": TEXT.replace(b"=", rb"\u003D"),
    "all as codes": escaped(TEXT),
    "first as code": escaped(TEXT[:1]) + TEXT[1:],
    "last as code": TEXT[:-3] + escaped(TEXT[-3:]),
    "blanks": b" " + TEXT[:7] + b"  " + TEXT[7:] + b" ",
    "tabs and line ends": b"\t" + TEXT[:9] + b"\r\n" + TEXT[9:] + b"\n",
    "escaped line ends": TEXT[:8] + rb"\n" + TEXT[8:20] + rb"\r\n\t" + TEXT[20:] + rb"\n",
    "line end as code": TEXT[:8] + rb"\u000a" + TEXT[8:],
    "padding apart": TEXT[:-1] + b" =",
    "no padding": TEXT.rstrip(b"="),
    "half the padding": TEXT[:-1],
    "url-safe": URL_SAFE,
    "url-safe without padding": URL_SAFE.rstrip(b"="),
    "both alphabets": TEXT[:-8] + URL_SAFE[-8:],
    "url-safe as code": URL_SAFE.replace(b"-", rb"\u002d").replace(b"_", rb"\u005F"),
}
PREFIXES = {
    "prefix": b"data:image/png;base64,",
    "prefix in upper case": b"DATA:IMAGE/PNG;BASE64,",
    "prefix without a type": b"data:;base64,",
    "prefix with a parameter": b"data:image/png;name=a-b_c;base64,",
    "prefix with an escaped slash": rb"data:image\/png;base64,",
    "prefix with an escaped colon": rb"data\u003aimage/png;base64,",
    "prefix with an escaped comma": rb"data:image/png;base64\u002C",
    "prefix all escaped": escaped(b"data:image/png;base64,"),
    "prefix in upper case escaped": escaped(b"DATA:image/png;base64,", r"\u{:04X}"),
    "prefix after blanks": rb" \n data:image/png;base64,",
    "prefix with blanks": b"data: image/png; base64, ",
}
BROKEN = {
    "not base64": b"this is not base64!",
    "one character": b"A",
    "one too many": TEXT.rstrip(b"=") + b"AAA",
    "one group and one": b"AAAAAAAAA",
    "a stranger first": b"%" + TEXT[1:],
    "a stranger": TEXT[:12] + b"%" + TEXT[13:],
    "a stranger last": TEXT[:-1] + b"%",
    "padding within": TEXT[:16] + b"=" + TEXT[17:],
    "padding of a group within": TEXT[:14] + b"==" + TEXT[16:],
    "more after padding": TEXT + b"AAAA",
    "padding twice": TEXT + b"==",
    "padding four times": TEXT[:-2] + b"====",
    "only padding": b"====",
    "one equals sign": b"=",
    "escaped quote": TEXT[:8] + rb"\"" + TEXT[8:],
    "escaped quote first": rb"\"" + TEXT,
    "escaped quote last": TEXT[:24] + rb"\"",
    "escaped quote near the end": TEXT[:25] + rb"\"",
    "escaped backslash": TEXT[:8] + rb"\\" + TEXT[8:],
    "escaped backslash last": TEXT[:24] + rb"\\",
    "three backslashes and a quote": TEXT[:24] + rb"\\\"",
    "escaped form feed": TEXT[:8] + rb"\f" + TEXT[8:],
    "letter beyond ASCII": TEXT[:8] + rb"\u00e9" + TEXT[8:],
    "look-alike beyond ASCII": TEXT[:8] + rb"\uff0b" + TEXT[8:],
    "bytes beyond ASCII": TEXT[:8] + "é".encode() + TEXT[8:],
    "zero byte": TEXT[:8] + b"\0" + TEXT[8:],
    "prefix without base64": b"data:image/png," + TEXT,
    "prefix without end": b"data:image/png;base64",
    "prefix alone": b"data:",
    "prefix over long": b"data:" + b"A" * 300 + b";base64," + TEXT,
    "prefix twice": b"data:;base64,data:;base64," + TEXT,
    "prefix late": b"AAAAAAAA" + b"data:;base64," + TEXT,
}
NO_ESCAPE = {
    "unknown escape": TEXT[:8] + rb"\q" + TEXT[8:],
    "unknown escape first": rb"\q" + TEXT,
    "code with a stranger": TEXT[:8] + rb"\u00zz" + TEXT[8:],
    "code cut short": TEXT[:8] + rb"\u00",
}


@pytest.mark.parametrize("inside", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("prefix", [b"", *PREFIXES.values()], ids=["bare", *PREFIXES])
def test_base64_in_any_spelling(prefix: bytes, inside: bytes) -> None:
    """Escapes, white space, padding, alphabet and prefix do not change the bytes."""
    assert reference_string(prefix + inside) == IMAGE
    for chunks in every_split(prefix + inside):
        assert decoded(chunks) == IMAGE


@pytest.mark.parametrize("inside", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_json_with_base64_in_any_spelling(inside: bytes) -> None:
    """A `b64_json` is decoded on any split, whatever follows it."""
    text = b'{"data":[{"b64_json":"' + inside + b'","n":1}]}'
    for trailing in (b"", b"\r\n", b'\n{"b64_json":"AAAA"}', b"garbage"):
        for chunks in every_split(text + trailing):
            assert resolved(document(chunks)) == {"data": [{"b64_json": IMAGE, "n": 1}]}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES.keys())
def test_json_with_data_url(prefix: bytes) -> None:
    """A `url` that is a `data:` URL is an image, even with an escaped prefix."""
    keys = [b"b64_json"] if prefix.startswith(b" ") else [b"b64_json", b"url"]
    for key in keys:
        for chunks in every_split(b'{"' + key + b'" : "' + prefix + TEXT + b'", "a": ""}'):
            assert resolved(document(chunks)) == {key.decode(): IMAGE, "a": ""}


@pytest.mark.parametrize("inside", BROKEN.values(), ids=BROKEN.keys())
def test_base64_broken(inside: bytes) -> None:
    """Base64 that is not strictly valid is bad on every split, without effect on other fields."""
    assert reference_string(inside) is None or inside.startswith(b"data:AAAA")
    for chunks in every_split(inside):
        assert isinstance(decoded(chunks), BadBase64)
    for chunks in every_split(b'{"b64_json":"' + inside + b'","b":[{"b64_json":"AAAA"}]}'):
        assert resolved(document(chunks)) == {"b64_json": "bad", "b": [{"b64_json": b"\0\0\0"}]}


@pytest.mark.parametrize("inside", NO_ESCAPE.values(), ids=NO_ESCAPE.keys())
def test_base64_with_an_escape_that_json_lacks(inside: bytes) -> None:
    """An invalid escape makes an image bad, and never changes its bytes."""
    for chunks in every_split(inside):
        assert isinstance(decoded(chunks), BadBase64)
    for chunks in every_split(b'{"b64_json":"' + inside + b'"}'):
        assert outcome(chunks) in ({"b64_json": "bad"}, InvalidJSON)


@pytest.mark.parametrize("length", range(14))
def test_base64_short(length: int) -> None:
    """Images too short for the fast path are decoded exactly."""
    content = IMAGE[-length:] if length else b""
    text = base64.b64encode(content)
    for inside in (text, text.rstrip(b"="), escaped(text), b"data:;base64," + text):
        for chunks in every_split(inside):
            assert decoded(chunks) == content


def test_base64_bad_says_why() -> None:
    """The reason is a clause that can end a sentence."""
    reasons = {decoded([inside]) for inside in (*BROKEN.values(), *NO_ESCAPE.values())}
    assert reasons == {
        BadBase64("it is not base64, or was cut off"),
        BadBase64("it is a data: URL without base64"),
    }


# Base64 against the reference


@st.composite
def spellings(draw: st.DrawFn) -> bytes:
    """Generate base64 of random bytes in a random spelling, as it is between the quotes."""
    content, random = draw(st.binary(max_size=90)), draw(st.randoms(use_true_random=False))
    text = base64.b64encode(content).decode()
    if random.random() < 0.3:
        text = text.rstrip("=")
    rate = random.choice([0, 0, 0.02, 0.3])
    return "".join(respelled(character, rate, random) for character in text).encode()


def respelled(character: str, rate: float, random: Random) -> str:
    if random.random() >= rate:
        return character
    code = f"{ord(character):04x}"
    ways = [
        rf"\u{code}",
        rf"\u{code.upper()}",
        " " + character,
        "\n" + character,
        r"\n" + character,
    ]
    more = {"/": [r"\/", "_"], "+": ["-"]}
    return random.choice(ways + 5 * more.get(character, []))


prefixes = st.sampled_from([b"", b"", b"", *PREFIXES.values()])


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Generate a spelling with a few bytes changed, inserted or removed."""
    inside = bytearray(draw(spellings()))
    strange = st.sampled_from([*b'=A\\/un "%-:,\n\xe9\0', 0x5C])
    for place, kind, byte in draw(
        st.lists(st.tuples(st.integers(0, 120), st.integers(0, 2), strange), max_size=4)
    ):
        if kind == 0:
            inside[place:place] = bytes((byte,))
        elif place < len(inside):
            inside[place : place + 1] = bytes((byte,)) if kind == 1 else b""
    return draw(prefixes) + bytes(inside)


@settings(max_examples=150, deadline=None)
@given(prefix=prefixes, body=spellings(), where=places)
def test_base64_round_trip(prefix: bytes, body: bytes, where: list[int]) -> None:
    """Any bytes in any spelling and split are decoded unchanged."""
    inside = prefix + body
    expected = reference_string(inside)
    assert expected is not None
    assert decoded(cut(inside, where)) == expected
    assert decoded(one_by_one(inside)) == expected
    found = document(cut(b'{"b64_json":"' + inside + b'"}', where))
    assert resolved(found) == {"b64_json": expected or None}


@settings(max_examples=250, deadline=None)
@given(inside=mutations(), where=places)
def test_base64_mutated(inside: bytes, where: list[int]) -> None:
    """Damaged base64 decodes like the reference, or is bad, and never to other bytes."""
    expected = None if b'"' in inside else reference_string(inside)
    for chunks in ([inside], cut(inside, where), one_by_one(inside)):
        found = decoded(chunks)
        assert isinstance(found, BadBase64) if expected is None else found == expected


@settings(max_examples=150, deadline=None)
@given(inside=mutations(), where=places)
def test_json_mutated(inside: bytes, where: list[int]) -> None:
    """A damaged document equals what `json` decodes, is invalid, or has a bad image."""
    text = b'{"a":[{"b64_json":"' + inside + b'"},{"url":"x"}],"b64_json":"QUJD"}'
    found = outcome([text])
    assert outcome(cut(text, where)) == found
    assert outcome(one_by_one(text)) == found
    try:
        value = json.loads(text.decode("utf-8", "replace"), strict=False)
    except ValueError:
        assert found is InvalidJSON or "'bad'" in repr(found)
    else:
        assert found == reference_document(value)


def reference_document(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: reference_document(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [reference_document(item) for item in value]
    if key == "b64_json" or (key == "url" and str(value)[:5].lower() == "data:"):
        if not isinstance(value, str) or not value:
            return None
        image = reference_image(value)
        return "bad" if image is None else image or None
    return value


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["", '"b64_json":"', "\\", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["b64_json", "url", "data", 'a"b64_json', "b64_json ", "\\"]),
            inner | st.sampled_from(["QUJD", "+/+/", "QUI", "QUJDREVGR0hJ", "data:;base64,QUJD"]),
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    value=json_values,
    where=places,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1, "\t", 20]),
)
def test_json_round_trip(value: Any, where: list[int], ascii_only: bool, indent: Any) -> None:
    """Any document is decoded with its images, whatever its layout and split."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    expected = reference_document(json.loads(text))
    assert resolved(document(cut(text, where))) == expected
    assert resolved(document(one_by_one(text))) == expected


# Where images stand


PLACES = {
    "unknown nested object": (
        b'{"x":{"y":[[{"b64_json":"QUJD"}]]}}',
        {"x": {"y": [[{"b64_json": b"ABC"}]]}},
    ),
    "several": (
        b'{"data":[{"b64_json":"QUJD"},{"b64_json":"REVG"},{"b64_json":"QUJD"}]}',
        {"data": [{"b64_json": b"ABC"}, {"b64_json": b"DEF"}, {"b64_json": b"ABC"}]},
    ),
    "both in one": (
        b'{"url":"data:;base64,QUJD","b64_json":"REVG"}',
        {"url": b"ABC", "b64_json": b"DEF"},
    ),
    "the same key twice": (b'{"b64_json":"QUJD","b64_json":"REVG"}', {"b64_json": b"DEF"}),
    "no blank": (b'{"b64_json":"QUJD"}', {"b64_json": b"ABC"}),
    "blanks": (b'{ "b64_json" \t\r\n : \n "QUJD" }', {"b64_json": b"ABC"}),
    "many blanks before the colon": (
        b'{"b64_json"' + b" " * 40 + b':"QUJD"}',
        {"b64_json": b"ABC"},
    ),
    "many blanks behind the colon": (
        b'{"b64_json":' + b"\n" * 40 + b'"QUJD"}',
        {"b64_json": b"ABC"},
    ),
    "just too many blanks": (b'{"b64_json":' + b" " * 17 + b'"QUJD"}', {"b64_json": b"ABC"}),
    "as many blanks as are looked for": (
        b'{"b64_json"' + b" " * 16 + b":" + b" " * 16 + b'"QUJD"}',
        {"b64_json": b"ABC"},
    ),
    "escaped key": (rb'{"b64\u005fjson":"QU\u004aD"}', {"b64_json": b"ABC"}),
    "escaped key with escapes of the value": (
        rb'{"\u00624_json":"\/+\/\u002B"}',
        {"b4_json": "/+/+"},
    ),
    "key all escaped": (b'{"' + escaped(b"b64_json") + b'":"QUI"}', {"b64_json": b"AB"}),
    "escaped key of a data URL": (rb'{"\u0075rl":"data:;base64,QUJD"}', {"url": b"ABC"}),
    "part of another string": (
        rb'{"note":"\"b64_json\":\"QUJD\"","b64_json":"REVG"}',
        {"note": '"b64_json":"QUJD"', "b64_json": b"DEF"},
    ),
    "part of another string after a backslash": (
        rb'{"note":"\\\"b64_json\": \"QUJD\"","b64_json":"REVG"}',
        {"note": '\\"b64_json": "QUJD"', "b64_json": b"DEF"},
    ),
    "the end of another string": (
        rb'{"note":"x\\","b64_json":"REVG"}',
        {"note": "x\\", "b64_json": b"DEF"},
    ),
    "part of another key": (rb'{"x\"b64_json":"QUJD"}', {'x"b64_json': "QUJD"}),
    "part of another key with a blank": (rb'{"\"b64_json" : "\"}"}', {'"b64_json': '"}'}),
    "tail of another key": (b'{"old_b64_json":"hello"}', {"old_b64_json": "hello"}),
    "head of another key": (b'{"b64_json_old":"hello"}', {"b64_json_old": "hello"}),
    "another case": (b'{"B64_JSON":"hello"}', {"B64_JSON": "hello"}),
    "the key as a value": (
        b'{"a":"b64_json","b":["b64_json","url"],"b64_json":"QUJD"}',
        {"a": "b64_json", "b": ["b64_json", "url"], "b64_json": b"ABC"},
    ),
    "empty": (b'{"b64_json":"","url":""}', {"b64_json": None, "url": ""}),
    "null": (b'{"b64_json":null,"url":null}', {"b64_json": None, "url": None}),
    "numbers": (b'{"b64_json":1234,"url":5}', {"b64_json": None, "url": 5}),
    "true": (b'{"b64_json":true,"url":false}', {"b64_json": None, "url": False}),
    "objects": (
        b'{"b64_json":{"b64_json":"QUJD"},"url":["data:"]}',
        {"b64_json": {"b64_json": b"ABC"}, "url": ["data:"]},
    ),
    "only blanks": (b'{"b64_json":" \\n "}', {"b64_json": None}),
    "a prefix and nothing": (b'{"b64_json":"data:;base64,"}', {"b64_json": None}),
    "web address": (
        rb'{"url":"https:\/\/host\/data:;base64,QUJD?a=\"b\""}',
        {"url": 'https://host/data:;base64,QUJD?a="b"'},
    ),
    "relative address": (b'{"url":"/images/1.png"}', {"url": "/images/1.png"}),
    "address of the same letters": (b'{"url":"data/1.png"}', {"url": "data/1.png"}),
    "data URL without base64": (b'{"url":"data:text/plain,hello"}', {"url": "bad"}),
    "data URL with a quote": (rb'{"url":"data:text/plain,\"a\\","b":1}', {"url": "bad", "b": 1}),
    "other strings that are data URLs": (
        b'{"href":"data:;base64,QUJD"}',
        {"href": "data:;base64,QUJD"},
    ),
    "array at the top": (b'[{"b64_json":"QUJD"}]', [{"b64_json": b"ABC"}]),
    "string at the top": (b'"b64_json"', "b64_json"),
}


@pytest.mark.parametrize(("text", "expected"), PLACES.values(), ids=PLACES.keys())
def test_json_images_in_their_places(text: bytes, expected: Any) -> None:
    """A `b64_json` is decoded only as a key, and all other values are kept."""
    for trailing in (b"", b" \n"):
        for chunks in every_split(text + trailing):
            assert resolved(document(chunks)) == expected


@pytest.mark.parametrize(
    "key", [b'"b64_json"%b:%b"data:', b'"url"%b:%b"data:', b'"url"%b:%b"DATA:']
)
def test_json_image_is_decoded_as_it_arrives(key: bytes) -> None:
    """A key is found at once with up to 16 blanks around its colon, on any split."""
    for blanks in (b"", b" ", b" \t\r\n" * 4):
        text = b"{" + key % (blanks, blanks) + b";base64," + b"QUJD" * 200 + b'","a":1}'
        for place in range(len(text) - 780):
            for chunks in ([text[:place], text[place:]], one_by_one(text)):
                assert len(document(chunks).images) == 1


def test_json_string_like_a_placeholder() -> None:
    """A string that looks like the decoder's placeholder is not an image."""
    found = document([rb'{"b64_json":"QUJD","a":{"b64\u005fjson":"#image 0"},"url":"#image 0"}'])
    assert found.decoded(found.value["b64_json"]) == b"ABC"
    assert found.decoded(found.value["a"]["b64_json"]) != b"ABC"
    assert found.value["url"] == "#image 0"
    assert found.decoded(found.value["url"]) != b"ABC"


@pytest.mark.parametrize("size", [100, 65_536, 8 * MEGABYTE])
def test_json_image_after_megabytes(size: int) -> None:
    """An image after megabytes of fields and white space is found in any chunks."""
    text = b'{"a":"%b","b":[%b1],%b"b64_json":"%b"}' % (
        rb"\"b64_json\":\"" * (MEGABYTE // 10),
        b'"url","b64_json",{"url":"x"},' * (MEGABYTE // 20),
        b" " * MEGABYTE,
        b"QUJD" * 200,
    )
    found = document(pieces(text, size))
    assert found.decoded(found.value["b64_json"]) == b"ABC" * 200
    assert len(found.images) == 1
    assert found.value["a"] == '"b64_json":"' * (MEGABYTE // 10)


def test_json_feed_takes_a_part() -> None:
    """`feed` decodes only the given part of a buffer."""
    text = b'{"b64_json":"QUJD","a":1}'
    for place in range(len(text)):
        decoder = JSONDecoder()
        decoder.feed(b'"' + text, 1, place + 1)
        decoder.feed(text + b'""', place, len(text))
        assert resolved(decoder.finish()) == {"b64_json": b"ABC", "a": 1}


# `feed_base64`, the short way for a caller that looks for line ends


def test_feed_base64_takes_clean_base64() -> None:
    """`feed_base64` decodes clean base64 up to the quote or the end."""
    decoder = JSONDecoder()
    assert decoder.feed_base64(b"AAAAAAAA", 3) == 3
    decoder.feed(b'{"b64_json":"')
    assert decoder.feed_base64(b"AAAAAAAA", 3) == 3
    decoder.feed(b"QUJD" * 200)
    assert decoder.feed_base64(b"__QUJDREVG", 2) == 10
    assert decoder.feed_base64(b'QUJDREVG"}', 0) == 8
    decoder.feed(b'"}')
    assert decoder.feed_base64(b"AAAAAAAA", 3) == 3
    assert resolved(decoder.finish()) == {"b64_json": b"ABC" * 200 + b"ABCDEFABCDEF"}


@pytest.mark.parametrize("tail", [b"\n", b"\r", b"\r\n", b"\n\n", b"\n:", b"A\n", b"AA\n"])
@pytest.mark.parametrize("length", [0, 4, 8, 11, 64])
def test_feed_base64_never_takes_a_line_end(length: int, tail: bytes) -> None:
    """`feed_base64` leaves a line end to its caller."""
    for before in (b"", b"AAA", b"AAAAAAAA"):
        for after in (b"", b'"}', b"AAAA", b'AAAAA"'):
            decoder = JSONDecoder()
            decoder.feed(b'{"b64_json":"' + b"AAAA" * 128 + before)
            chunk = b"A" * length + tail + after
            taken = chunk[: decoder.feed_base64(chunk, 0)]
            assert b"\n" not in taken
            assert b"\r" not in taken


# What is almost JSON, and what is not


TOLERATED = {
    "byte order mark": b"\xef\xbb\xbf%b",
    "blanks around": b" \r\n\t%b\r\n\r\n",
    "not a number": b'{"a":NaN,"b":%b}',
    "infinity": b'{"a":[Infinity,-Infinity,1e999],"b":%b}',
    "lone surrogate": rb'{"a":"\ud800","b":%b}',
    "lone surrogate in a key": rb'{"\udc00":1,"b":%b}',
    "bytes that are not UTF-8": b'{"a":"\xff\xfe\xc3","b":%b}',
    "raw control characters": b'{"a":"x\ty\nz\x01","b":%b}',
    "number beyond 64 bits": b'{"a":123456789012345678901234567890,"b":%b}',
    "number of 5,000 digits": b'{"a":' + b"9" * 5_000 + b',"b":%b}',
    "negative number of 5,000 digits": b'{"a":-' + b"9" * 5_000 + b',"b":%b}',
    "exponent beyond all": b'{"a":1e' + b"9" * 400 + b',"b":%b}',
    "the same key twice": b'{"b":1,"b":%b}',
    "something behind": b'%b\r\n{"error":1}',
    "rubbish behind": b"%b<br>",
    "nesting of 300": b'{"a":' + b"[" * 300 + b"]" * 300 + b',"b":%b}',
}


@pytest.mark.parametrize("frame", TOLERATED.values(), ids=TOLERATED.keys())
def test_json_tolerates(frame: bytes) -> None:
    """Defects elsewhere in a document do not lose an image."""
    text = frame.replace(b"%b", b'{"b64_json":"QUJD"}')
    for chunks in [[text], one_by_one(text)] if len(text) > 500 else every_split(text):
        value = resolved(document(chunks))
        assert value.get("b", value) == {"b64_json": b"ABC"}


def test_json_numbers() -> None:
    """Numbers of usual size are exact; larger ones are still numbers."""
    for more in (b"", b"NaN"):
        value = document([b"[1, -7, 1.5, 9223372036854775807, 1e3," + (more or b"0") + b"]"]).value
        assert value[:5] == [1, -7, 1.5, 9223372036854775807, 1000.0]
    assert document([b"[" + b"9" * 5_000 + b"]"]).value == [float("inf")]


INVALID = {
    "nothing": b"",
    "blanks": b" \r\n",
    "a word": b"oops",
    "a page": b"<html></html>",
    "a comma too many": b'{"a":1,}',
    "a quote too few": b'{"a:1}',
    "a quote too many": b'{"b64_json":"QUJD""}',
    "two images in one": b'{"b64_json":"QUJD"b64_json":"QUJD"}',
    "single quotes": b"{'a':1}",
    "unknown escape": rb'{"a":"\q"}',
    "only a byte order mark": b"\xef\xbb\xbf",
    "zero bytes": b"\0\0",
    "another encoding": '{"a":1}'.encode("utf-16"),
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
def test_json_invalid(text: bytes) -> None:
    """A document that is not JSON raises `InvalidJSON` with a reason."""
    for chunks in every_split(text):
        with pytest.raises(InvalidJSON, match=r"\w"):
            document(chunks)


def test_json_truncated() -> None:
    """A document cut off anywhere is invalid, even within an image."""
    text = rb'{"a":"\"b64_json\":\"x","b":[{"b64_json":"QU\u004aDREVG","url":"data:;base64,QUI="}]}'
    assert outcome([text]) != InvalidJSON
    for end in range(len(text)):
        for chunks in (
            [text[:end]],
            one_by_one(text[:end]),
            [text[: end // 2], text[end // 2 : end]],
        ):
            assert outcome(chunks) is InvalidJSON


@pytest.mark.parametrize("depth", [200_000, 1_000_000])
@pytest.mark.parametrize("frame", [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"b64_json":', b"}]")])
def test_json_nested_too_deeply(frame: tuple[bytes, bytes], depth: int) -> None:
    """Very deep nesting is invalid JSON, not a `RecursionError`."""
    with pytest.raises(InvalidJSON):
        document([frame[0] * depth + b"1" + frame[1] * depth])


@settings(max_examples=250, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                *(bytes((code,)) for code in b'"\\:,{}[] \n1u\xff\xef\xbb\xbf\0'),
                b'"b64_json"',
                b'"b64_json":"',
                b'"url":"data:',
                b'{"b64_json":"QUJDREVGR0hJ"}',
                b";base64,",
                b"QUJD",
                b"null",
                rb"\"",
            ]
        ),
        max_size=14,
    ),
    where=places,
)
def test_json_of_any_parts(parts: list[bytes], where: list[int]) -> None:
    """Any input is a document or `InvalidJSON`, the same on any split."""
    text = b"".join(parts)
    expected = repr(outcome([text]))
    assert repr(outcome(cut(text, where))) == expected
    assert repr(outcome(one_by_one(text))) == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), places)
def test_json_of_any_bytes(data: bytes, where: list[int]) -> None:
    """Arbitrary bytes raise only `InvalidJSON`."""
    for frame in (b"%b", b'{"b64_json":"%b"}', b'{"url":"data:%b","a":[]}'):
        text = frame.replace(b"%b", data)
        assert repr(outcome(cut(text, where))) == repr(outcome([text]))


def test_text_leaves_images_out() -> None:
    """The beginning of a document is text of limited length, without images."""
    decoder = JSONDecoder()
    decoder.feed(b'  {"error":"' + "é".encode() + b'","b64_json":"' + TEXT * 9_000 + b'","a":"xyz')
    assert decoder.text(11) == '{"error":"é'
    assert TEXT.decode() not in decoder.text(2_000)
    assert decoder.text(2_000).endswith("xyz")


def test_document_image_of_other_values() -> None:
    """`decoded` returns None for an empty string, and decodes base64 left as text."""
    found = document([b"{}"])
    assert found.decoded("") is None
    assert found.decoded("QUJD") == b"ABC"
    assert found.decoded("DATA:image/png;base64,QUJD") == b"ABC"
    for text in ("#image 0", "#image ", "#image x", "#image ²", "\\u0041AAA", "é", "\ud800", '"'):
        assert isinstance(found.decoded(text), BadBase64)


# Cost, in bytes touched


class Meter:
    """Counter of the bytes that the decoder searches, matches, decodes, slices or moves."""

    def __init__(self) -> None:
        self.bytes = 0

    def attach(self, patch: pytest.MonkeyPatch) -> None:
        for module in (json_images, base64_text):
            every: dict[str, Any] = dict(vars(module))
            for name, pattern in every.items():
                if isinstance(pattern, re.Pattern):
                    patch.setattr(module, name, MeteredPattern(pattern, self))
        patch.setattr(base64_text, "pybase64", MeteredPybase64(self))
        patch.setattr(json_images, "bytearray", partial(MeteredBytearray, self), raising=False)

    def searched(self, data: Sized, place: int, start: int | None, end: int | None) -> int:
        stop = len(data) if end is None else end
        self.bytes += (stop if place < 0 else place) - (start or 0)
        return place


class MeteredPattern:
    def __init__(self, pattern: re.Pattern[bytes], meter: Meter) -> None:
        self._pattern = pattern
        self._meter = meter

    def search(self, data: bytes, start: int = 0, end: int = sys.maxsize) -> re.Match[bytes] | None:
        match = self._pattern.search(data, start, end)
        self._meter.bytes += (match.end() if match else min(end, len(data))) - start
        return match

    def match(self, data: bytes, start: int = 0, end: int = sys.maxsize) -> re.Match[bytes] | None:
        self._meter.bytes += min(end, len(data)) - start
        return self._pattern.match(data, start, end)

    def fullmatch(self, data: bytes) -> re.Match[bytes] | None:
        self._meter.bytes += len(data)
        return self._pattern.fullmatch(data)

    def sub(self, new: Callable[[re.Match[bytes]], bytes], data: bytes) -> bytes:
        self._meter.bytes += len(data)
        return self._pattern.sub(new, data)


class MeteredPybase64:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def b64decode(self, data: bytes | memoryview, validate: bool) -> bytes:
        self._meter.bytes += len(data)
        return pybase64.b64decode(data, validate=validate)


class MeteredBytearray(bytearray):
    """Skeleton that counts the bytes added, removed or searched."""

    def __init__(self, meter: Meter, *content: Any) -> None:
        super().__init__(*content)
        self._meter = meter

    def find(self, sub: Any, start: Any = None, end: Any = None) -> int:
        return self._meter.searched(self, super().find(sub, start, end), start, end)

    def __iadd__(self, more: Any) -> Self:  # type: ignore[misc]
        self._meter.bytes += len(more)
        return super().__iadd__(more)

    def __delitem__(self, where: Any) -> None:
        before = len(self)
        super().__delitem__(where)
        self._meter.bytes += before - len(self)


class MeteredBytes(bytes):
    """Chunk that counts the bytes searched or copied."""

    meter: Meter

    def find(self, sub: Any, start: Any = None, end: Any = None) -> int:
        return self.meter.searched(self, super().find(sub, start, end), start, end)

    def __getitem__(self, where: Any) -> Any:
        self.meter.bytes += len(range(*where.indices(len(self)))) if isinstance(where, slice) else 1
        return super().__getitem__(where)


def work(chunks: Iterable[bytes]) -> int:
    """Return the number of bytes touched while feeding these chunks."""
    meter = Meter()
    with pytest.MonkeyPatch.context() as patch:
        meter.attach(patch)
        decoder = JSONDecoder()
        for chunk in chunks:
            metered = MeteredBytes(chunk)
            metered.meter = meter
            decoder.feed(metered)
        decoder.finish()
        return meter.bytes


SHAPES = {
    "one image": (b'{"b64_json":"', b"QUJDREVGR0hJSktM", b'"}'),
    "one image with an escape first": (b'{"b64_json":"\\u0041AAA', b"QUJDREVGR0hJSktM", b'"}'),
    "escapes everywhere": (b'{"b64_json":"', rb"QU\u004aD\/\/\/\/", b'"}'),
    "white space everywhere": (b'{"b64_json":"', b"QUJD\nREVG\n", b'"}'),
    "a prefix": (b'{"b64_json":"data:image/png;base64,', b"QUJDREVGR0hJSktM", b'"}'),
    "a prefix without end": (b'{"b64_json":"data:', b"AAAAAAAA", b'"}'),
    "not base64": (b'{"b64_json":"%', b"QUJDREVGR0hJSktM", b'"}'),
    "escaped quotes": (b'{"b64_json":"', rb"QUJDREVG\"", b'"}'),
    "backslashes": (b'{"b64_json":"', rb"\\", b'"}'),
    "line ends after padding": (b'{"b64_json":"QQ==', b"\n", b'"}'),
    "a data URL": (b'{"url":"data:;base64,', b"QUJDREVGR0hJSktM", b'"}'),
    "many small images": (b"[0", b',{"b64_json":"QUJDREVGR0hJ"}', b"]"),
    "many images of 9 KB": (b"[0", b',{"b64_json":"' + b"QUJD" * 2300 + b'"}', b"]"),
    "another field": (b'{"a":"', b"hello world ", b'"}'),
    "a string full of keys": (b'{"a":"', rb"\"b64_json\":\"", b'"}'),
    "keys without images": (b"[0", b',{"url":"x"},"b64_json"', b"]"),
    "keys with blanks": (b"[0", b',{"b64_json"               :null}', b"]"),
    "only blanks": (b"{", b" ", b"}"),
    "only quotes": (b"[0", b',""', b"]"),
}


@pytest.mark.parametrize("size", [100, 20_000, MEGABYTE])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_cost_doubles_with_the_input(shape: tuple[bytes, bytes, bytes], size: int) -> None:
    """Twice the input takes at most twice the work, in any form and split."""
    head, unit, tail = shape
    count = 100_000 // len(unit)
    once, twice = (work(pieces(head + unit * times + tail, size)) for times in (count, 2 * count))
    chance = 2 * count * len(unit) + 3 * 4096  # one more look at each byte, and the last steps
    assert twice <= 2 * once + chance


@pytest.mark.parametrize("name", ["one image", "one image with an escape first", "a data URL"])
def test_cost_of_64_megabytes(name: str) -> None:
    """A byte of a 64 MB string costs as much as a byte of a 1 MB string."""
    head, unit, tail = SHAPES[name]
    per_byte = []
    for size in (MEGABYTE, 64 * MEGABYTE):
        text = head + unit * (size // len(unit)) + tail
        per_byte.append(work(pieces(text, 262_144)) / len(text))
    assert per_byte[1] <= 1.1 * per_byte[0]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_cost_of_a_byte(shape: tuple[bytes, bytes, bytes]) -> None:
    """Each byte is examined a small, fixed number of times."""
    head, unit, tail = shape
    text = head + unit * (200_000 // len(unit)) + tail
    assert work(pieces(text, 65_536)) <= 12 * len(text)


def test_cost_of_clean_base64() -> None:
    """A byte of clean base64 is examined twice: by the search for a quote and by decoding."""
    text = b'{"b64_json":"' + b"QUJD" * MEGABYTE + b'"}'
    assert work(pieces(text, 65_536)) <= 2.02 * len(text)


def test_meter_counts_a_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter detects a decoder that searches its whole skeleton for each chunk."""
    monkeypatch.setattr(json_images, "_MAX_KEY", MEGABYTE)
    once, twice = (work(pieces(b'"' + b"x" * size + b'"', 100)) for size in (50_000, 100_000))
    assert twice > 3 * once


@pytest.mark.parametrize("beginning", [b"QUJD", b"\\u0051UJD", b"data:image/png;base64,QUJD"])
def test_memory_of_one_image(beginning: bytes) -> None:
    """An image is held once, with some room to grow, and its base64 never."""
    unit, count = b"QUJDREVGR0hJSktM" * 4096, 256
    size = 3 + len(unit) * count * 3 // 4
    decoder = JSONDecoder()
    decoder.feed(b'{"b64_json":"' + beginning)
    tracemalloc.start()
    try:
        for _ in range(count):
            decoder.feed(unit)
        held = tracemalloc.get_traced_memory()[0]
        fed = tracemalloc.get_traced_memory()[1]
        decoder.feed(b'"}')
        found = decoder.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.decoded(found.value["b64_json"]) == b"ABC" + b"ABCDEFGHIJKL" * (size // 12)
    assert held <= fed <= peak <= 1.15 * size  # an eighth in advance, and what is being decoded


@pytest.mark.parametrize("length", [0, 1, 50, 10_000, 10**15])
def test_length_that_a_document_is_said_to_have(length: int) -> None:
    """A wrong expected length does not change the images."""
    images = [bytes(range(250)) * times for times in (1, 40, 3)]
    text = b'{"data":[%b]}' % b",".join(
        b'{"b64_json":"%b"}' % pybase64.b64encode(image) for image in images
    )
    for size in (1, 100, len(text)):
        decoder = JSONDecoder(length)
        for start in range(0, len(text), size):
            decoder.feed(text[start : start + size])
        document = decoder.finish()
        assert [document.decoded(item["b64_json"]) for item in document.value["data"]] == images


def test_memory_of_several_images() -> None:
    """Each of several images is held once."""
    unit, count = b"QUJDREVGR0hJSktM" * 4096, 32
    size = len(unit) * count * 3 // 4
    decoder = JSONDecoder()
    tracemalloc.start()
    try:
        for _ in range(8):
            decoder.feed(b'{"b64_json":"')
            for _ in range(count):
                decoder.feed(unit)
            decoder.feed(b'"}')
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 8.2 * size
