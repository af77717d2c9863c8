"""What every contender has in common: the request, and what a client can do with it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

PROMPT = "A small kitten running through a sunny garden, cinematic, highly detailed"
MODEL = "gpt-image-1"
KEY = "canned"

Take = Callable[[bytes], object]


class Unsupported(Exception):  # noqa: N818 - a result, not an error
    """The contender does not support this."""


class Client:
    """What a contender can do; everything else is unsupported."""

    async def batch(self, take: Take, n: int) -> None:
        """Request `n` images in one call."""
        raise Unsupported("no batch calls")

    async def stream(self, take: Take) -> None:
        """Request a stream."""
        raise Unsupported("no image streams")

    async def fan_out(self, take: Take, count: int, concurrency: int) -> None:
        """Run `count` calls with the library's own facility."""
        raise Unsupported("no fan-out of its own")


Opener = Callable[[str], AbstractAsyncContextManager[Client]]


@dataclass(frozen=True)
class Contender:
    """One column of the tables."""

    name: str
    title: str
    opener: Opener
    distributions: tuple[str, ...]
    hint: str
    """What to do if it is missing."""
    streams: bool = True
    own_fan_out: bool = False
    """Takes part in the fan-out only, with its own facility."""
    raw: bool = False
    """Reads the body without decoding it."""
    fast: bool = False
    """Runs on aiofastnet's event loop."""
    paced: bool = False
    """Has a rate controller, which starts slowly."""

    def enters(self, *, streaming: bool, fan_out: bool) -> bool:
        if self.own_fan_out:
            return fan_out
        return self.streams or not streaming


def request_body(n: int, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "n": n}
    return body | {"stream": True, "partial_images": 3} if stream else body
