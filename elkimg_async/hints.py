"""Errors with advice, for the mistakes that new users make most often.

Methods that exist only to raise such an error are hidden from type checkers, which report the
mistake themselves.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

OTHER_OPTIONS = {
    **dict.fromkeys(("key", "token", "api_token", "secret"), "the name is api_key."),
    **dict.fromkeys(("url", "host", "endpoint", "api_base"), "the name is base_url."),
    "concurrency": "pass limits=Limits(max_concurrency=…), or client.map(…, concurrency=…).",
    **{
        name: f"pass limits=Limits({name}=…)."
        for name in ("max_concurrency", "requests_per_minute", "images_per_minute")
    },
    "rpm": "pass limits=Limits(requests_per_minute=…).",
    "http_client": "pass an aiohttp.ClientSession as session.",
    **dict.fromkeys(("proxy", "proxies"), "set HTTPS_PROXY, or pass a session with a proxy."),
    **dict.fromkeys(("organization", "project"), "pass it in headers."),
}
"""Advice for arguments that the client does not have."""
OTHER_CHANGES = {
    **dict.fromkeys(
        ("api_key", "base_url", "limits", "session", "http_client", "hooks", "validate"),
        "create another AsyncImages for that.",
    ),
    **dict.fromkeys(("set_default_headers", "set_default_query"), "create another AsyncImages."),
}
"""Advice for arguments that `with_options` does not have."""
OTHER_METHODS = {
    **dict.fromkeys(("create", "create_image", "generations"), "use client.generate(…)."),
    "stream": "use client.generate(…, stream=True).",
    **dict.fromkeys(("batch", "generate_many"), "use client.map(…)."),
    **dict.fromkeys(("variations", "create_variation"), "servers have retired it; use edit."),
    **dict.fromkeys(
        ("with_raw_response", "with_streaming_response"),
        "the details of the response are in result.meta.",
    ),
    "copy": "use client.with_options(…).",
    **dict.fromkeys(
        ("chat", "completions", "responses", "embeddings", "audio", "files"),
        "this client has the image calls only: generate, edit, map and models.",
    ),
}
"""Advice for attributes that the client does not have."""
OTHER_FIELDS = {
    "negative_prompt": "say in the prompt what the image should not show.",
    **dict.fromkeys(("width", "height", "aspect_ratio"), "pass a size such as size='1024x1024'."),
    **dict.fromkeys(("count", "num_images", "number"), "the number of images is n."),
    "format": "the name is output_format.",
}
"""Advice for arguments that a call does not have."""
OTHERWISE = "fields that the server knows and this client does not go into extra_body."
IMAGE_ADVICE = {
    **dict.fromkeys(
        ("bytes", "body", "data", "raw"), "its bytes are image.content, or await image.read()."
    ),
    **dict.fromkeys(
        ("show", "display", "open"),
        "image.to_pil().show() opens a window, await image.save(path) writes a file.",
    ),
    **dict.fromkeys(("width", "height", "size"), "image.to_pil().size is (width, height)."),
    **dict.fromkeys(("format", "content_type", "mime_type"), "use image.media_type."),
    **dict.fromkeys(("b64", "base64"), "use image.b64_json."),
    **dict.fromkeys(("write", "download"), "use await image.save(path)."),
}
"""Advice for attributes that an image does not have."""


def missing_attribute(holder: object, name: str, advice: str | None) -> AttributeError:
    """Return the error for a missing attribute; without advice it has the same text as Python's."""
    text = f"{type(holder).__name__!r} object has no attribute {name!r}"
    if advice is None:
        return AttributeError(text, name=name, obj=holder)
    # Without `obj`, which would make Python add a similar name of its own.
    return AttributeError(f"{text}: {advice}", name=name)


def unknown_keyword(
    call: str,
    name: str,
    known: Iterable[str],
    advice: Mapping[str, str],
    *,
    otherwise: str = "",
) -> TypeError:
    """Return the TypeError for an unknown argument, with advice.

    Args:
        call: The function, as Python names it.
        name: The unknown argument.
        known: The known arguments; a similar one is suggested.
        advice: Advice for some unknown names.
        otherwise: Advice for all others.
    """
    hint = advice.get(name)
    if hint is None:
        similar = difflib.get_close_matches(name, known, 1, cutoff=0.75)
        hint = f"did you mean {similar[0]!r}?" if similar else otherwise
    text = f"{call}() got an unexpected keyword argument {name!r}"
    return TypeError(f"{text}: {hint}" if hint else text)


def advise_keywords(
    advice: Mapping[str, str], otherwise: str = ""
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that an unknown argument raises an error with advice."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = inspect.signature(function).parameters.keys()

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if not kwargs.keys() <= known:
                name = min(kwargs.keys() - known)
                call = checked.__qualname__
                raise unknown_keyword(call, name, known, advice, otherwise=otherwise)
            return function(*args, **kwargs)

        return checked

    return decorate


def spell_out(options: type) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that `help()` lists the keys of its `**options`, a `TypedDict`."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        *others, _ = signature.parameters.values()
        kind = inspect.Parameter.KEYWORD_ONLY
        listed = [
            inspect.Parameter(name, kind, default=None, annotation=hint)
            for name, hint in options.__annotations__.items()
        ]
        spelled_out = signature.replace(parameters=[*others, *listed])
        function.__signature__ = spelled_out  # type: ignore[attr-defined]
        return function

    return decorate


class AsyncOnly:
    """Base of async context managers, which cannot be used with `with`; `_usage` is an example."""

    _usage = ""

    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise TypeError(f"Write `async with` instead of `with`: {self._usage}")

        def __exit__(self, *_: object) -> None:
            """Do nothing; Python looks this method up before it calls `__enter__`."""


class AsyncIterableOnly(AsyncOnly):
    """Base of async iterators, which cannot be used with `for` either."""

    if not TYPE_CHECKING:

        def __iter__(self) -> NoReturn:
            raise TypeError(f"Write `async for` instead of `for`: {self._usage}")
