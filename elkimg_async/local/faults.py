"""Faults that the local server injects on request, for tests of code that talks to it.

A fault has a name, an argument where its name takes one, and a number of times. There are three
ways to choose one:

    LocalServer(faults=["rate-limit=1*3", Fault("reset-in-body"), "none"])
    X-Elkimg-Fault: stall-body=100              a request header
    parse("stall-body=100")                     the same text from anywhere else

Each POST for images gets one fault: the one in its header, or else the next one in the server's
list. If the list is empty, the response is correct. `FAULTS` maps every name to a description.

Unless a description says "nothing is generated", the image is painted and counted in
`server.generations` before the fault strikes: as with a real service, the response is lost and the
image is paid for. A fault of a request that is rejected anyway applies to the error response.
Faults marked "(stream)" leave JSON responses as they are.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import body_effects, dialect_effects, wire_effects
from elkimg_async.local.effects import streams
from elkimg_async.local.script import ScriptedResponse, Step, steps

FAULT_HEADER = "X-Elkimg-Fault"
_EFFECTS = {**wire_effects.EFFECTS, **body_effects.EFFECTS, **dialect_effects.EFFECTS}
FAULTS: dict[str, str] = {name: effect.description for name, effect in _EFFECTS.items()}
"""Every name with a one-line description, for a help text."""


class Fault(msgspec.Struct, frozen=True):
    """One fault. `times` is the number of POSTs it applies to; None means all that follow.

    Raises:
        ConfigurationError: If the name is unknown, or the argument does not fit it.
    """

    name: str
    argument: str | int | float | None = None
    times: int | None = 1

    def __post_init__(self) -> None:
        if self.name not in _EFFECTS:
            raise ConfigurationError(
                f"Unknown fault {self.name!r}. Choose one of: {', '.join(_EFFECTS)}."
            )
        if self.times is not None and self.times < 1:
            raise ConfigurationError(f"{self.name}: times must be at least 1; None means all.")
        self.value()

    def __str__(self) -> str:
        argument = "" if self.argument is None else f"={self.argument}"
        times = {1: "", None: "*"}.get(self.times, f"*{self.times}")
        return f"{self.name}{argument}{times}"

    @property
    def generates(self) -> bool:
        """Whether the image is generated before the fault strikes."""
        return _EFFECTS[self.name].generates

    @property
    def stream(self) -> bool | None:
        """The form of the response: a stream, JSON (False), or None for the requested form."""
        return _EFFECTS[self.name].stream

    def value(self) -> Any:
        """Return the converted argument, or its default.

        Raises:
            ConfigurationError: If the argument does not fit the name.
        """
        effect = _EFFECTS[self.name]
        if self.argument is None:
            return effect.default
        if effect.convert is None:
            raise ConfigurationError(f"The fault {self.name} takes no argument.")
        try:
            return effect.convert(str(self.argument))
        except ValueError:
            raise ConfigurationError(
                f"The argument {self.argument!r} does not fit the fault {self.name}: "
                f"{effect.description}."
            ) from None

    def apply(self, response: ScriptedResponse) -> Iterator[Step]:
        """Yield the steps that are sent instead of those of `response`."""
        effect = _EFFECTS[self.name]
        if effect.only_streams and not streams(response):
            return steps(response)
        sent = effect.apply(response, self.value())
        return steps(sent) if isinstance(sent, ScriptedResponse) else sent


def parse(text: str) -> Fault:
    """Parse `name` or `name=argument`, optionally followed by `*times`, or by `*` for all.

    Raises:
        ConfigurationError: If the text is not a fault.
    """
    match = re.fullmatch(r"([\w-]+)(?:=(.*?))?(?:\*(\d*))?", text.strip(), re.DOTALL)
    if match is None:
        raise ConfigurationError(
            f"{text!r} is not a fault; write name, name=argument or name*times."
        )
    name, argument, times = match.groups()
    return Fault(name, argument, 1 if times is None else int(times) if times else None)
