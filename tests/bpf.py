"""What the kernel does with a seccomp filter, and what a filter of OCI says that it should do.

``run`` interprets a program as seccomp(2) and the classic BPF of linux/filter.h define it; ``meant``
reads ``linux.seccomp`` without any library but for the numbers of the names. A test that compares
them trusts neither the compiler nor the OCI runtime.
"""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

KILL: Final = 0x00000000
KILL_PROCESS: Final = 0x80000000
ERRNO: Final = 0x00050000
LOG: Final = 0x7FFC0000
ALLOW: Final = 0x7FFF0000
AUDIT_ARCH: Final = {"X86_64": 0xC000003E, "X86": 0x40000003, "X32": 0xC000003E}
X32_BIT: Final = 0x40000000
_SCMP_ARCH: Final = {"X86_64": 0xC000003E, "X86": 0x40000003, "X32": 0x4000003E}
_ACTIONS: Final = {
    "KILL": KILL,
    "KILL_THREAD": KILL,
    "KILL_PROCESS": KILL_PROCESS,
    "TRAP": 0x00030000,
    "ERRNO": ERRNO,
    "LOG": LOG,
    "ALLOW": ALLOW,
}
_OPERATORS: Final[Mapping[str, Callable[[int, int, int], bool]]] = {
    "SCMP_CMP_NE": lambda value, one, _: value != one,
    "SCMP_CMP_LT": lambda value, one, _: value < one,
    "SCMP_CMP_LE": lambda value, one, _: value <= one,
    "SCMP_CMP_EQ": lambda value, one, _: value == one,
    "SCMP_CMP_GE": lambda value, one, _: value >= one,
    "SCMP_CMP_GT": lambda value, one, _: value > one,
    "SCMP_CMP_MASKED_EQ": lambda value, mask, one: value & mask == one,
}
_JUMPS: Final[Mapping[int, Callable[[int, int], bool]]] = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A system call as it enters the kernel; ``entry`` is X86_64, X86 (int 0x80) or X32."""

    entry: str
    number: int
    args: tuple[int, ...] = (0, 0, 0, 0, 0, 0)

    @property
    def data(self) -> bytes:
        """``struct seccomp_data``."""
        number = self.number | (X32_BIT if self.entry == "X32" else 0)
        return struct.pack("=iIQ6Q", number, AUDIT_ARCH[self.entry], 0, *self.args)


def run(program: bytes, call: Call) -> int:
    """Return what the filter says: an action of seccomp(2), its value in the low half."""
    code, data = list(struct.iter_unpack("=HBBI", program)), call.data
    accumulator = at = 0
    while True:
        operation, yes, no, constant = code[at]
        at += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            accumulator = struct.unpack_from("=I", data, constant)[0]
        elif operation == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= constant
        elif operation == 0x05:  # BPF_JMP | BPF_JA
            at += constant
        elif operation == 0x06:  # BPF_RET | BPF_K
            return int(constant)
        elif operation in _JUMPS:
            at += yes if _JUMPS[operation](accumulator, constant) else no
        else:
            raise ValueError(f"instruction {operation:#x} is not one of a seccomp filter")


class Names:
    """Numbers of system calls, as libseccomp knows them."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
        self._lib.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
        self._lib.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = [ctypes.c_void_p]

    def of(self, call: Call) -> str | None:
        """Return the name, None for a number that is none."""
        number = call.number | (X32_BIT if call.entry == "X32" else 0)
        found = self._lib.seccomp_syscall_resolve_num_arch(_SCMP_ARCH[call.entry], number)
        if found is None:
            return None
        name = ctypes.string_at(found).decode()
        self._free(found)
        return name

    def number(self, entry: str, name: str) -> int:
        """Return the number without the bit of X32; negative where the entry has not got it."""
        found = self._lib.seccomp_syscall_resolve_name_arch(_SCMP_ARCH[entry], name.encode())
        return int(found) & ~X32_BIT if found >= 0 else int(found)


def meant(document: Mapping[str, Any], names: Names, call: Call) -> int:
    """Return what ``linux.seccomp`` says about a call."""
    if f"SCMP_ARCH_{call.entry}" not in document.get("architectures", ["SCMP_ARCH_X86_64"]):
        return KILL
    default = _action(document["defaultAction"], document.get("defaultErrnoRet"))
    name = names.of(call)
    for rule in document["syscalls"]:
        if name in rule["names"] and _holds(rule.get("args") or (), call):
            return _action(rule["action"], rule.get("errnoRet"))
    return default


def _action(name: str, value: int | None) -> int:
    action = _ACTIONS[name.removeprefix("SCMP_ACT_")]
    return action | (1 if value is None else value) if action == ERRNO else action


def _holds(conditions: Sequence[Mapping[str, Any]], call: Call) -> bool:
    size = 2**64 - 1 if call.entry == "X86_64" else 2**32 - 1  # libseccomp: X32 is 32 bits wide
    results = [
        _OPERATORS[c["op"]](
            call.args[c["index"]] & size, c["value"] & size, (c.get("valueTwo") or 0) & size
        )
        for c in conditions
    ]
    twice = any(n > 1 for n in Counter(c["index"] for c in conditions).values())
    return any(results) if twice else all(results)
