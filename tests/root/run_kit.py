"""The command ``noderuntime run`` on a folder of a test's own, and a census of what it leaves."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from noderuntime.cli.running.places import RUN
from noderuntime.host.cgroups import hierarchies
from tests.fakes.registry import FakeRegistry, File, build_image, folder
from tests.root.engine_kit import BUSYBOX, SETTLE_S
from tests.root.mounts_kit import mounts_below

ROOT = Path(__file__).parents[2]
APPLETS = ("sh", "sleep", "cat", "id", "ls", "nc", "ip", "tr", "touch", "cp", "chmod", "mkfifo")
# Of what a place has after a run: the images, and empty folders of the runtime.
KEPT = re.compile(r"^(state(/(lock|images.*|snapshots|sandboxes|containers|intents|network))?)?$")


@dataclass
class Scene:
    """A folder with a profile, a registry with an image, and the command."""

    folder: Path
    registry: FakeRegistry
    image: str
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    before: set[str] = field(default_factory=set)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def profile(self, **spec: object) -> Path:
        path = self.folder / "profile.yaml"
        body = {"apiVersion": "noderuntime.io/v1alpha1", "kind": "SecurityProfile"}
        path.write_text(yaml.safe_dump({**body, "metadata": {"name": "web"}, "spec": spec}))
        return path

    def container(self, script: str, name: str = "app", **more: object) -> dict[str, object]:
        command = ["/bin/sh", "-c", script, f"nr-run-{self.token}"]
        return {"name": name, "image": self.image, "command": command, **more}

    def pod(self, *containers: dict[str, object], **spec: object) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{self.token}"},
            "spec": {"terminationGracePeriodSeconds": 20, "containers": list(containers), **spec},
        }

    def start(
        self, *documents: dict[str, object], more: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start the command on a file with these documents."""
        profile = self.folder / "profile.yaml"
        if not profile.exists():
            self.profile()
        return self.start_verb("run", *documents, more=("--profile", str(profile), *more))

    def start_verb(
        self, verb: str, *documents: dict[str, object], more: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start ``run``, or what is like it."""
        path = self.folder / f"pod-{len(self.started)}.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        words = (verb, str(path), "--state-dir", str(self.state), *more)
        process = subprocess.Popen(
            (sys.executable, "-m", "noderuntime", *words),
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(
        self, *documents: dict[str, object], more: tuple[str, ...] = ()
    ) -> tuple[int, str, str]:
        """Run the command to its end: exit code, stdout, stderr."""
        return ended(self.start(*documents, more=more))

    def traces(self) -> set[str]:
        """Return everything of a run that is there now; what runs of others hold is left out."""
        found = {f"file {path}" for path in RUN.glob("*")}
        found |= {f"link {path.name}" for path in Path("/sys/class/net").glob("nrrun*")}
        for mount in set(hierarchies().values()):
            found |= {f"cgroup {path}" for path in mount.glob("noderuntime_run_*")}
        found |= {f"mount {point}" for point in (*mounts_below(self.state), *mounts_below(RUN))}
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"nr-run-{self.token}" in line or str(self.state) in line:
                    found.add(f"process {entry.parent.name} {line}")
        for above, folders, files in os.walk(self.state):  # what goes meanwhile is passed over
            for path in (Path(above, name) for name in (*folders, *files)):
                name = path.relative_to(self.state).as_posix().partition("/")[2]
                if not KEPT.match(name):
                    found.add(f"file {path}")
        held = [f"({n}|nrrun{n}|noderuntime_run_{n}|{n}\\.lock)" for n in held_places()]
        others = re.compile(rf"^(file|link|cgroup|mount) (.*/)?({'|'.join(held)})(/.*)?$")
        return {each for each in found if not held or not others.match(each)}

    def left(self) -> set[str]:
        """Return what is there still after a while, and was not before."""
        until = time.monotonic() + SETTLE_S
        while (found := self.traces() - self.before) and time.monotonic() < until:
            time.sleep(0.05)
        return found


@contextmanager
def busybox_registry() -> Generator[tuple[FakeRegistry, str]]:
    """A registry, and the name of an image there with busybox."""
    files = [folder(name) for name in ("bin", "etc", "proc", "sys", "dev")]
    files += [folder("tmp", 0o1777), File("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)]
    files += [File(f"bin/{name}", kind=tarfile.SYMTYPE, link="busybox") for name in APPLETS]
    fake = FakeRegistry()
    with fake.running():
        image = build_image(files, config={"Cmd": ["sh"], "Env": ["PATH=/bin"], "User": "1000"})
        yield fake, fake.add("team/busybox", "1", image)


@contextmanager
def scene_of(registry: tuple[FakeRegistry, str], folder_: Path) -> Generator[Scene]:
    """A scene, at the end of which nothing may be left."""
    one = Scene(folder=folder_, registry=registry[0], image=registry[1])
    one.before = one.traces()
    yield one
    for process in one.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            ended(process)
        else:
            process.communicate()
    assert one.left() == set()


def held_places() -> list[int]:
    """Return the places that a run holds now."""
    found: list[int] = []
    for path in RUN.glob("*.lock"):
        with suppress(FileNotFoundError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                found.append(int(path.stem))
    return found


def ended(process: subprocess.Popen[bytes], timeout_s: float = 90) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out.decode(), err.decode()


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()
