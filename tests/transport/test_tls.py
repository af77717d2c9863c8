"""TLS: good and bad certificates, over real sockets."""

import datetime
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import anyio
import pytest
import trustme

import elkimg_async
from elkimg_async import AsyncImages, ConnectError
from elkimg_async.local import LocalServer
from tests.helpers.calls import QUICK, failure, in_both_modes, run_call
from tests.helpers.raw_server import API_KEY

HOME = os.pathsep.join([str(Path(elkimg_async.__file__).parent.parent), *sys.path])
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The authority that the client trusts."""
    return trustme.CA()


@pytest.fixture
async def session(authority: trustme.CA) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that trusts it."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


def server_with(certificate: trustme.LeafCert) -> LocalServer:
    """A local server that shows this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return LocalServer(api_key=API_KEY, light=True, delay=0, ssl_context=context)


def expired(authority: trustme.CA) -> trustme.LeafCert:
    """An expired certificate."""
    return authority.issue_cert(
        "127.0.0.1", not_before=PAST, not_after=PAST + datetime.timedelta(days=1)
    )


def of_another_host(authority: trustme.CA) -> trustme.LeafCert:
    """A certificate for another name."""
    return authority.issue_cert("api.example.com")


def untrusted(authority: trustme.CA) -> trustme.LeafCert:
    """Return a certificate of an unknown authority."""
    return trustme.CA().issue_cert("127.0.0.1")


@in_both_modes
async def test_good_certificate(
    authority: trustme.CA, session: aiohttp.ClientSession, streaming: bool
) -> None:
    """A call succeeds with a certificate of a trusted authority."""
    async with server_with(authority.issue_cert("127.0.0.1")) as server:
        assert server.base_url.startswith("https://")
        async with AsyncImages(
            API_KEY, base_url=server.base_url, session=session, timeout=10
        ) as client:
            _, result = await run_call(client, streaming)
            assert len(result) == 1
            assert server.connections == 1


@in_both_modes
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (expired, "certificate has expired"),
        (of_another_host, "IP address mismatch"),
        (untrusted, "unable to get local issuer certificate"),
    ],
    ids=["expired", "wrong-host", "unknown-authority"],
)
async def test_bad_certificate(
    authority: trustme.CA,
    session: aiohttp.ClientSession,
    make: Callable[[trustme.CA], trustme.LeafCert],
    reason: str,
    streaming: bool,
) -> None:
    """An invalid certificate is a ConnectError that says why; nothing was sent."""
    async with server_with(make(authority)) as server:
        async with AsyncImages(
            API_KEY, base_url=server.base_url, session=session, retry=QUICK
        ) as client:
            error = await failure(ConnectError, client, streaming)
        assert reason in str(error)
        assert "Check the server's certificate" in str(error)
        assert "base URL" not in str(error)
        assert server.base_url.split("/")[2] in str(error)
        assert (error.billing, error.phase) == ("not_sent", "tls")
        assert not server.requests
        await server.wait_until(lambda: server.connections == 0)


async def test_unknown_authority_without_a_session(authority: trustme.CA) -> None:
    """The client's own pool checks certificates too."""
    async with server_with(authority.issue_cert("127.0.0.1")) as server:
        async with AsyncImages(API_KEY, base_url=server.base_url, retry=0) as client:
            error = await failure(ConnectError, client)
        assert "certificate verify failed" in str(error)
        assert error.billing == "not_sent"
        assert not server.requests


SCRIPT = """
import asyncio, sys
from elkimg_async import AsyncImages

async def main():
    async with AsyncImages(sys.argv[1], base_url=sys.argv[2]) as client:
        print(len(await client.generate("a boat")), "image")

asyncio.run(main())
"""


async def test_authority_of_the_environment(authority: trustme.CA, tmp_path: Path) -> None:
    """SSL_CERT_FILE names the authorities that the client's own pool trusts."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    async with server_with(authority.issue_cert("127.0.0.1")) as server:
        done = await anyio.run_process(
            [sys.executable, "-W", "error", "-c", SCRIPT, API_KEY, server.base_url],
            env={**os.environ, "SSL_CERT_FILE": str(file), "PYTHONPATH": HOME},
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.stdout.decode() == "1 image\n"
        assert server.generations == 1
