"""`meta.cost`: the cost of each call, as the server reports it or by the client's price list."""

import json
import pickle
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from elkimg_async import (
    AsyncImages,
    ConfigurationError,
    Image,
    ImagePrices,
    Pricing,
    TokenPrices,
    Usage,
)
from elkimg_async.sansio.requests import ImageRequest
from tests.helpers.raw_server import API_KEY, DONE, PNG, RawServer, event, response, stream
from tests.helpers.runs import Server, images

PRICING = Pricing(
    {"gpt-image-1.5": TokenPrices(text_input="5", image_input="5", image_output="32")}
)
USAGE = {"total_tokens": 2010, "input_tokens": 10, "output_tokens": 2000}
COST = Decimal("0.06405")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().running() as server:
        yield server


def respond(server: Server, usage: dict[str, Any] | None) -> None:
    """Make the server respond with one image and this usage."""

    async def one(fields: dict[str, Any]) -> dict[str, Any]:
        return {**images(PNG, tokens=None), "usage": usage}

    server.respond = one


@pytest.mark.parametrize(
    ("pricing", "usage", "cost"),
    [
        (PRICING, USAGE, COST),
        (None, USAGE, None),
        (PRICING, None, None),
        (PRICING, {**USAGE, "cost": 0.5}, Decimal("0.5")),
        (None, {**USAGE, "cost_in_usd_ticks": 400_000_000}, Decimal("0.04")),
        (Pricing({"gpt-image-2": TokenPrices(image_output=1)}), USAGE, None),
        (Pricing({"gpt-image-1.5": ImagePrices({(None, None): "0.1"})}), None, Decimal("0.1")),
    ],
)
async def test_cost(
    server: Server, pricing: Pricing | None, usage: dict[str, Any] | None, cost: Decimal | None
) -> None:
    """The cost that the server reports wins, then the price list; else it is None: unknown."""
    respond(server, usage)
    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=pricing) as client:
        result = await client.generate("A boat")
        assert result.meta.cost == cost
        again = await client.with_options(timeout=9).generate("A boat")
        assert again.meta.cost == cost
        edited = await client.edit(PNG, "A boat")
        assert edited.meta.cost == cost
    assert pickle.loads(pickle.dumps(result.meta)).cost == cost
    plain = json.loads(json.dumps(result.meta.to_dict()))
    assert plain.get("cost") == (None if cost is None else str(cost))


@pytest.mark.parametrize(
    ("usage", "fields", "header", "cost"),
    [
        ({"cost": "0.5"}, {}, None, "0.5"),
        ({"cost": 0.04, "is_byok": False, "cost_details": {}}, {}, None, "0.04"),
        (
            {"cost": 0.002, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.04}},
            *({}, None, "0.042"),
        ),
        ({"cost": {"input_tokens_cost": 0.01, "total_cost": 0.03}}, {}, None, "0.03"),
        ({"estimated_cost": 0.03}, {}, None, "0.03"),
        ({"total_cost": 0.03}, {}, None, "0.03"),
        (None, {"cost": 0.03, "latency": 5}, None, "0.03"),
        (None, {"cost": 4, "currency": "credits"}, None, None),
        (None, {"cost": 4, "paymentSource": "XNO"}, None, None),
        ({"cost": 0.03, "currency": "usd"}, {}, None, "0.03"),
        (None, {}, "0.0421", "0.0421"),
        ({"cost": 0.03}, {"cost": 5}, "6", "0.03"),
        ({"cost": 0}, {}, None, "0"),
        ({"cost": None}, {"cost": -1}, "None", None),
        ({"cost": "free"}, {"cost": True}, "nan", None),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_cost_reported_by_other_servers(
    raw_server: RawServer,
    usage: dict[str, Any] | None,
    fields: dict[str, Any],
    header: str | None,
    cost: str | None,
    streaming: bool,
) -> None:
    """Costs are found in the usage, the response and the header, unless in another unit."""
    headers: dict[str, Any] = {} if header is None else {"x_litellm_response_cost": header}
    body = {"created": 1, "data": [{"b64_json": Image(PNG).b64_json}], "usage": usage, **fields}
    event_fields = {
        "type": "image_generation.completed",
        "b64_json": Image(PNG).b64_json,
        "usage": usage,
        **fields,
    }
    raw_server.reply_with(
        stream(event(event_fields), DONE, **headers) if streaming else response(body, **headers)
    )
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        if streaming:
            async with client.generate("A boat", stream=True) as opened:
                result = await opened.result()
        else:
            result = await client.generate("A boat")
    assert result.meta.cost == (None if cost is None else Decimal(cost))


async def test_cost_of_a_stream(raw_server: RawServer) -> None:
    """A stream's result has the cost of the whole call, though each image repeats the usage."""
    fields = {"type": "image_generation.completed", "b64_json": Image(PNG).b64_json, "usage": USAGE}
    raw_server.reply_with(stream(event(fields), event(fields), DONE))
    async with (
        AsyncImages(API_KEY, base_url=raw_server.base_url, pricing=PRICING) as client,
        client.generate("A boat", n=2, stream=True) as opened,
    ):
        result = await opened.result()
    assert len(result) == 2
    assert result.meta.cost == COST


async def test_cost_by_a_function_that_fails(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A price function that raises is logged; the image is still delivered."""

    def price(request: ImageRequest, usage: Usage | None) -> Decimal | None:
        raise KeyError(request.model)

    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=Pricing(price)) as client:
        result = await client.generate("A boat")
    assert len(result) == 1
    assert result.meta.cost is None
    assert "price function" in caplog.text


async def test_cost_of_the_list_of_models(raw_server: RawServer) -> None:
    """The list of models has no cost."""
    raw_server.reply_with(response({"object": "list", "data": [{"id": "a"}]}))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, pricing=PRICING) as client:
        assert (await client.models()).meta.cost is None


@pytest.mark.parametrize("pricing", [{}, {"gpt-image-1.5": 5}, 0.04, "gpt-image-1.5"])
def test_pricing_of_another_type(pricing: Any) -> None:
    """What is not a price list is rejected."""
    with pytest.raises(ConfigurationError, match=r"Pricing\("):
        AsyncImages(API_KEY, pricing=pricing)


@pytest.mark.parametrize(
    ("usage", "fields", "cost", "currency"),
    [
        ({"cost": 0.5, "currency": "EUR"}, {}, "0.5", "EUR"),
        ({"cost": 0.5, "currency": "eur"}, {}, "0.5", "EUR"),
        ({"cost": 0.5, "currency": "€"}, {}, "0.5", "EUR"),
        ({"cost": 0.5}, {"currency": "CNY"}, "0.5", "CNY"),
        ({"cost": {"total": 0.5, "currency": "GBP"}}, {}, "0.5", "GBP"),
        (None, {"cost": {"amount": "0.5", "currency": "GBP"}}, "0.5", "GBP"),
        ({"cost": 0.5, "currency": "EUR", "cost_usd": 0.6}, {}, "0.5", "EUR"),
        ({"cost": 5, "currency": "credits", "cost_usd": 0.6}, {}, "0.6", "USD"),
        ({"cost_in_usd_ticks": 10**9, "currency": "EUR"}, {}, "0.1", "USD"),
        ({**USAGE, "cost": 5, "currency": "credits"}, {}, str(COST), "EUR"),
        (USAGE, {}, str(COST), "EUR"),
        (None, {}, None, None),
    ],
)
async def test_cost_in_a_currency(
    server: Server,
    usage: dict[str, Any] | None,
    fields: dict[str, Any],
    cost: str | None,
    currency: str | None,
) -> None:
    """A reported cost has its own currency, and one by the prices that of the prices."""

    async def one(sent: dict[str, Any]) -> dict[str, Any]:
        return {**images(PNG, tokens=None), "usage": usage, **fields}

    server.respond = one
    prices = {"gpt-image-1.5": TokenPrices(text_input="5", image_input="5", image_output="32")}
    pricing = Pricing(prices, currency="eur")
    async with AsyncImages(API_KEY, base_url=server.base_url, pricing=pricing) as client:
        meta = (await client.generate("A boat")).meta
    assert (meta.cost, meta.currency) == (None if cost is None else Decimal(cost), currency)


@pytest.mark.parametrize("currency", ["", "euro", "E1R", None, 5, "€"])
def test_pricing_in_no_currency(currency: Any) -> None:
    """The currency of prices is a code of three letters."""
    with pytest.raises(ConfigurationError, match="three letters"):
        Pricing({}, currency=currency)
