"""The event loop of the command and of Ray workers, with and without the extra `fast`."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elkimg_async import AsyncImages
from elkimg_async.cli.interrupts import run
from elkimg_async.local import LocalServer
from elkimg_async.transport import event_loop
from tests.helpers.command import SMALL, started

needs_fast = pytest.mark.skipif(
    importlib.util.find_spec("aiofastnet") is None, reason="aiofastnet is not installed"
)
needs_uvloop = pytest.mark.skipif(
    importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"
)
GENERATE = """
import sys
{before}
from elkimg_async.cli import main
code = main()
print("fast" if sys.modules.get("aiofastnet") else "plain", file=sys.stderr)
sys.exit(code)
"""


async def transport_module() -> str:
    """Return the module of the transports of the running loop."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        module = type(transport).__module__
        transport.close()
        await asyncio.sleep(0)
    return module


async def generate_image() -> bytes:
    """Return an image of a local server."""
    async with LocalServer(light=True, delay=0) as server:
        url, api_key = server.base_url, server.api_key
        async with AsyncImages(base_url=url, api_key=api_key) as client:
            async with client.generate("A kitten", stream=True) as stream:
                async for _ in stream:
                    pass
            return await (await client.generate("A kitten"))[0].read()


@needs_fast
def test_run_with_aiofastnet() -> None:
    """With aiofastnet connections use its transports."""
    assert run(transport_module).startswith("aiofastnet")
    assert run(generate_image)


def test_run_without_aiofastnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without aiofastnet the loop is asyncio's own."""
    monkeypatch.setitem(sys.modules, "aiofastnet", None)
    assert event_loop.loop_factory() is None
    assert run(transport_module).startswith("asyncio")
    assert run(generate_image)


@needs_uvloop
@pytest.mark.parametrize("fast", [False, pytest.param(True, marks=needs_fast)])
def test_client_on_uvloop(fast: bool) -> None:
    """The client works on uvloop, also with aiofastnet's transports on it."""
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    if fast:
        import aiofastnet

        factory = aiofastnet.loop_factory(factory)
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(generate_image())


@pytest.mark.parametrize(
    ("before", "loop"),
    [
        pytest.param("", "fast", marks=needs_fast),
        ("sys.modules['aiofastnet'] = None", "plain"),
    ],
)
async def test_command_event_loop(tmp_path: Path, before: str, loop: str) -> None:
    """The command uses aiofastnet where it is installed, and works without it."""
    code = GENERATE.format(before=before)
    arguments = ("generate", "A kitten", *SMALL, "-o", "kitten.png")
    async with started(*arguments, folder=tmp_path, code=code) as command:
        ended = await command.ended()
    assert ended.code == 0
    assert ended.err.endswith(f"{loop}\n")
    assert (tmp_path / "kitten.png").read_bytes()
