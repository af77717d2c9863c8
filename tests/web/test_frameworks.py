"""Frameworks are optional."""

import subprocess
import sys
from pathlib import Path

import pytest

import elkimg_async
from elkimg_async import errors, web
from elkimg_async.local import LocalServer
from elkimg_async.web import frameworks
from tests.helpers.relays import client_of, generated

pytestmark = pytest.mark.usefixtures("quiet")


async def test_import_needs_no_framework() -> None:
    """Importing the module imports no web framework, and the package does not import it."""
    script = (
        "import sys, elkimg_async; assert 'elkimg_async.web' not in sys.modules\n"
        "from elkimg_async import web\n"
        "print(*({'starlette', 'fastapi', 'aiohttp'} & set(sys.modules)))"
    )
    root = str(Path(elkimg_async.__file__).parent.parent)
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join([root, *sys.path])},
    )
    assert found.stdout.strip() == ""


async def test_starlette_missing(monkeypatch: pytest.MonkeyPatch, upstream: LocalServer) -> None:
    """Without Starlette, the response says what to install."""
    frameworks._response_class.cache_clear()
    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    async with client_of(upstream) as client:
        stream = generated(client, "cat")
        with pytest.raises(errors.ConfigurationError, match="pip install starlette"):
            web.starlette_response(stream)
        await stream.aclose()
