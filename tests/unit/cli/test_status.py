from __future__ import annotations

import json

from noderuntime.cli.status import as_json, as_text
from noderuntime.cri.client import Default, RuntimeCondition, RuntimeStatus, Served, WithheldHandler

DIGEST = "sha256:" + "a" * 64


def status(error: str = "", *, network: bool = True) -> RuntimeStatus:
    return RuntimeStatus(
        name="noderuntime",
        version="0.1.0",
        conditions=(
            RuntimeCondition(type="RuntimeReady", status=True, reason="", message=""),
            RuntimeCondition(
                type="NetworkReady",
                status=network,
                reason="" if network else "NetworkNotReady",
                message="" if network else "no CNI configuration in /etc/cni/net.d",
            ),
        ),
        handlers=("", "crun", "restricted"),
        served=Served(
            revision="" if error else DIGEST,
            revision_error=error,
            handlers=("restricted",),
            stale_containers=("shop/web-0/web",),
            ungoverned_pods=7,
            default=Default(handler="restricted", exempt_namespaces=("kube-system",)),
            withheld_handlers=(
                WithheldHandler(name="confined", reason="MissingFeature", message="no AppArmor"),
            ),
        ),
    )


def test_text_tells_what_is_served_and_what_is_stale() -> None:
    text = as_text(status())
    assert DIGEST in text
    assert "restricted" in text
    assert "(default), crun" in text
    assert "shop/web-0/web" in text
    assert "Ungoverned      7 Pods under no profile" in text
    assert "confined: no AppArmor" in text
    governs = "restricted governs Pods that name no handler; exempt namespaces: kube-system"
    assert f"Default         {governs}" in text
    assert "NO" not in text


def test_text_says_why_when_something_is_not_ready() -> None:
    text = as_text(status("the digest is wrong", network=False))
    assert "NetworkReady    NO: no CNI configuration in /etc/cni/net.d" in text
    assert "NOT SERVED: the digest is wrong" in text


def test_json_holds_the_same() -> None:
    document = json.loads(as_json(status()))
    assert document["revision"] == DIGEST
    assert document["revisionHandlers"] == ["restricted"]
    assert document["handlers"] == ["", "crun", "restricted"]
    assert document["ungovernedPods"] == 7
    assert document["default"] == {"handler": "restricted", "exemptNamespaces": ["kube-system"]}
    assert document["staleContainers"] == ["shop/web-0/web"]
    assert document["withheldHandlers"][0]["reason"] == "MissingFeature"
    assert document["conditions"][1]["status"] is True
