"""The local server, over real connections."""

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
from elkimg_async.local import LocalServer
from elkimg_async.local.server import GENERATIONS_PATH

PNG = b"\x89PNG\r\n\x1a\n"
ORDER = {"model": "gpt-image-1", "prompt": "a boat"}


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
    """The public openai client gets its images, and a usage that adds up."""
    result = await client.images.generate(prompt="a boat", model="gpt-image-1", n=2)
    assert result.data is not None
    contents = [base64.b64decode(item.b64_json or "") for item in result.data]
    assert len(contents) == len(set(contents)) == 2
    assert all(content.startswith(PNG) for content in contents)
    assert result.usage is not None
    assert result.usage.total_tokens == result.usage.input_tokens + result.usage.output_tokens
    assert server.generations == 1


async def test_openai_stream(client: openai.AsyncOpenAI) -> None:
    """The public openai client gets the partial images and then the completed one."""
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
    """The public openai client can list the models."""
    assert "gpt-image-1" in {model.id async for model in client.models.list()}


async def test_openai_errors(client: openai.AsyncOpenAI) -> None:
    """The public openai client reads the errors and their codes."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="a", model="gpt-image-1", response_format="url")
    assert caught.value.code == "unknown_parameter"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").images.generate(prompt="a")


async def test_url_is_served_without_a_key(server: LocalServer, client: openai.AsyncOpenAI) -> None:
    """dall-e models answer with a URL, and whoever has it needs no key."""
    result = await client.images.generate(prompt="a boat", model="dall-e-2", size="256x256")
    assert result.data is not None
    address = result.data[0].url
    assert address is not None
    async with aiohttp.ClientSession() as stranger, stranger.get(address) as answer:
        assert answer.content_type == "image/png"
        assert (await answer.read()).startswith(PNG)
    assert server.requests[-1].path.startswith("/images/")


@pytest.mark.parametrize(
    ("output_format", "magic"), [("png", PNG), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")]
)
async def test_output_format(
    server: LocalServer, http: aiohttp.ClientSession, output_format: str, magic: bytes
) -> None:
    """The format that is asked for is in the answer and in its image."""
    order = {**ORDER, "output_format": output_format}
    async with http.post(url(server), json=order) as answer:
        value = await answer.json()
    assert value["output_format"] == output_format
    assert base64.b64decode(value["data"][0]["b64_json"]).startswith(magic)


async def test_headers(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """Every answer has a request id, and those for images tell the rate limits."""
    ids = set()
    for method, path in [("GET", "/"), ("GET", "/v1/models"), ("POST", GENERATIONS_PATH)]:
        address = server.base_url.removesuffix("/v1") + path
        async with http.request(method, address, json=ORDER) as answer:
            assert answer.status == 200
            ids.add(answer.headers["X-Oneapi-Request-Id"])
    assert ids == {seen.request_id for seen in server.requests}
    assert len(ids) == 3
    assert answer.headers["x-ratelimit-limit-requests"] == "1000000"
    assert answer.headers["x-ratelimit-remaining-requests"] == "999999"
    assert answer.headers["x-ratelimit-reset-requests"] == "0s"


async def test_requests_per_minute() -> None:
    """What goes beyond the allowance of a minute is refused and makes nothing."""
    async with (
        LocalServer(light=True, requests_per_minute=1) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {server.api_key}"}) as http,
    ):
        for status in (200, 429):
            async with http.post(url(server), json=ORDER) as answer:
                assert answer.status == status
                assert answer.headers["x-ratelimit-remaining-requests"] == "0"
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
    """Outside /v1 everything is a web page; within it, what is not there is an error."""
    address = server.base_url.removesuffix("/v1") + path
    async with http.request(method, address, json=ORDER) as answer:
        assert (answer.status, answer.content_type) == (status, content_type)


async def test_unauthorized(server: LocalServer) -> None:
    """Without the key nothing is made, and the error has an empty code."""
    async with aiohttp.ClientSession() as http, http.post(url(server), json=ORDER) as answer:
        assert answer.status == 401
        assert (await answer.json())["error"]["code"] == ""
    assert server.generations == 0


async def test_requests_hold_no_key(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """The record tells what was asked, but the key is not in it."""
    async with http.post(url(server), json=ORDER) as answer:
        await answer.read()
    await server.wait_until(lambda: server.requests[-1].outcome == "answered")
    seen = server.requests[-1]
    assert (seen.method, seen.path, seen.fields) == ("POST", GENERATIONS_PATH, ORDER)
    assert "authorization" in seen.headers
    assert server.api_key not in repr(seen)


async def test_idempotency_key(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """The same key and body give the same answer once more, and nothing is made again."""
    headers = {"Idempotency-Key": "k"}
    async with http.post(url(server), json=ORDER, headers=headers) as answer:
        first = await answer.read()
    async with http.post(url(server), json=ORDER, headers=headers) as answer:
        assert await answer.read() == first
        assert answer.headers["Idempotent-Replayed"] == "true"
    assert server.generations == 1
    changed = {**ORDER, "prompt": "another"}
    async with http.post(url(server), json=changed, headers=headers) as answer:
        assert answer.status == 422
    assert server.generations == 1


async def test_idempotency_key_in_flight(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """While the first request is being answered a second one with its key is a conflict."""
    headers = {"Idempotency-Key": "k", "X-Elkimg-Fault": "stall-body"}
    async with http.post(url(server), json=ORDER, headers=headers):
        headers = {"Idempotency-Key": "k"}
        async with http.post(url(server), json=ORDER, headers=headers) as answer:
            assert answer.status == 409
            assert "in flight" in (await answer.json())["error"]["message"]
    await server.wait_disconnected()
    async with http.post(url(server), json=ORDER, headers=headers) as answer:
        assert answer.status == 200
    assert server.generations == 1


async def test_generation_outlives_its_client(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    """Who leaves does not stop the painting, and can have its result with the same key."""
    headers = {"Idempotency-Key": "k"}
    post = asyncio.create_task(http.post(url(server), json=ORDER, headers=headers).__aenter__())
    await server.wait_until(lambda: server.generations == 1)
    post.cancel()
    await server.wait_until(lambda: server.requests[-1].outcome != "open")
    status = 409
    while status == 409:
        async with http.post(url(server), json=ORDER, headers=headers) as answer:
            status = answer.status
    assert status == 200
    assert server.generations == 1


async def test_stream_shows_events_as_they_come(http: aiohttp.ClientSession) -> None:
    """With a delay the first bytes of a stream come before the image."""
    async with LocalServer(light=True, delay=60) as server:
        headers = {"Authorization": f"Bearer {server.api_key}"}
        order = {**ORDER, "stream": True}
        async with http.post(url(server), json=order, headers=headers) as answer:
            assert await answer.content.readany() == b": PING\n\n"


async def test_wait_disconnected(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """The server notices that a client has left a stream, and tells."""
    headers = {"X-Elkimg-Fault": "stall-stream"}
    order = {**ORDER, "stream": True, "partial_images": 1}
    async with http.post(url(server), json=order, headers=headers) as answer:
        await answer.content.readany()
        seen = server.requests[-1]
        assert seen.outcome == "open"
    await server.wait_disconnected()
    assert server.requests[-1].outcome == "disconnected"
    await server.wait_until(lambda: server.connections == 0)


async def test_keep_alive(server: LocalServer, http: aiohttp.ClientSession) -> None:
    """Answers of every kind leave the connection fit for the next request."""
    for fields in ({}, {"stream": True}, {"n": 99}):
        async with http.post(url(server), json={**ORDER, **fields}) as answer:
            await answer.read()
    assert server.connections == 1


async def test_http_1_0_client(server: LocalServer) -> None:
    """A client, or proxy, that speaks HTTP/1.0 gets a stream without chunks."""
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
    """While one picture is painted in its thread, the loop serves other requests."""
    loop = asyncio.get_running_loop()
    painting, may_finish = asyncio.Event(), anyio.Event()

    def slow(spec: Any) -> Any:
        loop.call_soon_threadsafe(painting.set)
        asyncio.run_coroutine_threadsafe(may_finish.wait(), loop).result(30)
        return original(spec)

    module = sys.modules[LocalServer.__module__]
    original = module.paint
    monkeypatch.setattr(module, "paint", slow)
    async with asyncio.TaskGroup() as group:
        post = group.create_task(http.post(url(server), json=ORDER).__aenter__())
        await painting.wait()
        async with http.get(f"{server.base_url}/models") as answer:
            assert answer.status == 200
        assert not post.done()
        may_finish.set()
    await post.result().read()


async def test_aclose_breaks_off_and_is_idempotent(http: aiohttp.ClientSession) -> None:
    """Closing ends what is under way, frees the port, and may be done twice or not at all."""
    server = LocalServer(light=True, faults=["stall-headers"])
    await server.aclose()
    await server.start()
    await server.start()
    headers = {"Authorization": f"Bearer {server.api_key}"}
    post = asyncio.create_task(http.post(url(server), json=ORDER, headers=headers).__aenter__())
    await server.wait_until(lambda: server.generations == 1)
    await server.aclose()
    await server.aclose()
    with pytest.raises(aiohttp.ClientConnectionError):
        await post
    assert server.connections == 0
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.post(url(server), json=ORDER, headers=headers)
    async with server, http.post(url(server), json=ORDER, headers=headers) as answer:
        assert answer.status == 200


async def test_port_that_is_taken(server: LocalServer) -> None:
    """A port that another has is a configuration error in plain words."""
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    with pytest.raises(ConfigurationError, match="choose another port"):
        await LocalServer(port=port).start()


async def test_https() -> None:
    """With a certificate the server speaks https, and says so in its address."""
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with LocalServer(ssl_context=serving) as server, aiohttp.ClientSession() as http:
        assert server.base_url.startswith("https://127.0.0.1:")
        headers = {"Authorization": f"Bearer {server.api_key}"}
        async with http.get(f"{server.base_url}/models", headers=headers, ssl=trusting) as answer:
            assert answer.status == 200


def test_import_is_cheap() -> None:
    """Importing the server does not import Pillow."""
    code = "import sys, elkimg_async.local; print('PIL' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.strip() == "False"


async def test_start_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that could not paint does not start, and says what to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[pil\]"):
        await LocalServer().start()


def test_address_before_start() -> None:
    """Before it is started a server on a free port has no address yet, and its repr says so."""
    server = LocalServer()
    assert repr(server) == "<LocalServer not started, 0 generations>"
    with pytest.raises(ConfigurationError, match="start it first"):
        _ = server.base_url
