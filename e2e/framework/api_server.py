"""A real API server for tests: etcd and kube-apiserver alone, on free ports of 127.0.0.1.

Nothing runs Pods or collects garbage here: what is checked is schemas, admission, RBAC and our own controllers.
Everything lives in one temporary folder; the two processes are ended by their process IDs.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

Json = dict[str, Any]  # free-form

_READY_S: Final = 60.0
_REPOSITORY: Final = Path(__file__).resolve().parents[2]
TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"  # what kubectl asks for
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the API server."""

    status: int
    body: Json
    warnings: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """The server's message, empty where it accepted the request."""
        return "" if self.status < 300 else str(self.body.get("message", self.body))


class ApiServer:
    """A client of the running server; ``token`` is an administrator's."""

    def __init__(self, url: str, token: str, ca_file: Path) -> None:
        self.url, self.token, self.ca_file = url, token, ca_file
        self._tls = ssl.create_default_context(cafile=str(ca_file))

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        token: str = "",
        accept: str = "application/json",
    ) -> Answer:
        """Send one request; HTTP errors are answers, not exceptions."""
        request = urllib.request.Request(  # noqa: S310 - https only
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token or self.token}",
                "Content-Type": content_type,
                "Accept": accept,
            },
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=20) as reply:  # noqa: S310
                warnings = tuple(reply.headers.get_all("Warning") or ())
                return Answer(reply.status, _parsed(reply.read()), warnings)
        except urllib.error.HTTPError as error:
            return Answer(error.code, _parsed(error.read()))

    def create(self, collection: str, body: Mapping[str, Any], *, dry_run: bool = False) -> Answer:
        """POST; unknown fields are errors, as with kubectl."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self.call("POST", collection + query, body)

    def apply(
        self, path: str, body: Mapping[str, Any], *, manager: str = "tests", token: str = ""
    ) -> Answer:
        """Server-side apply."""
        query = f"?fieldManager={manager}&force=true&fieldValidation=Strict"
        return self.call("PATCH", path + query, body, content_type=APPLY, token=token)

    def get(self, path: str) -> Answer:
        """GET."""
        return self.call("GET", path)

    def kubeconfig(self, file: Path, token: str = "") -> Path:
        """Write a kubeconfig for the token; the administrator's where none is given."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": "test", "user": {"token": token or self.token}}],
                }
            )
        )
        return file


def _parsed(text: bytes) -> Json:
    try:
        parsed: Json = json.loads(text)
    except ValueError:
        return {"message": text.decode(errors="replace")}
    return parsed


def binary(name: str) -> Path:
    """Find a program in ``NODERUNTIME_BIN``, ``.cluster/bin`` or the PATH; raises FileNotFoundError."""
    places = [os.environ.get("NODERUNTIME_BIN", ""), str(_REPOSITORY / ".cluster/bin")]
    found = shutil.which(name, path=os.pathsep.join([*filter(None, places), os.environ["PATH"]]))
    if found is None:
        raise FileNotFoundError(f"{name} is not there: `make up` builds it into .cluster/bin")
    return Path(found)


@contextmanager
def running_api_server() -> Generator[ApiServer]:
    """Start etcd and the API server, wait until it is ready, end both."""
    with tempfile.TemporaryDirectory(prefix="nr-apiserver-") as folder:
        root = Path(folder)
        etcd_port, peer_port, port = _free_ports(3)
        server = _prepare(root, port)
        etcd_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        etcd = [
            str(binary("etcd")),
            f"--data-dir={root / 'etcd'}",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=error",
        ]
        with (
            _process(etcd, root / "etcd.log"),
            _process(_command(root, etcd_url, port), root / "apiserver.log") as process,
        ):
            _wait_ready(server, process, root / "apiserver.log")
            yield server


def _prepare(root: Path, port: int) -> ApiServer:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    token = secrets.token_hex(16)
    _write_secret(root / "sa.key", private.decode())
    _write_secret(root / "tokens.csv", f"{token},admin,admin,system:masters\n")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", "/CN=noderuntime-test", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(root / "tls.key"), "-out", str(root / "tls.crt"),
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return ApiServer(f"https://127.0.0.1:{port}", token, root / "tls.crt")


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _command(root: Path, etcd_url: str, port: int) -> list[str]:
    return [
        str(binary("kube-apiserver")),
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={root / 'tls.crt'}",
        f"--tls-private-key-file={root / 'tls.key'}",
        f"--token-auth-file={root / 'tokens.csv'}",
        "--service-account-issuer=https://noderuntime.test",
        f"--service-account-key-file={root / 'sa.key'}",
        f"--service-account-signing-key-file={root / 'sa.key'}",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged",
        # no endpoints of its own: 127.0.0.1 is not an address that Endpoints take
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",  # no controller makes the default account here
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def _process(command: list[str], log: Path) -> Generator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)  # nothing of it is kept
        process.wait(timeout=20)


def _wait_ready(server: ApiServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"kube-apiserver ended: {log.read_text()[-3000:]}")
        try:
            if server.call("GET", "/readyz").status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise TimeoutError(
        f"kube-apiserver is not ready after {_READY_S:.0f} s: {log.read_text()[-3000:]}"
    )


def wait_for(what: str, check: Any, deadline_s: float = 30.0) -> Any:  # noqa: ANN401 - a test's own value
    """Ask until the check gives something true; raises TimeoutError naming what was awaited."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
