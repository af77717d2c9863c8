"""The request of a row, and the columns of its result."""

import math
from decimal import Decimal

import pytest

from elkimg_async.errors import InvalidRequestError, RateLimitError
from elkimg_async.ray import rows
from elkimg_async.ray.rows import POSITION, RowResult
from elkimg_async.sansio.responses import Usage

PNG = b"\x89PNG\r\n\x1a\n and so on"


def test_request_over_defaults() -> None:
    """A row's own columns win, gaps are filled by the defaults, and other columns are ignored."""
    row = {"text": "a cat", "prompt": "not this", "n": 2.0, "size": None, "price": 7}
    request = rows.read_request(row, "text", {"size": "1024x1024", "n": 1})
    assert (request.prompt, request.n, request.size) == ("a cat", 2, "1024x1024")


def test_request_with_gaps() -> None:
    """NaN and null are not values, not even within the objects of a column."""
    row = {
        "prompt": "a cat",
        "n": math.nan,
        "extra_body": {"seed": 7, "mood": None, "x": {"y": None}},
    }
    request = rows.read_request(row, "prompt", {})
    assert (request.n, request.extra_body) == (None, {"seed": 7, "x": {}})


def test_request_extra_body() -> None:
    """A column of JSON text can hold objects of any shape."""
    row = {"prompt": "a cat", "extra_body": '{"seed": 7}'}
    assert rows.read_request(row, "prompt", {}).extra_body == {"seed": 7}
    with pytest.raises(InvalidRequestError, match="extra_body"):
        rows.read_request({**row, "extra_body": "{"}, "prompt", {})


@pytest.mark.parametrize("prompt", [None, math.nan])
def test_request_without_a_prompt(prompt: object) -> None:
    """A row without a prompt is rejected like a request without one."""
    with pytest.raises(InvalidRequestError, match="prompt"):
        rows.read_request({"prompt": prompt}, "prompt", {})


def test_id_of_a_row() -> None:
    """Integers stay integers in a column that has gaps."""
    assert rows.read_id({"id": 7}, "id") == rows.read_id({"id": 7.0}, "id") == "7"
    assert rows.read_id({"name": "a/b"}, "name") == "a/b"


def test_id_without_a_column() -> None:
    """The id depends on the content and position of a row only."""
    row = {"prompt": "a cat", POSITION: 3}
    assert rows.read_id(row, "id") == rows.read_id({POSITION: 3, "prompt": "a cat"}, "id")
    others = [{**row, POSITION: 4}, {**row, "prompt": "a dog"}]
    assert len({rows.read_id(other, "id") for other in [row, *others]}) == 3


def test_idempotency_key_parts() -> None:
    """Run, row and request are separated unambiguously in an idempotency key."""
    keys = {
        rows.make_idempotency_key(*parts)
        for parts in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", "")]
    }
    assert len(keys) == 3
    assert rows.make_idempotency_key("a", "b", "c") in keys


def test_columns_of_a_good_row() -> None:
    """A successful row has usage and metadata, and was billed."""
    outcome = RowResult(id="1", usage=Usage(total_tokens=9), attempts=2, images=[PNG])
    column = {name: outcome.column(name) for name in rows.COLUMNS}
    assert (column["ok"], column["billing"], column["error"]) == (True, "billed", None)
    assert (column["total_tokens"], column["input_tokens"], column["images"]) == (9, None, [PNG])


@pytest.mark.parametrize(
    ("cost", "column"),
    [
        (None, None),
        ("0.0421", "0.0421"),
        ("1E-18", "1E-18"),
        ("0.0000000000000000014", "0.000000000000000001"),
        ("12345678901234567890.5", "12345678901234567890.5"),
        ("1E+30", None),
    ],
)
def test_columns_of_a_cost(cost: str | None, column: str | None) -> None:
    """A cost has as many places as its column, and is null if it is too large for it."""
    paid = RowResult(id="1", cost=None if cost is None else Decimal(cost), currency="EUR")
    assert paid.column("cost") == (None if column is None else Decimal(column))
    assert paid.column("currency") == "EUR"
    arrow = pytest.importorskip("pyarrow")
    kind = arrow.decimal128(rows.MONEY_DIGITS, rows.MONEY_PLACES)
    assert arrow.array([paid.column("cost")], kind).to_pylist() == [paid.column("cost")]


def test_columns_of_a_failed_row() -> None:
    """A failed row has the class, text and billing of its error."""
    outcome = RowResult(id="1", error=RateLimitError("Slow down.", status=429))
    column = {name: outcome.column(name) for name in rows.COLUMNS}
    assert (column["ok"], column["error"], column["billing"]) == (
        False,
        "RateLimitError",
        "refused",
    )
    assert "Slow down." in column["error_message"]


def test_columns_with_and_without_a_folder() -> None:
    """Images are in the dataset or in the folder."""
    assert {"images"} == {*rows.columns_for(folder=False)} - {*rows.columns_for(folder=True)}
    assert {"paths", "resumed"} == {*rows.columns_for(folder=True)} - {
        *rows.columns_for(folder=False)
    }
