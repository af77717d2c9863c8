"""What editors complete inside quotes, from pyright's language server."""

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import elkimg_async

SERVER = shutil.which("pyright-langserver", path=str(Path(sys.executable).parent))
PACKAGE = str(Path(elkimg_async.__file__).parent.parent)
CODE = """\
from elkimg_async import AsyncImages, EditRequest, GenerateRequest


async def use(client: AsyncImages) -> None:
    AsyncImages(model="|gpt-image-2")
    client.with_options(model="|gpt-image-1.5")
    await client.generate("k", size="|1536x1024")
    await client.generate("k", quality="|xhigh")
    await client.generate("k", output_format="|webp")
    await client.generate("k", model="|gpt-image-1.5")
    await client.images.generate(prompt="k", background="|transparent")
    await client.generate({"prompt": "k", "size": "|1024x1536"})
    client.generate("k", stream=True, quality="|high")
    await client.edit("a.png", "k", input_fidelity="|high")
    await client.edit({"image": "a.png", "prompt": "k", "quality": "|low"})
    GenerateRequest("k", output_format="|svg")
    EditRequest(image="a.png", prompt="k", size="|auto")
    client.map(["k"], quality="|medium")
    client.map([{"prompt": "k", "size": "|auto"}])
    await client.generate("k", size="17x17", quality="ultra", model="mine", output_format="avif")
    await client.generate({"prompt": "k", "size": "17x17", "seed": 7})
    client.map([{"prompt": "k", "n": "2", "quality": "ultra"}, {"sku": "7"}])
"""


class LanguageServer:
    """A language server, spoken to over its standard streams."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._count = 0
        self._problems: list[str] | None = None

    def send(self, method: str | None, **message: Any) -> None:
        """Send a request or a notification; without `method`, a response."""
        named = {} if method is None else {"method": method}
        body = json.dumps({"jsonrpc": "2.0", **named, **message}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    async def receive(self) -> dict[str, Any]:
        """Return the next message."""
        output = self._process.stdout
        assert output is not None
        head = await output.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        message: dict[str, Any] = json.loads(await output.readexactly(size))
        if message.get("method") == "textDocument/publishDiagnostics":
            self._problems = [each["message"] for each in message["params"]["diagnostics"]]
        return message

    async def request(self, method: str, **params: Any) -> Any:
        """Return the result of a request."""
        self._count += 1
        self.send(method, id=self._count, params=params)
        while True:
            message = await self.receive()
            if "method" not in message and message.get("id") == self._count:
                return message["result"]
            if "method" in message and "id" in message:
                items = message.get("params", {}).get("items", [])
                settings = {"extraPaths": [PACKAGE], "pythonPath": sys.executable}
                self.send(None, id=message["id"], result=[settings] * len(items))

    async def diagnostics(self) -> list[str]:
        """Return the problems that the server has found in the document."""
        while self._problems is None:
            await self.receive()
        return self._problems


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(SERVER is None, reason="needs pyright")
async def test_values_are_completed_and_others_allowed(tmp_path: Path) -> None:
    """Known values are completed in calls, requests and mappings; others are no errors."""
    assert SERVER is not None
    config = {"extraPaths": [PACKAGE], "pythonVersion": "3.11", "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    file = tmp_path / "page.py"
    file.write_text(CODE.replace("|", ""))
    process = await asyncio.create_subprocess_exec(
        *(SERVER, "--stdio"),
        stdin=-1,
        stdout=-1,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    server, document = LanguageServer(process), {"uri": file.as_uri()}
    try:
        capabilities = {"workspace": {"configuration": True}}
        await server.request(
            "initialize",
            processId=None,
            rootUri=tmp_path.as_uri(),
            capabilities=capabilities,
            workspaceFolders=[{"uri": tmp_path.as_uri(), "name": "page"}],
        )
        server.send("initialized", params={})
        text = file.read_text()
        opened = {**document, "languageId": "python", "version": 1, "text": text}
        server.send("textDocument/didOpen", params={"textDocument": opened})
        for number, line in enumerate(CODE.splitlines()):
            place = line.find("|")
            if place < 0:
                continue
            position = {"line": number, "character": place}
            found = await server.request(
                "textDocument/completion", textDocument=document, position=position
            )
            labels = {item["label"].strip('"') for item in found["items"]}
            assert line[place + 1 :].partition('"')[0] in labels, line
        assert await server.diagnostics() == []
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server is a child of the process
        await process.communicate()
