"""Relays image streams to browsers as server-sent events."""

from elkimg_async.web.relay import (
    HEADERS,
    ServerSentEvents,
    aiohttp_response,
    error_body,
    starlette_response,
)

__all__ = ["HEADERS", "ServerSentEvents", "aiohttp_response", "error_body", "starlette_response"]
