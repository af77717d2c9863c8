"""The options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from elkimg_async import AsyncImages, Limits, Timeout, errors
from elkimg_async.cli.report import Report
from elkimg_async.config import KEY_VARIABLE, default_key
from elkimg_async.sansio.model_rules import is_gpt_image
from elkimg_async.sansio.requests import DEFAULT_MODEL

LOCAL_KEY = "elkimg-local"
LOCAL_DELAY = 0.6  # seconds; enough to see partial images come one by one
FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def _strict(kind: Any, tokens: Sequence[Any]) -> Any:
    """A whole number, where cyclopts would make 2 of 1.5, or a JSON object."""
    try:
        return msgspec.json.decode(tokens[0].value, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        wanted = "a whole number" if kind is int else "a JSON object"
        raise ValueError(f"it must be {wanted}.") from None


WHOLE = Parameter(converter=_strict)
OBJECT = Parameter(converter=_strict, accepts_keys=False, n_tokens=1)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The options that `AsyncImages.generate` and `edit` share; what is None is left to the server."""

    model: str | None = None
    """The model; gpt-image-1.5 if not given."""
    n: Annotated[int | None, WHOLE] = None
    """How many images of each prompt, 1 to 10."""
    size: str | None = None
    """1024x1024, 1536x1024, 1024x1536, auto, or what else the model offers, in pixels."""
    quality: str | None = None
    """low, medium, high or auto; standard or hd for dall-e-3."""
    background: str | None = None
    """transparent (png and webp only), opaque or auto."""
    user: str | None = None
    """Your own name for the end user, for the provider's abuse checks."""
    output_format: str | None = None
    """png, jpeg or webp; if not given, what the name of the output file asks for."""
    output_compression: Annotated[int | None, WHOLE] = None
    """0 to 100 per cent, jpeg and webp only."""
    partial_images: Annotated[int | None, WHOLE] = None
    """With --stream: how many images on the way, 0 to 3; each costs a little. 1 if not given."""
    response_format: str | None = None
    """url or b64_json, dall-e only; an image behind a URL is downloaded."""
    extra_body: Annotated[dict[str, Any] | None, OBJECT] = None
    """Further fields of the request, as a JSON object: '{"seed": 7}'."""

    def options(self, output: str | None) -> dict[str, Any]:
        """The arguments of a call whose image goes to `output`."""
        options = asdict(self)
        if self.output_format is None and is_gpt_image(self.model or DEFAULT_MODEL):
            options["output_format"] = FORMATS.get(Path(output or "").suffix.lower())
        return options


@dataclass(frozen=True, kw_only=True)
class Picture(ImageOptions):
    """The options of `AsyncImages.generate`."""

    moderation: str | None = None
    """low or auto."""
    style: str | None = None
    """vivid or natural, dall-e-3 only."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the requests go, and how patiently; what is None is left to the client."""

    local: bool = False
    """Use a local server instead: no key, no cost, and a stand-in for the picture."""
    base_url: str | None = None
    """The server, up to and including /v1; ELKAPI_BASE_URL or ElkAPI if not given."""
    timeout: float | None = None
    """Seconds for each prompt, everything included; 600 if not given, no limit with --stream."""
    retries: Annotated[int | None, WHOLE] = None
    """How often to try again where that costs no second image; 2 if not given."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is opened."""
        if self.local and self.base_url is not None:
            raise errors.ConfigurationError("--local and --base-url do not go together.")
        try:
            _ = self.local or default_key()
        except errors.ConfigurationError:
            raise errors.ConfigurationError(
                f"There is no usable API key: set the environment variable {KEY_VARIABLE} to yours, "
                "or add --local to try things without one."
            ) from None

    def key(self) -> str:
        """The API key, for other processes."""
        return LOCAL_KEY if self.local else default_key().reveal()

    @contextlib.asynccontextmanager
    async def client(
        self, report: Report, limits: Limits | None = None
    ) -> AsyncIterator[AsyncImages]:
        """A client as the options say, with the local server where it is wanted."""
        key, url = None, self.base_url
        async with contextlib.AsyncExitStack() as stack:
            if self.local:
                from elkimg_async.local import LocalServer

                server = await stack.enter_async_context(
                    LocalServer(api_key=LOCAL_KEY, delay=LOCAL_DELAY)
                )
                key, url = server.api_key, server.base_url
                report.say("Local server: the picture is a stand-in, not made by a model.")
            limit = Timeout(total=self.timeout, first_byte=self.timeout, idle=self.timeout)
            client = AsyncImages(
                key,
                base_url=url,
                timeout=limit,
                retry=self.retries,
                limits=limits,
                hooks=[report.hear],
            )
            yield await stack.enter_async_context(client)
