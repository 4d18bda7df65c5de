"""``python -m e2e.performance [--short] [--oci-runtime runc]``: what ``make bench`` runs. Must be root.

Nothing of a run stays: it happens in namespaces that end with it, and the census of the machine is
taken before and after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from e2e.cluster import census, cgroups
from e2e.cluster.layout import this_layout
from e2e.performance import build, groups, page, policy, table
from e2e.performance.figures import Samples
from e2e.performance.rivals import REPOSITORY

SHOWN: Final = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="few rounds: two minutes")
    parser.add_argument("--oci-runtime", default="crun", help="of both sides: crun or runc")
    parser.add_argument("--docs", type=Path, default=REPOSITORY / "docs", help="where the page is")
    parser.add_argument(
        "--built-in", action="store_true", help="also rows with our own network, without CNI"
    )
    parser.add_argument("--dry-run", action="store_true", help="write no page")
    parser.add_argument(
        "--others", default="", help="pattern of what other programs make meanwhile"
    )
    options = parser.parse_args()
    layout = this_layout()
    build.build(layout, lambda text: print(f"bench: {text}", file=sys.stderr))
    oci_runtime = page.which(options.oci_runtime)
    mode = "short" if options.short else "full"
    before = census.take()
    samples = measured(oci_runtime, layout.bin, mode, built_in=options.built_in)
    left = census.differences(before, census.take(), options.others)
    figures = page.Figures(
        rows=table.rows(samples),
        built_in=table.built_in_rows(samples),
        floor=table.floor_steps(samples),
        plugins=table.plugins_text(samples),
        policy=policy.measure().sentence(),
    )
    print(page.as_text(figures.rows))
    for step, taken in figures.floor.items():
        print(f"floor: {step} {taken:.1f} ms")
    print(figures.plugins)
    print(figures.policy)
    if figures.built_in:
        print(f"built-in network:\n{page.as_text(figures.built_in)}")
    if not options.dry_run:
        page.write(options.docs, page.describe(mode, oci_runtime), figures)
    if left:
        lines = census.as_text(left).splitlines()
        more = f"\n  and {len(lines) - SHOWN} more lines" if len(lines) > SHOWN else ""
        told = "\n".join(lines[:SHOWN]) + more
        print(f"bench: the machine is not as it was:\n{told}", file=sys.stderr)
    return 1 if left else 0


def measured(oci_runtime: Path, binaries: Path, mode: str, *, built_in: bool) -> Samples:
    """Run it in namespaces of its own, and take away what they do not: files and cgroups."""
    with tempfile.TemporaryDirectory(prefix="nr-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        argv = (
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *(sys.executable, "-m", "e2e.performance.inside"),
            *(name, folder.name, str(oci_runtime), str(binaries), mode),
            *(["built-in"] if built_in else []),
        )
        with cgroups.with_hugetlb(this_layout()), folder_of_plugins():
            try:
                subprocess.run(argv, check=True, cwd=REPOSITORY)
            finally:
                groups.remove(folder.name)
        return Samples(json.loads((folder / "samples.json").read_text()))


@contextmanager
def folder_of_plugins() -> Generator[None]:
    """A place for the mount of the run's own /var/lib/cni; gone after, if it was not there before."""
    place = Path("/var/lib/cni")
    is_ours = not place.exists()
    place.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if is_ours:
            place.rmdir()


if __name__ == "__main__":
    sys.exit(main())
