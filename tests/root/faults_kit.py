"""A node whose programs are stand-ins: each does as a file beside it says, else what it is for."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from noderuntime.api.config import CniConfig, Config, HandlerConfig
from noderuntime.cli.parts import parts_of
from noderuntime.engine.engine import Engine
from noderuntime.host.monitor import Conmon
from tests.root.engine_kit import RealNode

if TYPE_CHECKING:
    from noderuntime.engine.node import Faults

REAL = {
    "bridge": "/usr/lib/cni/bridge",
    "host-local": "/usr/lib/cni/host-local",
    "crun": "/usr/bin/crun",
    "conmon": "/usr/bin/conmon",
}
# Hanging is opening a FIFO that nobody writes to: no child, which would outlive a killed shell.
STAND_IN = """#!/bin/sh
verb=$CNI_COMMAND
for word; do
    case $word in create|start|kill|state|delete|exec|update) verb=$word; break;; esac
done
[ ! -e {folder}/calls ] || echo "{name} $verb" >>{folder}/calls
fault={folder}/{name}.$verb
if [ -e "$fault" ]; then
    case $(cat "$fault") in
        hang) read -r _ <{folder}/fifo;;
        hang-after) {real} "$@"; read -r _ <{folder}/fifo;;
        die) kill -9 $$;;
        die-after) {real} "$@"; kill -9 $$;;
        die-within*)
            {real} "$@" <&0 &
            sleep "$(sed 's/die-within //' "$fault")"
            kill -9 $!; kill -9 $$;;
        garbage) printf '}}{{ \\377 not JSON'; exit 0;;
        fail) printf 'of its own\\n}}{{ \\377 words' >&2; exit 3;;
    esac
fi
exec {real} "$@"
"""
WITHIN = ("die-within 0", "die-within 0.002", "die-within 0.006")  # seconds
FAULTS = ("hang", "hang-after", "die", "die-after", "garbage", "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultyNode(RealNode):
    """A node on stand-ins for crun, conmon and the CNI plugins."""

    @property
    def programs(self) -> Path:
        return self.root / "programs"

    @property
    def config(self) -> Config:
        config = super(FaultyNode, self).config
        return config.model_copy(
            update={
                "handlers": {"crun": HandlerConfig(oci_runtime=self.programs / "crun")},
                "cni": CniConfig(conf_dir=self.root / "cni", bin_dirs=(self.programs,)),
            }
        )

    def engine(self, faults: Faults | None = None) -> Engine:
        if not self.programs.exists():
            self._write_programs()
        config = self.config
        config.run_dir.mkdir(parents=True, exist_ok=True)
        monitor = Conmon(
            self.programs / "conmon", config.run_dir / "containers", config.run_dir / "exits"
        )
        return Engine(replace(parts_of(config), monitor=monitor), faults=faults)

    def _write_programs(self) -> None:
        self.programs.mkdir()
        os.mkfifo(self.programs / "fifo")
        for name, real in REAL.items():
            program = self.programs / name
            program.write_text(STAND_IN.format(folder=self.programs, name=name, real=real))
            program.chmod(0o755)

    def kill_monitors(self) -> None:
        """SIGKILL every conmon of this node."""
        for file in (self.config.run_dir / "containers").glob("*/conmon.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def count_calls(self) -> None:
        """Write down from now on which program is started."""
        (self.programs / "calls").write_text("")

    def calls(self) -> list[str]:
        """Return each start since ``count_calls``: ``PROGRAM VERB``."""
        return (self.programs / "calls").read_text().splitlines()

    def fail(self, place: str, fault: str) -> None:
        """Let ``PROGRAM.VERB`` do as ``fault`` says; "" is what it is for."""
        file = self.programs / place
        if fault:
            file.write_text(fault)
        else:
            file.unlink()
