"""What `edit` accepts as an image: openai's file tuples, URLs and references; and what it sends."""

import base64
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from elkimg_async import AsyncImages, EditRequest, ImageReference, InvalidRequestError
from elkimg_async.sansio.image_headers import MAX_SHOWN, InputImage
from elkimg_async.transport.uploads import (
    build_edit,
    image_list,
    is_file_tuple,
    open_image,
    open_images,
)
from tests.helpers.calls import GOOD
from tests.helpers.edits import parsed
from tests.helpers.raw_server import API_KEY, RawServer
from tests.local.test_edits import mask, noise_image

PNG, JPEG, WEBP = (noise_image(format=kind) for kind in ("PNG", "JPEG", "WEBP"))
URL = "https://host/kitten.png?signature=1"
TEXT = base64.b64encode(PNG).decode()
DATA = f"data:image/png;base64,{TEXT}"


@pytest.fixture
async def client(raw_server: RawServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        yield client


async def files_of(raw_server: RawServer) -> list[tuple[str, str | None, str | None, bytes]]:
    """The files of the last form."""
    return [part for part in await parsed(raw_server.requests[-1]) if part[1] is not None]


# --- openai's file tuples -----------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name", "media_type"),
    [
        (("kitten.png", PNG), "kitten.png", "image/png"),
        (("kitten.png", PNG, "image/png"), "kitten.png", "image/png"),
        (("kitten.png", PNG, None), "kitten.png", "image/png"),
        (("kitten.png", PNG, "image/png", {}), "kitten.png", "image/png"),
        (("kitten.png", io.BytesIO(PNG), "image/png"), "kitten.png", "image/png"),
        (("kitten.png", bytearray(PNG), "image/png; charset=binary"), "kitten.png", "image/png"),
        ((None, PNG, "image/png"), "image.png", "image/png"),
        (("kitten", PNG), "kitten.png", "image/png"),
        (("kitten.png", WEBP, "image/png"), "kitten.webp", "image/webp"),
        (("a/ü \r\n.png", PNG), "a_ü __.png", "image/png"),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_file_tuple(
    client: AsyncImages, raw_server: RawServer, given: Any, name: str, media_type: str
) -> None:
    """Openai's form for an image in memory is sent under its name; its bytes determine the type."""
    await client.edit(given, "a hat")
    ((param, filename, sent_type, content),) = await files_of(raw_server)
    assert (param, sent_type) == ("image", media_type)
    assert filename == name
    assert content in (PNG, WEBP)


async def test_file_tuple_with_a_path(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """The content may be a path; one list may have tuples and other forms."""
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    await client.edit(
        [("a.png", path, "image/png"), path, ("b.webp", WEBP), PNG],
        "a hat",
        mask=("m.png", mask(), "image/png"),
    )
    assert [(part[0], part[1]) for part in await files_of(raw_server)] == [
        ("image[]", "a.png"),
        ("image[]", "x.png"),
        ("image[]", "b.webp"),
        ("image[]", "image.png"),
        ("mask", "m.png"),
    ]


async def test_file_tuple_of_an_unknown_type(client: AsyncImages, raw_server: RawServer) -> None:
    """The type in the tuple is used if the bytes do not show one."""
    await client.edit(("a.heic", b"unknown", "image/heic"), "a hat", model="new")
    assert await files_of(raw_server) == [("image", "a.heic", "image/heic", b"unknown")]


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (("a.png", b"x"), True),
        (("a.png", io.BytesIO(b"x"), "image/png"), True),
        (("a.png", Path("a.png"), "image/png"), True),
        (("a.png", "b.png"), False),
        ((Path("a.png"), Path("b.png")), False),
        (("a.png", Path("b.png")), True),
        (("a.png",), False),
    ],
    ids=range(7),
)
def test_is_file_tuple(value: Any, is_one: bool) -> None:
    """A tuple of a name and content is one file, a tuple of paths several."""
    assert is_file_tuple(value) is is_one
    assert image_list(value) == ([value] if is_one else list(value))


async def test_tuple_of_several_images(tmp_path: Path) -> None:
    """A tuple of images is not taken for one file."""
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    for images in ((PNG, path), (str(path), str(path)), (PNG, PNG, PNG), (path, PNG, WEBP)):
        assert len(await open_images(images, "image")) == len(images)
    assert len(await open_images(("x.png", PNG), "image")) == 1


async def test_file_tuple_with_headers(client: AsyncImages, raw_server: RawServer) -> None:
    """Headers of a part are sent with it, except those that the form has itself."""
    headers = {"X-A": "b", "Content-Type": "text/plain", "content-length": "1"}
    await client.edit(("a.png", PNG, "image/png", headers), "a hat", model="new")
    assert await files_of(raw_server) == [("image", "a.png", "image/png", PNG)]
    (head,) = re.findall(rb"filename=.*?\r\n\r\n", raw_server.requests[-1].body, re.DOTALL)
    assert head == b'filename="a.png"\r\nContent-Type: image/png\r\nX-A: b\r\n\r\n'


@pytest.mark.parametrize("headers", [{"X-A": "b\r\nX-B: c"}, {"X A": "b"}, {"": "b"}])
async def test_file_tuple_with_wrong_headers(headers: dict[str, str]) -> None:
    """A header that would begin another one is not sent."""
    with pytest.raises(InvalidRequestError, match="headers of image are not valid"):
        await open_image(("a.png", PNG, "image/png", headers), "image")


async def test_markup(client: AsyncImages, raw_server: RawServer) -> None:
    """A markup is sent as a file of its own."""
    options = {"model": "gpt-image-2.5-flare", "moderation": "low", "safety_identifier": "s"}
    await client.edit(PNG, "a hat", markup=mask(), **options)  # type: ignore[call-overload]
    parts = await parsed(raw_server.requests[-1])
    assert [part[:3] for part in parts if part[1]] == [
        ("image", "image.png", "image/png"),
        ("markup", "markup.png", "image/png"),
    ]
    texts = {part[0]: part[3].decode() for part in parts if part[1] is None}
    assert texts == {"prompt": "a hat", **options}


async def test_svg_in_a_form(client: AsyncImages, raw_server: RawServer) -> None:
    """The mapping `svg` becomes fields with brackets."""
    await client.edit(
        PNG, "a hat", output_format="svg", svg={"model": "m", "reasoning": {"effort": "low"}}
    )
    texts = {
        part[0]: part[3].decode() for part in await parsed(raw_server.requests[-1]) if not part[1]
    }
    assert texts["svg[model]"] == "m"
    assert texts["svg[reasoning][effort]"] == "low"
    assert "svg" not in texts


# --- URLs and references --------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (URL, [{"image_url": URL}]),
        ("HTTP://host/a.png", [{"image_url": "HTTP://host/a.png"}]),
        (DATA, [{"image_url": DATA}]),
        (ImageReference(url=URL), [{"image_url": URL}]),
        (ImageReference(url=DATA), [{"image_url": DATA}]),
        (ImageReference(file_id="file-1"), [{"file_id": "file-1"}]),
        ([URL, ImageReference(file_id="f")], [{"image_url": URL}, {"file_id": "f"}]),
        ([URL, PNG], [{"image_url": URL}, {"image_url": DATA}]),
        ([URL, io.BytesIO(PNG)], [{"image_url": URL}, {"image_url": DATA}]),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_reference(
    client: AsyncImages, raw_server: RawServer, given: Any, sent: list[dict[str, str]]
) -> None:
    """URLs and references go in the JSON form of the endpoint, together with the same options."""
    await client.edit(given, "a hat", moderation="low", n=2, stream=False, user="u")
    request = raw_server.requests[-1]
    assert (request.method, request.target) == ("POST", "/v1/images/edits")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(request.body))
    assert json.loads(request.body) == {
        "images": sent,
        "prompt": "a hat",
        "model": "gpt-image-1.5",
        "n": 2,
        "moderation": "low",
        "user": "u",
    }


async def test_reference_with_a_mask(
    client: AsyncImages, raw_server: RawServer, tmp_path: Path
) -> None:
    """A mask with a reference is sent in the same JSON, read from its file."""
    path = tmp_path / "m.png"
    path.write_bytes(mask())
    url = "data:image/png;base64," + base64.b64encode(mask()).decode()
    for given, sent in (
        (path, {"image_url": url}),
        (url, {"image_url": url}),
        (ImageReference(file_id="f"), {"file_id": "f"}),
    ):
        await client.edit(URL, "a hat", mask=given)
        assert json.loads(raw_server.requests[-1].body)["mask"] == sent
    await client.edit(PNG, "a hat", mask=ImageReference(file_id="f"))
    assert json.loads(raw_server.requests[-1].body)["images"] == [{"image_url": DATA}]


async def test_data_url_beside_a_file(client: AsyncImages, raw_server: RawServer) -> None:
    """A `data:` URL with a file is decoded, and both are sent as a form."""
    await client.edit([DATA, JPEG], "a hat")
    assert [part[2:] for part in await files_of(raw_server)] == [
        ("image/png", PNG),
        ("image/jpeg", JPEG),
    ]
    await client.edit(DATA, "a hat", mask=mask())
    assert [part[0] for part in await files_of(raw_server)] == ["image", "mask"]


async def test_data_url_is_held_to_the_rules(client: AsyncImages, raw_server: RawServer) -> None:
    """The rules for files apply to the content of a `data:` URL."""
    small = mask((8, 8))
    with pytest.raises(InvalidRequestError, match="the same size"):
        await client.edit(DATA, "a hat", mask=small)
    gif = base64.b64encode(noise_image(format="GIF", mode="L")).decode()
    with pytest.raises(InvalidRequestError, match="image/gif; choose"):
        await client.edit(f"data:image/png;base64,{gif}", "a hat")
    assert not raw_server.requests


@pytest.mark.parametrize(
    "url", ["data:", "data:image/png;base64", "data:image/png;base64,%%%", "data:;base64,a"]
)
async def test_data_url_wrong(url: str) -> None:
    """A broken `data:` URL is rejected in one sentence."""
    with pytest.raises(
        InvalidRequestError, match="data: URL passed as image is not valid"
    ) as caught:
        await open_image(url, "image")
    assert caught.value.__cause__ is None


async def test_data_url_forms() -> None:
    """A `data:` URL may have parameters, white space, percent signs, or no base64 at all."""
    for url in (
        DATA.replace("image/png;", "image/png;name=a.png;").replace("base64", "BASE64"),
        f"DATA:image/png;base64,{TEXT[:40]}\n{TEXT[40:]}",
        "data:image/png;base64," + TEXT.replace("/", "%2F").replace("+", "%2B"),
    ):
        image = await open_image(url, "image")
        assert isinstance(image, InputImage)
        assert (image.media_type, image.source) == ("image/png", PNG)
    image = await open_image("data:image/svg+xml,%3Csvg%3E", "image")
    assert isinstance(image, InputImage)
    assert image.source == b"<svg>"


async def test_markup_beside_a_reference() -> None:
    """The JSON form has no markup, so a reference and a markup cannot go together."""
    with pytest.raises(InvalidRequestError, match="markup can only be sent with image files"):
        await build_edit(URL, {"prompt": "a", "markup": mask()})


@pytest.mark.parametrize(
    "fields", [{}, {"url": URL, "file_id": "f"}, {"url": ""}, {"file_id": " "}, {"url": 5}], ids=str
)
def test_image_reference_wrong(fields: dict[str, Any]) -> None:
    """A reference has either a URL or the id of a file."""
    with pytest.raises(InvalidRequestError, match="either a url or a file_id"):
        ImageReference(**fields)


def test_image_reference_is_printed_shortly() -> None:
    """Neither an image nor the signature of a URL is printed."""
    assert repr(ImageReference(url=URL)) == "ImageReference(url='https://host/kitten.png')"
    assert repr(ImageReference(file_id="f")) == "ImageReference(file_id='f')"
    assert len(repr(ImageReference(url=DATA * 9))) < 2 * MAX_SHOWN


# --- invalid paths ----------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [PNG, JPEG, WEBP, noise_image(format="GIF", mode="L"), bytes(300)]
)
async def test_base64_passed_as_a_path(
    client: AsyncImages, raw_server: RawServer, content: bytes
) -> None:
    """Base64 text is named as such, in one short sentence without the image."""
    text = base64.b64encode(content).decode()
    for given in (text, text * 30):
        with pytest.raises(InvalidRequestError, match="is base64 text, not a path") as caught:
            await client.edit(given, "a hat")
        assert len(str(caught.value)) < 120
        assert caught.value.__context__ is None
        assert text[20:60] not in repr(vars(caught.value))


async def test_long_path_is_cut(client: AsyncImages) -> None:
    """A path that does not exist is shown, but not more of it than a path has."""
    with pytest.raises(InvalidRequestError, match=r"No such file .* then the prompt\.$") as caught:
        await client.edit("give it a hat", "q.png")
    assert "'give it a hat'" in str(caught.value)
    with pytest.raises(InvalidRequestError, match="cannot be read") as caught:
        await client.edit("a kitten " * 1000, "q.png")
    assert len(str(caught.value)) < 200


async def test_text_file_is_named(client: AsyncImages, tmp_path: Path) -> None:
    """A file opened as text gets the advice to open it in binary mode."""
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    with (
        path.open(encoding="utf-8") as file,
        pytest.raises(InvalidRequestError, match="open it in binary mode"),
    ):
        await client.edit(file, "a hat")  # type: ignore[arg-type] # pyright: ignore


async def test_ready_request(client: AsyncImages, raw_server: RawServer) -> None:
    """A ready `EditRequest` or a mapping of its fields replaces the arguments."""
    raw_server.reply_with(GOOD)
    for given in (
        EditRequest("a hat", image=PNG, mask=mask(), n=2),
        {"prompt": "a hat", "image": PNG, "mask": mask(), "n": 2},
    ):
        await client.edit(given, size="auto")
        parts = await parsed(raw_server.requests[-1])
        assert {part[0] for part in parts} == {"prompt", "n", "size", "model", "image", "mask"}
