"""The fixtures for users' tests, seen from a project of a user's."""

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
    """A search path on which the plugin has its entry point: the installed one, or one as it would be."""
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
    """What pytest says in a process of its own, its exit code at the end."""
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


def test_project_of_a_user(installed: str) -> None:
    """Found by its entry point, it serves pytest-asyncio (strict), anyio's plugin and plain tests in one run."""
    said = run(installed, "--ignore=test_in_auto_mode.py")
    assert said.endswith("exit code 0"), said
    assert "13 passed" in said


def test_project_in_auto_mode(installed: str) -> None:
    """It serves pytest-asyncio's auto mode, and harms nothing where it is named with -p as well."""
    said = run(installed, "-p", PLUGIN, "-o", "asyncio_mode=auto", "test_in_auto_mode.py")
    assert said.endswith("exit code 0"), said
    assert "1 passed" in said


@pytest.mark.slow
def test_project_on_workers(installed: str) -> None:
    """Under pytest-xdist each worker has servers of its own."""
    said = run(installed, "-n", "2", "test_by_itself.py")
    assert said.endswith("exit code 0"), said
    assert "4 passed" in said


def test_plugin_named_in_a_conftest(installed: str, tmp_path: Path) -> None:
    """It can be named in `pytest_plugins`, with its entry point there; its marker is among the known ones."""
    (tmp_path / "conftest.py").write_text(f'pytest_plugins = ["{PLUGIN}"]')
    said = run(installed, "--markers", "-p", "no:asyncio", cwd=tmp_path)
    assert said.endswith("exit code 0"), said
    assert "@pytest.mark.elkimg_faults(*faults): " in said


def test_example_of_the_readme(installed: str, tmp_path: Path) -> None:
    """The test in the README is found, run and passed."""
    readme = (HERE.parent / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (example,) = [block for block in blocks if "elkimg_client" in block]
    (tmp_path / "test_thumbnail.py").write_text(example, "utf-8")
    loops = "asyncio_default_fixture_loop_scope=function"
    said = run(installed, "--strict-markers", "-Werror", "-o", loops, cwd=tmp_path)
    assert said.endswith("exit code 0"), said
    assert "1 passed" in said


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


def test_what_is_wrong_is_told(installed: str, tmp_path: Path) -> None:
    """An unknown fault, or a missing Pillow, is an error of the test that asks for the server, in one sentence."""
    (tmp_path / "test_it.py").write_text(FAULTY)
    prelude = "sys.modules['PIL'] = None"
    said = run(installed, "-p", "no:asyncio", cwd=tmp_path, prelude=prelude)
    assert "1 passed, 2 errors" in said
    assert "Unknown fault 'earthquake'. Choose one of: " in said
    assert 'pip install "elkimg-async[pil]"' in said
    assert "Traceback" not in said
    assert "pytest_plugin.py" not in said


def test_import_is_cheap() -> None:
    """What every run of pytest imports brings neither aiohttp nor anyio nor asyncio along."""
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
