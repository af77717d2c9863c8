"""Generate the images of parsed requests in worker threads, once per idempotency key."""

import asyncio
import functools
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from elkimg_async.local.contract import GatewayError, ParsedRequest
from elkimg_async.local.editor import decode_inputs, paint_edit
from elkimg_async.local.painter import ImageSpec, PaintedImage, paint
from elkimg_async.local.received import ReceivedRequest
from elkimg_async.local.responses import GeneratedImages
from elkimg_async.sansio.requests import EditRequest

_HEADER = "Idempotency-Key"
_KEPT_FILES = 32
_KEPT_GENERATIONS, _KEPT_LIGHT = 32, 1_000


class _Generation(msgspec.Struct):
    """The images of one body, and the latest request that receives them."""

    fingerprint: bytes
    task: "asyncio.Task[GeneratedImages]"
    received: ReceivedRequest


class Generator:
    """Generator of images, which stores them by idempotency key and keeps the files behind URLs.

    `count` is the number of generations begun; `notify` is called when it changes.
    """

    def __init__(self, notify: Callable[[], None], *, light: bool) -> None:
        self.count = 0
        self.files: OrderedDict[str, bytes] = OrderedDict()
        self.tasks: set[asyncio.Task[GeneratedImages]] = set()
        self._notify, self._light = notify, light
        self._by_key: OrderedDict[str, _Generation] = OrderedDict()

    async def generate(
        self, parsed: ParsedRequest, body: bytes, received: ReceivedRequest, origin: str
    ) -> tuple[GeneratedImages, Mapping[str, str]]:
        """Return images, new ones or those of the same idempotency key, and further headers.

        The generation continues if the client disconnects, as with a real service.

        Raises:
            GatewayError: If the idempotency key is in flight, or was used with another body.
        """
        idempotency_key = received.headers.get(_HEADER.lower())
        fingerprint = hashlib.sha256(body).digest()
        known = self._by_key.get(idempotency_key) if idempotency_key else None
        headers: dict[str, str] = {}
        if known is None:
            task = asyncio.get_running_loop().create_task(self._generate(parsed, origin))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            known = _Generation(fingerprint, task, received)
            if idempotency_key:
                self._by_key[idempotency_key] = known
                _trim(self._by_key, _KEPT_LIGHT if self._light else _KEPT_GENERATIONS)
        elif known.fingerprint != fingerprint:
            problem = "This Idempotency-Key was used with another body"
            raise GatewayError(422, problem, code="idempotency_key_reused", param=_HEADER)
        # While the earlier request waits for its images, or they are on their way to it.
        elif known.received.outcome == "open" or not known.task.done():
            problem = "A request with the same idempotency key is in flight"
            raise GatewayError(409, problem, code="idempotency_key_in_flight", param=_HEADER)
        else:
            known.received = received
            headers["Idempotent-Replayed"] = "true"
        # The client may leave, but what has begun is paid for, and a repetition may receive it.
        return await asyncio.shield(known.task), headers

    async def _generate(self, parsed: ParsedRequest, origin: str) -> GeneratedImages:
        paint_one: Callable[[ImageSpec], PaintedImage] = paint
        if isinstance(parsed.request, EditRequest):
            inputs = await asyncio.to_thread(
                decode_inputs, parsed.request, parsed.width, parsed.height
            )
            paint_one = functools.partial(paint_edit, inputs)
        self.count += 1
        self._notify()
        # Without the request itself, which differs between requests for the same images.
        spec = replace(msgspec.convert(parsed, ImageSpec, from_attributes=True), light=self._light)
        specs = [
            replace(spec, index=index, partial_images=0 if index else parsed.partial_images)
            for index in range(parsed.n)
        ]
        painted = await asyncio.gather(*(asyncio.to_thread(paint_one, spec) for spec in specs))
        images = tuple(each.image for each in painted)
        urls = (origin + self._publish(image, parsed.output_format) for image in images)
        return GeneratedImages(
            created=int(time.time()),
            images=images,
            partials=painted[0].partials,
            urls=tuple(urls) if parsed.by_url else (),
        )

    def _publish(self, image: bytes, output_format: str) -> str:
        """Keep a file and return its path."""
        path = f"/images/{hashlib.sha256(image).hexdigest()[:32]}.{output_format}"
        self.files[path] = image
        _trim(self.files, _KEPT_FILES)
        return path


def _trim(kept: "OrderedDict[str, Any]", limit: int) -> None:
    while len(kept) > limit:
        kept.popitem(last=False)
