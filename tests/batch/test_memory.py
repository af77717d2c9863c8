"""The memory of long runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells the peak")
@pytest.mark.parametrize("journal", [False, True])
def test_memory_of_many_requests(journal: bool, tmp_path: Path) -> None:
    """ELKIMG_MAP_REQUESTS small requests run at the memory of a thousand, and are resumed at little more."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment
    ) as canned:
        assert canned.stdin is not None
        assert canned.stdout is not None
        url = f"http://127.0.0.1:{int(canned.stdout.readline())}/url-1-0/v1"

        def peak(count: int) -> int:
            arguments = [url, str(count), *([str(tmp_path / f"{count}.jsonl")] if journal else [])]
            script = Path(__file__).parents[1] / "helpers/map_many.py"
            run = subprocess.run(
                [sys.executable, str(script), *arguments],
                stdout=subprocess.PIPE,
                env=environment,
                check=True,
            )
            return int(run.stdout)

        count = int(os.environ.get("ELKIMG_MAP_REQUESTS", "10000"))
        few, many = peak(1_000), peak(count)
        again = peak(count) if journal else many
        canned.stdin.close()
    print(f"peak memory in KiB: {few:,} for 1,000; {many:,} for {count:,}; {again:,} once more")
    assert many < few + 8 * 1024
    assert again < few + 16 * 1024
