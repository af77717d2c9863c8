"""Real sockets on a clock that jumps over idle time, so that minutes pass in seconds.

    run_in_simulated_time(monkeypatch, main())

While any socket is ready, the clock stands still: a busy machine delays nothing.
"""

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


class _Clock:
    """The simulated time."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now


class _Selector(selectors.DefaultSelector):
    """A selector that moves the clock on by the time it would have waited for a timer."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the sockets that are ready, or move the clock on."""
        ready = super().select(timeout if timeout is None else 0.0)
        if not ready and timeout:
            self._clock.now += timeout
        return ready


def run_in_simulated_time(monkeypatch: pytest.MonkeyPatch, main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose sockets are all served by itself; return its result."""
    clock = _Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", clock.monotonic)
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(_Selector(clock))
        ) as runner:
            return runner.run(main)
