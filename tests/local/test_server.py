"""The local server over real connections."""

import asyncio
import base64
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anyio
import openai
import pytest
import trustme

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import LocalServer, generator, painter
from elkimg_async.local.server import GENERATIONS_PATH

PNG = b"\x89PNG\r\n\x1a\n"
REQUEST = {"model": "gpt-image-1", "prompt": "a boat"}


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True) as server:
        yield server


@pytest.fixture
async def http(server: LocalServer) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield session


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=server.api_key, base_url=server.base_url, max_retries=0
    ) as client:
        yield client


def url(server: LocalServer) -> str:
    return f"{server.base_url}/images/generations"


async def test_openai_batch(server: LocalServer, client: openai.AsyncOpenAI) -> None:
    """The openai client receives its images, and usage that adds up."""
    result = await client.images.generate(prompt="a boat", model="gpt-image-1", n=2)
    assert result.data is not None
    contents = [base64.b64decode(item.b64_json or "") for item in result.data]
    assert len(contents) == len(set(contents)) == 2
    assert all(content.startswith(PNG) for content in contents)
    assert result.usage is not None
    assert result.usage.total_tokens == result.usage.input_tokens + result.usage.output_tokens
    assert server.generations == 1


async def test_openai_stream(client: openai.AsyncOpenAI) -> None:
    """The openai client receives the partial images, then the completed one."""
    stream = await client.images.generate(
        prompt="a boat", model="gpt-image-1", stream=True, partial_images=2
    )
    seen = [event async for event in stream]
    assert [event.type for event in seen] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    batch = await client.images.generate(prompt="a boat", model="gpt-image-1")
    assert batch.data is not None
    assert seen[-1].b64_json == batch.data[0].b64_json


async def test_openai_models(client: openai.AsyncOpenAI) -> None:
    """The openai client lists the models."""
    assert "gpt-image-1" in {model.id async for model in client.models.list()}


async def test_openai_errors(client: openai.AsyncOpenAI) -> None:
    """The openai client raises the errors with their codes."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="a", model="gpt-image-1", response_format="url")
    assert caught.value.code == "unknown_parameter"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").images.generate(prompt="a")


async def test_url_without_api_key(server: LocalServer, client: openai.AsyncOpenAI) -> None:
    """dall-e models return a URL that needs no API key."""
    result = await client.images.generate(prompt="a boat", model="dall-e-2", size="256x256")
    assert result.data is not None
    image_url = result.data[0].url
    assert image_url is not None
    async with aiohttp.ClientSession() as stranger, stranger.get(image_url) as response:
        assert response.content_type == "image/png"
        assert (await response.read()).startswith(PNG)
    assert server.requests[-1].path.startswith("/images/")


@pytest.mark.parametrize(
    ("output_format", "magic"), [("png", PNG), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")]
)
async def test_output_format(
    server: LocalServer, http: aiohttp.ClientSession, output_format: str, magic: bytes
) -> None:
    """The requested format is in the response and in its image."""
    body = {**REQUEST, "output_format": output_format}
    async with http.post(url(server), json=body) as response:
        value = await response.json()
    assert value["output_format"] == output_format
    assert base64.b64decode(value["data"][0]["b64_json"]).startswith(magic)


async def test_gif_and_svg(http: aiohttp.ClientSession, server: LocalServer) -> None:
    """GIF and SVG are real files, and an SVG has usage of its own."""
    for output_format, magic in (("gif", b"GIF8"), ("svg", b"<svg")):
        body = {**REQUEST, "model": "gpt-image-2", "output_format": output_format}
        frames = {"frame_count": 3} if output_format == "gif" else {}
        async with http.post(url(server), json={**body, **frames}) as response:
            value = await response.json()
        assert base64.b64decode(value["data"][0]["b64_json"]).startswith(magic)
        assert ("svg_usage" in value) is (output_format == "svg")


@pytest.mark.parametrize("stream", [False, True])
async def test_safety_identifier(
    server: LocalServer, http: aiohttp.ClientSession, stream: bool
) -> None:
    """The safety identifier is echoed, or else the user; other new parameters are accepted."""
    for fields, echoed in (
        ({"safety_identifier": "s-1", "user": "u-1", "complexity": "low"}, b"s-1"),
        ({"user": "u-1"}, b"u-1"),
    ):
        body = {**REQUEST, **fields, "stream": stream}
        async with http.post(url(server), json=body) as response:
            assert b'"safety_identifier":"%b"' % echoed in await response.read()


async def test_query_is_recorded(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """A query string in the URL does not change the path, and is recorded."""
    address = f"{url(server)}?api-version=2026-11-01"
    async with http.post(address, json=REQUEST) as response:
        assert response.status == 200
    assert server.requests[-1].path == GENERATIONS_PATH
    assert server.requests[-1].query == {"api-version": "2026-11-01"}


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/json, text/event-stream", 200),
        ("*/*", 200),
        ("text/event-stream, application/json", 500),
        ("text/event-stream", 500),
    ],
)
async def test_accept_order(
    server: LocalServer, http: aiohttp.ClientSession, accept: str, status: int
) -> None:
    """A stream as the first accepted type is an error, as at servers that take it literally."""
    async with http.post(
        url(server), json={**REQUEST, "stream": True}, headers={"Accept": accept}
    ) as response:
        assert response.status == status


async def test_headers(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """Every response has a request id, and those for images have rate-limit headers."""
    ids = set()
    for method, path in [("GET", "/"), ("GET", "/v1/models"), ("POST", GENERATIONS_PATH)]:
        address = server.base_url.removesuffix("/v1") + path
        async with http.request(method, address, json=REQUEST) as response:
            assert response.status == 200
            ids.add(response.headers["X-Oneapi-Request-Id"])
    assert ids == {received.request_id for received in server.requests}
    assert len(ids) == 3
    assert response.headers["x-ratelimit-limit-requests"] == "1000000"
    assert response.headers["x-ratelimit-remaining-requests"] == "999999"
    assert response.headers["x-ratelimit-reset-requests"] == "0s"


async def test_requests_per_minute() -> None:
    """Requests beyond the rate limit get 429 and generate nothing."""
    async with (
        LocalServer(light=True, requests_per_minute=1) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {server.api_key}"}) as http,
    ):
        for status in (200, 429):
            async with http.post(url(server), json=REQUEST) as response:
                assert response.status == status
                assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert server.generations == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "content_type"),
    [
        ("GET", "/", 200, "text/html"),
        ("POST", "/images/generations", 200, "text/html"),
        ("GET", "/images/unknown.png", 200, "text/html"),
        ("POST", "/v1/images/variations", 501, "application/json"),
        ("POST", "/v1/chat/completions", 404, "application/json"),
        ("GET", "/v1/images/generations", 501, "application/json"),
        ("HEAD", "/v1/models", 200, "application/json"),
    ],
)
async def test_paths(
    server: LocalServer,
    http: aiohttp.ClientSession,
    method: str,
    path: str,
    status: int,
    content_type: str,
) -> None:
    """Paths outside /v1 are a web page; unknown ones within it are errors."""
    address = server.base_url.removesuffix("/v1") + path
    async with http.request(method, address, json=REQUEST) as response:
        assert (response.status, response.content_type) == (status, content_type)


async def test_unauthorized(server: LocalServer) -> None:
    """Without the API key nothing is generated, and the error has an empty code."""
    async with aiohttp.ClientSession() as http, http.post(url(server), json=REQUEST) as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == ""
    assert server.generations == 0


async def test_requests_without_api_key(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """A recorded request has its fields but not the API key."""
    async with http.post(url(server), json=REQUEST) as response:
        await response.read()
    await server.wait_until(lambda: server.requests[-1].outcome == "answered")
    received = server.requests[-1]
    assert (received.method, received.path, received.fields) == ("POST", GENERATIONS_PATH, REQUEST)
    assert "authorization" in received.headers
    assert server.api_key not in repr(received)


async def test_idempotency_key(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """The same idempotency key and body replay the response without another generation."""
    headers = {"Idempotency-Key": "k"}
    async with http.post(url(server), json=REQUEST, headers=headers) as response:
        first = await response.read()
    async with http.post(url(server), json=REQUEST, headers=headers) as response:
        assert await response.read() == first
        assert response.headers["Idempotent-Replayed"] == "true"
    assert server.generations == 1
    changed = {**REQUEST, "prompt": "another"}
    async with http.post(url(server), json=changed, headers=headers) as response:
        assert response.status == 422
    assert server.generations == 1


async def test_idempotency_key_in_flight(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """A second request with an idempotency key in flight is a conflict."""
    headers = {"Idempotency-Key": "k", "X-Elkimg-Fault": "stall-body"}
    async with http.post(url(server), json=REQUEST, headers=headers):
        headers = {"Idempotency-Key": "k"}
        async with http.post(url(server), json=REQUEST, headers=headers) as response:
            assert response.status == 409
            assert "in flight" in (await response.json())["error"]["message"]
    await server.wait_disconnected()
    async with http.post(url(server), json=REQUEST, headers=headers) as response:
        assert response.status == 200
    assert server.generations == 1


async def test_generation_outlives_its_client(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    """A generation continues when its client leaves, and its idempotency key returns the result."""
    headers = {"Idempotency-Key": "k"}
    post = asyncio.create_task(http.post(url(server), json=REQUEST, headers=headers).__aenter__())
    await server.wait_until(lambda: server.generations == 1)
    post.cancel()
    await server.wait_until(lambda: server.requests[-1].outcome != "open")
    status = 409
    while status == 409:
        async with http.post(url(server), json=REQUEST, headers=headers) as response:
            status = response.status
    assert status == 200
    assert server.generations == 1


async def test_stream_shows_events_as_they_come(http: aiohttp.ClientSession) -> None:
    """With a delay the first bytes of a stream arrive before the image."""
    async with LocalServer(light=True, delay=60) as server:
        headers = {"Authorization": f"Bearer {server.api_key}"}
        body = {**REQUEST, "stream": True}
        async with http.post(url(server), json=body, headers=headers) as response:
            assert await response.content.readany() == b": PING\n\n"


async def test_wait_disconnected(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """The server records that a client has left a stream."""
    headers = {"X-Elkimg-Fault": "stall-stream"}
    body = {**REQUEST, "stream": True, "partial_images": 1}
    async with http.post(url(server), json=body, headers=headers) as response:
        await response.content.readany()
        assert not [seen for seen in server.requests if seen.outcome != "open"]
    await server.wait_disconnected()
    assert server.requests[-1].outcome == "disconnected"
    await server.wait_until(lambda: server.connections == 0)


async def test_keep_alive(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """Every kind of response leaves the connection reusable."""
    for fields in ({}, {"stream": True}, {"n": 99}):
        async with http.post(url(server), json={**REQUEST, **fields}) as response:
            await response.read()
    assert server.connections == 1


async def test_http_1_0_client(server: LocalServer) -> None:
    """An HTTP/1.0 client receives a stream without chunks."""
    body = b'{"prompt": "a boat", "stream": true}'
    raw = await exchange(
        server,
        b"POST /v1/images/generations HTTP/1.0\r\nAuthorization: Bearer elkimg-local\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
    )
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert rest.startswith(b": PING\n\n")
    assert rest.endswith(b"data: [DONE]\n\n")


async def exchange(server: LocalServer, request: bytes) -> bytes:
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    return raw


async def test_painting_leaves_the_loop_free(
    server: LocalServer, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop serves other requests while an image is painted."""
    loop = asyncio.get_running_loop()
    painting, may_finish = asyncio.Event(), anyio.Event()

    def slow(spec: Any) -> Any:
        loop.call_soon_threadsafe(painting.set)
        asyncio.run_coroutine_threadsafe(may_finish.wait(), loop).result(30)
        return original(spec)

    original = painter.paint
    monkeypatch.setattr(generator, "paint", slow)
    async with asyncio.TaskGroup() as group:
        post = group.create_task(http.post(url(server), json=REQUEST).__aenter__())
        await painting.wait()
        async with http.get(f"{server.base_url}/models") as response:
            assert response.status == 200
        assert not post.done()
        may_finish.set()
    await post.result().read()


async def test_aclose_breaks_off_and_is_idempotent(http: aiohttp.ClientSession) -> None:
    """Closing aborts requests in flight and frees the port, any number of times."""
    server = LocalServer(light=True, faults=["stall-headers"])
    await server.aclose()
    await server.start()
    await server.start()
    headers = {"Authorization": f"Bearer {server.api_key}"}
    post = asyncio.create_task(http.post(url(server), json=REQUEST, headers=headers).__aenter__())
    await server.wait_until(lambda: server.generations == 1)
    await server.aclose()
    await server.aclose()
    with pytest.raises(aiohttp.ClientConnectionError):
        await post
    assert server.connections == 0
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.post(url(server), json=REQUEST, headers=headers)
    async with server, http.post(url(server), json=REQUEST, headers=headers) as response:
        assert response.status == 200


async def test_port_that_is_taken(server: LocalServer) -> None:
    """A taken port is a configuration error."""
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    with pytest.raises(ConfigurationError, match="choose another port"):
        await LocalServer(port=port).start()


async def test_https() -> None:
    """With a certificate the server speaks HTTPS, and its base URL says so."""
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with LocalServer(ssl_context=serving) as server, aiohttp.ClientSession() as http:
        assert server.base_url.startswith("https://127.0.0.1:")
        headers = {"Authorization": f"Bearer {server.api_key}"}
        async with http.get(f"{server.base_url}/models", headers=headers, ssl=trusting) as response:
            assert response.status == 200


def test_import_is_cheap() -> None:
    """Importing the local server does not import Pillow."""
    code = "import sys, elkimg_async.local; print('PIL' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.strip() == "False"


async def test_start_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow the server does not start, and the error says what to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[pil\]"):
        await LocalServer().start()


def test_address_before_start() -> None:
    """Before the start there is no base URL, and the repr says so."""
    server = LocalServer()
    assert repr(server) == "<LocalServer not started, 0 generations>"
    with pytest.raises(ConfigurationError, match="start it first"):
        _ = server.base_url
