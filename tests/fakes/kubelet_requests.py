"""Requests as the kubelet v1.37 writes them (``pkg/kubelet/kuberuntime``), for tests to change."""

from __future__ import annotations

from noderuntime.cri.runtime_v1 import api_pb2 as pb


def kubelets_sandbox() -> pb.PodSandboxConfig:
    """A Pod as generatePodSandboxConfig of the kubelet v1.37 writes it."""
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name="web-0", namespace="default", uid="6e1e6e55-0000", attempt=1
        ),
        hostname="web-0",
        log_directory="/var/log/pods/default_web-0_6e1e6e55-0000",
        dns_config=pb.DNSConfig(
            servers=["10.96.0.10", "fe80::1%eth0"],
            searches=["default.svc.cluster.local", "."],
            options=["ndots:5"],
        ),
        port_mappings=[pb.PortMapping(container_port=80, protocol=pb.SCTP)],
        labels={"io.kubernetes.pod.name": "web-0", "app": "web"},
        annotations={"kubernetes.io/config.source": "api", "note": "many\nlines\tof text"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/besteffort/pod6e1e6e55-0000",
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=pb.NamespaceOption(
                    network=pb.POD,
                    pid=pb.CONTAINER,
                    ipc=pb.POD,
                    userns_options=pb.UserNamespace(mode=pb.NODE),
                ),
                seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
                run_as_group=pb.Int64Value(value=1000),
                supplemental_groups=[2000],
            ),
            sysctls={"net.ipv4.ip_unprivileged_port_start": "0", "kernel/shm_rmid_forced": "1"},
            overhead=pb.LinuxContainerResources(),
            resources=pb.LinuxContainerResources(cpu_period=100000, cpu_shares=2),
        ),
    )


def kubelets_container() -> pb.ContainerConfig:
    """A container as generateContainerConfig writes it."""
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="app", attempt=3),
        image=pb.ImageSpec(image="sha256:" + "ab" * 32, user_specified_image="app:1"),
        command=["/bin/app"],
        args=["--greeting", "two\nlines"],
        working_dir="/srv/../srv",
        envs=[
            pb.KeyValue(key="PATH", value=b"/bin"),
            pb.KeyValue(key="my.odd key", value="grüß\n".encode()),
        ],
        mounts=[
            pb.Mount(
                container_path="/etc/hosts",
                host_path="/var/lib/kubelet/pods/u/etc-hosts",
                readonly=True,
                recursive_read_only=True,
            ),
            pb.Mount(
                container_path="/data", host_path="/data", propagation=pb.PROPAGATION_BIDIRECTIONAL
            ),
        ],
        devices=[pb.Device(container_path="/dev/fuse", host_path="/dev/fuse", permissions="mrw")],
        labels={"io.kubernetes.container.name": "app"},
        log_path="app/3.log",
        stop_signal=pb.SIGNAL_SIGRTMINPLUS3,
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(
                cpu_period=100000,
                cpu_quota=-1,
                cpu_shares=1024,
                oom_score_adj=-997,
                memory_limit_in_bytes=1 << 30,
                memory_swap_limit_in_bytes=1 << 30,
                hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)],
                unified={"memory.high": "max"},
            ),
            security_context=pb.LinuxContainerSecurityContext(
                capabilities=pb.Capability(
                    add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"]
                ),
                run_as_user=pb.Int64Value(value=0),
                namespace_options=pb.NamespaceOption(pid=pb.CONTAINER),
                seccomp=pb.SecurityProfile(
                    profile_type=pb.SecurityProfile.Localhost, localhost_ref="/var/lib/k/p.json"
                ),
                apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
                apparmor_profile="unconfined",
                selinux_options=pb.SELinuxOption(),
                no_new_privs=True,
                masked_paths=["/proc/kcore"],
                readonly_paths=["/proc/sys"],
            ),
        ),
    )
