"""The fields of a response as attributes, `extra` and plain data."""

import base64
import copy
import json
import pickle
from typing import Any

import msgspec
import openai.types as openai_types
import pydantic
import pytest
from fastapi.encoders import jsonable_encoder
from openai.types import images_response

from elkimg_async.image import Image
from elkimg_async.sansio.decoder import ImagesDecoder
from elkimg_async.sansio.models import Model
from elkimg_async.sansio.responses import (
    CompletedImage,
    ImagesResponse,
    PartialImage,
    SvgUsage,
    TokenDetails,
    Usage,
    add_usage,
)

JPEG = b"\xff\xd8\xff\xe0 an image"
B64 = base64.b64encode(JPEG).decode()
BODY: dict[str, Any] = {
    "created": 1,
    "size": "1024x1024",
    "safety_identifier": "s-1",
    "svg_usage": {"model": "m", "total_tokens": 3, "reasoning_tokens": 1, "layers": 7},
    "usage": {
        "total_tokens": 3,
        "cost": 0.04,
        "input_tokens_details": {"text_tokens": 1, "cached": 2},
    },
    "data": [{"b64_json": B64, "revised_prompt": "p", "seed": 9, "nsfw": [False, None]}],
    "timings": {"inference": 1.25, "queue": None},
    "provider": "x",
}


def response_of(body: Any) -> ImagesResponse:
    decoder = ImagesDecoder(stream=False, max_bytes=1 << 20)
    decoder.feed(body if isinstance(body, bytes) else json.dumps(body).encode())
    decoder.finish()
    while decoder.next_event() is not None:
        pass
    return decoder.response()


def test_response_extra() -> None:
    """Every field without an attribute is in `extra` of its object, exactly as sent."""
    response = response_of(BODY)
    assert response.extra == {"timings": BODY["timings"], "provider": "x"}
    assert response[0].extra == {"seed": 9, "nsfw": [False, None]}
    assert response[0].revised_prompt == "p"
    assert response.usage is not None
    assert response.usage.extra == {"cost": 0.04}
    assert response.usage.input_tokens_details == TokenDetails(text_tokens=1, extra={"cached": 2})
    assert response.svg_usage is not None
    assert response.svg_usage.extra == {"layers": 7}
    assert (response.svg_usage.model, response.safety_identifier) == ("m", "s-1")


def test_response_extra_of_nested_objects() -> None:
    """Fields around an image in an unusual place are kept, without the image."""
    response = response_of(
        {"output": {"images": [{"url": "https://x/1.png"}], "seed": 4}, "id": "i"}
    )
    assert response.extra == {"output": {"seed": 4}, "id": "i"}
    assert response[0].url == "https://x/1.png"


def test_response_extra_with_a_long_string() -> None:
    """Base64 that is not one of the images is in `extra` as it was sent."""
    text = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(900)).decode()
    response = response_of({"data": [{"b64_json": B64}], "input": {"image": text}})
    assert len(response) == 1
    assert response.extra == {"input": {"image": text}}


def test_event_extra() -> None:
    """Events keep their unknown fields, and completed ones the safety identifier."""
    decoder = ImagesDecoder(stream=True, max_bytes=1 << 20)
    for kind in ("partial_image", "completed"):
        value = {
            "type": f"image_generation.{kind}",
            "b64_json": B64,
            "step": 3,
            "safety_identifier": "s",
            "usage": {"cost": 1},
        }
        decoder.feed(f"data: {json.dumps(value)}\n\n".encode())
    partial, completed = decoder.next_event(), decoder.next_event()
    assert isinstance(partial, PartialImage)
    assert isinstance(completed, CompletedImage)
    assert partial.extra == {"step": 3, "safety_identifier": "s", "usage": {"cost": 1}}
    assert completed.extra == {"step": 3}
    assert completed.safety_identifier == "s"
    assert completed.usage == Usage(extra={"cost": 1})
    assert completed.to_dict() == {
        "type": "image_generation.completed",
        "b64_json": B64,
        "step": 3,
        "safety_identifier": "s",
        "usage": {"cost": 1},
    }
    assert "b64_json" not in partial.to_dict(images=False)


def test_response_to_dict() -> None:
    """A response becomes the plain data that was sent; base64 can be left out."""
    response = response_of(BODY)
    assert response.to_dict() == response.model_dump() == BODY
    assert "b64_json" not in response.to_dict(images=False)["data"][0]
    assert dict(response[0]) == BODY["data"][0]


@pytest.mark.parametrize("connected", [False, True])
def test_response_encodes(connected: bool) -> None:
    """Both msgspec and FastAPI turn responses, images, events and usage into JSON."""
    response = response_of(BODY)
    if connected:

        async def download(url: str) -> bytes:
            return b""

        response[0].download_with(download)
    event = CompletedImage(type="x", image=response[0], usage=response.usage)
    for thing in (response, response[0], event, response.usage, response.svg_usage):
        assert B64 in msgspec.json.encode(thing).decode() or thing in (
            response.usage,
            response.svg_usage,
        )
        assert json.loads(json.dumps(msgspec.to_builtins(thing)))
        assert B64 in json.dumps(jsonable_encoder(thing)) or thing in (
            response.usage,
            response.svg_usage,
        )


def test_response_copies_to_itself() -> None:
    """Responses can be pickled and copied with all their fields."""
    response = response_of(BODY)
    for made in (pickle.loads(pickle.dumps(response)), copy.deepcopy(response)):
        assert made.to_dict() == BODY
        assert made[0] == response[0]


OURS: dict[str, Any] = {
    "Image": Image,
    "ImagesResponse": ImagesResponse,
    "ImageGenPartialImageEvent": PartialImage,
    "ImageGenCompletedEvent": CompletedImage,
    "ImageEditPartialImageEvent": PartialImage,
    "ImageEditCompletedEvent": CompletedImage,
    "Model": Model,
}


NESTED: dict[str, Any] = {
    "usage": Usage,
    "svg_usage": SvgUsage,
    "input_tokens_details": TokenDetails,
    "output_tokens_details": TokenDetails,
}


def names_of(ours: Any) -> set[str]:
    """Return the names of all attributes of a class."""
    fields = (getattr(ours, name, ()) for name in ("__struct_fields__", "__dataclass_fields__"))
    return set(dir(ours)).union(*fields)


def missing_fields(
    theirs: type[pydantic.BaseModel], known: set[str], nested: dict[str, set[str]]
) -> list[str]:
    """Return the fields of a class of `openai` that are not known, nested ones included."""
    missing = [name for name in theirs.model_fields if name not in known]
    for name, inside in nested.items():
        for model in _models_in(theirs, name):
            missing += [f"{name}.{inner}" for inner in missing_fields(model, inside, nested)]
    return missing


def _models_in(theirs: type[pydantic.BaseModel], name: str) -> list[type[pydantic.BaseModel]]:
    field = theirs.model_fields.get(name)
    if field is None:
        return []
    parts = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return [
        part for part in parts if isinstance(part, type) and issubclass(part, pydantic.BaseModel)
    ]


KNOWN = {name: names_of(ours) for name, ours in OURS.items()}
INSIDE = {name: names_of(ours) for name, ours in NESTED.items()}


@pytest.mark.parametrize("name", OURS)
def test_fields_of_openai(name: str) -> None:
    """Every field of the installed `openai` package is an attribute of ours."""
    assert missing_fields(getattr(openai_types, name), KNOWN[name], INSIDE) == []


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name in OURS for field in getattr(openai_types, name).model_fields],
)
def test_fields_of_openai_that_are_missing(name: str, field: str) -> None:
    """If one field of one class is removed, the comparison names it."""
    missing = missing_fields(getattr(openai_types, name), KNOWN[name] - {field}, INSIDE)
    assert missing == [field]


INSIDE_OF_OPENAI: dict[str, type[pydantic.BaseModel]] = {
    "usage": images_response.Usage,
    "svg_usage": images_response.SvgUsage,
    "input_tokens_details": images_response.UsageInputTokensDetails,
    "output_tokens_details": images_response.UsageOutputTokensDetails,
}


@pytest.mark.parametrize(
    ("holder", "field"),
    [
        (holder, field)
        for holder, theirs in INSIDE_OF_OPENAI.items()
        for field in theirs.model_fields
    ],
)
def test_fields_of_openai_that_are_missing_inside(holder: str, field: str) -> None:
    """If one field of the usage or of its details is removed, the comparison names it."""
    inside = {**INSIDE, holder: INSIDE[holder] - {field}}
    (missing,) = missing_fields(openai_types.ImagesResponse, KNOWN["ImagesResponse"], inside)
    assert missing.endswith(f"{holder}.{field}")


def test_add_usage() -> None:
    """Usage is added field by field; None counts as zero."""
    one = Usage(total_tokens=1, input_tokens_details=TokenDetails(text_tokens=1))
    assert add_usage(one, None) == add_usage(None, one) == one
    assert add_usage(None, None) is None
    both = add_usage(one, Usage(total_tokens=2, output_tokens=3))
    assert both == Usage(
        total_tokens=3, output_tokens=3, input_tokens_details=TokenDetails(text_tokens=1)
    )
