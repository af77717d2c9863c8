# mypy: ignore-errors
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false
"""Code written for openai's client, to which the README's diff is applied."""

import asyncio
import base64
from pathlib import Path

from openai import AsyncOpenAI


def write(name: str, b64_json: str) -> None:
    Path(name).write_bytes(base64.b64decode(b64_json))


async def main() -> None:
    async with AsyncOpenAI() as client:
        result = await client.images.generate(prompt="A small kitten", model="gpt-image-1.5")
        print(result.created, result.usage.total_tokens)
        write("kitten.png", result.data[0].b64_json)

        async for event in await client.images.generate(
            prompt="A big cat", model="gpt-image-1.5", stream=True, partial_images=2
        ):
            if event.type == "image_generation.partial_image":
                write(f"cat-{event.partial_image_index}.png", event.b64_json)
            elif event.type == "image_generation.completed":
                write("cat.png", event.b64_json)


asyncio.run(main())
