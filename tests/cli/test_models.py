"""`elkimg models`, run as people run it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from elkimg_async import Model
from elkimg_async.cli.models import _print
from elkimg_async.local import LocalServer
from tests.helpers.command import API_KEY, run, run_on_terminal
from tests.helpers.raw_server import RawServer, response


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=API_KEY, light=True, delay=0) as server:
        yield server


async def test_models(tmp_path: Path, server: LocalServer) -> None:
    """The server's models are listed, one per line."""
    ended = await run("models", folder=tmp_path, server=server)
    assert ended.code == 0
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0] == ["model", "images", "owner", "since", "until"]
    assert ["gpt-image-1.5", "yes", "elkimg-local", "2023-11-14", "2026-12-01"] in lines


async def test_models_of_every_kind(tmp_path: Path) -> None:
    """Other models are left out without --all; what is unknown is shown as such."""
    models = [
        {"id": "talker", "supported_endpoint_types": ["openai"], "created": 1e300},
        {"id": "painter", "supported_endpoint_types": ["image-generation"]},
        {"id": "riddle\x1b[31m"},
    ]
    async with RawServer(response({"data": models})) as raw_server:
        url = ("--base-url", raw_server.base_url)
        variables = {"ELKAPI_API_KEY": "sk-1"}
        some = await run("models", *url, folder=tmp_path, variables=variables)
        every = await run("models", "--all", *url, folder=tmp_path, variables=variables)
    assert [line.split()[:2] for line in some.out.splitlines()[1:]] == [
        ["painter", "yes"],
        ["riddle", "[31m"],
    ]
    assert "1 model for other purposes not shown; --all lists them." in some.err
    assert ["talker", "no", "-", "-"] in [line.split() for line in every.out.splitlines()]


async def test_models_without_server(tmp_path: Path) -> None:
    """A server that cannot be reached is one sentence."""
    async with LocalServer(api_key=API_KEY) as server:
        gone = server
    ended = await run("models", "--retries", "0", folder=tmp_path, server=gone)
    assert ended.code == 1
    assert "cannot be reached" in ended.err


async def test_models_json(tmp_path: Path, server: LocalServer) -> None:
    """With --json there is one object per model, and nothing else."""
    ended = await run("models", "--json", folder=tmp_path, server=server)
    assert (ended.code, ended.err) == (0, "")
    listed = {item["model"]: item for item in map(json.loads, ended.out.splitlines())}
    assert listed["gpt-image-1.5"]["images"] is True
    assert set(listed["gpt-image-1.5"]) == {"model", "images", "owner", "since", "until"}


def test_models_show_shutdown_date(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that will be shut down shows its last day."""

    class Retiring(Model, frozen=True, kw_only=True):
        shutdown_date: str | None = None

    _print([Retiring(id="old", shutdown_date="2026-12-01"), Retiring(id="new")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["model", "images", "owner", "since", "until"],
        ["old", "-", "-", "-", "2026-12-01"],
        ["new", "-", "-", "-", "-"],
    ]


@pytest.mark.parametrize("columns", [40, 60, 80])
async def test_models_in_narrow_pipe(tmp_path: Path, server: LocalServer, columns: int) -> None:
    """A piped table has all its columns, one line for each model, whatever COLUMNS says."""
    variables = {"COLUMNS": str(columns)}
    ended = await run("models", folder=tmp_path, server=server, variables=variables)
    rows = [line.split() for line in ended.out.splitlines()]
    assert {len(row) for row in rows} == {5}


async def test_models_on_narrow_terminal(tmp_path: Path, server: LocalServer) -> None:
    """On a narrow terminal each model is a block, and its name is not broken."""
    code, shown = await run_on_terminal("models", folder=tmp_path, columns=30, server=server)
    assert code == 0
    assert "gpt-image-1.5" in shown.split("\n")
    assert "since 2023-11-14" in shown
