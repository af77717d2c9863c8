"""Faults that the local server plays on request, for tests of whatever talks to it.

A fault is a name, an argument where the name takes one, and how often it is
played. It is chosen in one of three ways:

    LocalServer(faults=["rate-limit=1*3", Fault("reset-in-body"), "none"])
    X-Elkimg-Fault: stall-body=100              a request header
    parse("stall-body=100")                     the same text from anywhere else

The server plays one fault for each POST for images: the one in its header, or
else the next one of its list; when the list is empty, it answers as it should.
`FAULTS` has every name with a line of description.

Unless a description says "nothing is made", the picture is painted and counted
in `server.generations` before the fault strikes: as with a real service, the
answer is lost and the image is paid for. Where nothing could be made, since the
request was refused, the fault is played with the refusal. A fault marked
"(stream)" leaves a JSON answer as it is.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from elkimg_async.errors import ConfigurationError
from elkimg_async.local.fault_effects import EFFECTS
from elkimg_async.local.script import ScriptedResponse, Step

FAULT_HEADER = "X-Elkimg-Fault"
FAULTS: dict[str, str] = {name: kind.description for name, kind in EFFECTS.items()}
"""Every name with its one-line description, for a help text."""


class Fault(msgspec.Struct, frozen=True):
    """One fault. `times` is how many POSTs it is played for; None means every one from then on.

    Raises:
        ConfigurationError: by the caller; the name is unknown, or the argument is not fit for it.
    """

    name: str
    argument: str | int | float | None = None
    times: int | None = 1

    def __post_init__(self) -> None:
        if self.name not in EFFECTS:
            raise ConfigurationError(
                f"There is no fault {self.name!r}. Choose one of: {', '.join(EFFECTS)}."
            )
        if self.times is not None and self.times < 1:
            raise ConfigurationError(f"{self.name}: times must be at least 1, or None for ever.")
        self.value()

    def __str__(self) -> str:
        argument = "" if self.argument is None else f"={self.argument}"
        times = {1: "", None: "*"}.get(self.times, f"*{self.times}")
        return f"{self.name}{argument}{times}"

    @property
    def generates(self) -> bool:
        """Whether the picture is made before the fault strikes."""
        return EFFECTS[self.name].generates

    @property
    def stream(self) -> bool | None:
        """The form of answer that the fault wants: a stream, JSON (False), or None for what was asked."""
        return EFFECTS[self.name].stream

    def value(self) -> Any:
        """The argument as the fault uses it, its default filled in."""
        kind = EFFECTS[self.name]
        if self.argument is None:
            return kind.default
        if kind.convert is None:
            raise ConfigurationError(f"{self.name} takes no argument.")
        try:
            return kind.convert(str(self.argument))
        except ValueError:
            raise ConfigurationError(
                f"{self.name}: {self.argument!r} is not fit. It is: {kind.description}."
            ) from None

    def apply(self, response: ScriptedResponse) -> Iterator[Step]:
        """The steps that go over the wire instead of `response`."""
        return EFFECTS[self.name].apply(response, self.value())


def parse(text: str) -> Fault:
    """`name`, `name=argument`, either followed by `*times` or by `*` for ever.

    Raises:
        ConfigurationError: by the caller; the text names no fault.
    """
    match = re.fullmatch(r"([\w-]+)(?:=(.*?))?(?:\*(\d*))?", text.strip(), re.DOTALL)
    if match is None:
        raise ConfigurationError(f"{text!r} is no fault; write name, name=argument or name*times.")
    name, argument, times = match.groups()
    return Fault(name, argument, 1 if times is None else int(times) if times else None)
