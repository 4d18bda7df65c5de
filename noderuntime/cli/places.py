"""The folders that belong to one runtime, and the lock that keeps a second one out.

Folders above a container's root are searchable by others (0711): with user namespaces the
container's root user is another user of the host, who must get through to the mount point.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from noderuntime.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from noderuntime.api.config import Config

FOLDER_MODE: Final = 0o711
LOCK: Final = "lock"
AGENT_SOCKET: Final = "agent/noderuntime.sock"  # below run_dir


def prepare(path: Path) -> None:
    """Make the folder if it is missing, with mode 0711. Raises ConfigError.

    A folder that another user owns or can write to is refused: what is in it is trusted.
    """
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is not a folder: move it away, or configure another one")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{path} can be written by others: chown it to UID {os.geteuid()} and chmod go-w it"
        )
    path.chmod(FOLDER_MODE)


@contextmanager
def only_one(config: Config) -> Generator[None]:
    """Prepare both folders and hold their locks within. Raises ConfigError, UnavailableError.

    The kernel lets go of the locks when the process ends, however it ends.
    """
    with ExitStack() as stack:
        for folder in sorted({config.state_dir, config.run_dir}):
            prepare(folder)
            stack.callback(os.close, _lock(folder / LOCK))
        yield


def _lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UnavailableError(
            f"another noderuntime uses {path.parent}: stop it first, or configure another folder"
        ) from error
    return descriptor
