# mypy: ignore-errors
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false
"""A page of openai code: it must run unchanged but for its imports and its client."""

import asyncio
import base64
import io

import httpx
import openai
from openai import NOT_GIVEN, AsyncOpenAI, BadRequestError, omit

client = AsyncOpenAI(
    max_retries=0,
    timeout=httpx.Timeout(600.0, connect=10.0),
    default_headers={"X-Team": "birds"},
    default_query={"trace": "1"},
)


async def list_models() -> None:
    models = await client.models.list()
    print([model.id for model in models.data])
    print([model.object async for model in client.models.list(timeout=openai.Timeout(20))])


async def generate() -> bytes:
    patient = client.with_options(
        timeout=httpx.Timeout(None), max_retries=1, default_headers={"X-User": "7"}
    )
    response = await patient.images.generate(
        prompt="a red fox",
        model="gpt-image-1.5",
        n=2,
        size="1536x1024",
        quality=NOT_GIVEN,
        user=omit,
        background="opaque",
        output_format="webp",
        output_compression=70,
        moderation="low",
        extra_headers={"X-Call": "1"},
        extra_query={"call": "1"},
        extra_body={"seed": 7},
        timeout=90,
    )
    print(len(response.data), response.size, response.quality, response.output_format)
    print(response.usage.input_tokens_details.text_tokens, response.usage.total_tokens)
    print(response.data[1].url, response.data[1].revised_prompt)
    print(len(response.model_dump()["data"][0]["b64_json"]), response.to_dict()["size"])
    return base64.b64decode(response.data[0].b64_json)


async def edit(image: bytes) -> None:
    for source in (
        ("fox.webp", image),
        ("fox.webp", image, "image/webp"),
        ("fox.webp", io.BytesIO(image), "image/webp"),
        [("fox.webp", image), ("twin.webp", image, "image/webp")],
    ):
        response = await client.images.edit(
            image=source, prompt="a hat", model="gpt-image-1.5", input_fidelity="high"
        )
        print(len(response.data[0].b64_json))


async def stream() -> None:
    events = await client.images.generate(
        prompt="a red fox", model="gpt-image-1.5", stream=True, partial_images=2
    )
    async for event in events:
        if event.type == "image_generation.partial_image":
            print(event.partial_image_index, event.size, len(event.b64_json))
        elif event.type == "image_generation.completed":
            print(event.usage.total_tokens, event.output_format, len(event.b64_json))
    async with await client.images.generate(
        prompt="a red fox", model="gpt-image-1.5", stream=True, partial_images=0
    ) as events:
        async for event in events:
            print(event.type, event.model_dump()["background"])
            await events.close()
            break


async def fail() -> None:
    try:
        await client.images.generate(prompt="rate limit", model="gpt-image-1.5")
    except openai.RateLimitError as error:
        print(error.status_code, error.code or None, error.type, bool(error.message))
    try:
        await client.images.generate(prompt="moderation", model="gpt-image-1.5")
    except BadRequestError as error:
        print(error.status_code, error.code or None, error.type, bool(str(error)))
    try:
        await client.images.generate(prompt="API key", model="gpt-image-1.5")
    except openai.AuthenticationError as error:
        print(error.status_code, error.code or None)


async def main() -> None:
    try:
        await list_models()
        await edit(await generate())
        await stream()
        await fail()
    finally:
        await client.close()


asyncio.run(main())
