"""Relays of good streams: what a browser receives, and heartbeats."""

import asyncio
import base64
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import fastapi
import openai
import pytest
from starlette.responses import Response

from elkimg_async import AsyncImages, CompletedImage, Image, errors, web
from elkimg_async.local import LocalServer
from elkimg_async.sansio.decoder import ImageEvent
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    RawServer,
    event,
    open_stream,
    stream,
)
from tests.helpers.relays import (
    B64,
    COMPLETED,
    PARTIAL,
    Browser,
    backend,
    client_of,
    collect,
    fetch,
    generated,
    in_each,
    in_each_way,
    on_uvicorn,
    parse,
    relayed,
)

pytestmark = pytest.mark.usefixtures("quiet")

# --- a good stream ----------------------------------------------------------


@in_each_way
async def test_relay_forwards_the_events_of_upstream(name: str, upstream: LocalServer) -> None:
    """A browser receives each event with upstream's fields and image, then [DONE]."""
    seen: list[ImageEvent] = []

    async def recorded(client: AsyncImages, prompt: str) -> AsyncIterator[ImageEvent]:
        async with generated(client, prompt) as opened:
            async for each in opened:
                seen.append(each)
                yield each

    async with backend(name, upstream, recorded) as port:
        response, text = await fetch(port)
    assert response.status == 200
    assert {key: response.headers[key] for key in web.HEADERS} == dict(web.HEADERS)
    *events, done = parse(text)
    assert done == ("message", "[DONE]")
    assert [kind for kind, _ in events] == [PARTIAL, PARTIAL, COMPLETED]
    for (kind, fields), original in zip(events, seen, strict=True):
        assert kind == fields["type"] == original.type
        assert base64.b64decode(fields["b64_json"]) == original.image.content
        assert fields["created_at"] == original.created_at
        assert fields["size"] == original.size
    common = {
        "type",
        "b64_json",
        "created_at",
        "size",
        "quality",
        "background",
        "output_format",
    }
    assert events[0][1].keys() == common | {"partial_image_index"}
    assert events[2][1].keys() == common | {"usage"}
    assert [fields["partial_image_index"] for _, fields in events[:2]] == [0, 1]
    assert events[2][1]["usage"]["total_tokens"] > 0


async def test_relay_leaves_out_absent_fields() -> None:
    """A field that upstream did not send is absent, also within the usage, and not null."""
    usage = {"total_tokens": 3, "input_tokens_details": {"text_tokens": 3}}
    sent = event({"type": COMPLETED, "b64_json": B64, "usage": usage})
    async with RawServer(stream(sent, DONE)) as raw_server:
        (kind, fields), _ = await relayed(raw_server)
    assert fields == {"type": COMPLETED, "b64_json": B64, "usage": usage}
    assert kind == COMPLETED


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49151, 49152, 49153, 98304, 300001])
async def test_relay_base64_is_whole_at_every_size(size: int) -> None:
    """The chunks of an image form its complete base64, whatever its size."""
    content = (bytes(range(256)) * 1200)[:size]

    async def events() -> AsyncIterator[ImageEvent]:
        yield CompletedImage(type=COMPLETED, image=Image(content))

    (_, fields), _ = await collect(web.ServerSentEvents(events()))
    assert fields["b64_json"] == base64.b64encode(content).decode()


async def test_relay_never_holds_the_base64_whole() -> None:
    """An image of 8 MiB is sent in chunks of about 128 KiB, and needs memory for a few of them."""
    content = PNG + bytes(8 * 1024 * 1024)

    async def events() -> AsyncIterator[ImageEvent]:
        yield CompletedImage(type=COMPLETED, image=Image(content))

    relay = web.ServerSentEvents(events())
    total = longest = 0
    tracemalloc.start()
    try:
        async for chunk in relay:
            total, longest = total + len(chunk), max(longest, len(chunk))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > len(content) * 4 / 3
    assert longest < 130 * 1024
    assert peak < 512 * 1024


async def test_relay_is_read_by_openai(upstream: LocalServer) -> None:
    """Openai's AsyncOpenAI gets the same from a relay, as from upstream itself."""
    client = client_of(upstream)
    app = fastapi.FastAPI()

    @app.post("/v1/images/generations")
    async def generations(request: fastapi.Request) -> Response:
        fields = await request.json()
        del fields["stream"]
        return web.starlette_response(client.generate(fields, stream=True), heartbeat=0.001)

    async def ask(base_url: str) -> list[dict[str, Any]]:
        async with openai.AsyncOpenAI(
            api_key=upstream.api_key, base_url=base_url, max_retries=0
        ) as theirs:
            events = await theirs.images.generate(
                prompt="a heron", model="gpt-image-1", stream=True, partial_images=2
            )
            return [each.to_dict() async for each in events]

    def without_time(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**fields, "created_at": 0} for fields in events]

    async with client, on_uvicorn(app) as port:
        base_url = f"http://127.0.0.1:{port}/v1"
        through = await ask(base_url)
        assert len(through) == 3
        assert without_time(through) == without_time(await ask(upstream.base_url))
        upstream.inject("error-event")
        with pytest.raises(openai.APIError, match="image service failed"):
            await ask(base_url)


async def test_relay_is_read_by_this_client(upstream: LocalServer) -> None:
    """A relay can be the upstream of another one: images and usage pass through both."""
    client = client_of(upstream)
    app = fastapi.FastAPI()

    @app.post("/v1/images/generations")
    async def generations(request: fastapi.Request) -> Response:
        fields = await request.json()
        del fields["stream"]
        return web.starlette_response(client.generate(fields, stream=True), heartbeat=0.001)

    async with (
        client,
        on_uvicorn(app) as port,
        AsyncImages(API_KEY, base_url=f"http://127.0.0.1:{port}/v1", retry=0) as second,
    ):
        result = await generated(second, "a heron").result()
        (*_, (_, fields), _) = await collect(web.ServerSentEvents(generated(second, "a heron")))
    assert base64.b64decode(fields["b64_json"]) == result[0].content
    assert result.usage is not None


async def test_relay_of_an_open_stream(upstream: LocalServer) -> None:
    """A stream that was awaited is relayed from its beginning; the await raises a rejection."""
    async with client_of(upstream) as client:
        opened = await generated(client, "cat")
        events = await collect(web.ServerSentEvents(opened))
        assert len(events) == 4
        upstream.inject("error=401")
        with pytest.raises(errors.AuthenticationError):
            await generated(client, "cat")


async def test_relay_of_a_generator_that_changes_events(upstream: LocalServer) -> None:
    """Any iterator of image events can be relayed."""

    async def marked(client: AsyncImages, prompt: str) -> AsyncIterator[ImageEvent]:
        async for each in generated(client, prompt):
            if isinstance(each, CompletedImage):
                yield CompletedImage(type=each.type, image=Image(PNG + b"marked"))

    async with backend("fastapi", upstream, marked) as port:
        _, text = await fetch(port)
    (_, fields), done = parse(text)
    assert base64.b64decode(fields["b64_json"]).endswith(b"marked")
    assert done[1] == "[DONE]"


@pytest.mark.parametrize("pass_urls", [False, True])
async def test_relay_of_an_image_that_is_a_url(pass_urls: bool, upstream: LocalServer) -> None:
    """An image that arrives as a URL is downloaded here, unless URLs are to be passed on."""
    async with client_of(upstream) as client:
        made = await client.generate("cat", model="dall-e-2", response_format="url")
        address = made[0].url
        assert address is not None
        async with RawServer(
            stream(event({"type": COMPLETED, "url": address}), DONE)
        ) as raw_server:
            (_, fields), _ = await relayed(raw_server, pass_urls=pass_urls)
        content = await made[0].read()
    if pass_urls:
        assert fields == {"type": COMPLETED, "url": address}
    else:
        assert fields == {"type": COMPLETED, "b64_json": base64.b64encode(content).decode()}


@in_each
async def test_relay_head_request_sends_nothing_upstream(name: str, upstream: LocalServer) -> None:
    """A HEAD request gets the headers, and generates no image."""
    async with (
        backend(name, upstream) as port,
        aiohttp.ClientSession() as session,
        session.head(f"http://127.0.0.1:{port}/picture?prompt=cat") as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert not upstream.requests


# --- heartbeats -------------------------------------------------------------


@in_each_way
async def test_heartbeats_before_the_first_byte_and_within_events(name: str) -> None:
    """While upstream is silent, comments are sent, and the events stay whole."""
    sent = event({"type": COMPLETED, "b64_json": B64})
    begin, go_on, finish = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first, *chunks = open_stream(sent[:60], sent[60:], DONE)
    reply = [begin, first, go_on, chunks[0], finish, *chunks[1:], b"0\r\n\r\n"]
    async with (
        RawServer(reply) as raw_server,
        backend(name, raw_server, heartbeat=0.01) as port,
        Browser.at(port) as browser,
    ):
        await browser.read_until(b"\r\n\r\n12\r\nretry: 2147483647\n\r\n")
        for count, release in enumerate((begin, go_on, finish), start=1):
            await browser.read_until(b": ping\n", times=5 * count)
            release.set()
        await browser.read_until(b"data: [DONE]\n\n")
        assert B64.encode() in browser.seen


async def test_heartbeats_none() -> None:
    """Without heartbeats nothing is sent until the next event."""
    release = asyncio.Event()
    reply = [release, *stream(event({"type": COMPLETED, "b64_json": B64}), DONE)]
    async with RawServer(reply) as raw_server, client_of(raw_server) as client:
        relay = web.ServerSentEvents(generated(client, "cat"), heartbeat=None)
        assert await anext(relay) == b"retry: 2147483647\n"
        waiting = asyncio.ensure_future(anext(relay))
        await raw_server.wait_until(lambda: len(raw_server.requests) == 1)
        assert not waiting.done()
        release.set()
        assert (await waiting).startswith(b"event: ")
        await relay.aclose()


@pytest.mark.parametrize("heartbeat", [0, -1.0, float("nan")])
async def test_heartbeats_that_are_invalid(heartbeat: float, upstream: LocalServer) -> None:
    """A heartbeat that is not a positive number is rejected at once."""
    async with client_of(upstream) as client:
        stream = generated(client, "cat")
        with pytest.raises(errors.ConfigurationError, match="positive number of seconds"):
            web.starlette_response(stream, heartbeat=heartbeat)
        await stream.aclose()


async def test_relay_of_something_else_is_rejected(upstream: LocalServer) -> None:
    """An object that is not a stream of events is rejected before the response begins."""
    async with client_of(upstream) as client:
        opened = generated(client, "cat")
        web.ServerSentEvents(opened)
        with pytest.raises(errors.StreamStateError, match="iterated once"):
            web.starlette_response(opened)
        with pytest.raises(TypeError):
            web.starlette_response([])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
