"""The requests of ``cli.manifest``, which are a node's, turned into those for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from noderuntime.cli.manifest import requests
from noderuntime.cli.manifest.requests import Place as ListName
from noderuntime.cli.running import environment
from noderuntime.cli.running.here import IDS, Here
from noderuntime.cli.running.volumes import on_this_machine
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import FailedPreconditionError

_PROTOCOLS: Final = {"TCP": pb.TCP, "UDP": pb.UDP, "SCTP": pb.SCTP}
# Its stub on 127.0.0.53 answers in the machine's network alone; this file names what is behind.
_RESOLVED: Final = Path("/run/systemd/resolve/resolv.conf")


def sandbox(here: Here) -> pb.PodSandboxConfig:
    """Return the Pod's. Raises ConfigError."""
    spec = here.workload.pod.spec
    config = requests.sandbox(here.workload)
    config.metadata.uid = here.uid
    config.log_directory = str(here.logs)
    config.linux.cgroup_parent = here.cgroup
    config.labels.update(here.workload.pod.metadata.labels)
    _map_users(here, config.linux.security_context.namespace_options)
    dns = spec.dns_config
    config.dns_config.servers.extend(dns.nameservers)
    config.dns_config.searches.extend(dns.searches)
    config.dns_config.options.extend(
        f"{each.name}:{each.value}" if each.value else each.name for each in dns.options
    )
    if not dns.nameservers and not spec.host_network and _RESOLVED.exists():
        words = (line.split() for line in _RESOLVED.read_text().splitlines())
        config.dns_config.servers.extend(w[1] for w in words if w[:1] == ["nameserver"] and w[1:])
    for each in (*spec.init_containers, *spec.containers):
        for port in each.ports:
            if not spec.host_network:
                config.port_mappings.add(
                    protocol=_PROTOCOLS[port.protocol],
                    container_port=port.container_port,
                    host_port=port.host_port,
                    host_ip=port.host_ip,
                )
    return config


def container(
    here: Here, place: ListName, index: int, image: pb.Image | None, ip: str
) -> pb.ContainerConfig:
    """Return one container's; ``image`` None is one that nothing is known of yet. Raises ConfigError."""
    found = requests.container(here.workload, place, index, None if image is None else _user(image))
    config, each = found.config, found.container
    where = f"{here.workload.kind} {here.workload.name}: spec.{place}[{index}]"
    variables = environment.of(here, each, ip, where)
    del config.envs[:]
    config.envs.extend(pb.KeyValue(key=key, value=value) for key, value in variables.items())
    for words in (config.command, config.args):
        words[:] = [environment.expanded(word, variables) for word in words]
    options = config.linux.security_context.namespace_options
    _map_users(here, options)
    for mount in config.mounts:
        mount.host_path = on_this_machine(here, mount.host_path)
        if options.userns_options.mode == pb.POD and not mount.HasField("image"):
            mount.uidMappings.extend(options.userns_options.uids)
            mount.gidMappings.extend(options.userns_options.gids)
    if image is not None:
        config.image.image = image.id
        _require_non_root(here, place, index, config, image)
    return config


def _map_users(here: Here, options: pb.NamespaceOption) -> None:
    for mapping in (*options.userns_options.uids, *options.userns_options.gids):
        mapping.host_id, mapping.length = here.first_id, IDS


def _user(image: pb.Image) -> str:
    """Return the image's user as the kubelet asks for it: a number, else a name, else root."""
    return str(image.uid.value) if image.HasField("uid") else image.username or "0"


def _require_non_root(
    here: Here, place: ListName, index: int, config: pb.ContainerConfig, image: pb.Image
) -> None:
    """Refuse root where the Pod says runAsNonRoot, which on a node the kubelet does."""
    spec = here.workload.pod.spec
    lists = {"initContainers": spec.init_containers, "containers": spec.containers}
    own = lists[place][index].security_context.run_as_non_root
    asked = spec.security_context.run_as_non_root if own is None else own
    user = config.linux.security_context
    if asked and not user.run_as_username and user.run_as_user.value == 0:
        raise FailedPreconditionError(
            f"container {config.metadata.name}: runAsNonRoot is true, and it would run as root; set "
            f"runAsUser, or use an image with a user (that of {image.id[:19]} is {_user(image)})"
        )
