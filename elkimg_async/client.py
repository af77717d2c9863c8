"""`AsyncImages`, the client: its options and its public calls."""

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from copy import copy
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from elkimg_async import logs
from elkimg_async.batch.budget import make_max_cost
from elkimg_async.batch.create import create_run
from elkimg_async.batch.run import MapRun
from elkimg_async.batch.runner import RunOptions
from elkimg_async.config import IdempotencyMode, Limits, ValidateMode
from elkimg_async.credentials import make_source
from elkimg_async.hints import (
    OTHER_CHANGES,
    OTHER_FIELDS,
    OTHER_METHODS,
    OTHER_OPTIONS,
    OTHERWISE,
    AsyncOnly,
    advise_keywords,
    missing_attribute,
    spell_out,
    unknown_keyword,
)
from elkimg_async.hooks import Hook
from elkimg_async.image_calls import ImageCalls
from elkimg_async.resources import ModelsAttribute, returns_awaitable
from elkimg_async.sansio.pricing import Pricing
from elkimg_async.settings import Settings, change_settings, create_settings, either
from elkimg_async.transport.session import Transport
from elkimg_async.types import MapOptions, MapRequest, ModelName, RetryLike, TimeoutLike

if TYPE_CHECKING:
    import aiohttp


class AsyncImages(ImageCalls, AsyncOnly):
    """A client for ElkAPI's image API and every OpenAI-compatible one.

        async with AsyncImages() as client:
            result = await client.generate("A small kitten in a sunny garden")
            await result[0].save("kitten.png")

    One client serves any number of tasks, and several event loops: it keeps a pool of connections
    for each loop, opened on first use. Close it with `async with` or `await client.aclose()`.
    """

    _usage = "async with AsyncImages() as client: …"

    @advise_keywords(OTHER_OPTIONS)
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
            timeout: Time limits in seconds; a number is the total. None: `Timeout()`.
            retry: When to retry; a number is the maximum number of retries. None: `RetryPolicy()`.
            idempotency: `off` sends no Idempotency-Key; `send` sends one for each call, the same
                for all attempts; `replay` means that the server is known to replay its response, so
                that a call whose outcome is unknown may be retried.
            validate: How to handle a request that its model is known to reject: `strict` raises
                InvalidRequestError, `warn` emits a Python warning, `off` sends it.
            limits: Limits that all calls of the client share. None: `Limits()`.
            headers: Additional headers for every request.
            query: Additional query parameters for every request.
            session: A session of yours to send requests with; it is never closed by the client.
                Downloads of result URLs use its connector and trace configurations, but not its
                headers, cookies, credentials and middlewares. None: the client creates its own.
            hooks: Functions that receive a record of everything that happens; see
                `elkimg_async.hooks`.
            pricing: The prices for `meta.cost` of results whose cost the server does not report,
                and for `max_cost` of `map`. None: such costs are unknown.
            max_retries: openai's name for a number passed as `retry`.
            default_headers: openai's name for `headers`.
            default_query: openai's name for `query`.

        Raises:
            ConfigurationError: If an option is invalid.
        """
        source = make_source(api_key)
        api_key = None  # keeps it out of the traceback if a check fails
        self._settings = create_settings(
            source,
            base_url=base_url,
            model=model,
            timeout=timeout,
            retry=either("retry", retry, "max_retries", max_retries),
            idempotency=idempotency,
            validate=validate,
            limits=limits,
            headers=either("headers", headers, "default_headers", default_headers),
            query=either("query", query, "default_query", default_query),
            hooks=hooks,
            pricing=pricing,
        )
        self._transport = Transport(
            session,
            created_at=str(logs.WarningSite()),
            keepalive=self._settings.limits.keepalive_timeout,
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

    @advise_keywords(OTHER_CHANGES)
    def with_options(
        self,
        *,
        model: ModelName | None = None,
        timeout: TimeoutLike | None = None,
        retry: RetryLike | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, Any] | None = None,
    ) -> "AsyncImages":
        """Return a view of this client with other options, which shares its connections.

        None keeps the current value; `headers` and `query` are added to the client's. The last
        three are openai's names for `retry`, `headers` and `query`. Closing either closes both.

        Raises:
            ConfigurationError: If an option is invalid.
        """
        return self._view(
            change_settings(
                self._settings,
                model=model,
                timeout=timeout,
                retry=either("retry", retry, "max_retries", max_retries),
                headers=either("headers", headers, "default_headers", default_headers),
                query=either("query", query, "default_query", default_query),
            )
        )

    def _view(self, settings: Settings) -> "AsyncImages":
        view = copy(self)
        view._settings = settings  # noqa: SLF001 - of the same class
        return view

    @spell_out(MapOptions)
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
        """Send many requests, a bounded number at a time; a failed one never affects the others.

            async with client.map(prompts, output_dir="out", journal="run.jsonl") as run:
                async for item in run:
                    print(item.index, item.paths if item.ok else item.error)

        Entering the block starts the run; iterating yields one `MapItem` for each request; leaving
        the block cancels what is in flight. Finished items that have not been iterated over yet
        count towards `concurrency`, so a slow loop body slows the requests and memory stays
        bounded.

        A run stops early, with BatchStoppedError, when every further request would fail the same
        way: after a ConfigurationError, a rejected API key, an exhausted quota, or a host that
        cannot be resolved or trusted.

        Args:
            requests: Prompts, `GenerateRequest`s, `EditRequest`s, or mappings of their fields, in
                any iterable or async iterable, read as needed. A mapping with `image` is an edit;
                its files are read when its turn comes. None, NaN and empty text in a mapping mean
                that the field is not set; numbers may be text, as in CSV. `id` or `custom_id` and
                `metadata` (a mapping) are not sent: they come back with the item, and in the
                manifest and the journal. An iterable other than a list or similar is read in a
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
            journal: A file that makes the run resumable: started again, it sends only requests that
                have not finished, have failed, or are edits whose files have changed. Finished
                items are yielded at once, as `resumed` and without their `result`. A journal
                belongs to its requests; more of them may be appended. None: no journal.
            max_errors: The number of failed items that ends the run. None: no limit.
            max_images: How many images may be paid for, including those in the journal, and those
                that may have been created by a request that failed, or that was in flight when an
                earlier run was stopped or killed. Sending such a request again counts again, unless
                the client's `idempotency` is `replay`. None: no limit.
            max_total_tokens: The same for tokens, as far as the server reports them: the next
                request, and images that may have been created without a response, are assumed to
                cost as much as an image has cost so far; until that is known, requests are sent
                one by one. None: no limit.
            max_cost: How much money may be spent, including what the journal records, in the
                currency of the client's `pricing`, which is required. It is exact, so a float is
                not accepted. Before it is sent, each request reserves the most that it can cost; a
                request whose outcome is unknown counts in full. Requests that cost more than the
                prices say can exceed the limit. None: no limit.
            skip_failed: Whether to skip requests that failed in an earlier run; their items carry
                the error recorded then.
            require_lock: Whether to fail if the file system has no locks, which keep a second run
                from using the journal or the folder at the same time.
            stream: Whether to request streams, which keep connections alive through proxies that
                cut silent ones; only completed images are used, and `partial_images=0` saves the
                cost of the others.
            options: Options of `generate` and `edit`: fields for requests that do not set them, and
                headers, `timeout` and `retry` for each call. If neither these nor the client set a
                total time, a call waits for its turn indefinitely.

        Raises:
            ConfigurationError: If an option is invalid; on entering, if the folder cannot be used;
                on iterating, if `max_cost` is set and the maximum cost of a request, or a cost in
                the journal, is unknown.
            InvalidRequestError: If `requests` is not an iterable of requests.
            JournalError: On entering or iterating, if the journal is in use, unreadable, or belongs
                to other requests.
            BatchStoppedError: On iterating, after the last item, if a limit or an error that every
                further request would meet ended the run early; `reason` says which.
            BatchError: If the run is iterated outside the block, twice, or from two tasks, or an
                image cannot be written to disk.
        """
        if unknown := options.keys() - MapOptions.__annotations__.keys():
            known = [*MapOptions.__annotations__, *RunOptions.__struct_fields__]
            raise unknown_keyword("map", min(unknown), known, OTHER_FIELDS, otherwise=OTHERWISE)
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
        return create_run(
            requests,
            run_options,
            options,
            settings=change_settings(
                self._settings,
                timeout=options.get("timeout"),
                retry=options.get("retry"),
                query=options.get("extra_query"),
            ),
            transport=self._transport,
            view=self._view,
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

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute(self, name, OTHER_METHODS.get(name))

    def __copy__(self) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        return view

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A client cannot be pickled, since it has connections and an API key; create one in "
            "each process."
        )

    def __repr__(self) -> str:
        if not hasattr(self, "_transport"):  # its options were rejected
            return "<AsyncImages, not set up>"
        return f"<AsyncImages for {self.base_url}{', closed' if self._transport.closed else ''}>"
