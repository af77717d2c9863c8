"""Old names of `tests.helpers.raw_server`."""

from tests.helpers.raw_server import (
    DONE,
    JPEG,
    KEY,
    PNG,
    REQUEST_ID,
    End,
    Piece,
    Reply,
    event,
    head,
    open_stream,
    stream,
)
from tests.helpers.raw_server import RawRequest as CannedRequest
from tests.helpers.raw_server import RawServer as Canned
from tests.helpers.raw_server import _Connection as _Connection
from tests.helpers.raw_server import response as answer

__all__ = [
    "DONE",
    "JPEG",
    "KEY",
    "PNG",
    "REQUEST_ID",
    "Canned",
    "CannedRequest",
    "End",
    "Piece",
    "Reply",
    "answer",
    "event",
    "head",
    "open_stream",
    "stream",
]
