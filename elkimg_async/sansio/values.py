"""The known values of parameters, for editors and type checkers; any other text is accepted too."""

from typing import Literal, TypeAlias, TypedDict

ModelName: TypeAlias = (
    Literal[
        "gpt-image-1.5",
        "gpt-image-1-mini",
        "gpt-image-2",
        "gpt-image-2-2026-04-21",
        "gpt-image-2.5-sunburst",
        "gpt-image-2.5-sunburst-2026-09-08",
        "gpt-image-2.5-flare",
        "gpt-image-2.5-flare-2026-09-08",
        "gpt-image-2.6-sunburst",
        "gpt-image-2.6-flare",
        "chatgpt-image-latest",
        "gpt-image-1",
        "dall-e-3",
        "dall-e-2",
    ]
    | str
)
Size: TypeAlias = (
    Literal[
        "auto",
        "1024x1024",
        "1536x1024",
        "1024x1536",
        "2048x2048",
        "3840x2160",
        "2160x3840",
        "256x256",
        "512x512",
        "1792x1024",
        "1024x1792",
    ]
    | str
)
Quality: TypeAlias = (
    Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | str
)
Background: TypeAlias = Literal["auto", "transparent", "opaque"] | str
Moderation: TypeAlias = Literal["auto", "low"] | str
Style: TypeAlias = Literal["vivid", "natural"] | str
OutputFormat: TypeAlias = Literal["png", "jpeg", "webp", "gif", "svg"] | str
ResponseFormat: TypeAlias = Literal["url", "b64_json"] | str
Complexity: TypeAlias = Literal["low", "medium", "high"] | str
InputFidelity: TypeAlias = Literal["low", "high"] | str
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | str


class SvgReasoning(TypedDict, total=False):
    """The reasoning effort of the model that writes an SVG; None or absent: its default."""

    effort: Effort | None


class Svg(TypedDict, total=False):
    """The language model that writes an SVG, for `output_format="svg"`."""

    model: str
    reasoning: SvgReasoning | None
