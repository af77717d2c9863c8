"""Translation of aiohttp's exceptions into this package's errors.

aiohttp's exceptions hold the request headers, and so the API key, in their attributes and in the
locals of their traceback. None of them is re-raised or chained.
"""

import builtins
import ssl
import traceback
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from elkimg_async.errors import (
    Billing,
    ConfigurationError,
    ConnectError,
    DisconnectedError,
    ElkImagesError,
    RequestTimeoutError,
    ResponseError,
)
from elkimg_async.transport.content_encoding import DamagedEncodingError


class Situation(NamedTuple):
    """The state of an exchange when it failed."""

    url: str
    phase: str
    billing: Billing
    connect: float
    proxy: str | None
    borrowed: bool
    closed: bool
    """Whether the session is closed."""

    @property
    def host(self) -> str:
        """The host and port of the URL, without user and password."""
        return _host(self.url)


def translate(error: Exception, at: Situation) -> ElkImagesError:
    """Return the error of this package for an exception from sending or reading."""
    # From the narrowest class to the widest: aiohttp's errors inherit from each other, and from
    # OSError and ValueError.
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return RequestTimeoutError(
            f"The connect limit of {at.connect:g} s has passed; {at.host} was not reached.",
            limit="connect",
            phase="connect",
            billing="not_sent",
        )
    # The second is a proxy's response to CONNECT, so nothing has reached the server.
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError)):
        return _connect_error(error, at)
    if isinstance(error, aiohttp.InvalidURL):
        return ConfigurationError(f"The URL of {at.host} is not valid; check it.")
    # Closing a session fails its requests in whatever way they happen to notice it.
    if at.closed:
        return ConfigurationError(
            "The client was closed while this call was running.", billing=at.billing
        )
    if isinstance(error, DamagedEncodingError):
        return ResponseError(
            f"The response of {at.host} does not match its Content-Encoding.", billing=at.billing
        )
    # Its status 400 is aiohttp's own, not the server's, so it is not reported.
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        return ResponseError(f"The response of {at.host} is not valid HTTP.", billing=at.billing)
    if not isinstance(error, (aiohttp.ClientError, OSError, EOFError)):
        return _unexpected(error, at)
    where = (
        "before the request was sent"
        if at.billing == "not_sent"
        else "before the response was complete"
    )
    return DisconnectedError(
        f"The connection to {at.host} broke {where}.", phase=at.phase, billing=at.billing
    )


def is_lost_connection(error: Exception) -> bool:
    """Return whether the server closed the connection, rather than never having accepted it."""
    # A ClientConnectorError is a ClientOSError too, but there was no connection to lose.
    lost = isinstance(
        error, (aiohttp.ServerDisconnectedError, ConnectionError, aiohttp.ClientOSError)
    )
    return lost and not isinstance(error, aiohttp.ClientConnectorError)


def _connect_error(
    error: aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError, at: Situation
) -> ElkImagesError:
    proxy = f"The proxy {_host(at.proxy)}" if at.proxy else "The proxy"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        advice = (
            " It requires a user and password: http://USER:PASSWORD@HOST:PORT."
            if error.status == 407
            else ""
        )
        reason = f" ({error.message})" if error.message else ""
        return ConnectError(
            f"{proxy} rejected the connection to {at.host} with status {error.status}"
            f"{reason}.{advice}",
            phase="proxy",
            status=error.status,
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = _reason(error.certificate_error)
        return ConnectError(f"{at.host} cannot be reached: {reason}.", phase="tls")
    reason = _reason(error.os_error)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return ConnectError(f"{proxy} cannot be reached: {reason}.", phase="connect")
    # A name that cannot be resolved stops a run over many requests, hence its own phase.
    phase = "dns" if isinstance(error, aiohttp.ClientConnectorDNSError) else "connect"
    return ConnectError(f"{at.host} cannot be reached: {reason}.", phase=phase)


def _unexpected(error: Exception, at: Situation) -> ElkImagesError:
    """Return the error for an exception that is not a network failure."""
    name, text = type(error).__name__, str(error)
    if at.borrowed and at.billing == "not_sent" and type(error).__module__ != "builtins":
        # Connectors of other packages, such as aiohttp-socks, raise errors of their own.
        return ConnectError(f"{at.host} cannot be reached: {text} ({name}).", phase="connect")
    # For example a session with auth=, which cannot go with our Authorization header.
    if at.borrowed and at.billing == "not_sent" and isinstance(error, (TypeError, ValueError)):
        message = (
            f"The borrowed session cannot send this request: {text} ({name}). Check its settings."
        )
    else:
        message = (
            f"Unexpected {name} in aiohttp {aiohttp.__version__}{_location(error)}: {text}. "
            "This is a bug, or an incompatible version of aiohttp, connector or middleware; "
            "please report it."
        )
    failure = ConfigurationError(message, billing=at.billing)
    # Chained for the bug report, but without the traceback, whose frames hold the API key.
    if _is_plain(error):
        error.__traceback__ = error.__context__ = error.__cause__ = None
        failure.__cause__ = error
    return failure


_WITH_ATTRIBUTES = (
    *(AttributeError, ImportError, NameError, OSError, StopAsyncIteration, StopIteration),
    *(SyntaxError, UnicodeError),
)
"""Exceptions that hold more than their `args`."""


def _is_plain(error: Exception) -> bool:
    """Return whether an exception holds nothing but text, and so cannot hold the API key."""
    kind = type(error)
    return (
        getattr(builtins, kind.__name__, None) is kind
        and not isinstance(error, _WITH_ATTRIBUTES)
        and all(isinstance(argument, (str, int)) for argument in error.args)
        and not vars(error)
    )


def _location(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({PurePath(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.CertificateError) and error.verify_message:
        return f"certificate verify failed: {error.verify_message}"
    text = error.strerror if isinstance(error, OSError) else str(error)
    return text or type(error).__name__
