"""The cluster's certificates: three authorities, as kubeadm has them, and what they sign.

``ca`` signs servers and clients of Kubernetes and the registry, ``etcd-ca`` only etcd's side (so no
client of the API server can talk to etcd), ``front-proxy-ca`` the API server's aggregation client.
Keys are ECDSA P-256 and readable by root alone.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from e2e.cluster.layout import API_SERVICE_IP, NODE_IP, Layout, node_name

YEARS: Final = 1
_SERVER: Final = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT: Final = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate to be: who it names, where it is valid, what it may be used for."""

    name: str
    authority: str
    common_name: str
    groups: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    usages: tuple[x509.ObjectIdentifier, ...] = (_CLIENT,)


def leaves(node: str) -> tuple[Leaf, ...]:
    """Every certificate of the cluster."""
    local = ("localhost", node)
    service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
    api_names = (*service, "kubernetes.default.svc.cluster.local", *local)
    both = (_SERVER, _CLIENT)
    return (
        Leaf("etcd", "etcd-ca", "etcd", (), local, ("127.0.0.1",), both),
        Leaf("apiserver-etcd-client", "etcd-ca", "kube-apiserver-etcd-client"),
        Leaf(
            "apiserver",
            "ca",
            "kube-apiserver",
            (),
            api_names,
            ("127.0.0.1", NODE_IP, API_SERVICE_IP),
            (_SERVER,),
        ),
        Leaf("apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client"),
        Leaf("front-proxy-client", "front-proxy-ca", "front-proxy-client"),
        Leaf("controller-manager", "ca", "system:kube-controller-manager"),
        Leaf("controller-manager-server", "ca", "kcm", (), local, ("127.0.0.1",), (_SERVER,)),
        Leaf("scheduler", "ca", "system:kube-scheduler"),
        Leaf("scheduler-server", "ca", "scheduler", (), local, ("127.0.0.1",), (_SERVER,)),
        Leaf("proxy", "ca", "system:kube-proxy"),
        Leaf("kubelet", "ca", f"system:node:{node}", ("system:nodes",)),
        Leaf("kubelet-server", "ca", node, (), (node,), (NODE_IP,), (_SERVER,)),
        Leaf("admin", "ca", "kubernetes-admin", ("system:masters",)),
        Leaf("registry", "ca", "registry", (), ("localhost",), ("127.0.0.1",), (_SERVER,)),
    )


# Certificate of the client → file name of its kubeconfig.
KUBECONFIGS: Final = ("controller-manager", "scheduler", "proxy", "kubelet")


def make(layout: Layout, api_url: str) -> bool:
    """Make the certificates and kubeconfigs that are missing; True if any was made."""
    node = node_name()
    stamp = layout.pki / "stamp"
    wanted = f"{node} {api_url} {sorted(leaf.name for leaf in leaves(node))}"
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    for folder in (layout.pki, layout.kubeconfigs):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    for authority in ("ca", "etcd-ca", "front-proxy-ca"):
        _make_authority(layout.pki, authority)
    for leaf in leaves(node):
        _make_leaf(layout.pki, leaf)
    _write_key(layout.pki / "service-accounts.key", ec.generate_private_key(ec.SECP256R1()))
    _write_public(layout.pki / "service-accounts")
    for name in KUBECONFIGS:
        _write_kubeconfig(layout, layout.kubeconfigs / f"{name}.json", name, api_url)
    _write_kubeconfig(layout, layout.kubeconfig, "admin", api_url)
    stamp.write_text(wanted)
    return True


def _make_authority(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"noderuntime {name}")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / f"{name}.key", key)
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _make_leaf(folder: Path, leaf: Leaf) -> None:
    authority = x509.load_pem_x509_certificate((folder / f"{leaf.authority}.crt").read_bytes())
    signer = serialization.load_pem_private_key(
        (folder / f"{leaf.authority}.key").read_bytes(), password=None
    )
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in leaf.groups),
            x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name),
        ]
    )
    builder = (
        _builder(subject, authority.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(leaf.usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    names = _alternative_names(leaf.dns, leaf.addresses)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    _write_key(folder / f"{leaf.name}.key", key)
    (folder / f"{leaf.name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _alternative_names(dns: Sequence[str], addresses: Sequence[str]) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in dns),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_private(path, content)


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _write_public(stem: Path) -> None:
    key = serialization.load_pem_private_key(stem.with_suffix(".key").read_bytes(), password=None)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    stem.with_suffix(".pub").write_bytes(public)


def _write_kubeconfig(layout: Layout, path: Path, client: str, api_url: str) -> None:
    pki = layout.pki
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "noderuntime",
                "cluster": {"server": api_url, "certificate-authority": str(pki / "ca.crt")},
            }
        ],
        "users": [
            {
                "name": client,
                "user": {
                    "client-certificate": str(pki / f"{client}.crt"),
                    "client-key": str(pki / f"{client}.key"),
                },
            }
        ],
        "contexts": [
            {"name": "noderuntime", "context": {"cluster": "noderuntime", "user": client}}
        ],
        "current-context": "noderuntime",
    }
    _write_private(path, json.dumps(content, indent=1).encode())
