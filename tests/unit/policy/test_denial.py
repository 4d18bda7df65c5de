from __future__ import annotations

from noderuntime.policy.denial import Denial, listed, printable, short_revision
from tests.unit.policy.factories import container, denied, rules, security

HOSTILE = "a\r\nb\t\x1b[31mc\u2028d\u202ee" + "f" * 4000


def test_a_sentence_names_all_that_a_user_needs() -> None:
    own = rules({"capabilities": {"allow": ["NET_BIND_SERVICE"]}})
    answer = denied(own, container(security(capabilities_add=("SYS_ADMIN",))))
    assert answer.sentence() == (
        "containers[web].securityContext.capabilities.add: SYS_ADMIN is refused by SecurityProfile "
        "web (revision 0123456789ab): capabilities.allow has NET_BIND_SERVICE; remove it from the "
        "Pod, or add SYS_ADMIN to capabilities.allow"
    )


def test_a_sentence_is_one_short_line_however_hostile_its_parts() -> None:
    sentence = Denial(
        container=HOSTILE,
        field=HOSTILE,
        value=HOSTILE,
        rule=HOSTILE,
        profile=HOSTILE,
        revision=HOSTILE,
        remedy=HOSTILE,
    ).sentence()
    assert sentence.isprintable()
    assert len(sentence) < 1024


def test_text_is_made_printable() -> None:
    assert printable(HOSTILE)[:9] == "a b [31mc"
    assert printable("") == ""
    assert printable("x" * 200, 10) == "x" * 10 + "…"
    assert short_revision("sha256:" + "9" * 64) == "9" * 12


def test_lists_are_cut() -> None:
    assert listed(()) == "nothing"
    assert listed(frozenset("cab")) == "a, b, c"
    assert listed(tuple("abcdefghij")).endswith("h and 2 more")
