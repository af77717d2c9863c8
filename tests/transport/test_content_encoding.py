"""Content encodings that were not requested: decoded, or named."""

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from types import ModuleType

import pytest

from elkimg_async import AsyncImages, RateLimitError, ResponseError
from elkimg_async.transport.content_encoding import (
    DamagedEncodingError,
    UnknownEncodingError,
    decoder_for,
)
from tests.helpers.calls import B64, COMPLETED, failure, in_both_modes, run_call
from tests.helpers.raw_server import API_KEY, DONE, PNG, RawServer, response

BODY = b'{"data": ' + b" " * 700_000 + b"[]}"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + bytes(20),
    "deflate": zlib.compress,
    "identity, deflate": raw_deflate,
    "gzip, gzip": lambda data: gzip.compress(gzip.compress(data)),
    "deflate, gzip": lambda data: gzip.compress(zlib.compress(data)),
}
try:
    import brotli  # type: ignore[import-untyped]
except ImportError:
    pass
else:
    ENCODE["br"] = brotli.compress
try:
    from backports import zstd
except ImportError:
    pass
else:
    ENCODE["zstd"] = zstd.compress
    ENCODE["zstd, identity"] = lambda data: zstd.compress(data[:9]) + zstd.compress(data[9:])


def decoded(name: str, chunks: list[bytes]) -> bytes:
    decode = decoder_for(name)
    assert decode is not None
    return b"".join(piece for chunk in chunks for piece in decode(chunk))


@pytest.mark.parametrize("name", ENCODE)
def test_decoder_in_any_split(name: str) -> None:
    """A body is decoded in one chunk, in several and byte by byte, in parts of a bounded size."""
    encoded = ENCODE[name](BODY)
    assert decoded(name, [encoded]) == BODY
    assert decoded(name, [bytes((byte,)) for byte in encoded]) == BODY
    for cut in range(0, len(encoded), max(1, len(encoded) // 50)):
        assert decoded(name, [encoded[:cut], encoded[cut:]]) == BODY


def test_decoder_of_a_bomb() -> None:
    """A small body that expands is decoded in chunks, so that a limit ends it early."""
    decode = decoder_for("gzip")
    assert decode is not None
    pieces = decode(gzip.compress(bytes(100_000_000), 9))
    assert max(len(next(pieces)) for _ in range(20)) <= 256 * 1024


@pytest.mark.parametrize("name", ["", "identity", " , identity"])
def test_decoder_without_an_encoding(name: str) -> None:
    """A body that is not encoded needs no decoder."""
    assert decoder_for(name) is None


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_decoder_of_damaged_data(name: str) -> None:
    """A body that is not what its encoding says is an error."""
    with pytest.raises(DamagedEncodingError):
        decoded(name, [b"\xff\xfe no such thing"])


@pytest.mark.parametrize("name", ["compress", "dcb", "gzip, aws-chunked"])
def test_decoder_unknown(name: str) -> None:
    """An unknown encoding is named."""
    with pytest.raises(UnknownEncodingError, match=name.rpartition(" ")[2]):
        decoder_for(name)


@pytest.mark.parametrize("module", ["brotlicffi", "zstandard"])
def test_decoder_by_another_package(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Each of the packages that people have for an encoding is used."""
    pytest.importorskip(module)
    for name in ("brotli", "backports.zstd", "compression.zstd"):
        hidden: ModuleType | None = None
        monkeypatch.setitem(sys.modules, name, hidden)
    for name in [name for name in ENCODE if name.startswith(("br", "zstd"))]:
        if (module == "zstandard") == name.startswith("zstd"):
            encoded = ENCODE[name](BODY)
            assert decoded(name, [encoded]) == BODY
            assert decoded(name, [bytes((byte,)) for byte in encoded]) == BODY


@in_both_modes
@pytest.mark.parametrize("name", ENCODE)
async def test_encoded_response(raw_server: RawServer, name: str, streaming: bool) -> None:
    """The image of an encoded response is delivered."""
    body = COMPLETED + DONE if streaming else json.dumps({"data": [{"b64_json": B64}]}).encode()
    raw_server.reply_with(response(ENCODE[name](body), Content_Encoding=name))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        _, result = await run_call(client, streaming)
    assert result[0].content == PNG


@pytest.fixture
def no_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the optional codecs."""
    for name in ("brotli", "brotlicffi", "backports.zstd", "compression.zstd", "zstandard"):
        hidden: ModuleType | None = None
        monkeypatch.setitem(sys.modules, name, hidden)


@in_both_modes
@pytest.mark.parametrize(("name", "package"), [("br", "Brotli"), ("zstd", "backports.zstd")])
@pytest.mark.usefixtures("no_codecs")
async def test_encoding_without_its_codec(
    raw_server: RawServer, name: str, package: str, streaming: bool
) -> None:
    """A codec that is not installed is named with its package, and nothing is sent again."""
    raw_server.reply_with(response(b"\x0b\x02\x80{}\x03", Content_Encoding=name))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url) as client:
        error = await failure(ResponseError, client, streaming)
    assert f"Content-Encoding: {name}" in str(error)
    assert package in str(error)
    assert (error.billing, error.attempts) == ("unknown", 1)


@pytest.mark.usefixtures("no_codecs")
async def test_encoded_error_without_its_codec(raw_server: RawServer) -> None:
    """An error status counts, although its body cannot be decoded."""
    raw_server.reply_with(response(b"\x0b\x02\x80{}\x03", status=429, Content_Encoding="br"))
    async with AsyncImages(API_KEY, base_url=raw_server.base_url, retry=0) as client:
        error = await failure(RateLimitError, client)
    assert error.status == 429
