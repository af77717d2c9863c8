"""The signature and documentation of the call that starts jobs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from elkimg_async.hints import OTHER_FIELDS, advise_keywords
from elkimg_async.jobs.model import Job
from elkimg_async.types import (
    Background,
    Complexity,
    EditOptions,
    EditRequest,
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


class JobStart(ABC):
    """The part of `ImageJobs` that starts jobs."""

    @advise_keywords(OTHER_FIELDS)
    async def start(  # noqa: D417 - the others are those of generate and edit
        self,
        prompt: Prompt | EditRequest,
        *,
        id: str | None = None,
        image: Images | None = None,
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
        extra_body: Mapping[str, Any] | None = None,
        extra_query: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        timeout: TimeoutLike | None = None,  # noqa: ASYNC109
        retry: RetryLike | None = None,
    ) -> Job:
        """Start a job and return at once; for a known id, return the job that has it.

        The arguments that are not listed are those of `AsyncImages.generate`, and of
        `AsyncImages.edit` with `image`. The default model is the client's when the request is sent.

        Args:
            prompt: What the image shows; or a `GenerateRequest`, an `EditRequest`, or a mapping of
                their fields.
            id: The name of the job, 1 to 200 characters. None: a random one.
            image: The image or images to edit, as `AsyncImages.edit` takes them; they are read now.
                None: generate.
            extra_headers: Additional headers of the request. They are stored for a restart, except
                those whose name or value suggests a secret, such as `Authorization`, `api-key`,
                `Cookie` or `Bearer …`: a job with such a header is lost, and not sent again, if its
                process ends.
            extra_query: Additional query parameters, stored in the same way.
            timeout: Time limits of the call in seconds, also after a restart. None: the client's.
            retry: When to retry the call, also after a restart. None: the client's.

        Raises:
            InvalidRequestError: If the request is invalid.
            JobConflictError: If the id belongs to a job with other parameters.
            StoreError: If the store is full or cannot be written. Nothing was sent.
        """
        options = {
            name: value for name, value in locals().items() if name in EditOptions.__annotations__
        }
        return await self._start(prompt, id, image, options)

    @abstractmethod
    async def _start(
        self, prompt: Any, id: str | None, image: Images | None, options: Mapping[str, Any]
    ) -> Job: ...
