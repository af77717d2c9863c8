"""Limits of time that hold whatever the library below does.

The HTTP library's own time-outs can be evaded: its read time-out does not cover an
upload, is restarted by every 1xx answer, and never fires after malformed chunks. So
every wait of a call happens inside `with deadline`.

A limit is moved with every piece of a body that arrives, so moving it has to cost
nothing: the timer stays at the soonest time at which anything can have passed, and
when it goes off too early it is set again.
"""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from elkimg_async.errors import RequestTimeoutError


class Deadline:
    """Ends what the current task awaits when the call's deadline, or a nearer limit, has passed.

    It is entered anew for each wait of a stream; the deadline counts from its creation,
    in the running loop, and a limit from the moment at which it is allowed. `soonest` is
    the shortest of the limits to come, in seconds.
    """

    __slots__ = (
        "_cancelling", "_deadline", "_extend", "_fired", "_limit", "_loop", "_name", "_seconds", "_soonest", "_task", "_timer",
        "_total", "_when",
    )  # fmt: skip

    def __init__(self, total: float, *, name: str = "total", soonest: float = math.inf) -> None:
        self._loop = asyncio.get_running_loop()
        self._name, self._total, self._soonest = name, total, soonest
        self._when = self._deadline = self._loop.time() + total
        self._limit, self._seconds = name, total
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._extend: Callable[[], None] | None = None
        self._cancelling = 0
        self._fired = False

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; `math.inf` without one."""
        return self._deadline - self._loop.time()

    def allow(
        self, limit: str, seconds: float, *, extend: Callable[[], None] | None = None
    ) -> None:
        """From now on the wait may last so long, within the deadline; `limit` is its name in `Timeout`.

        `extend` is asked when it has passed, and may allow more.
        """
        self._extend = extend
        when = self._loop.time() + seconds
        if when < self._deadline:
            self._when, self._limit, self._seconds = when, limit, seconds
        else:
            self._when, self._limit, self._seconds = self._deadline, self._name, self._total

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._fired = False
        self._when, self._limit, self._seconds = self._deadline, self._name, self._total
        self._set_timer(min(self._deadline, self._loop.time() + self._soonest))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        self._extend = None
        assert task is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # As asyncio.timeout does: only a cancellation that is ours alone becomes a time-out.
        if not self._fired or task.uncancel() > self._cancelling:
            return
        if kind is None or issubclass(kind, asyncio.CancelledError):
            raise RequestTimeoutError(
                f"The {self._limit} limit of {self._seconds:g} s has passed.", limit=self._limit
            )

    def _set_timer(self, when: float) -> None:
        self._timer = None if when == math.inf else self._loop.call_at(when, self._go_off)

    def _go_off(self) -> None:
        if self._task is None:
            return
        now = self._loop.time()
        if self._when <= now and self._extend is not None:
            self._extend()
        if now >= self._when:
            self._timer = None
            self._fired = True
            self._task.cancel()
        else:
            self._set_timer(min(self._when, now + self._soonest))
