"""What hooks receive, and what happens when they fail."""

import asyncio
import logging
from typing import Any

import pytest

from elkimg_async import (
    APIError,
    AsyncImages,
    AuthenticationError,
    CompletedImage,
    GenerateRequest,
    Image,
    ImagesResponse,
    PartialImage,
    RateLimitError,
    StreamIncompleteError,
)
from elkimg_async.hooks import (
    AttemptStarted,
    EventReceived,
    EventSkipped,
    Observers,
    Record,
    RequestFinished,
    RequestStarted,
    ResponseStarted,
    RetryScheduled,
)
from tests.helpers.calls import COMPLETED, GOOD, PARTIAL
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    REQUEST_ID,
    End,
    RawServer,
    Reply,
    event,
    open_stream,
    response,
    stream,
)


class Collector:
    """A hook that keeps the records it receives."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def __call__(self, record: Record) -> None:
        self.records.append(record)

    @property
    def types(self) -> list[type]:
        return [type(record) for record in self.records]

    def one(self, kind: type) -> Any:
        """The only record of this type."""
        (record,) = (record for record in self.records if type(record) is kind)
        return record


async def make_call(
    collector: Collector, *replies: Reply, streaming: bool = False, **options: Any
) -> None:
    """Make one call to a server with these replies, and read it to its end."""
    async with (
        RawServer(*replies) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[collector], **options) as client,
    ):
        if streaming:
            async with client.generate("a boat", stream=True) as opened:
                await opened.result()
        else:
            await client.generate("a boat", n=1)


async def test_batch() -> None:
    """A batch call: request, attempt, response, the image as an event, and the result."""
    collector = Collector()
    await make_call(collector, GOOD)
    assert collector.types == [
        RequestStarted,
        AttemptStarted,
        ResponseStarted,
        EventReceived,
        RequestFinished,
    ]
    started, attempt, response, received, finished = collector.records
    assert started.request == GenerateRequest(prompt="a boat", n=1)
    assert started.stream is False
    assert started.url.endswith("/v1/images/generations")
    assert attempt.attempt == response.attempt == 1
    assert (response.status, response.request_id) == (200, REQUEST_ID)
    assert isinstance(received.event, CompletedImage)
    assert isinstance(finished.result, ImagesResponse)
    assert finished.result.data == [received.event.image] == [Image(PNG)]
    assert finished.result.meta.request_id == REQUEST_ID
    assert finished.error is None
    assert 0 < response.first_byte <= finished.elapsed


async def test_stream() -> None:
    """A stream emits each event as it arrives, and the result once at the end."""
    collector = Collector()
    await make_call(collector, stream(PARTIAL, PARTIAL, COMPLETED, DONE), streaming=True)
    assert collector.types == [
        RequestStarted,
        AttemptStarted,
        ResponseStarted,
        EventReceived,
        EventReceived,
        EventReceived,
        RequestFinished,
    ]
    assert collector.records[0].stream is True
    events = [record.event for record in collector.records[3:6]]
    assert [type(each) for each in events] == [PartialImage, PartialImage, CompletedImage]
    assert len(collector.records[-1].result) == 1


async def test_skipped_events() -> None:
    """A skipped event is recorded with its type and the reason; pings are not recorded."""
    collector = Collector()
    frames = [
        b": PING\n\n",
        event({"type": "keepalive"}),
        event({"type": "image_generation.thought", "text": "hm"}),
        event({"type": "image_generation.partial_image", "b64_json": "!!!!"}),
        event(b"no json"),
        COMPLETED,
    ]
    await make_call(collector, stream(*frames), streaming=True)
    skipped = [record for record in collector.records if isinstance(record, EventSkipped)]
    assert [record.type for record in skipped] == [
        "image_generation.thought",
        "image_generation.partial_image",
        None,
    ]
    assert "unknown" in skipped[0].reason
    assert "broken" in skipped[1].reason
    assert "not JSON" in skipped[2].reason
    assert collector.types.count(EventReceived) == 1


async def test_retry() -> None:
    """A retry is recorded with its error and delay, between two attempts of the same call."""
    collector = Collector()
    busy = response({"error": {"message": "busy"}}, status=429, Retry_After_Ms="5")
    await make_call(collector, busy, GOOD)
    assert collector.types == [
        RequestStarted,
        AttemptStarted,
        ResponseStarted,
        RetryScheduled,
        AttemptStarted,
        ResponseStarted,
        EventReceived,
        RequestFinished,
    ]
    retry = collector.one(RetryScheduled)
    assert isinstance(retry.error, RateLimitError)
    assert (retry.attempt, retry.delay) == (1, 0.005)
    attempts = [record for record in collector.records if isinstance(record, AttemptStarted)]
    assert [record.attempt for record in attempts] == [1, 2]
    statuses = [each.status for each in collector.records if isinstance(each, ResponseStarted)]
    assert statuses == [429, 200]
    assert collector.records[-1].result.meta.attempts == 2


async def test_error_before_a_response() -> None:
    """A call with an error response ends with its error, without a result."""
    collector = Collector()
    with pytest.raises(AuthenticationError) as caught:
        await make_call(collector, response({"error": {"message": "who?"}}, status=401))
    assert collector.types == [RequestStarted, AttemptStarted, ResponseStarted, RequestFinished]
    finished = collector.one(RequestFinished)
    assert finished.error is caught.value
    assert finished.result is None
    assert finished.elapsed > 0


async def test_error_within_a_stream() -> None:
    """A stream that breaks records its events, and then its error."""
    collector = Collector()
    with pytest.raises(StreamIncompleteError) as caught:
        await make_call(collector, stream(PARTIAL), streaming=True)
    assert collector.types[-2:] == [EventReceived, RequestFinished]
    assert collector.one(RequestFinished).error is caught.value


async def test_stream_left_early() -> None:
    """A stream that is left ends once, with neither result nor error."""
    collector = Collector()
    async with (
        RawServer([*open_stream(PARTIAL), End.HOLD]) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[collector]) as client,
    ):
        async with client.generate("a boat", stream=True) as opened:
            await anext(opened)
        await server.wait_disconnected()
    finished = collector.one(RequestFinished)
    assert finished.result is None
    assert finished.error is None


async def test_call_numbers() -> None:
    """All records of a call share a number, and another call has another."""
    collector = Collector()
    await make_call(collector, GOOD)
    await make_call(collector, stream(PARTIAL, COMPLETED), streaming=True)
    numbers = [record.call for record in collector.records]
    first, second = numbers[0], numbers[-1]
    assert first != second
    assert numbers == [first] * 5 + [second] * 6


async def test_failing_hook(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that raises harms neither the call nor the hooks after it, and is logged each time."""
    collector = Collector()

    def broken(record: Record) -> None:
        raise RuntimeError(f"cannot take {type(record).__name__}")

    async with (
        RawServer(GOOD) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[broken, collector]) as client,
    ):
        with caplog.at_level(logging.WARNING, logger="elkimg_async"):
            result = await client.generate("a boat")
    assert len(result) == 1
    assert len(collector.records) == len(caplog.records) == 5
    for logged in caplog.records:
        assert logged.name == "elkimg_async"
        assert "broken" in logged.getMessage()
        assert logged.exc_info is not None
    assert "cannot take RequestStarted" in caplog.text
    assert API_KEY not in caplog.text


def test_hook_that_stops_the_program() -> None:
    """A BaseException in a hook, such as from Ctrl-C, is propagated."""

    def stop(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([stop], 1).notify(AttemptStarted, attempt=1)


async def test_records_without_the_api_key() -> None:
    """No record shows the API key, even if the server echoes it in its error."""
    collector = Collector()
    await make_call(collector, GOOD, headers={"X-Trace": "1"})
    echo = {"error": {"message": f"Incorrect API key: {API_KEY}", "param": API_KEY}}
    with pytest.raises(AuthenticationError):
        await make_call(collector, response(echo, status=401, X_Echo=API_KEY))
    assert len(collector.records) == 9
    assert API_KEY not in repr(collector.records)
    error = collector.records[-1].error
    assert API_KEY not in repr(vars(error))
    assert "***" in str(error)


async def test_records_without_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hook no records are created."""

    def made(*arguments: Any, **fields: Any) -> None:
        raise AssertionError("a record was made")

    for name in ("RequestStarted", "AttemptStarted", "ResponseStarted", "EventReceived"):
        monkeypatch.setattr(f"elkimg_async.hooks.{name}", made)
    monkeypatch.setattr("elkimg_async.hooks.RequestFinished", made)
    async with (
        RawServer(GOOD) as server,
        AsyncImages(API_KEY, base_url=server.base_url) as client,
    ):
        assert len(await client.generate("a boat")) == 1
        listening = AsyncImages(API_KEY, base_url=server.base_url, hooks=[print])
        with pytest.raises(AssertionError, match="a record was made"):
            await listening.generate("a boat")
        await listening.aclose()


def test_records_are_frozen() -> None:
    """A hook cannot change what the next one receives."""
    record = AttemptStarted(call=1, attempt=1)
    with pytest.raises(AttributeError):
        record.attempt = 2  # type: ignore[misc]


async def test_stream_that_fails_after_a_skipped_event() -> None:
    """The failure does not hold the API key, and the end is recorded after skipped events too."""
    collector = Collector()
    broken = event({"error": {"message": f"bad key {API_KEY}", "code": "x"}})
    unknown = event({"type": "image_generation.thought"})
    async with (
        RawServer(open_stream(PARTIAL + unknown + broken)) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[collector]) as client,
    ):
        stream = client.generate("a boat", stream=True)
        with pytest.raises(APIError) as caught:
            async for _ in stream:
                pass
        assert (caught.value.attempts, caught.value.request_id) == (1, REQUEST_ID)
        assert API_KEY not in str(caught.value)
        assert collector.one(RequestFinished).error is caught.value
        await server.wait_disconnected()


async def test_cancelled_during_back_off() -> None:
    """The end of a call is recorded when it is cancelled between attempts."""
    collector = Collector()
    busy = response(
        {"error": {"message": "busy", "code": "do_request_failed"}}, status=500, retry_after="30"
    )
    async with (
        RawServer(busy) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[collector]) as client,
    ):
        task = asyncio.create_task(client.generate("a boat"))
        while RetryScheduled not in collector.types:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert isinstance(collector.one(RequestFinished).error, asyncio.CancelledError)
