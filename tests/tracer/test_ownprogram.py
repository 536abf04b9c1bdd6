"""What a user's BPF program reports is decoded by its C struct, with the gaps that C leaves between fields."""

from __future__ import annotations

import struct

import pytest

from tracer.errors import UsageError
from tracer.ownprogram import Layout, line


def test_fields_are_decoded_as_their_types_say() -> None:
    fields = [
        ("pid", "u32"),
        ("comm", "char[16]"),
        ("to", "u8[4]"),
        ("port", "u16"),
        ("since", "__u64"),
        ("raw", "__be32"),
        ("raw_port", "__be16"),
        ("far", "unsigned char[16]"),
        ("counts", "u16[2]"),
        ("state", "int"),
        ("open", "bool"),
    ]
    data = struct.pack("=I16s4BHxx xxxxQ", 7, b"curl", 10, 96, 100, 50, 8000, 1 << 40)
    data += (
        bytes([10, 0, 0, 1]) + (443).to_bytes(2, "big") + bytes(15) + b"\x01" + struct.pack("=HHxxi?", 1, 2, -3, True)
    )
    assert Layout(fields).decode(data + bytes(8)) == {
        "pid": 7,
        "comm": "curl",
        "to": "10.96.100.50",
        "port": 8000,
        "since": 1 << 40,
        "raw": "10.0.0.1",
        "raw_port": 443,
        "far": "::1",
        "counts": [1, 2],
        "state": -3,
        "open": True,
    }


@pytest.mark.parametrize("type_", ["struct in_addr", "void *", "u32[2][2]", "struct (unnamed struct at x.c:1:1)", ""])
def test_a_type_that_is_not_understood_is_named_with_its_field(type_: str) -> None:
    with pytest.raises(UsageError, match="where is a"):
        Layout([("where", type_)])


def test_a_record_that_is_too_short_is_refused() -> None:
    with pytest.raises(UsageError, match="has 3 bytes, and its struct 4"):
        Layout([("pid", "u32")]).decode(b"abc")


def test_text_from_the_kernel_is_escaped() -> None:
    assert line("09:00:00.123", "connects", {"pid": 7, "comm": "a\x1b[31m"}) == (
        r"09:00:00.123 connects pid=7 comm=a\x1b[31m"
    )
