"""``noderuntime record``: Redis, nginx and MariaDB work as well under the profile that it writes.

Each is recorded under load, then run with the profile in Enforce under the same load. No cluster.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from e2e.cluster.cgroups import with_hugetlb
from e2e.cluster.layout import Layout
from e2e.framework import servers
from e2e.framework.servers import SERVERS, Server
from e2e.framework.waiting import wait_for
from e2e.performance.registry import Registry

START_S: Final = 60.0
# What would let a container out, or is simply nothing that a server does.
_NEVER: Final = frozenset(
    {"mount", "ptrace", "unshare", "setns", "bpf", "mknodat", "chroot", "reboot"}
)
_CAPABILITIES: Final[Mapping[str, frozenset[str]]] = {
    "redis": frozenset(),
    "nginx": frozenset({"CHOWN", "NET_BIND_SERVICE", "SETGID", "SETUID"}),
    "mariadb": frozenset(),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A registry with the servers' images, and this command."""

    folder: Path
    registry: str

    def command(self, verb: str, pod: Path, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "noderuntime", verb, str(pod), *more),
            *("--hosts-dir", str(self.folder / "certs.d")),
            *("--state-dir", str(self.folder / "state")),
        ]

    def pod(self, name: str, document: Mapping[str, object]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(document))
        return path

    @contextmanager
    def running(
        self, server: Server, port: int, *command: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The command, from when its server answers until it has ended."""
        log = self.folder / f"{server.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:

            def answers() -> bool:
                if process.poll() is not None:
                    raise RuntimeError(log.read_text())
                return _answers(server, port)

            wait_for(f"{server.name} to answer", answers, START_S)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            if process.poll() is None:
                process.kill()
                process.wait()
            print(log.read_text()[-3000:])


def _answers(server: Server, port: int) -> bool:
    """Whether the server itself answers: the host's port is there before it."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            if server.name != "mariadb":
                connection.sendall(b"PING\r\n\r\n")
            return bool(connection.recv(1))
    except OSError:
        return False


@pytest.fixture(scope="module")
def machine(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("record")
    registry = Registry(servers.images(layout))
    hosts = folder / "certs.d" / registry.address
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "http://{registry.address}"\n')
    with with_hugetlb(layout):
        yield Machine(folder, registry.address)
    registry.close()


def manifest(machine: Machine, server: Server, port: int, **container: object) -> dict[str, Any]:
    """A Pod as its author would write it, without any thought of security."""
    folders = {
        "redis": ["/data"],
        "nginx": ["/run", "/var/lib/nginx"],
        "mariadb": ["/var/lib/mysql", "/tmp"],
    }[server.name]
    mounts = [{"name": f"v{n}", "mountPath": path} for n, path in enumerate(folders)]
    image = f"{machine.registry}/{server.name}:e2e"
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": 10,
        "volumes": [{"name": mount["name"], "emptyDir": {}} for mount in mounts],
        "containers": [
            {
                "name": server.name,
                "image": image,
                "ports": [{"containerPort": server.port, "hostPort": port}],
                "volumeMounts": mounts,
                **container,
            }
        ],
    }
    if server.name == "mariadb":
        first = {"name": "bootstrap", "image": image, "command": ["sh", "/bootstrap"]}
        spec["initContainers"] = [{**first, "volumeMounts": mounts}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": server.name}, "spec": spec}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_server_works_under_the_profile_that_was_recorded(
    machine: Machine, server: Server
) -> None:
    port = free_port()
    pod = machine.pod(server.name, manifest(machine, server, port))
    profile = machine.folder / f"{server.name}-profile.yaml"
    recording = machine.command("record", pod, "-o", str(profile))
    with machine.running(server, port, *recording) as process:
        server.load(port)
    assert process.returncode == 0

    spec = yaml.safe_load(profile.read_text())["spec"]
    calls = {name for group in spec["seccomp"]["allow"] for name in group["names"]}
    assert spec["seccomp"]["base"] == "DenyAll"
    assert not calls & _NEVER
    assert {"execve", "openat", "accept4"} & calls
    assert set(spec["capabilities"]["default"]) == _CAPABILITIES[server.name]
    assert spec["noNewPrivileges"] == "Required"
    assert spec["rootFilesystem"] == "ReadOnly"
    assert {each["min"] for each in spec["runAs"]["users"]} == {server.uid}

    enforced = machine.command("run", pod, "--profile", str(profile))
    with machine.running(server, port, *enforced) as process:
        server.load(port)
    assert process.returncode == 128 + signal.SIGINT

    explained = ["explain", str(pod), "--profile", str(profile), "--user", f"{server.uid}:0"]
    assert (
        subprocess.run([sys.executable, "-m", "noderuntime", *explained], check=False).returncode
        == 0
    )
    if server.name != "redis":
        _refuses_what_was_not_recorded(machine, server, pod, profile)


def _refuses_what_was_not_recorded(
    machine: Machine, server: Server, pod: Path, profile: Path
) -> None:
    """A FIFO can be made where no profile is, and not under the server's."""
    script = "mkfifo /dev/shm/pipe && echo made"
    other = json.loads(pod.read_text())
    del other["spec"]["containers"][0]["ports"]
    other["spec"].pop("initContainers", None)
    other["spec"]["containers"][0]["command"] = ["sh", "-c", script]
    path = machine.pod(f"{server.name}-fifo", other)
    done = subprocess.run(
        machine.command("run", path, "--profile", str(profile)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "mkfifo: /dev/shm/pipe: Operation not permitted" in done.stderr
