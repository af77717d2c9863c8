"""`MapRun`, the context manager and iterator that `map` returns, and the items it yields."""

import os
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self

import msgspec

from elkimg_async.errors import BatchError, ElkImagesError
from elkimg_async.hints import AsyncIterableOnly, missing_attribute
from elkimg_async.image import Image
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.sansio.responses import (
    ImagesResponse,
    Meta,
    ResponseData,
    Usage,
    add_cost,
    add_usage,
)

_PAYABLE = ("unknown", "billed")
"""The `billing` of errors that may have been paid for."""


class _RequestData(dict[str, Any]):
    """A request as plain data, which is how msgspec encodes it, and the request itself.

    The input images of an edit are omitted, because they can be paths, open files or many bytes.
    """

    request: GenerateRequest | EditRequest

    @classmethod
    def of(cls, request: GenerateRequest | EditRequest) -> Self:
        fields = {**request.fields(), **(request.extra_body or {})}
        data = cls(msgspec.to_builtins(fields, enc_hook=str))
        data.request = request
        return data


class MapItem(ResponseData, frozen=True, kw_only=True, eq=False):
    """The result of one request of a run.

    `index` counts the requests from 0; `id` and `metadata` are those of its mapping, None if it had
    none. `request` is the request with the run's options filled in, None if the item was not one.
    `result` has the images; it is None with `output_dir`, where `paths` are the files instead, and
    for items finished by an earlier run (`resumed`). `error` is None on success. `attempts`
    includes the first one. `usage` and `meta` are None if they are unknown.
    """

    index: int
    _request: _RequestData | None = msgspec.field(default=None, name="request")
    id: str | int | None = None
    metadata: dict[str, Any] | None = None
    result: ImagesResponse | None = None
    error: ElkImagesError | None = None
    _paths: Sequence[str] = msgspec.field(default=(), name="paths")
    attempts: int = 0
    usage: Usage | None = None
    meta: Meta | None = None
    resumed: bool = False

    @property
    def request(self) -> GenerateRequest | EditRequest | None:
        """The request; None if the item of the input was not one."""
        return None if self._request is None else self._request.request

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the images, in the order of the response."""
        return tuple(map(Path, self._paths))

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return self.error is None

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return plain data as in JSON, without fields that are None.

        The request consists of its options and prompt, without input images. `images=False` omits
        the base64 content of the result.
        """
        fields = super().to_dict(images=images)
        fields["paths"] = fields.pop("_paths")
        if (request := fields.pop("_request", None)) is not None:
            fields["request"] = request
        return {**fields, "ok": self.ok}

    model_dump = to_dict

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = None
            if name in ("image", "images") or (name[0] != "_" and hasattr(Image, name)):
                advice = "item.result has the images, or item.paths the files with output_dir."
            raise missing_attribute(self, name, advice)


def make_item(
    *,
    index: int,
    request: GenerateRequest | EditRequest | None,
    paths: Sequence[os.PathLike[str]] = (),
    **fields: Any,
) -> MapItem:
    """Return an item; `fields` are its other fields."""
    return MapItem(
        index=index,
        _request=None if request is None else _RequestData.of(request),
        _paths=tuple(map(os.fspath, paths)),
        **fields,
    )


class Totals(ResponseData, frozen=True, kw_only=True):
    """The totals of a run so far.

    `done` and `failed` count items, including the `resumed` ones from the journal. `images`,
    `usage` and `bytes` (of images, decoded) are sums over the items that are done; `usage` is None
    if the server reported none. `cost` is the sum of the known costs (`meta.cost`) in `currency`,
    which is that of the client's `pricing`, else the first one that occurs; None if there are none.
    `other_costs` are the sums in other currencies, which `cost` does not include. `unpriced` counts
    the items that were, or may have been, paid for at an unknown cost. `elapsed` is in seconds
    since this run began.
    """

    done: int = 0
    failed: int = 0
    resumed: int = 0
    images: int = 0
    usage: Usage | None = None
    bytes: int = 0
    cost: Decimal | None = None
    currency: str | None = None
    other_costs: dict[str, Decimal] = msgspec.field(default_factory=dict)
    unpriced: int = 0
    elapsed: float = 0.0


def add_item(totals: Totals, item: MapItem, *, images: int, size: int) -> Totals:
    """Return the totals with one more item, which has this number of images and bytes."""
    if item.meta is not None:
        unpriced = item.meta.cost is None
    else:
        unpriced = item.ok or (item.error is not None and item.error.billing in _PAYABLE)
    costs = dict(totals.other_costs)
    currency = totals.currency or (item.meta.currency if item.meta else None)
    if currency is not None and totals.cost is not None:
        costs[currency] = totals.cost
    costs = add_cost(costs, item.meta)
    return msgspec.structs.replace(
        totals,
        done=totals.done + item.ok,
        failed=totals.failed + (not item.ok),
        resumed=totals.resumed + item.resumed,
        images=totals.images + images,
        usage=add_usage(totals.usage, item.usage),
        bytes=totals.bytes + size,
        cost=costs.pop(currency, None) if currency else None,
        currency=currency,
        other_costs=costs,
        unpriced=totals.unpriced + unpriced,
    )


class RunBackend(Protocol):
    """Interface of the object that does the work of a `MapRun`."""

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        ...

    @property
    def rate(self) -> float:
        """The client's current pace in requests per second."""
        ...

    def totals(self) -> Totals:
        """Return the totals so far."""
        ...

    async def start(self) -> None:
        """Start the run."""

    async def next_item(self) -> MapItem | None:
        """Return the next item; None at the end."""

    async def aclose(self) -> None:
        """Cancel the requests in flight, and wait until they have ended."""


class MapRun(AsyncIterableOnly):
    """A run of `AsyncImages.map`, which is active while its block is open.

        async with client.map(prompts, output_dir="out", journal="run.jsonl") as run:
            async for item in run:
                print(item.index, item.paths if item.ok else item.error)

    Leaving the block cancels what is in flight.
    """

    _usage = "async with client.map(…) as run: async for item in run: …"

    def __init__(self, backend: RunBackend) -> None:
        self._backend = backend
        self._state = "new"
        self._busy = False
        self._iterated = False

    @property
    def totals(self) -> Totals:
        """The totals so far, including items that have not been iterated over yet."""
        return self._backend.totals()

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return self._backend.in_flight

    @property
    def rate(self) -> float:
        """The client's current pace in requests per second; `math.inf` if unlimited."""
        return self._backend.rate

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise BatchError("A run can be entered once; call map again for another one.")
        self._state = "closed"
        await self._backend.start()
        self._state = "open"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._state = "closed"
        await self._backend.aclose()

    if not TYPE_CHECKING:

        def __await__(self) -> NoReturn:
            raise TypeError(f"A run is not awaited; iterate over it: {self._usage}")

    def __aiter__(self) -> Self:
        self._check()
        if self._iterated:
            raise BatchError("A run can be iterated once; call map again for another one.")
        self._iterated = True
        return self

    async def __anext__(self) -> MapItem:
        self._check()
        if self._busy:
            raise BatchError("Two tasks are iterating over this run; use one.")
        self._busy = True
        try:
            item = await self._backend.next_item()
        finally:
            self._busy = False
        if item is None:
            self._check()
            raise StopAsyncIteration
        return item

    def _check(self) -> None:
        if self._state == "new":
            raise BatchError(f"A run starts with its block: {self._usage}")
        if self._state == "closed":
            raise BatchError("This run is closed; iterate over it inside its block.")

    def __repr__(self) -> str:
        totals = self.totals
        return f"<MapRun {self._state}, {totals.done} done, {totals.failed} failed>"
