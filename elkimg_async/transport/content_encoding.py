"""Decode a `Content-Encoding` that was not requested."""

import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

_MAX_CHUNK = 256 * 1024
"""Decoded bytes returned at a time, so that a small body cannot exhaust memory."""

_INPUT = 4096
"""Encoded bytes passed at a time to a codec that cannot limit its output."""

Decode = Callable[[bytes], Iterator[bytes]]

_INSTALL = {"br": "Brotli", "zstd": "backports.zstd"}


class UnknownEncodingError(Exception):
    """An encoding that cannot be decoded; the message names the encoding and the remedy."""


class DamagedEncodingError(Exception):
    """A body that does not match its `Content-Encoding`."""


def decoder_for(header: str) -> Decode | None:
    """Return a function that decodes a body chunk by chunk; None if there is nothing to decode.

    Raises:
        UnknownEncodingError: If a codec is unknown or not installed.
    """
    # RFC 9110, 8.4: the encodings are listed in the order in which they were applied.
    names = [name.strip().lower() for name in header.split(",")]
    chain: Decode | None = None
    for name in reversed([name for name in names if name not in ("", "identity")]):
        step = _codec(name)
        chain = step if chain is None else _chained(chain, step)
    return chain


def _chained(first: Decode, second: Decode) -> Decode:
    def decode(data: bytes) -> Iterator[bytes]:
        for chunk in first(data):
            yield from second(chunk)

    return decode


def _codec(name: str) -> Decode:
    if name in ("gzip", "x-gzip", "deflate"):
        return _Zlib(raw_allowed=name == "deflate").decode
    if name == "br":
        brotli = _load("brotli", "brotlicffi")
        if brotli is not None:
            return _in_steps(brotli.Decompressor().process, brotli.error)
    if name == "zstd":
        zstd = _load("compression.zstd", "backports.zstd", "zstandard")
        if zstd is not None:
            return _in_steps(_Zstd(zstd).decompress, zstd.ZstdError)
    remedy = f"install {_INSTALL[name]}, or " if name in _INSTALL else ""
    raise UnknownEncodingError(
        f"it has Content-Encoding: {name[:40]}, which was not requested and cannot be decoded; "
        f"{remedy}make the server or proxy respect Accept-Encoding: identity"
    )


def _load(*modules: str) -> Any:
    """Import the first of some optional modules that is installed."""
    for module in modules:
        try:
            return import_module(module)
        except ImportError:
            continue
    return None


class _Zlib:
    """Decoder of gzip, in any number of members, and of deflate with or without its header."""

    def __init__(self, *, raw_allowed: bool) -> None:
        self._raw_allowed = raw_allowed
        self._inflate: Any = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            while True:
                # RFC 1952, 2.2: a gzip file may have several members, one after the other.
                if self._inflate is not None and self._inflate.eof:
                    if self._raw_allowed or data[:1] != b"\x1f":
                        return  # padding after the end
                    self._inflate = None
                if self._inflate is None:
                    if not data:
                        return
                    self._inflate = zlib.decompressobj(self._window(data))
                if chunk := self._inflate.decompress(data, _MAX_CHUNK):
                    yield chunk
                data = self._inflate.unconsumed_tail or self._inflate.unused_data
                if not data and len(chunk) < _MAX_CHUNK:
                    return
        except zlib.error as error:
            raise DamagedEncodingError(str(error)) from None

    def _window(self, data: bytes) -> int:
        if not self._raw_allowed:
            return 16 + zlib.MAX_WBITS
        # RFC 9110, 8.4.1.2: deflate is the zlib format, but some senders leave its header out. That
        # begins with compression method 8 (RFC 1950, 2.2). Raw data does only if its first block is
        # stored and its padding, which is ignored, is not zero (RFC 1951, 3.2.4).
        return zlib.MAX_WBITS if data[0] & 0xF == 8 else -zlib.MAX_WBITS


class _Zstd:
    """Decoder of zstd in any number of frames (RFC 8878, section 3)."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._frame = self._next_frame()

    def _next_frame(self) -> Any:
        decompressor = self._module.ZstdDecompressor()
        return (
            decompressor.decompressobj()
            if hasattr(decompressor, "decompressobj")  # the package zstandard
            else decompressor
        )

    def decompress(self, data: bytes) -> bytes:
        decoded = []
        while data:
            if self._frame.eof:
                self._frame = self._next_frame()
            decoded.append(self._frame.decompress(data))
            data = self._frame.unused_data if self._frame.eof else b""
        return b"".join(decoded)


def _in_steps(decompress: Callable[[bytes], bytes], failure: type[Exception]) -> Decode:
    def decode(data: bytes) -> Iterator[bytes]:
        try:
            for start in range(0, len(data), _INPUT):
                if chunk := decompress(data[start : start + _INPUT]):
                    yield chunk
        except (failure, EOFError) as error:
            raise DamagedEncodingError(str(error)) from None

    return decode
