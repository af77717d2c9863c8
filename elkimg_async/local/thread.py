"""The local server in a thread of its own, for whoever has no event loop, or several."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from elkimg_async.local.faults import Fault
from elkimg_async.local.server import LocalServer, ReceivedRequest

T = TypeVar("T")


class ThreadedServer:
    """A `LocalServer` that runs beside the caller: `with ThreadedServer(LocalServer()) as server`.

    Everything here may be used from any thread and any event loop, one after the other as well.
    """

    def __init__(self, server: LocalServer) -> None:
        """Take a server that has not been started; nothing else may touch it."""
        self._server = server
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ThreadedServer of {self._server!r}>"

    @property
    def api_key(self) -> str:
        """The only key that it takes."""
        return self._server.api_key

    @property
    def base_url(self) -> str:
        """What a client needs, `/v1` included."""
        return self._server.base_url

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The latest thousand requests until now, the newest last.

        A client may have its answer before its request is marked as answered: `wait_until` then.
        """
        return self.call(lambda: list(self._server.requests))

    @property
    def generations(self) -> int:
        """How many requests had images painted until now."""
        return self._server.generations

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: by whoever set this up; Pillow is missing, or the port is taken.
        """
        if self._thread is not None:
            return
        ready: Future[None] = Future()
        # A daemon, so that a forgotten server does not keep the process.
        thread = threading.Thread(target=self._run, args=(ready,), name="elkimg-local", daemon=True)
        thread.start()
        try:
            ready.result()
        except Exception:
            thread.join()
            raise
        self._thread = thread

    def close(self) -> None:
        """Break off what is under way and stop; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    def inject(self, *faults: Fault | str) -> None:
        """Add faults to those that wait for their POST.

        Raises:
            ConfigurationError: by the caller; a text names no fault.
        """
        self.call(lambda: self._server.inject(*faults))

    async def wait_until(self, condition: Callable[[], bool], *, within: float = 10.0) -> None:
        """Wait until `condition` holds; it is asked, in the server's thread, whenever something happens there.

        Raises:
            TimeoutError: it did not hold `within` so many seconds.
        """
        async with asyncio.timeout(within):
            await asyncio.wrap_future(self._submit(self._server.wait_until(condition)))

    def call(self, function: Callable[[], T]) -> T:
        """Do something in the server's thread, and return what it returns."""
        if self._thread is None or threading.current_thread() is self._thread:
            return function()
        return self.wait_for(_call(function))

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop, and wait for it here."""
        return self._submit(coroutine).result()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self, ready: "Future[None]") -> None:
        # The loop is of our choice, whatever policy the caller has set for its own.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: "Future[None]") -> None:
        with _told(ready):
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            await self._server.start()
        if self._stop is not None and ready.exception() is None:
            await self._stop.wait()
            await self._server.aclose()


async def _call(function: Callable[[], T]) -> T:
    return function()


@contextmanager
def _told(ready: "Future[None]") -> Iterator[None]:
    """Tell the starter how the start ended."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001
        ready.set_exception(error)
    else:
        ready.set_result(None)
