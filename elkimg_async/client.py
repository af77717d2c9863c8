"""`AsyncImages`: the calls that a user makes."""

import datetime
import math
import os
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from copy import copy
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, get_args

import msgspec

from elkimg_async import logs
from elkimg_async.batch.budget import make_max_cost
from elkimg_async.batch.executor import Sender, SendGate
from elkimg_async.batch.run import MapRun
from elkimg_async.batch.runner import Runner, RunOptions
from elkimg_async.call import Call
from elkimg_async.config import (
    IdempotencyMode,
    Limits,
    Settings,
    ValidateMode,
    check_choice,
    make_model,
    make_query,
    make_retry,
    make_timeout,
    split_base_url,
)
from elkimg_async.credentials import make_source, source_in
from elkimg_async.errors import ConfigurationError, InvalidRequestError
from elkimg_async.hooks import Hook, logger
from elkimg_async.image_calls import ImageCalls
from elkimg_async.ratelimit.limiter import Limiter
from elkimg_async.resources import ModelsAttribute, returns_awaitable
from elkimg_async.sansio.endpoints import EDIT, GENERATE, MODELS, Endpoint
from elkimg_async.sansio.headers import check_headers, merge
from elkimg_async.sansio.models import Models
from elkimg_async.sansio.pricing import Pricing, make_pricing
from elkimg_async.sansio.requests import DEFAULT_MODEL, ImageRequest, make_request
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.sansio.retry import RetryBudget
from elkimg_async.stream import ImageStream
from elkimg_async.transport.download import enable_download
from elkimg_async.transport.session import Transport
from elkimg_async.transport.uploads import build_edit
from elkimg_async.types import (
    MapOptions,
    MapRequest,
    ModelName,
    Prompt,
    RetryLike,
    TimeoutLike,
)

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
_SHUTDOWN_NOTICE = datetime.timedelta(days=30)


class AsyncImages(ImageCalls):
    """A client for ElkAPI's image API and every OpenAI-compatible one.

        async with AsyncImages() as client:
            result = await client.generate("A small kitten in a sunny garden")
            await result[0].save("kitten.png")

    One client serves any number of tasks, and several event loops: it keeps a pool of connections
    for each loop, opened on first use. Close it with `async with` or `await client.aclose()`.
    """

    def __init__(
        self,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        *,
        base_url: str | None = None,
        model: ModelName | None = None,
        timeout: TimeoutLike | None = None,
        retry: RetryLike | None = None,
        idempotency: IdempotencyMode = "send",
        validate: ValidateMode = "strict",
        limits: Limits | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        session: "aiohttp.ClientSession | None" = None,
        hooks: Iterable[Hook] = (),
        pricing: Pricing | None = None,
        max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, Any] | None = None,
    ) -> None:
        """Set up a client; nothing is opened before the first call.

        Args:
            api_key: The API key, or an async function that returns it, called before each attempt.
                None: ELKAPI_API_KEY, read at each attempt; with an `api-key` among `headers`, none.
            base_url: The address up to and including /v1, and a query for every request.
                None: ELKAPI_BASE_URL, else ElkAPI's.
            model: The default model of all calls. None: ELKAPI_MODEL, else gpt-image-1.5.
            timeout: Limits in seconds; a number limits the whole call. None: `Timeout()`.
            retry: When to retry; a number is how often at most. None: `RetryPolicy()`.
            idempotency: `off` sends no Idempotency-Key; `send` sends one for each call, the same
                for all attempts; `replay` means that the server is known to replay its response, so
                that a call whose outcome is unknown may be retried.
            validate: What to do with a request that its model is known to reject: `strict` raises
                InvalidRequestError, `warn` emits a Python warning, `off` sends it.
            limits: Limits that all calls of the client share. None: `Limits()`.
            headers: Further headers of every request. None: none.
            query: Further query parameters of every request. None: none.
            session: A session of yours to send through, never closed here. None: one of our own.
            hooks: Functions that receive a record of everything that happens; see
                `elkimg_async.hooks`.
            pricing: The prices behind `meta.cost` of each result, where the server does not report
                its own, and behind `max_cost` of `map`. None: costs that the server does not report
                are unknown.
            max_retries: openai's name for a number passed as `retry`.
            default_headers: openai's name for `headers`.
            default_query: openai's name for `query`.

        Raises:
            ConfigurationError: If a value cannot work.
        """
        check_choice("idempotency", idempotency, get_args(IdempotencyMode))
        check_choice("validate", validate, get_args(ValidateMode))
        source = make_source(api_key)
        api_key = None  # so that the traceback of what fails below does not hold it
        policy, limits = make_retry(retry, max_retries), limits or Limits()
        if not isinstance(limits, Limits):
            raise ConfigurationError(f"limits must be Limits(…), not {type(limits).__name__}.")
        sent = _client_headers(_one("headers", headers, "default_headers", default_headers))
        address, parameters = split_base_url(base_url)
        self._settings = Settings(
            api_key=source_in(sent) if source is None else source,
            base_url=address,
            query=parameters | make_query(_one("query", query, "default_query", default_query)),
            model=make_model(model),
            timeout=make_timeout(timeout),
            retry=policy,
            budget=RetryBudget(policy.budget),
            idempotency=idempotency,
            validate=validate,
            limits=limits,
            headers=sent,
            hooks=tuple(hooks),
            limiter=Limiter(
                max_concurrency=limits.max_concurrency,
                requests_per_minute=limits.requests_per_minute,
                images_per_minute=limits.images_per_minute,
            ),
            shutdowns={},
            pricing=make_pricing(pricing),
        )
        self._transport = Transport(
            session, created_at=str(logs.WarningSite()), keepalive=limits.keepalive_timeout
        )

    @property
    def base_url(self) -> str:
        """The address that requests are sent to, without its query."""
        return self._settings.base_url

    @property
    def model(self) -> str:
        """The default model of all calls."""
        return self._settings.model

    @property
    def images(self) -> Self:
        """The client itself, for code written for openai: `client.images.generate(…)`."""
        return self

    models: ModelsAttribute = returns_awaitable(ModelsAttribute())
    """The models of the server: `await client.models()`, or `client.models.list()` as in openai."""

    def with_options(
        self,
        *,
        model: ModelName | None = None,
        timeout: TimeoutLike | None = None,
        retry: RetryLike | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        max_retries: int | None = None,
    ) -> "AsyncImages":
        """Return a view of this client with other options, on the same connections.

        None keeps what is set; `headers` and `query` are added to those of the client. Closing
        either closes both.
        """
        if max_retries is not None:
            retry = make_retry(retry, max_retries)
        view = copy(self)
        settings = self._settings_with(timeout, retry, headers, query)
        if model is not None:
            settings = msgspec.structs.replace(settings, model=make_model(model))
        view.__dict__["_settings"] = settings
        return view

    def _settings_with(
        self,
        timeout: TimeoutLike | None,
        retry: RetryLike | None,
        headers: Mapping[str, str] | None,
        query: Mapping[str, Any] | None = None,
    ) -> Settings:
        settings = self._settings
        if timeout is None and retry is None and headers is None and query is None:
            return settings
        return msgspec.structs.replace(
            settings,
            timeout=settings.timeout if timeout is None else make_timeout(timeout),
            retry=settings.retry if retry is None else make_retry(retry),
            headers=merge(settings.headers, _client_headers(headers)),
            query=settings.query | make_query(query),
        )

    def _generate(
        self,
        prompt: Prompt,
        fields: Mapping[str, Any],
        stream: bool,
        *options: Any,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        async def build() -> ImageRequest:
            request = make_request(prompt, fields, model=self.model)
            self._warn_of_shutdown(request.model or DEFAULT_MODEL)
            return request

        return self._call(GENERATE, build, stream, *options)

    def _edit(
        self,
        image: Any,
        fields: Mapping[str, Any],
        stream: bool,
        *options: Any,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        async def build() -> ImageRequest:
            request = await build_edit(image, fields, model=self.model)
            self._warn_of_shutdown(request.model or DEFAULT_MODEL)
            return request

        return self._call(EDIT, build, stream, *options)

    def _call(
        self,
        endpoint: Endpoint[ImagesResponse],
        build: Callable[[], Awaitable[ImageRequest]],
        stream: bool,
        extra_headers: Mapping[str, str] | None,
        extra_query: Mapping[str, Any] | None,
        timeout: TimeoutLike | None,
        retry: RetryLike | None,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        if not isinstance(stream, bool):
            raise InvalidRequestError("stream must be True or False.", param="stream")
        call = Call(
            self._settings_with(timeout, retry, None, extra_query),
            self._transport,
            endpoint,
            build,
            stream=stream,
            extra_headers=extra_headers,
        )
        return ImageStream(call) if stream else call.result()

    async def _list_models(
        self,
        *,
        extra_headers: Mapping[str, str] | None,
        extra_query: Mapping[str, Any] | None,
        timeout: TimeoutLike | None,  # noqa: ASYNC109 - limits of ours
        retry: RetryLike | None,
    ) -> Models:
        settings = self._settings_with(timeout, retry, None, extra_query)
        call = Call(settings, self._transport, MODELS, _build_nothing, extra_headers=extra_headers)
        models = await call.result()
        for model in models:
            if date := getattr(model, "shutdown_date", None):
                settings.shutdowns.setdefault(model.id, date)
        return models

    def _warn_of_shutdown(self, model: str) -> None:
        """Log a warning, once for each model, if the server ends it within 30 days."""
        try:
            end = datetime.date.fromisoformat(self._settings.shutdowns.get(model, "")[:10])
        except ValueError:
            return
        if end <= datetime.datetime.now(datetime.UTC).date() + _SHUTDOWN_NOTICE:
            self._settings.shutdowns[model] = ""
            logger.warning(
                "The server shuts down the model %s on %s; choose another (elkimg models).",
                model,
                end,
            )

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
        max_cost: Decimal | int | str | None = None,
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
            max_cost: How much money may be spent, what the journal records included, in the
                currency of the client's `pricing`, which it needs; a float is rejected because it
                is not exact. Each request reserves the most that it can cost before it is sent, and
                settles what it has cost afterwards; one whose outcome is unknown counts with the
                most. The limit is kept as far as nothing costs more than its price list says.
                None: no limit.
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
            ConfigurationError: If an option cannot work; on entering, if the folder cannot be used;
                on iterating, if `max_cost` is set and the most that a request can cost, or what the
                journal records, is not known.
            InvalidRequestError: If `requests` is not an iterable of requests.
            JournalError: On entering or iterating, if the journal is in use, unreadable, or of
                other requests.
            BatchStoppedError: On iterating, after the last item, if a limit or a hopeless error
                ended the run before its input did; `reason` says which.
            BatchError: If it is iterated outside the block, twice, or from two tasks; or if the
                disk does not take an image.
        """
        if unknown := options.keys() - MapOptions.__annotations__.keys():
            raise TypeError(f"map() got an unexpected keyword argument {min(unknown)!r}")
        defaults = _given(**options)
        headers = check_headers(defaults.pop("extra_headers", None))
        query = defaults.pop("extra_query", None)
        settings = self._settings_with(
            defaults.pop("timeout", None), defaults.pop("retry", None), None, query
        )
        if settings.model != DEFAULT_MODEL:
            defaults.setdefault("model", settings.model)
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
            connect=partial(enable_download, transport=self._transport, settings=settings),
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
            max_cost=make_max_cost(max_cost),
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
                pricing=settings.pricing,
                payable=_payable_attempts(settings),
            )
        )

    async def aclose(self) -> None:
        """Close the connections; idempotent. Calls and streams in flight fail at once."""
        self._settings.limiter.close()
        await self._transport.aclose()

    async def close(self) -> None:
        """Close the client as `aclose` does; openai's name for it."""
        await self.aclose()

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
        if not hasattr(self, "_transport"):  # its options were rejected
            return "<AsyncImages, not set up>"
        return f"<AsyncImages for {self.base_url}{', closed' if self._transport.closed else ''}>"


def _payable_attempts(settings: Settings) -> int:
    """Return how many attempts of one call may be paid for."""
    repeats = settings.retry.retry_unknown and settings.idempotency != "replay"
    return 1 + settings.retry.max_retries if repeats else 1


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


async def _build_nothing() -> None:
    """Return no request: the list of models takes none."""


def _one(name: str, value: T | None, other_name: str, other: T | None) -> T | None:
    """Return the value that was passed under either of two names."""
    if value is not None and other is not None:
        raise ConfigurationError(f"Pass either {name} or {other_name}, not both.")
    return other if value is None else value


def _client_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    try:
        return check_headers(headers)
    except InvalidRequestError as error:
        problem = error.message
    raise ConfigurationError(problem)
