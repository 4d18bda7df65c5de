"""Filters of system calls, compiled by the node's own libseccomp to what the kernel runs.

An OCI runtime would compile the same filter anew for each container, and for nothing: crun takes a
compiled one from the annotation ``BPF_ANNOTATION``. The translation is crun's own, rule by rule, so
that both ways give one filter: unknown names are left out, a rule with the default action is none,
conditions on the same argument are alternatives. Only the order of the comparisons differs: a
binary tree instead of a list.

The library runs in this process: it reads nothing but the values that the policy has checked, and a
compile takes some ten milliseconds, with the interpreter's lock released.
Source: seccomp_init(3), seccomp_rule_add(3), seccomp_attr_set(3), seccomp_export_bpf(3) of
libseccomp 2.5; crun.1 "run.oci.seccomp_bpf_data"; BPF_MAXINSNS of linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

from noderuntime.errors import HostError, InvalidArgumentError
from noderuntime.host.process import Command, run

LIBRARY: Final = "libseccomp.so.2"
INSTRUCTION_BYTES: Final = 8  # struct sock_filter
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_ERROR: Final = -1  # __NR_SCMP_ERROR
_NOTHING_TO_DO: Final = -17  # EEXIST: the architecture is there already
_OPTIMIZE: Final = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_BINARY_TREE: Final = 2
_ERRNO: Final = 0x00050000
_TRACE: Final = 0x7FF00000
_ACTIONS: Final = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_VALUE: Final = frozenset({_ERRNO, _TRACE})
_EPERM: Final = 1
_OPERATORS: Final = {
    name: number
    for number, name in enumerate(
        (
            "SCMP_CMP_NE",
            "SCMP_CMP_LT",
            "SCMP_CMP_LE",
            "SCMP_CMP_EQ",
            "SCMP_CMP_GE",
            "SCMP_CMP_GT",
            "SCMP_CMP_MASKED_EQ",
        ),
        start=1,
    )
}
_VERSION_TIMEOUT_S: Final = 10.0
_CRUN: Final = re.compile(rb"^crun version (\d+)\.(\d+)", re.MULTILINE)
_CRUN_TAKES_BPF: Final = (0, 18)  # the first release with the annotation

Document = Mapping[str, object]
"""``linux.seccomp`` of the OCI runtime-spec."""


class SeccompCompiler(Protocol):
    """What turns ``linux.seccomp`` into a program."""

    @property
    def version(self) -> str:
        """The library's version; "" where there is none, and the OCI runtime has to compile."""
        ...

    def unknown(self, names: Iterable[str]) -> frozenset[str]:
        """Return the system calls that cannot be in a filter on this node."""
        ...

    def compile(self, document: Document) -> bytes:
        """Return the program, an array of ``struct sock_filter``. Blocking: some milliseconds.

        Raises InvalidArgumentError for a filter that the library or the kernel would not take.
        """
        ...

    async def is_taken_by(self, oci_runtime: Path) -> bool:
        """Tell whether an OCI runtime takes what is compiled here."""
        ...


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class LibSeccomp:
    """The ``SeccompCompiler`` of a node with libseccomp."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load the library. Raises HostError where it is missing or not the one that is known."""
        try:
            self._lib = _declared(ctypes.CDLL(library))
        except (OSError, AttributeError) as error:
            raise HostError(f"{library} cannot be used: {error}") from error

    @property
    def version(self) -> str:
        """The library's version, such as 2.5.4."""
        found = self._lib.seccomp_version().contents
        return f"{found.major}.{found.minor}.{found.micro}"

    def unknown(self, names: Iterable[str]) -> frozenset[str]:
        """Return the names that the library does not know on any architecture."""
        return frozenset(name for name in names if self._number(name) == _ERROR)

    def compile(self, document: Document) -> bytes:
        """Return the program. Raises InvalidArgumentError, HostError where memory is out."""
        default = _action(
            str(document["defaultAction"]), cast("int | None", document.get("defaultErrnoRet"))
        )
        filter_ = self._lib.seccomp_init(default)
        if not filter_:
            raise HostError("libseccomp does not begin a filter")
        try:
            self._fill(filter_, default, document)
            program = self._export(filter_)
        finally:
            self._lib.seccomp_release(filter_)
        length = len(program) // INSTRUCTION_BYTES
        if length > MAX_INSTRUCTIONS:
            raise InvalidArgumentError(
                f"the seccomp filter is too long for the kernel: {length} instructions of at most "
                f"{MAX_INSTRUCTIONS}; name fewer arguments or architectures"
            )
        return program

    async def is_taken_by(self, oci_runtime: Path) -> bool:
        """Ask a program for its version: crun takes programs, others compile themselves."""
        command = Command(argv=(str(oci_runtime), "--version"), timeout_s=_VERSION_TIMEOUT_S)
        output = await run(command)
        found = _CRUN.search(output.stdout)
        if found is None or b"+SECCOMP" not in output.stdout:
            return False
        return (int(found[1]), int(found[2])) >= _CRUN_TAKES_BPF

    def _fill(self, filter_: int, default: int, document: Document) -> None:
        lib = self._lib
        # An older library has no binary tree: the filter is the same, and slower.
        lib.seccomp_attr_set(filter_, _OPTIMIZE, _BINARY_TREE)
        for name in cast("Sequence[str]", document.get("architectures") or ()):
            token = lib.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise InvalidArgumentError(f"seccomp: {name} is not an architecture")
            _check(lib.seccomp_arch_add(filter_, token), name, _NOTHING_TO_DO)
        for rule in cast("Sequence[Mapping[str, Any]]", document.get("syscalls") or ()):
            action = _action(rule["action"], rule.get("errnoRet"))
            if action == default:
                continue
            conditions = _alternatives(rule.get("args") or ())
            for name in rule["names"]:
                self._add(filter_, action, name, conditions)

    def _add(
        self, filter_: int, action: int, name: str, conditions: Sequence[Sequence[_Comparison]]
    ) -> None:
        number = self._number(name)
        if number == _ERROR:
            return
        for each in conditions:
            comparisons = (_Comparison * len(each))(*each)
            result = self._lib.seccomp_rule_add_array(
                filter_, action, number, len(each), comparisons
            )
            _check(result, name)

    def _export(self, filter_: int) -> bytes:
        descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check(self._lib.seccomp_export_bpf(filter_, descriptor), "the program")
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)

    def _number(self, name: str) -> int:
        return int(self._lib.seccomp_syscall_resolve_name(name.encode()))


class OnlyTable:
    """The ``SeccompCompiler`` of a node without libseccomp: knows names, compiles nothing."""

    def __init__(self, known: frozenset[str]) -> None:
        """``known`` are the names that every OCI runtime's own libseccomp has."""
        self._known = known

    @property
    def version(self) -> str:
        """Nothing: there is none."""
        return ""

    def unknown(self, names: Iterable[str]) -> frozenset[str]:
        """Return the names that are not in the table."""
        return frozenset(names) - self._known

    def compile(self, document: Document) -> bytes:
        """Raise HostError."""
        raise HostError(f"there is no libseccomp to compile {len(document)} fields with")

    async def is_taken_by(self, oci_runtime: Path) -> bool:
        """Return False: there is nothing to take."""
        del oci_runtime
        return False


def compiler(known: frozenset[str]) -> SeccompCompiler:
    """Return the node's compiler; ``known`` is for a node without one."""
    try:
        return LibSeccomp()
    except HostError:
        return OnlyTable(known)


def _declared(lib: Any) -> Any:  # noqa: ANN401 - a library has whatever it is asked for
    """Say how the functions are called; one that is missing raises AttributeError."""
    context, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32
    lib.seccomp_version.restype = ctypes.POINTER(_Version)
    lib.seccomp_init.restype, lib.seccomp_init.argtypes = context, [number]
    lib.seccomp_release.restype, lib.seccomp_release.argtypes = None, [context]
    lib.seccomp_arch_resolve_name.restype = number
    lib.seccomp_arch_resolve_name.argtypes = [text]
    lib.seccomp_arch_add.argtypes = [context, number]
    lib.seccomp_attr_set.argtypes = [context, ctypes.c_int, number]
    lib.seccomp_syscall_resolve_name.argtypes = [text]
    comparisons = ctypes.POINTER(_Comparison)
    lib.seccomp_rule_add_array.argtypes = [
        *(context, number, ctypes.c_int, ctypes.c_uint),
        comparisons,
    ]
    lib.seccomp_export_bpf.argtypes = [context, ctypes.c_int]
    return lib


def _action(name: str, value: int | None) -> int:
    action = _ACTIONS[name]
    if action not in _WITH_VALUE:
        return action
    return action | (_EPERM if value is None else value)


def _alternatives(arguments: Sequence[Mapping[str, Any]]) -> list[list[_Comparison]]:
    """Return the conditions, each a rule of its own: as OCI runtimes read them, see above."""
    comparisons = [
        _Comparison(one["index"], _OPERATORS[one["op"]], one["value"], one.get("valueTwo") or 0)
        for one in arguments
    ]
    counts = Counter(one["index"] for one in arguments)
    if any(count > 1 for count in counts.values()):
        return [[one] for one in comparisons]
    return [comparisons]


def _check(result: int, what: str, *fine: int) -> None:
    if result < 0 and result not in fine:
        why = os.strerror(-result).lower()
        raise InvalidArgumentError(f"the seccomp filter cannot be compiled: {what}: {why}")
