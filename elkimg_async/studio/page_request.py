"""Requests of the page: a job as JSON, or as a form with the images to edit."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from elkimg_async.sansio.requests import ImageRequest

T = TypeVar("T")

MAX_BODY = 128 * 1024 * 1024
"""Bytes of the images to edit and a mask."""
IDLE_SECONDS = 15.0
"""How long an upload may stand still."""
_TOTAL_SECONDS = 600.0

_MAX_PROMPT = 100_000  # characters, more than any model accepts


class PageOptions(ImageRequest, frozen=True, kw_only=True):
    """The fields of a request that the page may set."""

    input_fidelity: str | None = None


class PageRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request of the page, with an `id` that the page chooses."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f-]{36}$")]
    request: PageOptions


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the page wants to start."""

    id: str
    prompt: str
    options: dict[str, Any]
    images: list[bytes]
    mask: bytes | None = None


async def read_job(request: web.Request) -> NewJob:
    """Read a request for a job.

    Raises:
        HTTPBadRequest: If the body, or its Content-Type, is malformed.
        HTTPRequestTimeout: If the upload stands still.
    """
    if request.content_type == "application/json":
        return _new_job(await _read(request, request.text()), [], None)
    if request.content_type != "multipart/form-data":
        raise web.HTTPBadRequest(text="The request must be JSON or a form with images.")
    form = await _read(request, request.post())
    images = [_read_file(field) for field in form.getall("image", [])]
    if not images:
        raise web.HTTPBadRequest(text="There is no image to edit.")
    mask = _read_file(form["mask"]) if "mask" in form else None
    return _new_job(form.get("request"), images, mask)


def _new_job(text: object, images: list[bytes], mask: bytes | None) -> NewJob:
    try:
        page_request = msgspec.json.decode(str(text), type=PageRequest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"The request cannot be read: {error}") from None
    request = page_request.request
    if request.extra_body is not None or len(request.prompt) > _MAX_PROMPT:
        raise web.HTTPBadRequest(text="The request cannot be read: a field is not allowed.")
    options = request.fields()
    prompt = options.pop("prompt")
    if request.model is None:
        options.pop("model", None)
    return NewJob(id=page_request.id, prompt=prompt, options=options, images=images, mask=mask)


def _read_file(field: object) -> bytes:
    if not isinstance(field, web.FileField):
        raise web.HTTPBadRequest(text="An image of the form is not a file.")
    return field.file.read()


async def _read(request: web.Request, body: Awaitable[T]) -> T:
    """Read a body, as long as more of it arrives.

    Raises:
        HTTPBadRequest: If the body, or its Content-Type, is malformed.
        HTTPRequestTimeout: If the body stands still, or takes too long altogether.
    """
    reading = asyncio.ensure_future(body)
    try:
        async with asyncio.timeout(_TOTAL_SECONDS):
            received = -1
            while not reading.done():
                if received == request.content.total_bytes:
                    raise TimeoutError
                received = request.content.total_bytes
                await asyncio.wait([reading], timeout=IDLE_SECONDS)
            return reading.result()
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            text="The upload stood still for too long.", headers={"Connection": "close"}
        ) from None
    # aiohttp's multipart reader raises a bare AssertionError or RuntimeError for some forms.
    except (ValueError, LookupError, AssertionError, RuntimeError, BadHttpMessage) as error:
        problem = type(error).__name__
    finally:
        reading.cancel()
    raise web.HTTPBadRequest(text=f"The request cannot be read: {problem}")
