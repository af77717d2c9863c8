"""Limits of time that hold whatever the library below does.

The HTTP library's own time-outs can be evaded: its read time-out does not cover an
upload, is restarted by every 1xx answer, and never fires after malformed chunks. So
every wait of a call happens inside `async with watchdog`.
"""

import asyncio
import math
from types import TracebackType
from typing import Self

from elkimg_async.errors import RequestTimeoutError


class Watchdog:
    """Ends what the current task awaits when the call's deadline, or a nearer limit, has passed.

    It is entered anew for each wait of a stream; the deadline counts from its creation,
    in the running loop, and a limit from the moment at which it is allowed.
    """

    __slots__ = ("_deadline", "_limit", "_loop", "_name", "_scope", "_seconds", "_total")

    def __init__(self, total: float, *, name: str = "total") -> None:
        self._loop = asyncio.get_running_loop()
        self._name, self._total = name, total
        self._deadline = self._loop.time() + total
        self._limit, self._seconds = name, total
        self._scope: asyncio.Timeout | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; `math.inf` without one."""
        return self._deadline - self._loop.time()

    def allow(self, limit: str, seconds: float) -> None:
        """From now on the wait may last so long, within the deadline; `limit` is its name in `Timeout`."""
        when = self._loop.time() + seconds
        if when < self._deadline:
            self._limit, self._seconds = limit, seconds
        else:
            when = self._deadline
            self._limit, self._seconds = self._name, self._total
        assert self._scope is not None
        self._scope.reschedule(None if when == math.inf else when)

    async def __aenter__(self) -> Self:
        self._limit, self._seconds = self._name, self._total
        deadline = None if self._deadline == math.inf else self._deadline
        self._scope = asyncio.timeout_at(deadline)
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._scope is not None
        try:
            await self._scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            pass
        else:
            return
        raise RequestTimeoutError(
            f"The {self._limit} limit of {self._seconds:g} s has passed.", limit=self._limit
        )
