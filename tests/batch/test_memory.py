"""The memory of long runs."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.runs import make_png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak from /proc"),
]
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def measuring() -> Iterator[Callable[..., int]]:
    """Start a server; yield a function that runs requests and returns their peak memory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline().split()[0])}/url-1-0/v1"

        def peak(count: int, *options: str | Path) -> int:
            script = str(ROOT / "tests/helpers/map_many.py")
            run = subprocess.run(
                [sys.executable, script, url, str(count), *map(str, options)],
                stdout=subprocess.PIPE,
                env=environment,
                check=True,
            )
            return int(run.stdout)

        yield peak
        process.stdin.close()


@pytest.mark.parametrize("journal", [False, True])
def test_memory_of_many_requests(journal: bool, tmp_path: Path) -> None:
    """Many requests run at the memory of a thousand, and are resumed at little more.

    ELKIMG_MAP_REQUESTS is their number.
    """
    count = int(os.environ.get("ELKIMG_MAP_REQUESTS", "5000"))

    def options(name: str) -> list[str | Path]:
        return ["--journal", tmp_path / name] if journal else []

    with measuring() as peak:
        few, many = peak(1_000, *options("few")), peak(count, *options("many"))
        again = peak(count, *options("many")) if journal else many
    print(f"peak memory in KiB: {few:,} for 1,000; {many:,} for {count:,}; {again:,} once more")
    assert many < few + 8 * 1024
    assert again < few + 16 * 1024


def test_memory_of_many_edits(tmp_path: Path) -> None:
    """ELKIMG_MAP_EDITS edits run at the memory of a tenth of them, within 10 %."""
    count = int(os.environ.get("ELKIMG_MAP_EDITS", "3000"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(100):
        (photos / f"{number}.png").write_bytes(make_png(64, 64, noise=500_000))
    with measuring() as peak:
        few = max(
            peak(count // 10, "--photos", photos, "--journal", tmp_path / f"few {number}")
            for number in range(2)  # it varies by some per cent
        )
        many = peak(count, "--photos", photos, "--journal", tmp_path / "many")
    print(f"peak memory in KiB: {few:,} for {count // 10:,} edits; {many:,} for {count:,}")
    assert many < 1.1 * few
