"""The faults of the local server, seen by clients over real connections."""

import asyncio
import json
from typing import Any

import pytest

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import FAULTS, Fault, LocalServer, parse
from elkimg_async.local.script import ScriptedResponse
from tests.helpers.raw_post import Raw, address, names, post

NOT_GENERATING = {
    "refuse",
    "rate-limit",
    "error",
    "redirect",
    "error-body",
    "status-402",
    "web-page",
}
"""The faults without a generation."""


def test_parse_round_trip() -> None:
    """`parse` reads the text of a fault."""
    faults = {
        "empty": Fault("empty"),
        "error=502*3": Fault("error", "502", 3),
        "stall-body*": Fault("stall-body", None, None),
        "split=1,2,3": Fault("split", "1,2,3"),
        "body=a=b\nc*2": Fault("body", "a=b\nc", 2),
    }
    for text, fault in faults.items():
        assert parse(text) == fault
        assert str(fault) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no-such",
        "=",
        "empty=much",
        "error=99",
        "drip=soon",
        "drip=nan",
        "trickle=0",
        "none=1",
        "empty*0",
        "split=0",
        "empty=200=3",
    ],
)
def test_parse_invalid(text: str) -> None:
    """An unknown name or a wrong argument is a configuration error."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert str(caught.value).endswith(".")


def test_numbers_as_arguments() -> None:
    """In Python an argument may be a number."""
    assert Fault("stall-body", 100).value() == 100
    assert Fault("drip", 0.5).value() == 0.5


@pytest.mark.parametrize("name", FAULTS)
def test_descriptions(name: str) -> None:
    """Each fault has one line of help, and says whether nothing is generated."""
    assert FAULTS[name]
    assert "\n" not in FAULTS[name]
    assert ("nothing is generated" in FAULTS[name]) is (name in NOT_GENERATING)
    assert Fault(name).generates is (name not in NOT_GENERATING)


async def test_list_order() -> None:
    """Each POST takes the next fault of the list, as often as it says; then all are correct."""
    faults: list[Fault | str] = ["error=502*2", Fault("rate-limit"), "none", "empty"]
    async with LocalServer(light=True, faults=faults) as server:
        statuses = [(await post(server))[0] for _ in range(6)]
        assert statuses == [502, 502, 429, 200, 200, 200]
        assert [str(seen.fault or "") for seen in server.requests] == [
            "error=502*2",
            "error=502",
            "rate-limit",
            "none",
            "empty",
            "",
        ]
        assert server.generations == 3


async def test_for_ever() -> None:
    """A fault with `*` applies to every POST."""
    async with LocalServer(light=True, faults=["rate-limit*"]) as server:
        assert {(await post(server))[0] for _ in range(4)} == {429}


async def test_header_goes_first(server: LocalServer) -> None:
    """A fault in the header goes before the list."""
    server.inject("error=502")
    assert (await post(server, "error=503"))[0] == 503
    assert (await post(server))[0] == 502
    assert (await post(server))[0] == 200


async def test_header_unknown_fault(server: LocalServer) -> None:
    """An unknown fault in the header is an error that lists the faults."""
    status, _, body = await post(server, "no-such")
    assert status == 400
    assert json.loads(body)["error"]["code"] == "unknown_fault"
    assert b"stall-body" in body


def test_list_is_checked_at_once() -> None:
    """An unknown fault in the list is an error at once."""
    with pytest.raises(ConfigurationError, match="no-such"):
        LocalServer(faults=["no-such"])


@pytest.mark.parametrize("name", sorted(NOT_GENERATING - {"refuse"}))
async def test_fault_without_generation(server: LocalServer, name: str) -> None:
    """Faults before the generation paint nothing."""
    await post(server, name)
    assert server.generations == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_an_error_response(name: str, stream: bool) -> None:
    """Every fault can apply to an error response and to an empty stream."""
    framing: Any = "chunked" if stream else "length"
    frames = () if stream else (b'{"error":{}}',)
    script = Fault(name).apply(ScriptedResponse(headers={"A": "b"}, frames=frames, framing=framing))
    assert next(script) is not None


async def test_refuse_from_the_start() -> None:
    """With `refuse` first in the list, the server does not listen until its time is over."""
    async with LocalServer(light=True, faults=["refuse=0.05", "error=502"]) as server:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address(server))
        await server.wait_until(lambda: server.listening)
        assert (await post(server))[0] == 502


async def test_refuse_later(server: LocalServer) -> None:
    """A later `refuse` closes the port after the fault before it."""
    server.inject("none", "refuse")
    assert (await post(server))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address(server))
    assert server.generations == 1


async def test_refuse_by_header(server: LocalServer) -> None:
    """`refuse` in a header resets its connection and closes the port."""
    async with Raw(server) as raw:
        raw.post("refuse=0.05")
        assert await raw.all() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address(server))
    await server.wait_until(lambda: server.listening)
    assert (await post(server))[0] == 200


async def test_reset_before_headers(server: LocalServer) -> None:
    """The connection is reset before the first byte."""
    async with Raw(server) as raw:
        raw.post("reset-before-headers")
        assert await raw.all() == b""
        assert raw.reset
    assert server.generations == 1
    assert server.requests[-1].outcome == "cut"


async def test_close_before_headers(server: LocalServer) -> None:
    """The connection is closed before the first byte."""
    async with Raw(server) as raw:
        raw.post("close-before-headers")
        assert await raw.all() == b""
        assert not raw.reset


async def test_reset_in_headers(server: LocalServer) -> None:
    """The connection is reset within the headers."""
    async with Raw(server) as raw:
        raw.post("reset-in-headers")
        assert b"\r\n\r\n" not in await raw.all()
        assert raw.reset


@pytest.mark.parametrize("stream", [False, True])
async def test_reset_in_body(server: LocalServer, stream: bool) -> None:
    """The connection is reset after the requested bytes of the body."""
    async with Raw(server) as raw:
        raw.post("reset-in-body=40", stream=stream)
        assert len((await raw.all()).partition(b"\r\n\r\n")[2]) <= 40
        assert raw.reset


@pytest.mark.parametrize(
    ("name", "framing"),
    [
        ("truncate-length", b"Content-Length:"),
        ("truncate-chunked", b"Transfer-Encoding: chunked"),
        ("truncate-close", b"Connection: close"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_truncate(server: LocalServer, name: str, framing: bytes, stream: bool) -> None:
    """In each framing, the body is too short and the connection ends cleanly."""
    async with Raw(server) as raw:
        raw.post(f"{name}=100", stream=stream)
        head, _, body = (await raw.all()).partition(b"\r\n\r\n")
    assert framing in head
    assert len(body) == 100
    assert not raw.reset


@pytest.mark.parametrize("stream", [False, True])
async def test_stall_headers(server: LocalServer, stream: bool) -> None:
    """The image is generated, nothing is sent, and the connection stays open."""
    async with Raw(server) as raw:
        raw.post("stall-headers", stream=stream)
        await server.wait_until(lambda: server.generations == 1)
        assert server.requests[-1].outcome == "open"
        assert raw.received == b""
    await server.wait_disconnected()


@pytest.mark.parametrize("stream", [False, True])
async def test_stall_body(server: LocalServer, stream: bool) -> None:
    """The body stalls after the requested bytes."""
    async with Raw(server) as raw:
        raw.post("stall-body=3", stream=stream)
        body = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[2]
        assert len(body) <= 3
        assert server.requests[-1].outcome == "open"
    await server.wait_disconnected()


async def test_stall_stream(server: LocalServer) -> None:
    """The stream stalls after the requested events."""
    async with Raw(server) as raw:
        raw.post("stall-stream=2", stream=True, partial_images=3)
        await raw.until(b'"partial_image_index":1}\n\n')
        assert names(raw.received) == ["partial_image"] * 2
        assert server.requests[-1].outcome == "open"
    await server.wait_disconnected()


async def test_keep_alive_close(server: LocalServer) -> None:
    """The response is complete and does not announce the end of the connection."""
    async with Raw(server) as raw:
        raw.post("keep-alive-close")
        head, _, body = (await raw.all()).partition(b"\r\n\r\n")
    assert b"Connection: close" not in head
    assert "data" in json.loads(body)
    assert not raw.reset


@pytest.mark.parametrize("fault", ["trickle", "trickle=7", "split", "split=1,20,300,999999999"])
async def test_split_response_is_complete(server: LocalServer, fault: str) -> None:
    """The chunks add up to the complete response."""
    async with Raw(server) as raw:
        raw.post(fault)
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(raw.received) < len(head) + 4 + length:
            await raw.more()
        assert json.loads(raw.received[len(head) + 4 :])["data"][0]["b64_json"]


async def test_split_response_arrives_in_chunks(server: LocalServer) -> None:
    """A reader in the same event loop reads one chunk at a time."""
    async with Raw(server) as raw:
        raw.post("split=5,9")
        pieces = [await raw.more() for _ in range(2)]
    assert pieces == [b"HTTP/", b"1.1 "]


async def test_drip(server: LocalServer) -> None:
    """The body arrives byte by byte with the requested pause."""
    async with Raw(server) as raw:
        raw.post("drip=60")
        body = (await raw.until(b"{")).partition(b"\r\n\r\n")[2]
        assert body == b"{"


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("endless-pings", b": PING\n\n"),
        ("endless-headers", b"X-Endless: "),
        ("endless-interim", b"HTTP/1.1 102"),
    ],
)
async def test_endless(server: LocalServer, name: str, mark: bytes) -> None:
    """Endless responses end when the client leaves."""
    async with Raw(server) as raw:
        raw.post(name if name == "endless-headers" else f"{name}=0", stream=True)
        while raw.received.count(mark) < 500:
            await raw.more()
        assert b"image_generation" not in raw.received
    await server.wait_disconnected()
