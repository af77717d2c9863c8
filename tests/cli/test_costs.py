"""`--price-file` and `--max-cost`, and the costs that the commands print."""

import json
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from elkimg_async import GenerateRequest, Usage
from elkimg_async.cli.console import UsageError, amount, json_amount
from elkimg_async.cli.price_file import read_prices
from elkimg_async.local import LocalServer
from tests.helpers.command import run

PRICES = """
["gpt-image-1.5"]            # per million tokens
text_input = 5.00
image_output = 32
max_tokens_per_image = 6500
max_input_tokens = 1000

[dall-e-3]
images = [
    {price = 0.04},
    {size = "1024x1024", quality = "hd", price = "0.08"},
]

[dall-e-2]
images = [{price = 0.10}]
"""
PER_IMAGE = ("--model", "dall-e-2", "--response-format", "b64_json", "--price-file", "prices.toml")


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A file of prices, and one of three prompts beside it."""
    path = tmp_path / "prices.toml"
    path.write_text(PRICES, "utf-8")
    (tmp_path / "prompts.txt").write_text("a red fox\na grey heron\na cat\n", "utf-8")
    return path


def test_read_prices(prices: Path) -> None:
    """Prices are read exactly, per token and per image."""
    pricing = read_prices(prices)
    request = GenerateRequest(prompt="a", n=2)
    assert pricing.worst_case(request) == Decimal("0.421")
    assert pricing.cost(request, Usage(input_tokens=10, output_tokens=1), 2) == Decimal("0.000082")
    request = GenerateRequest(prompt="a", model="dall-e-3", size="1024x1024", quality="hd")
    assert pricing.worst_case(request) == Decimal("0.08")
    request = GenerateRequest(prompt="a", model="dall-e-3")
    assert pricing.worst_case(request) == Decimal("0.04")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a", "end of document"),
        ("a = 5", "object"),
        ("[a]\nimage_outputs = 5", "image_outputs"),
        ("[a]\ntext_input = 5", "image_output"),
        ("[a]\nimages = []", "images"),
        ("[a]\nimage_output = 5\nimages = [{price = 1}]", "requires"),
        ("[a]\nimage_output = -5", "0 or more"),
        ('[a]\nimage_output = "much"', "decimal"),
    ],
)
def test_read_prices_of_a_wrong_file(tmp_path: Path, text: str, problem: str) -> None:
    """What is wrong with a file of prices is named."""
    path = tmp_path / "prices.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=problem):
        read_prices(path)


@pytest.mark.parametrize(
    ("cost", "text", "exact"),
    [
        ("1234.567", "1,234.57", "1234.567"),
        ("0.0641", "0.0641", "0.0641"),
        ("0", "0.00", "0"),
        ("1E-7", "1e-07", "0.0000001"),
    ],
)
def test_amount(cost: str, text: str, exact: str) -> None:
    """An amount is rounded for people and exact in JSON."""
    assert amount(Decimal(cost)) == text
    assert json_amount(Decimal(cost)) == exact


async def test_generate_prints_costs(server: LocalServer, tmp_path: Path, prices: Path) -> None:
    """The total is printed at the end, and each object of JSON has the cost of its call."""
    ended = await run("generate", "A cat", *PER_IMAGE, folder=tmp_path, server=server)
    assert "Cost: 0.1000" in ended.err
    ended = await run("generate", "A cat", "--json", *PER_IMAGE, folder=tmp_path, server=server)
    assert json.loads(ended.out)["cost"] == "0.10"
    ended = await run("generate", "A cat", "--json", folder=tmp_path, server=server)
    assert json.loads(ended.out)["cost"] is None
    assert "Cost" not in ended.err


async def test_generate_prints_the_cost_of_a_stream(
    server: LocalServer, tmp_path: Path, prices: Path
) -> None:
    """A stream's cost is known at its end, from its usage."""
    options = ("--stream", "--price-file", str(prices))
    ended = await run("generate", "A cat", *options, folder=tmp_path, server=server)
    assert ended.code == 0
    assert re.search(r"Cost: 0\.\d{4}", ended.err)


async def test_batch_prints_costs(server: LocalServer, tmp_path: Path, prices: Path) -> None:
    """The summary has the total, and each object of JSON the cost of its request."""
    ended = await run("batch", "prompts.txt", "--json", *PER_IMAGE, folder=tmp_path, server=server)
    assert [json.loads(line)["cost"] for line in ended.out.splitlines()] == ["0.10"] * 3
    assert re.search(r"^cost +0\.3000$", ended.err, re.MULTILINE)
    server.inject("error=502")
    ended = await run(
        *("batch", "prompts.txt", "-o", "other", *PER_IMAGE), folder=tmp_path, server=server
    )
    assert re.search(r"^cost +0\.2000, and 1 request of unknown cost$", ended.out, re.MULTILINE)


async def test_batch_with_max_cost(server: LocalServer, tmp_path: Path, prices: Path) -> None:
    """The run stops before it costs more, and goes on when the limit is raised."""

    async def batch(limit: str) -> tuple[int, str]:
        arguments = ("batch", "prompts.txt", "--max-cost", limit, *PER_IMAGE)
        ended = await run(*arguments, folder=tmp_path, server=server)
        return ended.code, ended.err

    code, err = await batch("0.25")
    assert (code, server.generations) == (1, 2)
    assert "Stopped by --max-cost, 1 request not done." in err
    assert "To go on, raise --max-cost:" in err
    code, err = await batch("0.30")
    assert (code, server.generations) == (0, 3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--max-cost", "1"], "add --price-file"),
        (["--max-cost", "0", "--price-file", "prices.toml"], "--max-cost must be"),
        (["--max-cost", "much", "--price-file", "prices.toml"], "--max-cost must be"),
        (["--price-file", "none.toml"], "none.toml cannot be read: No such file"),
        (["--max-cost", "1", "--ray"], "--ray"),
    ],
)
async def test_batch_with_a_wrong_limit(
    server: LocalServer, tmp_path: Path, prices: Path, options: list[str], problem: str
) -> None:
    """A limit that cannot be kept is rejected before anything is sent."""
    ended = await run("batch", "prompts.txt", *options, folder=tmp_path, server=server)
    assert ended.code == 2
    assert problem in " ".join(ended.err.split())
    assert not server.generations


async def test_generate_with_a_wrong_api_key(server: LocalServer, tmp_path: Path) -> None:
    """A failure that all prompts share is printed once, and ends the command."""
    prompts = [f"cat {number}" for number in range(20)]
    ended = await run(
        *("generate", *prompts),
        folder=tmp_path,
        server=server,
        variables={"ELKAPI_API_KEY": "sk-wrong"},
    )
    assert ended.code == 1
    assert ended.err.count("Check the API key") == 1
