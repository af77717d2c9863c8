"""The layers of the package, the purity of `sansio`, and limits on size and names."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import elkimg_async

PACKAGE = Path(elkimg_async.__file__).parent
NAME = PACKAGE.name
LAYERS = [
    {"filesystem", "media_types", "plain", "tasks"},
    {"errors"},
    {"hooks"},
    {"error_records", "files", "hints", "logs", "preview"},
    {"image"},
    {"notebook"},
    {"sansio"},
    {"ratelimit"},
    {"credentials"},
    {"config"},
    {"types"},
    {"settings"},
    {"transport"},
    {"attempt"},
    {"call", "stream"},
    {"batch", "resources"},
    {"image_calls"},
    {"client"},
    {"jobs"},
    {"ray", "otel", "prices", "web", "pytest_plugin"},
    {"studio"},
    {"cli", "docs"},
    {"__main__"},
    {"__init__"},
]
"""From the bottom to the top: a part imports from the layers below its own only."""
ONLY = {
    "plain": set(),
    "errors": {"plain"},
    "hooks": set(),
    "error_records": {"errors"},
    "files": {"filesystem"},
    "filesystem": set(),
    "hints": set(),
    "media_types": set(),
    "tasks": set(),
    "preview": {"files", "media_types"},
    "image": {"errors", "files", "hints", "logs", "media_types", "plain", "preview"},
    "notebook": {"errors", "image"},
    "stream": {"errors", "hints", "image", "logs", "notebook", "sansio"},
    "local": {"errors", "config", "credentials", "media_types", "sansio"},
}
"""Parts that import less than their layer would let them."""
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
RANK |= {"local": RANK["client"]}

USES_THE_SURFACE = {"cli", "docs", "__main__", "pytest_plugin"}
"""Parts that may use the package as its users do."""

IMPURE = {"aiohttp", "anyio", "asyncio", "io", "os", "pathlib", "random", "secrets", "select"}
IMPURE |= {
    "shutil",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
ASYNC = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
MAX_MODULE = 450
"""Lines of a module."""
MAX_BODY = 50
"""Lines of a function, without its signature and its docstring."""
CALLS = {"open", "input", "print", "__import__", "exec", "eval", "breakpoint"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


class AtRunTime(ast.NodeTransformer):
    """Transformer that removes code for type checkers only."""

    def visit_If(self, node: ast.If) -> ast.If:
        if "TYPE_CHECKING" in ast.dump(node.test):
            node.body = [ast.Pass()]
        return node


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a module imports, those within functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(tree: ast.AST) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for name in imports(tree):
        if name.partition(".")[0] == NAME:
            while name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def part_of(module: str) -> str:
    """Return the layer member that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def misplaced(module: str, tree: ast.AST) -> list[str]:
    """Return the imports of a module that are not from the layers below it."""
    part = part_of(module)
    wrong = []
    for other in map(part_of, ours(tree) - ({NAME} if part in USES_THE_SURFACE else set())):
        below = RANK[other] < RANK[part] if part not in ONLY else other in ONLY[part]
        if other != part and not below:
            wrong.append(other)
    return wrong


def impurities(tree: ast.AST) -> list[str]:
    """Return what waits, or reads a clock, randomness, the environment or a file."""
    wrong = [
        name
        for name in imports(tree)
        if name.partition(".")[0] in IMPURE and name != "io.BytesIO"  # no more than memory
    ]
    for node in ast.walk(tree):
        if isinstance(node, ASYNC):
            wrong.append(type(node).__name__)
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS
        ):
            wrong.append(node.func.id)
        elif isinstance(node, ast.comprehension) and node.is_async:
            wrong.append("async for")
    return wrong


SANSIO = [name for name in MODULES if part_of(name) == "sansio"]


def test_structure_is_on_the_map() -> None:
    """Each module belongs to a known part, and the basic parts exist."""
    parts = {part_of(module) for module in MODULES}
    assert parts <= RANK.keys()
    assert parts >= {
        "errors",
        "image",
        "hooks",
        "sansio",
        "config",
        "transport",
        "stream",
        "client",
    }
    assert {name.rpartition(".")[2] for name in SANSIO} >= {
        "requests",
        "models",
        "responses",
        "encode",
        "json_images",
        "sse",
        "retry",
    }


@pytest.mark.parametrize("module", MODULES)
def test_structure_direction(module: str) -> None:
    """Imports, also in functions and for type checkers, are from lower layers only."""
    assert misplaced(module, MODULES[module]) == []


def test_structure_has_no_cycles() -> None:
    """No module imports itself through others."""
    left = {
        module: ours(tree) - {module, NAME} for module, tree in MODULES.items() if module != NAME
    }
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert left == {}


@pytest.mark.parametrize("module", [name for name in MODULES if name != NAME])
def test_structure_surface_is_not_imported(module: str) -> None:
    """Only parts that use the package like its users import its public names."""
    assert NAME not in ours(MODULES[module]) or part_of(module) in USES_THE_SURFACE


@pytest.mark.parametrize("module", SANSIO)
def test_structure_sansio_is_pure(module: str) -> None:
    """`sansio` neither waits nor reads a clock, randomness, files or the environment."""
    assert impurities(MODULES[module]) == []


@pytest.mark.parametrize("module", MODULES)
def test_structure_transport_alone_touches_the_http_client(module: str) -> None:
    """Only the transport and the servers import aiohttp."""
    allowed = {"transport", "local", "web", "studio", "pytest_plugin"}
    tree = AtRunTime().visit(ast.parse(ast.unparse(MODULES[module])))
    used = {name.partition(".")[0] for name in imports(tree)}
    assert "aiohttp" not in used or part_of(module) in allowed


@pytest.mark.parametrize("module", MODULES)
def test_structure_config_alone_read_the_environment(module: str) -> None:
    """Only config, credentials and the command read the environment."""
    reads = {
        node.attr
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "getproxies", "getproxies_environment")
    }
    assert not reads or part_of(module) in ("config", "credentials", "cli")


def bodies(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each function of a module and the lines of its body, without the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("module", MODULES)
def test_structure_module_is_short(module: str) -> None:
    """A module has at most 450 lines, and a function fewer than 50."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert len(Path(spec.origin).read_text(encoding="utf-8").splitlines()) <= MAX_MODULE
    assert [name for name, lines in bodies(MODULES[module]) if lines >= MAX_BODY] == []


def test_structure_class_names_are_unique() -> None:
    """A class name means one thing across the package."""
    places: dict[str, list[str]] = {}
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


# The checks themselves


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("errors", "from elkimg_async import image", ["image"]),
        ("errors", "from elkimg_async.image import Image", ["image"]),
        ("image", "from elkimg_async.errors import APIError", []),
        ("image", "import elkimg_async.hooks", ["hooks"]),
        ("hooks", "from elkimg_async.errors import APIError", ["errors"]),
        ("sansio.sse", "from elkimg_async.config import Timeout", ["config"]),
        ("sansio.sse", "from elkimg_async.sansio import json_images", []),
        ("sansio.sse", "def f():\n    from elkimg_async import client", ["client"]),
        ("config", "from elkimg_async.sansio.encode import generate", []),
        ("config", "from elkimg_async.transport.deadline import Deadline", ["transport"]),
        ("transport", "from elkimg_async import call", ["call"]),
        ("stream", "from elkimg_async.config import Timeout", ["config"]),
        (
            "stream",
            "if TYPE_CHECKING:\n    from elkimg_async.transport.exchange import X",
            ["transport"],
        ),
        ("local.server", "from elkimg_async.client import AsyncImages", ["client"]),
        ("local.server", "from elkimg_async.config import Timeout", []),
        ("local.server", "from elkimg_async import AsyncImages", ["__init__"]),
        ("client", "from elkimg_async.local import LocalServer", ["local"]),
        ("client", "from elkimg_async import Image", ["__init__"]),
        ("cli", "from elkimg_async import __version__", []),
        ("cli", "from elkimg_async.local import LocalServer", []),
    ],
)
def test_structure_check_of_direction(module: str, source: str, wrong: list[str]) -> None:
    """The check detects an import against the direction in any form."""
    assert misplaced(f"{NAME}.{module}", ast.parse(source)) == wrong


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import random", ["random"]),
        ("from io import BytesIO", []),
        ("from io import FileIO", ["io.FileIO"]),
        ("import os.path", ["os.path"]),
        ("from time import monotonic", ["time.monotonic"]),
        ("def f():\n    import socket", ["socket"]),
        ("async def f(): pass", ["AsyncFunctionDef"]),
        ("def f(x):\n    return open(x)", ["open"]),
        ("import email.utils, re, json", []),
    ],
)
def test_structure_check_of_purity(source: str, wrong: list[str]) -> None:
    """The check detects what is not pure."""
    assert impurities(ast.parse(source)) == wrong
