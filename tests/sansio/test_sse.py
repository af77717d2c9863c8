"""The decoder of server-sent events, by the WHATWG specification and its additions here."""

from collections.abc import Iterable
from typing import Any

import pytest

from elkimg_async.sansio.json_images import InvalidJSON
from elkimg_async.sansio.sse import MAX_FIELD_LINE, SSEDecoder
from tests.helpers.splits import every_split, pieces
from tests.helpers.sse_streams import MEGABYTE, Event, decode, ready, recorded


def images(chunks: Iterable[bytes]) -> list[Any]:
    """Return each event's name with its decoded document, images in place."""
    decoder = SSEDecoder()
    for chunk in chunks:
        decoder.feed(chunk)
    decoder.finish()
    found = []
    while (event := decoder.next_event()) is not None:
        try:
            document = event.data.finish()
        except InvalidJSON:
            found.append((event.name, event.terminated, "invalid"))
            continue
        value = document.value
        if isinstance(value, dict) and "b64_json" in value:
            value = {**value, "b64_json": document.decoded(value["b64_json"])}
        found.append((event.name, event.terminated, value))
    return found


def check(stream: bytes, *expected: Event) -> None:
    for chunks in every_split(stream):
        assert decode(chunks) == list(expected)


def test_sse_byte_order_mark() -> None:
    """One byte order mark at the beginning is dropped, and only there."""
    check(b"\xef\xbb\xbfdata: a\n\n", Event("a"))
    check(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n")
    check(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", Event("a"))
    check(b"data: \xef\xbb\xbfa\n\n", Event("\ufeffa"))
    check(b"\xef\xbb\xbf:\n\ndata: a\n\n", Event("a"))


@pytest.mark.parametrize("stream", [b"", b"\xef", b"\xef\xbb", b"\xef\xbb\xbf", b"\xef\xbb\n\n"])
def test_sse_of_a_byte_order_mark_only(stream: bytes) -> None:
    """A stream that ends within a byte order mark has no events."""
    check(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_sse_line_ends(end: bytes) -> None:
    """Lines end with LF, CR or CRLF, on any split."""
    lines = [b"event: x", b"data: a", b"data: b", b"", b"id: 7", b"", b"data:c", b"", b""]
    check(end.join(lines), Event("a\nb", "x"), Event("c", id="7"))


def test_sse_line_ends_mixed() -> None:
    """Each line may end differently; CR LF is one line end, LF CR two."""
    check(b"data: a\rdata: b\ndata: c\r\n\r\ndata: d\n\r", Event("a\nb\nc"), Event("d"))
    check(b"data: a\r\r\ndata: b\r\n\n", Event("a"), Event("b"))
    check(b"data: a\n\rdata: b\n\n", Event("a"), Event("b"))


def test_sse_crlf_split_between_chunks() -> None:
    """An LF after a CR in the previous chunk is part of the same line end."""
    for stream in (
        [b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n"],
        [b"data: a\r", b"", b"\ndata: b\r\r"],
    ):
        assert decode(stream) == [Event("a\nb")]
    assert decode([b"data: a\r", b"\r", b"data: b\r", b"\r"]) == [Event("a"), Event("b")]


def test_sse_event_is_ready_at_its_blank_line() -> None:
    """An event is returned at its blank line, even if an LF may follow the CR."""
    for stream in (b"data: a\n\n", b"data: a\r\r", b"data: a\r\n\r"):
        decoder = SSEDecoder()
        decoder.feed(stream[:-1])
        assert ready(decoder) == []
        decoder.feed(stream[-1:])
        assert ready(decoder) == [Event("a")]


def test_sse_comments() -> None:
    """A line that begins with a colon is ignored, within an event and outside of it."""
    check(b": PING\n\n:\n:data: x\ndata: a\n: keepalive\ndata: b\n\n::\n\n", Event("a\nb"))


def test_sse_field_without_colon() -> None:
    """A line without a colon is a field with an empty value."""
    check(b"data\n\n", Event(""))
    check(b"data\ndata\ndata: a\n\n", Event("a"))
    check(b"event: x\nevent\ndata: a\n\n", Event("a"))
    check(b"id: 7\ndata: a\n\nid\ndata: b\n\n", Event("a", id="7"), Event("b"))


def test_sse_one_leading_space_is_removed() -> None:
    """Only one space after the colon is removed, and no other white space."""
    check(b'data:"a"\n\ndata: "b"\n\ndata:  "c"\n\n', Event('"a"'), Event('"b"'), Event('"c"'))
    check(b"event:  x\ndata: a\n\nevent:\ty\ndata: b\n\n", Event("a", " x"), Event("b", "\ty"))
    check(b"id:  7 \ndata: a\n\n", Event("a", id=" 7 "))
    assert raw(b"data:  a \n\ndata:\tb\n\ndata: \n\n") == [b" a ", b"\tb", b""]


def test_sse_space_before_the_colon() -> None:
    """Spaces before the colon belong to the field's name, which is then unknown."""
    check(b"data : a\n data: b\nevent : x\ndata: c\n\n", Event("c"))


def test_sse_colons_in_the_value() -> None:
    """Only the first colon ends the name."""
    check(b"data: a: b\nevent:x:y\n\ndata::\n\n", Event("a: b", "x:y"), Event(":"))


def test_sse_multi_line_data() -> None:
    """The data lines of an event are joined with LF; JSON may span several."""
    assert raw(b"data: a\ndata:\ndata: b\ndata\n\n") == [b"a\n\nb\n"]
    stream = b'data: {"a":\ndata: [1,\r\ndata:\rdata: 2]}\n\n'
    for chunks in every_split(stream):
        assert images(chunks) == [("", True, {"a": [1, 2]})]


def test_sse_empty_data() -> None:
    """Empty data is an event; no data at all is not."""
    check(b"data:\n\n", Event(""))
    check(b"data: \n\n", Event(""))
    check(b"data:\ndata:\n\n", Event(""))
    check(b"event: x\n\nid: 7\n\n\n\n")


def test_sse_event_name_is_reset() -> None:
    """A name applies to one event, even one without data; the last of several wins."""
    check(b"event: x\ndata: a\n\ndata: b\n\n", Event("a", "x"), Event("b"))
    check(b"event: x\n\ndata: a\n\n", Event("a"))
    check(b"event: x\nevent: y\ndata: a\n\n", Event("a", "y"))
    check(b"data: a\nevent: late\n\n", Event("a", "late"))


def test_sse_id_is_kept() -> None:
    """An id applies until the next one; an empty one resets it."""
    check(
        b"id: 7\ndata: a\n\ndata: b\n\nid: 8\n\ndata: c\n\nid:\ndata: d\n\n",
        Event("a", id="7"),
        Event("b", id="7"),
        Event("c", id="8"),
        Event("d"),
    )


def test_sse_id_with_nul_is_ignored() -> None:
    """An id that contains a NUL is ignored."""
    check(b"id: 7\nid: 8\x009\ndata: a\n\n", Event("a", id="7"))
    check(b"event: x\0y\ndata: a\n\n", Event("a", "x\0y"))


@pytest.mark.parametrize(
    ("value", "retry"),
    [
        (b" 1500", 1500),
        (b"0", 0),
        (b"007", 7),
        (b"", None),
        (b" ", None),
        (b"  5", None),
        (b" 5 ", None),
        (b" -5", None),
        (b" +5", None),
        (b" 1.5", None),
        (b" 1_000", None),
        (b" 5s", None),
        (" ٣".encode(), None),
        (" ²".encode(), None),
    ],
)
def test_sse_retry_takes_digits_only(value: bytes, retry: int | None) -> None:
    """`retry` is a whole number in ASCII digits; anything else is ignored."""
    for chunks in every_split(b"retry:" + value + b"\nretry: x\ndata: a\n\n"):
        decoder = SSEDecoder()
        for chunk in chunks:
            decoder.feed(chunk)
        assert decoder.retry == retry
        assert ready(decoder) == [Event("a")]


def test_sse_retry_of_many_digits() -> None:
    """A number of any length is accepted."""
    decoder = SSEDecoder()
    decoder.feed(b"retry: " + b"9" * 10_000 + b"\n")
    assert isinstance(decoder.retry, int)


def test_sse_unknown_fields_are_ignored() -> None:
    """Unknown fields, and known ones in another case, are ignored."""
    check(b"foo: x\nData: x\nEVENT: x\ndatax: x\ndat: x\nd\n\xff: x\ndata: a\n\n", Event("a"))


def test_sse_text_that_is_not_utf8() -> None:
    """Bytes that are not UTF-8 become replacement characters."""
    check("event: é\nid: ü\ndata: ß\n\n".encode(), Event("ß", "é", "ü"))
    check(b"event: \xff\ndata: \xe9\n\n", Event("\ufffd", "\ufffd"))


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_sse_unterminated_event(end: bytes) -> None:
    """An event without its blank line is returned at the end, as unterminated."""
    check(b"data: a\n\nevent: x\nid: 7\ndata: b" + end, Event("a"), Event("b", "x", "7", False))
    check(b"data: b\nevent: x" + end, Event("b", "x", terminated=False))
    check(b"data: b\n: ping" + end, Event("b", terminated=False))
    check(b"data" + end, Event("", terminated=False))
    check(b"data:" + end, Event("", terminated=False))


@pytest.mark.parametrize("stream", [b"event: x", b"id: 7\n", b":", b"dat", b"d", b"\n", b"\r"])
def test_sse_unterminated_without_data(stream: bytes) -> None:
    """The end of the stream returns no event without data."""
    check(stream)


def test_sse_ends_within_an_image() -> None:
    """An event cut within base64 is unterminated, and its document invalid."""
    for chunks in every_split(b'data: {"a":1}\n\ndata: {"b64_json":"QUJDREVGR0hJ'):
        assert images(chunks) == [("", True, {"a": 1}), ("", False, "invalid")]


def test_sse_bare_line() -> None:
    """A line that begins with a brace is an event of its own, without name."""
    check(b': PING\n\n{"a":1}\n', Event('{"a":1}'))
    check(b'{"a":1}\r\n{"b":2}\r{}\n', Event('{"a":1}'), Event('{"b":2}'), Event("{}"))
    check(b'id: 7\n{"a":1}\ndata: x\n\n', Event('{"a":1}', id="7"), Event("x", id="7"))


def test_sse_bare_line_ends_the_event_before_it() -> None:
    """A bare line ends the open event, which is returned first."""
    check(b"event: x\ndata: a\n{}\ndata: b\n\n", Event("a", "x"), Event("{}"), Event("b"))
    check(b"event: x\n{}\ndata: b\n\n", Event("{}"), Event("b"))


@pytest.mark.parametrize(
    ("stream", "recognized"),
    [
        (b"", False),
        (b"\n\n", False),
        (b"upstream timeout", False),
        (b"error: x\nData: x\ndatax: x\n", False),
        (b":", True),
        (b"{", True),
        (b"data", True),
        (b"data:", True),
        (b"event: x\n", True),
        (b"x\nid\n", True),
        (b"retry: x\n", True),
        (b'data: {"b64_json":"QUJD"}\n\n', True),
    ],
)
def test_sse_recognized(stream: bytes, recognized: bool) -> None:
    """Text without a known line is not an event stream."""
    for chunks in every_split(stream):
        decoder = SSEDecoder()
        for chunk in chunks:
            decoder.feed(chunk)
        decoder.finish()
        assert decoder.recognized is recognized


def test_sse_open_bytes() -> None:
    """`open_bytes` counts the bytes of the open event, images included."""
    stream = b'event: x\ndata: {"b64_json":"QUJDREVGR0hJ"}\ndata: {}\n\n'
    for size in (1, 7, 30):
        decoder = SSEDecoder()
        assert decoder.open_bytes == 0
        for chunk in pieces(stream[:-1], size):
            decoder.feed(chunk)
        assert decoder.open_bytes == len('{"b64_json":"QUJDREVGR0hJ"}\n{}')
        decoder.feed(b"\n: ping\n")
        assert decoder.open_bytes == 0


def test_sse_bare_line_unterminated() -> None:
    """A bare line cut off by the end of the stream is unterminated."""
    check(b': PING\n\n{"a":1}', Event('{"a":1}', terminated=False))
    check(b"{", Event("{", terminated=False))


def test_sse_bare_line_with_an_image() -> None:
    """An image in a bare line is decoded too."""
    for chunks in every_split(b'\n{"b64_json":"QUJDREVGR0hJ","a":1}\ndata: {}\n\n'):
        assert images(chunks) == [("", True, {"b64_json": b"ABCDEFGHI", "a": 1}), ("", True, {})]


@pytest.mark.parametrize("size", [1_000, 65_536, 10 * MEGABYTE])
def test_sse_long_field_line_is_ignored(size: int) -> None:
    """A line over the limit that is not data is skipped and not held."""
    fits, over = (b"x" * (MAX_FIELD_LINE - len("event: ") + more) for more in (0, 1))
    for field in (b"event: ", b"id: ", b"retry: ", b"foo: ", b""):
        stream = b"event: y\nid: 7\n" + field + over * 4 + b"\ndata: a\n\n"
        assert decode(pieces(stream, size)) == [Event("a", "y", "7")]
    stream = b"event: " + fits + b"\ndata: a\n\nevent: " + over + b"\ndata: b\n\n"
    assert decode(pieces(stream, size)) == [Event("a", fits.decode()), Event("b")]


def test_sse_long_comment_is_not_held() -> None:
    """A comment of several megabytes is not held."""
    decoder = SSEDecoder()
    decoder.feed(b":")
    for _ in range(100):
        decoder.feed(b"x" * 65_536)
    assert not decoder._line
    decoder.feed(b"\ndata: a\n\n")
    assert ready(decoder) == [Event("a")]


def test_sse_huge_data_line() -> None:
    """Data has no limit: an event of 8 MB in one line is decoded."""
    text = b'event: x\ndata: {"a":"%b","b64_json":"%b"}\n\n' % (
        b"y" * 4 * MEGABYTE,
        b"QUJD" * MEGABYTE,
    )
    expected = {"a": "y" * 4 * MEGABYTE, "b64_json": b"ABC" * MEGABYTE}
    for size in (10_007, 65_536, 16 * MEGABYTE):
        assert images(pieces(text, size)) == [("x", True, expected)]


LAYOUTS = {
    "plain": b'event: x\ndata: {"a":1,"b64_json":"%b","c":"d"}\n\n',
    "crlf": b'event: x\r\ndata: {"a":1,"b64_json":"%b","c":"d"}\r\n\r\n',
    "cr": b'event: x\rdata: {"a":1,"b64_json":"%b","c":"d"}\r\r',
    "no spaces": b'event:x\ndata:{"a":1,"b64_json":"%b","c":"d"}\n\n',
    "name last": b'data: {"a":1,"b64_json":"%b","c":"d"}\nevent: x\n\n',
    "blanks in the JSON": b'event: x\ndata: {"a":1, "b64_json" : "%b", "c": "d" }\n\n',
    "several lines": b'event: x\ndata: {"a":1,\ndata: "b64_json":"%b",\ndata: "c":"d"}\n\n',
    "lines within the key": b'event: x\ndata: {"a":1,"b64_json"\ndata: :\ndata:"%b","c":"d"}\n\n',
    "image last": b'event: x\ndata: {"a":1,"c":"d","b64_json":"%b"}\n\n',
    "comments between": b':\nevent: x\n: y\ndata: {"a":1,"b64_json":"%b","c":"d"}\n:\n\n:\n',
    "an escape before": b'event: x\ndata: {"a":1,"c":"\\u0064","b64_json":"%b"}\n\n',
}


@pytest.mark.parametrize(
    "text",
    [
        b"QUJDREVGR0hJSktMTU4=",
        b"QUJDREVGR0hJSktMTU4",
        b"data:;base64,QUJDREVGR0hJSktMTU4=",
        rb"QUJDREVGR0hJSktMT\u0055\u0034=",
        rb"QUJD\nREVG\r\nR0hJSktMTU4=\n",
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_sse_images(layout: bytes, text: bytes) -> None:
    """An image is decoded in any layout, spelling and split, without effect on other events."""
    stream = b"data: {}\n\n" + layout.replace(b"%b", text) + b"data: {}\n\n"
    value = {"a": 1, "b64_json": b"ABCDEFGHIJKLMN", "c": "d"}
    for chunks in every_split(stream):
        assert images(chunks) == [("", True, {}), ("x", True, value), ("", True, {})]


@pytest.mark.parametrize("text", [b"QUJ%DREV", b"QUJDA", b"QQ==QUJD", b"QUJD\\q", b"\\u00e9AAA"])
def test_sse_broken_images(text: bytes) -> None:
    """A broken image affects only its own event."""
    stream = b'data: {"b64_json":"' + text + b'"}\n\ndata: {"a":1}\n\n'
    outcomes = [images(chunks) for chunks in every_split(stream)]
    assert all(outcome[1:] == [("", True, {"a": 1})] for outcome in outcomes)
    firsts = [outcome[0][2] for outcome in outcomes]
    assert all(value == "invalid" or not isinstance(value["b64_json"], bytes) for value in firsts)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n"])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 13, 64])
def test_sse_line_end_within_an_image(length: int, end: bytes) -> None:
    """An error after an image that the server broke off is decoded."""
    stream = b'data: {"b64_json":"' + b"A" * length + end + b'data: {"error":"x"}' + end
    for chunks in every_split(stream):
        assert images(chunks) == [("", True, "invalid"), ("", True, {"error": "x"})]


@pytest.mark.parametrize("length", [0, 1, 4, 13])
def test_sse_bare_error_after_half_an_image(length: int) -> None:
    """A bare error after half a data line is an event of its own."""
    stream = b'data: {"b64_json":"' + b"A" * length + b'\n{"error":"x"}\n\n'
    for chunks in every_split(stream):
        assert images(chunks) == [("", True, "invalid"), ("", True, {"error": "x"})]


def test_sse_base64_over_several_lines() -> None:
    """Base64 over several data lines is one image, as a line end is white space."""
    stream = b'data: {"b64_json":"QUJD\ndata: REVGR0hJ\r\ndata:SktM"}\n\n'
    for chunks in every_split(stream):
        assert images(chunks) == [("", True, {"b64_json": b"ABCDEFGHIJKL"})]


def raw(*chunks: bytes) -> list[bytes]:
    """Return the data of each event, byte for byte."""
    return [data for _, data, _, _ in recorded(chunks)]
