"""What the jail's child runs: file in, folder out. All that it needs is loaded with this."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, cast

from noderuntime.images.decompress import Decompressor
from noderuntime.images.tarstream import TarReader
from noderuntime.images.unpack import Unpacker

if TYPE_CHECKING:
    from noderuntime.images.jail import Limits


def unpack(layer: int, limits: Limits) -> dict[str, object]:
    """Unpack the file ``layer`` into the current folder; return the answer. Raises ImageError."""
    with open(layer, "rb", buffering=1 << 18) as file:
        source = Decompressor(cast("io.BufferedReader", file), limit_bytes=limits.limit_bytes)
        reader = TarReader(source, limit_bytes=limits.limit_bytes)
        result = Unpacker(reader, is_base=limits.is_base, max_entries=limits.max_entries).run()
    return {
        "diff_id": source.diff_id,
        "size_bytes": result.size_bytes,
        "inodes": result.inodes,
        "implied": [os.fsdecode(name) for name in result.implied],
    }
