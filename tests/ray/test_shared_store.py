"""Images in a folder that all workers share."""

import json
from pathlib import Path

import pytest

from elkimg_async.batch.names import row_stem
from elkimg_async.errors import ConfigurationError
from elkimg_async.image import Image
from elkimg_async.ray.shared_store import RowRecord, SharedStore

PNG = b"\x89PNG\r\n\x1a\n and so on"


def store(shared_store: SharedStore, row_id: str, *images: bytes, digest: str = "m") -> RowRecord:
    """Write the files of a row and its record."""
    record = RowRecord(
        id=row_id,
        hash=digest,
        idempotency_key="k",
        prompt="a cat",
        parameters={},
        files=shared_store.folder.write(
            row_stem(row_id), [*enumerate(map(Image, images))], many=len(images) > 1
        ),
        usage=None,
        request_id=None,
        attempts=1,
        elapsed=0.5,
    )
    shared_store.write_record(record)
    return record


def test_shared_finds_what_is_done(tmp_path: Path) -> None:
    """A finished row is found by its id and its request."""
    shared_store = SharedStore(str(tmp_path / "new" / "folder"))
    record = store(shared_store, "7", PNG, PNG)
    assert shared_store.find("7", "m") == record
    assert [Path(path).name for path in shared_store.paths(record.files)] == ["7.1.png", "7.2.png"]
    assert shared_store.find("7", "other") is None
    assert shared_store.find("8", "m") is None


def test_shared_store_record_of_an_early_version(tmp_path: Path) -> None:
    """A record without URLs is of a finished row."""
    shared_store = SharedStore(str(tmp_path))
    record = store(shared_store, "7", PNG)
    fields = json.loads((tmp_path / "7.json").read_bytes())
    assert fields.pop("urls") == []
    (tmp_path / "7.json").write_text(json.dumps(fields))
    assert shared_store.find("7", "m") == record


@pytest.mark.parametrize("harm", ["cut", "missing", "no record", "broken record"])
def test_shared_store_with_damaged_files(tmp_path: Path, harm: str) -> None:
    """A row is sent again if one of its files has changed."""
    shared_store = SharedStore(str(tmp_path))
    store(shared_store, "7", PNG)
    match harm:
        case "cut":
            (tmp_path / "7.png").write_bytes(PNG[:-1])
        case "missing":
            (tmp_path / "7.png").unlink()
        case "no record":
            (tmp_path / "7.json").unlink()
        case _:
            (tmp_path / "7.json").write_bytes(b'{"id": "7"')
    assert shared_store.find("7", "m") is None


def test_shared_store_in_an_unusable_place(tmp_path: Path) -> None:
    """A URL, or a folder that cannot be created, is an error with advice."""
    with pytest.raises(ConfigurationError, match="omit it"):
        SharedStore("s3://bucket/images")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="another folder"):
        SharedStore(str(tmp_path / "file" / "images"))
