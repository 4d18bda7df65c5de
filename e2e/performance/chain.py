"""What the CNI plugins cost alone: the same chain as both runtimes run, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.performance.rivals import PLUGINS, Places

SPARE: Final = "benchfloor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The plugins of a network's configuration, run as CNI says and no more. Nothing is kept."""

    conflist: Path

    def add(self, container_id: str, netns: Path) -> object:
        """ADD of every plugin; returns the result, which the DEL needs."""
        result: object = None
        for plugin in self._plugins():
            answer = self._run("ADD", plugin, container_id, netns, result)
            result = answer if answer is not None else result
        return result

    def delete(self, container_id: str, netns: Path, result: object) -> None:
        """DEL of every plugin, last first."""
        for plugin in reversed(self._plugins()):
            self._run("DEL", plugin, container_id, netns, result)

    def _plugins(self) -> Sequence[dict[str, object]]:
        document = json.loads(self.conflist.read_text())
        common = {"name": document["name"], "cniVersion": document["cniVersion"]}
        return [{**plugin, **common} for plugin in document["plugins"]]

    def _run(
        self, verb: str, plugin: dict[str, object], container_id: str, netns: Path, result: object
    ) -> object:
        config = plugin if result is None else {**plugin, "prevResult": result}
        paths = [str(folder) for folder in PLUGINS]
        program = next(Path(p) / str(plugin["type"]) for p in paths if Path(p).is_dir())
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": ":".join(paths),
        }
        done = subprocess.run(
            [program],
            check=True,
            input=json.dumps(config).encode(),
            stdout=subprocess.PIPE,
            env=environment,
        )
        answer: object = json.loads(done.stdout) if done.stdout.strip() else None
        return answer


def chain_in(folder: Path, subnet: str) -> Chain:
    """A network as both runtimes have it, on a bridge of its own."""
    conflist = Places.conflist(folder, SPARE, subnet, folder / "floor-leases")
    return Chain(conflist=conflist)
