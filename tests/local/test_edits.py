"""Edits at the local server: forms, JSON, masks and responses."""

import base64
import io
import json
from typing import Any

import aiohttp
import pytest
from PIL import Image as Pillow
from PIL import ImageChops, ImageDraw

from elkimg_async.local import LocalServer
from elkimg_async.local.contract import GatewayError
from elkimg_async.local.edits import parse_edit_form
from elkimg_async.local.forms import MAX_PARTS, described, parse_form
from elkimg_async.local.server import EDITS_PATH

KIND = "multipart/form-data; boundary=XX"


def noise_image(size: tuple[int, int] = (96, 64), format: str = "PNG", mode: str = "RGB") -> bytes:
    """An image whose neighbouring pixels all differ."""
    noise = bytes(n * 37 % 251 for n in range(size[0] * size[1] * len(mode)))
    out = io.BytesIO()
    Pillow.frombytes(mode, size, noise).save(out, format)
    return out.getvalue()


def mask(size: tuple[int, int] = (96, 64)) -> bytes:
    """A mask that is opaque except for a hole."""
    image = Pillow.new("RGBA", size, (0, 0, 0, 255))
    ImageDraw.Draw(image).rectangle(HOLE, (0, 0, 0, 0))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


HOLE = (20, 10, 59, 39)


def opened(content: bytes) -> Pillow.Image:
    return Pillow.open(io.BytesIO(content)).convert("RGBA")


def form(**fields: Any) -> aiohttp.FormData:
    """A form; bytes become files, lists repeated names."""
    data = aiohttp.FormData()
    for name, value in {"prompt": "a hat", **fields}.items():
        field = "image[]" if isinstance(value, list) else name
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bytes):
                data.add_field(field, item, filename=f"{name}.png", content_type="image/png")
            else:
                data.add_field(field, item)
    return data


async def post(server: LocalServer, data: Any, **headers: str) -> tuple[int, bytes]:
    url = server.base_url.removesuffix("/v1") + EDITS_PATH
    key = {"Authorization": f"Bearer {server.api_key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=data, headers={**key, **headers}) as response,
    ):
        return response.status, await response.read()


async def edited(server: LocalServer, **fields: Any) -> tuple[Pillow.Image, dict[str, Any]]:
    status, body = await post(server, form(**fields))
    value: dict[str, Any] = json.loads(body)
    assert status == 200, value
    return opened(base64.b64decode(value["data"][0]["b64_json"])), value


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
async def test_edit_paints_within_the_mask(server: LocalServer, mode: str) -> None:
    """Only pixels where the mask is transparent change."""
    content = noise_image(mode=mode)
    image, value = await edited(server, image=content, mask=mask())
    before = opened(content)
    assert image.size == before.size
    assert value["size"] == "96x64"
    changed = 0
    for x in range(image.width):
        for y in range(image.height):
            inside = HOLE[0] <= x <= HOLE[2] and HOLE[1] <= y <= HOLE[3]
            if image.getpixel((x, y)) != before.getpixel((x, y)):
                assert inside, (x, y)
                changed += 1
    assert changed > 0.95 * 40 * 30


async def test_edit_half_transparent_mask(server: LocalServer) -> None:
    """A half transparent mask mixes image and paint."""
    out = io.BytesIO()
    Pillow.new("RGBA", (96, 64), (0, 0, 0, 128)).save(out, "PNG")
    half, _ = await edited(server, image=noise_image(), mask=out.getvalue())
    full, _ = await edited(server, image=noise_image(), mask=mask())
    point = (30, 20)
    pixels = [image.getpixel(point) for image in (opened(noise_image()), half, full)]
    before, mixed, paint = (pixel[0] for pixel in pixels if isinstance(pixel, tuple))
    assert abs(mixed - (before + paint) / 2) <= 2


async def test_edit_without_a_mask(server: LocalServer) -> None:
    """Without a mask the top of the image stays and the rest fades into paint."""
    content = noise_image()
    image, _ = await edited(server, image=content)
    before = opened(content)
    top = (0, 0, 96, 10)
    assert image.crop(top).tobytes() == before.crop(top).tobytes()
    assert ImageChops.difference(image.convert("RGB"), before.convert("RGB")).getbbox() is not None
    other, _ = await edited(server, image=noise_image(mode="RGBA"))
    assert image.tobytes() != other.tobytes()


async def test_edit_shows_every_image_file(server: LocalServer) -> None:
    """Every further image is visible in the result."""
    results = set()
    for images in (
        [noise_image()],
        [noise_image()] * 2,
        [noise_image(), noise_image(mode="RGBA")],
        [noise_image()] * 5,
    ):
        image, value = await edited(server, images=images)
        results.add(image.tobytes())
        tokens = value["usage"]["input_tokens_details"]
        assert tokens == {"text_tokens": 2, "image_tokens": len(images) * (65 + 129)}
        assert value["usage"]["input_tokens"] == 2 + tokens["image_tokens"]
    assert len(results) == 4


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
async def test_edit_options(server: LocalServer, output_format: str) -> None:
    """n, size and output format are as requested, and the images differ."""
    fields = {"n": "2", "size": "1024x1536", "output_format": output_format, "quality": "low"}
    status, body = await post(server, form(image=noise_image(), **fields))
    value = json.loads(body)
    assert (status, len(value["data"])) == (200, 2)
    contents = [base64.b64decode(item["b64_json"]) for item in value["data"]]
    assert contents[0] != contents[1]
    with Pillow.open(io.BytesIO(contents[0])) as image:
        assert (image.size, (image.format or "").lower()) == ((1024, 1536), output_format)
    assert (value["size"], value["quality"]) == ("1024x1536", "low")


async def test_edit_stream(server: LocalServer) -> None:
    """A stream has edit events, and its partial images keep the masked part too."""
    data = form(image=noise_image(), mask=mask(), stream="true", partial_images="2")
    status, body = await post(server, data)
    assert status == 200
    events = [line for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert events == [b"event: image_edit.partial_image"] * 2 + [b"event: image_edit.completed"]
    values = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    images = [opened(base64.b64decode(value["b64_json"])) for value in values]
    before = opened(noise_image())
    left = (0, 0, HOLE[0], 64)
    assert all(image.crop(left).tobytes() == before.crop(left).tobytes() for image in images)
    assert len({image.tobytes() for image in images}) == 3
    assert values[-1]["usage"]["input_tokens_details"]["image_tokens"] == 194


async def test_edit_is_recorded(server: LocalServer) -> None:
    """Recorded fields have the form's texts, and name, type and size of its files."""
    await edited(server, images=[noise_image(), noise_image()], mask=mask(), user="u-1")
    fields = server.requests[-1].fields
    file = {"filename": "images.png", "type": "image/png", "size": len(noise_image())}
    assert fields["image[]"] == [file, file]
    assert fields["mask"]["size"] == len(mask())
    assert (fields["prompt"], fields["user"]) == ("a hat", "u-1")
    assert server.generations == 1


async def test_edit_idempotency_and_faults(server: LocalServer) -> None:
    """An idempotency key replays its response, and faults apply."""
    body = b"".join(
        b'--XX\r\nContent-Disposition: form-data; name="%b\r\n\r\n%b\r\n' % part
        for part in ((b'prompt"', b"a"), (b'image"; filename="a.png"', noise_image()))
    )
    headers = {"Content-Type": KIND, "Idempotency-Key": "k-1"}
    first = await post(server, body + b"--XX--\r\n", **headers)
    assert first == await post(server, body + b"--XX--\r\n", **headers)
    assert server.generations == 1
    status, _ = await post(server, body + b"--XX--", **headers)
    assert status == 422
    server.inject("error=503/overloaded")
    status, failed = await post(server, form(image=noise_image()))
    assert (status, json.loads(failed)["error"]["code"]) == (503, "overloaded")
    assert str(server.requests[-1].fault) == "error=503/overloaded"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"mask": mask()}, 500, "invalid_request", "image"),
        ({"image": "text", "mask": mask()}, 500, "invalid_request", "image"),
        ({"image": b"not an image"}, 400, "invalid_image_file", "image"),
        ({"image": noise_image()[:200]}, 400, "invalid_image_file", "image"),
        ({"image": noise_image(), "mask": mask()[:90]}, 400, "invalid_image_file", "mask"),
        ({"image": noise_image(), "mask": mask((96, 65))}, 500, "invalid_request", "mask"),
        ({"image": noise_image(), "mask": noise_image()}, 500, "invalid_request", "mask"),
        ({"images": [noise_image()] * 17}, 500, "invalid_request", "image"),
        ({"image": noise_image(), "n": "two"}, 500, "invalid_request", "n"),
        ({"image": noise_image(), "n": "11"}, 500, "invalid_request", "n"),
        ({"image": noise_image(), "stream": "1"}, 500, "invalid_request", "stream"),
        ({"image": noise_image(), "size": "9x9"}, 500, "invalid_request", "size"),
        ({"image": noise_image(), "prompt": noise_image()}, 500, "invalid_request", "prompt"),
        ({"image": noise_image(), "model": "gpt-9"}, 503, "model_not_found", "model"),
        ({"image": noise_image(), "model": "dall-e-3"}, 500, "invalid_request", "model"),
        (
            {"image": noise_image(), "response_format": "url"},
            400,
            "unknown_parameter",
            "response_format",
        ),
    ],
)
async def test_edit_invalid_form(
    server: LocalServer, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    """An invalid form gets the gateway's error, and nothing is generated."""
    received, body = await post(server, form(**fields))
    error = json.loads(body)["error"]
    assert (received, error["code"], error["param"]) == (status, code, param)
    assert server.generations == 0


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


async def post_json(server: LocalServer, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"prompt": "a hat", **fields}).encode()
    status, content = await post(server, body, **{"Content-Type": "application/json"})
    return status, json.loads(content)


async def test_edit_json(server: LocalServer) -> None:
    """The JSON form with data: URLs edits as the multipart form does."""
    images = [{"image_url": data_url(noise_image())}]
    mask_url = {"image_url": data_url(mask())}
    status, value = await post_json(server, images=images, mask=mask_url, moderation="low")
    assert status == 200
    content = opened(base64.b64decode(value["data"][0]["b64_json"]))
    expected, _ = await edited(server, image=noise_image(), mask=mask())
    assert content.tobytes() == expected.tobytes()
    assert server.requests[0].fields["images"] == images


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "words"),
    [
        ({}, 500, "invalid_request", "images", "required"),
        ({"images": []}, 500, "invalid_request", "images", "required"),
        ({"images": ["x"]}, 500, "invalid_request", "image", "image_url or file_id"),
        ({"images": [{"image_url": 7}]}, 500, "invalid_request", "image", "string"),
        ({"images": [{"file_id": "file-1"}]}, 400, "file_not_found", "image", "data: URL"),
        (
            {"images": [{"image_url": "https://example.com/a.png"}]},
            400,
            "invalid_image_url",
            "image",
            "data: URL",
        ),
        ({"images": [{"image_url": "data:,x"}]}, 400, "invalid_image_file", "image", "Invalid"),
        (
            {"images": [{"image_url": "data:image/png;base64,!"}]},
            400,
            "invalid_image_file",
            "image",
            "Invalid",
        ),
    ],
)
async def test_edit_json_invalid(
    server: LocalServer, fields: dict[str, Any], status: int, code: str, param: str, words: str
) -> None:
    """References that are not in the body are errors that say what to send."""
    received, value = await post_json(server, **fields)
    error = value["error"]
    assert (received, error["code"], error["param"]) == (status, code, param)
    assert words in error["message"]
    assert server.generations == 0


async def test_edit_wrong_api_key(server: LocalServer) -> None:
    """A wrong API key gets 401."""
    status, _ = await post(server, form(image=noise_image()), Authorization="Bearer wrong")
    assert status == 401


def part(head: bytes, content: bytes = b"x") -> bytes:
    return b"--XX\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


NAMED = b'Content-Disposition: form-data; name="a"'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", part(NAMED) + b"--XX--"),
        ("multipart/form-data; boundary=", part(NAMED) + b"--XX--"),
        (KIND, b""),
        (KIND, b"no form"),
        (KIND, part(NAMED)),
        (KIND, part(NAMED)[:-5]),
        (KIND, part(NAMED) + b"--XX"),
        (KIND, part(b"Content-Type: text/plain") + b"--XX--"),
        (KIND, b"--XX\r\n" + NAMED + b"\r\n--XX--"),
        (KIND, part(NAMED) * (MAX_PARTS + 1) + b"--XX--"),
    ],
)
def test_parse_form_invalid(kind: str, body: bytes) -> None:
    """A form without boundary, truncated or malformed is an error."""
    with pytest.raises(GatewayError) as caught:
        parse_form(kind, body)
    assert (caught.value.status, caught.value.code) == (500, "invalid_request")


def test_parse_form_valid() -> None:
    """Texts and files keep their content, in every usual spelling of the headers."""
    content = b"\r\n--X\r\n--\r\n\0"
    body = (
        b"preamble\r\n"
        + part(b'content-disposition: form-data; name="a%22b"', "é".encode())
        + part(
            b'Content-Disposition: form-data; filename="x; name=y.png"; name=pic\r\n'
            b"Content-Type: image/png",
            content,
        )
        + part(NAMED)
        + part(NAMED, b"")
        + b"--XX--\r\nepilogue"
    )
    parts = parse_form('Multipart/Form-Data; charset=utf-8; Boundary="XX"', body)
    assert [part.name for part in parts] == ['a"b', "pic", "a", "a"]
    assert parts[0].described == "é"
    assert (parts[1].filename, parts[1].media_type) == ("x; name=y.png", "image/png")
    assert parts[1].content == content
    assert described(parts)["a"] == ["x", ""]


def test_parse_edit_form_nested_names() -> None:
    """Names in brackets are nested objects."""
    body = part(b'Content-Disposition: form-data; name="image"; filename="i.png"', noise_image())
    for name, value in (
        (b"prompt", b"a hat"),
        (b"model", b"gpt-image-2"),
        (b"svg[model]", b"gpt-5"),
        (b"svg[reasoning][effort]", b"low"),
        (b"output_format", b"svg"),
    ):
        body += part(b'Content-Disposition: form-data; name="%b"' % name, value)
    parsed = parse_edit_form(parse_form(KIND, body + b"--XX--"))
    assert parsed.svg_model == "gpt-5"


def test_parse_edit_form_duplicate() -> None:
    """A repeated text or mask is an error."""
    for name, filename in (("prompt", b""), ("mask", b'; filename="m.png"')):
        head = f'Content-Disposition: form-data; name="{name}"'.encode() + filename
        image = b'Content-Disposition: form-data; name="image"; filename="i.png"'
        body = part(image, noise_image()) + part(head, mask()) * 2 + b"--XX--"
        with pytest.raises(GatewayError) as caught:
            parse_edit_form(parse_form(KIND, body))
        assert caught.value.param == name
