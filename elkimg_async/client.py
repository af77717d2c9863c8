"""`AsyncImages`: the calls that a user makes."""

import math
import os
import sys
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from copy import copy
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, get_args, overload

import msgspec

from elkimg_async.batch.run import MapRun
from elkimg_async.config import (
    IdempotencyMode,
    Limits,
    RetryPolicy,
    Settings,
    Timeout,
    ValidateMode,
    check_choice,
    make_base_url,
    make_key,
    make_retry,
    make_timeout,
)
from elkimg_async.errors import ConfigurationError, InvalidRequestError
from elkimg_async.hooks import Hook
from elkimg_async.image import ImageInput
from elkimg_async.sansio.headers import check_headers, merge
from elkimg_async.sansio.models import Models
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.sansio.retry import RetryBudget
from elkimg_async.stream import ImageStream
from elkimg_async.types import (
    EditOptions,
    GenerateOptions,
    Images,
    MapOptions,
    MapRequest,
    Prompt,
)

if TYPE_CHECKING:
    import aiohttp

    from elkimg_async.endpoints import Endpoint


class AsyncImages:
    """A client for ElkAPI's image API and every OpenAI-compatible one.

        async with AsyncImages() as client:
            result = await client.generate("A small kitten in a sunny garden")
            await result[0].save("kitten.png")

    One client serves any number of tasks, and several event loops: it keeps a pool of connections
    for each loop, made on first use. Close it with `async with` or `await client.aclose()`.
    """

    def __init__(
        self,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        *,
        base_url: str | None = None,
        timeout: Timeout | float | None = None,
        retry: RetryPolicy | int | None = None,
        idempotency: IdempotencyMode = "send",
        validate: ValidateMode = "strict",
        limits: Limits | None = None,
        headers: Mapping[str, str] | None = None,
        session: "aiohttp.ClientSession | None" = None,
        hooks: Iterable[Hook] = (),
    ) -> None:
        """Set up a client; nothing is opened before the first call.

        Args:
            api_key: The key, or an async function that returns it, asked before each attempt.
                None: the environment's ELKAPI_API_KEY, looked up at each call.
            base_url: The address up to and including /v1. None: ELKAPI_BASE_URL, else ElkAPI's.
            timeout: Limits in seconds; a number limits the whole call. None: `Timeout()`.
            retry: When to try again; a number is how often at most. None: `RetryPolicy()`.
            idempotency: `off` sends no key; `send` sends an Idempotency-Key for each call, the same over its
                attempts; `replay` says that the server is known to replay an answer for its key, so that
                a call whose outcome is unknown may be tried again.
            validate: What to do with a request that its model is known to refuse: `strict` raises
                InvalidRequestError, `warn` gives a Python warning, `off` sends it. Types are always checked.
            limits: What all calls of the client share. None: `Limits()`.
            headers: Further headers of every request. None: none.
            session: A session of yours to send through; it is never closed here. None: a pool of our own.
            hooks: Functions that are told what happens; see `elkimg_async.hooks`.

        Raises:
            ConfigurationError: by the caller, for a value that cannot work.
        """
        check_choice("idempotency", idempotency, get_args(IdempotencyMode))
        check_choice("validate", validate, get_args(ValidateMode))
        key: Any = api_key
        if isinstance(api_key, str):
            key = make_key(api_key) if api_key.strip() else _no_key
        elif api_key is not None and not callable(api_key):
            raise ConfigurationError("api_key must be a string or an async function.")
        api_key = None  # so that the traceback of what fails below does not hold it
        from elkimg_async import call, endpoints  # asyncio and all below it, late
        from elkimg_async.ratelimit.limiter import Limiter
        from elkimg_async.transport.exchange import Transport

        self._call, self._endpoints = call.Call, endpoints
        policy, limits = make_retry(retry), limits or Limits()
        if not isinstance(limits, Limits):
            raise ConfigurationError(f"limits must be Limits(…), not {type(limits).__name__}.")
        self._settings = Settings(
            api_key=key,
            base_url=make_base_url(base_url),
            timeout=make_timeout(timeout),
            retry=policy,
            budget=RetryBudget(policy.budget),
            idempotency=idempotency,
            validate=validate,
            limits=limits,
            headers=_client_headers(headers),
            hooks=tuple(hooks),
            limiter=Limiter(
                max_concurrency=limits.max_concurrency,
                requests_per_minute=limits.requests_per_minute,
                images_per_minute=limits.images_per_minute,
            ),
        )
        maker = sys._getframe(1)  # noqa: SLF001
        made_at = f"{maker.f_code.co_filename}:{maker.f_lineno}"
        self._transport = Transport(session, made_at=made_at)

    @property
    def base_url(self) -> str:
        """The address that requests go to."""
        return self._settings.base_url

    def with_options(
        self,
        *,
        timeout: Timeout | float | None = None,
        retry: RetryPolicy | int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "AsyncImages":
        """A view of this client with other options, on the same connections; None keeps what is set.

        `headers` are added to those of the client. Closing either closes both.
        """
        view = copy(self)
        view.__dict__["_settings"] = self._settings_with(timeout, retry, headers)
        return view

    def _settings_with(
        self,
        timeout: Timeout | float | None,
        retry: RetryPolicy | int | None,
        headers: Mapping[str, str] | None,
    ) -> Settings:
        settings = self._settings
        if timeout is None and retry is None and headers is None:
            return settings
        return msgspec.structs.replace(
            settings,
            timeout=settings.timeout if timeout is None else make_timeout(timeout),
            retry=settings.retry if retry is None else make_retry(retry),
            headers=merge(settings.headers, _client_headers(headers)),
        )

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> Coroutine[Any, Any, ImagesResponse]: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> ImageStream: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream: ...
    def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        n: int | None = None,
        size: str | None = None,
        quality: str | None = None,
        background: str | None = None,
        moderation: str | None = None,
        style: str | None = None,
        user: str | None = None,
        output_format: str | None = None,
        output_compression: int | None = None,
        partial_images: int | None = None,
        response_format: str | None = None,
        stream: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        timeout: Timeout | float | None = None,
        retry: RetryPolicy | int | None = None,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        """Make images from a text: `await` it for all of them, or stream them with `stream=True`.

        Args:
            prompt: What the picture shows; or a `GenerateRequest`, or a mapping of its fields, which the
                other arguments override.
            model: None means gpt-image-1.5.
            n: How many images, 1 to 10. None: the server's default, 1.
            size: `1024x1024`, `1536x1024`, `1024x1536`, `auto`, or what else the model offers, in pixels.
            quality: `low`, `medium`, `high`, `auto`; `standard` or `hd` for dall-e-3. Dearer is slower.
            background: `transparent` (png and webp only), `opaque` or `auto`.
            moderation: `low` or `auto`.
            style: `vivid` or `natural`, dall-e-3 only.
            user: Your own name for the end user, for the provider's abuse checks.
            output_format: `png`, `jpeg` or `webp`.
            output_compression: 0 to 100 per cent, jpeg and webp only.
            partial_images: How many images on the way a stream shows, 0 to 3; fewer may come, and each
                costs extra tokens. None: 1 from a GPT image model, 0 switches them off.
            response_format: `url` or `b64_json`, dall-e only.
            stream: Whether to get an `ImageStream`, which gives images as they sharpen.
            extra_body: Further keys of the request's body; they win over the arguments above.
            extra_headers: Further headers of this request.
            timeout: Limits of this call in seconds; a number limits all of it. None: the client's.
            retry: When to try this call again; a number is how often. None: the client's.

        None means for each other option that it is not sent, and the server's default holds.

        Raises:
            InvalidRequestError, ConfigurationError: by the caller; nothing was sent.
            APIError: by the server, which said no; the subclass and `code` say why.
            NetworkError: by the network, or a limit of `timeout`; `billing` tells what is known.
            ResponseError, StreamError: by the server, whose answer is none.
        """
        endpoint = self._endpoints.Generate(
            prompt,
            {
                "model": model,
                "n": n,
                "size": size,
                "quality": quality,
                "background": background,
                "moderation": moderation,
                "style": style,
                "user": user,
                "output_format": output_format,
                "output_compression": output_compression,
                "partial_images": partial_images,
                "response_format": response_format,
                "extra_body": extra_body,
            },
        )
        return self._images(endpoint, stream, extra_headers, timeout, retry)

    @overload
    def edit(
        self,
        image: Images,
        prompt: str,
        *,
        stream: Literal[False] = False,
        **options: Unpack[EditOptions],
    ) -> Coroutine[Any, Any, ImagesResponse]: ...
    @overload
    def edit(
        self, image: Images, prompt: str, *, stream: Literal[True], **options: Unpack[EditOptions]
    ) -> ImageStream: ...
    @overload
    def edit(
        self, image: Images, prompt: str, *, stream: bool, **options: Unpack[EditOptions]
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream: ...
    def edit(
        self,
        image: Images,
        prompt: str,
        *,
        mask: ImageInput | None = None,
        input_fidelity: str | None = None,
        stream: bool = False,
        extra_headers: Mapping[str, str] | None = None,
        timeout: Timeout | float | None = None,
        retry: RetryPolicy | int | None = None,
        **options: Any,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        """Edit pictures as a text says: `await` it for all results, or stream them with `stream=True`.

        A file is read while it leaves, piece by piece in a worker thread, and again for a retry. Until the
        call is over it must stay as it is.

        Args:
            image: A path, bytes, a file opened in binary mode, or an `Image`; or a list of up to 16. They
                are png, webp or jpeg, and less than 50 MB each. A file object is sent from its beginning and
                left standing where it stood; one that cannot seek is read into memory.
            prompt: What the result shows.
            mask: A picture of the size of the first image; where it is fully transparent, the image is
                edited. None: everywhere.
            input_fidelity: `high` keeps features such as faces closer to the image, `low` costs less.
            **options: `model`, `n`, `size`, `quality`, `background`, `user`, `output_format`,
                `output_compression`, `partial_images`, `response_format`, `stream`, `extra_body`,
                `extra_headers`, `timeout` and `retry` are those of `generate`.

        Raises:
            InvalidRequestError: by the caller, also for a file that cannot be read or is no picture.
            ElkImagesError: the others are those of `generate`.
        """
        options["input_fidelity"] = input_fidelity
        endpoint = self._endpoints.Edit(image, mask, prompt, options)
        return self._images(endpoint, stream, extra_headers, timeout, retry)

    def _images(
        self,
        endpoint: "Endpoint[ImagesResponse]",
        stream: bool,
        extra_headers: Mapping[str, str] | None,
        timeout: Timeout | float | None,
        retry: RetryPolicy | int | None,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        if not isinstance(stream, bool):
            raise InvalidRequestError("stream must be True or False.", param="stream")
        call = self._call(
            self._settings_with(timeout, retry, None),
            self._transport,
            endpoint,
            stream=stream,
            extra_headers=extra_headers,
        )
        return ImageStream(call) if stream else call.drain()

    def models(
        self,
        *,
        extra_headers: Mapping[str, str] | None = None,
        timeout: Timeout | float | None = None,
        retry: RetryPolicy | int | None = None,
    ) -> Coroutine[Any, Any, Models]:
        """The models of the server, in its order; `Model.is_image` tells those that make images.

        Args:
            extra_headers: Further headers of this request.
            timeout: Limits of this call in seconds; a number limits all of it. None: the client's.
            retry: When to try this call again; a number is how often. None: the client's.

        Raises:
            ElkImagesError: the same as for `generate`; it never costs anything, so whatever may pass is
                tried again.
        """
        settings, endpoint = self._settings_with(timeout, retry, None), self._endpoints.ListModels()
        return self._call(settings, self._transport, endpoint, extra_headers=extra_headers).drain()

    def map(
        self,
        requests: Iterable[MapRequest] | AsyncIterable[MapRequest],
        *,
        concurrency: int = 32,
        ordered: bool = False,
        output_dir: str | os.PathLike[str] | None = None,
        journal: str | os.PathLike[str] | None = None,
        max_errors: int | None = None,
        max_images: int | None = None,
        max_total_tokens: int | None = None,
        skip_failed: bool = False,
        require_lock: bool = True,
        stream: bool = False,
        **options: Unpack[MapOptions],
    ) -> MapRun:
        """Send many requests, a bounded number at a time; a failure never affects the others.

            async with client.map(prompts, output_dir="out", journal="run.jsonl") as run:
                async for item in run:
                    print(item.index, item.paths if item.ok else item.error)

        Entering the block starts the run; iterating yields one `MapItem` for each request; leaving
        the block cancels what is in flight. What is finished and not yet taken counts towards
        `concurrency`, so a slow loop body slows the requests, and memory stays bounded.

        A run stops early, with BatchStoppedError, when every further request would fail the same
        way: after a ConfigurationError, a rejected API key, an exhausted quota, or a host that
        cannot be resolved or trusted.

        Args:
            requests: Prompts, `GenerateRequest`s, `EditRequest`s, or mappings of their fields, in
                any iterable or async iterable, read as needed. A mapping with `image` is an edit;
                its files are read when its turn comes. None, NaN and empty text in a mapping mean
                that the field is not set; numbers may be text, as in CSV. `id` or `custom_id` and
                `metadata` (a mapping) are not sent: they come back with the item, and in the
                manifest and the journal. An iterable that is not a list or the like is read in a
                thread of its own, at most `concurrency` items ahead. An item that is not a valid
                request, or an edit whose file cannot be read, is a failed item.
            concurrency: How many requests are in flight at a time, as far as the client's `limits`
                allow.
            ordered: Yield items in the order of the requests instead of as they finish; while a
                slow one is awaited, at most twice as many are in flight or done.
            output_dir: A folder for the images, created if missing, with `manifest.jsonl`; the
                items then have `paths` and no `result`. Files are named after the prompt, those of
                an edit after its first input file. One run at a time may use it. None: the items
                have a `result`.
            journal: A file that lets the same run, started again, do what is left: what was not
                done yet, what has failed, and edits whose files have changed. Finished items are
                yielded at once, as `resumed` and without their `result`. It belongs to these
                requests; more of them may follow at the end. None: there is none.
            max_errors: The number of failed items that ends the run. None: no limit.
            max_images: How many images may be paid for, those in the journal included, and those
                that may have been made by a request that failed, or that was in flight when an
                earlier run was left or killed. Sending that again counts again, unless the client's
                `idempotency` is `replay`. None: no limit.
            max_total_tokens: The same for tokens, as far as the server reports them: the next
                request, and what may have been made without a response, is assumed to cost what an
                image has cost so far; until that is known, requests go one by one. None: no limit.
            skip_failed: Leave what has failed in an earlier run as it is; its items carry the error
                recorded then.
            require_lock: Whether to fail where the file system has no locks, which keep a second
                run from using the journal or the folder at the same time.
            stream: Request streams, which keep connections alive through proxies that cut silent
                ones; only finished images are used, and `partial_images=0` saves the cost of the
                others.
            options: Those of `generate` and `edit`: fields for requests that do not have their own,
                and headers, `timeout` and `retry` for each call. If neither these nor the client
                set a total time, a call waits for its turn as long as it takes.

        Raises:
            ConfigurationError: If an option cannot work, or, on entering, the folder cannot be
                used.
            InvalidRequestError: If `requests` is not an iterable of requests.
            JournalError: On entering or iterating, if the journal is in use, unreadable, or of
                other requests.
            BatchStoppedError: On iterating, after the last item, if a limit or a hopeless error
                ended the run before its input did; `reason` says which.
            BatchError: If it is iterated outside the block, twice, or from two tasks; or if the
                disk does not take an image.
        """
        known = GenerateOptions.__annotations__ | EditOptions.__annotations__
        if unknown := options.keys() - known.keys():
            raise TypeError(f"map() got an unexpected keyword argument {min(unknown)!r}")
        from elkimg_async.batch.executor import Sender, SendGate  # late, as Call is
        from elkimg_async.batch.runner import Runner, RunOptions
        from elkimg_async.transport.download import connect_image

        defaults = _given(**options)
        headers = check_headers(defaults.pop("extra_headers", None))
        settings = self._settings_with(
            defaults.pop("timeout", None), defaults.pop("retry", None), None
        )
        timeout = settings.timeout
        if timeout.total is None:
            timeout = msgspec.structs.replace(timeout, total=math.inf)
        gate, view = SendGate(), copy(self)
        view.__dict__["_settings"] = msgspec.structs.replace(
            settings, hooks=(*settings.hooks, gate.observe)
        )
        sender = Sender(
            generate=partial(view.generate, timeout=timeout, retry=settings.retry),
            edit=partial(view.edit, timeout=timeout, retry=settings.retry),
            connect=partial(connect_image, transport=self._transport, settings=settings),
            headers=headers,
            stream=stream,
            gate=gate,
        )
        run_options = RunOptions(
            concurrency=concurrency,
            ordered=ordered,
            output_dir=output_dir,
            journal=journal,
            max_errors=max_errors,
            max_images=max_images,
            max_total_tokens=max_total_tokens,
            skip_failed=skip_failed,
            require_lock=require_lock,
            stream=stream,
        )
        return MapRun(
            Runner(
                requests,
                run_options,
                defaults=defaults,
                sender=sender,
                idempotency=settings.idempotency,
                rate=lambda: settings.limiter.rate,
            )
        )

    async def aclose(self) -> None:
        """Close the connections; a second time does nothing. Calls that are running fail."""
        self._settings.limiter.close()
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if not hasattr(self, "_transport"):  # its options were refused
            return "<AsyncImages, not set up>"
        return f"<AsyncImages for {self.base_url}{', closed' if self._transport.closed else ''}>"


async def _no_key() -> str:
    """For an empty key: not the environment's, which may be meant for another server."""
    return ""


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _client_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    try:
        return check_headers(headers)
    except InvalidRequestError as error:
        problem = error.message
    raise ConfigurationError(problem)
