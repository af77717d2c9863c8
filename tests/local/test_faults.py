"""The faults of the local server, seen by clients over real connections."""

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


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


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


# --- parsing --------------------------------------------------------


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


# --- choosing a fault -------------------------------------------------------


async def test_list_order() -> None:
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


# --- the connection ---------------------------------------------------------


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


# --- the pace ---------------------------------------------------------------


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


# --- the body ---------------------------------------------------------------


async def test_corrupt_final(server: LocalServer) -> None:
    """Only the base64 of the last image is corrupt."""
    _, _, body = await post(server, "corrupt-final", n=2)
    good, bad = (item["b64_json"] for item in json.loads(body)["data"])
    assert "!" not in good
    assert "!!!!" in bad
    _, _, body = await post(server, "corrupt-final", stream=True, partial_images=1)
    partial, completed = (line for line in body.splitlines() if line.startswith(b"data: {"))
    assert b"!!!!" not in partial
    assert b"!!!!" in completed


async def test_corrupt_partial(server: LocalServer) -> None:
    """Only the base64 of partial images is corrupt."""
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
    """Faults of the body have their status, type and content."""
    response = await post(server, fault, stream=stream)
    assert response[0] == status
    if not fault.startswith(("body", "redirect")):
        assert response[1] == content_type
    assert response[2].startswith(start)


async def test_empty(server: LocalServer) -> None:
    """The body is empty."""
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
    """Each fault changes the events of a stream as described."""
    _, _, body = await post(server, fault, stream=True, partial_images=1)
    assert names(body) == expected
    if fault == "after-done":
        assert names(body.partition(b"data: [DONE]\n\n")[2]) == ["completed"]


async def test_completed_faults_of_json(server: LocalServer) -> None:
    """In JSON, images are missing or doubled as in streams."""
    _, _, body = await post(server, "no-completed")
    assert json.loads(body)["data"] == []
    _, _, body = await post(server, "twice-completed")
    assert len(json.loads(body)["data"]) == 2


async def test_rate_limit_with_retry_after(server: LocalServer) -> None:
    """`rate-limit` sends Retry-After only with an argument."""
    for fault, header in (("rate-limit", None), ("rate-limit=1.5", "1.5")):
        async with Raw(server) as raw:
            raw.post(fault)
            head = (await raw.until(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 429 ")
            assert (f"Retry-After: {header}\r\n" in head) is (header is not None)


async def test_redirect_goes_elsewhere(server: LocalServer) -> None:
    """A redirect leads to a host that does not exist by default."""
    async with Raw(server) as raw:
        raw.post("redirect")
        await raw.until(b"\r\nLocation: http://elsewhere.invalid/v1/images/generations\r\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_gzip(server: LocalServer, stream: bool) -> None:
    """JSON and streams are compressed."""
    plain = (await post(server, stream=stream))[2]
    if stream:
        assert names((await post(server, "gzip", stream=True))[2]) == names(plain)
        return
    async with Raw(server) as raw:
        raw.post("gzip", model="gpt-image-1", size="1024x1024", response_format=None)
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        assert b"Content-Encoding: gzip" in head
    assert json.loads((await post(server, "gzip"))[2])["data"] == json.loads(plain)["data"]


@pytest.mark.parametrize("size", [None, 20])
async def test_truncated_gzip(server: LocalServer, size: int | None) -> None:
    """The compressed body is truncated, but agrees with its Content-Length."""
    fault = "truncated-gzip" if size is None else f"truncated-gzip={size}"
    async with Raw(server) as raw:
        raw.post(fault)
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        while len(raw.received) < len(head) + 4 + length:
            await raw.more()
    assert b"Content-Encoding: gzip" in head
    assert length > 1_000 if size is None else length == size
    with pytest.raises(EOFError):
        gzip.decompress(raw.received[len(head) + 4 :])


async def test_gzip_bomb(server: LocalServer) -> None:
    """A small response expands to the requested size and ends in the right body."""
    async with Raw(server) as raw:
        raw.post("gzip-bomb=8")
        coded = (await raw.until(b"\r\n0\r\n\r\n")).partition(b"\r\n\r\n")[2]
    assert len(coded) < 100_000
    body, left = b"", coded
    while not left.startswith(b"0\r\n"):
        size, _, left = left.partition(b"\r\n")
        body, left = body + left[: int(size, 16)], left[int(size, 16) + 2 :]
    plain = gzip.decompress(body)
    assert len(plain) > 8 * 1024 * 1024
    assert json.loads(plain)["data"]


# --- other servers ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("array", [0, "b64_json"]),
        ("object", ["data", "b64_json"]),
        ("images", ["images", 0, "b64_json"]),
        ("strings", ["images", 0]),
        ("data-images", ["data", "images", 0, "b64_json"]),
        ("nested", ["output", "result", 0, "b64_json"]),
        ("image", ["image"]),
        ("image-url", ["image_url"]),
        ("image-base64", ["data", 0, "image_base64"]),
        ("url-list", ["data", 0, "url", 0]),
        ("url-in-base64", ["data", 0, "b64_json"]),
        ("base64-in-url", ["data", 0, "url"]),
        ("empty-error", ["data", 0, "b64_json"]),
    ],
)
async def test_dialect(server: LocalServer, name: str, path: list[Any]) -> None:
    """Each dialect has the image in its own place."""
    _, _, body = await post(server, f"dialect={name}", stream=True)
    found = json.loads(body)
    for step in path:
        found = found[step]
    assert found.removeprefix("data:image/png;base64,").startswith("iVBOR")


async def test_dialect_task(server: LocalServer) -> None:
    """An asynchronous job has a task id and no image."""
    _, _, body = await post(server, "dialect=task")
    assert json.loads(body) == {"task_id": "task-1", "status": "submitted"}


async def test_partial_succeeded(server: LocalServer) -> None:
    """Each image is a partial_succeeded event, and one completed event has the usage."""
    _, _, body = await post(server, "partial-succeeded", stream=True, n=2)
    assert names(body) == ["partial_succeeded", "partial_succeeded", "completed"]
    values = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    assert [value.get("image_index") for value in values] == [0, 1, None]
    assert ["b64_json" in value for value in values] == [True, True, False]
    assert values[-1]["usage"]["total_tokens"] > 0
    assert body.endswith(b"data: [DONE]\n\n")


async def test_stream_dialects(server: LocalServer) -> None:
    """Streams come as lines of JSON, or with a doubled prefix."""
    _, _, body = await post(server, "ndjson", stream=True, partial_images=1)
    kinds = [json.loads(line)["type"].rpartition(".")[2] for line in body.splitlines()]
    assert kinds == ["partial_image", "completed"]
    _, _, body = await post(server, "doubled-data", stream=True)
    assert b"\ndata: data: {" in body


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "words"),
    [
        ("error-body", 400, "application/json", b'{"message":"The prompt was rejected"'),
        ("error-body=array/503", 503, "application/json", b'[{"error":'),
        ("error-body=detail-list/200", 200, "application/json", b'{"detail":[{'),
        ("status-402", 402, "application/json", b"insufficient_credits"),
        ("web-page", 403, "text/html", b"Attention Required!"),
        ("web-page=524", 524, "text/html", b"Attention Required!"),
    ],
)
async def test_foreign_errors(
    server: LocalServer, fault: str, status: int, content_type: str, words: bytes
) -> None:
    """Errors have the status and shape of other servers."""
    received = await post(server, fault)
    assert received[:2] == (status, content_type)
    assert words in received[2]
    assert server.generations == 0


async def test_large_headers(server: LocalServer) -> None:
    """The head is as large as requested, and the body follows."""
    async with Raw(server) as raw:
        raw.post("large-headers=64")
        head = (await raw.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
    assert 60 * 1024 < len(head) < 70 * 1024
    assert head.count(b"\r\n") > 150
