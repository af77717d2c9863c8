"""What happens to a call, as lines of the logger `elkimg_async`, and as warnings.

DEBUG has each attempt and how it ended, INFO the retries, WARNING what was lost. A line has no text that
the caller or the server wrote, except the address and the request id: no prompt, no key, no body, nothing
that a server says, which may quote any of them. Who wants those asks for them with a hook.
"""

import logging
import sys
import warnings
from types import FrameType

from elkimg_async import hooks
from elkimg_async.errors import APIError, DownloadError, ElkImagesError, RequestTimeoutError

logger = logging.getLogger("elkimg_async")


class CallLog:
    """A hook that writes the lines of one call."""

    def __init__(self) -> None:
        self._where = ""
        self._request_id: str | None = None

    def __call__(self, record: hooks.Record) -> None:
        """Write what the record says, if it is worth a line."""
        number = record.call
        match record:
            case hooks.RequestStarted():
                self._where = f"{record.method} {record.url}"
            case hooks.AttemptStarted():
                logger.debug("call %d: %s, attempt %d", number, self._where, record.attempt)
            case hooks.ResponseStarted():
                self._request_id = record.request_id
                logger.debug(
                    "call %d: status %d after %.3f s (request id: %s)",
                    number, record.status, record.first_byte, self._request_id,
                )  # fmt: skip
            case hooks.RetryScheduled():
                logger.info(
                    "call %d: attempt %d failed: %s; the next one in %.3f s (request id: %s)",
                    number, record.attempt, describe(record.error), record.delay, self._request_id,
                )  # fmt: skip
                self._request_id = None
            case hooks.EventSkipped():
                logger.debug("call %d: an event is skipped: %s", number, record.reason)
            case hooks.RequestFinished():
                logger.debug(
                    "call %d: %s after %.3f s (request id: %s)",
                    number, _ending(record), record.elapsed, self._request_id,
                )  # fmt: skip


class Caller:
    """The line of the user's code that asks now, for a warning that may come later, in another task."""

    __slots__ = ("_file", "_line", "_module", "_registry")

    def __init__(self) -> None:
        frame = sys._getframe(1)  # noqa: SLF001
        while frame.f_back is not None and _package(frame) in ("elkimg_async", "asyncio", "anyio"):
            frame = frame.f_back
        self._file, self._line = frame.f_code.co_filename, frame.f_lineno
        self._module = frame.f_globals.get("__name__") or "unknown"
        self._registry = frame.f_globals.setdefault("__warningregistry__", {})

    def warn(self, text: str) -> None:
        """Give a `UserWarning` as if it came from that line."""
        warnings.warn_explicit(
            text, UserWarning, self._file, self._line, self._module, self._registry
        )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def log_download(url: str, seconds: float, outcome: int | BaseException) -> None:
    """Write that an image was fetched, as so many bytes, or not; only its host, for the rest may be a secret."""
    if logger.isEnabledFor(logging.DEBUG):
        host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        ended = f"{outcome:,} bytes" if isinstance(outcome, int) else f"failed: {describe(outcome)}"
        logger.debug("an image from %s: %s after %.3f s", host, ended, seconds)


def warn_of_missing(call: int, asked: int, came: int, request_id: str | None) -> None:
    """Say that an answer ended well, with fewer images than were asked for."""
    logger.warning(
        "call %d: %d images were asked for, and %d came (request id: %s)",
        call, asked, came, request_id,
    )  # fmt: skip


def describe(error: BaseException) -> str:
    """What kind of failure it is, in our own words only."""
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
    return "left" if record.result is None else f"{len(record.result)} in the answer"
