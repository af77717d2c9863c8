"""Options that several commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec
from cyclopts import Parameter

from elkimg_async import (
    AsyncImages,
    InvalidRequestError,
    Limits,
    Pricing,
    RetryPolicy,
    Timeout,
    errors,
)
from elkimg_async.cli.console import CLOSED_STREAMS, UsageError, say, sentence
from elkimg_async.cli.price_file import read_prices
from elkimg_async.config import MODEL_VARIABLE, make_base_url
from elkimg_async.credentials import API_KEY_VARIABLE, default_api_key
from elkimg_async.sansio.model_rules import validate
from elkimg_async.sansio.requests import make_request
from elkimg_async.sansio.values import (
    Background,
    Complexity,
    InputFidelity,
    ModelName,
    Moderation,
    OutputFormat,
    Quality,
    ResponseFormat,
    Size,
    Style,
)

if TYPE_CHECKING:
    FileName: TypeAlias = str
else:  # always text, as "-" and URLs are not paths; shells complete files because of Path
    FileName = str | Path

LOCAL_API_KEY = "elkimg-local"
LOCAL_DELAY = 0.6  # seconds; enough to see partial images arrive one by one


def _decode(kind: Any, tokens: Sequence[Any]) -> Any:
    """Convert strictly, since cyclopts would accept 1.5 as a whole number."""
    try:
        return msgspec.json.decode(tokens[0].value, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        wanted = "a whole number" if kind is int else "a JSON object"
        raise ValueError(f"it must be {wanted}.") from None


WHOLE = Parameter(converter=_decode, metavar="NUMBER")
COUNT = Parameter(converter=_decode, alias="-n", metavar="NUMBER")
OBJECT = Parameter(converter=_decode, accepts_keys=False, n_tokens=1, metavar="JSON")
NUMBER = Parameter(metavar="NUMBER")
SECONDS = Parameter(metavar="SECONDS")
TEXT = Parameter(metavar="TEXT")
OUTPUT = Parameter(alias="-o", metavar="FILE|FOLDER|-", allow_leading_hyphen=True)  # for "-"


def values(metavar: str) -> Parameter:
    """Return a parameter that shells complete from its type, which the help leaves out."""
    return Parameter(metavar=metavar, show_choices=False)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of `AsyncImages.generate` and `edit`; the server's defaults apply to others."""

    model: Annotated[ModelName | None, values("MODEL")] = None
    """Model to use. Default: ELKAPI_MODEL, else gpt-image-1.5."""
    n: Annotated[int | None, COUNT] = None
    """Number of images for each prompt, 1 to 10."""
    size: Annotated[Size | None, values("WIDTHxHEIGHT")] = None
    """Size in pixels, such as 1024x1024, 1536x1024 or 1024x1536; or auto."""
    quality: Annotated[Quality | None, values("low|medium|high|auto")] = None
    """Higher quality is slower and costs more. Some models have others, such as xhigh or hd."""
    background: Annotated[Background | None, values("transparent|opaque|auto")] = None
    """Transparent needs png or webp."""
    output_format: Annotated[OutputFormat | None, values("png|jpeg|webp|gif|svg")] = None
    """File format. Default: that of the suffix of --output, else png."""
    output_compression: Annotated[int | None, WHOLE] = None
    """Compression in per cent, 0 to 100, for jpeg and webp."""
    partial_images: Annotated[int | None, WHOLE] = None
    """With --stream: number of previews, 0 to 3; each costs a little. Default: 1."""
    moderation: Annotated[Moderation | None, values("low|auto")] = None
    """How strictly the content is filtered."""
    complexity: Annotated[Complexity | None, values("low|medium|high")] = None
    """How much planning goes into the image, if the model supports it."""
    frame_count: Annotated[int | None, WHOLE] = None
    """With --output-format gif: number of frames, 2 to 16."""
    frame_duration_ms: Annotated[int | None, WHOLE] = None
    """With --output-format gif: how long a frame is shown, in milliseconds."""
    svg: Annotated[dict[str, Any] | None, OBJECT] = None
    """With --output-format svg: its options as JSON, such as '{"model": "NAME"}'."""
    user: Annotated[str | None, TEXT] = None
    """An identifier of the end user; deprecated in favour of --safety-identifier."""
    safety_identifier: Annotated[str | None, TEXT] = None
    """A stable, hashed identifier of the end user, for abuse detection."""
    response_format: Annotated[ResponseFormat | None, values("url|b64_json")] = None
    """How dall-e models return the image; a URL is downloaded."""
    extra_body: Annotated[dict[str, Any] | None, OBJECT] = None
    """Additional fields of the request, as a JSON object: '{"seed": 7}'."""

    def options(self) -> dict[str, Any]:
        """Return the options that were set, by name; ELKAPI_MODEL counts as set."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        options["model"] = self.model or os.environ.get(MODEL_VARIABLE, "").strip() or None
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class GenerateImageOptions(ImageOptions):
    """Options of `AsyncImages.generate`."""

    style: Annotated[Style | None, values("vivid|natural")] = None
    """For dall-e-3."""


@dataclass(frozen=True, kw_only=True)
class EditImageOptions(ImageOptions):
    """Options of `AsyncImages.edit`."""

    mask: Annotated[FileName | None, Parameter(alias="-m", metavar="FILE")] = None
    """A PNG of the first image's size; the image is edited where the mask is transparent."""
    markup: Annotated[FileName | None, Parameter(metavar="FILE")] = None
    """A PNG of the first image's size with drawn notes on what to change; not with --mask."""
    input_fidelity: Annotated[InputFidelity | None, values("high|low")] = None
    """High preserves features such as faces more closely and costs more."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(GenerateImageOptions):
    """Options for rows of a batch that do not override them."""

    input_fidelity: Annotated[InputFidelity | None, values("high|low")] = None
    """For rows with an image: high preserves features such as faces and costs more."""


@dataclass(frozen=True, kw_only=True)
class Display:
    """What is printed."""

    json: bool = False
    """Print one JSON object for each result, one per line, on standard output."""
    quiet: Annotated[bool, Parameter(alias="-q")] = False
    """Print nothing but errors, and JSON with --json."""

    def say(self, text: str) -> None:
        """Print lines about progress."""
        if not self.quiet:
            say(text)

    def check(self) -> None:
        """Check that JSON can be printed, before anything is sent.

        Raises:
            UsageError: If standard output is closed.
        """
        if self.json and "stdout" in CLOSED_STREAMS:
            raise UsageError("--json prints to standard output, which is closed.")


@dataclass(frozen=True, kw_only=True)
class ImageDisplay(Display):
    """What is printed and shown."""

    open: bool = False
    """Open the result with the desktop's program for it."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where requests go, their time limit and their retries."""

    local: bool = False
    """Use a local server, which needs no API key, costs nothing, and returns placeholders."""
    base_url: Annotated[str | None, Parameter(metavar="URL")] = None
    """Address of the server, up to and including /v1. Default: ELKAPI_BASE_URL, else ElkAPI."""
    timeout: Annotated[float | None, SECONDS] = None
    """Time limit for each request, retries included. Default: 600, with --stream none."""
    retries: Annotated[int | None, WHOLE] = None
    """Maximum number of retries, where they cannot cost a second image. Default: 2."""
    price_file: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """TOML file with prices by model. Without it, only costs that the server reports are known."""

    def check(self, *, api_key: bool = True) -> None:
        """Reject invalid options before anything is opened, and unless disabled, a missing API key.

        Raises:
            UsageError: If an option is invalid.
            ConfigurationError: If there is no usable API key.
        """
        if self.local and self.base_url is not None:
            raise UsageError("--local and --base-url cannot be used together.")
        self.prices()
        try:
            self.time_limits()
            if self.retries is not None:
                RetryPolicy(max_retries=self.retries)
            if not self.local:
                make_base_url(self.base_url)
        except errors.ConfigurationError as error:
            raise UsageError(sentence(error)) from None
        if not api_key:
            return
        try:
            _ = self.local or default_api_key()
        except errors.ConfigurationError:
            raise errors.ConfigurationError(
                f"No usable API key: set the environment variable {API_KEY_VARIABLE} to yours, "
                "or add --local to try things without one."
            ) from None

    def prices(self) -> Pricing | None:
        """Return the prices of the --price-file; None without one."""
        return None if self.price_file is None else read_prices(self.price_file)

    def api_key(self) -> str:
        """Return the API key, to be passed to other processes."""
        return LOCAL_API_KEY if self.local else default_api_key().reveal()

    def time_limits(self) -> Timeout:
        return Timeout(total=self.timeout, first_byte=self.timeout, idle=self.timeout)

    @contextlib.asynccontextmanager
    async def client(
        self,
        *,
        say: Callable[[str], None],
        on_event: Callable[[Any], object] | None = None,
        limits: Limits | None = None,
    ) -> AsyncIterator[AsyncImages]:
        """Open a client with these options, and the local server if requested."""
        api_key, url = None, self.base_url
        async with contextlib.AsyncExitStack() as stack:
            if self.local:
                from elkimg_async.local import LocalServer

                server = LocalServer(api_key=LOCAL_API_KEY, delay=LOCAL_DELAY)
                await stack.enter_async_context(server)
                api_key, url = server.api_key, server.base_url
                say("Local server: images are placeholders, not created by a model.")
            client = AsyncImages(
                api_key,
                base_url=url,
                timeout=self.time_limits(),
                retry=self.retries,
                limits=limits,
                hooks=[] if on_event is None else [on_event],
                pricing=self.prices(),
            )
            yield await stack.enter_async_context(client)


def check_port(port: int | None) -> None:
    """Check a port to listen on.

    Raises:
        UsageError: If there is no such port.
    """
    if port is not None and not 0 <= port <= 65535:
        raise UsageError("--port must be 0 to 65535; 0 takes a free one.")


NO_IMAGE_OPTIONS, NO_EDIT_OPTIONS = GenerateImageOptions(), EditImageOptions()
NO_BATCH_OPTIONS = BatchOptions()
SHOW, SHOW_IMAGES = Display(), ImageDisplay()
CONNECTION = Connection()
_ONLY_EDIT = {"image", "mask", "markup", "input_fidelity"}


def check_request(fields: dict[str, Any], *, stream: bool = False) -> None:
    """Check a request, as far as possible without its files.

    Raises:
        InvalidRequestError: If a value has the wrong type, or the model is known to reject it.
    """
    own = {name: value for name, value in fields.items() if name not in _ONLY_EDIT}
    validate(make_request(own, {}), stream=stream)


def check_options(options: dict[str, Any], *, stream: bool = False) -> None:
    """Check the options that all requests share, with a prompt that is valid.

    Raises:
        UsageError: If requests with these options would be rejected.
    """
    try:
        check_request({**options, "prompt": "A kitten"}, stream=stream)
    except InvalidRequestError as error:
        raise UsageError(sentence(error)) from None
