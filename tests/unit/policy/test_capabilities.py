from __future__ import annotations

import pytest

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.capabilities import IN_ORDER, KNOWN, granted, of_status
from noderuntime.policy.model import HostFacts
from tests.unit.policy import factories
from tests.unit.policy.factories import container, image, rules, security


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        pytest.param((), (), {"CHOWN", "KILL"}, id="nothing asked"),
        pytest.param((), ("CHOWN",), {"KILL"}, id="one dropped"),
        pytest.param((), ("cap_chown",), {"KILL"}, id="dropped with prefix, in small letters"),
        pytest.param((), ("ALL",), set[str](), id="all dropped"),
        pytest.param(("NET_RAW",), ("ALL",), {"NET_RAW"}, id="all dropped, one added"),
        pytest.param(("NET_RAW",), ("NET_RAW",), {"CHOWN", "KILL"}, id="added and dropped"),
        pytest.param(("ALL",), ("KILL",), KNOWN - {"KILL"}, id="all added, one dropped"),
        pytest.param(("ALL",), ("ALL",), set[str](), id="all added, all dropped"),
    ],
)
def test_what_is_added_and_dropped_counts_as_in_kubernetes(
    add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]
) -> None:
    asks = security(capabilities_add=add, capabilities_drop=drop)
    assert granted(asks, frozenset(("CHOWN", "KILL"))) == expected


def test_the_nodes_own_handler_gives_fourteen_capabilities() -> None:
    assert len(factories.granted(None).capabilities) == 14


def test_a_privileged_container_gets_what_the_node_can_give() -> None:
    host = HostFacts(capabilities=frozenset(("CHOWN", "SYS_ADMIN")))
    asked = container(security(privileged=True))
    for own in (None, rules({"privileged": "Allow"})):
        assert factories.granted(own, asked, host=host).capabilities == (
            "CAP_CHOWN",
            "CAP_SYS_ADMIN",
        )


def test_the_bounding_set_is_read_from_status() -> None:
    assert of_status("CapEff:\t0\nCapBnd:\t00000000a80425fb\n") == {
        *(
            [
                "CHOWN",
                "DAC_OVERRIDE",
                "FOWNER",
                "FSETID",
                "KILL",
                "SETGID",
                "SETUID",
                "SETPCAP",
                "NET_BIND_SERVICE",
            ]
        ),
        *(["NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"]),
    }
    assert of_status("nothing") == KNOWN
    assert IN_ORDER.index("CHECKPOINT_RESTORE") == 40


def test_an_unknown_capability_is_an_invalid_argument() -> None:
    asked = container(security(capabilities_add=("NOT\nONE",)))
    with pytest.raises(InvalidArgumentError, match=r"containers\[web\].*NOT ONE is not a Linux"):
        factories.admit(None, asked, facts=image())
