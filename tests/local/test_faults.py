"""The faults of the local server, each seen from the other end of a real connection."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from elkimg_async.errors import ConfigurationError
from elkimg_async.local import FAULT_HEADER, FAULTS, Fault, LocalServer, parse
from elkimg_async.local.script import ScriptedResponse

FREE = {"refuse", "rate-limit", "error", "redirect"}
"""The faults that make nothing."""


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


class Raw:
    """One POST on a connection of its own, and what came back before it ended."""

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

    def ask(self, fault: str | None = None, **fields: Any) -> None:
        order = {"model": "dall-e-2", "size": "256x256", "response_format": "b64_json"}
        if fields.get("stream"):
            order = {"model": "gpt-image-1"}
        body = json.dumps({"prompt": "a boat", **order, **fields})
        headers = f"{FAULT_HEADER}: {fault}\r\n" if fault else ""
        self._writer.write(
            f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n{headers}"
            f"Authorization: Bearer {self._server.api_key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    async def more(self) -> bytes:
        """The next bytes, as many as are there."""
        part = await self._reader.read(1 << 16)
        assert part, "the connection ended before that"
        self.received += part
        return part

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.received:
            await self.more()
        return self.received

    async def all(self) -> bytes:
        """Whatever comes until the server ends the connection."""
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
    """Status, media type and body of a POST by a well-behaved client."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    if fault:
        headers[FAULT_HEADER] = fault
    order = {"model": "gpt-image-1", "prompt": "a boat", **fields}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(
            f"{server.base_url}/images/generations", json=order, allow_redirects=False
        ) as answer,
    ):
        return answer.status, answer.content_type, await answer.read()


def names(body: bytes) -> list[str]:
    """The names of the events of a stream."""
    lines = body.decode().splitlines()
    return [line.rpartition(".")[2] for line in lines if line.startswith("event: ")]


# --- what a fault is --------------------------------------------------------


def test_parse_round_trip() -> None:
    """A fault's text is what `parse` reads."""
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
def test_parse_refuses(text: str) -> None:
    """What names no fault, or not its argument, is a configuration error in one sentence."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert str(caught.value).endswith(".")


def test_numbers_as_arguments() -> None:
    """In Python an argument may be a number."""
    assert Fault("stall-body", 100).value() == 100
    assert Fault("drip", 0.5).value() == 0.5


@pytest.mark.parametrize("name", FAULTS)
def test_descriptions(name: str) -> None:
    """Each fault has one line of help, and says whether nothing is made."""
    assert FAULTS[name]
    assert "\n" not in FAULTS[name]
    assert ("nothing is made" in FAULTS[name]) is (name in FREE)
    assert Fault(name).makes is (name not in FREE)


# --- how it is chosen -------------------------------------------------------


async def test_list_is_played_in_order() -> None:
    """Each POST takes the next fault of the list, as often as it says; then all is well."""
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
    """A fault without an end is played for each POST."""
    async with LocalServer(light=True, faults=["rate-limit*"]) as server:
        assert {(await post(server))[0] for _ in range(4)} == {429}


async def test_header_goes_first(server: LocalServer) -> None:
    """The fault of a header is played for its POST, and the list waits."""
    server.inject("error=502")
    assert (await post(server, "error=503"))[0] == 503
    assert (await post(server))[0] == 502
    assert (await post(server))[0] == 200


async def test_header_that_names_no_fault(server: LocalServer) -> None:
    """A mistake in the header is an error that names the faults."""
    status, _, body = await post(server, "no-such")
    assert status == 400
    assert json.loads(body)["error"]["code"] == "unknown_fault"
    assert b"stall-body" in body


def test_list_is_checked_at_once() -> None:
    """A mistake in the list is an error when the server is made."""
    with pytest.raises(ConfigurationError, match="no-such"):
        LocalServer(faults=["no-such"])


@pytest.mark.parametrize("name", sorted(FREE - {"refuse"}))
async def test_nothing_is_made(server: LocalServer, name: str) -> None:
    """Where the server refuses, nothing has been painted."""
    await post(server, name)
    assert server.generations == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_refused_answers_can_be_spoiled(name: str, stream: bool) -> None:
    """Every fault copes with an answer that is an error, and with a stream of nothing."""
    framing: Any = "chunked" if stream else "length"
    frames = () if stream else (b'{"error":{}}',)
    script = Fault(name).play(ScriptedResponse(headers={"A": "b"}, frames=frames, framing=framing))
    assert next(script) is not None


# --- the connection ---------------------------------------------------------


async def test_refuse_from_the_start() -> None:
    """With `refuse` in front nothing listens, until its time is over."""
    async with LocalServer(light=True, faults=["refuse=0.05", "error=502"]) as server:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address(server))
        await server.wait_until(lambda: server.listening)
        assert (await post(server))[0] == 502


async def test_refuse_later(server: LocalServer) -> None:
    """A `refuse` after another fault closes the port once that one has been played."""
    server.inject("none", "refuse")
    assert (await post(server))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address(server))
    assert server.generations == 1


async def test_refuse_by_header(server: LocalServer) -> None:
    """A header can close the port as well: its own connection is gone, others are refused."""
    async with Raw(server) as raw:
        raw.ask("refuse=0.05")
        assert await raw.all() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address(server))
    await server.wait_until(lambda: server.listening)
    assert (await post(server))[0] == 200


async def test_reset_before_headers(server: LocalServer) -> None:
    """The connection is reset, not closed, before anything has come."""
    async with Raw(server) as raw:
        raw.ask("reset-before-headers")
        assert await raw.all() == b""
        assert raw.reset
    assert server.generations == 1
    assert server.requests[-1].outcome == "cut"


async def test_close_before_headers(server: LocalServer) -> None:
    """The connection is closed, not reset, before anything has come."""
    async with Raw(server) as raw:
        raw.ask("close-before-headers")
        assert await raw.all() == b""
        assert not raw.reset


async def test_reset_in_headers(server: LocalServer) -> None:
    """The status line may have come, but not the end of the headers."""
    async with Raw(server) as raw:
        raw.ask("reset-in-headers")
        assert b"\r\n\r\n" not in await raw.all()
        assert raw.reset


@pytest.mark.parametrize("stream", [False, True])
async def test_reset_in_body(server: LocalServer, stream: bool) -> None:
    """The headers and the bytes that were asked for come, then a reset."""
    async with Raw(server) as raw:
        raw.ask("reset-in-body=40", stream=stream)
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
    """In each framing, the body ends too early and the connection cleanly."""
    async with Raw(server) as raw:
        raw.ask(f"{name}=100", stream=stream)
        head, _, body = (await raw.all()).partition(b"\r\n\r\n")
    assert framing in head
    assert len(body) == 100
    assert not raw.reset


@pytest.mark.parametrize("stream", [False, True])
async def test_stall_headers(server: LocalServer, stream: bool) -> None:
    """The image is made, and nothing comes; the server holds until the client leaves."""
    async with Raw(server) as raw:
        raw.ask("stall-headers", stream=stream)
        await server.wait_until(lambda: server.generations == 1)
        assert server.requests[-1].outcome == "open"
        assert raw.received == b""
    await server.wait_disconnected()


@pytest.mark.parametrize("stream", [False, True])
async def test_stall_body(server: LocalServer, stream: bool) -> None:
    """Headers and so many bytes come, then nothing."""
    async with Raw(server) as raw:
        raw.ask("stall-body=3", stream=stream)
        body = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[2]
        assert len(body) <= 3
        assert server.requests[-1].outcome == "open"
    await server.wait_disconnected()


async def test_stall_stream(server: LocalServer) -> None:
    """So many events come whole, then nothing."""
    async with Raw(server) as raw:
        raw.ask("stall-stream=2", stream=True, partial_images=3)
        await raw.until(b'"partial_image_index":1}\n\n')
        assert names(raw.received) == ["partial_image"] * 2
        assert server.requests[-1].outcome == "open"
    await server.wait_disconnected()


async def test_keep_alive_close(server: LocalServer) -> None:
    """The answer is whole and does not announce that the connection closes."""
    async with Raw(server) as raw:
        raw.ask("keep-alive-close")
        head, _, body = (await raw.all()).partition(b"\r\n\r\n")
    assert b"Connection: close" not in head
    assert "data" in json.loads(body)
    assert not raw.reset


# --- the pace ---------------------------------------------------------------


@pytest.mark.parametrize("fault", ["trickle", "trickle=7", "split", "split=1,20,300,999999999"])
async def test_pieces_make_the_whole(server: LocalServer, fault: str) -> None:
    """However the answer is cut, in sum it is the right one."""
    async with Raw(server) as raw:
        raw.ask(fault)
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(raw.received) < len(head) + 4 + length:
            await raw.more()
        assert json.loads(raw.received[len(head) + 4 :])["data"][0]["b64_json"]


async def test_split_comes_in_pieces(server: LocalServer) -> None:
    """A reader in the same loop sees the pieces one by one."""
    async with Raw(server) as raw:
        raw.ask("split=5,9")
        pieces = [await raw.more() for _ in range(2)]
    assert pieces == [b"HTTP/", b"1.1 "]


async def test_drip(server: LocalServer) -> None:
    """The body comes a byte at a time, with the pause that was asked for."""
    async with Raw(server) as raw:
        raw.ask("drip=60")
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
    """It goes on until the client leaves, and then ends."""
    async with Raw(server) as raw:
        raw.ask(name if name == "endless-headers" else f"{name}=0", stream=True)
        while raw.received.count(mark) < 500:
            await raw.more()
        assert b"image_generation" not in raw.received
    await server.wait_disconnected()


# --- the body ---------------------------------------------------------------


async def test_corrupt_final(server: LocalServer) -> None:
    """Base64 of the last image is spoiled, and the JSON around it is sound."""
    _, _, body = await post(server, "corrupt-final", n=2)
    good, bad = (item["b64_json"] for item in json.loads(body)["data"])
    assert "!" not in good
    assert "!!!!" in bad
    _, _, body = await post(server, "corrupt-final", stream=True, partial_images=1)
    partial, completed = (line for line in body.splitlines() if line.startswith(b"data: {"))
    assert b"!!!!" not in partial
    assert b"!!!!" in completed


async def test_corrupt_partial(server: LocalServer) -> None:
    """Base64 of the partial images is spoiled, that of the final one is not."""
    _, _, body = await post(server, "corrupt-partial", stream=True, partial_images=2)
    *partials, completed = (line for line in body.splitlines() if line.startswith(b"data: {"))
    assert all(b"!!!!" in partial for partial in partials)
    assert len(partials) == 2
    assert b"!!!!" not in completed


@pytest.mark.parametrize(
    ("fault", "stream", "status", "content_type", "start"),
    [
        ("wrong-type", False, 200, "text/plain", b"{"),
        ("wrong-type=image/png", True, 200, "image/png", b": PING"),
        ("html", True, 200, "text/html", b"<!doctype html>"),
        ("html=502", False, 502, "text/html", b"<!doctype html>"),
        ("body={}", False, 200, "application/octet-stream", b"{}"),
        ("json-for-stream", True, 200, "application/json", b"{"),
        ("stream-for-json", False, 200, "text/event-stream", b": PING"),
        ("error-in-200", False, 200, "application/json", b'{"error":'),
        ("error-in-200", True, 200, "text/event-stream", b'{"error":'),
        ("bare-error", True, 200, "text/event-stream", b': PING\n\n{"error":'),
        ("error=403/insufficient_user_quota", True, 403, "application/json", b'{"error":'),
        ("redirect=http://localhost:1/", False, 307, "application/octet-stream", b""),
    ],
)
async def test_other_body(
    server: LocalServer, fault: str, stream: bool, status: int, content_type: str, start: bytes
) -> None:
    """Status, type and beginning of the answers that are not what was asked for."""
    answer = await post(server, fault, stream=stream)
    assert answer[0] == status
    if not fault.startswith(("body", "redirect")):
        assert answer[1] == content_type
    assert answer[2].startswith(start)


async def test_empty(server: LocalServer) -> None:
    """There is no body."""
    assert (await post(server, "empty"))[::2] == (200, b"")
    assert (await post(server, "empty=504"))[::2] == (504, b"")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("none", ["partial_image", "completed"]),
        ("no-completed", ["partial_image"]),
        ("twice-completed", ["partial_image", "completed", "completed"]),
        ("error-event", ["partial_image", "event: error"]),
        ("after-done", ["partial_image", "completed", "completed"]),
    ],
)
async def test_events(server: LocalServer, fault: str, expected: list[str]) -> None:
    """The events of a stream under each fault."""
    _, _, body = await post(server, fault, stream=True, partial_images=1)
    assert names(body) == expected
    if fault == "after-done":
        assert names(body.partition(b"data: [DONE]\n\n")[2]) == ["completed"]


async def test_completed_faults_of_json(server: LocalServer) -> None:
    """Without a stream, missing and doubled images are missing and doubled in the JSON."""
    _, _, body = await post(server, "no-completed")
    assert json.loads(body)["data"] == []
    _, _, body = await post(server, "twice-completed")
    assert len(json.loads(body)["data"]) == 2


async def test_rate_limit_with_retry_after(server: LocalServer) -> None:
    """`rate-limit` says how long to wait where it was told to."""
    for fault, header in (("rate-limit", None), ("rate-limit=1.5", "1.5")):
        async with Raw(server) as raw:
            raw.ask(fault)
            head = (await raw.until(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 429 ")
            assert (f"Retry-After: {header}\r\n" in head) is (header is not None)


async def test_redirect_goes_elsewhere(server: LocalServer) -> None:
    """A redirect names another host, one that does not exist unless told otherwise."""
    async with Raw(server) as raw:
        raw.ask("redirect")
        await raw.until(b"\r\nLocation: http://elsewhere.invalid/v1/images/generations\r\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_gzip(server: LocalServer, stream: bool) -> None:
    """The right body comes compressed, whether it is one part or many."""
    plain = (await post(server, stream=stream))[2]
    if stream:
        assert names((await post(server, "gzip", stream=True))[2]) == names(plain)
        return
    async with Raw(server) as raw:
        raw.ask("gzip", model="gpt-image-1", size="1024x1024", response_format=None)
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        assert b"Content-Encoding: gzip" in head
    assert json.loads((await post(server, "gzip"))[2])["data"] == json.loads(plain)["data"]


@pytest.mark.parametrize("size", [None, 20])
async def test_truncated_gzip(server: LocalServer, size: int | None) -> None:
    """Half of the coded body comes, or so many bytes, and the answer is whole by its own length."""
    fault = "truncated-gzip" if size is None else f"truncated-gzip={size}"
    async with Raw(server) as raw:
        raw.ask(fault)
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        while len(raw.received) < len(head) + 4 + length:
            await raw.more()
    assert b"Content-Encoding: gzip" in head
    assert length > 1_000 if size is None else length == size
    with pytest.raises(EOFError):
        gzip.decompress(raw.received[len(head) + 4 :])


async def test_gzip_bomb(server: LocalServer) -> None:
    """A small answer becomes as large as was asked for, and is still right at the end."""
    async with Raw(server) as raw:
        raw.ask("gzip-bomb=8")
        coded = (await raw.until(b"\r\n0\r\n\r\n")).partition(b"\r\n\r\n")[2]
    assert len(coded) < 100_000
    body, left = b"", coded
    while not left.startswith(b"0\r\n"):
        size, _, left = left.partition(b"\r\n")
        body, left = body + left[: int(size, 16)], left[int(size, 16) + 2 :]
    plain = gzip.decompress(body)
    assert len(plain) > 8 * 1024 * 1024
    assert json.loads(plain)["data"]
