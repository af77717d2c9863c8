"""`generate` and `edit`, the calls that create images."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal, Unpack, overload

from elkimg_async.call import Call
from elkimg_async.errors import InvalidRequestError
from elkimg_async.hints import OTHER_FIELDS, OTHERWISE, advise_keywords
from elkimg_async.resources import named, returns_awaitable
from elkimg_async.sansio.endpoints import EDIT, GENERATE, Endpoint
from elkimg_async.sansio.requests import ImageRequest, make_request
from elkimg_async.sansio.responses import ImagesResponse
from elkimg_async.settings import Settings, change_settings
from elkimg_async.stream import ImageStream
from elkimg_async.transport.session import Transport
from elkimg_async.transport.uploads import build_edit
from elkimg_async.types import (
    Background,
    Complexity,
    EditMapping,
    EditOptions,
    EditRequest,
    GenerateOptions,
    Images,
    InputFidelity,
    InputFile,
    ModelName,
    Moderation,
    OutputFormat,
    Prompt,
    Quality,
    ResponseFormat,
    RetryLike,
    Size,
    Style,
    Svg,
    TimeoutLike,
)


class ImageCalls:
    """The part of `AsyncImages` that creates images."""

    _settings: Settings
    _transport: Transport

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[GenerateOptions],
    ) -> Coroutine[Any, Any, ImagesResponse]: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> ImageStream: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: bool, **options: Unpack[GenerateOptions]
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream: ...
    @advise_keywords(OTHER_FIELDS, OTHERWISE)
    @returns_awaitable
    def generate(
        self,
        prompt: Prompt,
        *,
        model: ModelName | None = None,
        n: int | None = None,
        size: Size | None = None,
        quality: Quality | None = None,
        background: Background | None = None,
        moderation: Moderation | None = None,
        style: Style | None = None,
        user: str | None = None,
        safety_identifier: str | None = None,
        output_format: OutputFormat | None = None,
        output_compression: int | None = None,
        partial_images: int | None = None,
        response_format: ResponseFormat | None = None,
        complexity: Complexity | None = None,
        frame_count: int | None = None,
        frame_duration_ms: int | None = None,
        svg: Svg | None = None,
        stream: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        timeout: TimeoutLike | None = None,
        retry: RetryLike | None = None,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        """Create images from a prompt: `await` all of them, or stream them with `stream=True`.

        Args:
            prompt: What the images show; or a `GenerateRequest`, or a mapping of its fields, which
                the other arguments override.
            model: None: the client's default.
            n: How many images, 1 to 10. None: the server's default, 1.
            size: `1024x1024`, `1536x1024`, `1024x1536`, `auto`, or another size of the model.
            quality: `low`, `medium`, `high`, `auto`; `xhigh`, `max` for gpt-image-2.5; `standard`,
                `hd` for dall-e-3. Higher quality is slower and costs more.
            background: `transparent` (png and webp only), `opaque` or `auto`.
            moderation: `low` or `auto`.
            style: `vivid` or `natural`, dall-e-3 only.
            user: An identifier of the end user; deprecated in favour of `safety_identifier`.
            safety_identifier: A stable, hashed identifier of the end user, for abuse detection.
            output_format: `png`, `jpeg`, `webp`, `gif` or `svg`.
            output_compression: 0 to 100 per cent, jpeg and webp only.
            partial_images: How many partial images a stream sends, 0 to 3; fewer may arrive, and
                each costs extra tokens. None: 1 from a GPT image model.
            response_format: `url` or `b64_json`, dall-e only.
            complexity: How much planning goes into the image: `low`, `medium` or `high`.
            frame_count: Frames of a gif, 2 to 16. None: the server's default, 9.
            frame_duration_ms: Milliseconds for each frame of a gif. None: the server's default,
                200.
            svg: The model that writes an svg: `{"model": …, "reasoning": {"effort": …}}`.
            stream: Whether to return an `ImageStream`, which shows images as they develop.
            extra_body: Additional fields of the request body; they override the arguments above.
            extra_query: Additional query parameters of this request.
            extra_headers: Additional headers of this request.
            timeout: Time limits of this call in seconds; a number is the total. None: the client's.
            retry: When to retry this call; a number is the maximum number of retries. None: the
                client's.

        Other options that are None are not sent, so the server's defaults apply.

        Raises:
            InvalidRequestError: If the request is invalid; nothing was sent.
            ConfigurationError: If the client is misconfigured; nothing was sent.
            APIError: If the server returns an error; the subclass and `code` say which.
            NetworkError: If no complete response arrives, or a limit of `timeout` passes.
            ResponseError: If the response has no usable image.
            StreamError: If a stream ends without a completed image.
        """
        fields = _fields(locals(), "prompt")

        async def build() -> ImageRequest:
            return make_request(prompt, fields, model=self._settings.model)

        result = self._call(GENERATE, build, stream, extra_headers, extra_query, timeout, retry)
        return named(result, "generate")

    @overload
    def edit(
        self,
        image: Images | EditRequest | EditMapping,
        prompt: str | None = ...,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[EditOptions],
    ) -> Coroutine[Any, Any, ImagesResponse]: ...
    @overload
    def edit(
        self,
        image: Images | EditRequest | EditMapping,
        prompt: str | None = ...,
        *,
        stream: Literal[True],
        **options: Unpack[EditOptions],
    ) -> ImageStream: ...
    @overload
    def edit(
        self,
        image: Images | EditRequest | EditMapping,
        prompt: str | None = ...,
        *,
        stream: bool,
        **options: Unpack[EditOptions],
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream: ...
    @advise_keywords(OTHER_FIELDS, OTHERWISE)
    @returns_awaitable
    def edit(
        self,
        image: Images | EditRequest | EditMapping,
        prompt: str | None = None,
        *,
        mask: InputFile | None = None,
        markup: InputFile | None = None,
        input_fidelity: InputFidelity | None = None,
        model: ModelName | None = None,
        n: int | None = None,
        size: Size | None = None,
        quality: Quality | None = None,
        background: Background | None = None,
        moderation: Moderation | None = None,
        style: Style | None = None,
        user: str | None = None,
        safety_identifier: str | None = None,
        output_format: OutputFormat | None = None,
        output_compression: int | None = None,
        partial_images: int | None = None,
        response_format: ResponseFormat | None = None,
        complexity: Complexity | None = None,
        frame_count: int | None = None,
        frame_duration_ms: int | None = None,
        svg: Svg | None = None,
        stream: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        timeout: TimeoutLike | None = None,
        retry: RetryLike | None = None,
    ) -> Coroutine[Any, Any, ImagesResponse] | ImageStream:
        """Edit images with a prompt: `await` all results, or stream them with `stream=True`.

        A file is read in chunks while it is sent, in a worker thread, and again for a retry. It
        must not change until the call is over.

        Args:
            image: A path, bytes, a file opened in binary mode, an `Image`, (name, content, type), a
                `data:` or http(s) URL, an `ImageReference`, or a list of up to 16 of them. They are
                png, webp or jpeg, and less than 50 MB each. URLs and references are sent as JSON,
                where the server accepts that. Or a ready `EditRequest`, or a mapping of its fields.
            prompt: What the result shows. None: that of the `EditRequest`.
            mask: A png of the size of the first image, under 4 MB; where it is fully transparent,
                the image is edited. None: everywhere.
            markup: A png with transparency and of the size of the first image, with marks that
                guide the edit; gpt-image-2.5 only, and not together with `mask`.
            input_fidelity: `high` preserves features such as faces more closely, `low` costs less.
            model: None: the client's default.
            n: How many images, 1 to 10. None: the server's default, 1.
            size: `1024x1024`, `1536x1024`, `1024x1536`, `auto`, or another size of the model.
            quality: `low`, `medium`, `high`, `auto`; `xhigh`, `max` for gpt-image-2.5; `standard`,
                `hd` for dall-e-3. Higher quality is slower and costs more.
            background: `transparent` (png and webp only), `opaque` or `auto`.
            moderation: `low` or `auto`.
            style: `vivid` or `natural`, dall-e-3 only.
            user: An identifier of the end user; deprecated in favour of `safety_identifier`.
            safety_identifier: A stable, hashed identifier of the end user, for abuse detection.
            output_format: `png`, `jpeg`, `webp`, `gif` or `svg`.
            output_compression: 0 to 100 per cent, jpeg and webp only.
            partial_images: How many partial images a stream sends, 0 to 3; fewer may arrive, and
                each costs extra tokens. None: 1 from a GPT image model.
            response_format: `url` or `b64_json`, dall-e only.
            complexity: How much planning goes into the image: `low`, `medium` or `high`.
            frame_count: Frames of a gif, 2 to 16. None: the server's default, 9.
            frame_duration_ms: Milliseconds for each frame of a gif. None: the server's default,
                200.
            svg: The model that writes an svg: `{"model": …, "reasoning": {"effort": …}}`.
            stream: Whether to return an `ImageStream`, which shows images as they develop.
            extra_body: Additional fields of the request body; they override the arguments above.
            extra_query: Additional query parameters of this request.
            extra_headers: Additional headers of this request.
            timeout: Time limits of this call in seconds; a number is the total. None: the client's.
            retry: When to retry this call; a number is the maximum number of retries. None: the
                client's.

        Raises:
            InvalidRequestError: If the request is invalid, or a file cannot be read.
            ElkImagesError: In the cases listed for `generate`.
        """
        fields = _fields(locals(), "image")

        async def build() -> ImageRequest:
            return await build_edit(image, fields, model=self._settings.model)

        result = self._call(EDIT, build, stream, extra_headers, extra_query, timeout, retry)
        return named(result, "edit")

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
            change_settings(self._settings, timeout=timeout, retry=retry, query=extra_query),
            self._transport,
            endpoint,
            build,
            stream=stream,
            extra_headers=extra_headers,
        )
        return ImageStream(call) if stream else call.result()


def _fields(arguments: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """Return the fields of a request that a call sets, from its arguments without `subject`."""
    return {
        name: value
        for name in EditRequest.__struct_fields__
        if name != subject and (value := arguments.get(name)) is not None and not _is_omitted(value)
    }


def _is_omitted(value: object) -> bool:
    """Return whether a value is one that openai has for arguments that are left out."""
    kind = type(value)
    return kind.__name__ in ("NotGiven", "Omit") and kind.__module__.partition(".")[0] == "openai"
