"""Debian packages: those the host needs, and those whose files are taken without installing them.

Programs that only the cluster uses (the registry, the CNI plugins) and the files of images
are unpacked from fetched packages, so that no service starts, no user is made and nothing of them
is left. What must be on the host (crun, conmon, nftables, …) is installed if it is missing and
purged by ``down`` if ``up`` installed it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster import processes
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, Entry, State

# Program that must be found → the package that has it.
HOST: Final = {
    "crun": "crun",
    "conmon": "conmon",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "mount": "mount",
    "nice": "coreutils",
}
HOST_LIBRARIES: Final = {"libseccomp.so.2": "libseccomp2"}
# Package → the files that are taken out of it, into .cluster/bin or .cluster/cni/bin.
UNPACKED: Final = {
    "docker-registry": ("usr/bin/docker-registry",),
    "prometheus": ("usr/bin/promtool",),
}
PLUGINS: Final = "containernetworking-plugins"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGES: Final = "Created-By: Packages"
_QUIET: Final = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}


def _options(layout: Layout) -> list[str]:
    """Apt's own caches go to .cluster; its lists too, when the host has none of use."""
    apt = layout.root / "apt"
    for folder in ("cache/archives/partial", "lists/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    pairs = ["APT::Sandbox::User=root", f"Dir::Cache={apt / 'cache'}"]
    if (apt / "updated").exists():
        pairs.append(f"Dir::State::lists={apt / 'lists'}")
    return [word for pair in pairs for word in ("-o", pair)]


def _know(layout: Layout, names: Sequence[str]) -> None:
    """Fetch the lists of packages, into .cluster, when the host's do not know a name."""
    missing = _without_candidate(layout, names)
    if not missing:
        return
    apt = layout.root / "apt"
    apt.mkdir(exist_ok=True)
    (apt / "updated").touch()
    processes.run(
        ["apt-get", *_options(layout), "-qq", "update"], layout, timeout_s=300, environment=_QUIET
    )
    missing = _without_candidate(layout, names)
    if missing:
        raise ClusterError(
            f"apt knows no package {', '.join(missing)}: on Ubuntu enable 'universe', else look "
            "at /etc/apt/sources.list"
        )


def _without_candidate(layout: Layout, names: Sequence[str]) -> list[str]:
    text = processes.run(
        ["apt-cache", *_options(layout), "policy", *names], layout, environment=_QUIET
    )
    known = {
        match[1] for match in re.finditer(r"(?m)^(\S+?):\n.*\n  Candidate: (?!\(none\))", text)
    }
    return [name for name in names if name not in known]


@dataclass(frozen=True, slots=True)
class Archive:
    """One of Debian's archives as this machine's apt knows it."""

    place: str  # URI
    suite: str  # e.g. bookworm-updates

    def line(self) -> str:
        """As a line of a sources.list."""
        return f"deb [signed-by={KEYRING}] {self.place} {self.suite} main"


def archives(layout: Layout) -> tuple[Archive, ...]:
    """Debian's archives of this machine's release, the release itself first."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    text = processes.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", _PACKAGES],
        layout,
        environment=_QUIET,
    )
    lines = [line.split() for line in text.splitlines() if line.endswith(" main")]
    suites = (codename, f"{codename}-updates", f"{codename}-security")
    found = [Archive(line[0], line[1]) for suite in suites for line in lines if line[1] == suite]
    if not KEYRING.exists() or not found or found[0].suite != codename:
        raise ClusterError("this machine's apt knows no archive of Debian: look at /etc/apt")
    return tuple(dict.fromkeys(found))


def fetch(layout: Layout, names: Sequence[str]) -> list[Path]:
    """The packages' files, from .cluster/debs or from Debian; one a name, in that order."""
    layout.debs.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not _fetched(layout, name)]
    if missing:
        _know(layout, missing)
        done = subprocess.run(
            ["apt-get", *_options(layout), "-qq", "download", *missing],
            cwd=layout.debs,
            env=layout.environment() | _QUIET,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"cannot download {', '.join(missing)}: {done.stderr.strip()}")
    found = [_fetched(layout, name) for name in names]
    return [path for path in found if path is not None]


def _fetched(layout: Layout, name: str) -> Path | None:
    # The newest of those that are there; a package's name ends at the first underscore.
    there = sorted(layout.debs.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    return there[-1] if there else None


def unpack(layout: Layout, package: Path, into: Path) -> None:
    """A package's files below a folder; no script of it is run."""
    into.mkdir(parents=True, exist_ok=True)
    processes.run(["dpkg-deb", "--extract", str(package), str(into)], layout)


def unpack_programs(layout: Layout) -> bool:
    """The registry, promtool and the CNI plugins into .cluster; True if any was missing."""
    plugins = layout.cni / "bin"
    wanted = [layout.bin / Path(file).name for files in UNPACKED.values() for file in files]
    if all(path.exists() for path in (*wanted, plugins / "bridge")):
        return False
    scratch = layout.root / "unpacked"
    shutil.rmtree(scratch, ignore_errors=True)
    names = [*UNPACKED, PLUGINS]
    for name, package in zip(names, fetch(layout, names), strict=True):
        unpack(layout, package, scratch / name)
    layout.bin.mkdir(parents=True, exist_ok=True)
    for name, files in UNPACKED.items():
        for file in files:
            (scratch / name / file).replace(layout.bin / Path(file).name)
    plugins.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(plugins, ignore_errors=True)
    (scratch / PLUGINS / "usr/lib/cni").replace(plugins)
    shutil.rmtree(scratch)
    return True


def missing_on_host(layout: Layout) -> list[str]:
    """The packages that the host lacks."""
    path = layout.environment()["PATH"]
    missing = {package for program, package in HOST.items() if not shutil.which(program, path=path)}
    cache = processes.run(["/sbin/ldconfig", "-p"], layout)
    missing.update(package for library, package in HOST_LIBRARIES.items() if library not in cache)
    return sorted(missing)


def install(layout: Layout, state: State) -> bool:
    """Install what the host lacks, written down by name first; True if something was installed."""
    missing = missing_on_host(layout)
    if missing:
        _install(layout, state, missing)
    return bool(missing)


@contextmanager
def borrowed(layout: Layout, state: State, programs: Mapping[str, str]) -> Iterator[None]:
    """Have programs (name → package) on the host for as long as this lasts.

    What an earlier loan that was cut off has left is taken away too.
    """
    path = layout.environment()["PATH"]
    missing = [p for name, p in programs.items() if not shutil.which(name, path=path)]
    try:
        if missing:
            _install(layout, state, missing)
        yield
    finally:
        while entry := state.find("packages"):
            purge(layout, entry)
            state.forget(entry)


def _install(layout: Layout, state: State, missing: Sequence[str]) -> None:
    _know(layout, missing)
    argv = ["apt-get", *_options(layout), "-qq", "--no-install-recommends", "-y"]
    plan = processes.run([*argv, "--simulate", "install", *missing], layout, environment=_QUIET)
    state.record("packages", names=re.findall(r"(?m)^Inst (\S+)", plan))
    processes.run([*argv, "install", *missing], layout, timeout_s=600, environment=_QUIET)


def purge(layout: Layout, entry: Entry) -> None:
    """Purge what was installed, unless something else has come to need it."""
    installed = [name for name in entry["names"] if _is_installed(layout, name)]
    if not installed:
        return
    argv = ["apt-get", *_options(layout), "-qq", "-y"]
    plan = processes.run([*argv, "--simulate", "purge", *installed], layout, environment=_QUIET)
    others = set(re.findall(r"(?m)^Purg (\S+)", plan)) - set(installed)
    if others:
        print(f"left installed, because {', '.join(sorted(others))} need them: {installed}")
        return
    processes.run([*argv, "purge", *installed], layout, timeout_s=600, environment=_QUIET)


def _is_installed(layout: Layout, name: str) -> bool:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", name],
        capture_output=True,
        text=True,
        env=os.environ | _QUIET,
        check=False,
    )
    return done.returncode == 0 and not done.stdout.startswith("un")
