"""Spans and metrics as OpenTelemetry's SDK receives them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import elkimg_async
from elkimg_async import (
    AsyncImages,
    GenerateRequest,
    ImagePrices,
    InvalidRequestError,
    ModerationError,
    Pricing,
    RateLimitError,
    StreamIncompleteError,
)
from elkimg_async.hooks import AttemptStarted, RequestFinished, RequestStarted
from elkimg_async.image import Image
from elkimg_async.local import LocalServer
from elkimg_async.otel import Telemetry
from tests.helpers.raw_server import (
    API_KEY,
    DONE,
    PNG,
    REQUEST_ID,
    End,
    RawServer,
    Reply,
    event,
    open_stream,
    response,
    stream,
)

B64 = Image(PNG).b64_json
USAGE = {
    "total_tokens": 120,
    "input_tokens": 20,
    "output_tokens": 100,
    "input_tokens_details": {"text_tokens": 15, "image_tokens": 5},
}
PARTIAL = event(
    {"type": "image_generation.partial_image", "b64_json": B64, "partial_image_index": 0}
)
COMPLETED = event({"type": "image_generation.completed", "b64_json": B64, "usage": USAGE})
GOOD = response({"created": 1, "data": [{"b64_json": B64}], "usage": USAGE})
BUSY = response({"error": {"message": "busy"}}, status=429, Retry_After_Ms="5")
SECRET_PROMPT = "a boat that is a secret"


class Observed:
    """An SDK with exporters in memory, and a hook that uses it."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self._reader = InMemoryMetricReader()
        self._meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.hook = Telemetry(tracer_provider=self.tracers, meter_provider=self._meters, **options)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def span(self) -> ReadableSpan:
        """The only span; it has ended."""
        assert self.hook._running == {}
        (span,) = self.spans
        return span

    def points(self, name: str) -> list[HistogramDataPoint]:
        """The data points of a metric."""
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(each.name, dict(each.attributes or {})) for each in span.events]


async def run_observed(
    observed: Observed, *replies: Reply, streaming: bool = False, **options: Any
) -> RawServer:
    """Run one call against a server with these replies."""
    async with (
        RawServer(*replies) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[observed.hook]) as client,
    ):
        if streaming:
            async with client.generate(SECRET_PROMPT, stream=True, **options) as opened:
                await opened.result()
        else:
            await client.generate(SECRET_PROMPT, **options)
    return server


async def test_cost() -> None:
    """The cost of a call is an attribute where it is known."""
    known, unknown = Observed(), Observed()
    await run_observed(unknown, GOOD)
    assert "elkimg.cost" not in attributes(unknown.span())
    pricing = Pricing({"gpt-image-1.5": ImagePrices({(None, None): "0.04"})})
    async with (
        RawServer(GOOD) as server,
        AsyncImages(
            API_KEY, base_url=server.base_url, hooks=[known.hook], pricing=pricing
        ) as client,
    ):
        await client.generate("A boat")
    assert attributes(known.span())["elkimg.cost"] == 0.04


async def test_batch_call() -> None:
    """A batch call is one CLIENT span with the conventions' attributes and an event per step."""
    observed = Observed()
    server = await run_observed(observed, GOOD, n=2, size="1024x1024", quality="low")
    span = observed.span()
    assert span.name == "image_generation gpt-image-1.5"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None
    assert attributes(span) == {
        "gen_ai.operation.name": "image_generation",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-image-1.5",
        "gen_ai.request.choice.count": 2,
        "gen_ai.output.type": "image",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 100,
        "gen_ai.usage.text.input_tokens": 15,
        "gen_ai.usage.image.input_tokens": 5,
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "http.response.status_code": 200,
        "elkimg.size": "1024x1024",
        "elkimg.quality": "low",
        "elkimg.attempts": 1,
        "elkimg.request_id": REQUEST_ID,
        "elkimg.images": 1,
    }
    assert events(span) == [
        ("attempt", {"elkimg.attempt": 1}),
        (
            "response",
            {
                "elkimg.attempt": 1,
                "http.response.status_code": 200,
                "elkimg.request_id": REQUEST_ID,
            },
        ),
        ("completed_image", {}),
    ]


async def test_metrics_of_a_batch_call() -> None:
    """Duration and tokens are measured per operation, without a time to the first chunk."""
    observed = Observed()
    server = await run_observed(observed, GOOD, model="dall-e-3")
    shared = {
        "gen_ai.operation.name": "image_generation",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "dall-e-3",
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    (duration,) = observed.points("gen_ai.client.operation.duration")
    assert dict(duration.attributes or {}) == shared
    assert duration.count == 1
    span = observed.span()
    assert span.end_time is not None
    assert span.start_time is not None
    assert duration.sum == pytest.approx((span.end_time - span.start_time) / 1e9, abs=0.05)
    assert tuple(duration.explicit_bounds)[:4] == (0.01, 0.02, 0.04, 0.08)
    assert duration.explicit_bounds[13] == 81.92
    tokens = observed.points("gen_ai.client.token.usage")
    assert [(dict(point.attributes or {}), point.sum) for point in tokens] == [
        ({**shared, "gen_ai.token.type": "input"}, 20),
        ({**shared, "gen_ai.token.type": "output"}, 100),
    ]
    assert tokens[0].explicit_bounds[-1] == 67108864
    assert observed.points("gen_ai.client.operation.time_to_first_chunk") == []


async def test_unknown_usage() -> None:
    """Missing usage is not measured."""
    observed = Observed()
    await run_observed(observed, response({"created": 1, "data": [{"b64_json": B64}]}))
    assert observed.points("gen_ai.client.token.usage") == []
    assert not [name for name in attributes(observed.span()) if "usage" in name]


async def test_stream() -> None:
    """A stream is one span with partial images as events and the time to the first one."""
    observed = Observed()
    skipped = event({"type": "image_generation.thought"})
    await run_observed(observed, stream(PARTIAL, skipped, COMPLETED, DONE), streaming=True)
    span = observed.span()
    named = attributes(span)
    assert named["gen_ai.request.stream"] is True
    assert named["gen_ai.usage.output_tokens"] == 100
    assert named["elkimg.images"] == 1
    assert "elkimg.stream.left" not in named
    assert [name for name, _ in events(span)] == [
        "attempt",
        "response",
        "partial_image",
        "skipped_event",
        "completed_image",
    ]
    assert events(span)[2][1] == {"elkimg.partial_image_index": 0}
    assert events(span)[3][1]["elkimg.event.type"] == "image_generation.thought"
    (first,) = observed.points("gen_ai.client.operation.time_to_first_chunk")
    assert first.count == 1
    assert first.sum == named["gen_ai.response.time_to_first_chunk"] > 0
    assert len(observed.points("gen_ai.client.token.usage")) == 2


async def test_retries() -> None:
    """All attempts of a call share its span, which succeeds with the last one."""
    observed = Observed()
    await run_observed(observed, BUSY, BUSY, GOOD)
    span = observed.span()
    assert [name for name, _ in events(span)] == [
        "attempt",
        "response",
        "retry",
        "attempt",
        "response",
        "retry",
        "attempt",
        "response",
        "completed_image",
    ]
    assert events(span)[2][1] == {
        "elkimg.attempt": 1,
        "elkimg.delay": 0.005,
        "error.type": "RateLimitError",
    }
    assert attributes(span)["elkimg.attempts"] == 3
    assert attributes(span)["http.response.status_code"] == 200
    assert span.status.status_code is StatusCode.UNSET
    (duration,) = observed.points("gen_ai.client.operation.duration")
    assert duration.count == 1


async def test_error() -> None:
    """An error response is the span's error, and its class is in the metrics."""
    observed = Observed()
    with pytest.raises(RateLimitError):
        await run_observed(observed, BUSY, retry=0)
    span = observed.span()
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "RateLimitError",
    )
    named = attributes(span)
    assert named["error.type"] == "RateLimitError"
    assert named["elkimg.error.billing"] == "refused"
    assert named["http.response.status_code"] == 429
    (duration,) = observed.points("gen_ai.client.operation.duration")
    assert (duration.attributes or {})["error.type"] == "RateLimitError"


async def test_error_within_a_stream() -> None:
    """A failing stream keeps its events and ends as an error."""
    observed = Observed()
    with pytest.raises(StreamIncompleteError):
        await run_observed(observed, stream(PARTIAL), streaming=True)
    span = observed.span()
    assert span.status.status_code is StatusCode.ERROR
    assert "partial_image" in [name for name, _ in events(span)]
    assert attributes(span)["error.type"] == "StreamIncompleteError"
    assert len(observed.points("gen_ai.client.operation.time_to_first_chunk")) == 1


async def test_request_not_sent() -> None:
    """A request that fails validation has no span and no metrics."""
    observed = Observed()
    with pytest.raises(InvalidRequestError):
        await run_observed(observed, GOOD, n=11)
    assert observed.spans == ()
    assert observed.points("gen_ai.client.operation.duration") == []
    assert observed.hook._running == {}


async def test_cancelled_call() -> None:
    """A cancelled call ends its span as an error."""
    observed = Observed()
    async with (
        RawServer([End.HOLD]) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[observed.hook]) as client,
    ):
        call = asyncio.create_task(client.generate("a boat"))
        await server.wait_until(lambda: len(server.requests) == 1)
        assert observed.spans == ()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    span = observed.span()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "CancelledError"


@pytest.mark.parametrize("how", ["break", "close", "drop"])
async def test_stream_left_early(how: str) -> None:
    """A stream that is left, closed or dropped ends its span at once, without an error."""
    observed = Observed()
    async with (
        RawServer([*open_stream(PARTIAL), End.HOLD]) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[observed.hook]) as client,
    ):
        match how:
            case "break":
                async with client.generate("a boat", stream=True) as opened:
                    async for _ in opened:
                        break
            case "close":
                opened = await client.generate("a boat", stream=True)
                await anext(opened)
                await opened.aclose()
            case _:
                async for _ in client.generate("a boat", stream=True):
                    break
        span = observed.span()
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["elkimg.stream.left"] is True
    assert attributes(span)["elkimg.images"] == 0


async def test_stream_left_after_its_image() -> None:
    """Tokens of a completed image count even if its stream is left before the end."""
    observed = Observed()
    async with (
        RawServer([*open_stream(COMPLETED), End.HOLD]) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[observed.hook]) as client,
        client.generate("a boat", stream=True) as opened,
    ):
        await anext(opened)
    assert attributes(observed.span())["elkimg.images"] == 1
    assert [point.sum for point in observed.points("gen_ai.client.token.usage")] == [20, 100]


async def test_concurrent_calls() -> None:
    """Concurrent calls are children of the span in which each started."""
    observed = Observed()
    tracer = observed.tracers.get_tracer("user")
    async with (
        RawServer(GOOD) as server,
        AsyncImages(API_KEY, base_url=server.base_url, hooks=[observed.hook]) as client,
    ):

        async def within(name: str) -> None:
            with tracer.start_as_current_span(name):
                if name == "stream":
                    async with client.generate(name, stream=True) as opened:
                        await opened.result()
                else:
                    await client.generate(name, model="gpt-image-1-mini")

        await asyncio.gather(within("batch"), within("stream"))
        with tracer.start_as_current_span("task"):
            call = asyncio.create_task(client.generate("task"))
        await call
    named = {span.context.span_id: span.name for span in observed.spans if span.context}
    parents = {
        (span.name, named[span.parent.span_id])
        for span in observed.spans
        if span.parent is not None
    }
    assert parents == {
        ("image_generation gpt-image-1-mini", "batch"),
        ("image_generation gpt-image-1.5", "stream"),
        ("image_generation gpt-image-1.5", "task"),
    }
    assert len(observed.spans) == 6
    assert trace.get_current_span(context.get_current()) is trace.INVALID_SPAN


def shown(observed: Observed) -> str:
    """Everything that is exported."""
    spans = "".join(str(span.to_json()) for span in observed.spans)
    return spans + repr(observed.points("gen_ai.client.operation.duration"))


ECHO = {
    "error": {
        "message": f"{API_KEY} must not run_observed for: {SECRET_PROMPT}",
        "code": "moderation_blocked",
        "type": "image_generation_user_error",
    }
}


async def test_nothing_private_by_default() -> None:
    """Neither API key, prompt nor image is exported, even if the server quotes them in an error."""
    observed = Observed()
    await run_observed(observed, GOOD)
    with pytest.raises(ModerationError):
        await run_observed(observed, response(ECHO, status=400))
    text = shown(observed)
    assert "moderation_blocked" in text
    for private in (API_KEY, SECRET_PROMPT, str(B64), repr(PNG)):
        assert private not in text


async def test_capture_prompts() -> None:
    """`capture_prompts` exports prompts and error texts, but never the API key."""
    observed = Observed(capture_prompts=True)
    with pytest.raises(ModerationError):
        await run_observed(observed, response(ECHO, status=400))
    span = observed.span()
    assert json.loads(attributes(span)["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": SECRET_PROMPT}]}
    ]
    assert SECRET_PROMPT in str(span.status.description)
    assert API_KEY not in shown(observed)


async def test_extra_body() -> None:
    """`extra_body` overrides options in attributes; values that are not plain are left out."""
    observed = Observed()
    await run_observed(
        observed, GOOD, size="1024x1024", extra_body={"model": "flux-9", "size": [1, 2]}
    )
    span = observed.span()
    assert span.name == "image_generation flux-9"
    assert attributes(span)["gen_ai.request.model"] == "flux-9"
    assert "elkimg.size" not in attributes(span)


async def test_edit_and_models() -> None:
    """An edit has the tokens of its images; a list of models is a span without tokens."""
    observed = Observed(capture_prompts=True)
    async with (
        LocalServer(light=True, delay=0) as server,
        AsyncImages(
            server.api_key, base_url=server.base_url, hooks=[observed.hook], retry=0
        ) as client,
    ):
        image = (await client.generate("a boat"))[0]
        async with client.edit(image, "a bigger boat", stream=True) as opened:
            result = await opened.result()
        await client.models()
    assert observed.hook._running == {}
    _, edit, models = observed.spans
    named = attributes(edit)
    assert edit.name == "image_edit gpt-image-1.5"
    assert "a bigger boat" in named["gen_ai.input.messages"]
    assert result.usage is not None
    assert result.usage.input_tokens_details is not None
    wanted = result.usage.input_tokens_details.image_tokens
    assert named["gen_ai.usage.image.input_tokens"] == wanted
    assert (models.name, models.status.status_code) == ("list_models", StatusCode.UNSET)
    assert "elkimg.stream.left" not in attributes(models)
    assert {
        str((point.attributes or {}).get("gen_ai.operation.name"))
        for point in observed.points("gen_ai.client.token.usage")
    } == {"image_generation", "image_edit"}


async def test_provider() -> None:
    """The name of the provider can be set."""
    observed = Observed(provider="elkapi")
    await run_observed(observed, GOOD)
    assert attributes(observed.span())["gen_ai.provider.name"] == "elkapi"


@pytest.mark.parametrize(
    ("url", "operation", "port"),
    [
        ("https://api.elkapi.com/v1/images/generations", "image_generation", 443),
        ("https://api.elkapi.com/v1/images/edits", "image_edit", 443),
        ("https://api.elkapi.com/v1/models", "list_models", 443),
        ("http://[::1]:8080/v1/images/edits", "image_edit", 8080),
        ("http://models/images/generations", "image_generation", 80),
    ],
)
def test_operation_and_server(url: str, operation: str, port: int) -> None:
    """Operation, address and port come from the URL."""
    observed = Observed()
    observed.hook(
        RequestStarted(call=1, request=GenerateRequest(prompt="a"), stream=False, url=url)
    )
    observed.hook(RequestFinished(call=1, elapsed=0.1))
    assert observed.points("gen_ai.client.operation.duration")[0].sum == 0.1
    named = attributes(observed.span())
    assert named["gen_ai.operation.name"] == operation
    assert named["server.port"] == port
    assert named["server.address"] in ("api.elkapi.com", "::1", "models")


def test_calls_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of running calls is bounded; the oldest span is ended."""
    monkeypatch.setattr("elkimg_async.otel._MAX_RUNNING", 3)
    observed = Observed()
    request = GenerateRequest(prompt="a boat")
    url = "http://host/v1/images/generations"
    for call in range(1, 6):
        observed.hook(RequestStarted(call=call, request=request, stream=False, url=url))
    assert list(observed.hook._running) == [3, 4, 5]
    assert len(observed.spans) == 2
    observed.hook(AttemptStarted(call=1, attempt=1))
    observed.hook(RequestFinished(call=1, elapsed=1.0))
    assert len(observed.spans) == 2


def test_without_the_extra(tmp_path: Path) -> None:
    """Without OpenTelemetry, the error says what to install."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("")
    script = (
        "from elkimg_async import ConfigurationError, otel\n"
        "try:\n    otel.Telemetry()\n"
        "except ConfigurationError as error:\n    print(error)\n"
    )
    package = str(Path(elkimg_async.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), package, *sys.path])},
    )
    assert 'pip install "elkimg-async[otel]"' in done.stdout
