"""Items of the input: prompts, requests, mappings and rows of tables."""

import csv
import io
import json
import math
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.encoders import jsonable_encoder

from elkimg_async import AsyncImages, InvalidRequestError
from elkimg_async.batch.rows import has_inputs, read_row
from elkimg_async.batch.storage import MANIFEST
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from tests.helpers.runs import Fields, Server, everything, in_order, lines, rejection

numpy = pytest.importorskip("numpy")
pandas = pytest.importorskip("pandas")


def request(item: Any, **defaults: Any) -> GenerateRequest | EditRequest:
    """Return the request of an item."""
    return read_row(item).request(defaults)


@pytest.mark.parametrize("missing", [None, math.nan, numpy.nan, pandas.NA, pandas.NaT, "", "  "])
def test_row_with_missing_values(missing: Any) -> None:
    """None, NaN and empty text mean that a field is not set."""
    names = ("n", "size", "extra_body", "image", "mask", "id", "custom_id", "metadata")
    row = {"prompt": "a cat", **dict.fromkeys(names, missing)}
    assert request(row) == GenerateRequest(prompt="a cat")
    assert request(row, n=2, size="auto") == GenerateRequest(prompt="a cat", n=2, size="auto")
    assert (read_row(row).id, read_row(row).metadata) == (None, None)


@pytest.mark.parametrize(
    "two", [2, 2.0, "2", " 2 ", "2.0", numpy.int64(2), numpy.uint8(2), numpy.float64(2)], ids=repr
)
def test_row_with_integers(two: Any) -> None:
    """Integers from numpy, from a column with gaps, and from CSV are integers."""
    made = request({"prompt": "a", "n": two, "output_compression": two})
    assert (made.n, made.output_compression) == (2, 2)
    assert type(made.n) is int


@pytest.mark.parametrize("value", ["two", "2.5", 2.5, "1e3", "", True, [2], "2,0"], ids=repr)
def test_row_with_wrong_numbers(value: Any) -> None:
    """Other numbers are not converted to integers."""
    row = {"prompt": "a", "n": value}
    if value == "":
        assert request(row).n is None
        return
    with pytest.raises(InvalidRequestError, match="n must be a whole number"):
        request(row)


def test_row_with_objects_as_json() -> None:
    """Objects may be JSON text, as in CSV."""
    row = {"prompt": "a", "svg": '{"model": "m"}', "extra_body": '{"seed": 7}'}
    assert request(row) == GenerateRequest("a", svg={"model": "m"}, extra_body={"seed": 7})


def test_row_of_numpy_text() -> None:
    """Strings of numpy are plain text."""
    made = request({"prompt": numpy.str_("a cat"), "size": numpy.str_("auto")})
    assert made == GenerateRequest(prompt="a cat", size="auto")
    assert request(numpy.str_("a cat")) == GenerateRequest(prompt="a cat")


@pytest.mark.parametrize(
    ("row", "row_id"),
    [
        ({"id": "r-1"}, "r-1"),
        ({"custom_id": "r-2"}, "r-2"),
        ({"id": 7}, 7),
        ({"id": numpy.int64(7)}, 7),
        ({"id": 7.0}, 7),
        ({"id": math.nan, "custom_id": "r-3"}, "r-3"),
        ({"id": "r-4", "custom_id": "r-5"}, "r-4"),
        ({}, None),
    ],
    ids=range(8),
)
def test_row_id(row: dict[str, Any], row_id: Any) -> None:
    """`id`, else `custom_id`; neither is sent, and a bad row keeps its own."""
    found = read_row({"prompt": "a", **row})
    assert (found.id, type(found.id)) == (row_id, type(row_id))
    assert found.request({}) == GenerateRequest(prompt="a")
    assert read_row({"prompt": "a", "metadata": 3, **row}).id == row_id


@pytest.mark.parametrize("metadata", [3, ["a"], "{", {"a": object()}], ids=range(4))
def test_row_metadata_that_is_not_plain_data(metadata: Any) -> None:
    """Metadata has to fit into the journal."""
    with pytest.raises(InvalidRequestError, match="metadata must be"):
        request({"prompt": "a", "metadata": metadata})


def test_row_with_an_unknown_field() -> None:
    """The error lists the known fields, and names the places for others."""
    with pytest.raises(InvalidRequestError) as caught:
        request({"prompt": "a", "seed": 7})
    text = str(caught.value)
    assert all(word in text for word in ("'seed'", "output_format", "metadata", "extra_body"))
    with pytest.raises(InvalidRequestError, match=r"'seed'.*mask"):
        request({"prompt": "a", "image": "a.png", "seed": 7})


def test_row_that_is_an_edit() -> None:
    """A mapping with an image is an edit; its inputs are passed on as they are."""
    made = request({"prompt": "a", "image": "a.png", "mask": "", "n": "2"}, style="vivid")
    assert isinstance(made, EditRequest)
    assert msgspec.structs.asdict(made).items() >= {"image": "a.png", "mask": None, "n": 2}.items()
    ready = EditRequest(image=Path("a.png"), prompt="a")
    assert request(ready, size="auto").size == "auto"
    assert [has_inputs(item) for item in (ready, {"image": 1}, {"n": 1}, "image", None)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_row_of_sqlite() -> None:
    """Rows of sqlite3, which are not mappings, are read as mappings."""
    with sqlite3.connect(":memory:") as database:
        database.row_factory = sqlite3.Row
        (row,) = database.execute("select 'a cat' as prompt, 2 as n, null as size")
    database.close()
    assert request(row) == GenerateRequest(prompt="a cat", n=2)


async def test_map_of_pandas(server: Server, client: AsyncImages) -> None:
    """A Series is a column of prompts, and the rows of a frame are mappings."""
    series = pandas.Series(["a fox", "a heron", None], index=[7, 8, 9])
    items = in_order(await everything(client.map(series)))
    assert [item.ok for item in items] == [True, True, False]
    frame = pandas.DataFrame({"prompt": ["a fox", "a heron"], "n": [2, None], "id": [10, 11]})
    items = in_order(await everything(client.map(frame.to_dict("records"))))
    assert [item.ok for item in items] == [True, True]
    assert [item.id for item in items] == [10, 11]
    assert [fields.get("n") for fields in sorted(server.requests[2:], key=str)] == [2, None]
    rows = (row for _, row in frame.iterrows())
    assert all(item.ok for item in await everything(client.map(rows)))
    with pytest.raises(InvalidRequestError, match="to_dict"):
        client.map(frame)


async def test_map_of_csv(server: Server, client: AsyncImages) -> None:
    """Rows of `csv.DictReader`, whose values are all text."""
    text = "id,prompt,n,size\na-1,a fox,2,\na-2,a heron,,auto\n"
    items = in_order(await everything(client.map(csv.DictReader(io.StringIO(text)))))
    assert [(item.ok, item.id) for item in items] == [(True, "a-1"), (True, "a-2")]
    assert sorted(
        (fields.get("n"), fields.get("size")) for fields in server.requests if fields.get("n")
    ) == [(2, None)]


async def test_map_keeps_the_identity_of_rows(
    server: Server, client: AsyncImages, tmp_path: Path
) -> None:
    """`id` and `metadata` come back with the item, resumed or failed, in manifest and journal."""

    async def respond(fields: Fields) -> Any:
        return rejection(400) if fields["prompt"] == "bad" else None

    plain, server.respond = server.respond, respond

    async def respond_or_default(fields: Fields) -> Any:
        return await respond(fields) or await plain(fields)

    server.respond = respond_or_default
    rows: list[dict[str, Any]] = [
        {"prompt": "good", "id": "r-1", "metadata": {"sku": 7, "tags": ["x"]}},
        {"prompt": "bad", "custom_id": "r-2", "metadata": {"sku": numpy.int64(8)}},
        {"prompt": "wrong", "sise": 1, "id": "r-3", "metadata": {"sku": 9}},
    ]
    options: Any = {"output_dir": tmp_path / "out", "journal": tmp_path / "run.jsonl"}
    for number in range(2):
        items = in_order(await everything(client.map(rows, **options)))
        assert [item.id for item in items] == ["r-1", "r-2", "r-3"]
        assert [item.metadata["sku"] for item in items if item.metadata] == [7, 8, 9]
        assert [item.ok for item in items] == [True, False, False]
        assert items[0].resumed == bool(number)
    assert all("metadata" not in fields and "id" not in fields for fields in server.requests)
    (line,) = lines(tmp_path / "out" / MANIFEST)
    assert (line["id"], line["metadata"]) == ("r-1", {"sku": 7, "tags": ["x"]})
    last = {record["index"]: record for record in lines(options["journal"]) if "index" in record}
    assert [last[index]["id"] for index in range(3)] == ["r-1", "r-2", "r-3"]
    assert [last[index]["metadata"]["sku"] for index in range(3)] == [7, 8, 9]


async def test_map_metadata_of_a_table(client: AsyncImages, tmp_path: Path) -> None:
    """Metadata with values of NumPy and pandas comes back as plain data, and encodes."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    given = {
        "number": numpy.int64(7),
        "time": pandas.Timestamp(noon),
        "local": pandas.Timestamp("2026-01-01"),
        "missing": pandas.NA,
        "never": pandas.NaT,
        "list": numpy.array([1, 2]),
        "path": Path("a.png"),
        "day": noon.date(),
        "inner": {"x": numpy.float64(0.5)},
    }
    plain = {
        "number": 7,
        "time": noon,
        "local": datetime(2026, 1, 1),  # noqa: DTZ001
        "missing": None,
        "never": None,
        "list": [1, 2],
        "path": "a.png",
        "day": noon.date(),
        "inner": {"x": 0.5},
    }
    rows = [
        {"prompt": "a", "metadata": given},
        {"prompt": "a", "metadata": pandas.Series({"k": numpy.int64(1)})},
    ]
    run = client.map(rows, journal=tmp_path / "j.jsonl", output_dir=tmp_path, ordered=True)
    first, second = await everything(run)
    assert (first.ok, first.metadata) == (True, plain)
    assert (second.ok, second.metadata) == (True, {"k": 1})
    assert first.metadata is not None
    assert type(first.metadata["number"]) is int
    assert json.loads(msgspec.json.encode(first))["metadata"]["time"] == "2026-01-01T12:00:00Z"
    assert json.loads(json.dumps(jsonable_encoder(first)))["metadata"]["day"] == "2026-01-01"
