"""Base64 in JSON in any spelling, compared with a reference."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.sansio.base64_text import BadBase64, Base64Decoder, Decoded
from elkimg_async.sansio.json_images import (
    InvalidJSON,
)
from tests.helpers.json_documents import (
    IMAGE,
    TEXT,
    document,
    escaped,
    outcome,
    places,
    resolved,
)
from tests.helpers.splits import cut, every_split, one_by_one

URL_SAFE = TEXT.translate(bytes.maketrans(b"+/", b"-_"))


def decoded(chunks: Iterable[bytes]) -> Decoded:
    decoder = Base64Decoder()
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()


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


@settings(max_examples=150)
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


@settings(max_examples=100)
@given(inside=mutations(), where=places)
def test_base64_mutated(inside: bytes, where: list[int]) -> None:
    """Damaged base64 decodes like the reference, or is bad, and never to other bytes."""
    expected = None if b'"' in inside else reference_string(inside)
    for chunks in ([inside], cut(inside, where), one_by_one(inside)):
        found = decoded(chunks)
        assert isinstance(found, BadBase64) if expected is None else found == expected


@settings(max_examples=150)
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


@settings(max_examples=100)
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
