"""Recorders, tracing, middlewares and mocks that hook aiohttp's `ClientSession`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import vcr  # type: ignore[import-untyped]
from aioresponses import aioresponses
from opentelemetry import trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from elkimg_async import AsyncImages, DisconnectedError
from tests.helpers.calls import B64, GOOD, PARTIAL, run_call
from tests.helpers.raw_server import API_KEY, DONE, PNG, RawServer, event, response, stream

MODELS = response({"object": "list", "data": [{"id": "gpt-image-1.5", "object": "model"}]})
COMPLETED = event({"type": "image_generation.completed", "b64_json": B64})


async def use_everything(client: AsyncImages, raw_server: RawServer) -> int:
    """Make a request of each kind, and return how many there are."""
    raw_server.reply_with(
        GOOD,
        GOOD,
        stream(PARTIAL, COMPLETED, DONE),
        MODELS,
        response({"data": [{"url": f"{raw_server.origin}/a.png"}]}),
        response(PNG, content_type="image/png"),
    )
    assert (await client.generate("a boat"))[0].content == PNG
    assert (await client.edit(PNG, "a hat"))[0].content == PNG
    _, result = await run_call(client, streaming=True)
    assert result[0].content == PNG
    assert [model.id for model in await client.models()] == ["gpt-image-1.5"]
    assert await (await client.generate("a boat by URL"))[0].read() == PNG
    return 6


async def test_vcr_cassette(raw_server: RawServer, tmp_path: Path) -> None:
    """A cassette records every kind of request, and replays it without the server."""
    recorder = vcr.VCR(match_on=["method", "path", "body"], filter_headers=["Authorization"])
    count = 0
    for _ in range(2):
        with recorder.use_cassette(str(tmp_path / "cassette.yaml")):
            async with AsyncImages(
                API_KEY, base_url=raw_server.base_url, idempotency="off", retry=0
            ) as client:
                count = await use_deterministic(client, raw_server)
    assert len(raw_server.requests) == count
    assert API_KEY not in (tmp_path / "cassette.yaml").read_text()


async def use_deterministic(client: AsyncImages, raw_server: RawServer) -> int:
    """Make each kind of request with the same body in every run."""
    # The boundary of an edit follows its idempotency key.
    client = client.with_options(headers={"Idempotency-Key": "fixed"})
    return await use_everything(client, raw_server)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Spans of OpenTelemetry's aiohttp instrumentation, which is on for one test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield exporter
    instrumentor.uninstrument()


@pytest.mark.parametrize("borrowed", [False, True])
async def test_opentelemetry_instrumentation(
    raw_server: RawServer, spans: InMemorySpanExporter, borrowed: bool
) -> None:
    """Each request is one client span, and carries its traceparent."""
    async with (
        aiohttp.ClientSession() as session,
        AsyncImages(
            API_KEY, base_url=raw_server.base_url, session=session if borrowed else None
        ) as client,
    ):
        count = await use_everything(client, raw_server)
    found = spans.get_finished_spans()
    assert len(found) == count == len(raw_server.requests)
    assert {span.kind for span in found} == {trace.SpanKind.CLIENT}
    sent = [request.headers["traceparent"].split("-")[2] for request in raw_server.requests]
    assert sorted(sent) == sorted(f"{span.context.span_id:016x}" for span in found if span.context)


async def test_trace_config_of_a_borrowed_session(raw_server: RawServer) -> None:
    """A TraceConfig sees the beginning and the end of every request, downloads included."""
    seen: list[str] = []
    config = aiohttp.TraceConfig()

    async def note_start(_: Any, __: Any, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(f"start {params.method} {params.url.path}")

    async def note_end(_: Any, __: Any, params: aiohttp.TraceRequestEndParams) -> None:
        seen.append(f"end {params.method} {params.url.path}")

    config.on_request_start.append(note_start)
    config.on_request_end.append(note_end)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as session,
        AsyncImages(API_KEY, base_url=raw_server.base_url, session=session) as client,
    ):
        await use_everything(client, raw_server)
    sent = [f"{request.method} {request.target}" for request in raw_server.requests]
    assert seen == [f"{what} {line}" for line in sent for what in ("start", "end")]


async def test_middleware_of_a_borrowed_session(raw_server: RawServer) -> None:
    """A client middleware sees and changes every request to the API, and none to an image host."""
    seen: list[str] = []

    async def middleware(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        seen.append(f"{request.method} {request.url.path}")
        request.headers["X-Team"] = "images"
        return await handler(request)

    async with (
        aiohttp.ClientSession(middlewares=(middleware,)) as session,
        AsyncImages(API_KEY, base_url=raw_server.base_url, session=session) as client,
    ):
        await use_everything(client, raw_server)
    *api, download = raw_server.requests
    assert seen == [f"{request.method} {request.target}" for request in api]
    assert {request.headers.get("x-team") for request in api} == {"images"}
    assert "x-team" not in download.headers


async def test_aioresponses() -> None:
    """The mock works for requests, errors and downloads, if it does with aiohttp itself."""
    base = "https://api.example/v1"
    with aioresponses() as mock:
        mock.get(f"{base}/models", payload={})
        async with aiohttp.ClientSession() as session:
            try:
                await session.get(f"{base}/models")
            except TypeError:
                pytest.skip(f"aioresponses does not know aiohttp {aiohttp.__version__}")
    with aioresponses() as mock:
        mock.post(f"{base}/images/generations", payload={"data": [{"b64_json": B64}]})
        mock.post(f"{base}/images/edits", payload={"data": [{"url": "https://host.example/a.png"}]})
        mock.get("https://host.example/a.png", body=PNG)
        mock.get(f"{base}/models", exception=aiohttp.ClientConnectionError("down"))
        async with AsyncImages(API_KEY, base_url=base, retry=0) as client:
            assert (await client.generate("a boat"))[0].content == PNG
            assert await (await client.edit(PNG, "a hat"))[0].read() == PNG
            with pytest.raises(DisconnectedError):
                await client.models()
