"""How calls end against each fault of the local server, and what they cost.

`python -m tests.client.test_faults` runs all cases and prints the results as a Markdown table.
"""

import asyncio
import contextlib
import itertools
import time
from typing import Literal, NamedTuple

import pytest

from elkimg_async import AsyncImages, ElkImagesError, Limits, RetryPolicy, Timeout
from elkimg_async.local import FAULTS, LocalServer
from tests.helpers.calls import SOON, check_clean, require_header_limit, run_call
from tests.helpers.raw_server import API_KEY

Idempotency = Literal["send", "replay"]
Case = tuple[bool, Idempotency]

CASES: tuple[Case, ...] = ((False, "send"), (False, "replay"), (True, "send"), (True, "replay"))
"""Batch and stream, each with both kinds of idempotency: the columns of the table."""

STALL = 0.4  # seconds that a server may be silent, in the faults that stall


class Ending(NamedTuple):
    """How a call ended: "n images" or an error, and what that took."""

    outcome: str
    billing: str | None
    attempts: int
    posts: int
    generations: int


def error(
    name: str, billing: str, attempts: int = 1, *, posts: int | None = None, made: int = 1
) -> Ending:
    """Return a failure; by default as many POSTs as attempts arrived."""
    return Ending(name, billing, attempts, attempts if posts is None else posts, made)


OK = Ending("1 image", None, 1, 1, 1)
SECOND = Ending("1 image", None, 2, 2, 1)
TWO = Ending("2 images", None, 1, 1, 1)
CUT = error("DisconnectedError", "unknown")
BROKEN = error("ResponseError", "unknown")
EMPTY = error("EmptyResultError", "unknown")
OPEN = error("StreamIncompleteError", "unknown")
TOTAL = error("RequestTimeoutError total", "unknown")
IDLE = error("RequestTimeoutError idle", "unknown")
SILENT = error("RequestTimeoutError first_byte", "unknown")
REFUSED = error("ConnectError", "not_sent", 3, posts=0, made=0)
ELSEWHERE = error("ResponseError", "unknown", made=0)
FAILED = error("ServerError", "unknown")
REJECTED = error("BadRequestError", "refused", made=0)
NO_CREDIT = error("QuotaExceededError", "refused", made=0)
BLOCKED = error("PermissionDeniedError", "refused", made=0)

# Each fault: batch and send, batch and replay, stream and send, stream and replay.
EXPECTED: dict[str, tuple[Ending, Ending, Ending, Ending]] = {
    "refuse": (REFUSED, REFUSED, REFUSED, REFUSED),
    "rate-limit=0": (SECOND, SECOND, SECOND, SECOND),
    "error": (SECOND, SECOND, SECOND, SECOND),
    "redirect": (ELSEWHERE, ELSEWHERE, ELSEWHERE, ELSEWHERE),
    "none": (OK, OK, OK, OK),
    "reset-before-headers": (CUT, SECOND, CUT, SECOND),
    "reset-in-headers": (CUT, SECOND, CUT, SECOND),
    "reset-in-body": (CUT, SECOND, CUT, CUT),
    "close-before-headers": (CUT, SECOND, CUT, SECOND),
    "truncate-length": (CUT, SECOND, CUT, CUT),
    "truncate-chunked": (CUT, SECOND, CUT, CUT),
    "truncate-close": (BROKEN, BROKEN, OPEN, OPEN),
    "stall-headers": (SILENT, SECOND, SILENT, SECOND),
    "stall-body": (IDLE, SECOND, IDLE, IDLE),
    "stall-stream": (IDLE, SECOND, IDLE, IDLE),
    "keep-alive-close": (OK, OK, OK, OK),
    "trickle=997": (OK, OK, OK, OK),
    "split=1,2,100,300": (OK, OK, OK, OK),
    "drip=0.01": (TOTAL, TOTAL, TOTAL, TOTAL),
    "endless-pings": (IDLE, SECOND, IDLE, SECOND),
    "endless-headers": (BROKEN, BROKEN, BROKEN, BROKEN),
    "endless-interim": (SILENT, SECOND, SILENT, SECOND),
    "corrupt-partial": (OK, OK, OK, OK),
    "corrupt-final": (BROKEN, BROKEN, BROKEN, BROKEN),
    "wrong-type": (OK, OK, OK, OK),
    "html": (BROKEN, BROKEN, BROKEN, BROKEN),
    "empty": (EMPTY, EMPTY, OPEN, OPEN),
    "body={}": (EMPTY, EMPTY, EMPTY, EMPTY),
    "stream-for-json": (OK, OK, OK, OK),
    "json-for-stream": (OK, OK, OK, OK),
    "error-in-200": (FAILED, SECOND, FAILED, SECOND),
    "bare-error": (OK, OK, FAILED, SECOND),
    "error-event": (OK, OK, FAILED, FAILED),
    "no-completed": (EMPTY, EMPTY, OPEN, OPEN),
    "twice-completed": (TWO, TWO, TWO, TWO),
    "after-done": (OK, OK, OK, OK),
    "gzip": (OK, OK, OK, OK),
    "truncated-gzip": (BROKEN, BROKEN, OPEN, OPEN),
    "gzip-bomb=2": (BROKEN, BROKEN, BROKEN, BROKEN),
    "large-headers": (OK, OK, OK, OK),
    "dialect": (OK, OK, OK, OK),
    "partial-succeeded": (OK, OK, OK, OK),
    "doubled-data": (OK, OK, OK, OK),
    "ndjson": (OK, OK, OK, OK),
    "error-body": (REJECTED, REJECTED, REJECTED, REJECTED),
    "status-402": (NO_CREDIT, NO_CREDIT, NO_CREDIT, NO_CREDIT),
    "web-page": (BLOCKED, BLOCKED, BLOCKED, BLOCKED),
}

TIMEOUTS = {
    "stall-headers": Timeout(total=30, first_byte=STALL),
    "stall-body": Timeout(total=30, idle=STALL),
    "stall-stream": Timeout(total=30, idle=STALL),
    "endless-pings": Timeout(total=30, idle=STALL),
    "endless-interim": Timeout(total=30, first_byte=STALL),
    "drip=0.01": Timeout(total=STALL),
}
"""Of the faults that end by a time-out; the others are never waited for."""


async def run_case(fault: str, case: Case) -> tuple[Ending, float]:
    """Make one call against one fault; return its ending and duration in seconds."""
    streaming, idempotency = case
    before = asyncio.all_tasks()
    failure: BaseException | None = None
    images = attempts = 0
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        async with AsyncImages(API_KEY, base_url=server.base_url, timeout=30) as other:
            await other.generate("a boat")  # the cost of the first call is not measured
        await quiet(server)
        server.inject(fault)
        async with AsyncImages(
            API_KEY,
            base_url=server.base_url,
            idempotency=idempotency,
            timeout=TIMEOUTS.get(fault, Timeout(total=30)),
            retry=RetryPolicy(initial_backoff=0.002),
            limits=Limits(max_response_bytes=1024 * 1024),
        ) as client:
            started = time.monotonic()
            try:
                _, result = await run_call(client, streaming)
            except Exception as error:  # noqa: BLE001
                failure, attempts = error, getattr(error, "attempts", 0)
            else:
                images, attempts = len(result), result.meta.attempts if result.meta else 0
            took = time.monotonic() - started
        await quiet(server)
        posts, made = len(server.requests) - 1, server.generations - 1
    async with asyncio.timeout(SOON):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
    if failure is None:
        name, billing = f"{images} image{'s' * (images > 1)}", None
    else:
        assert isinstance(failure, ElkImagesError), repr(failure)
        check_clean(failure)
        name, billing = type(failure).__name__, failure.billing
        if limit := getattr(failure, "limit", None):
            name += f" {limit}"
    return Ending(name, billing, attempts, posts, made), took


async def quiet(server: LocalServer) -> None:
    """Wait until no connection to the server is open."""
    async with asyncio.timeout(SOON):
        await server.wait_until(lambda: server.connections == 0)


def test_table_is_complete() -> None:
    """The table has every fault of the local server."""
    assert {text.partition("=")[0] for text in EXPECTED} == FAULTS.keys()
    assert TIMEOUTS.keys() < EXPECTED.keys()


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{'stream' if case[0] else 'batch'}-{case[1]}"
)
@pytest.mark.parametrize("fault", EXPECTED)
async def test_fault(fault: str, case: Case) -> None:
    """A call ends as the table says, in time, at the cost of one image, and leaves nothing open."""
    if fault == "endless-headers":
        require_header_limit()
    ending, took = await run_case(fault, case)
    assert ending == EXPECTED[fault][CASES.index(case)]
    assert ending.generations <= 1
    if ending.billing == "unknown" and case[1] == "send":
        assert ending.posts == 1
    if fault in TIMEOUTS:
        assert took < SOON


# --- for reading ------------------------------------------------------------


def describe(cases: list[Case]) -> str:
    """Describe this set of cases in as few words as possible."""
    if len(cases) == len(CASES):
        return "all"
    for streaming, word in ((False, "batch"), (True, "stream")):
        if cases == [case for case in CASES if case[0] == streaming]:
            return word
    for mode in ("send", "replay"):
        if cases == [case for case in CASES if case[1] == mode]:
            return mode
    return ", ".join(f"{'stream' if stream else 'batch'} {mode}" for stream, mode in cases)


def row(fault: str, cases: list[Case], ending: Ending) -> str:
    """One line of the Markdown table."""
    cells = (
        f"`{fault}`", describe(cases), ending.outcome, ending.billing or "-",
        ending.attempts, ending.posts, ending.generations,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


async def print_table() -> None:
    """Run every fault in each case and print a Markdown table, equal cases in one line."""
    longest = 0.0
    print(
        "| fault | case | what the caller got | `error.billing` | attempts | POSTs | generations |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for fault in EXPECTED:
        endings = []
        for case in CASES:
            ending, took = await run_case(fault, case)
            endings.append((ending, case))
            if ending.outcome.startswith("RequestTimeoutError"):
                longest = max(longest, took - STALL)
        kinds = list(dict.fromkeys(ending for ending, _ in endings))
        for kind in kinds:
            print(row(fault, [case for ending, case in endings if ending == kind], kind))
    print(f"\nNo call ended later than {1000 * longest:.0f} ms after its limit.")


def test_describe_is_unique() -> None:
    """Each set of cases has its own description."""
    sets = [list(some) for size in (1, 2, 3, 4) for some in itertools.combinations(CASES, size)]
    assert len({describe(some) for some in sets}) == len(sets)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(print_table())
