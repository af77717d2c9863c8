"""OpenTelemetry for a client: a span and metrics per call, as in the GenAI semantic conventions.

    client = AsyncImages(hooks=[otel.Telemetry()])

Requires the extra `otel`, and an SDK configured as for the rest of your program. Names follow
https://github.com/open-telemetry/semantic-conventions-genai, which is still in development; names
that it lacks begin with `elkimg.`.
"""

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from elkimg_async import hooks
from elkimg_async.errors import ConfigurationError
from elkimg_async.sansio.requests import ImageRequest
from elkimg_async.sansio.responses import CompletedImage, ImagesResponse, PartialImage, Usage

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

_SECONDS = [0.01 * 2**power for power in range(16)]
"""The boundaries of the conventions, and 163.84 and 327.68 s, since images take that long."""
_TOKENS = [4**power for power in range(14)]
_MAX_RUNNING = 65_536
"""Calls tracked at once. Every call ends in time; the limit keeps a bug from leaking memory."""


class Telemetry:
    """A hook that records a span and metrics for each call of a client.

    The span has the kind CLIENT and is a child of the span that is current when the call starts. It
    covers all attempts and the whole stream; leaving a stream early ends it and sets
    `elkimg.stream.left`. Attempts, responses, retries, images and skipped events are its events. A
    call that fails before anything is sent has no span. Spans never contain the API key or images.
    `elkimg.cost` and `elkimg.currency` are those of the result's `meta`; absent if unknown.

    Metrics: `gen_ai.client.operation.duration`, `gen_ai.client.token.usage`, and for streams
    `gen_ai.client.operation.time_to_first_chunk`, the time to the first image.

    `error.type` is the name of the error's class.
    """

    def __init__(
        self,
        *,
        tracer_provider: "TracerProvider | None" = None,
        meter_provider: "MeterProvider | None" = None,
        provider: str = "openai",
        capture_prompts: bool = False,
    ) -> None:
        """Create a hook for any number of clients.

        Args:
            tracer_provider: The provider of spans; None for the global one.
            meter_provider: The provider of metrics; None for the global one.
            provider: `gen_ai.provider.name`, the API dialect rather than the company.
            capture_prompts: Whether spans contain prompts, and error texts, which may quote them.

        Raises:
            ConfigurationError: If OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import metrics, trace
        except ImportError:
            raise ConfigurationError(
                'OpenTelemetry is missing: pip install "elkimg-async[otel]".'
            ) from None
        self._tracer = trace.get_tracer("elkimg_async", tracer_provider=tracer_provider)
        meter = metrics.get_meter("elkimg_async", meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="Time to receive the first chunk of a stream.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._provider = provider
        self._capture_prompts = capture_prompts
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}

    def __call__(self, record: hooks.Record) -> None:
        """Handle one record of a client."""
        if isinstance(record, hooks.RequestStarted):
            self._start(record)
            return
        running = self._running.get(record.call)
        if running is None:
            return
        match record:
            case hooks.EventReceived(event=event):
                self._receive(running, event)
            case hooks.RequestFinished():
                self._finish(running, record)
            case _:
                _add_event(running.span, record)

    def _start(self, record: hooks.RequestStarted) -> None:
        from opentelemetry.trace import SpanKind

        parts = urlsplit(record.url)
        sent = _sent_fields(record.request)
        operation, model = _operation(parts.path), sent.get("model")
        shared = _without_none(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": self._provider,
                "gen_ai.request.model": model,
                "server.address": parts.hostname,
                "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            }
        )
        own = {
            "gen_ai.output.type": "image" if sent else None,
            "gen_ai.request.stream": record.stream or None,
            "gen_ai.request.choice.count": None if sent.get("n") == 1 else sent.get("n"),
            "elkimg.size": sent.get("size"),
            "elkimg.quality": sent.get("quality"),
        }
        if self._capture_prompts and sent:
            own["gen_ai.input.messages"] = _messages(sent["prompt"])
        span = self._tracer.start_span(
            operation if model is None else f"{operation} {model}",
            kind=SpanKind.CLIENT,
            attributes=shared | _without_none(own),
        )
        with self._lock:
            self._running[record.call] = _Running(span, shared, record.stream, time.monotonic())
            overflow = len(self._running) > _MAX_RUNNING
            oldest = self._running.pop(min(self._running)) if overflow else None
        if oldest is not None:
            oldest.span.end()

    def _receive(self, running: "_Running", event: Any) -> None:
        span = running.span
        if running.stream and running.first_chunk is None:
            running.first_chunk = time.monotonic() - running.started
            self._first_chunk.record(running.first_chunk, running.shared)
            span.set_attribute("gen_ai.response.time_to_first_chunk", running.first_chunk)
        match event:
            case PartialImage(partial_image_index=index):
                attributes = _without_none({"elkimg.partial_image_index": index})
                span.add_event("partial_image", attributes)
            case CompletedImage(usage=usage):
                span.add_event("completed_image")
                running.images += 1
                running.usage = usage or running.usage

    def _finish(self, running: "_Running", record: hooks.RequestFinished) -> None:
        with self._lock:
            self._running.pop(record.call, None)
        span, shared = running.span, running.shared
        if isinstance(record.result, ImagesResponse):
            running.usage = record.result.usage or running.usage
            running.images = len(record.result)
            if record.result.meta.cost is not None:
                span.set_attribute("elkimg.cost", float(record.result.meta.cost))
                span.set_attribute("elkimg.currency", record.result.meta.currency or "USD")
        if "gen_ai.request.model" in shared:
            span.set_attribute("elkimg.images", running.images)
        if running.usage is not None:
            span.set_attributes(_usage_attributes(running.usage))
            for kind in ("input", "output"):
                count = getattr(running.usage, f"{kind}_tokens")
                if count is not None:
                    self._tokens.record(count, {**shared, "gen_ai.token.type": kind})
        if record.error is not None:
            shared = {**shared, "error.type": type(record.error).__name__}
            self._fail(span, record.error)
        elif record.result is None:
            span.set_attribute("elkimg.stream.left", True)
        self._duration.record(record.elapsed, shared)
        span.end()

    def _fail(self, span: "Span", error: BaseException) -> None:
        from opentelemetry.trace import StatusCode

        span.set_attributes(
            _without_none(
                {
                    "error.type": type(error).__name__,
                    "elkimg.error.code": getattr(error, "code", None),
                    "elkimg.error.billing": getattr(error, "billing", None),
                }
            )
        )
        description = str(error) if self._capture_prompts else ""
        span.set_status(StatusCode.ERROR, description or type(error).__name__)


class _Running(msgspec.Struct):
    """A call in flight; `shared` has the attributes that its metrics have too."""

    span: "Span"
    shared: dict[str, Any]
    stream: bool
    started: float
    first_chunk: float | None = None
    usage: Usage | None = None
    images: int = 0


def _add_event(span: "Span", record: hooks.Record) -> None:
    """Add a span event for a record that occurs once per attempt."""
    match record:
        case hooks.AttemptStarted(attempt=attempt):
            span.set_attribute("elkimg.attempts", attempt)
            span.add_event("attempt", {"elkimg.attempt": attempt})
        case hooks.ResponseStarted():
            known = _without_none(
                {
                    "http.response.status_code": record.status,
                    "elkimg.request_id": record.request_id,
                }
            )
            span.set_attributes(known)
            span.add_event("response", {"elkimg.attempt": record.attempt, **known})
        case hooks.RetryScheduled():
            span.add_event(
                "retry",
                {
                    "elkimg.attempt": record.attempt,
                    "elkimg.delay": record.delay,
                    "error.type": type(record.error).__name__,
                },
            )
        case hooks.EventSkipped():
            span.add_event(
                "skipped_event",
                _without_none({"elkimg.event.type": record.type, "elkimg.reason": record.reason}),
            )
        case _:  # other records have no event
            pass


_OPERATIONS = {"generations": "image_generation", "edits": "image_edit", "models": "list_models"}
"""Operation names, after those of the stream events: the conventions have none for images."""


def _operation(path: str) -> str:
    name = path.rpartition("/")[2]
    return _OPERATIONS.get(name, name)


def _sent_fields(request: ImageRequest | None) -> dict[str, Any]:
    """Return the plain fields sent to the server; none for the list of models."""
    if request is None:
        return {}
    fields = {**request.fields(), **(request.extra_body or {})}
    return {name: value for name, value in fields.items() if isinstance(value, str | int)}


def _usage_attributes(usage: Usage) -> dict[str, Any]:
    inputs, outputs = usage.input_tokens_details, usage.output_tokens_details
    return _without_none(
        {
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.text.input_tokens": inputs and inputs.text_tokens,
            "gen_ai.usage.image.input_tokens": inputs and inputs.image_tokens,
            "gen_ai.usage.text.output_tokens": outputs and outputs.text_tokens,
            "gen_ai.usage.image.output_tokens": outputs and outputs.image_tokens,
        }
    )


def _messages(prompt: str) -> str:
    """Return a prompt in the JSON of the conventions."""
    message = {"role": "user", "parts": [{"type": "text", "content": prompt}]}
    return msgspec.json.encode([message]).decode()


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


__all__ = ["Telemetry"]
