"""The engine's questions to the policy: a denial becomes an error, every decision is recorded."""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noderuntime.errors import DeniedError, InvalidArgumentError
from noderuntime.policy import capabilities, decide, exceptions
from noderuntime.policy.denial import Denial
from noderuntime.policy.joining import ExecGrant
from noderuntime.policy.model import HostFacts, NamespaceMode, ProfileType
from noderuntime.policy.mounts import need_the_table
from noderuntime.telemetry import metrics
from noderuntime.telemetry.trace import span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noderuntime.engine.decisions import Asking
    from noderuntime.engine.handlers import Handler
    from noderuntime.images.ports import Image
    from noderuntime.policy.model import (
        ContainerConfig,
        ContainerGrant,
        ImageFacts,
        LsmFacts,
        Mount,
        Namespaces,
        Resources,
        SandboxConfig,
        SandboxGrant,
    )
    from noderuntime.policy.rules import HandlerRules

_log = logging.getLogger(__name__)

SECCOMP_LIMIT_BYTES: Final = 1024 * 1024
_OWN_NAME = re.compile(r"\[.*\]")


def for_pod(handler: Handler, sandbox: SandboxConfig, now_ns: int) -> Handler:
    """Return the handler with the rules that hold for this Pod now: exceptions end (``now_ns``)."""
    if handler.rules is None or not handler.rules.exceptions:
        return handler
    now_s = now_ns / 1e9
    for each in exceptions.holding(handler.rules, sandbox, now_s):
        _log.info(
            "an exception of the profile holds",
            extra={
                "handler": handler.name,
                "namespace": each.namespace,
                "sections": ",".join(sorted(each.sections)),
                "expires": each.expires,
            },
        )
    return replace(handler, rules=exceptions.rules_at(handler.rules, sandbox, now_s))


def admit_sandbox(asked: Asking, handler: Handler, config: SandboxConfig) -> SandboxGrant:
    """Return what the sandbox gets. Raises DeniedError, InvalidArgumentError."""
    require_namespaces(config.namespaces)
    with span("policy.admit", handler=handler.name):
        answer = decide.admit_sandbox(handler.rules, config)
        _record(asked, handler, answer)
    if isinstance(answer, Denial):
        raise _denied(answer)
    _report(handler, answer.findings, answer.changes)
    return answer


def admit_image(asked: Asking, handler: Handler, reference: str) -> None:
    """Raise DeniedError where the handler's registries do not allow the reference to be pulled."""
    rules = handler.rules
    with span("policy.admit", handler=handler.name):
        denial = decide.admit_image(rules, reference)
        findings = () if rules is None else decide.findings_on_image(rules, reference)
        asked.record(rules, denial, findings)
    if denial is not None:
        raise _denied(denial)


def admit_image_of(asked: Asking, handler: Handler, config: ContainerConfig, image: Image) -> str:
    """Return the reference that the container runs under. Raises DeniedError.

    An image may have been pulled for another handler, so it is asked again here: for the Pod's own
    words where the kubelet sent them, else for the image's names, of which one must pass.
    """
    return _admit_names(asked, handler, (config.image_reference, config.image), image)


def admit_image_volume(asked: Asking, handler: Handler, mount: Mount, image: Image) -> str:
    """Return the reference that an image is mounted under, as one is run. Raises DeniedError."""
    return _admit_names(asked, handler, (mount.image_reference, mount.image), image)


def _admit_names(asked: Asking, handler: Handler, reference: tuple[str, str], image: Image) -> str:
    """Return the name that passes of a reference: the Pod's words, and what became of them.

    A pass is not recorded here: the decision on the container, which follows, is about it too.
    """
    words, resolved = reference
    if not words and handler.rules is not None and handler.rules.require_digest:
        words = resolved  # an image has its digests' names whatever the Pod has named it by
    names = (words,) if words else (*image.repo_tags, *image.repo_digests) or (resolved,)
    with span("policy.admit", handler=handler.name):
        denials = [decide.admit_image(handler.rules, name) for name in names]
        for name, denial in zip(names, denials, strict=True):
            if denial is None:
                return name
        first = next(denial for denial in denials if denial is not None)
        asked.record(handler.rules, first)
    raise _denied(first)


def admit_container(
    asked: Asking,
    handler: Handler,
    sandbox: SandboxConfig,
    container: ContainerConfig,
    image: ImageFacts,
    host: HostFacts,
) -> ContainerGrant:
    """Return how the container runs. Raises DeniedError, InvalidArgumentError."""
    with span("policy.admit", handler=handler.name):
        answer = decide.admit_container(handler.rules, sandbox, container, image, host)
        _record(asked, handler, answer)
    if isinstance(answer, Denial):
        raise _denied(answer)
    _report(handler, answer.findings, answer.changes)
    return answer


def admit_exec(asked: Asking, rules: HandlerRules | None, answer: ExecGrant | Denial) -> ExecGrant:
    """Tell what was decided of a joining process, and return it. Raises DeniedError."""
    if isinstance(answer, Denial):
        _tell_of_session(asked, rules, denial=answer)
        raise _denied(answer)
    _tell_of_session(asked, rules, findings=answer.findings, changes=answer.changes)
    return answer


def admit_session(
    asked: Asking, rules: HandlerRules | None, answer: tuple[Denial, ...] | Denial
) -> None:
    """Tell what was decided of a session with what runs already. Raises DeniedError."""
    if isinstance(answer, Denial):
        _tell_of_session(asked, rules, denial=answer)
        raise _denied(answer)
    _tell_of_session(asked, rules, findings=answer)


def _tell_of_session(
    asked: Asking,
    rules: HandlerRules | None,
    *,
    denial: Denial | None = None,
    findings: tuple[Denial, ...] = (),
    changes: tuple[str, ...] = (),
) -> None:
    with span("policy.admit", handler="" if rules is None else rules.handler):
        asked.record(rules, denial, findings, changes)
    for finding in findings:
        metrics.count_finding(finding.profile, _field(finding))


def admit_resources(
    asked: Asking, handler: Handler, resources: Resources, *, again: bool = False
) -> Resources:
    """Return the limits that an update may set. Raises DeniedError.

    ``again``: a second question of the same update, of which only a denial is recorded.
    """
    rules = handler.rules
    with span("policy.admit", handler=handler.name):
        answer = decide.admit_resources(rules, resources)
        if isinstance(answer, Denial):
            asked.record(rules, answer)
        elif rules is not None and not again:
            changes = () if answer == resources else ("what is to have no limit has the profile's",)
            asked.record(rules, None, decide.findings_on_resources(rules, resources), changes)
    if isinstance(answer, Denial):
        raise _denied(answer)
    return answer


def host_facts(
    container: ContainerConfig,
    real_paths: Mapping[str, str],
    lsm: LsmFacts,
    *,
    own: bool = True,
) -> HostFacts:
    """Read what only the node knows of the container's mounts and its profiles. Blocking.

    ``own``: the handler is the node's own; under a profile no filter of a file is ever used.
    """
    security = container.security
    is_localhost = security.seccomp.type is ProfileType.LOCALHOST
    wants_file = own and is_localhost and not security.privileged
    return HostFacts(
        mountinfo=Path("/proc/self/mountinfo").read_text() if need_the_table(container) else "",
        real_paths=real_paths,
        capabilities=capabilities.of_status(Path("/proc/self/status").read_text()),
        seccomp_file=read_seccomp(security.seccomp.localhost_ref) if wants_file else None,
        lsm=lsm,
    )


def read_seccomp(reference: str) -> str:
    """Read a Localhost profile: what the kubelet made of ``localhostProfile`` is its path. Blocking.

    Raises InvalidArgumentError for one that is missing, too large or no file.
    """
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        with os.fdopen(
            os.open(reference, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb"
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgumentError(f"seccomp profile {reference} is not a regular file")
            data = file.read(SECCOMP_LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"seccomp profile {reference} cannot be read on this node: {error}"
        ) from error
    if len(data) > SECCOMP_LIMIT_BYTES:
        raise InvalidArgumentError(
            f"seccomp profile {reference} is larger than {SECCOMP_LIMIT_BYTES} bytes"
        )
    return data.decode(errors="replace")


def require_namespaces(namespaces: Namespaces) -> None:
    """Refuse the namespace modes that have no meaning, by the field's name."""
    field = "linux.security_context.namespace_options"
    for name, mode in (("network", namespaces.network), ("ipc", namespaces.ipc)):
        if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
            raise InvalidArgumentError(f"{field}.{name}: {mode} is not served; use POD or NODE")


def require_shared_pid(sandbox: SandboxConfig, container: ContainerConfig) -> None:
    """Refuse a container that wants to share the PID namespace of a Pod that has none."""
    asked = container.security.namespaces.pid
    if asked is NamespaceMode.POD and sandbox.namespaces.pid is not NamespaceMode.POD:
        raise InvalidArgumentError(
            f"linux.security_context.namespace_options.pid: container {container.name} asks for "
            f"POD, but its sandbox was run with {sandbox.namespaces.pid}; both must say the same"
        )


def _record(
    asked: Asking, handler: Handler, answer: SandboxGrant | ContainerGrant | Denial
) -> None:
    if isinstance(answer, Denial):
        asked.record(handler.rules, answer)
    else:
        asked.record(handler.rules, None, answer.findings, answer.changes)


def _denied(denial: Denial) -> DeniedError:
    metrics.count_denial(denial.profile, _field(denial))
    return DeniedError(denial.sentence())


def _field(denial: Denial) -> str:
    """Return the field without names of the Pod's own: a label must not have a value for each Pod."""
    return _OWN_NAME.sub("", denial.field.removeprefix(f"containers[{denial.container}]."))


def _report(handler: Handler, findings: tuple[Denial, ...], changes: tuple[str, ...]) -> None:
    for finding in findings:
        metrics.count_finding(finding.profile, _field(finding))
        _log.warning(
            "the profile would refuse this",
            extra={"handler": handler.name, "finding": finding.sentence()},
        )
    if changes:
        _log.info("the profile set defaults", extra={"changes": "; ".join(changes)})
