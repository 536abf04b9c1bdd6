"""Compiled C apart from its compiler: packing, and which map an instruction means."""

from __future__ import annotations

import struct

import pytest

from tracer.bpfobject import BpfObject, MapShape

# ld_imm64 of a map (BPF_PSEUDO_MAP_FD), twice, and a constant that looks like one; exit (struct bpf_insn)
FIRST, SECOND = bytes.fromhex("1811000000000000" + 8 * "00"), bytes.fromhex("1811000001000000" + 8 * "00")
CONSTANT, EXIT = bytes.fromhex("1801000001000000" + 8 * "00"), bytes.fromhex("9500000000000000")
SHAPE = MapShape(kind=1, key_size=4, value_size=8, max_entries=10, flags=1, key_type=2, value_type=3)
OBJECT = BpfObject(b"\x9f\xeb", {"services": SHAPE, "slots": SHAPE}, {"lb": SECOND + CONSTANT + FIRST + EXIT})


def test_what_is_packed_is_what_is_unpacked() -> None:
    assert BpfObject.unpack(OBJECT.pack()) == OBJECT


def test_each_map_is_the_one_of_its_number() -> None:
    code = OBJECT.bytecode("lb", {"services": 1, "slots": 0})  # descriptors that are numbers of maps, too
    assert [struct.unpack_from("=i", code, at + 4)[0] for at in (0, 16, 32)] == [0, 1, 1]
    assert len(code) == len(OBJECT.functions["lb"])


def test_a_map_or_a_function_that_is_missing_is_an_error() -> None:
    with pytest.raises(KeyError):
        OBJECT.bytecode("lb", {"services": 3})
    with pytest.raises(KeyError):
        OBJECT.bytecode("other", {"services": 3, "slots": 4})


def test_without_types_there_is_nothing_to_load() -> None:
    assert BpfObject(b"", {}, {}).load_types() is None
