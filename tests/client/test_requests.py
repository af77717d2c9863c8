"""What a call sends."""

from typing import Any

import pytest

from elkimg_async import (
    AsyncImages,
    CompletedImage,
    GenerateRequest,
    InvalidRequestError,
    PartialImage,
)
from elkimg_async.local import LocalServer
from tests.helpers.calls import (
    failure,
    in_both_modes,
    run_call,
)
from tests.helpers.raw_server import (
    API_KEY,
    RawServer,
)


async def test_batch_default_fields(client: AsyncImages, server: LocalServer) -> None:
    """A batch call without options sends only the prompt and the model."""
    await client.generate("a boat")
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/images/generations")
    assert request.fields == {"prompt": "a boat", "model": "gpt-image-1.5"}
    assert request.headers["accept"] == "application/json"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"x-api-key", "x-goog-api-key", "cookie"} & request.headers.keys()


async def test_stream_default_fields(client: AsyncImages, server: LocalServer) -> None:
    """A stream without options also sends the flag, and requests one partial image."""
    await run_call(client, streaming=True)
    (request,) = server.requests
    assert request.fields == {
        "prompt": "a boat",
        "model": "gpt-image-1.5",
        "stream": True,
        "partial_images": 1,
    }
    assert request.headers["accept"] == "application/json, text/event-stream"


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_partial_images(client: AsyncImages, server: LocalServer, count: int) -> None:
    """The number of partial images is sent as set, 0 included."""
    events, _ = await run_call(client, streaming=True, partial_images=count)
    assert server.requests[-1].fields["partial_images"] == count
    assert [type(each) for each in events] == [PartialImage] * count + [CompletedImage]


@in_both_modes
@pytest.mark.parametrize(
    "options",
    [
        {"model": "gpt-image-1"},
        {"n": 2},
        {"size": "1536x1024"},
        {"quality": "low"},
        {"background": "transparent"},
        {"moderation": "low"},
        {"user": "u-1"},
        {"output_format": "webp"},
        {"output_format": "jpeg", "output_compression": 0},
        {
            "model": "gpt-image-1-mini",
            "n": 1,
            "size": "1024x1536",
            "quality": "high",
            "background": "opaque",
            "moderation": "auto",
            "user": "u-2",
            "output_format": "jpeg",
            "output_compression": 50,
        },
    ],
    ids=lambda options: "+".join(options),
)
async def test_option_is_sent(
    client: AsyncImages, server: LocalServer, options: dict[str, Any], streaming: bool
) -> None:
    """In both modes each option arrives unchanged, and no other field."""
    _, result = await run_call(client, streaming, **options)
    expected = {"prompt": "a boat", "model": "gpt-image-1.5", **options}
    if streaming:
        expected |= {"stream": True, "partial_images": 1}
    assert server.requests[-1].fields == expected
    for name, value in options.items():
        assert type(server.requests[-1].fields[name]) is type(value)
    assert len(result) == options.get("n", 1)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "dall-e-3", "style": "natural", "quality": "hd", "response_format": "b64_json"},
        {"model": "dall-e-2", "size": "256x256", "response_format": "url"},
    ],
    ids=["dall-e-3", "dall-e-2"],
)
async def test_dall_e_option_is_sent(
    client: AsyncImages, server: LocalServer, options: dict[str, Any]
) -> None:
    """The options of the dall-e models arrive unchanged."""
    (image,) = await client.generate("a boat", **options)
    assert server.requests[-1].fields == {"prompt": "a boat", **options}
    assert (image.url is None) == (options["response_format"] == "b64_json")


async def test_unknown_model_streams_without_partial_images(
    raw_client: AsyncImages, raw_server: RawServer
) -> None:
    """`partial_images` is only sent by default to GPT image models."""
    await run_call(raw_client, streaming=True, model="seedream-5")
    assert raw_server.requests[-1].fields == {
        "prompt": "a boat",
        "model": "seedream-5",
        "stream": True,
    }


@in_both_modes
@pytest.mark.parametrize(
    "prompt",
    [
        GenerateRequest(prompt="a boat", n=2, quality="low"),
        {"prompt": "a boat", "n": 2, "quality": "low"},
    ],
    ids=["struct", "mapping"],
)
async def test_prompt_as_a_request(
    client: AsyncImages, server: LocalServer, prompt: Any, streaming: bool
) -> None:
    """A ready request or a mapping is sent as it is, and arguments override its fields."""
    await run_call(client, streaming, prompt=prompt, n=1, size="1024x1024")
    fields = server.requests[-1].fields
    assert {name: fields[name] for name in ("prompt", "n", "quality", "size")} == {
        "prompt": "a boat",
        "n": 1,
        "quality": "low",
        "size": "1024x1024",
    }


async def test_extra_body(raw_client: AsyncImages, raw_server: RawServer) -> None:
    """`extra_body` adds unknown fields and overrides known ones."""
    await raw_client.generate(
        "a boat", n=1, extra_body={"seed": 7, "n": 3, "deep": {"a": [None, 1.5]}}
    )
    assert raw_server.requests[-1].fields == {
        "prompt": "a boat",
        "model": "gpt-image-1.5",
        "n": 3,
        "seed": 7,
        "deep": {"a": [None, 1.5]},
    }


async def test_headers(raw_server: RawServer) -> None:
    """Headers of the client, a view and a call are all sent; the most specific wins."""
    headers = {"X-A": "client", "X-B": "client", "X-C": "client"}
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, headers=headers) as client:
        view = client.with_options(headers={"X-B": "view", "X-C": "view"})
        await view.generate("a boat", extra_headers={"x-c": "call", "accept": "image/*"})
        sent = raw_server.requests[-1].headers
        assert (sent["x-a"], sent["x-b"], sent["x-c"]) == ("client", "view", "call")
        assert sent["accept"] == "image/*"
        await client.generate("a boat")
        sent = raw_server.requests[-1].headers
        assert (sent["x-b"], sent["x-c"], sent["accept"]) == (
            "client",
            "client",
            "application/json",
        )


async def test_header_of_a_view_in_another_case(raw_server: RawServer) -> None:
    """A view's header replaces the client's even when its name is written in another case."""
    async with AsyncImages(
        API_KEY, base_url=raw_server.base_url, headers={"X-Team": "one"}
    ) as client:
        await client.with_options(headers={"x-team": "two"}).generate("a boat")
    assert raw_server.requests[-1].headers["x-team"] == "two"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer abc"},
        {"X-A": "b\r\nX-C: d"},
        {"X A": "b"},
        {"": "b"},
        {"X-A": 5},
        {5: "b"},
        ["X-A"],
    ],
)
async def test_extra_headers_invalid(
    raw_client: AsyncImages, raw_server: RawServer, headers: Any
) -> None:
    """Headers that cannot be sent, and the API key's, are rejected before anything is sent."""
    error = await failure(InvalidRequestError, raw_client, extra_headers=headers)
    assert error.param == "extra_headers"
    assert raw_server.accepted == 0


async def test_large_body(raw_client: AsyncImages, raw_server: RawServer) -> None:
    """A request of several megabytes is sent without a warning."""
    content = "x" * 3_000_000
    await raw_client.generate("a boat", extra_body={"image": content})
    assert raw_server.requests[-1].fields["image"] == content


async def test_unicode(raw_client: AsyncImages, raw_server: RawServer) -> None:
    """A prompt of any characters arrives unchanged."""
    prompt = 'кот 猫 🐈‍⬛ "quoted" \\ \n\t\x00 \u2028'
    await raw_client.generate(prompt)
    assert raw_server.requests[-1].fields["prompt"] == prompt
