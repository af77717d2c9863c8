"""The event loop of a command, and what Ctrl-C does to it."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, TypeVar

import anyio

from elkimg_async.transport.event_loop import loop_factory

T = TypeVar("T")


def run(function: Callable[[], Awaitable[T]], *, fast: bool = True) -> T:
    """Run an async function in a new event loop and return its result.

    Ctrl-C cancels the function, and the second one cancels its cleanup.

    Args:
        function: The work of a command.
        fast: Use aiofastnet's transports if they are installed.

    Raises:
        KeyboardInterrupt: If Ctrl-C cancelled the function, or from the third one at once.
    """
    factory = loop_factory() if fast else None
    options: dict[str, Any] = {} if factory is None else {"loop_factory": factory}
    interrupts = Interrupts()

    async def work() -> T:
        interrupts.task = asyncio.current_task()
        return await function()

    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    handled = default and threading.current_thread() is threading.main_thread()
    if handled:
        signal.signal(signal.SIGINT, interrupts.handle)
    try:
        return anyio.run(work, backend_options=options)
    except asyncio.CancelledError:
        if not interrupts.count:
            raise
        raise KeyboardInterrupt from None
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Interrupts:
    """The Ctrl-C of a command, turned into cancellations of its task.

    asyncio's own handler cancels only at the first one and raises KeyboardInterrupt at the second,
    wherever the loop is. In the middle of another task that exception ends this task, whose
    traceback asyncio prints, and cleanup of the main task may go on.
    """

    def __init__(self) -> None:
        self.count = 0
        self.task: asyncio.Task[Any] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Cancel the task in its loop, or raise if it does not run or was cancelled twice."""
        self.count += 1
        if self.task is None or self.task.done() or self.count > 2:
            raise KeyboardInterrupt
        # A signal may arrive between any two instructions of the loop, so only schedule the call.
        self.task.get_loop().call_soon_threadsafe(self.task.cancel)
