"""The files of a change: those that are named, and of a folder every manifest in it.

Names that begin with a dot are passed over in folders: what is in ``.git`` and ``.github`` is no
manifest. Links to folders are not followed, so no loop is walked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from noderuntime.cli.manifest.files import content
from noderuntime.errors import ConfigError

SUFFIXES: Final = (".yaml", ".yml", ".json")
MOST_BYTES: Final = 64 << 20
MOST_FILES: Final = 10_000


def read(names: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of every file, by its name; ``-`` is standard input. Raises ConfigError.

    Of a file that is too large there is one byte more than a file may have, which its parser tells.
    """
    found: dict[str, bytes] = {}
    total = 0
    for name in names:
        for file in _files(name):
            shown = "standard input" if file == "-" else file
            found[shown] = content(file)
            total += len(found[shown])
            if total > MOST_BYTES or len(found) > MOST_FILES:
                raise ConfigError(
                    f"{name}: the files are more than {MOST_FILES}, or together larger than "
                    f"{MOST_BYTES >> 20} MiB; name the folder of the manifests alone"
                )
    return found


def _files(name: str) -> Iterator[str]:
    if name == "-" or not Path(name).is_dir():
        yield name
        return

    def fail(error: OSError) -> None:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(name, onerror=fail):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            path = Path(folder) / file
            if file.endswith(SUFFIXES) and not file.startswith(".") and path.is_file():
                yield str(path)
