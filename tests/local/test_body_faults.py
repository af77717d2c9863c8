"""Faults of the local server that change the body, or imitate other servers."""

import gzip
import json
from typing import Any

import pytest

from elkimg_async.local import LocalServer
from tests.helpers.raw_post import Raw, names, post


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
    """A redirect points to a host that does not exist by default."""
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
