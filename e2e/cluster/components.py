"""The components' command lines and configuration files: only what differs from the defaults."""

from __future__ import annotations

import json
import sys

from e2e.cluster import unit
from e2e.cluster.layout import (
    API_PORT,
    COLLECTOR,
    DNS_SERVICE_IP,
    ETCD_PEER_PORT,
    ETCD_PORT,
    NODE_IP,
    POD_CIDR,
    REGISTRY,
    RUNTIME_ETC,
    RUNTIME_RUN,
    RUNTIME_SOCKET,
    RUNTIME_STATE,
    SERVICE_CIDR,
    Layout,
    node_name,
)
from e2e.cluster.processes import Command

API_URL = f"https://{NODE_IP}:{API_PORT}"


def etcd(layout: Layout) -> Command:
    """An etcd on the loopback, which only client certificates of its own authority may use."""
    pki = layout.pki
    peer = f"https://127.0.0.1:{ETCD_PEER_PORT}"
    client = f"https://127.0.0.1:{ETCD_PORT}"
    argv = (
        layout.binary("etcd"),
        "--name=node",
        f"--data-dir={layout.data / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=node={peer}",
        "--client-cert-auth=true",
        "--peer-client-cert-auth=true",
        *(
            f"--{side}{option}={pki / file}"
            for side in ("", "peer-")
            for option, file in (
                ("cert-file", "etcd.crt"),
                ("key-file", "etcd.key"),
                ("trusted-ca-file", "etcd-ca.crt"),
            )
        ),
        "--logger=zap",
        # The cluster is thrown away by `make down`, so it need not survive a power cut.
        "--unsafe-no-fsync",
    )
    return Command("etcd", argv)


def registry(layout: Layout) -> Command:
    """The registry, over TLS as everything else."""
    path = layout.config / "registry.json"
    content = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(layout.registry)}},
        "http": {
            "addr": REGISTRY,
            "tls": {
                "certificate": str(layout.pki / "registry.crt"),
                "key": str(layout.pki / "registry.key"),
            },
        },
    }
    argv = (layout.binary("docker-registry"), "serve", str(path))
    return Command("registry", argv, {path: json.dumps(content, indent=1)})


def api_server(layout: Layout) -> Command:
    """The API server on the node's address: Node and RBAC authorization, no anonymous access."""
    pki = layout.pki
    files = {
        "client-ca-file": "ca.crt",
        "tls-cert-file": "apiserver.crt",
        "tls-private-key-file": "apiserver.key",
        "etcd-cafile": "etcd-ca.crt",
        "etcd-certfile": "apiserver-etcd-client.crt",
        "etcd-keyfile": "apiserver-etcd-client.key",
        "kubelet-certificate-authority": "ca.crt",
        "kubelet-client-certificate": "apiserver-kubelet-client.crt",
        "kubelet-client-key": "apiserver-kubelet-client.key",
        "proxy-client-cert-file": "front-proxy-client.crt",
        "proxy-client-key-file": "front-proxy-client.key",
        "requestheader-client-ca-file": "front-proxy-ca.crt",
        "service-account-key-file": "service-accounts.pub",
        "service-account-signing-key-file": "service-accounts.key",
    }
    argv = (
        layout.binary("kube-apiserver"),
        *(f"--{option}={pki / file}" for option, file in files.items()),
        f"--advertise-address={NODE_IP}",
        f"--bind-address={NODE_IP}",
        f"--secure-port={API_PORT}",
        f"--etcd-servers=https://127.0.0.1:{ETCD_PORT}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--enable-aggregator-routing=true",
        "--profiling=false",
        # Without it the node's name would be looked up in DNS for logs and exec.
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
    )
    return Command("kube-apiserver", argv)


def controller_manager(layout: Layout) -> Command:
    """The controllers, each with a service account of its own."""
    pki = layout.pki
    kubeconfig = layout.kubeconfigs / "controller-manager.json"
    argv = (
        layout.binary("kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={POD_CIDR}",
        "--node-cidr-mask-size=24",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'service-accounts.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        f"--tls-cert-file={pki / 'controller-manager-server.crt'}",
        f"--tls-private-key-file={pki / 'controller-manager-server.key'}",
        f"--flex-volume-plugin-dir={layout.kubelet / 'volume-plugins'}",
        "--leader-elect=false",  # there is one; a restart need not wait for a lease
    )
    return Command("kube-controller-manager", argv)


def scheduler(layout: Layout) -> Command:
    """The scheduler."""
    kubeconfig = layout.kubeconfigs / "scheduler.json"
    argv = (
        layout.binary("kube-scheduler"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--client-ca-file={layout.pki / 'ca.crt'}",
        f"--tls-cert-file={layout.pki / 'scheduler-server.crt'}",
        f"--tls-private-key-file={layout.pki / 'scheduler-server.key'}",
        "--leader-elect=false",
    )
    return Command("kube-scheduler", argv)


def proxy(layout: Layout) -> Command:
    """kube-proxy with nftables."""
    path = layout.config / "kube-proxy.json"
    content = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.kubeconfigs / "proxy.json")},
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": node_name(),
        "bindAddress": NODE_IP,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # These settings are read-only in some virtual machines, and the host's own in all.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
    argv = (layout.binary("kube-proxy"), f"--config={path}")
    return Command("kube-proxy", argv, {path: json.dumps(content, indent=1)})


def kubelet(layout: Layout, *, tracing: bool) -> Command:
    """The kubelet; our runtime is the only one it knows."""
    pki = layout.pki
    path = layout.config / "kubelet.json"
    content: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
        "containerRuntimeEndpoint": f"unix://{RUNTIME_SOCKET}",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE_IP],
        "resolvConf": "",
        "podLogsDir": str(layout.pod_logs),
        "volumePluginDir": str(layout.kubelet / "volume-plugins"),
        # The driver itself is asked of the runtime; this is for a cgroup v1 that is still there.
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        # A laptop's nearly full disk must not evict: it is not the cluster's alone.
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "oomScoreAdj": 0,
        "nodeStatusUpdateFrequency": "4s",  # new handlers are told in seconds
        "serializeImagePulls": False,
        "registerWithTaints": [],
    }
    if tracing:
        content["tracing"] = {"endpoint": COLLECTOR, "samplingRatePerMillion": 1_000_000}
    argv = (
        layout.binary("kubelet"),
        f"--config={path}",
        f"--kubeconfig={layout.kubeconfigs / 'kubelet.json'}",
        f"--root-dir={layout.kubelet}",
        f"--cert-dir={layout.kubelet / 'pki'}",
        f"--hostname-override={node_name()}",
        f"--node-ip={NODE_IP}",
    )
    return Command("kubelet", argv, {path: json.dumps(content, indent=1)})


def runtime(layout: Layout, *, tracing: bool) -> Command:
    """Our runtime, as on any node; it trusts the local registry by our authority."""
    files = {
        RUNTIME_ETC / "config.toml": (
            f'socket = "{RUNTIME_SOCKET}"\n'
            f'state_dir = "{RUNTIME_STATE}"\n'
            f'run_dir = "{RUNTIME_RUN}"\n'
            f'revision = "{RUNTIME_ETC / "current"}"\n'
            'default_handler = "crun"\n\n'
            "[handlers.crun]\n"
            'oci_runtime = "/usr/bin/crun"\n\n'
            "[cni]\n"
            f'conf_dir = "{layout.cni / "net.d"}"\n'
            f'bin_dirs = ["{layout.cni / "bin"}"]\n\n'
            "[images]\n"
            f'hosts_dir = "{RUNTIME_ETC / "certs.d"}"\n'
        ),
        RUNTIME_ETC / "certs.d" / REGISTRY / "hosts.toml": (
            f'server = "https://{REGISTRY}"\n\n'
            f'[host."https://{REGISTRY}"]\n'
            'capabilities = ["pull", "resolve"]\n'
            f'ca = "{layout.pki / "ca.crt"}"\n'
        ),
    }
    config = str(RUNTIME_ETC / "config.toml")
    argv = (sys.executable, "-m", "noderuntime", "serve", "--config", config)
    environment = {
        **unit.environment(),
        "PYTHONPATH": f"{layout.repository}:{layout.repository / 'operator'}",
        "PYTHONUNBUFFERED": "1",
    }
    if tracing:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{COLLECTOR}"
    return Command("noderuntime", argv, files, environment)


def collector(layout: Layout) -> Command:
    """The OpenTelemetry collector: OTLP over gRPC in, lines of JSON out."""
    path = layout.config / "collector.json"
    content = {
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": COLLECTOR}}}},
        "exporters": {"file": {"path": str(layout.traces), "flush_interval": "100ms"}},
        "service": {
            # Else it would take port 8888 too.
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
        },
    }
    argv = (layout.binary("collector"), f"--config={path}")
    return Command("collector", argv, {path: json.dumps(content, indent=1)})
