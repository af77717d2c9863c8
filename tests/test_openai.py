"""Comparison with the `openai` client: its parameters, and the same calls with both."""

import asyncio
import base64
import inspect
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import openai
import pytest
from openai.types import image_edit_params, image_generate_params

from elkimg_async import (
    APIError,
    AsyncImages,
    CompletedImage,
    ImagesResponse,
    PartialImage,
    errors,
)
from elkimg_async.local import LocalServer
from elkimg_async.sansio import values
from elkimg_async.sansio.requests import EditRequest, GenerateRequest
from elkimg_async.types import EditOptions, GenerateOptions
from tests.helpers.raw_server import API_KEY, DONE, PNG, RawServer, event, response, stream

B64 = base64.b64encode(PNG).decode()


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(light=True, delay=0) as server:
        yield server


@pytest.fixture
async def ours(server: LocalServer) -> AsyncIterator[AsyncImages]:
    async with AsyncImages(server.api_key, base_url=server.base_url, retry=0) as client:
        yield client


@pytest.fixture
async def theirs(server: LocalServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=server.api_key, base_url=server.base_url, max_retries=0
    ) as client:
        yield client


# --- parameters ---------------------------------------------------------------

PARAMS: dict[str, Any] = {
    "generate": image_generate_params.ImageGenerateParamsStreaming,
    "edit": image_edit_params.ImageEditParamsStreaming,
}
OURS: dict[str, tuple[Any, Any]] = {
    "generate": (GenerateRequest, GenerateOptions),
    "edit": (EditRequest, EditOptions),
}


def unknown(theirs: Any, ours: Any) -> list[str]:
    """Return the names that openai has and this package lacks."""
    return sorted(set(theirs) - set(ours))


@pytest.mark.parametrize("call", PARAMS)
def test_parameters_are_those_of_openai(call: str) -> None:
    """Every parameter of the installed openai is accepted, by the call and its request."""
    theirs = PARAMS[call].__annotations__
    signature = inspect.signature(getattr(AsyncImages, call)).parameters
    request, options = OURS[call]
    assert unknown(theirs, signature) == []
    assert unknown(theirs, {*request.__struct_fields__, "stream"}) == []
    assert unknown(theirs, {*options.__annotations__, "prompt", "image", "stream"}) == []
    method = inspect.signature(getattr(openai.AsyncOpenAI(api_key=API_KEY).images, call)).parameters
    assert unknown(method, signature) == []
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.values())
    known = {name for name in signature if name not in ("self", "prompt", "image", "stream")}
    assert known == set(options.__annotations__)


@pytest.mark.parametrize(
    ("call", "name"),
    [(call, name) for call, theirs in PARAMS.items() for name in theirs.__annotations__],
)
def test_parameters_that_are_missing_are_named(call: str, name: str) -> None:
    """If one parameter of one call, request or dictionary is removed, the comparison names it."""
    theirs = PARAMS[call].__annotations__
    request, options = OURS[call]
    for ours in (
        {*inspect.signature(getattr(AsyncImages, call)).parameters},
        {*request.__struct_fields__, "stream"},
        {*options.__annotations__, "prompt", "image", "stream"},
    ):
        assert unknown(theirs, ours - {name}) == [name]


def literals(annotation: Any) -> set[str]:
    """Return the strings in an annotation, at any depth."""
    if isinstance(annotation, str):
        return {annotation}
    found: set[str] = set()
    return found.union(*map(literals, get_args(annotation)))


@pytest.mark.parametrize("call", PARAMS)
def test_values_are_those_of_openai(call: str) -> None:
    """Editors complete every documented value of a parameter; any other text is allowed."""
    theirs = get_type_hints(PARAMS[call])
    ours = get_type_hints(getattr(AsyncImages, call))
    for name, hint in theirs.items():
        if name != "stream":
            assert unknown(literals(hint), literals(ours[name])) == [], name
        if literals(hint) and name != "stream":
            assert str in get_args(ours[name]), name
    svg = get_type_hints(image_generate_params.Svg)
    assert set(svg) == set(get_type_hints(values.Svg))
    assert literals(svg["reasoning"]) <= literals(values.SvgReasoning)
    efforts = literals(get_type_hints(image_generate_params.SvgReasoning)["effort"])
    assert efforts == literals(values.Effort)


# --- calls ----------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return the names and values of `usage` that both libraries have."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    names = ("total_tokens", "input_tokens", "output_tokens", "text_tokens", "image_tokens")
    details = ("input_tokens_details", "output_tokens_details")
    found = {name: plain(getattr(value, name, None)) for name in names + details}
    return {name: said for name, said in found.items() if said is not None}


SIDE_DATA = ("size", "quality", "background", "output_format")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3},
        {"model": "gpt-image-1", "size": "1024x1536", "quality": "low", "user": "u-1"},
        {"output_format": "jpeg", "output_compression": 40, "moderation": "low"},
        {"output_format": "webp", "background": "transparent"},
        {"model": "dall-e-3", "response_format": "b64_json", "style": "natural"},
        {"model": "dall-e-2", "size": "256x256", "n": 2, "response_format": "url"},
    ],
    ids=lambda options: "+".join(options) or "bare",
)
async def test_batch(
    server: LocalServer, ours: AsyncImages, theirs: openai.AsyncOpenAI, options: dict[str, Any]
) -> None:
    """A batch call sends the same fields, and returns the same images, URLs and usage."""
    options = {"model": "gpt-image-1.5", **options}
    mine = await ours.generate("a boat", **options)
    other = await theirs.images.generate(prompt="a boat", **options)
    assert server.requests[-2].fields == server.requests[-1].fields
    assert other.data is not None
    assert [image.b64_json for image in mine.data] == [image.b64_json for image in other.data]
    assert [image.url for image in mine.data] == [image.url for image in other.data]
    assert [image.revised_prompt for image in mine.data] == [
        image.revised_prompt for image in other.data
    ]
    assert plain(mine.usage) == plain(other.usage)
    assert mine.usage is not None
    for name in SIDE_DATA:
        assert getattr(mine, name) == getattr(other, name)
    assert mine.created is not None
    assert 0 <= other.created - mine.created <= 60


@pytest.mark.parametrize(
    "options",
    [
        {"partial_images": 0},
        {"partial_images": 3},
        {"partial_images": 1, "n": 2},
        {"partial_images": 2, "output_format": "webp", "size": "1536x1024"},
    ],
    ids=str,
)
async def test_stream(
    server: LocalServer, ours: AsyncImages, theirs: openai.AsyncOpenAI, options: dict[str, Any]
) -> None:
    """A stream sends the same fields, and returns the same events, images and usage."""
    options = {"model": "gpt-image-1.5", **options}
    mine = [each async for each in ours.generate("a boat", stream=True, **options)]
    opened = await theirs.images.generate(prompt="a boat", stream=True, **options)
    others = [each async for each in opened]
    assert server.requests[-2].fields == server.requests[-1].fields
    assert len(mine) == len(others) == options["partial_images"] + options.get("n", 1)
    for one, other in zip(mine, others, strict=True):
        assert one.type == other.type
        assert one.b64_json == other.b64_json
        for name in SIDE_DATA:
            assert getattr(one, name) == getattr(other, name)
        if isinstance(one, PartialImage):
            assert other.type == "image_generation.partial_image"
            assert one.partial_image_index == other.partial_image_index
        else:
            assert isinstance(one, CompletedImage)
            assert other.type == "image_generation.completed"
            assert one.usage is not None
            assert plain(one.usage) == plain(other.usage)


async def test_code_that_moves_over(ours: AsyncImages, theirs: openai.AsyncOpenAI) -> None:
    """The same lines of code run with either client."""

    async def use(generate: Callable[..., Any]) -> list[Any]:
        result = await generate(prompt="a boat", model="gpt-image-1", n=2, size="1024x1024")
        seen = [item.b64_json for item in result.data] + [result.usage.total_tokens]
        stream = await generate(prompt="a boat", model="gpt-image-1", stream=True, partial_images=1)
        async for each in stream:
            if each.type == "image_generation.partial_image":
                seen += [each.partial_image_index, each.b64_json]
            else:
                seen += [each.b64_json, each.usage.total_tokens]
        return seen

    assert await use(ours.generate) == await use(theirs.images.generate)


async def test_page_of_openai_code(server: LocalServer) -> None:
    """Code written for openai runs with nothing but its import and its client changed."""

    async def page(client: Any, timeout: Any) -> list[Any]:
        seen: list[Any] = []
        listed = await client.models.list()
        seen += [model.id for model in listed.data]
        seen += [model.id async for model in client.models.list(timeout=5)]
        quick = client.with_options(max_retries=1, timeout=timeout)
        image = await quick.images.generate(prompt="a boat", model="gpt-image-1.5", n=1)
        seen.append(image.data[0].b64_json)
        content = base64.b64decode(image.data[0].b64_json)
        edited = await client.images.edit(
            image=[("boat.png", content, "image/png"), ("same.png", content)],
            prompt="a hat",
            model="gpt-image-1.5",
            extra_headers={"X-Team": "birds"},
            extra_query={"trace": "1"},
            timeout=openai.Timeout(60, connect=5),
        )
        seen += [edited.data[0].b64_json, edited.usage.total_tokens]
        stream = await client.images.generate(
            prompt="a boat", model="gpt-image-1.5", stream=True, partial_images=1
        )
        seen += [event.b64_json async for event in stream]
        await client.close()
        return seen

    ours = AsyncImages(
        api_key=server.api_key,
        base_url=server.base_url,
        max_retries=0,
        timeout=openai.Timeout(600, connect=10),
        default_headers={"X-A": "b"},
        default_query={"v": "1"},
    )
    theirs = openai.AsyncOpenAI(
        api_key=server.api_key,
        base_url=server.base_url,
        max_retries=0,
        timeout=openai.Timeout(600, connect=10),
        default_headers={"X-A": "b"},
        default_query={"v": "1"},
    )
    timeout = openai.Timeout(50)
    assert await page(ours, timeout) == await page(theirs, timeout)


TOUR = (Path(__file__).parent / "helpers" / "openai_tour.py").read_text("utf-8")
CHANGES = {
    "import openai\nfrom openai import NOT_GIVEN, AsyncOpenAI, BadRequestError, omit\n": (
        "import elkimg_async\nfrom elkimg_async import AsyncImages, BadRequestError\n"
        "import openai\nfrom openai import NOT_GIVEN, omit\n"
    ),
    "client = AsyncOpenAI(": "client = AsyncImages(",
    "except openai.": "except elkimg_async.",
}


async def run_script(script: str, server: LocalServer) -> str:
    """Return what a script prints; it must end without an error or a Python warning."""
    names = {"API_KEY": server.api_key, "BASE_URL": server.base_url}
    env = {
        f"{prefix}_{name}": text for name, text in names.items() for prefix in ("OPENAI", "ELKAPI")
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-Werror", "-c", script),
        env={**os.environ, **env, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, log = await process.communicate()
    assert (process.returncode, "Exception" in log.decode()) == (0, False), log.decode()
    return output.decode()


async def test_tour_of_openai_runs_unchanged(server: LocalServer) -> None:
    """A page of openai code prints and sends the same after its imports and client are changed."""
    script = TOUR
    for old, new in CHANGES.items():
        assert old in script
        script = script.replace(old, new)
    assert len(set(script.splitlines()) - set(TOUR.splitlines())) == 6
    printed = []
    for page in (TOUR, script):
        server.inject(*["none"] * 7, "error=429", "error=400/content_policy_violation", "error=401")
        printed.append(await run_script(page, server))
    assert printed[0] == printed[1]
    sent = [
        (
            request.fields,
            {name: request.headers.get(name) for name in ("x-team", "x-user", "x-call")},
        )
        for request in server.requests
    ]
    assert len(sent) == 24
    assert sent[:12] == sent[12:]


OMITTED = [
    ("from elkimg_async import APIStatusError", "the error is called APIError."),
    ("from elkimg_async import APITimeoutError", "the error is called RequestTimeoutError."),
    ("from elkimg_async import OpenAIError", "the error is called ElkImagesError."),
    ("from elkimg_async import NOT_GIVEN", "pass None, or leave the argument out."),
    ("from elkimg_async import OpenAI", "the client is called AsyncImages"),
    ("client.models.retrieve('m')", "the models are in await client.models()."),
    ("client.with_options(api_key='k')", "create another AsyncImages for that."),
    ("client.with_options(time_out=1)", "did you mean 'timeout'?"),
    ("client.chat", "this client has the image calls only"),
    ("response_.model_dump_json()", "use json.dumps(result.to_dict())."),
    ("response_._request_id", "use result.meta.request_id."),
]


@pytest.mark.parametrize(("code", "advice"), OMITTED, ids=[code for code, _ in OMITTED])
def test_names_of_openai_that_differ(code: str, advice: str) -> None:
    """What openai has and this package lacks fails with the name to use instead."""
    names = {"client": AsyncImages(API_KEY), "response_": ImagesResponse([])}
    with pytest.raises((ImportError, AttributeError, TypeError), match=re.escape(advice)):
        exec(code, names)


ERRORS = [
    ({"model": "unknown-model"}, errors.NotFoundError, 503),
    ({"n": 11}, errors.BadRequestError, 500),
    ({"model": "gpt-image-1", "response_format": "url"}, errors.BadRequestError, 400),
]


@pytest.mark.parametrize(("options", "kind", "status"), ERRORS, ids=str)
async def test_error_status(
    server: LocalServer,
    theirs: openai.AsyncOpenAI,
    options: dict[str, Any],
    kind: type[APIError],
    status: int,
) -> None:
    """Both clients report the same status, code and parameter of an error."""
    async with AsyncImages(
        server.api_key, base_url=server.base_url, retry=0, validate="off"
    ) as ours:
        with pytest.raises(kind) as caught:
            await ours.generate("a boat", **options)
    with pytest.raises(openai.APIStatusError) as other:
        await theirs.images.generate(prompt="a boat", **options)
    assert caught.value.status == other.value.status_code == status
    assert caught.value.code == (other.value.code or None)
    assert caught.value.param == (other.value.param or None)
    assert caught.value.type == (other.value.type or None)


async def test_wrong_api_key(server: LocalServer) -> None:
    """Both clients raise an authentication error for a 401."""
    async with AsyncImages(API_KEY, base_url=server.base_url) as ours:
        with pytest.raises(errors.AuthenticationError):
            await ours.generate("a boat")
    async with openai.AsyncOpenAI(api_key=API_KEY, base_url=server.base_url) as theirs:
        with pytest.raises(openai.AuthenticationError):
            await theirs.images.generate(prompt="a boat")
    assert len(server.requests) == 2


@pytest.mark.parametrize("with_done", [False, True])
async def test_sample_stream(with_done: bool) -> None:
    """The contract's sample of a stream is parsed equally by both."""
    usage = {
        "total_tokens": 3,
        "input_tokens": 1,
        "output_tokens": 2,
        "input_tokens_details": {"text_tokens": 1, "image_tokens": 0},
    }
    frames = [
        b": PING\n\n",
        event(
            {
                "type": "image_generation.partial_image",
                "b64_json": B64,
                "partial_image_index": 0,
            },
            "image_generation.partial_image",
        ),
        event(
            {
                "type": "image_generation.completed",
                "created_at": 1710000000,
                "b64_json": B64,
                "usage": usage,
            },
            "image_generation.completed",
        ),
    ]
    if with_done:
        frames.append(DONE)
    async with (
        RawServer(stream(*frames)) as server,
        AsyncImages(API_KEY, base_url=server.base_url) as ours,
        openai.AsyncOpenAI(api_key=API_KEY, base_url=server.base_url) as theirs,
    ):
        mine = [each async for each in ours.generate("a boat", stream=True)]
        opened = await theirs.images.generate(prompt="a boat", stream=True)
        others = [each async for each in opened]
    assert [(each.type, each.b64_json, each.created_at) for each in mine][1:] == [
        (each.type, each.b64_json, each.created_at) for each in others
    ][1:]
    assert mine[0].b64_json == others[0].b64_json == B64
    assert isinstance(mine[1], CompletedImage)
    assert plain(mine[1].usage) == plain(getattr(others[1], "usage", None))


async def test_sample_json() -> None:
    """The service's example, with both fields in an item, is parsed equally by both."""
    body = {
        "created": 1710000000,
        "data": [{"b64_json": B64, "url": "https://host/a.png"}],
        "usage": {
            "total_tokens": 3,
            "input_tokens": 1,
            "output_tokens": 2,
            "input_tokens_details": {"text_tokens": 1, "image_tokens": 0},
        },
    }
    async with (
        RawServer(response(body)) as server,
        AsyncImages(API_KEY, base_url=server.base_url) as ours,
        openai.AsyncOpenAI(api_key=API_KEY, base_url=server.base_url) as theirs,
    ):
        mine = await ours.generate("a boat")
        other = await theirs.images.generate(prompt="a boat")
    assert other.data is not None
    assert mine.created == other.created
    assert (mine[0].b64_json, mine[0].url) == (other.data[0].b64_json, other.data[0].url)
    assert plain(mine.usage) == plain(other.usage)
