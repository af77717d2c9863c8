"""The public API as Markdown, for coding tools: `python -m elkimg_async docs`.

Everything but the examples is taken from the source. No optional package is imported.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from elkimg_async import __all__ as surface
from elkimg_async import __version__

NAME = "elkimg_async"
NEIGHBOURS = ("hooks", "jobs", "local", "web", "otel", "ray", "pytest_plugin")
"""Further public modules, including those that need an extra."""

_OPENING = """\
# elkimg_async {version}

> {summary}

Import everything from `elkimg_async`, unless a heading below names another module. The API key
comes from the environment variable ELKAPI_API_KEY, the base URL from ELKAPI_BASE_URL, the default
model from ELKAPI_MODEL; all can be arguments instead. Requires Python 3.11 or newer. `pip install
elkimg-async`; the extras `cli` (the command `elkimg`), `pil` (Pillow), `otel`, `ray`, `redis` and
`fast` are optional.

## Examples

Batch, with error handling:

```python
import asyncio

from elkimg_async import AsyncImages, ElkImagesError


async def main() -> None:
    async with AsyncImages() as client:
        try:
            result = await client.generate("A small kitten", size="1024x1024", quality="low")
        except ElkImagesError as error:
            print(type(error).__name__, error.billing, error)
        else:
            print(await result[0].save("kitten.png"), result.usage)


asyncio.run(main())
```

Streaming, with partial images:

```python
import asyncio

from elkimg_async import AsyncImages, CompletedImage


async def main() -> None:
    async with AsyncImages() as client:
        async with client.generate("A small kitten", stream=True, partial_images=2) as stream:
            async for event in stream:
                final = isinstance(event, CompletedImage)
                name = "kitten" if final else f"kitten-{{event.partial_image_index}}"
                print(await event.image.save(name))


asyncio.run(main())
```

Without an API key, against the local server with an injected fault (extra `pil`):

```python
import asyncio

from elkimg_async import AsyncImages
from elkimg_async.local import LocalServer


async def main() -> None:
    async with LocalServer(faults=["rate-limit"]) as server:
        async with AsyncImages(server.api_key, base_url=server.base_url) as client:
            result = await client.generate("A small kitten")
            print(result[0], result.meta.attempts)


asyncio.run(main())
```
"""


def markdown() -> str:
    """Return the description of the public API."""
    opening = _OPENING.format(version=__version__, summary=_docstring(NAME))
    errors = f"## Errors\n\n```text\n{_docstring(f'{NAME}.errors')}\n```\n"
    parts = [opening, errors, f"## {NAME}\n", *_described(NAME, surface)]
    for module in (f"{NAME}.{name}" for name in NEIGHBOURS):
        if importlib.util.find_spec(module) is not None:
            parts += [f"## {module}\n", f"```text\n{_docstring(module)}\n```\n"]
            parts += _described(module, _public(module))
    return "\n".join(parts)


class _Found(NamedTuple):
    """A definition and its module."""

    module: str
    node: ast.stmt


def _described(module: str, names: list[str]) -> Iterator[str]:
    """Yield a block of code per name, with signatures and docstrings."""
    seen: set[str] = set()
    for name in names:
        for found in _with_bases(module, name):
            block = "\n".join(_outline(found))
            if block not in seen:
                seen.add(block)
                yield f"```pyi\n{block}\n```\n"


def _with_bases(module: str, name: str) -> Iterator[_Found]:
    """Yield the base classes of a definition in this package, then the definition itself."""
    found = _find(module, name)
    if found is None:
        return
    if isinstance(found.node, ast.ClassDef):
        for base in found.node.bases:
            if isinstance(base, ast.Name) and not base.id.startswith("Async"):
                yield from _with_bases(found.module, base.id)
    yield found


def _find(module: str, name: str) -> _Found | None:
    """Find the definition of a name, following imports in the package; None if it is not ours."""
    for node in _statements(_tree(module)):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                return _Found(module, node)
            case (
                ast.Assign(targets=[ast.Name(id=known)]) | ast.AnnAssign(target=ast.Name(id=known))
            ):
                if known == name:
                    return _Found(module, node)
            case ast.ImportFrom(module=str(source)) if source.startswith(f"{NAME}."):
                for alias in node.names:
                    if alias.name in (name, "*") and (found := _find(source, name)):
                        return found
            case _:
                pass
    return None


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module, with those that only type checkers see."""
    for node in tree.body:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from node.body
            case _:
                yield node


def _outline(found: _Found) -> Iterator[str]:
    """Yield the public lines of a definition: no bodies, nothing private."""
    lines = _source(found.module).splitlines()
    match found.node:
        case ast.ClassDef(body=body):
            yield from _head(found.node, lines)
            for node, after in zip(body, [*body[1:], None], strict=True):
                if _is_shown(node):
                    yield from _head(node, lines)
                    if isinstance(node, ast.AnnAssign) and after is not None and _is_text(after):
                        yield from _lines(after, lines)
        case node:
            yield from _head(node, lines)


def _head(node: ast.stmt, lines: list[str]) -> list[str]:
    """Return a definition with its docstring but without its body; other statements in full."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return _lines(node, lines)
    shown = [each for each in node.decorator_list if isinstance(each, ast.Name)]
    decorators = [
        lines[each.lineno - 1] for each in shown if each.id in ("property", "classmethod")
    ]
    body = node.body[0]
    if _is_text(body):
        return decorators + lines[node.lineno - 1 : body.end_lineno]
    if body.lineno == node.lineno:
        return decorators + lines[node.lineno - 1 : node.lineno]
    head = lines[node.lineno - 1 : body.lineno - 1]
    while head[-1].lstrip().startswith("#"):  # a comment belongs to the body
        head.pop()
    if isinstance(node, ast.ClassDef):
        return decorators + head
    return [*decorators, *head[:-1], f"{head[-1]} ..."]


def _lines(node: ast.stmt, lines: list[str]) -> list[str]:
    return lines[node.lineno - 1 : node.end_lineno]


def _is_shown(node: ast.stmt) -> bool:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            overloaded = any(ast.unparse(each) == "overload" for each in node.decorator_list)
            return name == "__init__" or not (name.startswith("_") or overloaded)
        case ast.AnnAssign(target=ast.Name(id=name)):
            return not name.startswith("_")
        case _:
            return False


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _public(module: str) -> list[str]:
    """Return the names in `__all__`, or else those of public classes and functions."""
    body = _tree(module).body
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                listed: list[str] = ast.literal_eval(value)
                return listed
            case _:
                pass
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in body if isinstance(node, definitions)]
    return [name for name in names if not name.startswith("_")]


def _docstring(module: str) -> str:
    return ast.get_docstring(_tree(module)) or ""


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module))


@functools.cache
def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    origin = spec.origin if spec is not None else None
    # Not every loader keeps the source in a file.
    return "" if origin is None else Path(origin).read_text("utf-8")
