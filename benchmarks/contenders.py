"""The contenders: how each of them requests images, and receives them as decoded bytes.

Every client does what a careful user of that library would write: one client for all requests,
no retries, images decoded. `take` is called with each image (or URL) at the moment the user has
it. Optional packages are imported by name, only in the process of their contender.
"""

import asyncio
import base64
import contextlib
import importlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import aiohttp

from . import libraries
from .client import KEY, MODEL, PROMPT, Client, Contender, Opener, Take, request_body


class OpenAI(Client):
    """`openai.AsyncOpenAI` with either transport."""

    def __init__(self, client: Any) -> None:
        self._generate = client.images.generate

    async def batch(self, take: Take, n: int) -> None:
        result = await self._generate(prompt=PROMPT, model=MODEL, n=n)
        _take_all(take, result.data)

    async def stream(self, take: Take) -> None:
        events = await self._generate(
            prompt=PROMPT, model=MODEL, n=1, stream=True, partial_images=3
        )
        async for event in events:
            take(base64.b64decode(event.b64_json))


@contextlib.asynccontextmanager
async def open_openai(base_url: str) -> AsyncIterator[Client]:
    openai: Any = importlib.import_module("openai")
    async with openai.AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0) as client:
        yield OpenAI(client)


@contextlib.asynccontextmanager
async def open_openai_aiohttp(base_url: str) -> AsyncIterator[Client]:
    openai: Any = importlib.import_module("openai")
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=base_url, max_retries=0, http_client=openai.DefaultAioHttpClient()
    ) as client:
        yield OpenAI(client)


class LiteLLM(Client):
    """`litellm.aimage_generation`, which has no image streams."""

    def __init__(self, litellm: Any, base_url: str) -> None:
        self._litellm, self._base_url = litellm, base_url

    async def batch(self, take: Take, n: int) -> None:
        result = await self._litellm.aimage_generation(
            prompt=PROMPT,
            model=f"openai/{MODEL}",
            n=n,
            api_base=self._base_url,
            api_key=KEY,
            max_retries=0,
        )
        _take_all(take, result.data)


@contextlib.asynccontextmanager
async def open_litellm(base_url: str) -> AsyncIterator[Client]:
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    yield LiteLLM(litellm, base_url)


class HandWritten(Client):
    """aiohttp, json and base64, carefully written: no line iteration, nothing scanned twice."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session, self._url = session, f"{base_url}/images/generations"

    async def batch(self, take: Take, n: int) -> None:
        async with self._session.post(self._url, json=request_body(n)) as response:
            response.raise_for_status()
            parsed = await response.json()
        for item in parsed["data"]:
            url = item.get("url")
            take(url.encode() if url else base64.b64decode(item.pop("b64_json")))

    async def stream(self, take: Take) -> None:
        buffer = bytearray()
        async with self._session.post(self._url, json=request_body(1, stream=True)) as response:
            response.raise_for_status()
            async for chunk in response.content.iter_any():
                scanned = max(0, len(buffer) - 1)
                buffer += chunk
                while (end := buffer.find(b"\n\n", scanned)) >= 0:
                    _take_frame(take, bytes(buffer[:end]))
                    del buffer[: end + 2]
                    scanned = 0


class Polling(HandWritten):
    """The usual script for many requests.

    It reads them from a file and checks 1,000 times a second whether it may start the next one.
    """

    async def fan_out(self, take: Take, count: int, concurrency: int) -> None:
        tasks: set[asyncio.Task[None]] = set()
        with tempfile.TemporaryFile("w+") as file:
            file.writelines(json.dumps(request_body(1)) + "\n" for _ in range(count))
            file.seek(0)
            line = file.readline()
            while line or tasks:
                if line and len(tasks) < concurrency:
                    task = asyncio.create_task(self._send(take, json.loads(line)))
                    tasks.add(task)
                    line = file.readline()
                for task in [task for task in tasks if task.done()]:
                    tasks.remove(task)
                    task.result()
                await asyncio.sleep(0.001)

    async def _send(self, take: Take, body: dict[str, Any]) -> None:
        async with self._session.post(self._url, json=body) as response:
            parsed = await response.json()
        for item in parsed["data"]:
            url = item.get("url")
            take(url.encode() if url else base64.b64decode(item["b64_json"]))


class BareRead(Client):
    """aiohttp that only reads the body: the lower bound."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session, self._url = session, f"{base_url}/images/generations"

    async def batch(self, take: Take, n: int) -> None:
        async with self._session.post(self._url, json=request_body(n)) as response:
            take(await response.read())

    async def stream(self, take: Take) -> None:
        async with self._session.post(self._url, json=request_body(1, stream=True)) as response:
            take(await response.read())


def _open_aiohttp(client: Callable[[aiohttp.ClientSession, str], Client]) -> Opener:
    @contextlib.asynccontextmanager
    async def opener(base_url: str) -> AsyncIterator[Client]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {KEY}"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=600),
        ) as session:
            yield client(session, base_url)

    return opener


class ElkImages(Client):
    """`elkimg_async.AsyncImages` as documented."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def batch(self, take: Take, n: int) -> None:
        for image in await self._client.generate(PROMPT, model=MODEL, n=n):
            take(image.url.encode() if image.content is None else image.content)

    async def stream(self, take: Take) -> None:
        async with self._client.generate(
            PROMPT, model=MODEL, n=1, stream=True, partial_images=3
        ) as stream:
            async for event in stream:
                take(event.image.content)

    async def fan_out(self, take: Take, count: int, concurrency: int) -> None:
        requests = ({"prompt": PROMPT, "model": MODEL, "n": 1} for _ in range(count))
        async with self._client.map(requests, concurrency=concurrency) as run:
            async for item in run:
                if not item.ok:
                    raise item.error
                take(item.result[0].content)


@contextlib.asynccontextmanager
async def open_elkimg(base_url: str) -> AsyncIterator[Client]:
    elkimg_async: Any = importlib.import_module("elkimg_async")
    async with elkimg_async.AsyncImages(api_key=KEY, base_url=base_url, retry=0) as client:
        yield ElkImages(client)


@contextlib.asynccontextmanager
async def open_elkimg_map(base_url: str) -> AsyncIterator[Client]:
    elkimg_async: Any = importlib.import_module("elkimg_async")
    elkimg_async.AsyncImages.map  # noqa: B018 - versions without it are skipped
    async with open_elkimg(base_url) as client:
        yield client


def _take_all(take: Take, items: Iterable[Any]) -> None:
    for item in items:
        take(item.url.encode() if item.url else base64.b64decode(item.b64_json))


def _take_frame(take: Take, frame: bytes) -> None:
    for line in frame.split(b"\n"):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            take(base64.b64decode(json.loads(line[6:])["b64_json"]))


OPENAI, HANDWRITTEN, BARE = "openai", "handwritten", "bare"
PYREQWEST = "pyreqwest-tuned"
OURS, OUR_FAST, OUR_MAP = "elkimg", "elkimg-fast", "elkimg-map"
_BENCH = "install the extra: pip install 'elkimg-async[bench]'"
_NEEDED = "install the package itself: pip install elkimg-async"

_ALL = (
    Contender(OPENAI, "AsyncOpenAI", open_openai, ("openai", "httpx2", "httpx"), _BENCH),
    Contender("openai-aiohttp", "AsyncOpenAI on aiohttp", open_openai_aiohttp, ("openai",), _BENCH),
    Contender("litellm", "litellm", open_litellm, ("litellm",), _BENCH, streams=False),
    *libraries.contenders(_BENCH),
    Contender(HANDWRITTEN, "aiohttp by hand", _open_aiohttp(HandWritten), ("aiohttp",), _NEEDED),
    Contender(
        "poll",
        "a polling script",
        _open_aiohttp(Polling),
        ("aiohttp",),
        _NEEDED,
        own_fan_out=True,
    ),
    Contender(BARE, "aiohttp, bare read", _open_aiohttp(BareRead), ("aiohttp",), _NEEDED, raw=True),
    Contender(
        OURS, "elkimg_async", open_elkimg, ("msgspec", "pybase64", "anyio"), _NEEDED, paced=True
    ),
    Contender(
        OUR_FAST,
        "elkimg_async, fast",
        open_elkimg,
        ("aiofastnet",),
        "install the extra: pip install 'elkimg-async[fast]'",
        fast=True,
        paced=True,
    ),
    Contender(
        OUR_MAP, "elkimg_async, map", open_elkimg_map, ("elkimg-async",), _NEEDED, own_fan_out=True
    ),
)

CONTENDERS = {contender.name: contender for contender in _ALL}
