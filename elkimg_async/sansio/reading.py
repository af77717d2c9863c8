"""Lenient reading of the data beside images, so that it never costs an image."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from elkimg_async.sansio.responses import Number, SvgUsage, TokenDetails, Usage

SIDE_FIELDS = ("size", "quality", "background", "output_format")
"""Text fields beside the images."""
_CHAT_NAMES = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "input_tokens_details": "prompt_tokens_details",
    "output_tokens_details": "completion_tokens_details",
}


def read_str(value: Any) -> str | None:
    """Return a string that is not empty, as valid Unicode; None for anything else."""
    if not isinstance(value, str) or not value:
        return None
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def read_number(value: Any) -> Number | None:
    """Return a finite number, as an integer if possible; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() else value
    return value


def lookup(chain: Sequence[Mapping[str, Any]], *names: str) -> Any:
    """Return the first field of one of these names, from the innermost object outwards."""
    for around in reversed(chain):
        for name in names:
            if (found := around.get(name)) is not None:
                return found
    return None


def read_usage(value: Any) -> Usage | None:
    """Return the usage, in the spelling of the image API or of the chat API."""
    if not isinstance(value, dict):
        return None
    chosen = {
        name: name if value.get(name) is not None or chat not in value else chat
        for name, chat in _CHAT_NAMES.items()
    }
    known = {"total_tokens", *chosen.values()}
    return Usage(
        total_tokens=read_number(value.get("total_tokens")),
        input_tokens=read_number(value.get(chosen["input_tokens"])),
        output_tokens=read_number(value.get(chosen["output_tokens"])),
        input_tokens_details=_read_details(value.get(chosen["input_tokens_details"])),
        output_tokens_details=_read_details(value.get(chosen["output_tokens_details"])),
        extra=_without(value, known),
    )


def _read_details(value: Any) -> TokenDetails | None:
    if not isinstance(value, dict):
        return None
    return TokenDetails(
        text_tokens=read_number(value.get("text_tokens")),
        image_tokens=read_number(value.get("image_tokens")),
        extra=_without(value, ("text_tokens", "image_tokens")),
    )


def read_svg_usage(value: Any) -> SvgUsage | None:
    """Return the usage of writing an SVG."""
    if not isinstance(value, dict):
        return None
    numbers = ("total_tokens", "input_tokens", "output_tokens", "reasoning_tokens")
    return SvgUsage(
        model=read_str(value.get("model")),
        extra=_without(value, ("model", *numbers)),
        **{name: read_number(value.get(name)) for name in numbers},
    )


def _without(value: dict[str, Any], known: Any) -> dict[str, Any]:
    return {name: field for name, field in value.items() if name not in known}
