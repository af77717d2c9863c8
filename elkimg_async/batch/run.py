"""`MapRun`: many requests as one context manager and iterator, and what it gives."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

from elkimg_async.errors import BatchError, ElkImagesError
from elkimg_async.sansio.requests import GenerateRequest
from elkimg_async.sansio.responses import ImagesResponse, Meta, Usage

if TYPE_CHECKING:
    from pathlib import Path


class MapItem(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What became of one request of a run.

    `index` counts the requests from 0. `request` is the request with the run's options filled in, None where the
    item was none. `result` has the images; it is None with `output_dir`, where `paths` are the files
    instead, and for what an earlier run has done (`resumed`). `error` is None where all went well.
    `attempts` counts the first try too. `usage` and `meta` are None where nothing is known.
    """

    index: int
    request: GenerateRequest | None
    result: ImagesResponse | None = None
    error: ElkImagesError | None = None
    paths: "Sequence[Path]" = ()
    attempts: int = 0
    usage: Usage | None = None
    meta: Meta | None = None
    resumed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the request has succeeded."""
        return self.error is None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has done so far.

    `done` and `failed` count items, the `resumed` ones that the journal knew already included.
    `images`, `usage` and `bytes` (of images, decoded) add up those that are done; `usage` is None where no
    server told any. `elapsed` is in seconds since this run began.
    """

    done: int = 0
    failed: int = 0
    resumed: int = 0
    images: int = 0
    usage: Usage | None = None
    bytes: int = 0
    elapsed: float = 0.0


class RunBackend(Protocol):
    """What a run does, without the rules of its use."""

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        ...

    @property
    def rate(self) -> float:
        """The requests for each second that the client holds itself to."""
        ...

    def totals(self) -> Totals:
        """What was done so far."""
        ...

    async def start(self) -> None:
        """Begin; what comes of it waits for `next_item`."""

    async def next_item(self) -> MapItem | None:
        """The next item; None at the end."""

    async def aclose(self) -> None:
        """Cancel what is under way, and wait until it has ended."""


class MapRun:
    """The requests of one `AsyncImages.map`, which run while its block is open.

        async with client.map(prompts, output_dir="out", journal="run.jsonl") as run:
            async for item in run:
                print(item.index, item.paths if item.ok else item.error)

    Leaving the block cancels what is under way.
    """

    def __init__(self, work: RunBackend) -> None:
        self._work = work
        self._state = "new"
        self._busy = False
        self._iterated = False

    @property
    def totals(self) -> Totals:
        """What was done so far, given already or not."""
        return self._work.totals()

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return self._work.in_flight

    @property
    def rate(self) -> float:
        """The requests for each second that the client holds itself to; `math.inf` where nothing limits it."""
        return self._work.rate

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise BatchError("A run can be entered once; call map again for another one.")
        self._state = "closed"
        await self._work.start()
        self._state = "open"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._state = "closed"
        await self._work.aclose()

    def __aiter__(self) -> Self:
        self._check()
        if self._iterated:
            raise BatchError("A run can be iterated once; call map again for another one.")
        self._iterated = True
        return self

    async def __anext__(self) -> MapItem:
        self._check()
        if self._busy:
            raise BatchError("Two tasks iterate over this run at once; give each item to one task.")
        self._busy = True
        try:
            item = await self._work.next_item()
        finally:
            self._busy = False
        if item is None:
            self._check()
            raise StopAsyncIteration
        return item

    def _check(self) -> None:
        if self._state == "new":
            raise BatchError(
                "A run starts with its block: async with client.map(…) as run: async for item in run: …"
            )
        if self._state == "closed":
            raise BatchError("This run is closed: iterate over it inside its block.")

    def __repr__(self) -> str:
        totals = self.totals
        return f"<MapRun {self._state}, {totals.done} done, {totals.failed} failed>"
