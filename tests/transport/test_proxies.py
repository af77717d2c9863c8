"""Proxies from the environment: which one is used, and what is reported when it fails."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp_socks import ProxyConnector

from elkimg_async import AsyncImages, ConfigurationError, ConnectError
from elkimg_async.config import ProxySettings
from elkimg_async.transport.proxies import proxy_for
from tests.helpers.calls import QUICK, failure, in_both_modes
from tests.helpers.raw_server import API_KEY, PNG, RawServer, response
from tests.transport.test_reverse_proxies import Proxy, free_port, which

PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the proxies of the machine that runs the tests."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)


DIRECT = [
    ("192.0.2.*", "http://192.0.2.9/v1"),
    ("gateway-*.example.test", "http://gateway-1.example.test/v1"),
    ("b\u00fccher.test", "http://xn--bcher-kva.test/v1"),
    ("xn--bcher-kva.test", "http://b\u00fccher.test/v1"),
    ("gateway.example.test:8080", "http://gateway.example.test:8080/v1"),
    ("gateway.example.test:443", "https://gateway.example.test/v1"),
    ("gateway.example.test:80", "http://gateway.example.test/v1"),
    ("192.0.2.0/24", "http://192.0.2.7:8080/v1"),
    ("2001:db8::/32", "http://[2001:db8::7]/v1"),
    ("[2001:db8::]/32", "http://[2001:db8::7]/v1"),
    ("192.0.2.7", "http://192.0.2.7:8080/v1"),
    ("192.0.2.7:8080", "http://192.0.2.7:8080/v1"),
    ("*.example.test", "http://gateway.example.test/v1"),
    (".example.test", "http://gateway.example.test/v1"),
    ("example.test", "http://deep.gateway.example.test/v1"),
    ("EXAMPLE.test.", "http://Gateway.example.TEST/v1"),
    ("gateway.example.test", "http://gateway.example.test./v1"),
    ("*.example.test:8080", "http://gateway.example.test:8080/v1"),
    ("localhost,*", "http://gateway.example.test/v1"),
    ("*:80", "http://gateway.example.test/v1"),
    ("[2001:db8::1]", "http://[2001:db8::1]:8080/v1"),
    ("[2001:db8::1]:8080", "http://[2001:db8::1]:8080/v1"),
    ("2001:db8::1", "http://[2001:DB8:0::1]:8080/v1"),
    ("a.test, gateway.example.test", "http://gateway.example.test/v1"),
    ("a.test gateway.example.test", "http://gateway.example.test/v1"),
    ("http://gateway.example.test", "http://gateway.example.test/v1"),
    ("", "http://localhost:8000/v1"),
    ("", "http://127.0.0.1:8000/v1"),
    ("", "http://[::1]:8000/v1"),
]
PROXIED = [
    ("192.0.2.*", "http://192.0.3.9/v1"),
    ("gateway.example.test:8080", "http://gateway.example.test:8081/v1"),
    ("192.0.2.0/24", "http://192.0.3.7/v1"),
    ("192.0.2.0/24", "http://gateway.example.test/v1"),
    ("192.0.2.0/33", "http://192.0.2.7/v1"),
    ("*.example.test", "http://badexample.test/v1"),
    ("example.test", "http://badexample.test/v1"),
    ("[2001:db8::1]:8080", "http://[2001:db8::1]/v1"),
    ("2.7", "http://192.0.2.7/v1"),
    (",, ,", "http://gateway.example.test/v1"),
    ("", "http://gateway.example.test/v1"),
]


@pytest.mark.parametrize(("no_proxy", "url"), DIRECT)
def test_no_proxy_matches(no_proxy: str, url: str) -> None:
    """NO_PROXY takes ports, networks, suffixes, IPv6 and lists with `*`."""
    assert proxy_for(url, ProxySettings({"http": PROXY, "https": PROXY}, no_proxy)) is None


@pytest.mark.parametrize(("no_proxy", "url"), PROXIED)
def test_no_proxy_does_not_match(no_proxy: str, url: str) -> None:
    """Entries that name something else leave a request to the proxy."""
    assert proxy_for(url, ProxySettings({"http": PROXY}, no_proxy)) == PROXY


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of the scheme is used, else that for all."""
    assert proxy_for("https://api.elkapi.com/v1") is None
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.setenv("ALL_PROXY", "proxy:2")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert proxy_for("https://api.elkapi.com/v1") == "http://proxy:1"
    assert proxy_for("http://api.elkapi.com/v1") == "http://proxy:2"
    assert proxy_for("http://127.0.0.1:8000/v1") is None
    monkeypatch.setenv("https_proxy", "")
    assert proxy_for("https://api.elkapi.com/v1") == "http://proxy:2"


@pytest.mark.parametrize(
    "written", ["127.0.0.1:{}", "//127.0.0.1:{}", "http://127.0.0.1:{}", " 127.0.0.1:{}/ "]
)
async def test_proxy_without_a_scheme(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """A proxy is an HTTP proxy unless it says otherwise."""
    monkeypatch.setenv("HTTP_PROXY", written.format(raw_server.port))
    async with AsyncImages(API_KEY, base_url="http://gateway.example.test/v1", retry=0) as client:
        assert (await client.generate("a boat"))[0].content == PNG
    assert raw_server.requests[0].target == "http://gateway.example.test/v1/images/generations"


@pytest.mark.skipif(which("tinyproxy") is None, reason="tinyproxy is not installed")
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_proxy_that_closes_after_each_response(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, concurrency: int
) -> None:
    """Through a real tinyproxy, of a hundred calls at most the first in flight are lost."""
    async with Proxy("tinyproxy", tmp_path).before(raw_server.port) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        base_url = "http://gateway.example.test/v1"
        async with (
            AsyncImages(API_KEY, base_url=base_url) as client,
            client.map(map(str, range(100)), concurrency=concurrency) as run,
        ):
            lost = [item.index async for item in run if not item.ok]
            assert len(lost) <= concurrency
            assert all(index < 2 * concurrency for index in lost)
            for _ in range(10):
                await client.generate("a boat")


@pytest.mark.parametrize("scheme", ["socks", "socks4", "socks4a", "socks5", "SOCKS5h"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "http_proxy"])
async def test_socks_proxy(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    """A SOCKS proxy fails before anything is written, naming the variable and the remedy."""
    monkeypatch.setenv(variable, f"{scheme}://user:hush@127.0.0.1:{raw_server.port}")
    async with AsyncImages(API_KEY, base_url="http://gateway.example.test/v1") as client:
        error = await failure(ConfigurationError, client)
    assert variable in str(error)
    assert "aiohttp-socks" in str(error)
    assert "hush" not in str(error)
    assert (error.billing, raw_server.accepted) == ("not_sent", 0)


async def test_socks_proxy_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A borrowed session with aiohttp-socks works although the variable is set."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    port = free_port()
    connector: Any = ProxyConnector.from_url(f"socks5://127.0.0.1:{port}")
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        AsyncImages(
            API_KEY, base_url="http://gateway.example.test/v1", session=session, retry=QUICK
        ) as client,
    ):
        error = await failure(ConnectError, client)
    assert f"127.0.0.1:{port}" in str(error)  # nothing listens there
    assert (error.billing, error.attempts) == ("not_sent", 3)


@pytest.mark.parametrize("proxy", ["http://proxy:port", "ftp://proxy:1", "http://", "http://:1"])
async def test_proxy_url_that_is_wrong(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A proxy URL that cannot be used names its variable."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    async with AsyncImages(API_KEY, base_url="http://gateway.example.test/v1") as client:
        error = await failure(ConfigurationError, client)
    assert "HTTP_PROXY" in str(error)


@in_both_modes
@pytest.mark.parametrize("status", [403, 407, 502])
async def test_proxy_rejects_connect(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch, status: int, streaming: bool
) -> None:
    """A rejected CONNECT is reported once with its status; 407 advises on credentials."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:hush@127.0.0.1:{raw_server.port}")
    raw_server.reply_with(response(b"", status=status, Connection="close"))
    async with AsyncImages(API_KEY, base_url="https://api.third.test/v1", retry=QUICK) as client:
        error = await failure(ConnectError, client, streaming)
    assert f"127.0.0.1:{raw_server.port} rejected the connection to api.third.test" in str(error)
    assert f"status {status}" in str(error)
    assert ("user and password" in str(error)) is (status == 407)
    assert "hush" not in str(error)
    assert (error.phase, error.billing, error.attempts) == ("proxy", "not_sent", 1)
    assert [request.method for request in raw_server.requests] == ["CONNECT"]
    assert API_KEY not in str(raw_server.requests)


async def test_proxy_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that cannot be reached is named, and not the server."""
    port = free_port()
    monkeypatch.setenv("HTTP_PROXY", f"http://user:hush@127.0.0.1:{port}")
    async with AsyncImages(API_KEY, base_url="http://api.third.test/v1", retry=QUICK) as client:
        error = await failure(ConnectError, client)
    assert f"The proxy 127.0.0.1:{port} cannot be reached" in str(error)
    assert "hush" not in str(error)
    assert (error.billing, error.attempts) == ("not_sent", 3)
