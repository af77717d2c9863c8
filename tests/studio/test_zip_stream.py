"""The archive that the studio sends while it is written."""

import io
import zipfile
from pathlib import Path

from elkimg_async.studio.zip_stream import ZipStream


def test_zip_stream_names_and_deleted_files(tmp_path: Path) -> None:
    """A name that occurs again gets a number, and a file that has been deleted is left out."""
    file = tmp_path / "image"
    file.write_bytes(b"pixels")
    stream = ZipStream()
    chunks = [stream.add("a-fox.png", file) for _ in range(3)]
    assert all(chunks)
    assert stream.add("gone.png", tmp_path / "gone") == b""
    with zipfile.ZipFile(io.BytesIO(b"".join([*chunks, stream.end()]))) as archive:
        assert archive.namelist() == ["a-fox.png", "a-fox-2.png", "a-fox-3.png"]
        assert {archive.read(name) for name in archive.namelist()} == {b"pixels"}
