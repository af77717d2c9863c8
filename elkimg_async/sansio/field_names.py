"""What the name of a field says about the strings in it."""

import re
from functools import lru_cache

import msgspec

_NOT_LETTERS = re.compile(r"[^a-z0-9]")
# Names, without case and punctuation, whose strings are base64 and nothing else.
_BASE64_NAMES = {"b64json", "b64", "base64", "imagebase64", "imageb64", "b64image", "base64image"}
_BASE64_NAMES |= {"partialimageb64", "bytesbase64encoded", "imagebytes"}
# Names whose strings may be images: an http URL, or base64 that is long enough.
_IMAGE = re.compile(r"imag|img|picture|photo|artifact")
_PLACES = re.compile(
    r"^(?:srcs?|data|outputs?|results?|samples?|files?|content|assets?|items|generations?|predictions?"
    r"|completed?|urllist|locations?|path|filepath|resources?|permalink|bytes|binary)$"
)
_ADDRESSES = re.compile(
    r"^(?:output|result|files?|file[rs]?|download|(?:pre)?signed|public|cdn|assets?|media|sample|hosted"
    r"|content|object|full|original|origin|resource|storage|s3|oss|cos|gcs|r2|blob|bucket|hd|uhd|raw"
    r"|temp|temporary|permanent|final|view|direct|remote|upload(?:ed)?|render(?:ed)?|static|data|large"
    r"|backup|proxy|secure|internal|external|http|https|generated|completed|png|jpe?g|webp|svg)?"
    r"(?:ur[il]s?|links?|hrefs?)$"
)
_ADDRESS_NAMES = {"url", "imageurl", "urls", "imageurls", "imguri", "uri", "imageuri"}
# Further addresses of the image that is at the `url` beside them.
_VARIANT = re.compile(
    r"^(?:proxy|download|cdn|(?:pre)?signed|public|original|origin|raw|backup|permanent|temp|temporary|file"
    r"|s3|oss|cos|gcs|r2|storage|hosted|direct|full|hd|view|secure|internal|external|static|https?)"
    r"(?:imag(?:e)?|img|file)?(?:ur[il]|link|href)$"
)
_OTHER = re.compile(
    r"status|poll|cancel|callback|webhook|doc|help|support|terms|privacy|avatar|icon|logo|profile|homepage"
    r"|queue|^next|^prev|^links$|mask|reference|(?<!re)source|input|referer|retry|response(?:ur|$)|licen[cs]e|share|page"
    r"|^web(?!p)|^html|author|user|owner|account|video|audio|^model|^init|^control|^api|endpoint|^get$"
    r"|^self$|^delete|schema|^type|instance|invoice|billing|dashboard|console|upgrade|contact|site"
)
# Text for people, and fields repeated from the request.
_TEXT = re.compile(
    r"prompt|message|^msg|msg$|^text|text$|caption|description|detail|reason|^title|^notes?$|comment"
    r"|explanation|^logs?$|warning|hint|instruction|^err"
)
_REQUEST_NAMES = {"input", "inputs", "request", "mask", "usage", "messages", "moderationdetails"}
_REQUEST_NAMES |= {"parameters", "params", "param", "svgusage"}
_ERRORS = re.compile(r"^err|errors?$|^details?$|^fault$|^exception$")
_SECONDARY = re.compile(r"thumb|preview|lowres|small")
_LIST_NAMES = {"data", "images", "output", "outputs", "results", "generations", "predictions"}
_LIST_NAMES |= {"items"}


class FieldName(msgspec.Struct, frozen=True):
    """What a name says about the field's strings, objects and lists."""

    plain: str
    """The name in lower case, without punctuation."""
    is_text: bool
    """Text for people, or a repetition of the request."""
    is_request: bool
    is_error: bool
    is_base64: bool
    """Base64 and nothing else."""
    may_be_image: bool
    is_image: bool
    """The name speaks of an image, so that all addresses inside are of images."""
    is_address: bool
    """The usual name of an image's address, even of a relative one."""
    is_variant: bool
    """A further address of the image whose address is beside it."""
    is_other: bool
    """An address of something else."""
    is_secondary: bool
    """A smaller version of an image."""
    is_list: bool
    """A list with one item for each image."""


@lru_cache(maxsize=1024)
def field_name(name: str) -> FieldName:
    """Return what a name says."""
    plain = _NOT_LETTERS.sub("", name.lower())
    is_base64 = plain in _BASE64_NAMES
    is_other = _OTHER.search(plain) is not None
    is_text = _TEXT.search(plain) is not None or plain in _REQUEST_NAMES
    is_image = _IMAGE.search(plain) is not None and not is_other
    may_be = is_image or _PLACES.match(plain) or _ADDRESSES.match(plain)
    return FieldName(
        plain,
        is_text=is_text and not is_base64,
        is_request=plain in _REQUEST_NAMES,
        is_error=_ERRORS.search(plain) is not None,
        is_base64=is_base64,
        may_be_image=is_base64 or (bool(may_be) and not is_other),
        is_image=is_image,
        is_address=plain in _ADDRESS_NAMES,
        is_variant=_VARIANT.match(plain) is not None,
        is_other=is_other,
        is_secondary=_SECONDARY.search(plain) is not None,
        is_list=plain in _LIST_NAMES,
    )
