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
    API_PORT,
    NODE_IP,
    REGISTRY,
    RUNTIME_ETC,
    RUNTIME_RUN,
    RUNTIME_SOCKET,
    RUNTIME_STATE,
    Layout,
)
from e2e.cluster.progress import Progress
from e2e.cluster.stages import Stage, run_stages
from e2e.cluster.state import State

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
    """The stage and those that it needs, in order."""
    wanted = {last}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.needs)
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
        stages = [
            Stage("packages", self.packages, (), 1),
            Stage("programs", self.programs, ("packages",), 500),
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
        (self.layout.data / "etcd").mkdir(parents=True, exist_ok=True)
        (self.layout.data / "etcd").chmod(0o700)
        url = "https://127.0.0.1:2379/health"
        return self._component(
            "etcd", components.etcd(self.layout), lambda: health.get_json(url, tls)["health"] == "true"
        )

    def registry(self) -> bool:
        argv, config = components.registry(self.layout)
        self._write(Path(argv[-1]), config)
        self.layout.registry.mkdir(parents=True, exist_ok=True)
        tls = health.context(self.layout, None)
        return self._component("registry", argv, health.answers(f"https://{REGISTRY}/v2/", tls))

    def api_server(self) -> bool:
        tls = health.context(self.layout, "admin")
        url = f"https://{NODE_IP}:{API_PORT}/readyz"
        argv = components.api_server(self.layout)
        return self._component("kube-apiserver", argv, health.answers(url, tls))

    def control_plane(self) -> bool:
        started = self._start("kube-controller-manager", components.controller_manager(self.layout))
        started |= self._start("kube-scheduler", components.scheduler(self.layout))
        tls = health.context(self.layout, None)
        for name, port in (("kube-controller-manager", 10257), ("kube-scheduler", 10259)):
            self._wait(name, health.answers(f"https://127.0.0.1:{port}/healthz", tls))
        if started:
            deploy.grant_api_server_the_kubelet(self.layout)
        return started

    def collector(self) -> bool:
        argv, config = components.collector(self.layout)
        self._write(Path(argv[-1].partition("=")[2]), config)
        self.layout.data.mkdir(parents=True, exist_ok=True)
        return self._start("collector", argv)

    def runtime(self) -> bool:
        cgroups.set_up(self.layout, self.state)
        for path in (RUNTIME_ETC, RUNTIME_STATE, RUNTIME_RUN):
            self.state.record("path", path=str(path))
            path.mkdir(exist_ok=True)
            # Searchable, or a user namespace cannot reach its root filesystem below it.
            path.chmod(0o711)
        self.state.record("path", path="/run/crun", made=not Path("/run/crun").exists())
        argv, environment, files = components.runtime(self.layout, tracing=self.wanted.tracing)
        for path, content in files.items():
            self._write(path, content)
        started = processes.start(self.state, self.layout, "noderuntime", argv, environment)
        self._wait("noderuntime", health.socket_is_there(RUNTIME_SOCKET))
        return started

    def kubelet(self) -> bool:
        argv, config = components.kubelet(self.layout, tracing=self.wanted.tracing)
        self._write(Path(argv[1].partition("=")[2]), config)
        self.state.record("path", path=str(KUBELET_FIXED), made=not KUBELET_FIXED.exists())
        self.state.record(
            "pod-log-links", path=str(POD_LOG_LINKS), made=not POD_LOG_LINKS.exists()
        )
        for folder in (self.layout.kubelet, self.layout.pod_logs):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o711)
        started = self._start("kubelet", argv)
        self._wait("kubelet", health.answers("http://127.0.0.1:10248/healthz"))
        return started

    def proxy(self) -> bool:
        argv, config = components.proxy(self.layout)
        self._write(Path(argv[1].partition("=")[2]), config)
        started = self._start("kube-proxy", argv)
        self._wait("kube-proxy", health.answers("http://127.0.0.1:10249/healthz"))
        return started

    def images(self) -> bool:
        return deploy.push_images(self.layout, self._teller("images"))

    def operator(self) -> bool:
        return deploy.install_chart(self.layout, self._teller("operator"))

    def examples(self) -> bool:
        return deploy.apply_examples(self.layout)

    def _teller(self, stage: str) -> Callable[[str], None]:
        return lambda text: self.progress.note(stage, text)

    def _start(self, name: str, argv: list[str]) -> bool:
        return processes.start(self.state, self.layout, name, argv)

    def _component(self, name: str, argv: list[str], is_ready: Callable[[], bool]) -> bool:
        started = self._start(name, argv)
        self._wait(name, is_ready)
        return started

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        health.wait_until(
            f"{name} ready", is_ready, state=self.state, layout=self.layout, components=(name,)
        )

    @staticmethod
    def _write(path: Path, content: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
