"""``python -m e2e.cluster``: up, down, status, build, image, census."""

from __future__ import annotations

import argparse
import sys
import time

from e2e.cluster import build, census, debian, health, preflight, report
from e2e.cluster.down import down
from e2e.cluster.image import oci, recipes
from e2e.cluster.image.push import push
from e2e.cluster.layout import REGISTRY, Layout, this_layout
from e2e.cluster.state import ClusterError, State, locked
from e2e.cluster.up import Wanted, up


def main() -> int:
    """Returns the exit status: 0, or 1 with one message on stderr."""
    arguments = _parser().parse_args()
    layout = this_layout()
    try:
        arguments.act(layout, arguments)
    except ClusterError as error:
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        print(f"error: {error}{notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cut off; `make down` removes what was made", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("up", help="a one-node cluster, running")
    one.add_argument("--tracing", action="store_true", help="traces go to .cluster/data")
    one.add_argument("--no-examples", action="store_true", help="without examples/")
    one.add_argument("--until", default="", metavar="STAGE", help="the last stage to run")
    one.set_defaults(act=_up)
    for name, act, text in (
        ("down", _down, "nothing of it left"),
        ("status", _status, "what runs"),
        ("build", _build, "the programs, without starting any"),
        ("image", _image, "build the images; push them if the registry runs"),
        ("census", _census, "what is on this machine, as JSON"),
    ):
        commands.add_parser(name, help=text).set_defaults(act=act)
    return parser


def _up(layout: Layout, arguments: argparse.Namespace) -> None:
    begun = time.monotonic()
    with locked(layout.root):
        state = State(layout.state)
        wanted = Wanted(
            tracing=arguments.tracing or bool(state.facts.get("tracing")),
            examples=not arguments.no_examples,
            until=arguments.until,
        )
        changed = up(layout, state, wanted)
    took = time.monotonic() - begun
    print(f"\n{'up' if changed else 'up already'}, {took:.1f} s\n")
    if not arguments.until:
        print(report.summary(layout))
        print(report.next_steps(layout))


def _down(layout: Layout, _arguments: argparse.Namespace) -> None:
    begun = time.monotonic()
    with locked(layout.root):
        down(layout, State(layout.state))
    print(f"down, {time.monotonic() - begun:.1f} s")


def _status(layout: Layout, _arguments: argparse.Namespace) -> None:
    print(report.status(layout, State(layout.state)))


def _build(layout: Layout, _arguments: argparse.Namespace) -> None:
    problems = preflight.build_problems(layout)
    if problems:
        raise ClusterError("\n".join(problems))
    debian.unpack_programs(layout)
    for module in (build.ETCD, build.KUBERNETES, build.COLLECTOR, build.CRITOOLS, build.NNP):
        build.build_go(layout, module, print)
    build.fetch_clients(layout)


def _image(layout: Layout, _arguments: argparse.Namespace) -> None:
    registry_runs = (layout.pki / "ca.crt").exists() and bool(preflight.holder_of(5000))
    build.build_go(layout, build.KUBERNETES, print)
    for recipe in recipes.RECIPES:
        folder, _ = recipes.build(layout, recipe)
        digest, manifest = oci.read_manifest(folder)
        size = sum(blob["size"] for blob in manifest["layers"]) / 1e6
        print(f"{recipe.name}:{recipe.tag} {digest} {size:.1f} MB {folder}")
        if registry_runs:
            push(folder, REGISTRY, recipe.name, recipe.tag, health.context(layout, None))


def _census(_layout: Layout, _arguments: argparse.Namespace) -> None:
    print(census.to_json(census.take()))


if __name__ == "__main__":
    sys.exit(main())
