"""What importing the package loads: the cause of its import time."""

import os
import subprocess
import sys

import pytest

THIRD_PARTY = {"anyio", "msgspec", "pybase64", "sniffio"}
UNUSED = ("cli", "docs", "jobs", "local", "otel", "ray", "studio", "web")
"""Parts of the package that a client does not need."""


def modules_of(statement: str, before: str = "") -> set[str]:
    """Return the modules that a statement loads, in a new process after another statement."""
    script = (
        f"import sys\n{before}\nold = {{*sys.modules}}\n{statement}\nprint(*{{*sys.modules}} - old)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return set(done.stdout.split())


def test_import_of_the_package_is_small() -> None:
    """The package alone loads its errors, and neither aiohttp, asyncio nor any dependency."""
    loaded = modules_of("import elkimg_async", before="import typing, contextlib, re, warnings")
    ours = {name for name in loaded if name.startswith("elkimg_async")}
    assert ours == {"elkimg_async", "elkimg_async.errors", "elkimg_async.plain"}
    roots = {name.partition(".")[0] for name in loaded - ours}
    assert not roots & (THIRD_PARTY | {"aiohttp", "asyncio", "ssl", "json", "yarl"})


def test_import_of_the_client_adds_little_to_aiohttp() -> None:
    """Beyond aiohttp, the client loads its dependencies, and no optional or unused package."""
    loaded = modules_of("from elkimg_async import AsyncImages", before="import aiohttp")
    others = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert others <= THIRD_PARTY | {"elkimg_async"}
    parts = {name.split(".")[1] for name in loaded if name.startswith("elkimg_async.")}
    assert not parts & set(UNUSED)
    assert len(loaded) < 130


@pytest.mark.parametrize("name", ["APIError", "AsyncImages", "ImageStream", "Limits"])
def test_import_of_a_name(name: str) -> None:
    """Each public name can be the first that a program imports."""
    assert "elkimg_async" in modules_of(f"from elkimg_async import {name}")
