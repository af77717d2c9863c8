"""Frequent mistakes, and the messages that explain them."""

import asyncio
import copy
import inspect
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import elkimg_async
from elkimg_async import AsyncImages, Image, ImagesResponse, MapItem, PartialImage
from elkimg_async.local import LocalServer

PNG = b"\x89PNG\r\n\x1a\n"
HELD = {
    "client": AsyncImages("sk-0123456789"),
    "image": Image(PNG),
    "response": ImagesResponse([Image(PNG)]),
    "event": PartialImage(type="image_generation.partial_image", image=Image(PNG)),
    "item": MapItem(index=0),
}

OPTIONS = [
    ("AsyncImages(key='x')", "unexpected keyword argument 'key': the name is api_key."),
    ("AsyncImages(url='http://x')", "the name is base_url."),
    ("AsyncImages(concurrency=5)", "pass limits=Limits(max_concurrency=…), or client.map("),
    ("AsyncImages(rpm=60)", "pass limits=Limits(requests_per_minute=…)."),
    ("AsyncImages('k').images.with_raw_response", "details of the response are in result.meta."),
    ("AsyncImages('k').with_streaming_response", "details of the response are in result.meta."),
    ("AsyncImages('k').copy", "use client.with_options(…)."),
    ("AsyncImages(http_client=1)", "pass an aiohttp.ClientSession as session."),
    ("AsyncImages(time_out=1)", "did you mean 'timeout'?"),
    (
        "AsyncImages(limits={'requests_per_minute': 5})",
        "such as Limits(requests_per_minute=60), not dict.",
    ),
    ("AsyncImages(retry=True)", "retry must be a whole number or elkimg_async.RetryPolicy("),
    ("AsyncImages(hooks=print)", "hooks must be a list of functions, as in hooks=[function]."),
    ("AsyncImages(hooks=None)", "hooks must be a list of functions, as in hooks=[function]."),
    ("AsyncImages(hooks=['log'])", "hooks must be a list of functions, as in hooks=[function]."),
    ("AsyncImages(session={})", "session must be an aiohttp.ClientSession, not dict."),
    (
        "AsyncImages(base_url='https://host/v1/images/generations')",
        "it must end before /images/generations, which the client adds.",
    ),
    ("AsyncImages(12345)", "api_key must be a string or an async function, not int."),
    ("AsyncImages(fetch_key())", "pass the function without calling it."),
    (
        "client.generate('k', sise='auto')",
        "AsyncImages.generate() got an unexpected keyword argument 'sise': did you mean 'size'",
    ),
    (
        "client.generate('k', negative_prompt='dogs')",
        "say in the prompt what the image should not show.",
    ),
    ("client.generate('k', width=512)", "pass a size such as size='1024x1024'."),
    ("client.generate('k', num_images=2)", "the number of images is n."),
    (
        "client.generate('k', seed=7)",
        "fields that the server knows and this client does not go into extra_body.",
    ),
    (
        "client.generate(size='auto')",
        "AsyncImages.generate() missing 1 required positional argument: 'prompt'",
    ),
    (
        "client.edit('q.png', 'hat', masks='m.png')",
        "AsyncImages.edit() got an unexpected keyword argument 'masks': did you",
    ),
    (
        "client.map(['a'], concurency=3)",
        "map() got an unexpected keyword argument 'concurency': did you mean 'con",
    ),
    ("client.map(['a'], negative_prompt='x')", "say in the prompt what the image should not show."),
    (
        "client.create('k')",
        "'AsyncImages' object has no attribute 'create': use client.generate(…).",
    ),
    ("client.stream('k')", "use client.generate(…, stream=True)."),
    ("client.chat", "'AsyncImages' object has no attribute 'chat'"),
    (
        "pickle.dumps(client)",
        "A client cannot be pickled, since it has connections and an API key; create",
    ),
    ("copy.deepcopy(client)", "create one in each process."),
    ("response.images", "its images are result[0], result[1], …, or for image in result."),
    ("response.save('x.png')", "each of its images has it, as in result[0].save."),
    ("response.b64_json", "each of its images has it, as in result[0].b64_json."),
    ("response.nothing", "'ImagesResponse' object has no attribute 'nothing'"),
    (
        "image.bytes",
        "'Image' object has no attribute 'bytes': its bytes are image.content, or await",
    ),
    ("image.show()", "image.to_pil().show() opens a window, await image.save(path) writes a file."),
    ("image.size", "image.to_pil().size is (width, height)."),
    ("image.format", "use image.media_type."),
    ("image.nothing", "'Image' object has no attribute 'nothing'"),
    ("event.save('x.png')", "'PartialImage' object has no attribute 'save': use event.image.save."),
    ("item.images", "item.result has the images, or item.paths the files with output_dir."),
    ("elkimg_async.generate('k')", "it is a method of a client, AsyncImages().generate(…)"),
    ("elkimg_async.nothing", "module 'elkimg_async' has no attribute 'nothing'"),
]
USES = [
    (
        "with AsyncImages(): pass",
        "Write `async with` instead of `with`: async with AsyncImages() as client: …",
    ),
    (
        "with client.map(['a']): pass",
        "Write `async with` instead of `with`: async with client.map(…) as run:",
    ),
    (
        "for item in client.map(['a']): pass",
        "Write `async for` instead of `for`: async with client.map(…) as run:",
    ),
    (
        "await client.map(['a'])",
        "A run is not awaited; iterate over it: async with client.map(…) as run:",
    ),
    (
        "async for item in client.map(['a']): pass",
        "A run starts with its block: async with client.map(…) as run:",
    ),
    (
        "with await stream: pass",
        "Write `async with` instead of `with`: async with client.generate(…, stream=True)",
    ),
    (
        "for event in await stream: pass",
        "Write `async for` instead of `for`: async with client.generate(…, stream=True)",
    ),
    ("(await stream).usage", "the response has it, as in (await stream.result()).usage."),
    ("(await stream).save", "each event has an image, as in event.image.save."),
    (
        "await client.generate(['a', 'b'])",
        "prompt must be a string, not list. For several prompts use client.map",
    ),
    (
        "await client.generate('k', size=(1024, 1536))",
        "size must be a string, not tuple. Write size='1024x1536'.",
    ),
    (
        "await client.edit('give a hat', 'q.png')",
        "No such file or directory. The image comes first, then the prompt.",
    ),
    ("await client.edit('hat', 'q.png')", "The image comes first, then the prompt."),
    (
        "await client.edit('q.png', 'a hat', mask='small.png')",
        "small.png is 10x10 and q.png is 1024x1024; they must have the same size.",
    ),
    ("await client.with_options().generate('k', n=11)", "n is 11; it must be 1 to 10."),
    ("await client.generate('k', n='2')", "n must be a whole number, not str. Write n=2."),
    ("await client.generate('k', n=2.0)", "n must be a whole number, not float. Write n=2."),
    ("await client.generate('k', size=1024)", "not int. Write size='1024x1024'."),
    ("await client.generate('k', size='1024*1024')", "is not offered; write 1024x1024."),
    ("await client.generate('k', size='1024 \u00d7 1024')", "is not offered; write 1024x1024."),
    ("await client.generate({'prompt': 'k', 'sized': 'auto'})", "did you mean 'size'? Its fields"),
    (
        "await client.edit('notes.txt', 'a hat')",
        "notes.txt is not an image of a known type; choose",
    ),
    ("(await client.generate('k', stream=True))[0]", "as in (await stream.result())[0]."),
    (
        "(await client.generate('k', stream=True)).response",
        "its details are in (await stream.result()).meta.",
    ),
    (
        "await AsyncImages(lambda: 'k').generate('k')",
        "this function is not async. Define it with async def.",
    ),
]


@pytest.mark.parametrize(("code", "message"), OPTIONS, ids=[code for code, _ in OPTIONS])
def test_mistake_in_a_name(code: str, message: str) -> None:
    """A name that does not exist, or a value that cannot work, says what to write instead."""

    async def fetch_key() -> str:
        return "sk"

    names = {**vars(elkimg_async), "elkimg_async": elkimg_async, "pickle": pickle, "copy": copy}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any class
        eval(code, {**names, **HELD, "AsyncImages": AsyncImages, "fetch_key": fetch_key})
    assert message in str(caught.value)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[LocalServer]:
    """The local server, as the environment's, in a folder with an image and a mask."""
    import PIL.Image

    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (1024, 1024)).save("q.png")
    PIL.Image.new("RGBA", (10, 10)).save("small.png")
    Path("notes.txt").write_text("not an image", "utf-8")
    async with LocalServer(light=True) as running:
        monkeypatch.setenv("ELKAPI_API_KEY", running.api_key)
        monkeypatch.setenv("ELKAPI_BASE_URL", running.base_url)
        yield running


@pytest.mark.parametrize(("code", "message"), USES, ids=[code for code, _ in USES])
async def test_mistake_in_use(server: LocalServer, code: str, message: str) -> None:
    """A wrong use is an error that shows the correct one; nothing is generated."""
    names: dict[str, Any] = {"AsyncImages": AsyncImages}
    exec(f"async def use(client, stream):\n    {code}", names)
    async with AsyncImages() as client, client.generate("k", stream=True) as stream:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of any class
            await names["use"](client, stream)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["AsyncClient", "AsyncElkAPI", "AsyncOpenAI", "OpenAI", "Client"])
def test_mistake_in_the_name_of_the_client(name: str) -> None:
    """Importing the client under another name is an error that names it."""
    with pytest.raises(ImportError, match=f"cannot import name '{name}'.*is called AsyncImages"):
        exec(f"from elkimg_async import {name}")


def test_mistake_in_another_name() -> None:
    """Importing any other name fails as usual."""
    with pytest.raises(ImportError, match="cannot import name 'Timeouts' from 'elkimg_async'"):
        exec("from elkimg_async import Timeouts")
    assert not hasattr(elkimg_async, "ElkFooError")


async def test_mistake_in_a_row_of_map(server: LocalServer) -> None:
    """A misspelled field of a row is corrected like that of a single call."""
    async with AsyncImages() as client, client.map([{"promt": "a cat"}, {"sku": "7"}]) as run:
        texts = sorted([str(item.error) async for item in run])
    assert "no field 'promt'; did you mean 'prompt'? Its fields are prompt, model," in texts[0]
    assert "no field 'sku'; its fields are" in texts[1]
    assert texts[1].endswith("in map, data of your own into metadata.")


def test_map_spells_out_its_options() -> None:
    """`help()` and IPython list every option of `map`, those of single calls included."""
    parameters = inspect.signature(AsyncImages.map).parameters
    for call in (AsyncImages.generate, AsyncImages.edit):
        missing = inspect.signature(call).parameters.keys() - parameters.keys()
        assert missing <= {"prompt", "image"}
    assert all(each.kind is not each.VAR_KEYWORD for each in parameters.values())


def test_with_options_shares_the_client() -> None:
    """A view is a copy, although a client cannot be pickled."""
    client = AsyncImages("sk-0123456789")
    view = client.with_options(model="other")
    assert (view.model, client.model) == ("other", "gpt-image-1.5")
    asyncio.run(view.aclose())
    assert "closed" in repr(client)
