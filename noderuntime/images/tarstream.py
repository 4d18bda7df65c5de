"""Tar as a stream of blocks: headers parsed and checked, data handed on without a copy.

Why not ``tarfile``: it reads at less than half the speed of GNU tar, and takes what no layer holds
(sparse files, several encodings). Here names stay bytes, every size is bounded before it is
believed, and what is not understood is refused. A block (512 bytes) never straddles two buffers,
since a source fills its buffers whole. Sources: POSIX pax (ustar and extended headers), the GNU
long-name entries, image-spec layer.md; like Go's archive/tar, global pax headers say nothing and
links have no data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol
from zlib import adler32

from noderuntime.errors import ImageError

BLOCK: Final = 512
MAX_PAX: Final = 1 << 20
MAX_PATH: Final = 4095
_MAX_NS: Final = (1 << 33) * 1_000_000_000
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s66x8s8s155s12x")
_ZERO: Final = bytes(BLOCK)
_NAMED: Final = frozenset(b"LKxg")
_HEADER_ONLY: Final = frozenset(b"123456")
_REGULAR: Final = frozenset(b"0\x007")


class BlockSource(Protocol):
    """Where blocks come from."""

    def next_buffer(self) -> memoryview | None:
        """Return the next data, valid until the next call; None at the end."""
        ...


@dataclass(slots=True)
class Entry:
    """One member. ``kind`` is ustar's typeflag as a number; a regular file is always ``0``."""

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict[str, bytes])


def shown(name: bytes) -> str:
    """Return ``name`` for a message: on one line, cut, without control characters."""
    text = name[:200].decode("utf-8", "backslashreplace") + ("..." if len(name) > 200 else "")
    return ascii(text)


def refuse(name: bytes, why: str) -> NoReturn:
    """Raise the ImageError that names the entry."""
    raise ImageError(f"entry {shown(name)} of the layer {why}")


class TarReader:
    """Reads entry after entry; an entry's data is read, or skipped by the next ``entry``."""

    def __init__(self, source: BlockSource, *, limit_bytes: int) -> None:
        """``limit_bytes`` bounds the sum of the sizes that entries declare."""
        self._source = source
        self._view = memoryview(b"")
        self._pos = 0
        self._end = 0
        self._left = 0  # of the current entry's data, without its padding
        self._padding = 0
        self._budget = limit_bytes

    def entry(self) -> Entry | None:
        """Return the next entry, None at the archive's end; raises ImageError."""
        if self._left or self._padding:
            self._skip()
        pax: dict[str, bytes] = {}
        long_name = long_link = b""
        for _ in range(16):
            block = self._block()
            if block is None:
                return None
            entry = self._parse(block)
            if entry.kind not in _NAMED:
                return self._complete(entry, pax, long_name, long_link)
            data = self._small(entry)
            if entry.kind == 0x78:  # x
                pax = _pax_records(data)
            elif entry.kind == 0x4C:  # L
                long_name = data.split(b"\0", 1)[0]
            elif entry.kind == 0x4B:  # K
                long_link = data.split(b"\0", 1)[0]
        raise ImageError("the layer has more extended headers than entries")

    def data(self) -> Iterator[memoryview]:
        """Yield the current entry's data; each piece is valid until the next."""
        while self._left:
            if self._pos == self._end and not self._advance():
                raise ImageError("the layer's archive is cut off in the middle of a file")
            count = min(self._left, self._end - self._pos)
            piece = self._view[self._pos : self._pos + count]
            self._pos += count
            self._left -= count
            yield piece
        self._skip()

    def copy_to(self, fd: int) -> None:
        """Write the current entry's data to ``fd``."""
        left = self._left
        if left <= self._end - self._pos:  # the usual small file: one write, no generator
            end = self._pos + left
            while self._pos < end:
                self._pos += os.write(fd, self._view[self._pos : end])
            self._left = 0
            if self._padding <= self._end - self._pos:
                self._pos += self._padding
                self._padding = 0
            return
        for piece in self.data():
            while piece:
                piece = piece[os.write(fd, piece) :]

    def drain(self) -> None:
        """Read to the end of the stream, so that all of it is hashed."""
        self._left = self._padding = 0
        while self._source.next_buffer() is not None:
            pass

    def _advance(self) -> bool:
        view = self._source.next_buffer()
        if view is None:
            return False
        self._view, self._pos, self._end = view, 0, len(view)
        return True

    def _skip(self) -> None:
        count = self._left + self._padding
        self._left = self._padding = 0
        while count:
            if self._pos == self._end and not self._advance():
                raise ImageError("the layer's archive is cut off in the middle of a file")
            step = min(count, self._end - self._pos)
            self._pos += step
            count -= step

    def _block(self) -> bytes | None:
        """Return the next header, None at the end (a block of zeros, or no more data)."""
        if self._pos == self._end and not self._advance():
            return None
        end = self._pos + BLOCK
        if end > self._end:
            raise ImageError("the layer's archive is cut off in the middle of a header")
        block = bytes(self._view[self._pos : end])
        self._pos = end
        return None if block == _ZERO else block

    def _parse(self, block: bytes) -> Entry:
        (name, mode, uid, gid, size, mtime, check, kind, link, magic, major, minor, prefix) = (
            _HEADER.unpack(block)
        )
        # adler32's low half is 1 + the sum of the bytes, mod 65521: the checksum at the speed of C.
        found = (adler32(block[156:], adler32(block[:148])) & 0xFFFF) - 1 + 256
        name = name.split(b"\0", 1)[0]
        if (_checksum(check) - found) % 65521:
            raise ImageError(f"the layer is no tar archive: bad checksum at entry {shown(name)}")
        if magic == b"ustar\0" and prefix[0]:
            name = prefix.split(b"\0", 1)[0] + b"/" + name
        code = kind[0]
        entry = Entry(
            name,
            code,
            _number(mode, name),
            _number(uid, name),
            _number(gid, name),
            _number(size, name),
            _number(mtime, name) * 1_000_000_000,
            link.split(b"\0", 1)[0],
        )
        if code in b"34":
            entry.major, entry.minor = _number(major, name), _number(minor, name)
        return entry

    def _small(self, entry: Entry) -> bytes:
        """Read the data of an extended header."""
        if not 0 <= entry.size <= MAX_PAX:
            refuse(entry.name, f"has an extended header of {entry.size} bytes: at most {MAX_PAX}")
        self._left = entry.size
        self._padding = -entry.size % BLOCK
        return b"".join(self.data())

    def _complete(
        self, entry: Entry, pax: dict[str, bytes], long_name: bytes, long_link: bytes
    ) -> Entry:
        """Apply what the extended headers said, check it, and stand before the data."""
        if long_name:
            entry.name = long_name
        if long_link:
            entry.link = long_link
        if pax:
            _apply_pax(entry, pax)
        kind = entry.kind
        if kind in _REGULAR:
            entry.kind = 0x35 if entry.name.endswith(b"/") else 0x30
        if kind in _HEADER_ONLY:
            entry.size = 0
        if entry.size < 0 or entry.size > self._budget:
            refuse(entry.name, f"has {entry.size} bytes: more than may be unpacked of this layer")
        if not (0 <= entry.uid < 0xFFFFFFFF and 0 <= entry.gid < 0xFFFFFFFF):
            refuse(entry.name, f"belongs to {entry.uid}:{entry.gid}, which no user can be")
        entry.mtime_ns = min(max(entry.mtime_ns, 0), _MAX_NS)
        self._budget -= entry.size
        self._left = entry.size
        self._padding = -entry.size % BLOCK
        return entry


def _checksum(text: bytes) -> int:
    """Parse the checksum; what is no number is -1, which no sum of bytes is."""
    try:
        return int(text.replace(b"\0", b" ").strip(), 8)
    except ValueError:
        return -1


def _number(text: bytes, name: bytes) -> int:
    """Parse an octal field, or GNU's base-256."""
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=False) & ((1 << (8 * len(text) - 1)) - 1)
        if text[0] & 0x40:  # two's complement: a negative number
            value -= 1 << (8 * len(text) - 1)
        return value
    digits = text.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        refuse(name, f"has a number that is none in its header: {shown(digits)}")


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Parse ``LENGTH KEY=VALUE`` lines; the last of a key counts."""
    records: dict[str, bytes] = {}
    pos = 0
    while pos < len(data):
        space = data.find(b" ", pos, pos + 12)
        digits = data[pos:space] if space > 0 else b""
        if not digits.isdigit():
            break
        end = pos + int(digits)
        if not space < end <= len(data) or data[end - 1] != 0x0A:
            break
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            break
        records[key.decode("utf-8", "backslashreplace")] = value
        pos = end
    if pos < len(data) and data[pos:].strip(b"\0"):
        raise ImageError("the layer has an extended header that is not in the form of pax")
    return records


def _apply_pax(entry: Entry, pax: dict[str, bytes]) -> None:
    for key, value in pax.items():
        if key.startswith("SCHILY.xattr."):
            entry.xattrs[key[13:]] = value
        elif key.startswith("GNU.sparse."):
            refuse(entry.name, "is a sparse file, which image layers do not have")
        elif value:
            _apply_field(entry, key, value)


def _apply_field(entry: Entry, key: str, value: bytes) -> None:
    if key in {"path", "linkpath"}:
        if b"\0" in value:
            refuse(value, "has a zero byte in its name")
        if key == "path":
            entry.name = value
        else:
            entry.link = value
    elif key in {"size", "uid", "gid"}:
        if not value.isdigit() or len(value) > 20:
            refuse(entry.name, f"has a {key} that is no number: {shown(value)}")
        setattr(entry, key, int(value))
    elif key == "mtime":
        entry.mtime_ns = _nanoseconds(value, entry.name)


def _nanoseconds(value: bytes, name: bytes) -> int:
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 20 or (fraction and not fraction.isdigit()):
        refuse(name, f"has a time that is none: {shown(value)}")
    if whole.startswith(b"-"):
        return 0
    return int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
