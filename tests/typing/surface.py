"""The whole public surface with its types stated: checked by mypy and pyright, never run."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

import aiohttp
import anyio
import httpx
from PIL.Image import Image as PILImage

import elkimg_async
from elkimg_async import (
    APIError,
    AsyncImages,
    AuthenticationError,
    BadRequestError,
    BatchError,
    BatchStoppedError,
    Billing,
    CompletedImage,
    ConfigurationError,
    ConnectError,
    DisconnectedError,
    DownloadError,
    EditRequest,
    ElkImagesError,
    EmptyResultError,
    GenerateRequest,
    Image,
    ImageInput,
    ImagePrices,
    ImageReference,
    ImagesResponse,
    ImageStream,
    InvalidRequestError,
    JournalError,
    Limits,
    MapItem,
    MapRun,
    Meta,
    Model,
    Models,
    ModerationError,
    NetworkError,
    NotFoundError,
    PartialImage,
    PermissionDeniedError,
    Pricing,
    QuotaExceededError,
    RateLimit,
    RateLimitError,
    RequestTimeoutError,
    ResponseError,
    RetryPolicy,
    ServerError,
    StreamError,
    StreamIncompleteError,
    StreamStateError,
    Timeout,
    TokenDetails,
    TokenPrices,
    Totals,
    Usage,
    errors,
)
from elkimg_async.hooks import (
    AttemptStarted,
    EventReceived,
    EventSkipped,
    Hook,
    Record,
    RequestFinished,
    RequestStarted,
    ResponseStarted,
    RetryScheduled,
)
from elkimg_async.local import FAULTS, Fault, LocalServer, ReceivedRequest, ThreadedServer, parse
from elkimg_async.otel import Telemetry
from elkimg_async.types import InputFidelity, InputFile

version: str = elkimg_async.__version__


# --- the client -------------------------------------------------------------


async def rotating_key() -> str:
    return "sk-1"


def hook(record: Record) -> None:
    match record:
        case RequestStarted(call=call, stream=stream):
            assert_type(call, int)
            assert_type(stream, bool)
        case AttemptStarted(attempt=attempt):
            assert_type(attempt, int)
        case ResponseStarted(status=status, request_id=request_id, first_byte=first_byte):
            assert_type(status, int)
            assert_type(request_id, str | None)
            assert_type(first_byte, float)
        case RetryScheduled(error=error, delay=delay):
            assert_type(error, Exception)
            assert_type(delay, float)
        case EventReceived() | EventSkipped():
            pass
        case RequestFinished(elapsed=elapsed, error=failure):
            assert_type(elapsed, float)
            assert_type(failure, BaseException | None)


def make(session: aiohttp.ClientSession) -> list[AsyncImages]:
    a_hook: Hook = hook
    return [
        AsyncImages(),
        AsyncImages("sk-1"),
        AsyncImages(api_key=rotating_key),
        AsyncImages(timeout=5, retry=3),
        AsyncImages(pricing=Pricing({"m": TokenPrices(image_output="32")})),
        AsyncImages(pricing=Pricing({"m": ImagePrices({("1024x1024", None): "0.04"})})),
        AsyncImages(timeout=2.5, retry=0),
        AsyncImages(timeout=timedelta(minutes=1), max_retries=3, model="gpt-image-2"),
        AsyncImages(timeout=httpx.Timeout(5), default_headers={"X-A": "b"}, default_query={"q": 1}),
        AsyncImages(
            None,
            base_url="http://127.0.0.1:8000/v1",
            timeout=Timeout(total=600, connect=10, first_byte=None, idle=math.inf, download=60.0),
            retry=RetryPolicy(
                max_retries=2, initial_backoff=0.5, max_backoff=8, max_retry_after=120
            ),
            idempotency="replay",
            validate="warn",
            limits=Limits(max_response_bytes=2**20),
            headers={"X-Team": "one"},
            query={"api-version": "1"},
            model="any-model",
            session=session,
            hooks=[hook, a_hook, print, lambda record: None, Telemetry(capture_prompts=True)],
        ),
    ]


async def close(client: AsyncImages) -> None:
    async with client as entered:
        assert_type(entered, AsyncImages)
    assert_type(await client.aclose(), None)
    assert_type(await client.close(), None)
    assert_type(client.base_url, str)
    assert_type(client.model, str)
    view = client.with_options(
        timeout=5, retry=RetryPolicy(0), headers={"X-A": "b"}, query={"q": "1"}, model="flux"
    )
    assert_type(view.with_options(max_retries=1).images, AsyncImages)
    assert_type(view, AsyncImages)


# --- generate ---------------------------------------------------------------


async def batch(client: AsyncImages) -> None:
    call = client.generate("a boat")
    assert_type(await assert_type(call, Coroutine[Any, Any, ImagesResponse]), ImagesResponse)
    assert_type(await client.generate("a boat", stream=False), ImagesResponse)
    assert_type(await client.generate(prompt="a boat"), ImagesResponse)


async def tasks(client: AsyncImages, prompts: Sequence[str]) -> None:
    task = asyncio.create_task(client.generate("a boat"))
    assert_type(task, "asyncio.Task[ImagesResponse]")
    async with asyncio.TaskGroup() as group:
        in_group = group.create_task(client.generate("a boat", n=2))
    assert_type(in_group.result(), ImagesResponse)
    one, two = await asyncio.gather(client.generate("a"), client.generate("b"))
    assert_type(one, ImagesResponse)
    assert_type(two, ImagesResponse)
    many: list[ImagesResponse] = await asyncio.gather(
        *(client.generate(prompt) for prompt in prompts)
    )
    assert len(many) == len(prompts)
    waited: ImagesResponse = await asyncio.wait_for(client.generate("a"), 5)
    assert waited
    async with anyio.create_task_group() as anyio_group:
        anyio_group.start_soon(client.generate, "a boat")
        anyio_group.start_soon(save, client, "a boat", Path("out"))


async def save(client: AsyncImages, prompt: str, folder: Path) -> None:
    for number, image in enumerate(await client.generate(prompt)):
        await image.save(folder / f"{number}")


async def streaming(client: AsyncImages) -> None:
    stream = client.generate("a boat", stream=True)
    assert_type(stream, ImageStream)
    assert_type(await stream, ImageStream)
    async with client.generate("a boat", stream=True, partial_images=2) as entered:
        assert_type(entered, ImageStream)
        async for event in entered:
            assert_type(event, PartialImage | CompletedImage)
            match event:
                case PartialImage(image=image, partial_image_index=index):
                    assert_type(image, Image)
                    assert_type(index, int | None)
                case CompletedImage(image=image, usage=usage):
                    assert_type(image, Image)
                    assert_type(usage, Usage | None)
            assert_type(event.type, str)
            assert_type(event.b64_json, str | None)
            assert_type(event.created_at, int | float | None)
            assert_type(event.size, str | None)
            assert_type(event.quality, str | None)
            assert_type(event.background, str | None)
            assert_type(event.output_format, str | None)
        assert_type(await entered.result(), ImagesResponse)
    assert_type(await entered.aclose(), None)
    assert_type(await client.generate("a boat", stream=True).display(), ImagesResponse)
    async for event in client.generate("a boat", stream=True):
        if isinstance(event, CompletedImage):
            assert_type(event, CompletedImage)
        else:
            assert_type(event, PartialImage)
    assert_type(await anext(stream), PartialImage | CompletedImage)
    listed: list[PartialImage | CompletedImage] = [event async for event in stream]
    assert listed


async def either(client: AsyncImages, stream: bool) -> ImagesResponse:
    """A bool known only at run time results in the union; both can be awaited."""
    made = client.generate("a boat", stream=stream)
    assert_type(made, Coroutine[Any, Any, ImagesResponse] | ImageStream)
    if isinstance(made, ImageStream):
        async with made:
            return await made.result()
    return await made


async def every_option(client: AsyncImages) -> None:
    result = await client.generate(
        "a boat",
        model="gpt-image-1",
        n=1,
        size="1024x1024",
        quality="high",
        background="opaque",
        moderation="low",
        style="vivid",
        user="u-1",
        output_format="webp",
        output_compression=80,
        partial_images=0,
        response_format="url",
        safety_identifier="hashed",
        complexity="high",
        frame_count=9,
        frame_duration_ms=200,
        svg={"model": "gpt-5", "reasoning": {"effort": "low"}},
        extra_body={"seed": 7},
        extra_query={"trace": 1},
        extra_headers={"X-A": "b"},
        timeout=Timeout(idle=5),
        retry=1,
    )
    assert_type(result, ImagesResponse)
    none = await client.generate(
        "a boat",
        model=None,
        n=None,
        size=None,
        quality=None,
        background=None,
        moderation=None,
        style=None,
        user=None,
        output_format=None,
        output_compression=None,
        partial_images=None,
        response_format=None,
        safety_identifier=None,
        complexity=None,
        frame_count=None,
        frame_duration_ms=None,
        svg=None,
        extra_body=None,
        extra_query=None,
        extra_headers=None,
        timeout=None,
        retry=None,
    )
    other = await client.generate("a boat", size="96x96", quality="ultra", output_format="heic")
    assert_type(other, ImagesResponse)
    assert_type(none, ImagesResponse)


async def other_prompts(client: AsyncImages, rows: Sequence[Mapping[str, object]]) -> None:
    request = GenerateRequest("a boat", n=2, extra_body={"seed": 7}, svg={"model": "gpt-5"})
    assert_type(request.prompt, str)
    assert_type(request.n, int | None)
    assert_type(await client.generate(request), ImagesResponse)
    assert_type(client.generate(request, stream=True), ImageStream)
    assert_type(await client.generate({"prompt": "a boat", "n": 2}), ImagesResponse)
    calls = map(client.generate, rows)
    assert_type(await next(calls), ImagesResponse)
    prompts: list[str | GenerateRequest | Mapping[str, Any]] = ["a", request, {"prompt": "b"}]
    results: list[ImagesResponse] = await asyncio.gather(*map(client.generate, prompts))
    assert results


def rejected_by_the_checker(client: AsyncImages) -> None:
    """What the checkers must not let through; an unused ignore would be an error of mypy's."""
    client.generate("a boat", n="2")  # type: ignore[call-overload] # pyright: ignore
    client.generate("a boat", sise="auto")  # type: ignore[call-overload] # pyright: ignore
    client.generate()  # type: ignore[call-overload] # pyright: ignore
    client.generate("a boat", "gpt-image-1")  # type: ignore[call-overload] # pyright: ignore
    AsyncImages("sk", validate="loose")  # type: ignore[arg-type] # pyright: ignore
    AsyncImages("sk", "http://host/v1")  # type: ignore[call-arg] # pyright: ignore


# --- results ----------------------------------------------------------------


def results(response: ImagesResponse) -> None:
    sequence: Sequence[Image] = response
    assert_type(len(sequence), int)
    assert_type(response[0], Image)
    assert_type(response[1:], list[Image])
    assert_type(response.data, list[Image])
    for image in response:
        assert_type(image, Image)
    assert_type(response.created, int | float | None)
    assert_type(response.size, str | None)
    assert_type(response.quality, str | None)
    assert_type(response.background, str | None)
    assert_type(response.output_format, str | None)
    assert_type(response.meta, Meta)
    assert_type(response.meta.request_id, str | None)
    assert_type(response.meta.status, int)
    assert_type(response.meta.attempts, int)
    assert_type(response.meta.elapsed, float)
    assert_type(response.meta.first_byte, float)
    assert_type(response.meta.idempotency_key, str | None)
    assert_type(response.meta.rate_limit, RateLimit | None)
    if (limit := response.meta.rate_limit) is not None:
        assert_type(limit.limit_requests, int | None)
        assert_type(limit.remaining_tokens, int | None)
        assert_type(limit.reset_requests, float | None)
    assert_type(response.usage, Usage | None)
    if (usage := response.usage) is not None:
        assert_type(usage.total_tokens, int | float | None)
        assert_type(usage.input_tokens_details, TokenDetails | None)
        if (details := usage.output_tokens_details) is not None:
            assert_type(details.image_tokens, int | float | None)


async def images(image: Image) -> None:
    assert_type(image.content, bytes | None)
    assert_type(image.url, str | None)
    assert_type(image.revised_prompt, str | None)
    assert_type(image.media_type, str | None)
    assert_type(image.b64_json, str | None)
    assert_type(await image.read(), bytes)
    assert_type(await image.save("boat.png"), Path)
    assert_type(await image.save(Path("boat")), Path)
    assert_type(image.to_pil(), PILImage)
    assert_type(Image.from_pil(image.to_pil(), format="webp"), Image)
    assert_type(Image(b"", url=None, revised_prompt="a boat"), Image)


# --- errors -----------------------------------------------------------------

leaves: tuple[type[ElkImagesError], ...] = (
    ConfigurationError,
    ModerationError,
    AuthenticationError,
    NotFoundError,
    RateLimitError,
    ServerError,
    ConnectError,
    EmptyResultError,
    StreamStateError,
    JournalError,
)
moderation: type[BadRequestError] = ModerationError
quota: type[PermissionDeniedError] = QuotaExceededError
value_error: type[ValueError] = InvalidRequestError
timeout_error: type[TimeoutError] = RequestTimeoutError
network: tuple[type[NetworkError], ...] = (ConnectError, RequestTimeoutError, DisconnectedError)
batch_errors: tuple[type[BatchError], ...] = (BatchStoppedError, JournalError)
root: type[ElkImagesError] = errors.ElkImagesError


async def handling(client: AsyncImages) -> None:
    try:
        await client.generate("a boat")
    except InvalidRequestError as error:
        assert_type(error.param, str | None)
    except APIError as error:
        assert_type(error.status, int | None)
        assert_type(error.code, str | None)
        assert_type(error.type, str | None)
        assert_type(error.param, str | None)
        assert_type(error.headers, Mapping[str, str])
        assert_type(error.retry_after, float | None)
    except RequestTimeoutError as error:
        assert_type(error.limit, str | None)
        assert_type(error.phase, str | None)
    except NetworkError as error:
        assert_type(error.phase, str | None)
    except ResponseError as error:
        assert_type(error.status, int | None)
        assert_type(error.body, str | None)
        assert_type(len(error.images), int)
    except StreamIncompleteError as error:
        assert_type(len(error.partials), int)
    except DownloadError as error:
        assert_type(error.url, str | None)
        assert_type(error.status, int | None)
    except BatchStoppedError as error:
        assert_type(error.reason, str | None)
    except StreamError as error:
        assert_type(str(error), str)
    except ElkImagesError as error:
        assert_type(error.message, str)
        assert_type(error.request_id, str | None)
        assert_type(error.attempts, int)
        assert_type(error.billing, Billing)


# --- edits and models -------------------------------------------------------


async def edits(client: AsyncImages, image: Image, streaming: bool) -> None:
    inputs: list[ImageInput] = ["a.png", Path("a.png"), b"", bytearray(), memoryview(b""), image]
    with Path("a.png").open("rb") as file:
        inputs.append(file)
        assert_type(await client.edit(file, "a hat"), ImagesResponse)
    assert_type(await client.edit(inputs, "a hat", mask="mask.png"), ImagesResponse)
    assert_type(await client.edit([image, b"", "a.png"], "a hat", stream=False), ImagesResponse)
    assert_type(client.edit(image, "a hat", stream=True), ImageStream)
    tuples: list[InputFile] = [
        ("a.png", b"", "image/png"),
        ("a.png", b""),
        (None, Path("a.png"), None),
        "https://host/a.png",
        "data:image/png;base64,",
        ImageReference(url="https://host/a.png"),
        ImageReference(file_id="file-1"),
    ]
    assert_type(await client.edit(tuples, "a hat"), ImagesResponse)
    assert_type(await client.images.edit(image=tuples[0], prompt="a hat"), ImagesResponse)
    assert_type(await client.edit(EditRequest("a hat", image="a.png")), ImagesResponse)
    assert_type(await client.edit({"prompt": "a hat", "image": "a.png"}), ImagesResponse)
    assert_type(
        client.edit(image, "a hat", stream=streaming),
        Coroutine[Any, Any, ImagesResponse] | ImageStream,
    )
    await client.edit(
        await client.generate("a boat"),
        prompt="a hat",
        mask=("mask.png", b"", "image/png"),
        markup=None,
        input_fidelity="high",
        moderation="low",
        extra_query={"trace": "1"},
        model="gpt-image-1.5",
        n=1,
        size="auto",
        quality="low",
        background="opaque",
        user="u-1",
        output_format="webp",
        output_compression=50,
        response_format=None,
        extra_body={"seed": 7},
        extra_headers={"X-Team": "one"},
        timeout=60,
        retry=0,
    )
    async with client.edit("a.png", "a hat", stream=True, partial_images=2) as events:
        async for event in events:
            assert_type(event, PartialImage | CompletedImage)
    models = await client.models(timeout=10, retry=1, extra_headers={"X-Team": "one"})
    assert_type(models, Models)
    assert_type(await client.models.list(), Models)
    assert_type([model async for model in client.models.list()], list[Model])
    assert_type(models[0], Model)
    assert_type(models.meta, Meta)
    assert_type(models[0].id, str)
    assert_type(models[0].owned_by, str | None)
    assert_type(models[0].created, int | float | None)
    assert_type(models[0].is_image, bool | None)
    assert_type(EditRequest(image=(), prompt="a hat").input_fidelity, InputFidelity | None)


# --- many requests ----------------------------------------------------------


async def fan_out(
    client: AsyncImages,
    prompts: Sequence[str],
    rows: AsyncIterator[Mapping[str, object]],
    mixed: list[str | GenerateRequest | dict[str, Any]],
) -> None:
    run = client.map(
        prompts,
        concurrency=8,
        ordered=True,
        output_dir=Path("out"),
        journal="run.jsonl",
        max_errors=10,
        max_images=100,
        max_total_tokens=10**6,
        skip_failed=True,
        stream=False,
        model="gpt-image-1",
        size="1024x1024",
        extra_headers={"X-Team": "a"},
        timeout=60,
        retry=1,
    )
    assert_type(run, MapRun)
    client.map(rows)
    client.map(mixed)
    client.map((f"a boat {n}" for n in range(3)), stream=True, partial_images=0)
    async with run as entered:
        assert_type(entered, MapRun)
        async for item in entered:
            assert_type(item, MapItem)
            assert_type(item.index, int)
            assert_type(item.request, GenerateRequest | EditRequest | None)
            assert_type(item.id, str | int | None)
            assert_type(item.ok, bool)
            assert_type(item.result, ImagesResponse | None)
            assert_type(item.error, ElkImagesError | None)
            assert_type(item.paths, tuple[Path, ...])
            assert_type(item.attempts, int)
            assert_type(item.meta, Meta | None)
            assert_type(item.usage, Usage | None)
            assert_type(item.resumed, bool)
        assert_type(entered.totals, Totals)
        assert_type(entered.totals.usage, Usage | None)
        assert_type(entered.totals.elapsed, float)
        assert_type(entered.in_flight, int)
        assert_type(entered.rate, float)


# --- the local server -------------------------------------------------------


async def local() -> None:
    async with LocalServer() as server:
        assert_type(server, LocalServer)
        async with AsyncImages(server.api_key, base_url=server.base_url) as client:
            await client.generate("a boat")
        assert_type(server.generations, int)
        assert_type(server.requests[-1], ReceivedRequest)
        assert_type(server.requests[-1].fields, dict[str, Any])
        assert_type(server.connections, int)
        server.inject("rate-limit*2", Fault("stall-body", 100), parse("html"))
        await server.wait_disconnected(1)
        await server.wait_until(lambda: server.generations > 1)
    started = LocalServer(
        api_key="sk-1", host="127.0.0.1", port=0, delay=0.0, faults=["none"], light=True
    )
    await started.start()
    await started.aclose()
    assert_type(FAULTS, dict[str, str])
    with ThreadedServer(LocalServer()) as threaded:
        assert_type(threaded.requests, list[ReceivedRequest])
        assert_type(threaded.base_url, str)
        threaded.inject("rate-limit*2", parse("html"))
        await threaded.wait_until(lambda: threaded.generations > 1, within=1)
