"""crictl pointed at a socket: a CRI client that is not ours.

Built once from ``e2e/cluster/tools/critools`` into ``.cluster/bin``; ``NR_CRICTL`` names another.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.build import CRITOOLS, build_go
from e2e.cluster.layout import Layout

ROOT = Path(__file__).resolve().parents[2]
CRICTL = Path(os.environ.get("NR_CRICTL", ROOT / ".cluster/bin/crictl")).resolve()


def build() -> None:
    """Build crictl where it is not there yet; a minute with a cold Go cache."""
    if "NR_CRICTL" not in os.environ:
        build_go(Layout(ROOT), CRITOOLS, lambda _: None)


@dataclass
class Crictl:
    """Runs crictl against ``socket``; its files are in ``folder``."""

    socket: Path
    folder: Path

    @property
    def config(self) -> Path:
        path = self.folder / "crictl.yaml"
        path.write_text(f"runtime-endpoint: unix://{self.socket}\ntimeout: 60\n")
        return path

    async def run(self, *words: str, stdin: bytes | None = None, wanted: int = 0) -> str:
        """Return both outputs of a command that ends with ``wanted``."""
        process = await self.start(*words, stdin=stdin is not None)
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin)
        text = out.decode() + err.decode()
        assert process.returncode == wanted, text
        return text

    async def start(
        self, *words: str, stdin: bool = True, stdout: int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(CRICTL),
            f"--config={self.config}",
            *words,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"},
        )

    async def on_terminal(self, words: str, *, rows: int, columns: int) -> str:
        """Run crictl on a terminal of a size; return what it showed."""
        command = f"stty rows {rows} cols {columns}; {CRICTL} --config={self.config} {words}"
        process = await asyncio.create_subprocess_exec(
            *("script", "-qefc", command, "/dev/null"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            out = await process.stdout.read()
            await process.wait()
        return out.decode()
