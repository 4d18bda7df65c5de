"""Pushing an OCI layout to a registry (distribution-spec, "Push"): its blobs, then its manifest."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from e2e.cluster.image import oci
from e2e.cluster.state import ClusterError

TIMEOUT_S: Final = 120.0


def push(folder: Path, registry: str, name: str, tag: str, tls: ssl.SSLContext | None) -> bool:
    """Push `folder` as registry/name:tag; False if exactly that is there already.

    Without `tls` the registry is spoken to in plain HTTP.
    """
    digest, manifest = oci.read_manifest(folder)
    connection = (
        http.client.HTTPSConnection(registry, timeout=TIMEOUT_S, context=tls)
        if tls
        else http.client.HTTPConnection(registry, timeout=TIMEOUT_S)
    )
    try:
        there = _ask(connection, "HEAD", f"/v2/{name}/manifests/{tag}", {"Accept": oci.MANIFEST})
        if there.headers.get("Docker-Content-Digest") == digest:
            return False
        for blob in (manifest["config"], *manifest["layers"]):
            _push_blob(connection, folder, name, blob["digest"])
        answer = _ask(
            connection,
            "PUT",
            f"/v2/{name}/manifests/{tag}",
            {"Content-Type": oci.MANIFEST},
            oci.blob_path(folder, digest).read_bytes(),
        )
        _require(answer, 201, f"manifest of {name}:{tag}")
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(f"cannot push {name}:{tag} to {registry}: {error}") from error
    finally:
        connection.close()
    return True


def _push_blob(
    connection: http.client.HTTPConnection, folder: Path, name: str, digest: str
) -> None:
    if _ask(connection, "HEAD", f"/v2/{name}/blobs/{digest}").status == 200:
        return
    begun = _ask(connection, "POST", f"/v2/{name}/blobs/uploads/")
    _require(begun, 202, f"upload of {digest}")
    place = urlsplit(begun.headers["Location"])
    query = f"{place.query}&digest={digest}" if place.query else f"digest={digest}"
    done = _ask(
        connection,
        "PUT",
        f"{place.path}?{query}",
        {"Content-Type": "application/octet-stream"},
        oci.blob_path(folder, digest).read_bytes(),
    )
    _require(done, 201, f"blob {digest}")


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> http.client.HTTPResponse:
    connection.request(method, path, body=body, headers=headers or {})
    answer = connection.getresponse()
    answer.read()
    return answer


def _require(answer: http.client.HTTPResponse, status: int, what: str) -> None:
    if answer.status != status:
        raise ClusterError(f"the registry answered {answer.status} {answer.reason} to the {what}")
