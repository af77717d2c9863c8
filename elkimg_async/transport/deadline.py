"""Time limits that hold whatever the HTTP library does.

aiohttp's own time-outs can be evaded: its read time-out does not cover an upload, is restarted by
every 1xx response, and never fires after malformed chunks. Every wait of a call therefore happens
inside `with deadline`.

A limit moves with every chunk of a body, so moving it has to be cheap. The timer is set for the
earliest time at which any limit can have passed; when it fires too early, it is set again.
"""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from elkimg_async.errors import ElkImagesError, RequestTimeoutError


class Deadline:
    """Time limit of one call, which interrupts the wait of the current task once it has passed.

    It is entered for each wait of a call. The total counts from its creation, in the running loop;
    a shorter limit counts from the `allow` that sets it. `soonest` is the shortest limit that will
    be set, in seconds.
    """

    def __init__(self, total: float, *, name: str = "total", soonest: float = math.inf) -> None:
        self.loop = asyncio.get_running_loop()
        self._name, self._total, self._soonest = name, total, soonest
        self._when = self._deadline = self.loop.time() + total
        self._limit, self._seconds = name, total
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._extend: Callable[[], None] | None = None
        self._interruption: ElkImagesError | None = None
        self._cancelling = 0
        self._fired = False

    @property
    def remaining(self) -> float:
        """Seconds until the total has passed; `math.inf` without one."""
        return self._deadline - self.loop.time()

    def allow(
        self, limit: str, seconds: float, *, extend: Callable[[], None] | None = None
    ) -> None:
        """Limit the wait to `seconds` from now, within the total.

        Args:
            limit: The name of the limit in `Timeout`.
            seconds: How long the wait may last.
            extend: Called when the limit has passed; it may allow more time. None: the limit is
                final.
        """
        self._extend = extend
        when = self.loop.time() + seconds
        if when < self._deadline:
            self._when, self._limit, self._seconds = when, limit, seconds
        else:
            self._when, self._limit, self._seconds = self._deadline, self._name, self._total

    def interrupt(self, error: ElkImagesError) -> None:
        """Raise `error` from this and every later wait; called in the deadline's loop."""
        if self._interruption is None:
            self._interruption = error
            if self._task is not None and not self._fired:
                self._task.cancel()

    def __enter__(self) -> Self:
        if self._interruption is not None:
            raise self._interruption
        # A call may be entered from another task each time, as a stream is by its readers.
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._fired = False
        self._when, self._limit, self._seconds = self._deadline, self._name, self._total
        self._set_timer(min(self._deadline, self.loop.time() + self._soonest))
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
        if not self._fired and self._interruption is None:
            return
        # As in asyncio.timeout: only our own cancellation becomes an error; an outer one goes on.
        if task.uncancel() > self._cancelling:
            return
        if self._interruption is not None:
            raise self._interruption
        # The wait may have failed by itself while our cancellation was on its way, and that failure
        # says more. If it ended well, its result is too late.
        if kind is None or issubclass(kind, asyncio.CancelledError):
            raise RequestTimeoutError(
                f"The {self._limit} limit of {self._seconds:g} s has passed.", limit=self._limit
            )

    def _set_timer(self, when: float) -> None:
        self._timer = None if when == math.inf else self.loop.call_at(when, self._check)

    def _check(self) -> None:
        """Cancel the wait if its limit has passed, else set the timer again."""
        if self._task is None:
            return
        # `allow` moves `_when` without touching the timer, so this often comes too early. It never
        # comes too late: no limit that was set meanwhile is shorter than `_soonest`.
        now = self.loop.time()
        if self._when <= now and self._extend is not None:
            self._extend()
        if now < self._when:
            self._set_timer(min(self._when, now + self._soonest))
            return
        self._timer = None
        if self._interruption is None:
            self._fired = True
            self._task.cancel()
