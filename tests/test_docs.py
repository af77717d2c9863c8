"""`python -m elkimg_async docs`: the public API as Markdown."""

import ast
import asyncio
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import elkimg_async
from elkimg_async import AsyncImages, errors
from elkimg_async.docs import NEIGHBOURS, markdown
from elkimg_async.local import LocalServer

PACKAGE_PARENT = str(Path(elkimg_async.__file__).parent.parent)
TEXT = markdown()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
STUBS = re.findall(r"^```pyi\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *sys.path]), **more}


@pytest.mark.parametrize("name", [name for name in elkimg_async.__all__ if name != "__version__"])
def test_docs_public_names(name: str) -> None:
    """Each public name has its definition in the text."""
    definition = rf"^(class {name}\b|(async )?def {name}\b|{name}\b.* = )"
    assert any(re.search(definition, stub, re.MULTILINE) for stub in STUBS)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_docs_public_modules(name: str) -> None:
    """Each further public module has a chapter with its public names."""
    try:
        module = importlib.import_module(f"elkimg_async.{name}")
    except ImportError:
        pytest.skip("missing, or without its extra")
    chapter = TEXT.partition(f"\n## elkimg_async.{name}\n")[2].partition("\n## ")[0]
    for listed in getattr(module, "__all__", ()):
        assert re.search(rf"\b{listed}\b", chapter), listed


def test_docs_signatures_and_docstrings() -> None:
    """The text has parameters, documented fields, methods and the tree of errors."""
    for method in (AsyncImages.__init__, AsyncImages.generate, AsyncImages.with_options):
        for parameter in inspect.signature(method).parameters.values():
            assert re.search(rf"\b{parameter.name}\b", TEXT)
    assert "partial_images: How many partial images a stream sends" in TEXT
    assert '    status: int | None = None\n    """The HTTP status; 200' in TEXT
    assert "returns_awaitable\n" not in TEXT
    assert "class AsyncOnly" not in TEXT
    assert "async def result(self) -> ImagesResponse:" in TEXT
    tree = TEXT.partition("## Errors")[2].partition("\n## ")[0]
    for name in errors.__all__:
        if inspect.isclass(getattr(errors, name)):
            assert re.search(rf"(─ |^){name}\b", tree, re.MULTILINE), name
    assert elkimg_async.__version__ in TEXT.partition("\n")[0]


def test_docs_nothing_private() -> None:
    """The text has no bodies, private names or imports, and is valid Python."""
    assert len(STUBS) > 40
    for stub in STUBS:
        for node in ast.walk(ast.parse(textwrap.dedent(stub))):
            assert not isinstance(node, ast.Return | ast.Import | ast.If | ast.Raise)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert not node.name.startswith("_") or node.name == "__init__"


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
async def test_docs_examples_run(example: str, tmp_path: Path) -> None:
    """Each example runs without warnings and prints something."""
    (tmp_path / "example.py").write_text(example, "utf-8")
    async with LocalServer(light=True) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-Werror",
            "example.py",
            cwd=tmp_path,
            env=environment(ELKAPI_API_KEY=server.api_key, ELKAPI_BASE_URL=server.base_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, problems = await process.communicate()
    assert (process.returncode, problems.decode()) == (0, "")
    assert output
    assert b"Error" not in output


def test_docs_without_extras() -> None:
    """The same text is printed in UTF-8 without any optional package."""
    script = (
        "import runpy, sys\n"
        "for name in ('cyclopts', 'rich', 'PIL', 'opentelemetry', 'pytest', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['elkimg_async', 'docs']\n"
        "runpy.run_module('elkimg_async', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        env=environment(PYTHONIOENCODING="ascii"),
    )
    assert done.stdout.decode() == TEXT
    assert done.stderr == b""
