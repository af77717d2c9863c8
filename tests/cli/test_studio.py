"""`elkimg studio`, run as people run it."""

from pathlib import Path

import pytest

from tests.helpers.command import run, started

ARGUMENTS = ("studio", "--local", "--port", "0", "--folder", "history")


async def test_studio_in_folder_of_another_one(tmp_path: Path) -> None:
    """The folder is a wrong setting, and the advice is what the command offers."""
    async with started(*ARGUMENTS, folder=tmp_path) as command:
        await command.line(out=True)
        ended = await run(*ARGUMENTS, folder=tmp_path)
        command.interrupt()
        assert (await command.ended()).code == 130
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1] == (
        "Another process uses history; open the address that it printed, or choose another folder "
        "with --folder."
    )


@pytest.mark.parametrize(
    "name", ["", "jobs", "elkimg-jobs.json"], ids=["file", "no store", "other version"]
)
async def test_studio_in_unusable_folder(tmp_path: Path, name: str) -> None:
    """Another folder that cannot be used is a wrong setting as well."""
    path = tmp_path / "history" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"version": 0}')
    ended = await run(*ARGUMENTS, folder=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "hoose another" in ended.err
    assert ended.err.endswith(" with --folder.\n")
    assert "RedisStore" not in ended.err


async def test_studio_on_file_system_without_locks(tmp_path: Path) -> None:
    """The advice names the option, and no store that the command does not offer."""
    code = (
        "import errno, fcntl, os, sys\n"
        "def flock(*arguments): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n"
        "fcntl.flock = flock\n"
        "from elkimg_async.cli import main\n"
        "sys.exit(main())"
    )
    async with started(*ARGUMENTS, folder=tmp_path, code=code) as command:
        ended = await command.ended()
    assert ended.code == 2
    assert ended.err.endswith("choose a folder on a local disk with --folder.\n")
