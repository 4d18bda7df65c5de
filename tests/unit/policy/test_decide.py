from __future__ import annotations

from dataclasses import replace

import pytest

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy import decide
from noderuntime.policy.model import (
    HostFacts,
    IdMapping,
    Mount,
    NamespaceMode,
    Namespaces,
    ProfileType,
    ResolvedUser,
    SandboxGrant,
    SecurityProfileRef,
    UserNamespace,
)
from noderuntime.policy.spec import DEFAULT_MASKED
from tests.unit.policy.factories import (
    NODE,
    admit,
    container,
    granted,
    image,
    rules,
    sandbox,
    security,
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kernel.core_pattern", id="of the node as a whole"),
        pytest.param("vm.swappiness", id="of the node's memory"),
        pytest.param("net/../kernel/core_pattern", id="up"),
        pytest.param("net.ipv4..x", id="empty part"),
        pytest.param("net.ipv4.x\n", id="line break"),
        pytest.param("", id="empty"),
        pytest.param("kernel.hostname", id="UTS, which is the Pod's hostname"),
    ],
)
@pytest.mark.parametrize("profile", [None, {"sysctls": {"allow": ["kernel.core_pattern"]}}])
def test_a_sysctl_of_the_node_is_refused_whatever_the_profile_says(
    name: str, profile: dict[str, object] | None
) -> None:
    own = None if profile is None else rules(profile)
    with pytest.raises(InvalidArgumentError, match=r"securityContext\.sysctls"):
        decide.admit_sandbox(own, sandbox(sysctls={name: "1"}))


@pytest.mark.parametrize(
    ("name", "namespaces"),
    [
        ("net.ipv4.tcp_syncookies", Namespaces(network=NODE)),
        ("kernel.shmmax", Namespaces(ipc=NODE)),
        ("fs.mqueue.msg_max", Namespaces(ipc=NODE)),
    ],
)
def test_a_sysctl_of_a_namespace_that_is_the_nodes_is_refused(
    name: str, namespaces: Namespaces
) -> None:
    own = rules({"hostNamespaces": ["Network", "IPC"], "sysctls": {"allow": [name]}})
    for each in (None, own):
        with pytest.raises(InvalidArgumentError, match="would change the node"):
            decide.admit_sandbox(each, sandbox(sysctls={name: "1"}, namespaces=namespaces))


def test_sysctls_are_handed_over_with_dots() -> None:
    answer = decide.admit_sandbox(None, sandbox(sysctls={"net/ipv4/conf/eth0.1/rp_filter": "1"}))
    assert isinstance(answer, SandboxGrant)
    assert answer.sysctls == {"net.ipv4.conf.eth0/1.rp_filter": "1"}


def test_a_sysctl_value_of_several_lines_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="one line"):
        decide.admit_sandbox(None, sandbox(sysctls={"net.ipv4.tcp_syncookies": "1\n2"}))


def test_a_sandbox_has_no_container_whose_pid_namespace_it_could_join() -> None:
    asked = Namespaces(pid=NamespaceMode.TARGET, target_id="x")
    with pytest.raises(InvalidArgumentError, match=r"namespace_options\.pid: TARGET"):
        decide.admit_sandbox(None, sandbox(namespaces=asked))


@pytest.mark.parametrize("hostname", ["a" * 65, "ü" * 33, "a\nb", "a b", "a\0"])
def test_a_hostile_hostname_is_an_invalid_argument(hostname: str) -> None:
    with pytest.raises(InvalidArgumentError, match="hostname") as caught:
        decide.admit_sandbox(None, sandbox(hostname=hostname))
    assert caught.value.for_kubelet().isprintable()


@pytest.mark.parametrize(
    "user",
    [
        ResolvedUser(uid=2**32 - 1, gid=0),
        ResolvedUser(uid=2**32, gid=0),
        ResolvedUser(uid=-1, gid=0),
        ResolvedUser(uid=1, gid=2**32),
        ResolvedUser(uid=1, gid=1, additional_gids=(2**32,)),
    ],
)
@pytest.mark.parametrize("own", [None, rules(), rules({"mode": "Audit"})])
def test_an_id_that_would_wrap_is_an_invalid_argument(user: ResolvedUser, own: object) -> None:
    with pytest.raises(InvalidArgumentError, match="is not between 0 and 4294967294"):
        admit(own, facts=image(user))  # type: ignore[arg-type]


def test_a_privileged_container_needs_a_privileged_sandbox() -> None:
    with pytest.raises(InvalidArgumentError, match="sandbox is not privileged"):
        admit(None, container(security(privileged=True)), pod=sandbox())


@pytest.mark.parametrize(
    ("kind", "privileged", "filtered"),
    [
        (ProfileType.UNCONFINED, False, False),
        (ProfileType.RUNTIME_DEFAULT, False, True),
        (ProfileType.RUNTIME_DEFAULT, True, False),
    ],
)
def test_the_nodes_own_handler_filters_when_the_pod_asks(
    kind: ProfileType, privileged: bool, filtered: bool
) -> None:
    asks = security(seccomp=SecurityProfileRef(type=kind), privileged=privileged)
    assert (granted(None, container(asks)).seccomp is not None) is filtered


def test_a_filter_of_a_file_is_the_containers_filter() -> None:
    asks = security(seccomp=SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="/x"))
    text = '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}'
    answer = granted(None, container(asks), host=HostFacts(seccomp_file=text))
    assert answer.seccomp is None
    assert answer.seccomp_document == {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
    with pytest.raises(InvalidArgumentError, match="seccomp profile /x was not read"):
        admit(None, container(asks))


def test_a_filter_of_a_file_is_nothing_to_a_privileged_container() -> None:
    ref = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="/x")
    answer = granted(None, container(security(seccomp=ref, privileged=True)))
    assert (answer.seccomp, answer.seccomp_document) == (None, None)


def test_masks_are_the_pods_on_the_nodes_own_handler_and_more_under_a_profile() -> None:
    asks = security(masked_paths=("/proc/extra",))
    assert granted(None, container(asks)).masked_paths == ("/proc/extra",)
    assert granted(rules(), container(asks)).masked_paths == (*DEFAULT_MASKED, "/proc/extra")
    assert granted(None, container(security(masked_paths=()))).masked_paths == DEFAULT_MASKED
    assert granted(None, container(security(privileged=True))).masked_paths == ()


USERS = UserNamespace(
    uids=IdMapping(container_id=0, host_id=100000, length=65536),
    gids=IdMapping(container_id=0, host_id=100000, length=65536),
)


@pytest.mark.parametrize("field", ["network", "ipc", "pid"])
def test_a_user_namespace_goes_with_none_of_the_nodes(field: str) -> None:
    asked = replace(Namespaces(user=USERS), **{field: NODE})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="hostUsers: false"):
        decide.admit_sandbox(None, sandbox(namespaces=asked))


def test_a_container_has_the_user_namespace_of_its_sandbox() -> None:
    pod = sandbox(namespaces=Namespaces(user=USERS))
    other = replace(USERS, uids=IdMapping(container_id=0, host_id=1, length=1))
    mount = Mount(container_path="/data", host_path="/data", idmap=other)
    granted(None, container(security(namespaces=Namespaces(user=USERS))), pod=pod)
    for asked in (
        container(security(namespaces=Namespaces(user=other))),
        container(mounts=(mount,)),
    ):
        with pytest.raises(InvalidArgumentError, match="not those of its sandbox"):
            admit(None, asked, pod=pod)
    with pytest.raises(InvalidArgumentError, match="not those of its sandbox"):
        admit(None, container(mounts=(replace(mount, idmap=USERS),)))


@pytest.mark.parametrize(
    "user",
    [
        ResolvedUser(uid=65536, gid=0),
        ResolvedUser(uid=0, gid=65536),
        ResolvedUser(uid=0, gid=0, additional_gids=(70000,)),
    ],
)
def test_an_id_that_the_user_namespace_has_not_is_refused(user: ResolvedUser) -> None:
    pod = sandbox(namespaces=Namespaces(user=USERS))
    with pytest.raises(InvalidArgumentError, match="is not among the 65536 IDs"):
        admit(None, pod=pod, facts=image(user))
