"""One call in either mode, and checks that every error of a call must pass."""

import base64
import json
import traceback
from typing import Any, TypeVar

import aiohttp
import pytest

from elkimg_async import AsyncImages, ElkImagesError, ImagesResponse, RetryPolicy
from elkimg_async.sansio.decoder import ImageEvent
from elkimg_async.transport.pool import accepts
from tests.helpers.raw_server import API_KEY, PNG, End, Reply, event, response

E = TypeVar("E", bound=BaseException)

B64 = base64.b64encode(PNG).decode()
GOOD = response({"created": 1, "data": [{"b64_json": B64}]})
BUSY = response({"error": {"message": "busy"}}, status=429)
QUICK = RetryPolicy(initial_backoff=0.002)
SOON = 10.0
"""Seconds within which a busy machine does what needs no waiting; what would be waited for by
mistake takes longer."""
PARTIAL_TYPE = "image_generation.partial_image"
COMPLETED_TYPE = "image_generation.completed"
PARTIAL = event({"type": PARTIAL_TYPE, "b64_json": B64, "partial_image_index": 0})
COMPLETED = event({"type": COMPLETED_TYPE, "b64_json": B64})
in_both_modes = pytest.mark.parametrize("streaming", [False, True], ids=["batch", "stream"])


def images_json(*items: object, **fields: Any) -> bytes:
    """Return the JSON body of a response with these items."""
    return json.dumps({"created": 1, "data": list(items), **fields}).encode()


def error_body(**fields: Any) -> dict[str, Any]:
    """Return the JSON object of an error response."""
    return {"error": {"message": "no such luck", **fields}}


def error_response(status: int, code: str = "", **headers: str) -> Reply:
    """Return an error response with this status and error code."""
    return response(error_body(code=code), status=status, **headers)


BODY = images_json({"b64_json": B64})
NO_RESPONSE: Reply = [End.HOLD]


async def run_call(
    client: AsyncImages, streaming: bool = False, prompt: Any = "a boat", **options: Any
) -> tuple[list[ImageEvent], ImagesResponse]:
    """Run one call to its end; return its events, none in batch mode, and the result."""
    if not streaming:
        return [], await client.generate(prompt, **options)
    async with client.generate(prompt, stream=True, **options) as stream:
        events = [each async for each in stream]
        return events, await stream.result()


async def failure(kind: type[E], client: AsyncImages, streaming: bool = False, **options: Any) -> E:
    """Return the error of a call, of exactly this class, after checking that it exposes nothing."""
    with pytest.raises(kind) as caught:
        await run_call(client, streaming, **options)
    assert type(caught.value) is kind
    check_clean(caught.value)
    return caught.value


async def failure_of_any_kind(
    client: AsyncImages, streaming: bool, **options: Any
) -> ElkImagesError:
    """Return the error of a call, of any class of this package."""
    with pytest.raises(ElkImagesError) as caught:
        await run_call(client, streaming, **options)
    check_clean(caught.value)
    return caught.value


def check_clean(error: BaseException) -> None:
    """Check that neither a foreign exception nor the API key is reachable from an error."""
    links: list[BaseException | None] = [error]
    for link in links:
        if link is not None:
            assert type(link).__module__ == "elkimg_async.errors", repr(link)
            links += [link.__cause__, link.__context__]
    check_secret(error)


def check_secret(error: BaseException) -> None:
    """Check that no text of an error shows the API key, its traceback's locals included."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    for text in (str(error), repr(error), repr(vars(error)), "".join(shown.format())):
        assert API_KEY not in text


def require_header_limit() -> None:
    """Skip a test where aiohttp, before 3.14, does not limit the number of header lines."""
    if not accepts(aiohttp.ClientSession.__init__, "max_headers"):
        pytest.skip(f"aiohttp {aiohttp.__version__} does not limit the number of header lines")
