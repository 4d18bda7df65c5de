"""The bytes of the first process' program."""

from __future__ import annotations

import struct

import pytest

from noderuntime.errors import HostError
from noderuntime.host.init import program


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_program_is_a_whole_elf_file(machine: str, number: int) -> None:
    data = program(machine)
    assert data[:7] == b"\x7fELF\x02\x01\x01"
    kind, of_machine, _, entry, segments = struct.unpack_from("<HHIQQ", data, 16)
    assert (kind, of_machine, segments) == (2, number, 64)
    loaded, flags, offset, address, _, in_file, in_memory = struct.unpack_from("<IIQQQQQ", data, 64)
    assert (loaded, flags, offset) == (1, 5, 0)  # PT_LOAD, readable and executable, never writable
    assert in_file == in_memory == len(data)
    assert entry == address + 120
    assert entry % 4 == 0


def test_the_arm_program_branches_and_points_where_it_should() -> None:
    code = struct.unpack_from("<16I", program("aarch64"), 120)
    [address_at] = [i for i, word in enumerate(code) if word >> 24 == 0x10]
    distance = (code[address_at] >> 5 & 0x7FFFF) * 4
    assert 120 + address_at * 4 + distance == len(program("aarch64")) - 32
    [branch_at] = [i for i, word in enumerate(code) if word >> 24 == 0x17]
    back = (code[branch_at] & 0x3FFFFFF) - (1 << 26)
    assert code[branch_at + back] == 0xD2800928  # mov x8, 73


def test_what_follows_the_code_ignores_a_signal() -> None:
    for machine in ("x86_64", "aarch64"):
        assert struct.unpack("<4Q", program(machine)[-32:]) == (1, 0, 0, 0)


def test_another_machine_is_refused_by_name() -> None:
    with pytest.raises(HostError, match="riscv64"):
        program("riscv64")
