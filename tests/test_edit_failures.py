"""`client.edit`: cancelled, broken and stalled uploads."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import elkimg_async
from elkimg_async import (
    AsyncImages,
    DisconnectedError,
    RequestTimeoutError,
    Timeout,
)
from tests.helpers.calls import GOOD
from tests.helpers.edits import (
    PNG,
    QUICK,
    large,
)
from tests.helpers.raw_server import (
    API_KEY,
    End,
    RawServer,
    response,
)


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancel_while_uploading(tmp_path: Path, streaming: bool) -> None:
    """A cancelled upload closes its connection and file at once; the client still works."""
    path = large(tmp_path, 20 << 20)
    async with (
        RawServer(GOOD, reading=False) as silent,
        AsyncImages(API_KEY, base_url=silent.base_url) as client,
    ):
        call: Any
        if streaming:
            call = client.edit(path, "a hat", stream=True)
            source, waiting = call._source, call.result()
        else:
            waiting = call = client.edit(path, "a hat")
            source = call.cr_frame.f_locals["self"]
        task = asyncio.create_task(waiting)
        async with asyncio.timeout(10):
            while not is_uploading(source):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not any(str(path) in str(link.readlink()) for link in links())
        silent.read_on()
        await silent.wait_disconnected()
        assert not silent.requests
        assert len(await client.edit(PNG, "a hat")) == 1


def is_uploading(call: Any) -> bool:
    """Return whether a part of the body has left."""
    exchange = call._attempt and call._attempt._exchange
    return exchange is not None and exchange.phase == "upload"


def links() -> list[Path]:
    """The open files of this process."""
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


async def test_server_leaves_while_uploading(tmp_path: Path) -> None:
    """If the server breaks off in the middle of an upload, the call is not repeated."""
    path = large(tmp_path, 20 << 20)
    async with (
        RawServer([End.RESET], reply_after=1 << 20) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=QUICK) as client,
    ):
        with pytest.raises(DisconnectedError) as caught:
            await client.edit(path, "a hat")
    assert (caught.value.phase, caught.value.billing) == ("upload", "unknown")
    assert server.accepted == 1


async def test_upload_that_stalls(tmp_path: Path) -> None:
    """The idle limit ends an upload that no longer makes progress."""
    path = large(tmp_path, 20 << 20)
    async with (
        RawServer(GOOD, reading=False) as silent,
        AsyncImages(API_KEY, base_url=silent.base_url, timeout=Timeout(idle=0.2)) as client,
    ):
        with pytest.raises(RequestTimeoutError) as caught:
            await client.edit(path, "a hat")
        assert (caught.value.limit, caught.value.phase) == ("idle", "upload")


async def test_error_before_the_upload_ends(tmp_path: Path) -> None:
    """An error that arrives while the file is still being sent is raised."""
    path = large(tmp_path, 20 << 20)
    error = {"message": "too large", "code": "read_request_body_failed"}
    async with (
        RawServer(response({"error": error}, status=413), reply_after=0) as server,
        AsyncImages(API_KEY, base_url=server.base_url, retry=QUICK) as client,
    ):
        with pytest.raises(elkimg_async.BadRequestError, match="too large") as caught:
            await client.edit(path, "a hat")
        assert caught.value.status == 413
