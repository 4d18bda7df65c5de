"""The command ``noderuntime``. Each subcommand is a file; it is imported when it is the one that runs.

Exit codes: 0, 1 for an error of ours (told in one sentence on stderr), 2 for wrong usage; ``explain``,
``plan`` and ``run`` have their own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import noderuntime
from noderuntime.cli.places import AGENT_SOCKET
from noderuntime.errors import NodeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    # argparse has no public name for it.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

CONFIG: Final = Path("/etc/noderuntime/config.toml")
SOCKET: Final = Path("/run/noderuntime/noderuntime.sock")
SOCKET_OF_THE_AGENT: Final = Path("/run/noderuntime") / AGENT_SOCKET
REVISION: Final = Path("/etc/noderuntime/current")
NAMESPACE: Final = "noderuntime-system"
HOSTS_DIR: Final = Path("/etc/noderuntime/certs.d")
RUN_STATE: Final = Path("/var/cache/noderuntime/run")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="noderuntime",
        description="A Kubernetes node runtime, declared in Git and enforced on every node.",
    )
    top.add_argument(
        "--version", action="version", version=f"noderuntime {noderuntime.__version__}"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_agent(commands)
    _add_status(commands)
    _add_explain(commands)
    _add_run(commands)
    _add_record(commands)
    _add_plan(commands)
    return top


def _add_serve(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="run the node's runtime; the kubelet talks to it")
    serve.add_argument(
        "--config", type=Path, default=CONFIG, metavar="FILE", help=f"settings (default {CONFIG})"
    )
    _add_log_level(serve)


def _add_agent(commands: Commands) -> None:
    agent = commands.add_parser("agent", help="bring the cluster's revision to this node's runtime")
    agent.add_argument(
        "--node-name",
        default=os.environ.get("NODE_NAME", ""),
        help="name of the Node (default: the variable NODE_NAME)",
    )
    agent.add_argument(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE", NAMESPACE),
        help=f"where revisions are (default: the variable POD_NAMESPACE, or {NAMESPACE})",
    )
    _add_socket(agent, SOCKET_OF_THE_AGENT)
    agent.add_argument(
        "--revision-file",
        type=Path,
        default=REVISION,
        metavar="FILE",
        help=f"file that the runtime serves (default {REVISION})",
    )
    _add_log_level(agent)


def _add_status(commands: Commands) -> None:
    status = commands.add_parser("status", help="what this node serves now")
    _add_socket(status, SOCKET)
    _add_output(status)
    status.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="wait for an answer so long"
    )


def _add_explain(commands: Commands) -> None:
    explain = commands.add_parser(
        "explain",
        help="what a profile says to a Pod; needs no cluster",
        description="What a SecurityProfile says to a Pod, field by field, and how config.json changes. "
        "Exit codes: 0 it would run, 3 it would be refused, 4 that depends on the image, 2 the files or "
        "the command line are wrong.",
    )
    explain.add_argument(
        "pod", metavar="POD.yaml", help="Pods, or what has a Pod's template; - is standard input"
    )
    _add_profiles(explain)
    explain.add_argument(
        "--user", default="", metavar="UID[:GID]", help="the image's user, as its passwd has it"
    )
    explain.add_argument(
        "--image-config", default="", metavar="FILE", help="the image's config (JSON)"
    )
    _add_output(explain)


def _add_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="run a Pod on this machine under a profile; needs no cluster",
        description="Runs a Pod once under a SecurityProfile, by a runtime that is started for it, shows "
        "what its containers write, and takes all of it away again but for the images. Ctrl-C stops the "
        "Pod with its grace period, a second one kills it. Exit codes: the first of a container's that "
        "is not 0, else 0; 3 the profile refuses the Pod, 2 the files or the command line are wrong, 1 "
        "something else is, 124 the time is up, 130 and 143 it was interrupted.",
    )
    _add_pod(run)
    _add_profiles(run)


def _add_record(commands: Commands) -> None:
    record = commands.add_parser(
        "record",
        help="run a Pod on this machine and write the least profile that it needs",
        description="Runs a Pod once, as `run` does, notes what it uses (system calls, capabilities, users, "
        "what it writes), and writes the least SecurityProfile under which the same works again. Use "
        "what is to work while it runs; Ctrl-C stops the Pod, and the profile is written. Exit codes: 0 "
        "it is written, but 3 the Pod is refused, 2 the files or the command line are wrong, 1 something "
        "else is; where a container failed by itself, its exit code.",
    )
    _add_pod(record)
    _add_namespace(record)
    record.add_argument(
        "-o",
        "--output",
        default="-",
        metavar="FILE",
        help="where the profile goes (default: stdout; what containers write goes to stderr then)",
    )
    record.add_argument(
        "--name", default="", metavar="NAME", help="of the profile (default: the Pod's)"
    )


def _add_pod(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "pod",
        metavar="POD.yaml",
        help="a Pod, or what has a Pod's template, with the ConfigMaps and Secrets that it uses; - is "
        "standard input",
    )
    run.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="stop the Pod after so long (default: never)",
    )
    run.add_argument(
        "--hosts-dir",
        type=Path,
        default=HOSTS_DIR,
        metavar="DIR",
        help=f"registry hosts, a certs.d (default {HOSTS_DIR})",
    )
    run.add_argument(
        "--state-dir",
        type=Path,
        default=RUN_STATE,
        metavar="DIR",
        help=f"where images are kept for the next run (default {RUN_STATE})",
    )


def _add_profiles(command: argparse.ArgumentParser) -> None:
    for name, required, what in (
        ("--profile", True, "SecurityProfiles, with those that they inherit from"),
        ("--node-runtime", False, "the NodeRuntime that the Pods run through"),
    ):
        command.add_argument(
            name,
            action="append",
            default=[],
            required=required,
            metavar="FILE",
            help=f"{what}; may be repeated",
        )
    command.add_argument(
        "--profile-name", default="", metavar="NAME", help="which profile, of several"
    )
    _add_namespace(command)


def _add_namespace(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--namespace", default="default", metavar="NAME", help="of Pods that name none"
    )


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="what a change in files does to the Pods of a cluster, before it is applied",
        description="Which running Pods would be refused or changed by the NodeRuntimes and "
        "SecurityProfiles of the files; what is not in them stays as it is in the cluster. Nothing is "
        "written. Exit codes: 0 no running Pod is touched, 3 one would be refused when it starts next, 4 "
        "none would, but one would run with another configuration, depends on its image or could not be "
        "judged, 2 the files or the command line are wrong, 1 the API server cannot be asked.",
    )
    plan.add_argument(
        "files",
        nargs="+",
        metavar="FILE|DIR",
        help="manifests; of a folder every .yaml, .yml and .json in it, but for names with a dot before "
        "them; other kinds are passed over; - is standard input",
    )
    for name, what, default in (
        ("--kubeconfig", "FILE", "$KUBECONFIG, ~/.kube/config, the Pod's account"),
        ("--context", "NAME", "the kubeconfig's current one"),
        ("--namespace", "NAME", "Pods of every namespace"),
    ):
        plan.add_argument(name, default="", metavar=what, help=f"default: {default}")
    plan.add_argument(
        "--system-namespace",
        default=NAMESPACE,
        metavar="NAME",
        help=f"where noderuntime itself is, which no default governs (default {NAMESPACE})",
    )
    plan.add_argument(
        "--prune",
        action="store_true",
        help="what the files lack is removed, as Argo CD and Flux do when told to prune",
    )
    _add_output(plan)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="default: text"
    )


def _add_socket(command: argparse.ArgumentParser, default: Path) -> None:
    command.add_argument(
        "--socket",
        type=Path,
        default=default,
        metavar="FILE",
        help=f"the runtime's socket (default {default})",
    )


def _add_log_level(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="default: info",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    # gRPC's own lines are not JSON, and tell of every client that goes away.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    command = importlib.import_module(f"noderuntime.cli.{options.command}")
    try:
        return int(command.main(options))
    except NodeRuntimeError as error:
        sys.stderr.write(f"noderuntime: {error}\n")
        for note in getattr(error, "__notes__", ()):
            sys.stderr.write(f"  {note}\n")
        return 1
