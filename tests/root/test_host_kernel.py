"""Namespaces and mounts on the real kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from noderuntime.errors import HostError, InvalidArgumentError
from noderuntime.host import mountinfo
from noderuntime.host.ports import NamespaceRequest
from tests.root.host_kit import Kit, kit_in


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async for one in kit_in("krn"):
        yield one


def inside(directory: Path, *argv: str) -> str:
    pins = [f"--{kind}={directory / kind}" for kind in ("net", "ipc", "uts")]
    return subprocess.run(
        ["nsenter", *pins, *argv], check=True, capture_output=True, text=True
    ).stdout


def namespace(kind: str) -> str:
    return str(Path(f"/proc/self/ns/{kind}").readlink())


def is_shared(target: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return "shared:" in next(line for line in lines if f" {target} " in line)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


ALL = NamespaceRequest(network=True, ipc=True, uts=True, hostname="pod-1")


async def test_namespaces_are_pinned_with_lo_hostname_and_sysctls(kit: Kit) -> None:
    directory = kit.root / "sandboxes" / "a" / "ns"
    ours = {kind: namespace(kind) for kind in ("net", "ipc", "uts")}
    hostname = os.uname().nodename
    request = NamespaceRequest(
        network=True,
        ipc=True,
        uts=True,
        hostname="pod-1",
        sysctls={
            "net.ipv4.ip_unprivileged_port_start": "80",
            "kernel.shm_rmid_forced": "1",
            "net/ipv4/conf/all/forwarding": "1",
        },
    )
    await kit.namespaces.create(directory, request)
    assert inside(directory, "hostname").strip() == "pod-1"
    assert "UP" in inside(directory, "ip", "link", "show", "lo")
    read = inside(directory, "sysctl", "-n", *(n.replace("/", ".") for n in request.sysctls))
    assert read.split() == ["80", "1", "1"]
    for kind, our in ours.items():
        assert inside(directory, "readlink", f"/proc/self/ns/{kind}").strip() != our
        assert namespace(kind) == our
    assert os.uname().nodename == hostname
    await kit.namespaces.remove(directory)
    await kit.namespaces.remove(directory)
    assert not directory.exists()


async def test_only_what_is_asked_for_is_made(kit: Kit) -> None:
    directory = kit.root / "ns"
    await kit.namespaces.create(directory, NamespaceRequest(network=False, ipc=True, uts=False))
    assert names(directory) == ["ipc"]
    await kit.namespaces.create(directory, ALL)  # again, as after a crash
    assert names(directory) == ["ipc", "net", "uts"]
    assert len([m for m in mountinfo.mounts() if m.target.parent == directory]) == 3
    await kit.namespaces.remove(directory)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kernel.core_pattern", id="of the node"),
        pytest.param("net/../kernel/core_pattern", id="climbing out"),
        pytest.param("kernel.shmmax", id="of a namespace that is not made"),
        pytest.param("", id="empty"),
    ],
)
async def test_a_sysctl_that_would_change_the_node_is_refused(kit: Kit, name: str) -> None:
    request = NamespaceRequest(network=True, ipc=False, uts=False, sysctls={name: "1"})
    with pytest.raises(InvalidArgumentError, match="sysctl"):
        await kit.namespaces.create(kit.root / "ns", request)
    assert not (kit.root / "ns").exists()


async def test_a_sysctl_that_fails_leaves_nothing(kit: Kit) -> None:
    request = NamespaceRequest(
        network=True, ipc=False, uts=False, sysctls={"net.ipv4.no_such_thing": "1"}
    )
    with pytest.raises(HostError, match=r"sysctl net\.ipv4\.no_such_thing = '1': no such file"):
        await kit.namespaces.create(kit.root / "ns", request)
    assert not (kit.root / "ns").exists()


async def test_the_root_is_private_and_prepared_once(kit: Kit) -> None:
    await kit.namespaces.prepare(kit.root)
    assert len([m for m in mountinfo.mounts() if m.target == kit.root]) == 1
    assert not is_shared(kit.root)


def layers(base: Path, count: int, length: int = 1) -> list[Path]:
    found: list[Path] = []
    for number in range(count):
        layer = base / (f"{number:04}" + "x" * length)
        layer.mkdir(parents=True)
        (layer / "which").write_text(str(number))
        (layer / f"only-{number}").touch()
        found.append(layer)
    return found


@pytest.mark.parametrize(
    ("count", "length"),
    [
        pytest.param(1, 1, id="one layer"),
        pytest.param(127, 64, id="127 layers with long names"),
        pytest.param(3, 200, id="long names"),
    ],
)
async def test_an_overlay_shows_all_its_layers(kit: Kit, count: int, length: int) -> None:
    lowers = layers(kit.root / "layers", count, length)
    upper, work, target = (kit.root / name for name in ("upper", "work", "merged"))
    await kit.mounts.overlay(lowers, upper, work, target)
    assert (target / "which").read_text() == "0"
    assert (target / f"only-{count - 1}").exists()
    (target / "new").write_text("x")
    assert (upper / "new").read_text() == "x"
    await kit.mounts.unmount(target)
    await kit.mounts.overlay(lowers, upper, work, target)  # the same folders again
    assert (target / "new").read_text() == "x"
    await kit.mounts.unmount(target)
    await kit.mounts.unmount(target)
    assert names(target) == []


async def test_an_overlay_takes_names_that_overlayfs_reads_as_its_own(kit: Kit) -> None:
    odd = kit.root / "a:b,c\\d"
    lowers = layers(odd, 2)
    await kit.mounts.overlay(lowers, odd / "upper", odd / "work", odd / "merged")
    assert (odd / "merged" / "only-1").exists()
    await kit.mounts.unmount(odd / "merged")


async def test_more_layers_than_the_kernel_takes_are_refused(kit: Kit) -> None:
    with pytest.raises(InvalidArgumentError, match="1 to 127 layers and was given 128"):
        await kit.mounts.overlay([kit.root] * 128, kit.root, kit.root, kit.root / "merged")


async def test_a_missing_layer_is_named(kit: Kit) -> None:
    missing = kit.root / "missing"
    with pytest.raises(HostError, match=r"mount of overlay on .*merged: no such file"):
        await kit.mounts.overlay([missing], kit.root / "u", kit.root / "w", kit.root / "merged")


async def test_mounts_below_a_path_are_found_by_any_name(kit: Kit) -> None:
    for name in ("plain", "with space", "tab\tand\\backslash", "new\nline", "hash#"):
        target = kit.root / name / "deep"
        await kit.mounts.tmpfs(target, size_bytes=65536, mode=0o700)
        assert [m.target for m in mountinfo.mounts_at(kit.root / name)] == [target]
        assert mountinfo.mounts_at(kit.root / name[:-1]) == ()  # a part of a name is not a folder
        await kit.mounts.unmount(kit.root / name)
        assert mountinfo.mounts_at(kit.root / name) == ()


async def test_unmount_takes_what_is_below_and_busy(kit: Kit) -> None:
    target = kit.root / "a" / "b c"
    await kit.mounts.tmpfs(target, size_bytes=65536, mode=0o1777)
    await kit.mounts.tmpfs(target, size_bytes=65536, mode=0o1777)
    assert target.stat().st_mode & 0o7777 == 0o1777
    await kit.mounts.tmpfs(target / "deep", size_bytes=65536, mode=0o700)
    with (target / "deep" / "busy").open("w"):
        await kit.mounts.unmount(kit.root / "a")
        assert not [m for m in mountinfo.mounts() if m.target.is_relative_to(kit.root / "a")]
    await kit.mounts.unmount(kit.root / "a")
    await kit.mounts.unmount(kit.root / "never" / "there")
