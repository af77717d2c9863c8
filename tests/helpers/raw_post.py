"""One POST on a connection of its own, for tests of the local server."""

import asyncio
import json
from typing import Any

import aiohttp

from elkimg_async.local import FAULT_HEADER, LocalServer


class Raw:
    """One POST on a connection of its own, and the bytes received."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self.received = b""
        self.reset = False

    async def __aenter__(self) -> "Raw":
        host, port = address(self._server)
        self._reader, self._writer = await asyncio.open_connection(host, port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        await asyncio.sleep(0)

    def post(self, fault: str | None = None, **fields: Any) -> None:
        model = {"model": "dall-e-2", "size": "256x256", "response_format": "b64_json"}
        if fields.get("stream"):
            model = {"model": "gpt-image-1"}
        body = json.dumps({"prompt": "a boat", **model, **fields})
        headers = f"{FAULT_HEADER}: {fault}\r\n" if fault else ""
        self._writer.write(
            f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n{headers}"
            f"Authorization: Bearer {self._server.api_key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    async def more(self) -> bytes:
        """Read the next bytes."""
        part = await self._reader.read(1 << 16)
        assert part, "the connection ended"
        self.received += part
        return part

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.received:
            await self.more()
        return self.received

    async def all(self) -> bytes:
        """Read until the server ends the connection."""
        try:
            while part := await self._reader.read(1 << 16):
                self.received += part
        except ConnectionResetError:
            self.reset = True
        return self.received


def address(server: LocalServer) -> tuple[str, int]:
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)


async def post(
    server: LocalServer, fault: str | None = None, **fields: Any
) -> tuple[int, str, bytes]:
    """Return status, media type and body of a POST."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    if fault:
        headers[FAULT_HEADER] = fault
    body = {"model": "gpt-image-1", "prompt": "a boat", **fields}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(
            f"{server.base_url}/images/generations", json=body, allow_redirects=False
        ) as response,
    ):
        return response.status, response.content_type, await response.read()


def names(body: bytes) -> list[str]:
    """Return the event names of a stream."""
    lines = body.decode().splitlines()
    return [line.rpartition(".")[2] for line in lines if line.startswith("event: ")]
