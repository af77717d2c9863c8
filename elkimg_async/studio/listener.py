"""The studio's port, and time limits for connections that send nothing."""

import asyncio
import socket
from collections.abc import Callable

from aiohttp.web_protocol import RequestHandler

from elkimg_async.errors import ConfigurationError

HOST = "127.0.0.1"
DEFAULT_PORT = 8700
"""A fixed port, since browsers keep settings and bookmarks by port."""
HEADER_SECONDS = 10.0
"""How long a new connection may take to send the headers of a request."""
IDLE_SECONDS = 300.0
"""How long a connection may take to send the headers of a further request."""

_MAX_TRIES = 20


def listen(port: int | None) -> socket.socket:
    """Return a listening socket; None means the default port, or the next one that is free.

    Raises:
        ConfigurationError: If the port is not available.
    """
    ports = [DEFAULT_PORT + step for step in range(_MAX_TRIES)] if port is None else [port]
    problem: Exception | None = None
    for candidate in ports:
        try:
            return socket.create_server((HOST, candidate))
        except (OSError, OverflowError) as error:
            problem = error
    if port is None:
        return socket.create_server((HOST, 0))
    raise ConfigurationError(
        f"Port {port} is not available ({problem}); choose another one."
    ) from None


class HeaderTimer:
    """Closes connections whose next request does not arrive in time.

    aiohttp limits neither the time until the first request nor the time for its headers.

    Args:
        create: Creates aiohttp's handler of one connection.
    """

    def __init__(self, create: Callable[[], RequestHandler]) -> None:
        self._create = create
        self._timers: dict[RequestHandler, asyncio.TimerHandle] = {}

    def connect(self) -> RequestHandler:
        """Return the handler of a new connection."""
        handler = self._create()
        self._start(handler, HEADER_SECONDS)
        return handler

    def request_started(self, handler: RequestHandler) -> None:
        """Record that the headers of a request have arrived."""
        timer = self._timers.pop(handler, None)
        if timer is not None:
            timer.cancel()

    def request_ended(self, handler: RequestHandler) -> None:
        """Record that a request has been handled."""
        self._start(handler, IDLE_SECONDS)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def _start(self, handler: RequestHandler, seconds: float) -> None:
        self.request_started(handler)
        loop = asyncio.get_running_loop()
        self._timers[handler] = loop.call_later(seconds, self._end, handler)

    def _end(self, handler: RequestHandler) -> None:
        self._timers.pop(handler, None)
        handler.force_close()  # does nothing if it is closed already
