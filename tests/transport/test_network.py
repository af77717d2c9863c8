"""Addresses: which are public, and how long connecting to one may take."""

import itertools
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from aiohttp.abc import AbstractResolver

from elkimg_async import AsyncImages, RequestTimeoutError, Timeout
from elkimg_async.transport.network import PublicResolver, is_public
from tests.helpers.calls import QUICK, SOON, failure, in_both_modes, run_call
from tests.helpers.raw_server import API_KEY, End, RawServer

NAME = "hangs.example"

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "[::1]", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254",
]  # fmt: skip
TUNNELS = [
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "::127.0.0.1",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    """Private, loopback, link-local, shared, reserved and multicast are not public."""
    assert not is_public(address)


@pytest.mark.parametrize("address", TUNNELS)
def test_private_addresses_in_tunnels(address: str) -> None:
    """An IPv6 address that carries a private IPv4 address is private."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    """Public addresses are recognised."""
    assert is_public(address)


async def test_public_resolver() -> None:
    """The resolver rejects a name as soon as one of its addresses is private, and says why."""
    resolver = PublicResolver()
    assert isinstance(resolver, AbstractResolver)
    for name, family in itertools.product(
        ("localhost", "127.0.0.1"), (socket.AF_UNSPEC, socket.AF_INET)
    ):
        with pytest.raises(OSError, match="private address"):
            await resolver.resolve(name, 80, family)
    await resolver.close()


# --- the way to them --------------------------------------------------------


@pytest.fixture
def look_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make the lookup of one name hang until the event is set."""
    gate, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: Any, *others: Any, **more: Any) -> Any:
        if host != NAME:
            return real(host, *others, **more)
        gate.wait(60)
        return real("127.0.0.1", *others, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield gate
    gate.set()


@in_both_modes
async def test_look_up_that_hangs(look_up: threading.Event, streaming: bool) -> None:
    """A name lookup is part of connecting: limited by `connect`, and tried again."""
    timeout = Timeout(connect=0.1)
    async with AsyncImages(
        API_KEY, base_url=f"http://{NAME}/v1", timeout=timeout, retry=QUICK
    ) as client:
        started = time.monotonic()
        error = await failure(RequestTimeoutError, client, streaming)
        took = time.monotonic() - started
    look_up.set()  # the end of the loop waits for the thread
    assert (error.limit, error.phase, error.billing) == ("connect", "connect", "not_sent")
    assert error.attempts == 3
    assert took < SOON


async def test_look_up_is_limited_for_each_call(
    look_up: threading.Event, raw_server: RawServer
) -> None:
    """Calls that wait for the same name lookup have limits of their own; a longer one suffices."""
    base_url = f"http://{NAME}:{raw_server.port}/v1"
    done: list[str] = []
    async with (
        AsyncImages(API_KEY, base_url=base_url, retry=0) as client,
        anyio.create_task_group() as group,
    ):

        async def hurried() -> None:
            error = await failure(RequestTimeoutError, client, timeout=Timeout(connect=0.1))
            done.append(str(error.limit))
            look_up.set()

        async def patient() -> None:
            await run_call(client, timeout=Timeout(connect=math.inf))
            done.append("arrived")

        group.start_soon(hurried)
        group.start_soon(patient)
    assert done == ["connect", "arrived"]
    assert len(raw_server.requests) == 1


async def test_proxy_that_stalls(raw_server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a proxy to open the tunnel is part of connecting."""
    raw_server.reply_with([End.HOLD])
    monkeypatch.setenv("https_proxy", raw_server.origin)
    monkeypatch.delenv("no_proxy", raising=False)
    timeout = Timeout(connect=0.2)
    async with AsyncImages(
        API_KEY, base_url="https://api.example/v1", timeout=timeout, retry=0
    ) as client:
        error = await failure(RequestTimeoutError, client)
    assert (error.limit, error.billing) == ("connect", "not_sent")
    assert raw_server.requests[0].method == "CONNECT"
    assert API_KEY not in str(raw_server.requests)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's queue of connections")
async def test_name_with_several_dead_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` limits all addresses of a name together, not each of them."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # room for one; the kernel does not complete further connections
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        found = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found] * 3)
        base_url, timeout = f"http://{NAME}:{port}/v1", Timeout(connect=SOON / 5)
        async with AsyncImages(API_KEY, base_url=base_url, timeout=timeout, retry=0) as client:
            started = time.monotonic()
            error = await failure(RequestTimeoutError, client)
            assert time.monotonic() - started < SOON / 2  # of three addresses: 3 / 5
    assert error.limit == "connect"
