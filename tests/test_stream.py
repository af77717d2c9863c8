"""`ImageStream`: over a hand-made source, and left early over real sockets."""

import asyncio
import base64
import gc
import zlib
from collections.abc import AsyncIterator, Sequence

import anyio
import pytest

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    ElkImagesError,
    Image,
    ImagesResponse,
    ImageStream,
    PartialImage,
    ServerError,
    StreamStateError,
)
from elkimg_async.local import LocalServer
from elkimg_async.sansio.decoder import ImageEvent
from tests.helpers.raw_server import (
    API_KEY,
    PNG,
    End,
    Piece,
    RawServer,
    event,
    open_stream,
    response,
)

PARTIAL = PartialImage(
    type="image_generation.partial_image", image=Image(b"\xff\xd8\xffhalf"), partial_image_index=0
)
COMPLETED = CompletedImage(type="image_generation.completed", image=Image(b"\xff\xd8\xffwhole"))


class Source:
    """A source of set events, followed by an exception or the end.

    With `hang` it waits for `go_on` in every step; the first `ready` events are there without
    waiting.
    """

    def __init__(
        self,
        events: Sequence[ImageEvent] = (PARTIAL, COMPLETED),
        *,
        opening_error: Exception | None = None,
        failure: BaseException | None = None,
        hang: bool = False,
        ready: int = 0,
    ) -> None:
        self.calls: list[str] = []
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        if not hang:
            self.go_on.set()
        self._left = list(events)
        self._completed = [each.image for each in events if isinstance(each, CompletedImage)]
        self._opening_error, self._failure = opening_error, failure
        self._ready = ready

    async def open(self) -> None:
        self.calls.append("open")
        await self._wait()
        if self._opening_error is not None:
            raise self._opening_error

    def ready_event(self) -> ImageEvent | None:
        if self._ready == 0:
            return None
        self._ready -= 1
        return self._left.pop(0)

    async def next_event(self) -> ImageEvent | None:
        self.calls.append("next")
        await self._wait()
        if self._left:
            return self._left.pop(0)
        if self._failure is not None:
            raise self._failure
        return None

    async def result(self) -> ImagesResponse:
        self.calls.append("result")
        await self._wait()
        if self._failure is not None:
            raise self._failure
        return ImagesResponse(self._completed)

    def abort(self) -> None:
        self.calls.append("abort")

    async def _wait(self) -> None:
        self.waiting.set()
        await self.go_on.wait()
        self.waiting.clear()

    @property
    def aborted(self) -> bool:
        return "abort" in self.calls


# --- the three ways to use it -----------------------------------------------


async def test_async_with() -> None:
    """In a block the stream opens at its beginning and is closed at its end."""
    source = Source()
    async with ImageStream(source) as stream:
        assert source.calls == ["open"]
        assert [seen async for seen in stream] == [PARTIAL, COMPLETED]
    assert source.calls == ["open", "next", "next", "next", "abort"]


async def test_async_for() -> None:
    """A bare loop opens the stream with the first event."""
    source = Source()
    assert [seen async for seen in ImageStream(source)] == [PARTIAL, COMPLETED]
    assert source.calls[:3] == ["next", "next", "next"]


async def test_await() -> None:
    """Awaiting opens and returns the stream; doing it again opens nothing twice."""
    source = Source()
    stream = ImageStream(source)
    assert await stream is stream
    assert await stream is stream
    async with stream as entered:
        assert entered is stream
        assert [seen async for seen in entered] == [PARTIAL, COMPLETED]
    assert source.calls.count("open") == 1


async def test_result_before_iterating() -> None:
    """`result` reads everything and equals the batch call's result."""
    stream = ImageStream(Source())
    assert (await stream.result()).data == [COMPLETED.image]


async def test_result_midway() -> None:
    """`result` reads the remaining events, and includes those already delivered."""
    stream = ImageStream(Source([COMPLETED, PARTIAL, COMPLETED]))
    async for _ in stream:
        break
    assert len(await stream.result()) == 2


async def test_result_after_iterating() -> None:
    """`result` after the end reads the source once, however often it is called."""
    source = Source()
    async with ImageStream(source) as stream:
        assert [seen async for seen in stream] == [PARTIAL, COMPLETED]
        assert (await stream.result()).data == (await stream.result()).data == [COMPLETED.image]
    assert (await stream.result()).data == [COMPLETED.image]
    assert source.calls == ["open", "next", "next", "next", "result", "abort"]


async def test_iterating_after_result() -> None:
    """After `result` no events remain to iterate over."""
    stream = ImageStream(Source())
    await stream.result()
    assert [seen async for seen in stream] == []


async def test_events_that_are_ready() -> None:
    """An available event is delivered without waiting for the source."""
    source = Source(ready=1)
    async with ImageStream(source) as stream:
        assert await anext(stream) == PARTIAL
        assert source.calls == ["open"]
        assert [seen async for seen in stream] == [COMPLETED]


async def test_events_that_are_ready_after_close() -> None:
    """A closed stream does not deliver available events."""
    stream = ImageStream(Source(ready=2))
    async with stream:
        assert await anext(stream) == PARTIAL
    with pytest.raises(StreamStateError, match="closed"):
        await anext(stream)


async def test_anext_by_hand() -> None:
    """`anext` returns the events one by one, and keeps raising at the end."""
    stream = ImageStream(Source())
    assert await anext(stream) == PARTIAL
    assert await anext(stream) == COMPLETED
    assert await anext(stream, None) is None
    assert await anext(stream, None) is None


# --- wrong use --------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_second_iteration(read: int) -> None:
    """A second loop raises a plain sentence, wherever the first one stopped."""
    stream = ImageStream(Source())
    iterator = aiter(stream)
    for _ in range(read):
        await anext(iterator, None)
    with pytest.raises(StreamStateError, match="iterated once; call generate again") as caught:
        aiter(stream)
    assert caught.value.billing == "not_sent"


async def test_two_tasks_at_once() -> None:
    """A second reader is rejected with an explanation, and the first is not disturbed."""
    source = Source(hang=True)
    stream = ImageStream(source)
    first = asyncio.ensure_future(anext(stream))
    await source.waiting.wait()
    for second in (anext(stream), stream.result(), stream.__aenter__()):
        with pytest.raises(StreamStateError, match="Two tasks are reading this stream"):
            await second
    assert not source.aborted
    source.go_on.set()
    assert await first == PARTIAL
    assert await anext(stream) == COMPLETED


async def test_two_tasks_with_an_event_ready() -> None:
    """A second task does not get past the first one with an event that is there already."""
    source = Source()
    stream = ImageStream(source)
    await stream
    source.go_on.clear()
    first = asyncio.ensure_future(stream.result())
    await source.waiting.wait()
    source._ready = 1
    with pytest.raises(StreamStateError, match="Two tasks"):
        await anext(stream)
    source.go_on.set()
    assert len(await first) == 1


async def test_two_tasks_open_at_once() -> None:
    """Two tasks that open the same stream open it once."""
    source = Source(hang=True)
    stream = ImageStream(source)
    first = asyncio.ensure_future(stream.__aenter__())
    await source.waiting.wait()
    with pytest.raises(StreamStateError, match="Two tasks"):
        await stream
    source.go_on.set()
    assert await first is stream
    assert source.calls == ["open"]
    await stream.aclose()


async def test_after_close() -> None:
    """A closed stream returns no events and says so."""
    stream = ImageStream(Source())
    async with stream:
        assert await anext(stream) == PARTIAL
    for use in (anext(stream), stream.result(), stream.__aenter__()):
        with pytest.raises(StreamStateError, match="The stream is closed; call generate again"):
            await use


async def test_close_twice() -> None:
    """Closing is idempotent, also before opening and after the end."""
    for reads in range(4):
        stream = ImageStream(Source())
        for _ in range(reads):
            await anext(stream, None)
        await stream.aclose()
        await stream.aclose()


async def test_closed_while_another_task_reads() -> None:
    """A stream that is closed during a read stays closed, whatever the read returns."""
    source = Source(hang=True)
    stream = ImageStream(source)
    reading = asyncio.ensure_future(anext(stream))
    await source.waiting.wait()
    await stream.aclose()
    source.go_on.set()
    await asyncio.wait([reading])
    if (error := reading.exception()) is not None:
        assert isinstance(error, StreamStateError)
    with pytest.raises(StreamStateError, match="closed"):
        await anext(stream)


# --- failure and cancellation -----------------------------------------------


async def fail_within(stream: ImageStream) -> None:
    async with stream:
        async for _ in stream:
            raise ZeroDivisionError


async def test_failure_while_opening() -> None:
    """An error of the source is raised by `await`, and the source is closed."""
    opening_error = ServerError("no", status=500)
    source = Source(opening_error=opening_error)
    with pytest.raises(ServerError) as caught:
        await ImageStream(source)
    assert caught.value is opening_error
    assert source.calls == ["open", "abort"]


async def test_failure_while_iterating() -> None:
    """A failure is raised once, after the events before it; then the stream says that it failed."""
    source = Source([PARTIAL], failure=ServerError("the upstream broke", status=500))
    stream = ImageStream(source)
    assert await anext(stream) == PARTIAL
    with pytest.raises(ServerError):
        await anext(stream)
    assert source.aborted
    for use in (anext(stream), stream.result(), stream.__aenter__()):
        with pytest.raises(StreamStateError, match=r"has already failed.*the upstream broke"):
            await use


async def test_exception_in_the_block() -> None:
    """An exception in the block closes the stream and is propagated."""
    source = Source()
    with pytest.raises(ZeroDivisionError):
        await fail_within(ImageStream(source))
    assert source.aborted


@pytest.mark.parametrize("read", [0, 1])
async def test_cancellation(read: int) -> None:
    """Cancelling a read aborts the source at once and raises the cancellation again."""
    source = Source()
    stream = ImageStream(source)
    for _ in range(read):
        await anext(stream)
    source.go_on.clear()
    task = asyncio.ensure_future(anext(stream))
    await source.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.aborted
    assert repr(stream) == "<ImageStream failed>"


async def test_cancellation_while_opening() -> None:
    """Cancelling the opening aborts the source; the stream must be created again."""
    source = Source(hang=True)
    stream = ImageStream(source)
    with anyio.move_on_after(0):
        await stream
    assert source.calls == ["open", "abort"]
    with pytest.raises(StreamStateError, match="already failed"):
        await anext(stream)


# --- dropping and repr ------------------------------------------------------


async def test_dropping_aborts() -> None:
    """A stream that is left open by a bare loop aborts its source when it is dropped."""
    source = Source()

    async def leave() -> None:
        async for _ in ImageStream(source):
            break

    await leave()
    assert source.aborted


async def test_dropping_without_opening() -> None:
    """A stream that is never read warns with the line that created it, and sends nothing."""
    source = Source()
    with pytest.warns(ResourceWarning, match=r"test_stream\.py:\d+ was never read"):
        ImageStream(source)
    assert source.calls == []


async def test_repr() -> None:
    """The repr has the state: new, open, finished, closed, failed."""
    stream = ImageStream(Source())
    assert repr(stream) == "<ImageStream new>"
    await stream
    assert repr(stream) == "<ImageStream open>"
    await stream.result()
    assert repr(stream) == "<ImageStream finished>"
    await stream.aclose()
    assert repr(stream) == "<ImageStream finished>"
    closed = ImageStream(Source())
    await closed.aclose()
    assert repr(closed) == "<ImageStream closed>"
    failed = ImageStream(Source(opening_error=ServerError("no")))
    with pytest.raises(ServerError):
        await failed
    assert repr(failed) == "<ImageStream failed>"


# --- left early, over real sockets ------------------------------------------


@pytest.fixture
async def stalling() -> AsyncIterator[RawServer]:
    """A server that streams one partial image and then stalls."""
    partial = event({"type": PARTIAL.type, "b64_json": PARTIAL.b64_json, "partial_image_index": 0})
    async with RawServer([*open_stream(partial), End.HOLD]) as server:
        yield server


class LeakCheck:
    """Checks that nothing is left behind by its block."""

    async def __aenter__(self) -> None:
        gc.collect()
        self._tasks = asyncio.all_tasks()

    async def __aexit__(self, *_: object) -> None:
        # The server's own tasks end with its connections, in the turn that follows.
        while asyncio.all_tasks() - self._tasks:
            await asyncio.sleep(0)
        gc.collect()  # a ResourceWarning, were there a reason for one, would fail the test


async def test_left_by_break(stalling: RawServer) -> None:
    """A break out of the block closes the connection, while the client stays open."""
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():
        async with client.generate("a boat", stream=True) as stream:
            async for seen in stream:
                assert seen == PARTIAL
                break
        await stalling.wait_disconnected()


async def test_left_by_exception(stalling: RawServer) -> None:
    """An exception in the block closes the connection, while the client stays open."""
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():
        with pytest.raises(ZeroDivisionError):
            await fail_within(client.generate("a boat", stream=True))
        await stalling.wait_disconnected()


async def test_left_by_dropping(stalling: RawServer) -> None:
    """A bare loop that is left closes the connection with the stream object, while the client stays
    open.
    """
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():

        async def leave() -> None:
            async for _ in client.generate("a boat", stream=True):
                break

        await leave()
        await stalling.wait_disconnected()


@pytest.mark.parametrize("bare", [False, True])
async def test_left_by_cancellation(stalling: RawServer, bare: bool) -> None:
    """Cancelling a task in its read of the body closes the connection and ends the task as
    cancelled.
    """
    begun = asyncio.Event()

    async def read(client: AsyncImages) -> None:
        if bare:
            async for _ in client.generate("a boat", stream=True):
                begun.set()
        else:
            async with client.generate("a boat", stream=True) as stream:
                async for _ in stream:
                    begun.set()

    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():
        task = asyncio.create_task(read(client))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stalling.wait_disconnected()


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_before_the_response(stream: bool) -> None:
    """Cancelling a call that waits for the first byte closes the connection in both modes."""

    async def ask(client: AsyncImages) -> None:
        if stream:
            await client.generate("a boat", stream=True)
        else:
            await client.generate("a boat")

    async with (
        RawServer([End.HOLD]) as server,
        AsyncImages(API_KEY, base_url=server.base_url) as client,
        LeakCheck(),
    ):
        task = asyncio.create_task(ask(client))
        await server.wait_until(lambda: len(server.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.wait_disconnected()


async def test_cancelled_in_a_batch_body(stalling: RawServer) -> None:
    """Cancelling a batch call in its body closes the connection."""
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():
        task = asyncio.create_task(client.generate("a boat"))
        await stalling.wait_until(lambda: len(stalling.requests) == 1)
        for _ in range(20):  # let the head and the first event arrive
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stalling.wait_disconnected()


async def test_cancelled_by_an_anyio_scope(stalling: RawServer) -> None:
    """A cancel scope ends at its own boundary: later code in the task runs."""
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():
        with anyio.CancelScope() as scope:
            async with client.generate("a boat", stream=True) as stream:
                async for _ in stream:
                    scope.cancel()
        assert scope.cancelled_caught
        await stalling.wait_disconnected()


async def test_client_works_after_a_stream_was_left(stalling: RawServer) -> None:
    """The connection of a stream that was left is not used again; the next call takes a new one."""
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client:
        async with client.generate("a boat", stream=True) as stream:
            await anext(stream)
        image = Image(PNG)
        stalling.reply_with(response({"data": [{"b64_json": image.b64_json}]}))
        assert (await client.generate("a boat")).data == [image]
        assert stalling.accepted == 2


async def test_finished_stream_keeps_its_connection() -> None:
    """A stream that was read to its end returns its connection to the pool."""
    async with LocalServer(light=True, delay=0) as server:
        async with AsyncImages(server.api_key, base_url=server.base_url) as client:
            for _ in range(3):
                async with client.generate("a boat", stream=True) as stream:
                    await stream.result()
                assert server.connections == 1
        assert [seen.outcome for seen in server.requests] == ["answered"] * 3
        await server.wait_until(lambda: server.connections == 0)


async def test_stream_over_the_local_server() -> None:
    """The partial images arrive in order, then the completed one, which equals the batch call's."""
    async with (
        LocalServer(light=True, delay=0) as server,
        AsyncImages(server.api_key, base_url=server.base_url) as client,
    ):
        async with client.generate("a boat", stream=True, partial_images=3) as stream:
            seen = [each async for each in stream]
            result = await stream.result()
        assert [getattr(each, "partial_image_index", None) for each in seen] == [0, 1, 2, None]
        assert len({each.image.content for each in seen}) == 4
        batch = await client.generate("a boat")
        assert result.data == batch.data == [seen[-1].image]
        await server.wait_until(lambda: all(seen.outcome == "answered" for seen in server.requests))


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize(
    "ending", [[End.CLOSE], [End.RESET], [b"no chunk\r\n", End.CLOSE]], ids=str
)
async def test_events_that_arrived_before_the_connection_broke(
    ending: list[Piece], encoding: str
) -> None:
    """A reader that takes its time receives every event that arrived meanwhile."""
    fields = {"b64_json": base64.b64encode(PNG).decode()}
    frames = [
        event({"type": PARTIAL.type, "partial_image_index": 0, **fields}),
        event({"type": COMPLETED.type, **fields}),
    ]
    if encoding == "gzip":
        compressor = zlib.compressobj(wbits=31)
        frames = [
            compressor.compress(frame) + compressor.flush(zlib.Z_SYNC_FLUSH) for frame in frames
        ]
    first, last = open_stream(*frames, Content_Encoding=encoding)[1:]
    go_on = asyncio.Event()
    header = open_stream(Content_Encoding=encoding)
    # The last event is in one segment with what follows it.
    assert isinstance(last, bytes)
    rest = [last + ending[0], *ending[1:]] if isinstance(ending[0], bytes) else [last, *ending]
    async with (
        RawServer([*header, first, go_on, *rest]) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
        client.generate("a boat", stream=True) as stream,
    ):
        partial = await anext(stream)
        go_on.set()
        await raw_server.wait_disconnected()
        for _ in range(20):  # what has arrived is read, and then the end of the connection
            await asyncio.sleep(0)
        completed = await anext(stream)
    assert isinstance(partial, PartialImage)
    assert isinstance(completed, CompletedImage)
    assert completed.image.content == PNG


async def test_closed_by_another_task(stalling: RawServer) -> None:
    """A read that is under way when another task closes the stream ends at once, with an error of
    ours.
    """
    async with AsyncImages(API_KEY, base_url=stalling.base_url) as client, LeakCheck():
        stream = await client.generate("a boat", stream=True)
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(ElkImagesError):
            await reading
        await stalling.wait_disconnected()


async def test_client_closed_under_a_stream(stalling: RawServer) -> None:
    """Closing the client closes the connection of a stream that is being read."""
    client = AsyncImages(API_KEY, base_url=stalling.base_url)
    async with client.generate("a boat", stream=True) as stream:
        await anext(stream)
        await client.aclose()
        await stalling.wait_disconnected()
