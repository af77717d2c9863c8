"""The decoder of server-sent events, by the WHATWG specification and its additions here."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elkimg_async.sansio import sse
from elkimg_async.sansio.json_images import InvalidJSON, JSONDecoder
from elkimg_async.sansio.sse import MAX_FIELD_LINE, SSEDecoder
from tests.helpers.splits import cut, every_split, one_by_one, pieces

MEGABYTE = 1 << 20
places = st.lists(st.integers(0, 200), max_size=6)


class Event(NamedTuple):
    """An event with the text of its data."""

    data: str
    name: str = ""
    id: str = ""
    terminated: bool = True


def decode(chunks: Iterable[bytes]) -> list[Event]:
    decoder = SSEDecoder()
    events = []
    for chunk in chunks:
        decoder.feed(chunk)
        events += ready(decoder)
    decoder.finish()
    return events + ready(decoder)


def ready(decoder: SSEDecoder) -> list[Event]:
    events = []
    while (event := decoder.next_event()) is not None:
        events.append(Event(event.data.text(1_000), event.name, event.id, event.terminated))
    return events


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


# The rules of https://html.spec.whatwg.org/multipage/server-sent-events.html


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


# Beyond the rules


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


# Against a reference


class Recorder:
    """Replacement for the JSON decoder that keeps the bytes it receives."""

    def __init__(self) -> None:
        self.data = b""

    def feed(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self.data += data[start:end]

    def feed_base64(self, data: bytes, start: int) -> int:
        return start


def raw(*chunks: bytes) -> list[bytes]:
    """Return the data of each event, byte for byte."""
    return [data for _, data, _, _ in recorded(chunks)]


def recorded(chunks: Iterable[bytes]) -> list[tuple[str, bytes, str, bool]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "JSONDecoder", Recorder)
        decoder = SSEDecoder()
        for chunk in chunks:
            decoder.feed(chunk)
        decoder.finish()
        events = []
        while (event := decoder.next_event()) is not None:
            data: Any = event.data
            if not isinstance(data, Recorder):
                pytest.fail("the data went elsewhere")
            events.append((event.name, data.data, event.id, event.terminated))
    return events


def reference(stream: bytes) -> list[tuple[str, bytes, str, bool]]:
    """Return the events of a whole stream, read line by line."""
    events: list[tuple[str, bytes, str, bool]] = []
    name, identity = b"", b""
    data: list[bytes] = []
    *lines, last = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))

    def text(value: bytes) -> str:
        return value.decode("utf-8", "replace")

    for number, line in enumerate([*lines, last] if last else lines):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                events.append((text(name), b"\n".join(data), text(identity), True))
            name, data = b"", []
        elif line.startswith(b"{"):
            if data:
                events.append((text(name), b"\n".join(data), text(identity), True))
            name, data = b"", []
            if data:
                events.append((text(name), b"\n".join(data), text(identity), True))
            events.append(("", line, text(identity), number < len(lines)))
            name, data = b"", []
        elif field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"id" and b"\0" not in value:
            identity = value
    if data:
        events.append((text(name), b"\n".join(data), text(identity), False))
    return events


PARTS = [
    *(bytes((code,)) for code in b"\n\r: {ax7\0\xff"),
    b"\n",
    b"\r\n",
    b"\n\n",
    b"data",
    b"data:",
    b"data: ",
    b"event",
    b"event: x",
    b"id: 7",
    b"retry: 5",
    b": ping",
    b'{"a":1}',
    b"\xef\xbb\xbf",
]
streams = st.lists(st.sampled_from(PARTS), max_size=25).map(b"".join)


@settings(max_examples=250, deadline=None)
@given(stream=streams, where=places)
def test_sse_against_reference(stream: bytes, where: list[int]) -> None:
    """Any stream on any split has the events that reading it line by line finds."""
    expected = reference(stream)
    for chunks in ([stream], cut(stream, where), one_by_one(stream)):
        assert recorded(chunks) == expected


@settings(max_examples=100, deadline=None)
@given(stream=st.binary(max_size=120), where=places)
def test_sse_of_any_bytes(stream: bytes, where: list[int]) -> None:
    """Arbitrary bytes raise nothing, and splits change nothing."""
    whole = decode([stream])
    assert decode(cut(stream, where)) == whole
    assert decode(one_by_one(stream)) == whole


JSON_PARTS = [
    *[b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"\r"],
    b"data: ",
    b"data:",
    b'data: {"a":1,"b64_json":"QUJDREVG"}\n\n',
    b'event: x\ndata: {"b64_json":"QUJDREVGR0hJ","url":"data:;base64,QUJD"}\n\n',
    b'data: {"b64_json" : "',
    b'{"b64_json":"',
    b"QUJD",
    b"QUJDREVGR0hJ",
    b"QQ==",
    b"Q",
    b'"',
    b'"}',
    b"\\",
    b"event: x\n",
    b": ping\n",
    b"id: 7\n",
    b'{"error":1}',
]


@settings(max_examples=250, deadline=None)
@given(stream=st.lists(st.sampled_from(JSON_PARTS), max_size=10).map(b"".join), where=places)
def test_sse_with_images_against_reference(stream: bytes, where: list[int]) -> None:
    """Images in a stream equal those in the data of each event, on any split."""
    expected = []
    for name, data, _, _ in reference(stream):
        decoder = JSONDecoder()
        decoder.feed(data)
        expected.append((name, finished(decoder)))
    for chunks in ([stream], cut(stream, where), one_by_one(stream)):
        sse_decoder = SSEDecoder()
        for chunk in chunks:
            sse_decoder.feed(chunk)
        sse_decoder.finish()
        found = []
        while (event := sse_decoder.next_event()) is not None:
            found.append((event.name, finished(event.data)))
        assert found == expected


def finished(decoder: Any) -> str:
    try:
        document = decoder.finish()
    except InvalidJSON:
        return "invalid"
    value = document.value
    if not isinstance(value, dict):
        return repr(value)
    return repr([(key, document.restore(item)) for key, item in value.items()])


# Cost


class Counted(bytes):
    """Chunk that counts the bytes searched."""

    touched = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        place = super().find(sub, start, end)
        last = len(self) if end is None else min(len(self), end)
        Counted.touched += (place if place >= 0 else last) - start
        return place


class CountedPattern:
    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern

    def search(self, data: bytes, start: int = 0) -> re.Match[bytes] | None:
        match = self._pattern.search(data, start)
        Counted.touched += (match.end() if match else len(data)) - start
        return match

    def match(self, data: bytes, start: int = 0) -> re.Match[bytes] | None:
        match = self._pattern.match(data, start)
        Counted.touched += match.end() - start if match else 0
        return match


def touched(stream: bytes, size: int, patch: pytest.MonkeyPatch) -> int:
    """Return the number of bytes searched for line ends and quotes."""
    with patch.context() as inner:
        for name, value in vars(sse).items():
            if isinstance(value, re.Pattern):
                inner.setattr(sse, name, CountedPattern(value))
        Counted.touched = 0
        decoder = SSEDecoder()
        decoder.feed(b": the first chunk is copied\n")
        for chunk in pieces(stream, size):
            decoder.feed(Counted(chunk))
        decoder.finish()
        return Counted.touched


SHAPES = {
    "one event": (b'event: x\ndata: {"b64_json":"', b"QUJDREVGR0hJSktM", b'"}\n\n'),
    "one event with CRLF": (b'event: x\r\ndata: {"b64_json":"', b"QUJDREVGR0hJ", b'"}\r\n\r\n'),
    "one event with escapes": (b'data: {"b64_json":"\\u0041', b"QUJDREVGR0hJ", b'"}\n\n'),
    "one event with another field": (b'data: {"a":"', b"hello world ", b'"}\n\n'),
    "many events": (b"", b'data: {"b64_json":"QUJDREVGR0hJSktM"}\n\n', b""),
    "many events with CRLF": (b"", b'data: {"b64_json":"QUJDREVGR0hJ"}\r\n\r\n', b""),
    "many events cut short": (b"", b'data: {"b64_json":"QUJDREVGR0hJ\n\n', b""),
    "one event of many lines": (b'data: {"b64_json":"QUJD', b"\ndata: QUJD", b'"}\n\n'),
    "many empty events": (b"", b"data:\n\n", b""),
    "many comments": (b"", b": ping\n\n", b""),
    "many bare lines": (b"", b"{}\n", b""),
    "one comment": (b":", b"x", b"\n"),
    "one unknown field": (b"foo: ", b"xy", b"\n"),
    "one line without end": (b"", b'data: {"b64_json":"', b""),
    "only quotes": (b'data: {"b64_json":"', b'"', b"\n\n"),
}


@pytest.mark.parametrize("size", [100, 10_000, 1 << 30])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sse_cost_doubles_with_the_input(
    shape: tuple[bytes, bytes, bytes], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the stream takes at most twice the search; each byte is examined a few times."""
    head, unit, tail = shape
    count = 100_000 // len(unit)
    once, twice = (
        touched(head + unit * times + tail, size, monkeypatch) for times in (count, 2 * count)
    )
    assert twice <= 2 * once + 20_000
    assert once <= 8 * len(unit) * count


@pytest.mark.parametrize("shape", list(SHAPES.values())[:4], ids=list(SHAPES)[:4])
def test_sse_cost_of_64_megabytes(
    shape: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte of a 64 MB event costs as much as a byte of a 1 MB event."""
    head, unit, tail = shape
    per_byte = []
    for size in (MEGABYTE, 64 * MEGABYTE):
        stream = head + unit * (size // len(unit)) + tail
        per_byte.append(touched(stream, 262_144, monkeypatch) / len(stream))
    assert per_byte[1] <= 1.5 * per_byte[0]
