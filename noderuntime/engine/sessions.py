"""Exec, attach and port-forward at the gate: a session gets no more than the profile gives now.

A container keeps what it was started under, and so does what joins it. Where the node serves a
tighter profile by now, a joining process is narrowed to what both give, and a session with a
container that this profile would not admit is refused. Probes go on, narrowed. Where the node does
not serve the handler at all, what the container was started under holds alone: it is as tight as it
was, and a node in trouble can be looked into.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from noderuntime.engine import admission, decisions
from noderuntime.errors import FailedPreconditionError
from noderuntime.policy import decide, exceptions
from noderuntime.policy.facts import ContainerFacts, SandboxFacts
from noderuntime.policy.joining import ExecGrant
from noderuntime.policy.model import ImageConfig, ImageFacts, ResolvedUser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noderuntime.engine.decisions import Asking
    from noderuntime.engine.node import Node
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.policy.rules import HandlerRules


async def admit_exec(
    node: Node, record: ContainerRecord, process: Mapping[str, object], verb: str
) -> Mapping[str, object]:
    """Return the process as it may join, of the container's own. Raises DeniedError.

    Raises KeyError, TypeError where ``process`` is no OCI process.
    """
    is_probe = verb == decisions.EXEC_SYNC
    sandbox = node.store.sandboxes.require(record.sandbox_id)
    rules = await _rules_now(node, sandbox)
    asked = decisions.Asking(
        log=node.decisions,
        verb=verb,
        pod=sandbox.config.pod,
        container=record.config.name,
        runs=record,
        is_news=partial(node.told.is_news, record.id) if is_probe else None,
    )
    if rules is None or _is_what_it_runs_under(rules, record):
        return admission.admit_exec(asked, rules, ExecGrant(process=process)).process
    answer = decide.admit_exec(_facts(rules, sandbox, record), process, is_probe=is_probe)
    return admission.admit_exec(asked, rules, answer).process


async def admit_attach(node: Node, record: ContainerRecord) -> None:
    """Let a session with the container's own process pass. Raises DeniedError."""
    sandbox = node.store.sandboxes.require(record.sandbox_id)
    rules = await _rules_now(node, sandbox)
    asked = _asking(node, "Attach", sandbox, record)
    findings = () if rules is None else decide.admit_session(_facts(rules, sandbox, record))
    admission.admit_session(asked, rules, findings)


async def admit_forward(node: Node, record: SandboxRecord) -> None:
    """Let a session with ports of the sandbox pass. Raises DeniedError."""
    rules = await _rules_now(node, record)
    asked = _asking(node, "PortForward", record)
    facts = None if rules is None else SandboxFacts(rules=rules, sandbox=record.config)
    admission.admit_session(asked, rules, () if facts is None else decide.admit_forward(facts))


def _asking(
    node: Node, verb: str, sandbox: SandboxRecord, record: ContainerRecord | None = None
) -> Asking:
    return decisions.Asking(
        log=node.decisions,
        verb=verb,
        pod=sandbox.config.pod,
        container="" if record is None else record.config.name,
        runs=record or sandbox,
    )


async def _rules_now(node: Node, sandbox: SandboxRecord) -> HandlerRules | None:
    """Return the rules that a new container of the sandbox would be made under; None without."""
    await node.handlers.settle()
    try:
        rules = node.handlers.get(sandbox.handler, sandbox.config.pod.namespace).rules
    except FailedPreconditionError:
        return None
    if rules is None:
        return None
    return exceptions.rules_at(rules, sandbox.config, node.now_ns() / 1e9)


def _is_what_it_runs_under(rules: HandlerRules, record: ContainerRecord) -> bool:
    """Tell whether nothing can have been tightened; exceptions end within a revision."""
    return rules.revision == record.revision and not rules.exceptions


def _facts(rules: HandlerRules, sandbox: SandboxRecord, record: ContainerRecord) -> ContainerFacts:
    user = ResolvedUser(uid=record.uid, gid=record.gid, additional_gids=record.additional_gids)
    return ContainerFacts(
        rules=rules,
        sandbox=sandbox.config,
        container=record.config,
        image=ImageFacts(config=ImageConfig(), user=user),
    )
