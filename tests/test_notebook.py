"""Images, responses and streams in a real Jupyter kernel."""

import asyncio
import base64
import html
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import PIL.Image
import pytest
from nbclient import NotebookClient

import elkimg_async
from elkimg_async import ConfigurationError, Image, ImagesResponse
from elkimg_async.local import LocalServer
from elkimg_async.media_types import media_type_of
from elkimg_async.notebook import grid
from elkimg_async.stream import ImageStream
from tests.helpers.raw_server import PNG
from tests.test_stream import Source

PACKAGE_PARENT = str(Path(elkimg_async.__file__).parent.parent)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>'

CELLS = {
    "setup": "from elkimg_async import AsyncImages\nclient = AsyncImages()",
    "image": "(await client.generate('a boat'))[0]",
    "grid": "await client.generate('a boat', n=2)",
    "stream": "result = await client.generate('a boat', stream=True, partial_images=3).display()",
    "stream of two": "two = await client.generate('a boat', stream=True, n=2).display()\nlen(two)",
    "failing stream": (
        "await client.generate('a boat', stream=True, partial_images=2,"
        " extra_headers={'X-Elkimg-Fault': 'no-completed'}).display()"
    ),
    "end": "await client.aclose()\nlen(result), result.usage is not None",
}


Messages = dict[int, list[tuple[str, dict[str, Any]]]]


class Recorder(NotebookClient):
    """Keeps the messages about the output of each cell, in order."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.messages: Messages = {}

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data", "execute_result", "error"):
            self.messages.setdefault(cell_index, []).append((msg["msg_type"], msg["content"]))
        return super().process_message(msg, cell, cell_index)


class Executed:
    """An executed notebook: its outputs, and the messages of the kernel."""

    def __init__(self, notebook: Any, messages: Messages) -> None:
        self._notebook, self._messages = notebook, messages

    def outputs(self, name: str) -> list[Any]:
        found: list[Any] = self._notebook.cells[list(CELLS).index(name)].outputs
        return found

    def messages(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        return self._messages.get(list(CELLS).index(name), [])


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """All cells, run by one kernel against the local server."""
    return asyncio.run(execute(tmp_path_factory.mktemp("notebook")))


async def execute(folder: Path) -> Executed:
    new: Any = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(source) for source in CELLS.values()])
    async with LocalServer(light=True) as server:
        return Executed(notebook, await run(notebook, server, folder))


async def run(notebook: Any, server: LocalServer, folder: Path) -> Messages:
    """Run a notebook in a folder; return the messages of its kernel."""
    recorder = Recorder(
        notebook,
        timeout=50,
        allow_errors=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    await recorder.async_execute(
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *sys.path]),
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "ELKAPI_API_KEY": server.api_key,
            "ELKAPI_BASE_URL": server.base_url,
        }
    )
    return recorder.messages


def decoded(data: dict[str, Any]) -> PIL.Image.Image:
    """Decode the image of an output."""
    image = PIL.Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    image.load()
    return image


def sources(text: str) -> list[str]:
    return re.findall(r'<img src="([^"]*)"', text)


def test_kernel_image(executed: Executed) -> None:
    """An image as the value of a cell is shown, with the prompt as alternative text."""
    (output,) = executed.outputs("image")
    assert output.output_type == "execute_result"
    assert decoded(output.data).size == (1024, 1024)
    assert output.data["text/plain"].startswith("<Image image/png, ")
    assert 'alt="a boat"' in output.data["text/html"]


def test_kernel_response(executed: Executed) -> None:
    """A response of two images is a grid that embeds both."""
    (output,) = executed.outputs("grid")
    shown = sources(output.data["text/html"])
    assert len(shown) == 2
    for source in shown:
        start, _, data = source.partition(",")
        assert start == "data:image/png;base64"
        assert decoded({"image/png": data}).size == (1024, 1024)
    assert "grid" in output.data["text/html"]


def test_kernel_stream(executed: Executed) -> None:
    """A stream has one output, with three partial images and then the final one."""
    messages = executed.messages("stream")
    assert [kind for kind, _ in messages] == ["display_data", *["update_display_data"] * 4]
    assert len({content["transient"]["display_id"] for _, content in messages}) == 1
    assert messages[0][1]["data"] == {"text/plain": "Waiting for the first image …"}
    images = [decoded(content["data"]) for _, content in messages[1:]]
    assert {image.size for image in images} == {(1024, 1024)}
    assert len({image.tobytes() for image in images}) == 4
    (output,) = executed.outputs("stream")
    assert decoded(output.data).tobytes() == images[-1].tobytes()
    assert executed.outputs("end")[0].data["text/plain"] == "(1, True)"


def test_kernel_stream_of_two_images(executed: Executed) -> None:
    """Finished images of a stream stay, and the next one appears next to them."""
    display, value = executed.outputs("stream of two")
    assert len(sources(display.data["text/html"])) == 2
    assert value.data["text/plain"] == "2"
    assert "image/png" in executed.messages("stream of two")[-3][1]["data"]


def test_kernel_failing_stream(executed: Executed) -> None:
    """When a stream fails, its last image stays and the cell raises the error."""
    messages = executed.messages("failing stream")
    assert [kind for kind, _ in messages] == ["display_data", *["update_display_data"] * 2, "error"]
    assert messages[-1][1]["ename"] == "StreamIncompleteError"
    output, error = executed.outputs("failing stream")
    assert decoded(output.data).size == (1024, 1024)
    assert error.output_type == "error"


async def test_kernel_previews(tmp_path: Path) -> None:
    """A notebook of seven large images is small, and links to the originals beside it."""
    cells = [
        CELLS["setup"],
        "result = await client.generate('a boat', n=3)\nresult",
        "streamed = await client.generate('a sea', stream=True, partial_images=2, n=3).display()",
        "(await client.generate('a hill'))[0]",
        "await client.aclose()",
    ]
    new: Any = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(source) for source in cells])
    async with LocalServer(delay=0) as server:
        await run(notebook, server, tmp_path)
    path = tmp_path / "notebook.ipynb"
    writes: Any = nbformat.writes
    path.write_text(writes(notebook), "utf-8")
    assert path.stat().st_size < 2_000_000
    text = "".join(
        output.data.get("text/html", "") for cell in notebook.cells for output in cell.outputs
    )
    links = re.findall(r'<a href="(elkimg-originals/[0-9a-f]{16}\.png)"', text)
    assert len(set(links)) == 7
    assert all(media_type_of((tmp_path / link).read_bytes()) == "image/png" for link in links)
    assert sum((tmp_path / link).stat().st_size for link in links) > 7_000_000
    assert len(list((tmp_path / "elkimg-originals").iterdir())) == 7
    assert len(re.findall('alt="a (?:boat|sea|hill)"', text)) == 7
    for source in sources(text):
        with PIL.Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert max(image.size) == 512


# --- without a kernel -------------------------------------------------------


def bundle(images: Sequence[Image]) -> str:
    shown: str = ImagesResponse(images)._repr_mimebundle_()["text/html"]
    return shown


def test_grid_loads_nothing() -> None:
    """An image without bytes is shown as its URL without the query, never linked or fetched."""
    shown = bundle([Image(PNG), Image(url="https://host/a.png?signature=secret")])
    assert sources(shown) == [f"data:image/png;base64,{Image(PNG).b64_json}"]
    assert "https://host/a.png" in shown
    assert "secret" not in shown
    assert "href" not in shown


def test_grid_runs_no_scripts() -> None:
    """Neither an SVG nor text of the server becomes markup of the page."""
    shown = bundle(
        [
            Image(SVG),
            Image(PNG, revised_prompt='"><script>alert(3)</script>'),
            Image(url="<script>alert(4)</script>"),
            Image(b"<script>alert(5)</script>"),
        ]
    )
    assert "script" not in re.sub(r"&lt;/?script&gt;", "", shown)
    assert "onload" not in shown
    assert sources(shown)[0].startswith("data:image/svg+xml;base64,")
    assert html.escape('"><script>alert(3)</script>') in shown


def test_grid_empty() -> None:
    """Without images the grid is empty."""
    assert sources(grid([])) == []


async def test_display_without_notebook() -> None:
    """Without a notebook, `display` fails before anything is sent."""
    source = Source()
    stream = ImageStream(source)
    with pytest.raises(ConfigurationError, match=r"Jupyter or IPython.*stream\.result\(\)"):
        await stream.display()
    assert source.calls == ["abort"]


def test_display_imports() -> None:
    """Neither the package nor a failing `display` imports IPython."""
    script = (
        "import sys, asyncio, elkimg_async\n"
        "assert 'elkimg_async.notebook' not in sys.modules\n"
        "async def main():\n"
        "    async with elkimg_async.AsyncImages('k', base_url='http://127.0.0.1:9') as client:\n"
        "        try:\n"
        "            await client.generate('a boat', stream=True).display()\n"
        "        except elkimg_async.ConfigurationError:\n"
        "            print('IPython' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *sys.path])},
    )
    assert done.stdout == "False\n"
