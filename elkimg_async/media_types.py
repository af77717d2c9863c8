"""Media types of images: their extensions, and how they are recognised."""

import re

UNKNOWN_TYPE = "application/octet-stream"
EXTENSIONS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/svg+xml": ".svg",
    "image/avif": ".avif",
    "image/heic": ".heic",
    "image/jxl": ".jxl",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
    "image/x-icon": ".ico",
}
TYPES = {extension: media_type for media_type, extension in EXTENSIONS.items()}
TYPES |= {".jpeg": "image/jpeg", ".jpe": "image/jpeg", ".tif": "image/tiff", ".heif": "image/heic"}

FORMATS = {f"image/{name}": name for name in ("png", "jpeg", "webp", "gif")}
FORMATS["image/svg+xml"] = "svg"
"""The media types that a request can select, and the `output_format` of each."""

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"\xff\x0a", "image/jxl"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"\x00\x00\x01\x00", "image/x-icon"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "image/heic"),
}
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?.*?\?>|<!--.*?-->"
    rb"|<!DOCTYPE\s+(?:\w+:)?svg\b[^>\[]*(?:\[.*?\]\s*)?>)*<(?:\w+:)?svg[\s>/]",
    re.DOTALL | re.IGNORECASE,
)
_MAX_PROLOGUE = 64 * 1024
"""Bytes of comments and declarations before the element of an SVG."""


def media_type_of(content: bytes) -> str:
    """Return the media type detected from the first bytes, or `application/octet-stream`."""
    head = content[:16]
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return _BRANDS[head[8:12]]
    if head.startswith(b"BM") and len(content) > 26:
        return "image/bmp"
    if _SVG.match(content[:_MAX_PROLOGUE]):
        return "image/svg+xml"
    return UNKNOWN_TYPE
