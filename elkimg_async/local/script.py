"""Steps in which a response is sent: bytes, pauses, and the end of the connection."""

import enum
from collections.abc import Iterator
from http.client import responses
from typing import Literal

import msgspec

Framing = Literal["length", "chunked", "close"]


class Pause(msgspec.Struct, frozen=True):
    """A pause in seconds; even 0 separates the bytes before it from those after it."""

    seconds: float = 0.0


class StopListening(msgspec.Struct, frozen=True):
    """Reset all connections and accept no new ones for `seconds`; None means for good."""

    seconds: float | None = None


class End(enum.Enum):
    """What happens to the connection after the last byte, instead of keep-alive."""

    CLOSE = "close"
    RESET = "reset"
    HOLD = "hold"


Step = bytes | Pause | StopListening | End


class ScriptedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP response. `frames` is the body in parts; in a stream, one per event.

    `delay` is in seconds: before the response, or before each event of a stream.
    """

    status: int = 200
    headers: dict[str, str] = {}
    frames: tuple[bytes, ...] = ()
    framing: Framing = "length"
    delay: float = 0.0

    @property
    def body(self) -> bytes:
        """The complete body, without framing."""
        return b"".join(self.frames)


def steps(response: ScriptedResponse) -> Iterator[Step]:
    """Yield the steps of a response without a fault."""
    if response.framing == "length":
        yield Pause(response.delay)  # a stream pauses before each event instead
    yield head(response)
    yield from body(response)


def head(response: ScriptedResponse) -> bytes:
    """Return the status line and headers, including those of the framing."""
    headers = dict(response.headers)
    match response.framing:
        case "length":
            headers["Content-Length"] = str(sum(map(len, response.frames)))
        case "chunked":
            headers["Transfer-Encoding"] = "chunked"
        case "close":
            headers["Connection"] = "close"
    lines = [f"HTTP/1.1 {response.status} {responses.get(response.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def body(response: ScriptedResponse) -> Iterator[Step]:
    """Yield the framed body, with a pause before each event of a stream."""
    chunked = response.framing == "chunked"
    for frame in response.frames:
        if frame.startswith(b"event:"):
            yield Pause(response.delay)
        yield chunk(frame) if chunked else frame
    if chunked:
        yield chunk(b"")
    if response.framing == "close":
        yield End.CLOSE


def chunk(frame: bytes) -> bytes:
    """Encode a frame as one HTTP chunk (RFC 9112, 7.1); an empty one ends the body."""
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def joined(script: Iterator[Step]) -> bytes:
    """Return all bytes of a script, without its pauses."""
    return b"".join(step for step in script if isinstance(step, bytes))
