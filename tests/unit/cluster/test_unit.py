"""One place says how the runtime runs: the unit that users install."""

from __future__ import annotations

from pathlib import Path

from e2e.cluster import components, unit
from e2e.cluster.layout import Layout
from e2e.performance.groups import Group
from e2e.performance.rivals import Places, ours


def test_the_variables_of_a_unit_are_read_as_systemd_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "x.service"
    file.write_text('[Service]\nEnvironment=A=b=c "D=e f"\n# Environment=NO=1\nEnvironment=G=\n')
    assert unit.environment(file) == {"A": "b=c", "D": "e f", "G": ""}


def test_the_cluster_and_the_bench_run_the_runtime_as_its_unit_does(tmp_path: Path) -> None:
    said = unit.environment()
    assert said["GLIBC_TUNABLES"] == "glibc.malloc.tcache_count=0"
    in_cluster = components.runtime(Layout(Path("/repository")), tracing=True).environment
    assert said.items() <= in_cluster.items()
    places = Places(
        root=tmp_path,
        run=tmp_path,
        certs=tmp_path,
        bridge="b",
        subnet="10.0.0.0/24",
        oci_runtime=Path("/usr/bin/crun"),
        registry="127.0.0.1:1",
        containerd=tmp_path,
    )
    measured = ours(places, Group(daemon=tmp_path, pods="/pods")).environment
    assert said.items() <= measured.items()
