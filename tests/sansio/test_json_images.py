"""The decoder for JSON that contains base64, fed in any split."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.sansio.base64_text import BadBase64
from elkimg_async.sansio.json_images import (
    InvalidJSON,
    JSONDecoder,
)
from tests.helpers.json_documents import (
    MEGABYTE,
    TEXT,
    document,
    escaped,
    outcome,
    places,
    resolved,
)
from tests.helpers.splits import cut, every_split, one_by_one, pieces

assert TEXT.endswith(b"==")
assert {*b"+/"} <= {*TEXT}
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


@settings(max_examples=100)
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


@settings(max_examples=100)
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
