"""Incremental decoding of server-sent events.

Usage: `feed` bytes in any split, then `next_event` until it returns None. An event is one `data:`
line of up to 33 MB, so its data goes chunk by chunk into a `JSONDecoder` and no line is ever held
in full. Each byte is examined a fixed number of times; base64 in the middle of a data line is
decoded before it is searched for line ends, because strict base64 contains none.

The rules are those of https://html.spec.whatwg.org/multipage/server-sent-events.html, with two
additions for real servers: a line that begins with `{` or `[` is an event of its own (a bare error
after a ping, or lines of JSON), and an event that is cut off by the end of the stream is returned
with `terminated=False`, while the specification drops it.
"""

import re
from collections import deque

import msgspec

from elkimg_async.sansio.json_images import JSONDecoder

_LINE_END = re.compile(rb"[\r\n]")
_BOM = b"\xef\xbb\xbf"
_RECORD_SEPARATOR = b"\x1e"  # before each JSON text, by RFC 7464
_HEAD = 6  # the length of "data: ", enough to classify a line
MAX_FIELD_LINE = 65_536
"""Bytes of an `event:`, `id:`, `retry:` or unknown line; a longer one is ignored."""

# What the bytes that follow belong to: the first bytes of a line, until it is classified; a field
# whose line is short and kept whole; data, or a bare event, whose bytes go to a JSON decoder; a
# comment, or a line that is too long to be kept.
_HEAD_MODE, _FIELD_MODE, _DATA_MODE, _BARE_MODE, _SKIP_MODE = range(5)


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event: its `name` ("" if it has none), the decoder of its data, and its id."""

    name: str
    data: JSONDecoder
    id: str
    terminated: bool = True


class SSEDecoder:
    """Decoder for a stream of server-sent events, fed in any split."""

    __slots__ = (
        "_after_cr",
        "_begun",
        "_data",
        "_events",
        "_id",
        "_line",
        "_mode",
        "_name",
        "_target",
        "recognized",
        "retry",
    )

    def __init__(self) -> None:
        self._events: deque[ServerSentEvent] = deque()
        self._mode = _HEAD_MODE
        self._line = b""  # the line so far, while its data is not passed on
        self._target: JSONDecoder | None = None  # where the data of this line goes
        self._data: JSONDecoder | None = None  # the data of the event that is open
        self._name = ""
        self._id = ""
        self._begun = False
        self._after_cr = False
        self.retry: int | None = None
        self.recognized = False
        """Whether any line was a comment, a field of the specification, or a bare event."""

    @property
    def open_bytes(self) -> int:
        """The number of data bytes of the open event; 0 if none is open."""
        target = self._target or self._data
        return 0 if target is None else target.size

    def feed(self, chunk: bytes) -> None:
        """Decode the next bytes of the stream."""
        start = 0
        # One byte order mark at the start is not a part of the stream.
        if not self._begun:
            chunk = self._line + chunk
            self._line = b""
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._line = chunk
                return
            self._begun = True
            start = len(_BOM) if chunk.startswith(_BOM) else 0
        # This line feed belongs to a carriage return at the end of the last chunk. The line was
        # ended then, since to wait for more would delay its event until the server sends again.
        if self._after_cr and chunk:
            self._after_cr = False
            start += chunk.startswith(b"\n", start)
        self._feed_lines(chunk, start)

    def next_event(self) -> ServerSentEvent | None:
        """Return the next event that is complete, or None."""
        return self._events.popleft() if self._events else None

    def finish(self) -> None:
        """Handle the end of the stream; an event that it cuts off becomes an unterminated one."""
        # The last line has no line end, and its event no empty line. A bare error may be the last
        # line, so neither is dropped.
        if self._line or self._mode != _HEAD_MODE:
            if self._mode == _HEAD_MODE:
                line, self._line = self._line, b""
                self._begin_line(line, 0, len(line), ended=True)
            self._end_line(terminated=False)
        self._dispatch(terminated=False)

    def _feed_lines(self, chunk: bytes, start: int) -> None:
        # A chunk of a large image is examined once, by the strict base64 decoder: line ends are not
        # base64. Only what it leaves is searched for line ends: with the fast `find` if there is no
        # carriage return, otherwise for both kinds at once. Two searches for each line, one for
        # each kind, would be quadratic where one kind is rare.
        size = len(chunk)
        has_cr: bool | None = None
        while start < size:
            if self._target is not None:
                start = self._target.feed_base64(chunk, start)
            if start == size:
                return
            if has_cr is None:
                has_cr = chunk.find(b"\r", start) >= 0
            if has_cr:
                match = _LINE_END.search(chunk, start)
                stop = match.start() if match else -1
            else:
                stop = chunk.find(b"\n", start)
            ended = stop >= 0
            self._feed_line(chunk, start, stop if ended else size, ended)
            if not ended:
                return
            self._end_line()
            start = stop + 1
            if has_cr and chunk[stop] == 0x0D:
                if start == size:
                    self._after_cr = True
                elif chunk[start] == 0x0A:
                    start += 1

    def _feed_line(self, chunk: bytes, start: int, stop: int, ended: bool) -> None:
        if self._mode == _HEAD_MODE:
            # The start of the line came in an earlier chunk, and was too short to classify it.
            if self._line:
                more = min(stop, start + _HEAD - len(self._line))
                head = self._line + chunk[start:more]
                self._line = b""
                self._begin_line(head, 0, len(head), ended=ended and more == stop)
                start = more
            elif start < stop:
                self._begin_line(chunk, start, stop, ended=ended)
                return
        if start < stop:
            self._continue_line(chunk, start, stop)

    def _begin_line(self, chunk: bytes, start: int, stop: int, *, ended: bool) -> None:
        """Classify a line by its first bytes; if there are too few, keep them for later."""
        if chunk.startswith(_RECORD_SEPARATOR, start, stop):
            start += 1
            if start == stop and not ended:
                return
        # ":" and "{" decide alone; "[" is either a list or the start of "[DONE]".
        if stop - start < _HEAD and not ended and chunk[start] not in b":{":
            self._line = chunk[start:stop]
            return
        if chunk.startswith(b"data:", start, stop):
            self._mode = _DATA_MODE
            self._target = self._next_data_line()
            start += 6 if chunk.startswith(b" ", start + 5, stop) else 5
        elif chunk.startswith(b"{", start) or (
            chunk.startswith(b"[", start) and not chunk.startswith(b"[DONE]", start, stop)
        ):
            # A bare error: a gateway that fails after a ping has committed the status writes one
            # without `data:`. It is no part of the event before it, whether that has ended or not.
            self._dispatch(terminated=True)
            self._mode = _BARE_MODE
            self._target = JSONDecoder()
        elif chunk.startswith(b":", start):
            self._mode = _SKIP_MODE
        else:
            self._mode = _FIELD_MODE
        # Any other text may be a field that the specification ignores, so it proves nothing.
        self.recognized |= self._mode != _FIELD_MODE
        self._continue_line(chunk, start, stop)

    def _continue_line(self, chunk: bytes, start: int, stop: int) -> None:
        if self._target is not None:
            self._target.feed(chunk, start, stop)
        elif self._mode == _FIELD_MODE:
            self._line += chunk[start:stop]
            if len(self._line) > MAX_FIELD_LINE:
                self._mode = _SKIP_MODE
                self._line = b""

    def _next_data_line(self) -> JSONDecoder:
        # By the specification a line feed follows each line, and the last one is removed; so there
        # is one between two lines.
        if self._data is None:
            self._data = JSONDecoder()
        else:
            self._data.feed(b"\n")
        return self._data

    def _end_line(self, *, terminated: bool = True) -> None:
        if self._mode == _HEAD_MODE:  # an empty line dispatches the event
            self._dispatch(terminated=terminated)
        elif self._mode == _FIELD_MODE:
            self._handle_field(self._line)
            self._line = b""
        elif self._mode == _BARE_MODE and self._target is not None:
            self._events.append(ServerSentEvent("", self._target, self._id, terminated))
        self._mode = _HEAD_MODE
        self._target = None

    def _handle_field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        # One space after the colon is not a part of the value.
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        self.recognized |= field in (b"event", b"data", b"id", b"retry")
        if field == b"event":
            self._name = text
        elif field == b"data":  # without a colon: an empty line of data
            self._next_data_line()
        elif field == b"id" and "\0" not in text:
            self._id = text
        elif field == b"retry" and value.removeprefix(b" ").isdigit():
            self.retry = int(text[:18])

    def _dispatch(self, *, terminated: bool) -> None:
        # Without a line of data there is no event, and the name does not apply to the next one.
        if self._data is not None:
            self._events.append(ServerSentEvent(self._name, self._data, self._id, terminated))
        self._data = None
        self._name = ""
