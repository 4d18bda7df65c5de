"""Header blocks of SPDY/3: names and values behind zlib, with one state a direction and connection.

Because of that state every block has to be read, also that of a frame which is then refused. A
block says its size only when it is unpacked, so unpacking stops at a bound.
Source: SPDY Protocol Draft 3.1, section 2.6.10.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final

from noderuntime.cri.streaming.dictionary import HEADER_DICTIONARY
from noderuntime.cri.streaming.events import SpdyError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEADER_BYTES: Final = 64 << 10  # after decompression
MAX_HEADERS: Final = 100


class HeaderCodec:
    """Both directions of one connection."""

    def __init__(self) -> None:
        """Begin with the protocol's dictionary."""
        self._deflate = zlib.compressobj(zdict=HEADER_DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=HEADER_DICTIONARY)

    def read(self, block: bytes) -> dict[str, str]:
        """Return the headers of a received block, names in lower case; raises SpdyError."""
        try:
            plain = self._inflate.decompress(block, MAX_HEADER_BYTES + 1)
        except zlib.error as error:
            raise SpdyError("a header block that is not zlib") from error
        if len(plain) > MAX_HEADER_BYTES or self._inflate.unconsumed_tail:
            raise SpdyError(f"a header block larger than {MAX_HEADER_BYTES} bytes")
        return _parse_headers(plain)

    def write(self, headers: Mapping[str, str]) -> bytes:
        """Return the block to send."""
        plain = bytearray(struct.pack(">I", len(headers)))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                plain += struct.pack(">I", len(text)) + text
        return self._deflate.compress(bytes(plain)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _parse_headers(plain: bytes) -> dict[str, str]:
    """Read a decompressed block: a count, then names and values that each follow their length."""
    count, *_ = struct.unpack_from(">I", plain) if len(plain) >= 4 else (MAX_HEADERS + 1,)
    if count > MAX_HEADERS:
        raise SpdyError(f"a header block with {count} headers")
    offset, texts = 4, list[str]()
    for _ in range(2 * count):
        length = int.from_bytes(plain[offset : offset + 4], "big")
        offset += 4 + length
        if offset > len(plain):
            raise SpdyError("a header block that ends early")
        texts.append(plain[offset - length : offset].decode("latin-1"))
    if offset != len(plain):
        raise SpdyError("a header block with bytes behind its end")
    return {name.lower(): value for name, value in zip(texts[::2], texts[1::2], strict=True)}
