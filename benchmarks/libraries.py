"""HTTP libraries as contenders: pyreqwest, primp, httpx2 and niquests, each in two ways.

The usual way takes the library's JSON and the standard library's base64. The tuned way takes the
bytes, cuts the base64 out before it parses the rest, and decodes with pybase64.
"""

import base64
import contextlib
import datetime
import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from .client import KEY, Client, Contender, Opener, Take, request_body

HEADERS = {"Authorization": f"Bearer {KEY}"}
LIMIT = 600.0  # seconds
READ_BUFFER = 1 << 20  # bytes
_FIELD = b'"b64_json":"'


def authority() -> str | None:
    """Return the file with the benchmark server's certificate authority."""
    return os.environ.get("SSL_CERT_FILE")


class Library(ABC):
    """POST requests of one library, with one client for all of them."""

    def __init__(self, client: Any, url: str, *, tuned: bool) -> None:
        self.client, self.url, self.tuned = client, url, tuned

    @abstractmethod
    async def json(self, body: dict[str, Any]) -> Any:
        """Return the response, parsed by the library."""

    @abstractmethod
    async def read(self, body: dict[str, Any]) -> bytes:
        """Return the response as bytes."""

    @abstractmethod
    def chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Iterate over the response as it arrives."""


class Pyreqwest(Library):
    """Rust's reqwest, by pyreqwest."""

    @classmethod
    def client_of(cls, package: Any) -> Any:
        builder = package.ClientBuilder().default_headers(HEADERS).error_for_status()
        builder = builder.timeout(datetime.timedelta(seconds=LIMIT))
        if (ca := authority()) is not None:
            builder = builder.add_root_certificate_pem(Path(ca).read_bytes())
        return builder.build()

    async def json(self, body: dict[str, Any]) -> Any:
        response = await self.client.post(self.url).body_json(body).build().send()
        return await response.json()

    async def read(self, body: dict[str, Any]) -> bytes:
        response = await self.client.post(self.url).body_json(body).build().send()
        return bytes(await response.bytes())

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        request = self.client.post(self.url).body_json(body)
        if self.tuned:
            request = request.streamed_read_buffer_limit(READ_BUFFER)
        async with request.build_streamed() as response:
            while (chunk := await response.body_reader.read_chunk()) is not None:
                yield chunk


class Primp(Library):
    """Rust's reqwest, by primp."""

    @classmethod
    def client_of(cls, package: Any) -> Any:
        return package.AsyncClient(headers=HEADERS, ca_cert_file=authority(), timeout=LIMIT)

    async def json(self, body: dict[str, Any]) -> Any:
        return (await self.client.post(self.url, json=body)).json()

    async def read(self, body: dict[str, Any]) -> bytes:
        content: bytes = (await self.client.post(self.url, json=body)).content
        return content

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        async with await self.client.post(self.url, json=body, stream=True) as response:
            async for chunk in response.aiter_bytes():
                yield chunk


class HTTPX2(Library):
    """httpx2."""

    @classmethod
    def client_of(cls, package: Any) -> Any:
        return package.AsyncClient(
            headers=HEADERS, timeout=LIMIT, limits=package.Limits(max_connections=None)
        )

    async def json(self, body: dict[str, Any]) -> Any:
        return (await self.client.post(self.url, json=body)).json()

    async def read(self, body: dict[str, Any]) -> bytes:
        content: bytes = (await self.client.post(self.url, json=body)).content
        return content

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        async with self.client.stream("POST", self.url, json=body) as response:
            async for chunk in response.aiter_bytes():
                yield chunk


class Niquests(Library):
    """niquests."""

    @classmethod
    def client_of(cls, package: Any) -> Any:
        session = package.AsyncSession(pool_connections=1, pool_maxsize=512)
        session.headers.update(HEADERS)
        return session

    async def post(self, body: dict[str, Any], *, stream: bool = False) -> Any:
        # With `verify` of the session alone, requests are checked against other authorities.
        verify = authority() or True
        return await self.client.post(
            self.url, json=body, stream=stream, timeout=LIMIT, verify=verify
        )

    async def json(self, body: dict[str, Any]) -> Any:
        return (await self.post(body)).json()

    async def read(self, body: dict[str, Any]) -> bytes:
        content: bytes = (await self.post(body)).content
        return content

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        response = await self.post(body, stream=True)
        size = READ_BUFFER if self.tuned else -1  # -1: as it arrives
        async for chunk in await response.iter_content(size):
            yield chunk


class Usual(Client):
    """Parse everything, then decode."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def batch(self, take: Take, n: int) -> None:
        response = await self._library.json(request_body(n))
        for item in response["data"]:
            url = item.get("url")
            take(url.encode() if url else base64.b64decode(item["b64_json"]))

    async def stream(self, take: Take) -> None:
        buffer = bytearray()
        async for chunk in self._library.chunks(request_body(1, stream=True)):
            scanned = max(0, len(buffer) - 1)
            buffer += chunk
            while (end := buffer.find(b"\n\n", scanned)) >= 0:
                for line in bytes(buffer[:end]).split(b"\n"):
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        take(base64.b64decode(json.loads(line[6:])["b64_json"]))
                del buffer[: end + 2]
                scanned = 0


class Tuned(Client):
    """Cut the base64 out, decode it with pybase64, and parse the rest with msgspec."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._decode: Callable[..., bytes] = importlib.import_module("pybase64").b64decode
        self._parse: Callable[[bytes], Any] = importlib.import_module("msgspec.json").decode

    async def batch(self, take: Take, n: int) -> None:
        response = await self._library.read(request_body(n))
        for item in self._splice(response, 0, len(response), take)["data"]:
            if url := item.get("url"):
                take(url.encode())

    async def stream(self, take: Take) -> None:
        buffer = bytearray()
        async for chunk in self._library.chunks(request_body(1, stream=True)):
            scanned = max(0, len(buffer) - 1)
            buffer += chunk
            while (end := buffer.find(b"\n\n", scanned)) >= 0:
                start = buffer.find(b"data: ", 0, end) + 6
                if not buffer.startswith(b"[DONE]", start):
                    self._splice(buffer, start, end, take)
                del buffer[: end + 2]
                scanned = 0

    def _splice(self, data: bytes | bytearray, start: int, end: int, take: Take) -> Any:
        rest = []
        with memoryview(data) as view:
            while (found := data.find(_FIELD, start, end)) >= 0:
                first = found + len(_FIELD)
                last = data.index(b'"', first, end)
                with view[first:last] as text:
                    take(self._decode(text, validate=True))
                rest.append(bytes(view[start:first]))
                start = last
            rest.append(bytes(view[start:end]))
        return self._parse(b"".join(rest))


def _opener(package: str, library: Any, *, tuned: bool) -> Opener:
    @contextlib.asynccontextmanager
    async def opener(base_url: str) -> AsyncIterator[Client]:
        imported = importlib.import_module(package)
        url = f"{base_url}/images/generations"
        client = library.client_of(imported)
        async with client if hasattr(client, "__aexit__") else contextlib.nullcontext():
            used = library(client, url, tuned=tuned)
            yield Tuned(used) if tuned else Usual(used)

    return opener


def contenders(hint: str) -> tuple[Contender, ...]:
    """Return the contenders of this module."""
    found = []
    for name, package, library in (
        ("pyreqwest", "pyreqwest.client", Pyreqwest),
        ("primp", "primp", Primp),
        ("httpx2", "httpx2", HTTPX2),
        ("niquests", "niquests", Niquests),
    ):
        usual = _opener(package, library, tuned=False)
        tuned = _opener(package, library, tuned=True)
        found.append(Contender(name, name, usual, (name,), hint))
        found.append(Contender(f"{name}-tuned", f"{name}, tuned", tuned, (name,), hint))
    return tuple(found)
