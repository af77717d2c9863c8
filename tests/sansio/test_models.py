"""`client.models()`: forms of the list, errors, retries and limits."""

import json
from typing import Any

import msgspec
import pytest

from elkimg_async import (
    AsyncImages,
    AuthenticationError,
    DisconnectedError,
    ElkImagesError,
    Limits,
    Model,
    NotFoundError,
    RequestTimeoutError,
    ResponseError,
    RetryPolicy,
    ServerError,
)
from elkimg_async.hooks import Record, RequestFinished, RequestStarted
from elkimg_async.local import LocalServer
from elkimg_async.sansio.model_rules import MODELS
from elkimg_async.sansio.models import ModelsDecoder, read_models
from tests.helpers.raw_server import API_KEY, End, RawServer, Reply, head, response

FAST = RetryPolicy(initial_backoff=0)
ONE = {"id": "gpt-image-1.5", "owned_by": "openai", "created": 7}
LIST = response({"object": "list", "data": [ONE]})


async def test_models_of_the_local_server() -> None:
    """The models are in the server's order, as image models, with `meta`."""
    async with (
        LocalServer() as server,
        AsyncImages(server.api_key, base_url=server.base_url) as client,
    ):
        models = await client.models()
        assert [model.id for model in models] == list(MODELS)
        assert all(model.is_image for model in models)
        assert (models.meta.status, models.meta.attempts) == (200, 1)
        assert models.meta.request_id == server.requests[-1].request_id
        seen = server.requests[-1]
        assert (seen.method, seen.path) == ("GET", "/v1/models")
        assert {"content-type", "idempotency-key", "content-length"}.isdisjoint(seen.headers)
        async with AsyncImages("wrong", base_url=server.base_url) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.models()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"data": [ONE]}, [Model(id="gpt-image-1.5", owned_by="openai", created=7)]),
        ({"models": ["a", {"id": "b"}]}, [Model(id="a"), Model(id="b")]),
        ([{"id": "a"}], [Model(id="a")]),
        ({"data": None}, []),
        ({"data": []}, []),
        ({"data": [{}, 7, None, {"id": ""}, {"id": "a", "created": "x"}]}, [Model(id="a")]),
        (
            {"data": [{"id": "a", "supported_endpoint_types": ["openai", "image-generation"]}]},
            [Model(id="a", is_image=True)],
        ),
        (
            {"data": [{"id": "a", "supported_endpoint_types": ["openai"]}]},
            [Model(id="a", is_image=False)],
        ),
        ({"data": [{"id": "a", "supported_endpoint_types": []}]}, [Model(id="a")]),
        (
            {"data": [{"id": "a", "architecture": {"output_modalities": ["text", "image"]}}]},
            [Model(id="a", is_image=True)],
        ),
    ],
)
def test_read_models(value: Any, expected: list[Model]) -> None:
    """A list is read in any of its forms, and invalid entries do not affect the others."""
    found = read_models(json.dumps(value).encode())
    assert [msgspec.structs.replace(model, extra={}) for model in found] == expected


def test_model_fields() -> None:
    """Fields of a model are attributes, or in `extra` exactly as sent."""
    item = {
        "id": "m",
        "object": "model",
        "created": 7,
        "owned_by": "x",
        "shutdown_date": "2026-12-01",
        "supported_endpoint_types": ["image-generation"],
        "pricing": {"image": 0.04, "notes": [None, 1.5]},
    }
    (model,) = models = read_models(json.dumps({"data": [item]}).encode())
    assert (model.object, model.shutdown_date, model.is_image) == ("model", "2026-12-01", True)
    assert model.extra == {name: item[name] for name in ("supported_endpoint_types", "pricing")}
    assert model.to_dict() == {**item, "is_image": True}
    assert models.to_dict()["data"] == [model.model_dump()] == [dict(model)]
    assert json.loads(json.dumps(msgspec.to_builtins(model)))["shutdown_date"] == "2026-12-01"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"<!doctype html>", "base URL ends in /v1"),
        (b"\xef\xbb\xbf\n <html>", "base URL ends in /v1"),
        (b"not found", "not JSON"),
        (b'{"object": "list"}', "without a list of models"),
        (b'"a"', "without a list of models"),
    ],
)
def test_read_models_invalid(body: bytes, words: str) -> None:
    """A response that is not a list of models is an error that describes it."""
    with pytest.raises(ResponseError, match=words):
        read_models(body)


def test_decoder_in_any_split() -> None:
    """The list is the same on any split of its bytes."""
    body = LIST[-1]
    assert isinstance(body, bytes)
    for at in range(len(body) + 1):
        decoder = ModelsDecoder(max_bytes=1000)
        decoder.feed(body[:at])
        decoder.feed(body[at:])
        decoder.finish()
        decoder.next_event()
        assert decoder.response()[0].id == "gpt-image-1.5"


@pytest.mark.parametrize(
    "failure",
    [
        response({"error": "busy"}, status=500),
        response(b"<html>bad gateway", status=502, content_type="text/html"),
        [head(200, Content_Length="100"), b'{"data": [', End.CLOSE],
        [head(200, Content_Length="100"), End.RESET],
        [End.CLOSE],
    ],
    ids=["500", "502", "cut", "reset", "no-response"],
)
async def test_models_are_retried(failure: Reply) -> None:
    """Listing models costs nothing, so it is retried where an image would not be."""
    async with (
        RawServer(failure, LIST) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=FAST) as client,
    ):
        models = await client.models()
        assert [model.id for model in models] == ["gpt-image-1.5"]
        assert [request.method for request in raw_server.requests] == ["GET", "GET"]


async def test_models_failures_cost_nothing() -> None:
    """A failure to list models is never billed."""
    page = response(b"<html>", content_type="text/html")
    cut: Reply = [head(200, Content_Length="100"), End.CLOSE]
    async with (
        RawServer() as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client,
    ):
        replies: list[tuple[Reply, type[ElkImagesError], str]] = [
            (page, ResponseError, "not_sent"),
            (cut, DisconnectedError, "not_sent"),
            (response({"error": "x"}, status=404), NotFoundError, "refused"),
            (response(b"", status=502), ServerError, "not_sent"),
        ]
        for reply, error, billing in replies:
            raw_server.reply_with(reply)
            with pytest.raises(error) as caught:
                await client.models()
            assert caught.value.billing == billing


async def test_models_limits() -> None:
    """Time and size limits apply to a list too."""
    async with (
        RawServer([head(200), b'{"data": [', End.HOLD]) as raw_server,
        AsyncImages(
            API_KEY, base_url=raw_server.base_url, limits=Limits(max_response_bytes=5)
        ) as client,
    ):
        with pytest.raises(ResponseError, match="longer than 5 bytes"):
            await client.models()
        raw_server.reply_with([End.HOLD])
        with pytest.raises(RequestTimeoutError) as caught:
            await client.models(timeout=0.05)
        assert caught.value.limit == "total"
        await raw_server.wait_disconnected()


async def test_models_hooks_and_headers() -> None:
    """Hooks see the call without a request, and its headers are sent."""
    seen: list[Record] = []
    async with (
        RawServer(LIST) as raw_server,
        AsyncImages(API_KEY, base_url=raw_server.base_url, hooks=[seen.append]) as client,
    ):
        models = await client.models(extra_headers={"X-Team": "birds"})
        assert raw_server.requests[0].headers["x-team"] == "birds"
    assert isinstance(seen[0], RequestStarted)
    assert (seen[0].request, seen[0].stream) == (None, False)
    assert isinstance(seen[-1], RequestFinished)
    assert seen[-1].result == models
