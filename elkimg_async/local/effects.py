"""The type of fault effects, converters for their arguments, and changes to responses."""

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from elkimg_async.local.script import ScriptedResponse, Step

Apply = Callable[[ScriptedResponse, Any], ScriptedResponse | Iterator[Step]]
"""Returns another response, or the steps in which the bytes of the response are sent."""


class Effect(NamedTuple):
    """The effect of one fault.

    `convert` reads its argument; None where it takes none. `generates` is whether the image exists
    before the fault strikes, `stream` the form of response it needs, None for the requested one.
    `only_streams` is whether it leaves other responses as they are.
    """

    description: str
    apply: Apply
    convert: Callable[[str], Any] | None
    default: Any
    generates: bool
    stream: bool | None
    only_streams: bool


class EffectTable(dict[str, Effect]):
    """Effects by the name of their fault."""

    def add(
        self,
        name: str,
        description: str,
        convert: Callable[[str], Any] | None = None,
        default: Any = None,
        *,
        generates: bool = True,
        stream: bool | None = None,
        only_streams: bool = False,
    ) -> Callable[[Apply], Apply]:
        """Register the decorated function as the effect of a fault."""
        if only_streams:
            description += " (stream)"

        def register(apply: Apply) -> Apply:
            self[name] = Effect(
                description, apply, convert, default, generates, stream, only_streams
            )
            return apply

        return register


# --- arguments --------------------------------------------------------------


def _number(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        if not least <= (value := kind(text)) <= most:
            raise ValueError(text)
        return value

    return convert


count = _number(int, 0, sys.maxsize)
positive = _number(int, 1, sys.maxsize)
seconds = _number(float, 0, threading.TIMEOUT_MAX)
status = _number(int, 200, 599)
"""An HTTP status of a final response."""


def one_of(*names: str) -> Callable[[str], str]:
    """Return a converter that allows these names only."""

    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return convert


# --- changing responses -----------------------------------------------------


def streams(response: ScriptedResponse) -> bool:
    return response.framing != "length"


def with_frames(response: ScriptedResponse, *frames: bytes) -> ScriptedResponse:
    return msgspec.structs.replace(response, frames=frames)


def with_headers(response: ScriptedResponse, **headers: str) -> ScriptedResponse:
    """Return the response with more headers; `_` in a name stands for `-`."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return msgspec.structs.replace(response, headers={**response.headers, **more})


def is_event(frame: bytes, suffix: bytes) -> bool:
    """Return whether a frame is an event whose type ends in `suffix`."""
    return frame.startswith(b"event:") and frame.partition(b"\n")[0].endswith(suffix)


def change_json(
    response: ScriptedResponse, change: Callable[[dict[str, Any]], Any]
) -> ScriptedResponse:
    """Return a JSON response with images after `change`; others are unchanged."""
    if streams(response):
        return response
    value = msgspec.json.decode(response.body)
    return (
        with_frames(response, msgspec.json.encode(change(value))) if value.get("data") else response
    )
