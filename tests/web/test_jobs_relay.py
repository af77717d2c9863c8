"""Relays of jobs, with the frameworks that people use, and browsers that leave and come back."""

import asyncio
import base64
import contextlib
import json
import random
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import fastapi
import pytest
import starlette.applications
import starlette.requests
from aiohttp import web as aiohttp_web
from starlette.responses import Response
from starlette.routing import Route

from elkimg_async import AsyncImages, Timeout, web
from elkimg_async.jobs import ImageJobs
from elkimg_async.local import LocalServer
from tests.helpers.jobs import COMPLETED, partial
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    End,
    RawServer,
    event,
    open_stream,
    response,
    stream,
)
from tests.helpers.relays import on_aiohttp, on_uvicorn

Message = tuple[str | None, str, Any]


async def fetch(
    port: int, id: str = "one", last: str | None = None
) -> tuple[int, list[Message], str]:
    """What a browser receives: status, messages as (id, event, data), and the first line."""
    headers = {} if last is None else {"Last-Event-ID": last}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/image?id={id}", headers=headers) as response,
    ):
        text = await response.text()
    messages = list[Message]()
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            data: Any = fields["data"]
            data = data if data == "[DONE]" else json.loads(data)
            messages.append((fields.get("id"), fields.get("event", "message"), data))
            fields = {}
    return response.status, messages, text.partition("\n")[0]


def with_starlette(jobs: ImageJobs) -> Any:
    """A backend on Starlette."""

    async def image(request: starlette.requests.Request) -> Response:
        events = jobs.events(request.query_params["id"], request.headers.get("last-event-id"))
        return web.starlette_response(events)

    return on_uvicorn(starlette.applications.Starlette(routes=[Route("/image", image)]))


def with_aiohttp(jobs: ImageJobs) -> Any:
    """A backend on aiohttp."""

    async def image(request: aiohttp_web.Request) -> aiohttp_web.StreamResponse:
        events = jobs.events(request.query["id"], request.headers.get("last-event-id"))
        return await web.aiohttp_response(request, events)

    app = aiohttp_web.Application()
    app.add_routes([aiohttp_web.get("/image", image)])
    return on_aiohttp(app)


in_each = pytest.mark.parametrize("backend", [with_starlette, with_aiohttp])
Backend = Callable[[ImageJobs], Any]


@asynccontextmanager
async def jobs_over(server: RawServer | LocalServer) -> AsyncIterator[ImageJobs]:
    """Jobs over this server, however slow a busy machine is to connect."""
    api_key = server.api_key if isinstance(server, LocalServer) else API_KEY
    timeout = Timeout(connect=120)
    async with (
        AsyncImages(api_key, base_url=server.base_url, retry=0, timeout=timeout) as client,
        ImageJobs(client) as jobs,
    ):
        yield jobs


@in_each
async def test_relay_of_a_job_is_resumed_by_its_last_id(backend: Backend) -> None:
    """Each message has an id, and a reconnect gets exactly what follows it."""
    sent = [event(partial(0)), event(COMPLETED), DONE]
    async with (
        RawServer(stream(*sent)) as raw_server,
        jobs_over(raw_server) as jobs,
        backend(jobs) as port,
    ):
        await jobs.start("an elk", id="one")
        status, [first, second, end], retry = await fetch(port)
        assert (status, retry) == (200, "retry: 1000")
        assert [first[1], second[1], end[2]] == [
            "image_generation.partial_image",
            "image_generation.completed",
            "[DONE]",
        ]
        assert base64.b64decode(second[2]["b64_json"]) == PNG
        assert "id" not in second[2]
        assert await fetch(port, last=first[0]) == (200, [second, end], retry)
        assert await fetch(port, last=second[0]) == (200, [end], retry)
        assert await fetch(port, last=end[0]) == (204, [], "")
        assert (await fetch(port, last="17"))[1] == [second, end]
        assert len(raw_server.requests) == 1


@in_each
async def test_relay_of_a_failed_job(backend: Backend) -> None:
    """The error has an id as well, so that it is received once."""
    reply = response({"error": {"message": "No."}}, status=400)
    async with RawServer(reply) as raw_server, jobs_over(raw_server) as jobs, backend(jobs) as port:
        await jobs.start("an elk", id="one")
        status, [failed], _ = await fetch(port)
        assert (status, failed[1]) == (200, "error")
        assert failed[2]["error"]["type"] == "BadRequestError"
        assert (await fetch(port, last=failed[0]))[0] == 204


@in_each
async def test_relay_of_an_unknown_job(backend: Backend) -> None:
    """A job that does not exist is a 404, after which no browser reconnects."""
    async with (
        RawServer([End.HOLD]) as raw_server,
        jobs_over(raw_server) as jobs,
        backend(jobs) as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/image?id=x") as response,
    ):
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "JobNotFoundError"


@in_each
async def test_relay_left_in_the_middle_goes_on(backend: Backend) -> None:
    """A browser that leaves does not end the job."""
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    reply = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with RawServer(reply) as raw_server, jobs_over(raw_server) as jobs, backend(jobs) as port:
        await jobs.start("an elk", id="one")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/image?id=one") as response,
        ):
            await response.content.readuntil(b"data: ")
        finish.set()
        assert (await jobs.result("one"))[0].content == PNG
        assert len(raw_server.requests) == 1


async def test_relay_of_a_silent_job_sends_heartbeats() -> None:
    """While a job is silent comments are sent, with and without a watch for the disconnect."""
    async with RawServer([End.HOLD]) as raw_server, jobs_over(raw_server) as jobs:
        await jobs.start("an elk", id="one")
        left = asyncio.Event()
        relay = web.ServerSentEvents(jobs.events("one"), heartbeat=0.01)
        assert [await anext(relay) for _ in range(3)][1:] == [b": ping\n"] * 2
        relay.stop_when(left.wait)
        assert await anext(relay) == b": ping\n"
        left.set()
        rest = [chunk async for chunk in relay]
        assert set(rest) <= {b": ping\n"}
        await jobs.cancel("one")


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Stop the clock of the event loop: nothing that waits for a time continues."""
    loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    loop.time = lambda: now  # type: ignore[method-assign]
    try:
        yield
    finally:
        del loop.time


async def next_message(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The fields of the next message of a response."""
    fields: dict[str, str] = {}
    while True:
        line = (await response.content.readline()).decode()
        assert line, "the response ended"
        name, _, value = line.strip().partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            return fields


@in_each
@pytest.mark.parametrize("missed", [True, False], ids=["missed", "still to come"])
async def test_relay_rejoined_waits_for_no_clock(backend: Backend, missed: bool) -> None:
    """A browser that returns receives the next event as soon as there is one.

    Neither what it missed nor what is still to come is found by looking again after some time.
    """
    finish = asyncio.Event()
    head, *chunks = open_stream(event(partial(0)), event(COMPLETED), DONE)
    reply = [head, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(reply) as raw_server,
        jobs_over(raw_server) as jobs,
        backend(jobs) as port,
        aiohttp.ClientSession() as session,
    ):
        url = f"http://127.0.0.1:{port}/image?id=one"
        await jobs.start("an elk", id="one")
        async with session.get(url) as response:
            first = await next_message(response)
        assert first["event"] == "image_generation.partial_image"
        with stopped_clock():
            if missed:
                finish.set()
                await jobs.result("one")
            async with session.get(url, headers={"Last-Event-ID": first["id"]}) as response:
                finish.set()
                second, end = await next_message(response), await next_message(response)
        assert second["event"] == "image_generation.completed"
        assert base64.b64decode(json.loads(second["data"])["b64_json"]) == PNG
        assert int(first["id"]) < int(second["id"]) < int(end["id"])
        assert end["data"] == "[DONE]"
        assert len(raw_server.requests) == 1


# --- frameworks that write server-sent events themselves --------------------


async def check_messages(port: int) -> None:
    """What `messages` are over any framework."""
    status, messages, _ = await fetch(port)
    assert status == 200
    assert [kind for _, kind, _ in messages] == [
        "image_generation.partial_image",
        "image_generation.completed",
        "message",
    ]
    assert messages[-1][2] == "[DONE]"
    assert base64.b64decode(messages[1][2]["b64_json"]) == PNG
    assert sorted(each[0] or "" for each in messages) == [each[0] for each in messages]


@asynccontextmanager
async def finished_job() -> AsyncIterator[ImageJobs]:
    """Jobs, one of which is `one`."""
    reply = stream(event(partial(0)), event(COMPLETED), DONE)
    async with RawServer(reply) as raw_server, jobs_over(raw_server) as jobs:
        yield jobs


async def test_messages_with_sse_starlette() -> None:
    """sse-starlette sends whole messages, and its pings come between them."""
    sse = pytest.importorskip("sse_starlette")
    app = fastapi.FastAPI()
    async with finished_job() as jobs:

        async def sent() -> AsyncIterator[Any]:
            async for name, data, number in web.messages(jobs.events("one")):
                yield sse.ServerSentEvent(data, event=name, id=number, sep="\n")

        @app.get("/image")
        async def image() -> Any:
            await jobs.start("an elk", id="one")
            return sse.EventSourceResponse(sent(), sep="\n")

        async with on_uvicorn(app) as port:
            await check_messages(port)


async def test_messages_with_fastapi() -> None:
    """FastAPI's own EventSourceResponse sends whole messages."""
    sse = pytest.importorskip("fastapi.sse")
    app = fastapi.FastAPI()
    async with finished_job() as jobs:

        @app.get("/image", response_class=sse.EventSourceResponse)
        async def image() -> AsyncIterator[Any]:
            await jobs.start("an elk", id="one")
            async for name, data, number in web.messages(jobs.events("one")):
                yield sse.ServerSentEvent(raw_data=data, event=name, id=number)

        async with on_uvicorn(app) as port:
            await check_messages(port)


async def test_messages_with_litestar() -> None:
    """Litestar's ServerSentEvent sends whole messages."""
    litestar = pytest.importorskip("litestar")
    from litestar.response import ServerSentEvent, ServerSentEventMessage

    async with finished_job() as jobs:

        async def sent() -> AsyncIterator[ServerSentEventMessage]:
            async for name, data, number in web.messages(jobs.events("one")):
                yield ServerSentEventMessage(data=data, event=name, id=number, sep="\n")

        @litestar.get("/image")  # type: ignore[untyped-decorator]
        async def image() -> ServerSentEvent:
            await jobs.start("an elk", id="one")
            return ServerSentEvent(sent())

        app = litestar.Litestar([image], openapi_config=None)
        async with on_uvicorn(app) as port:
            await check_messages(port)


async def test_messages_with_django() -> None:
    """Django's StreamingHttpResponse sends them as lines."""
    django = pytest.importorskip("django")
    from django.conf import settings  # type: ignore[import-untyped]

    async with finished_job() as jobs:

        async def sent() -> AsyncIterator[str]:
            async for name, data, number in web.messages(jobs.events("one")):
                yield f"id: {number}\n" + (f"event: {name}\n" if name else "") + f"data: {data}\n\n"

        async def image(request: Any) -> Any:
            from django.http import StreamingHttpResponse  # type: ignore[import-untyped]

            await jobs.start("an elk", id="one")
            return StreamingHttpResponse(sent(), content_type="text/event-stream")

        from django.urls import path  # type: ignore[import-untyped]

        if not settings.configured:
            settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x")
            django.setup()
        globals()["urlpatterns"] = [path("image", image)]
        from django.core.asgi import (  # type: ignore[import-untyped]
            get_asgi_application,
        )

        async with on_uvicorn(get_asgi_application(), lifespan="off") as port:
            await check_messages(port)


async def test_messages_end_with_the_error() -> None:
    """A failure is the last message, and is not raised."""
    async with (
        RawServer(response({"error": {"message": "No."}}, status=400)) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
    ):
        stream = client.generate("an elk", stream=True)
        [(name, data, number)] = [each async for each in web.messages(stream)]
    assert (name, number) == ("error", None)
    assert json.loads(data)["error"]["type"] == "BadRequestError"


# --- many browsers ----------------------------------------------------------


async def test_viewers_of_one_job_receive_the_same_bytes() -> None:
    """Fifty viewers of one job hold its base64 once: each sends the same bytes objects."""
    big = PNG + random.randbytes(1024 * 1024)
    fields = {**COMPLETED, "b64_json": base64.b64encode(big).decode()}
    async with RawServer(stream(event(fields), DONE)) as raw_server, jobs_over(raw_server) as jobs:
        await jobs.start("an elk", id="one")
        await jobs.result("one")
        relays = [web.ServerSentEvents(jobs.events("one")) for _ in range(50)]
        for relay in relays:  # all viewers are there before the first receives the image
            await relay.look_up()
        sent = list[list[bytes]]()
        for relay in relays:  # each has left before the next one receives it
            sent.append([chunk async for chunk in relay])
            await relay.aclose()
    *shared, alone = zip(*(chunks[3:-1] for chunks in sent), strict=True), sent[-1]
    assert b"".join(alone) == b"".join(sent[0])
    for same in shared[0]:
        assert all(chunk is same[0] for chunk in same[:-1])


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_browsers_that_leave_and_return() -> None:
    """Every browser collects its image, each is generated once, and rejoining is quick."""
    count, rng, rejoined = 200, random.Random(7), list[float]()
    async with LocalServer(light=True, delay=0.05) as server, jobs_over(server) as jobs:
        async with with_starlette(jobs) as port:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:

                async def visit(id: str, last: str, image: bytes) -> tuple[str, bytes, bool]:
                    """Read for a random time; return last id, image, and whether that was all."""
                    began = time.monotonic()
                    url = f"http://127.0.0.1:{port}/image?id={id}"
                    async with session.get(url, headers={"Last-Event-ID": last}) as response:
                        rejoined.append(time.monotonic() - began)
                        if response.status == 204:
                            return last, image, True
                        pending, new = b"", last
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(rng.uniform(0.01, 1.0)):
                                async for chunk, _ in response.content.iter_chunks():
                                    *whole, pending = (pending + chunk).split(b"\n\n")
                                    for message in whole:
                                        head, _, data = message.partition(b"data: ")
                                        if b".completed" in head:
                                            fields = json.loads(data)
                                            image = base64.b64decode(fields["b64_json"])
                                        if b"id: " in head:
                                            found = head.partition(b"id: ")[2].partition(b"\n")[0]
                                            new = found.decode()
                        return new, image, False

                async def browse(number: int) -> bytes:
                    job, last, image, finished = f"job-{number}", "", b"", False
                    await asyncio.sleep(rng.uniform(0, 10))
                    await jobs.start(f"elk {number}", id=job, partial_images=2)
                    while not finished:
                        last, image, finished = await visit(job, last, image)
                        await asyncio.sleep(rng.uniform(0, 0.5))
                    return image

                images = await asyncio.gather(*map(browse, range(count)))
        assert server.generations == count
        assert all(image.startswith(b"\x89PNG") for image in images)
    rejoined.sort()
    print(f"rejoined {len(rejoined)} times: median {rejoined[len(rejoined) // 2] * 1000:.0f} ms, "
          f"99 % {rejoined[len(rejoined) * 99 // 100] * 1000:.0f} ms; "
          f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")  # fmt: skip
