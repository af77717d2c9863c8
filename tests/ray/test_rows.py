"""What can be said of workers on Ray without Ray: rows, files, and whose permit is whose."""

import asyncio
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from elkimg_async.cli.batch import batch
from elkimg_async.cli.common import Connection
from elkimg_async.errors import ConfigurationError, InvalidRequestError, RateLimitError
from elkimg_async.image import Image
from elkimg_async.ray import generate_dataset, rows
from elkimg_async.ray.rate import RateKeeper
from elkimg_async.ray.rows import POSITION, Outcome
from elkimg_async.ray.shelf import RowRecord, Shelf
from elkimg_async.ray.worker import check_options
from elkimg_async.sansio.responses import RateLimit, Usage

PNG = b"\x89PNG\r\n\x1a\n and so on"


# --- rows ---------------------------------------------------------------------


def test_request_is_of_the_row_before_the_defaults() -> None:
    """A row's own columns win, gaps are filled by the defaults, and other columns are nobody's business."""
    row = {"text": "a cat", "prompt": "not this", "n": 2.0, "size": None, "price": 7}
    request = rows.read_request(row, "text", {"size": "1024x1024", "n": 1})
    assert (request.prompt, request.n, request.size) == ("a cat", 2, "1024x1024")


def test_request_of_a_row_with_gaps() -> None:
    """NaN and null are no values, also within the objects of a column, where Arrow puts them."""
    row = {
        "prompt": "a cat",
        "n": math.nan,
        "extra_body": {"seed": 7, "mood": None, "x": {"y": None}},
    }
    request = rows.read_request(row, "prompt", {})
    assert (request.n, request.extra_body) == (None, {"seed": 7, "x": {}})


def test_request_takes_extra_body_as_json() -> None:
    """A column of text can hold objects of any shape."""
    row = {"prompt": "a cat", "extra_body": '{"seed": 7}'}
    assert rows.read_request(row, "prompt", {}).extra_body == {"seed": 7}
    with pytest.raises(InvalidRequestError, match="extra_body"):
        rows.read_request({**row, "extra_body": "{"}, "prompt", {})


@pytest.mark.parametrize("prompt", [None, math.nan])
def test_request_without_a_prompt(prompt: object) -> None:
    """A row without a prompt is refused as a request without one is."""
    with pytest.raises(InvalidRequestError, match="prompt"):
        rows.read_request({"prompt": prompt}, "prompt", {})


def test_id_is_the_given_one() -> None:
    """Whole numbers stay whole in a column that has gaps."""
    assert rows.read_id({"id": 7}, "id") == rows.read_id({"id": 7.0}, "id") == "7"
    assert rows.read_id({"name": "a/b"}, "name") == "a/b"


def test_id_without_a_column_is_of_content_and_position() -> None:
    """The same row at the same place has the same id, and equal rows at two places have two."""
    row = {"prompt": "a cat", POSITION: 3}
    assert rows.read_id(row, "id") == rows.read_id({POSITION: 3, "prompt": "a cat"}, "id")
    others = [{**row, POSITION: 4}, {**row, "prompt": "a dog"}]
    assert len({rows.read_id(other, "id") for other in [row, *others]}) == 3


def test_key_tells_run_row_and_request_apart() -> None:
    """None of the three can pass for a part of another."""
    keys = {rows.make_key(*parts) for parts in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", "")]}
    assert len(keys) == 3
    assert rows.make_key("a", "b", "c") in keys


@pytest.mark.parametrize(
    ("row_id", "stem"),
    [("000012-a-cat", "000012-a-cat"), ("7", "7"), ("", "~"), ("../x", "___x~"), ("A", "a~")],
)
def test_file_stem_is_the_id_where_files_can_have_it(row_id: str, stem: str) -> None:
    """Other ids keep what they can and are told apart by a hash, and none leaves the folder."""
    assert rows.file_stem(row_id).startswith(stem)
    assert "/" not in rows.file_stem(row_id)
    assert (rows.file_stem(row_id) == row_id) == ("~" not in stem)


def test_columns_of_a_good_row() -> None:
    """Usage and meta are there, and a good row was billed."""
    outcome = Outcome(id="1", usage=Usage(total_tokens=9), attempts=2, images=[PNG])
    column = {name: outcome.column(name) for name in rows.COLUMNS}
    assert (column["ok"], column["billing"], column["error"]) == (True, "billed", None)
    assert (column["total_tokens"], column["input_tokens"], column["images"]) == (9, None, [PNG])


def test_columns_of_a_failed_row() -> None:
    """An error is its class, its text and what is known of the bill."""
    outcome = Outcome(id="1", error=RateLimitError("Slow down.", status=429))
    column = {name: outcome.column(name) for name in rows.COLUMNS}
    assert (column["ok"], column["error"], column["billing"]) == (
        False,
        "RateLimitError",
        "refused",
    )
    assert "Slow down." in column["error_message"]


def test_columns_are_those_of_the_kind() -> None:
    """Images are in the dataset or in the folder."""
    assert {"images"} == {*rows.columns_for(folder=False)} - {*rows.columns_for(folder=True)}
    assert {"paths", "resumed"} == {*rows.columns_for(folder=True)} - {
        *rows.columns_for(folder=False)
    }


# --- files --------------------------------------------------------------------


def store(shelf: Shelf, row_id: str, *images: bytes, mark: str = "m") -> RowRecord:
    """Write the files of a row and their record."""
    record = RowRecord(
        id=row_id,
        hash=mark,
        key="k",
        prompt="a cat",
        parameters={},
        files=shelf.write(row_id, [*enumerate(map(Image, images))], many=len(images) > 1),
        usage=None,
        request_id=None,
        attempts=1,
        elapsed=0.5,
    )
    shelf.note(record)
    return record


def test_shelf_finds_what_is_done(tmp_path: Path) -> None:
    """A row is found with its files, by its id and its request."""
    shelf = Shelf(str(tmp_path / "new" / "folder"))
    record = store(shelf, "7", PNG, PNG)
    assert shelf.find("7", "m") == record
    assert [Path(path).name for path in shelf.paths(record.files)] == ["7.1.png", "7.2.png"]
    assert shelf.find("7", "other") is None
    assert shelf.find("8", "m") is None


def test_shelf_reads_a_record_that_does_not_tell_urls(tmp_path: Path) -> None:
    """Records of before are of rows that are done."""
    shelf = Shelf(str(tmp_path))
    record = store(shelf, "7", PNG)
    fields = json.loads((tmp_path / "7.json").read_bytes())
    assert fields.pop("urls") == []
    (tmp_path / "7.json").write_text(json.dumps(fields))
    assert shelf.find("7", "m") == record


@pytest.mark.parametrize("harm", ["cut", "missing", "no record", "broken record"])
def test_shelf_does_not_take_what_is_not_whole(tmp_path: Path, harm: str) -> None:
    """A row is done again when a file of it is not as it was written."""
    shelf = Shelf(str(tmp_path))
    store(shelf, "7", PNG)
    match harm:
        case "cut":
            (tmp_path / "7.png").write_bytes(PNG[:-1])
        case "missing":
            (tmp_path / "7.png").unlink()
        case "no record":
            (tmp_path / "7.json").unlink()
        case _:
            (tmp_path / "7.json").write_bytes(b'{"id": "7"')
    assert shelf.find("7", "m") is None


def test_shelf_is_no_object_store(tmp_path: Path) -> None:
    """An address, or a folder that cannot be, is refused with what to do instead."""
    with pytest.raises(ConfigurationError, match="leave it out"):
        Shelf("s3://bucket/images")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="another folder"):
        Shelf(str(tmp_path / "file" / "images"))


# --- permits ------------------------------------------------------------------


def keeper(**limits: float) -> RateKeeper:
    """A keeper with limits."""
    return RateKeeper({"max_concurrency": 1, **limits})


async def waiting(keeper: RateKeeper, *takes: tuple[str, int]) -> list[asyncio.Task[bool]]:
    """Tasks that wait for a turn, in this order."""
    tasks = [asyncio.create_task(keeper.take(holder, number, 1)) for holder, number in takes]
    while (await keeper.state())["waiting"] < len(tasks):
        await anyio.sleep(0)
    return tasks


async def test_keeper_serves_workers_first_come_first_served() -> None:
    """The turn of one worker comes when another has left, in the order of asking."""
    rate = keeper()
    assert await rate.take("a", 1, 1)
    second, third = await waiting(rate, ("b", 1), ("a", 2))
    await rate.release("a", 1)
    assert await second
    assert not third.done()
    await rate.release("b", 1)
    assert await third
    assert await rate.state() == {"waiting": 0, "in_flight": 1, "workers": 2}


async def test_keeper_takes_back_what_a_dead_worker_held() -> None:
    """After its lease a silent worker has neither turns nor places in the queue."""
    rate = keeper()
    assert await rate.take("dead", 1, 1)
    dead, alive = await waiting(rate, ("dead", 2), ("alive", 1))
    rate.expire(time.monotonic() + 9.0)
    assert not alive.done()
    rate._holders["alive"].heard += 20.0
    rate.expire(time.monotonic() + 11.0)
    assert not await dead
    assert await alive
    assert await rate.state() == {"waiting": 0, "in_flight": 1, "workers": 1}


async def test_keeper_lets_one_who_waits_leave() -> None:
    """A place in the queue is given up, and its call answered."""
    rate = keeper()
    assert await rate.take("a", 1, 1)
    (second,) = await waiting(rate, ("a", 2))
    await rate.release("a", 2)
    assert not await second
    await rate.release("a", 1)
    assert (await rate.state())["in_flight"] == 0


async def test_keeper_knows_messages_that_overtook() -> None:
    """A turn that was left before it was asked for is not given."""
    rate = keeper()
    await rate.release("a", 1)
    assert not await rate.take("a", 1, 1)
    assert await rate.take("a", 2, 1)


async def test_keeper_forgets_a_worker_that_ends() -> None:
    """A worker that says good-bye has nothing any more."""
    rate = keeper()
    assert await rate.take("a", 1, 1)
    await rate.forget("a")
    await rate.renew("a")  # overtaken
    await rate.release("a", 1)
    assert not await rate.take("a", 2, 1)
    assert await rate.state() == {"waiting": 0, "in_flight": 0, "workers": 0}


async def test_keeper_slows_all_workers_for_the_refusal_of_one() -> None:
    """A Retry-After that one worker was given pauses the others."""
    rate = RateKeeper({})
    assert await rate.take("a", 1, 1)
    await rate.rate_limited("a", 1, {"retry_after": 60.0, "rate_limit": None})
    await waiting(rate, ("b", 1))
    await rate.forget("b")


async def test_keeper_applies_headers_of_one_worker_to_all() -> None:
    """After `remaining: 0` in one worker, all of them wait for the reset."""
    rate = RateKeeper({})
    assert await rate.take("a", 1, 1)
    limit = RateLimit(limit_requests=60, remaining_requests=0, reset_requests=60.0)
    await rate.succeeded("a", 1, limit)
    await rate.release("a", 1)
    await waiting(rate, ("b", 1))
    await rate.forget("b")


# --- options ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"colour": "red"}, TypeError),
        ({"requests_at_once": 0}, ConfigurationError),
        ({"base_url": "ftp://x"}, ConfigurationError),
        ({"idempotency": "always"}, ConfigurationError),
        ({"extra_headers": {"a b": "c"}}, ConfigurationError),
        ({"n": "two"}, InvalidRequestError),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], error: type[Exception]) -> None:
    """They are refused where the dataset is made, not in a worker."""
    with pytest.raises(error):
        check_options(options)


def test_generate_dataset_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray is missing, the extra is named."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[ray\]"):
        generate_dataset(None)  # type: ignore[arg-type]


def test_batch_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command names the extra too, and says which of its options need a journal."""
    (tmp_path / "prompts.txt").write_text("a cat\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_BACKEND_LOG_LEVEL", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # which are set by the command
    given: dict[str, Any] = {
        "output": tmp_path / "out",
        "connection": Connection(local=True),
        "ray": True,
    }
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[ray\]"):
        batch(str(tmp_path / "prompts.txt"), **given)
    with pytest.raises(ConfigurationError, match="--max-images and --ray"):
        batch(str(tmp_path / "prompts.txt"), max_images=1, **given)
