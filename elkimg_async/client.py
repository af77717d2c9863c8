"""`AsyncImages`: the calls that a user makes."""

import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, get_args, overload

import msgspec

from elkimg_async.errors import ConfigurationError, InvalidRequestError
from elkimg_async.hooks import Hook
from elkimg_async.options import (
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
from elkimg_async.sansio.requests import GenerateRequest
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.sansio.retry import RetryBudget
from elkimg_async.sansio.wire import check_headers
from elkimg_async.stream import ImageStream

if TYPE_CHECKING:
    import aiohttp

Prompt = str | GenerateRequest | Mapping[str, Any]


class GenerateOptions(TypedDict, total=False):
    """The options of `AsyncImages.generate`; its docstring says what they mean."""

    model: str | None
    n: int | None
    size: str | None
    quality: str | None
    background: str | None
    moderation: str | None
    style: str | None
    user: str | None
    output_format: str | None
    output_compression: int | None
    partial_images: int | None
    response_format: str | None
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None
    timeout: Timeout | float | None
    retry: RetryPolicy | int | None


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
            key = make_key(api_key) if api_key.strip() else None
        elif api_key is not None and not callable(api_key):
            raise ConfigurationError("api_key must be a string or an async function.")
        policy = make_retry(retry)
        self._settings = Settings(
            api_key=key,
            base_url=make_base_url(base_url),
            timeout=make_timeout(timeout),
            retry=policy,
            budget=RetryBudget(policy.budget),
            idempotency=idempotency,
            validate=validate,
            limits=limits or Limits(),
            headers=_client_headers(headers),
            hooks=tuple(hooks),
        )
        from elkimg_async.transport import Transport  # asyncio and all below it, late

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
        view = object.__new__(type(self))
        view._transport = self._transport
        view._settings = self._settings_with(timeout, retry, headers)
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
            headers={**settings.headers, **_client_headers(headers)},
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
        if not isinstance(stream, bool):
            raise InvalidRequestError("stream must be True or False.", param="stream")
        from elkimg_async.call import Call  # late, as Transport is

        call = Call(
            self._settings_with(timeout, retry, None),
            self._transport,
            prompt=prompt,
            options=_given(
                model=model,
                n=n,
                size=size,
                quality=quality,
                background=background,
                moderation=moderation,
                style=style,
                user=user,
                output_format=output_format,
                output_compression=output_compression,
                partial_images=partial_images,
                response_format=response_format,
                extra_body=extra_body,
                extra_headers=extra_headers,
            ),
            stream=stream,
        )
        return ImageStream(call) if stream else call.drain()

    async def aclose(self) -> None:
        """Close the connections; a second time does nothing. Calls that are running fail."""
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
        return f"<AsyncImages for {self.base_url}{', closed' if self._transport.closed else ''}>"


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _client_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    try:
        return check_headers(headers)
    except InvalidRequestError as error:
        problem = error.message
    raise ConfigurationError(problem)
