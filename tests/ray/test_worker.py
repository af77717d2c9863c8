"""Options of workers, without Ray."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from elkimg_async.cli.batch import batch
from elkimg_async.cli.console import UsageError
from elkimg_async.cli.options import Connection
from elkimg_async.errors import ConfigurationError, InvalidRequestError
from elkimg_async.ray import generate_dataset
from elkimg_async.ray.worker import check_options

PNG = b"\x89PNG\r\n\x1a\n and so on"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"colour": "red"}, TypeError),
        ({"requests_at_once": 0}, ConfigurationError),
        ({"base_url": "ftp://x"}, ConfigurationError),
        ({"idempotency": "always"}, ConfigurationError),
        ({"extra_headers": {"a b": "c"}}, ConfigurationError),
        ({"n": "two"}, InvalidRequestError),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], error: type[Exception]) -> None:
    """Invalid options are rejected before a worker is created."""
    with pytest.raises(error):
        check_options(options)


def test_generate_dataset_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Ray is missing, the error names the extra."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[ray\]"):
        generate_dataset(None)  # type: ignore[arg-type]


def test_batch_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command names the extra too, and rejects options that need a journal."""
    (tmp_path / "prompts.txt").write_text("a cat\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_BACKEND_LOG_LEVEL", "RAY_ENABLE_AUTO_CONNECT"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # which are set by the command
    given: dict[str, Any] = {
        "output": tmp_path / "out",
        "connection": Connection(local=True),
        "ray": True,
    }
    with pytest.raises(ConfigurationError, match=r"elkimg-async\[ray\]"):
        batch(str(tmp_path / "prompts.txt"), **given)
    with pytest.raises(UsageError, match="--max-images and --ray"):
        batch(str(tmp_path / "prompts.txt"), max_images=1, **given)
