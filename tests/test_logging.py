"""The lines of the logger: what they contain, and what they never contain."""

import base64
import logging
import re
from typing import Any

import pytest

from elkimg_async import (
    AsyncImages,
    AuthenticationError,
    DisconnectedError,
    DownloadError,
    ElkImagesError,
    Timeout,
)
from elkimg_async.hooks import logger
from tests.helpers.calls import BUSY, COMPLETED, GOOD, PARTIAL, QUICK, in_both_modes, run_call
from tests.helpers.raw_server import (
    DONE,
    PNG,
    REQUEST_ID,
    End,
    RawServer,
    Reply,
    event,
    head,
    response,
    stream,
)

API_KEY = "sk-planted-1f2e3d4c5b6a"
PROMPT = "a planted prompt of mine"
BODY = "planted-in-the-body"
HEADER = "planted-in-a-header"
NAMED = f"(request id: {REQUEST_ID})"
NO = {
    "error": {"message": f"{BODY}: {PROMPT} {API_KEY}", "code": BODY, "type": BODY, "param": BODY}
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All lines of the logger; none contains a secret of the test."""
    caplog.set_level(logging.DEBUG, "elkimg_async")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of each line, the number of the call left out, each number of seconds as S."""
    for planted in (API_KEY, PROMPT, BODY, HEADER, base64.b64encode(PNG).decode()[:24]):
        assert planted not in log.text
        assert not any(planted in str(vars(record)) for record in log.records)
    found = []
    for record in log.records:
        assert record.name == "elkimg_async"
        text = re.sub(r"^call \d+: ", "", record.getMessage())
        assert text != record.getMessage() or text.startswith("download from")
        found.append((record.levelname, re.sub(r"\b\d+\.\d{3} s", "S s", text)))
    return found


async def run_with_secrets(
    raw_server: RawServer, *replies: Reply, streaming: bool = False, **options: Any
) -> ElkImagesError | None:
    """Make one call full of secrets against these replies."""
    raw_server.reply_with(*replies)
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=QUICK) as client:
        headers = {"X-Secret": HEADER}
        try:
            await run_call(client, streaming, PROMPT, extra_headers=headers, user=PROMPT, **options)
        except ElkImagesError as error:
            return error
    return None


@in_both_modes
async def test_success(
    raw_server: RawServer, log: pytest.LogCaptureFixture, streaming: bool
) -> None:
    """A successful call logs its attempt, response and end, with request id and seconds."""
    assert await run_with_secrets(raw_server, GOOD, streaming=streaming) is None
    assert lines(log) == [
        ("DEBUG", f"POST {raw_server.base_url}/images/generations, attempt 1"),
        ("DEBUG", f"status 200 after S s {NAMED}"),
        ("DEBUG", f"1 received after S s {NAMED}"),
    ]


async def test_stream_with_an_event_that_is_skipped(
    raw_server: RawServer, log: pytest.LogCaptureFixture
) -> None:
    """A skipped event is logged with the reason."""
    strange = event({"type": BODY, "text": PROMPT})
    reply = stream(PARTIAL, strange, COMPLETED, DONE)
    assert await run_with_secrets(raw_server, reply, streaming=True) is None
    assert lines(log)[2:] == [
        ("DEBUG", "event skipped: its type is unknown"),
        ("DEBUG", f"1 received after S s {NAMED}"),
    ]


@in_both_modes
async def test_retry(raw_server: RawServer, log: pytest.LogCaptureFixture, streaming: bool) -> None:
    """A retry is INFO, with the reason and the delay."""
    busy = response(NO, status=429, Retry_After_Ms="5")
    assert await run_with_secrets(raw_server, busy, GOOD, streaming=streaming) is None
    found = lines(log)
    assert found[2] == (
        "INFO",
        f"attempt 1 failed: RateLimitError 429 (refused); next attempt in S s {NAMED}",
    )
    assert [text.partition(", ")[2] for _, text in found if "attempt" in text] == [
        "attempt 1", "", "attempt 2",
    ]  # fmt: skip


@in_both_modes
async def test_failure(
    raw_server: RawServer, log: pytest.LogCaptureFixture, streaming: bool
) -> None:
    """An error response is logged by type only, since its text may quote anything."""
    error = await run_with_secrets(raw_server, response(NO, status=401), streaming=streaming)
    assert isinstance(error, AuthenticationError)
    assert PROMPT in str(error)
    assert lines(log)[1:] == [
        ("DEBUG", f"status 401 after S s {NAMED}"),
        ("DEBUG", f"failed: AuthenticationError 401 (refused) after S s {NAMED}"),
    ]


@in_both_modes
@pytest.mark.parametrize(
    "reply",
    [
        response(BODY.encode(), content_type="text/plain"),
        response({"data": [{"b64_json": f"!!{BODY}"}]}),
        stream(event({"error": {"message": f"{PROMPT} {API_KEY}"}}, "error")),
        response(f"<html>{API_KEY}{BODY}</html>".encode(), status=502),
        response(NO, status=307, Location=f"http://{BODY}/{API_KEY}"),
    ],
    ids=["text", "bad base64", "error event", "page", "redirect"],
)
async def test_failure_that_quotes(
    raw_server: RawServer, log: pytest.LogCaptureFixture, reply: Reply, streaming: bool
) -> None:
    """No text of a response is logged."""
    assert await run_with_secrets(raw_server, reply, streaming=streaming) is not None
    assert lines(log)[-1][1].endswith(f"after S s {NAMED}")


async def test_connection_errors(raw_server: RawServer, log: pytest.LogCaptureFixture) -> None:
    """A lost connection and a timeout are logged by type."""
    assert isinstance(await run_with_secrets(raw_server, [End.RESET]), DisconnectedError)
    await run_with_secrets(raw_server, [head(), End.HOLD], timeout=Timeout(idle=0.05))
    assert [text for _, text in lines(log) if "failed" in text] == [
        "failed: DisconnectedError (unknown) after S s (request id: None)",
        f"failed: RequestTimeoutError idle (unknown) after S s {NAMED}",
    ]


async def test_stream_that_is_left(raw_server: RawServer, log: pytest.LogCaptureFixture) -> None:
    """Leaving a stream early is not logged as a failure."""
    raw_server.reply_with([*stream(PARTIAL)[:-1], End.HOLD])
    async with (
        AsyncImages(API_KEY, base_url=raw_server.base_url) as client,
        client.generate(PROMPT, stream=True) as opened,
    ):
        await anext(opened)
    assert lines(log)[-1] == ("DEBUG", f"closed early after S s {NAMED}")


async def test_download(raw_server: RawServer, log: pytest.LogCaptureFixture) -> None:
    """A download is logged with host, size and time; never path and query, which may be secret."""
    async with RawServer(response(PNG), response(b"", status=410)) as host:
        url = f"http://user:{BODY}@127.0.0.1:{host.port}/{BODY}.png?signature={BODY}"
        raw_server.reply_with(response({"data": [{"url": url}, {"url": url}]}))
        async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
            first, second = await client.generate(PROMPT, n=2)
            await first.read()
            with pytest.raises(DownloadError):
                await second.read()
    assert lines(log)[-2:] == [
        ("DEBUG", f"download from 127.0.0.1:{host.port}: {len(PNG)} bytes after S s"),
        (
            "DEBUG",
            f"download from 127.0.0.1:{host.port}: failed: DownloadError 410 (billed) after S s",
        ),
    ]


@in_both_modes
@pytest.mark.parametrize("options", [{"n": 3}, {"extra_body": {"n": 3}}], ids=str)
async def test_fewer_images_than_requested(
    raw_server: RawServer,
    caplog: pytest.LogCaptureFixture,
    streaming: bool,
    options: dict[str, Any],
) -> None:
    """Fewer images than requested are a warning at the default level."""
    reply = stream(COMPLETED) if streaming else GOOD
    assert await run_with_secrets(raw_server, reply, streaming=streaming, **options) is None
    assert lines(caplog) == [("WARNING", f"3 images were requested, but 1 arrived {NAMED}")]


async def test_request_id_with_the_api_key(
    raw_server: RawServer, log: pytest.LogCaptureFixture
) -> None:
    """A request id that contains the API key is not logged."""
    (first, *rest) = GOOD
    assert isinstance(first, bytes)
    await run_with_secrets(
        raw_server, [first.replace(REQUEST_ID.encode(), API_KEY.encode()), *rest]
    )
    assert lines(log)[-1][1].endswith("(request id: ***)")


async def test_silent_by_default(raw_server: RawServer, caplog: pytest.LogCaptureFixture) -> None:
    """By default nothing is logged about a successful call, retries included."""
    assert logger.level == logging.NOTSET
    assert await run_with_secrets(raw_server, BUSY, GOOD) is None
    assert caplog.records == []
