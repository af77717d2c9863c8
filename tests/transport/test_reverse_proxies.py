"""Through a real nginx and a real haproxy, as they stand before most servers."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import anyio.abc
import pytest

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    ElkImagesError,
    PartialImage,
    ServerError,
    StreamIncompleteError,
    Timeout,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    BODY,
    COMPLETED,
    GOOD,
    PARTIAL,
    QUICK,
    failure,
    failure_of_any_kind,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import API_KEY, DONE, End, RawServer, open_stream

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 1s; proxy_connect_timeout 1s;
        }}
    }}
}}
"""

HAPROXY = """
global
    maxconn 64
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 1s
    retries 0
listen all
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{upstream}
"""

TINYPROXY = """
Port {port}
Listen 127.0.0.1
LogFile "{folder}/tinyproxy.requests"
Upstream http 127.0.0.1:{upstream}
"""

COMMANDS: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "nginx": (
        NGINX,
        lambda file: [
            "-c", str(file), "-p", str(file.parent), "-e", str(file.parent / "error.log"),
        ],
    ),
    "haproxy": (HAPROXY, lambda file: ["-db", "-f", str(file)]),
    "tinyproxy": (TINYPROXY, lambda file: ["-d", "-c", str(file)]),
}  # fmt: skip


class Proxy:
    """A proxy that runs in front of `upstream`, a port, or forwards to it as a further proxy."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self.port = free_port()
        self._log = folder / f"{name}.log"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def before(self, upstream: int) -> AsyncIterator["Proxy"]:
        """Run in the foreground, until the end of the block."""
        config, arguments = COMMANDS[self._name]
        file = self._folder / f"{self._name}.conf"
        file.write_text(config.format(folder=self._folder, port=self.port, upstream=upstream))
        program = which(self._name)
        assert program is not None
        with self._log.open("wb") as log:
            process = await anyio.open_process(
                [program, *arguments(file)], stdout=log, stderr=subprocess.STDOUT
            )
        async with process:
            try:
                await self._wait(process)
                yield self
            finally:
                process.terminate()

    async def _wait(self, process: anyio.abc.Process) -> None:
        with anyio.fail_after(10):
            while process.returncode is None:
                try:
                    stream = await anyio.connect_tcp("127.0.0.1", self.port)
                except OSError:
                    await anyio.sleep(0.01)  # it does not report when it listens
                    continue
                await stream.aclose()
                return
        pytest.fail(self._log.read_text())


def which(name: str) -> str | None:
    """The path of the program, which Debian installs outside of a user's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Proxy:
    """Each of the two proxies, not started."""
    if which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return Proxy(request.param, tmp_path)


@in_both_modes
async def test_complete_response(proxy: Proxy, streaming: bool) -> None:
    """Successive calls work as without a proxy, on one connection."""
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        port = int(server.base_url.split(":")[2].removesuffix("/v1"))
        async with proxy.before(port), AsyncImages(API_KEY, base_url=proxy.base_url) as client:
            for _ in range(3):
                events, result = await run_call(client, streaming)
                assert len(result) == 1
                assert [type(each) for each in events] == [PartialImage, CompletedImage][
                    : 2 * streaming
                ]
                assert result.meta is not None
                assert result.meta.request_id == server.requests[-1].request_id
        assert server.generations == 3


async def test_partial_image_arrives_before_the_end(proxy: Proxy) -> None:
    """A partial image is delivered while the server still works on the rest."""
    held = asyncio.Event()
    async with RawServer() as raw_server:
        start = open_stream(PARTIAL)
        rest = [piece for piece in open_stream(COMPLETED, DONE)[1:] if isinstance(piece, bytes)]
        raw_server.reply_with([*start, held, *rest, b"0\r\n\r\n"])
        async with (
            proxy.before(raw_server.port),
            AsyncImages(API_KEY, base_url=proxy.base_url) as client,
            client.generate("a boat", stream=True) as stream,
        ):
            assert isinstance(await anext(stream), PartialImage)
            held.set()
            assert len(await stream.result()) == 1


@in_both_modes
async def test_upstream_dies_within_the_body(proxy: Proxy, streaming: bool) -> None:
    """An upstream lost within the body leaves the outcome unknown; the call is not retried."""
    async with RawServer() as raw_server:
        half = open_stream(PARTIAL, COMPLETED[:40]) if streaming else open_stream(BODY[:200])
        raw_server.reply_with([*half, End.CLOSE])
        async with (
            proxy.before(raw_server.port),
            AsyncImages(API_KEY, base_url=proxy.base_url, retry=QUICK, timeout=10) as client,
        ):
            error = await failure_of_any_kind(client, streaming)
        assert (error.billing, error.attempts, len(raw_server.requests)) == ("unknown", 1, 1)


async def test_upstream_ends_a_stream_cleanly(proxy: Proxy) -> None:
    """A stream that ends early without a stated length is incomplete for the client."""
    async with RawServer() as raw_server:
        raw_server.reply_with(
            [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", PARTIAL, End.CLOSE]
        )
        async with (
            proxy.before(raw_server.port),
            AsyncImages(API_KEY, base_url=proxy.base_url) as client,
        ):
            error = await failure(StreamIncompleteError, client, streaming=True)
        assert len(error.partials) == 1
        assert (error.billing, error.attempts, len(raw_server.requests)) == ("unknown", 1, 1)


@in_both_modes
async def test_upstream_is_down(proxy: Proxy, streaming: bool) -> None:
    """The proxy's own error page is a ServerError with its status, and is not retried."""
    async with (
        proxy.before(free_port()),
        AsyncImages(API_KEY, base_url=proxy.base_url, retry=QUICK) as client,
    ):
        error = await failure_of_any_kind(client, streaming)
    assert isinstance(error, ServerError)
    assert error.status in (502, 503)
    expected = ("unknown", 1) if error.status == 502 else ("refused", 3)
    assert (error.billing, error.attempts) == expected


@in_both_modes
async def test_upstream_stalls(proxy: Proxy, streaming: bool) -> None:
    """A proxy's timeout is a ServerError; the image may exist, so the call is not retried."""
    async with RawServer([End.HOLD]) as raw_server:
        async with (
            proxy.before(raw_server.port),
            AsyncImages(API_KEY, base_url=proxy.base_url, retry=QUICK) as client,
        ):
            error = await failure(ServerError, client, streaming)
        assert error.status == 504
        assert (error.billing, error.attempts, len(raw_server.requests)) == ("unknown", 1, 1)


@in_both_modes
async def test_upstream_stalls_within_the_body(proxy: Proxy, streaming: bool) -> None:
    """A response cut off by the proxy leaves the outcome unknown; the call is not retried."""
    async with RawServer() as raw_server:
        raw_server.reply_with([*open_stream(PARTIAL if streaming else BODY[:200]), End.HOLD])
        async with (
            proxy.before(raw_server.port),
            AsyncImages(API_KEY, base_url=proxy.base_url, timeout=Timeout(total=10)) as client,
        ):
            error = await failure_of_any_kind(client, streaming)
        assert isinstance(error, ElkImagesError)
        assert not isinstance(error, TimeoutError)
        assert (error.billing, error.attempts, len(raw_server.requests)) == ("unknown", 1, 1)


async def test_leaving_a_stream_reaches_the_upstream(proxy: Proxy) -> None:
    """When a client disconnects, the proxy also disconnects from the upstream."""
    async with RawServer() as raw_server:
        raw_server.reply_with([*open_stream(PARTIAL), End.HOLD])
        async with (
            proxy.before(raw_server.port),
            AsyncImages(API_KEY, base_url=proxy.base_url) as client,
        ):
            async with client.generate("a boat", stream=True) as stream:
                assert isinstance(await anext(stream), PartialImage)
            await raw_server.wait_disconnected()
            raw_server.reply_with(GOOD)
            assert len(await client.generate("a boat")) == 1
