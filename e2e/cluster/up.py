"""``up``: from a bare machine to a Pod that runs under a profile. The order is in `stages_of`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster import (
    build,
    certs,
    cgroups,
    components,
    debian,
    deploy,
    health,
    network,
    preflight,
    processes,
)
from e2e.cluster.layout import (
    COLLECTOR,
    ETCD_PORT,
    REGISTRY,
    RUNTIME_ETC,
    RUNTIME_RUN,
    RUNTIME_SOCKET,
    RUNTIME_STATE,
    Layout,
)
from e2e.cluster.processes import Command
from e2e.cluster.progress import Progress
from e2e.cluster.stages import Stage, run_stages
from e2e.cluster.state import ClusterError, State

# Places of the kubelet that no flag moves: /var/lib/kubelet (device plugins), /var/log/containers.
KUBELET_FIXED: Final = Path("/var/lib/kubelet")
POD_LOG_LINKS: Final = Path("/var/log/containers")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller asked of ``up``."""

    tracing: bool = False
    examples: bool = True
    until: str = ""  # the last stage to run; empty: all


def up(layout: Layout, state: State, wanted: Wanted) -> bool:
    """Bring the cluster up; True if anything was changed. Raises ClusterError."""
    preflight.check(layout, state)
    make = _Up(layout, state, wanted)
    stages = make.stages()
    if wanted.until:
        stages = _up_to(stages, wanted.until)
    progress = Progress(
        {stage.name: stage.needs for stage in stages},
        {stage.name: stage.expected_s for stage in stages},
        layout.timings,
    )
    make.progress = progress
    try:
        return run_stages(stages, progress)
    finally:
        progress.close()


def _up_to(stages: list[Stage], last: str) -> list[Stage]:
    """The stage and all that it needs; raises ClusterError if there is no such stage."""
    needs = {stage.name: stage.needs for stage in stages}
    if last not in needs:
        raise ClusterError(f"there is no stage {last!r}; there are {', '.join(needs)}")
    wanted: set[str] = set()
    left = [last]
    while left:
        name = left.pop()
        wanted.add(name)
        left += needs[name]
    return [stage for stage in stages if stage.name in wanted]


class _Up:
    """The stages, over one layout and state."""

    progress: Progress

    def __init__(self, layout: Layout, state: State, wanted: Wanted) -> None:
        self.layout = layout
        self.state = state
        self.wanted = wanted

    def stages(self) -> list[Stage]:
        """Every stage with what it waits for, in an order that fits."""
        collector = ("collector",) if self.wanted.tracing else ()
        built = build.is_built(self.layout)
        stages = [
            Stage("packages", self.packages, (), 1),
            Stage("programs", self.programs, ("packages",), 0.1 if built else 500),
            Stage("clients", lambda: build.fetch_clients(self.layout), (), 3),
            Stage("certificates", self.certificates, (), 0.3),
            Stage("network", self.network, ("packages",), 0.3),
            Stage("images", self.images, ("programs", "registry"), 10),
            Stage("registry", self.registry, ("programs", "certificates"), 1),
            Stage("etcd", self.etcd, ("programs", "certificates"), 1),
            Stage("kube-apiserver", self.api_server, ("etcd", "network"), 8),
            Stage("control plane", self.control_plane, ("kube-apiserver", "clients"), 4),
            Stage("runtime", self.runtime, ("network", "programs", "certificates", *collector), 2),
            Stage("kubelet", self.kubelet, ("runtime", "kube-apiserver"), 5),
            Stage("kube-proxy", self.proxy, ("kube-apiserver",), 1),
            Stage("operator", self.operator, ("images", "control plane", "kubelet"), 10),
        ]
        if self.wanted.tracing:
            stages.insert(0, Stage("collector", self.collector, ("programs",), 1))
        if self.wanted.examples:
            needs = ("operator", "kube-proxy")
            stages.append(Stage("examples", self.examples, needs, 5))
        return stages

    def packages(self) -> bool:
        return debian.install(self.layout, self.state)

    def programs(self) -> bool:
        changed = debian.unpack_programs(self.layout)
        tell = self._teller("programs")
        changed |= build.build_go(self.layout, build.ETCD, tell)
        changed |= build.build_go(self.layout, build.KUBERNETES, tell)
        if self.wanted.tracing:
            changed |= build.build_go(self.layout, build.COLLECTOR, tell)
        return changed

    def certificates(self) -> bool:
        return certs.make(self.layout, components.API_URL)

    def network(self) -> bool:
        return network.set_up(self.layout, self.state)

    def etcd(self) -> bool:
        tls = health.context(self.layout, "apiserver-etcd-client", "etcd-ca")
        url = f"https://127.0.0.1:{ETCD_PORT}/health"
        folder = self.layout.data / "etcd"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        return self._component(
            components.etcd(self.layout), lambda: health.get_json(url, tls)["health"] == "true"
        )

    def registry(self) -> bool:
        self.layout.registry.mkdir(parents=True, exist_ok=True)
        tls = health.context(self.layout, None)
        command = components.registry(self.layout)
        return self._component(command, health.answers(f"https://{REGISTRY}/v2/", tls))

    def api_server(self) -> bool:
        tls = health.context(self.layout, "admin")
        command = components.api_server(self.layout)
        return self._component(command, health.answers(f"{components.API_URL}/readyz", tls))

    def control_plane(self) -> bool:
        commands = (
            components.controller_manager(self.layout),
            components.scheduler(self.layout),
        )
        started = [self._start(command) for command in commands]
        tls = health.context(self.layout, None)
        for command, port in zip(commands, (10257, 10259), strict=True):
            self._wait(command.name, health.answers(f"https://127.0.0.1:{port}/healthz", tls))
        if any(started):
            deploy.grant_api_server_the_kubelet(self.layout)
        return any(started)

    def collector(self) -> bool:
        self.layout.data.mkdir(parents=True, exist_ok=True)
        self.state.set_fact("tracing", value=True)
        return self._component(components.collector(self.layout), lambda: health.accepts(COLLECTOR))

    def runtime(self) -> bool:
        cgroups.set_up(self.layout, self.state)
        for path in (RUNTIME_ETC, RUNTIME_STATE, RUNTIME_RUN):
            self._claim(path)
            path.mkdir(exist_ok=True)
            # Searchable, or a user namespace cannot reach its root filesystem below it.
            path.chmod(0o711)
        command = components.runtime(self.layout, tracing=self.wanted.tracing)
        return self._component(command, RUNTIME_SOCKET.is_socket)

    def kubelet(self) -> bool:
        self._claim(KUBELET_FIXED)
        if not self.state.find("pod-log-links"):
            made = not POD_LOG_LINKS.exists()
            self.state.record("pod-log-links", path=str(POD_LOG_LINKS), made=made)
        for folder in (self.layout.kubelet, self.layout.pod_logs):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)
        command = components.kubelet(self.layout, tracing=self.wanted.tracing)
        return self._component(command, health.answers("http://127.0.0.1:10248/healthz"))

    def proxy(self) -> bool:
        command = components.proxy(self.layout)
        return self._component(command, health.answers("http://127.0.0.1:10249/healthz"))

    def images(self) -> bool:
        return deploy.push_images(self.layout, self._teller("images"))

    def operator(self) -> bool:
        return deploy.install_chart(self.layout, self._teller("operator"))

    def examples(self) -> bool:
        return deploy.apply_examples(self.layout)

    def _teller(self, stage: str) -> Callable[[str], None]:
        return lambda text: self.progress.note(stage, text)

    def _start(self, command: Command) -> bool:
        return processes.start(self.state, self.layout, command)

    def _component(self, command: Command, is_ready: Callable[[], bool]) -> bool:
        started = self._start(command)
        self._wait(command.name, is_ready)
        return started

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        health.wait_until(
            f"{name} ready", is_ready, state=self.state, layout=self.layout, components=(name,)
        )

    def _claim(self, path: Path) -> None:
        """Write down that a path is made by us, unless it is there already or claimed."""
        if not self.state.find("path", path=str(path)) and not path.exists():
            self.state.record("path", path=str(path))
