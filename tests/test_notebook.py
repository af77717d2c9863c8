"""What a real Jupyter kernel makes of images, answers and streams."""

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


class Recorder(NotebookClient):
    """Keeps what the kernel tells of each cell's output, in its order."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.told: dict[int, list[tuple[str, dict[str, Any]]]] = {}

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data", "execute_result", "error"):
            self.told.setdefault(cell_index, []).append((msg["msg_type"], msg["content"]))
        return super().process_message(msg, cell, cell_index)


class Executed:
    """A notebook that has run: what it holds, and what the kernel told on the way."""

    def __init__(self, notebook: Any, told: dict[int, list[tuple[str, dict[str, Any]]]]) -> None:
        self._notebook, self._told = notebook, told

    def outputs(self, name: str) -> list[Any]:
        found: list[Any] = self._notebook.cells[list(CELLS).index(name)].outputs
        return found

    def told(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        return self._told.get(list(CELLS).index(name), [])


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """All cells, run by one kernel against the local server."""
    return asyncio.run(execute(tmp_path_factory.mktemp("notebook")))


async def execute(folder: Path) -> Executed:
    made: Any = nbformat.v4
    cells = [made.new_code_cell(source) for source in CELLS.values()]
    notebook = made.new_notebook(cells=cells)
    async with LocalServer(light=True) as server:
        recorder = Recorder(notebook, timeout=50, allow_errors=True, kernel_name="python3")
        await recorder.async_execute(
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *sys.path]),
                "IPYTHONDIR": str(folder),
                "JUPYTER_RUNTIME_DIR": str(folder),
                "ELKAPI_API_KEY": server.api_key,
                "ELKAPI_BASE_URL": server.base_url,
            }
        )
    return Executed(notebook, recorder.told)


def decoded(data: dict[str, Any]) -> PIL.Image.Image:
    """The picture of an output."""
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    picture.load()
    return picture


def sources(text: str) -> list[str]:
    return re.findall(r'<img src="([^"]*)"', text)


def test_kernel_shows_an_image(executed: Executed) -> None:
    """An image as the value of a cell is shown as the picture that it is."""
    (output,) = executed.outputs("image")
    assert output.output_type == "execute_result"
    assert decoded(output.data).size == (1024, 1024)
    assert output.data["text/plain"].startswith("<Image image/png, ")


def test_kernel_shows_an_answer_as_a_grid(executed: Executed) -> None:
    """An answer of two images is shown as both, side by side, from their bytes alone."""
    (output,) = executed.outputs("grid")
    shown = sources(output.data["text/html"])
    assert len(shown) == 2
    for source in shown:
        start, _, data = source.partition(",")
        assert start == "data:image/png;base64"
        assert decoded({"image/png": data}).size == (1024, 1024)
    assert "grid" in output.data["text/html"]


def test_kernel_shows_a_stream_in_place(executed: Executed) -> None:
    """A stream takes one output, whose picture sharpens three times and is then the final one."""
    told = executed.told("stream")
    assert [kind for kind, _ in told] == ["display_data", *["update_display_data"] * 4]
    assert len({content["transient"]["display_id"] for _, content in told}) == 1
    assert told[0][1]["data"] == {"text/plain": "Waiting for the first picture …"}
    pictures = [decoded(content["data"]) for _, content in told[1:]]
    assert {picture.size for picture in pictures} == {(1024, 1024)}
    assert len({picture.tobytes() for picture in pictures}) == 4
    (output,) = executed.outputs("stream")
    assert decoded(output.data).tobytes() == pictures[-1].tobytes()
    assert executed.outputs("end")[0].data["text/plain"] == "(1, True)"


def test_kernel_shows_a_stream_of_two_images(executed: Executed) -> None:
    """Of several images the finished ones stay, and the next stands beside them."""
    display, value = executed.outputs("stream of two")
    assert len(sources(display.data["text/html"])) == 2
    assert value.data["text/plain"] == "2"
    assert "image/png" in executed.told("stream of two")[-3][1]["data"]


def test_kernel_shows_how_far_a_failing_stream_came(executed: Executed) -> None:
    """When a stream breaks off, the last picture stays and the error is raised in the cell."""
    told = executed.told("failing stream")
    assert [kind for kind, _ in told] == ["display_data", *["update_display_data"] * 2, "error"]
    assert told[-1][1]["ename"] == "StreamIncompleteError"
    output, error = executed.outputs("failing stream")
    assert decoded(output.data).size == (1024, 1024)
    assert error.output_type == "error"


# --- without a kernel -------------------------------------------------------


def bundle(images: Sequence[Image]) -> str:
    shown: str = ImagesResponse(images)._repr_mimebundle_()["text/html"]
    return shown


def test_grid_asks_nothing_of_a_server() -> None:
    """An image without bytes is told by its address, without what may be a signature, and never linked or fetched."""
    shown = bundle([Image(PNG), Image(url="https://host/a.png?signature=secret")])
    assert sources(shown) == [f"data:image/png;base64,{Image(PNG).b64_json}"]
    assert "https://host/a.png" in shown
    assert "secret" not in shown
    assert "href" not in shown


def test_grid_runs_nothing() -> None:
    """Neither an svg nor what a server says beside an image becomes part of the page."""
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


def test_grid_of_nothing() -> None:
    """No images are an empty grid."""
    assert sources(grid([])) == []


async def test_display_outside_of_a_notebook() -> None:
    """Where no notebook runs, `display` says so before anything is sent."""
    source = Source()
    stream = ImageStream(source)
    with pytest.raises(ConfigurationError, match=r"Jupyter or IPython.*stream\.result\(\)"):
        await stream.display()
    assert source.calls == []
    assert len(await stream.result()) == 1


def test_display_module_is_not_imported_for_nothing() -> None:
    """Neither the package nor a script that displays in vain imports IPython."""
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
