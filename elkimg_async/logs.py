"""The logger `elkimg_async`, and warnings that point at the user's own code.

Attempts and how they end are logged at DEBUG, retries at INFO, and lost images at WARNING. No line
contains text written by the user or the server except the URL and the request id: no prompt, API
key, body or error message. Use a hook to see those.
"""

import datetime
import logging
import sys
import warnings
from types import FrameType

from elkimg_async import hooks
from elkimg_async.errors import APIError, DownloadError, ElkImagesError, RequestTimeoutError
from elkimg_async.hooks import logger

_SHUTDOWN_NOTICE = datetime.timedelta(days=30)


class CallLog:
    """A hook that logs one call."""

    def __init__(self) -> None:
        self._target = ""
        self._request_id: str | None = None

    def __call__(self, record: hooks.Record) -> None:
        """Log one record."""
        number = record.call
        match record:
            case hooks.RequestStarted():
                self._target = f"{record.method} {record.url}"
            case hooks.AttemptStarted():
                logger.debug("call %d: %s, attempt %d", number, self._target, record.attempt)
            case hooks.ResponseStarted():
                self._request_id = record.request_id
                logger.debug(
                    "call %d: status %d after %.3f s (request id: %s)",
                    *(number, record.status, record.first_byte, self._request_id),
                )
            case hooks.RetryScheduled():
                logger.info(
                    "call %d: attempt %d failed: %s; next attempt in %.3f s (request id: %s)",
                    *(number, record.attempt, describe(record.error), record.delay),
                    self._request_id,
                )
                self._request_id = None
            case hooks.EventSkipped():
                logger.debug("call %d: event skipped: %s", number, record.reason)
            case hooks.RequestFinished():
                logger.debug(
                    "call %d: %s after %.3f s (request id: %s)",
                    *(number, _ending(record), record.elapsed, self._request_id),
                )


class WarningSite:
    """The line of the user's code that called the package, for a later warning."""

    __slots__ = ("_file", "_line", "_module", "_registry")

    def __init__(self) -> None:
        frame = sys._getframe(1)  # noqa: SLF001
        while frame.f_back is not None and _package(frame) in ("elkimg_async", "asyncio", "anyio"):
            frame = frame.f_back
        self._file, self._line = frame.f_code.co_filename, frame.f_lineno
        self._module = frame.f_globals.get("__name__") or "unknown"
        self._registry = frame.f_globals.setdefault("__warningregistry__", {})

    def warn(self, text: str, category: type[Warning] = UserWarning) -> None:
        """Issue a warning as if it came from that line."""
        warnings.warn_explicit(text, category, self._file, self._line, self._module, self._registry)

    def __str__(self) -> str:
        return f"{self._file}:{self._line}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def log_download(url: str, seconds: float, outcome: int | BaseException) -> None:
    """Log the size or failure of a download, with the host but not the rest of its URL."""
    if logger.isEnabledFor(logging.DEBUG):
        host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        ended = f"{outcome:,} bytes" if isinstance(outcome, int) else f"failed: {describe(outcome)}"
        logger.debug("download from %s: %s after %.3f s", host, ended, seconds)


def warn_of_missing_images(
    call: int, requested: int, received: int, request_id: str | None
) -> None:
    """Log that a successful response has fewer images than were requested."""
    logger.warning(
        "call %d: %d images were requested, but %d arrived (request id: %s)",
        *(call, requested, received, request_id),
    )


def warn_of_shutdown(shutdowns: dict[str, str], model: str) -> None:
    """Log a warning, once per model, if the server shuts it down within 30 days.

    `shutdowns` maps models to ISO dates; the date is removed once the warning has been logged.
    """
    try:
        end = datetime.date.fromisoformat(shutdowns.get(model, "")[:10])
    except ValueError:
        return
    if end <= datetime.datetime.now(datetime.UTC).date() + _SHUTDOWN_NOTICE:
        shutdowns[model] = ""
        logger.warning(
            "The server shuts down the model %s on %s; choose another (elkimg models).", model, end
        )


def describe(error: BaseException) -> str:
    """Return the kind of a failure, without any text from the server."""
    words = [type(error).__name__]
    if isinstance(error, (APIError, DownloadError)) and error.status is not None:
        words.append(str(error.status))
    if isinstance(error, RequestTimeoutError) and error.limit is not None:
        words.append(error.limit)
    if isinstance(error, ElkImagesError):
        words.append(f"({error.billing})")
    return " ".join(words)


def _ending(record: hooks.RequestFinished) -> str:
    if record.error is not None:
        return f"failed: {describe(record.error)}"
    return "closed early" if record.result is None else f"{len(record.result)} received"
