"""The cluster as a test sees it: its clients, its components, and what happens in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from e2e.cluster import census, processes
from e2e.cluster.layout import RUNTIME_STATE, Layout, node_name
from e2e.cluster.state import State
from e2e.framework.kube import Api, Json, Kubectl
from e2e.framework.waiting import wait_for

UP_S = 3600.0


class Cluster:
    """A running cluster of ``make up``."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.node = node_name()
        self.kubectl = Kubectl(layout)
        self.api = Api(layout)

    def apply(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        """Apply objects; raises KubectlError with the API server's reason."""
        self.kubectl.apply(*objects, namespace=namespace)

    def pod(self, name: str, namespace: str = "default") -> Json:
        """A Pod as it is now; raises AssertionError if there is none."""
        found = self.api.get("pod", name, namespace)
        assert found, f"no Pod {namespace}/{name}"
        return found

    def wait_ready(self, name: str, namespace: str = "default", limit_s: float = 60) -> Json:
        """The Pod once it is ready; at the deadline its events are told."""
        return self._wait_pod(name, namespace, _is_ready, "ready", limit_s)

    def wait_phase(
        self, name: str, phase: str, namespace: str = "default", limit_s: float = 60
    ) -> Json:
        """The Pod once it is in a phase, e.g. Succeeded."""
        return self._wait_pod(
            name, namespace, lambda pod: pod["status"].get("phase") == phase, phase, limit_s
        )

    def _wait_pod(
        self, name: str, namespace: str, is_so: Callable[[Json], bool], word: str, limit_s: float
    ) -> Json:
        def probe() -> Json | None:
            found = self.pod(name, namespace)
            return found if is_so(found) else None

        try:
            return wait_for(f"Pod {namespace}/{name} {word}", probe, limit_s)
        except AssertionError as error:
            error.add_note("\n".join(self.events_of(name, namespace)))
            raise

    def events_of(self, name: str, namespace: str = "default") -> list[str]:
        """Reasons and messages of a Pod's events, oldest first."""
        events = [
            event
            for event in self.api.list("event", namespace)
            if event["involvedObject"].get("name") == name
        ]
        events.sort(key=lambda event: event["metadata"]["creationTimestamp"])
        return [f"{event['reason']}: {event['message']}" for event in events]

    def wait_event(
        self, name: str, *words: str, namespace: str = "default", limit_s: float = 30
    ) -> str:
        """The first event of a Pod that has all the words."""

        def probe() -> str | None:
            events = self.events_of(name, namespace)
            fitting = [event for event in events if all(word in event for word in words)]
            assert fitting, events
            return fitting[0]

        return wait_for(f"an event of {name} with {', '.join(words)}", probe, limit_s)

    def exec(self, pod: str, *command: str, namespace: str = "default") -> str:
        """`kubectl exec`: what the command printed."""
        return self.kubectl("exec", "-n", namespace, pod, "--", *command)

    def pid(self, component: str) -> int:
        """The PID of a component, e.g. `kubelet` or `noderuntime`."""
        entry = State(self.layout.state).find("process", name=component)
        assert entry, f"{component} is not part of this cluster"
        assert processes.is_alive(entry["pid"], entry["started"]), f"{component} has ended"
        pid: int = entry["pid"]
        return pid

    def kill(self, component: str, sign: signal.Signals = signal.SIGKILL) -> None:
        """End a component as a crash does, and wait until it is gone."""
        pid = self.pid(component)
        started = processes.start_time(pid)
        os.kill(pid, sign)
        wait_for(f"{component} gone", lambda: not processes.is_alive(pid, started), 20)

    def kill_container(self, container_id: str) -> None:
        """SIGKILL to a container's first process, as an OOM or a bug does."""
        record = json.loads((RUNTIME_STATE / "containers" / f"{container_id}.json").read_text())
        os.kill(int(record["pid"]), signal.SIGKILL)

    def restart(self, *arguments: str) -> None:
        """Start again what had ended: `up` on what is left."""
        run_command(self.layout, "up", *arguments)


def _is_ready(pod: Json) -> bool:
    conditions: list[dict[str, str]] = pod["status"].get("conditions", [])
    return {"Ready": "True"}.items() <= {c["type"]: c["status"] for c in conditions}.items()


def assert_as_before(before: census.Census, limit_s: float = 20) -> None:
    """The machine is as the census says, soon; raises AssertionError with what is not.

    NODERUNTIME_CENSUS_OTHERS is a pattern of what other programs make on this machine meanwhile.
    """
    others = os.environ.get("NODERUNTIME_CENSUS_OTHERS", "")

    def is_same() -> bool:
        found = census.differences(before, census.take(), others)
        assert not found, census.as_text(found)
        return True

    wait_for("the machine as it was", is_same, limit_s)


def run_command(layout: Layout, *words: str, timeout_s: float = UP_S) -> str:
    """``python -m e2e.cluster WORDS``; raises AssertionError with all it said when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "e2e.cluster", *words],
        cwd=layout.repository,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{layout.repository}:{layout.repository / 'operator'}"},
    )
    assert done.returncode == 0, f"{' '.join(words)} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout
