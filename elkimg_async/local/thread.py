"""The local server in a thread, for code without an event loop, or with several."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from elkimg_async.local.faults import Fault
from elkimg_async.local.received import ReceivedRequest
from elkimg_async.local.server import LocalServer

T = TypeVar("T")


class ThreadedServer:
    """A `LocalServer` in its own thread: `with ThreadedServer(LocalServer()) as server`.

    Every method may be called from any thread and any event loop.
    """

    def __init__(self, server: LocalServer) -> None:
        """Wrap a server that has not been started and is not used elsewhere."""
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
        """The only API key that the server accepts."""
        return self._server.api_key

    @property
    def base_url(self) -> str:
        """The base URL for a client, `/v1` included."""
        return self._server.base_url

    @property
    def requests(self) -> list[ReceivedRequest]:
        """A copy of the latest thousand requests, oldest first.

        A client may have its response before the request is marked as answered: use `wait_until`.
        """
        return self.call(lambda: list(self._server.requests))

    @property
    def generations(self) -> int:
        """The number of POSTs for which images were painted so far."""
        return self._server.generations

    def start(self) -> None:
        """Start to listen; a second call does nothing.

        Raises:
            ConfigurationError: If Pillow is missing, or the port is taken.
        """
        if self._thread is not None:
            return
        ready: Future[None] = Future()
        # A daemon thread, so that a server left open does not keep the process alive.
        thread = threading.Thread(target=self._run, args=(ready,), name="elkimg-local", daemon=True)
        thread.start()
        try:
            ready.result()
        except Exception:
            thread.join()
            raise
        self._thread = thread

    def close(self) -> None:
        """Abort requests in flight and stop; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    def inject(self, *faults: Fault | str) -> None:
        """Add faults to the list for the next POSTs.

        Raises:
            ConfigurationError: If a text is not a fault.
        """
        self.call(lambda: self._server.inject(*faults))

    async def wait_until(self, condition: Callable[[], bool], *, within: float = 10.0) -> None:
        """Wait until `condition` holds; the server's thread checks it whenever its state changes.

        Raises:
            TimeoutError: If it does not hold within `within` seconds.
        """
        async with asyncio.timeout(within):
            await asyncio.wrap_future(self._submit(self._server.wait_until(condition)))

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in the server's thread and return its result."""
        if self._thread is None or threading.current_thread() is self._thread:
            return function()
        return self.wait_for(_call(function))

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop and return its result."""
        return self._submit(coroutine).result()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run(self, ready: "Future[None]") -> None:
        # Independent of the event loop policy that the calling program has set.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve(ready))

    async def _serve(self, ready: "Future[None]") -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._server.start()
        except BaseException as error:  # noqa: BLE001 - raised by `start`
            ready.set_exception(error)
            return
        ready.set_result(None)
        await self._stop.wait()
        await self._server.aclose()


async def _call(function: Callable[[], T]) -> T:
    return function()
