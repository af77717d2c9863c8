"""The pytest fixtures in a project of a user."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import elkimg_async

HERE = Path(__file__).parent
PROJECT = HERE / "plugin_project"
PACKAGE_PARENT = str(Path(elkimg_async.__file__).parent.parent)
PLUGIN = "elkimg_async.pytest_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a search path with the plugin's entry point, installed or simulated."""
    path = [PACKAGE_PARENT, *sys.path]
    known = importlib.metadata.entry_points(group="pytest11")
    if PLUGIN not in {point.value for point in known}:
        folder = tmp_path_factory.mktemp("site")
        about = folder / "elkimg_async-0.dist-info"
        about.mkdir()
        project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
        points = project["entry-points"]["pytest11"].items()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: elkimg-async\nVersion: 0\n")
        (about / "entry_points.txt").write_text(
            "[pytest11]\n" + "".join(f"{name} = {value}\n" for name, value in points)
        )
        path.append(str(folder))
    return os.pathsep.join(path)


def run(path: str, *arguments: str, cwd: Path = PROJECT, prelude: str = "pass") -> str:
    """Run pytest in its own process; return its output and exit code."""
    script = f"import sys; {prelude}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, "-q", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""},
        check=False,
    )
    return f"{done.stdout}{done.stderr}\nexit code {done.returncode}"


def test_project(installed: str) -> None:
    """pytest-asyncio (strict), anyio's plugin and plain tests work in one run."""
    output = run(installed, "--ignore=test_in_auto_mode.py")
    assert output.endswith("exit code 0"), output
    assert "13 passed" in output


def test_project_in_auto_mode(installed: str) -> None:
    """The auto mode of pytest-asyncio works, also with -p on the command line."""
    output = run(installed, "-p", PLUGIN, "-o", "asyncio_mode=auto", "test_in_auto_mode.py")
    assert output.endswith("exit code 0"), output
    assert "1 passed" in output


@pytest.mark.slow
def test_project_on_workers(installed: str) -> None:
    """Under pytest-xdist each worker has its own servers."""
    output = run(installed, "-n", "2", "test_by_itself.py")
    assert output.endswith("exit code 0"), output
    assert "4 passed" in output


def test_plugin_named_in_a_conftest(installed: str, tmp_path: Path) -> None:
    """The plugin may be named in `pytest_plugins` too, and registers its marker."""
    (tmp_path / "conftest.py").write_text(f'pytest_plugins = ["{PLUGIN}"]')
    output = run(installed, "--markers", "-p", "no:asyncio", cwd=tmp_path)
    assert output.endswith("exit code 0"), output
    assert "@pytest.mark.elkimg_faults(*faults): " in output


def test_example_of_the_readme(installed: str, tmp_path: Path) -> None:
    """The example of the README passes."""
    readme = (HERE.parent / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (example,) = [block for block in blocks if "elkimg_client" in block]
    (tmp_path / "test_thumbnail.py").write_text(example, "utf-8")
    loops = "asyncio_default_fixture_loop_scope=function"
    output = run(installed, "--strict-markers", "-Werror", "-o", loops, cwd=tmp_path)
    assert output.endswith("exit code 0"), output
    assert "1 passed" in output


FAULTY = """
import pytest

@pytest.mark.elkimg_faults("earthquake")
def test_faulty(elkimg_server):
    pass

def test_without_pillow(elkimg_server):
    pass

def test_harmless():
    pass
"""


def test_errors(installed: str, tmp_path: Path) -> None:
    """An unknown fault or a missing Pillow is a short error of the test that uses the server."""
    (tmp_path / "test_it.py").write_text(FAULTY)
    prelude = "sys.modules['PIL'] = None"
    output = run(installed, "-p", "no:asyncio", cwd=tmp_path, prelude=prelude)
    assert "1 passed, 2 errors" in output
    assert "Unknown fault 'earthquake'. Choose one of: " in output
    assert 'pip install "elkimg-async[pil]"' in output
    assert "Traceback" not in output
    assert "pytest_plugin.py" not in output


def test_import_is_cheap() -> None:
    """The plugin imports neither aiohttp, anyio nor asyncio at the start of pytest."""
    script = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport elkimg_async.pytest_plugin\n"
        "print({name.partition('.')[0] for name in set(sys.modules) - before})\n"
    )
    imported = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE_PARENT, *sys.path])},
    ).stdout
    assert "'elkimg_async'" in imported
    assert not [name for name in ("aiohttp", "anyio", "asyncio", "PIL") if f"'{name}'" in imported]
