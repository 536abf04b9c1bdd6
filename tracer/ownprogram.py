"""What a BPF program that somebody else wrote reports, read by the C struct that it submits.

    BPF_RINGBUF_OUTPUT(connects, 8);            the buffer's name
    connects.ringbuf_output(&it, sizeof(it), 0)  the struct's fields and their types, which BCC tells

A field is a number, text (char[N]) or an address (u8[4], u8[16], __be32); __be16 is told as the number that it means.

What belongs here: bytes in, values out, and how they look in a line. What does not: loading (`tracer.bpf`).
"""

from __future__ import annotations

import ctypes
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from tracer.errors import UsageError
from tracer.escape import escape

_NUMBERS: Mapping[str, Any] = {
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "s8": ctypes.c_int8,
    "s16": ctypes.c_int16,
    "s32": ctypes.c_int32,
    "s64": ctypes.c_int64,
    "be16": ctypes.c_uint16,
    "be32": ctypes.c_uint32,
    "bool": ctypes.c_bool,
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "unsigned char": ctypes.c_uint8,
    "short": ctypes.c_int16,
    "unsigned short": ctypes.c_uint16,
    "int": ctypes.c_int32,
    "unsigned int": ctypes.c_uint32,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_int64,
    "unsigned long long": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "pid_t": ctypes.c_int32,
    **{f"uint{bits}_t": getattr(ctypes, f"c_uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"int{bits}_t": getattr(ctypes, f"c_int{bits}") for bits in (8, 16, 32, 64)},
}
_TYPE = re.compile(r"(?:const )?(?:__)?(?P<base>[\w ]*?\w) ?(?:\[(?P<length>\d+)\])?")
_BYTES = ("u8", "uint8_t", "unsigned char")

Value = int | str | bool | list[int]


class Layout:
    """How a struct lies in memory. `fields`: names and their types in C. Raises UsageError for a type unknown here."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self._types = {name: _parsed(name, text) for name, text in fields}
        members = [(name, _NUMBERS[base] * length if length else _NUMBERS[base]) for name, base, length in self._flat]
        self._struct: Any = type("Record", (ctypes.Structure,), {"_fields_": members})

    @property
    def _flat(self) -> list[tuple[str, str, int]]:
        return [(name, base, length) for name, (base, length) in self._types.items()]

    def decode(self, data: bytes) -> dict[str, Value]:
        """The fields' values. Raises UsageError when there are fewer bytes than the struct has."""
        if len(data) < ctypes.sizeof(self._struct):
            raise UsageError(f"a record has {len(data)} bytes, and its struct {ctypes.sizeof(self._struct)}")
        found = self._struct.from_buffer_copy(data)
        return {name: _value(getattr(found, name), base, length) for name, base, length in self._flat}


def _parsed(name: str, text: str) -> tuple[str, int]:
    match = _TYPE.fullmatch(text)
    if match is None or match["base"] not in _NUMBERS:
        raise UsageError(
            f"{name} is a {text}: only numbers, char[N] and addresses (u8[4], u8[16], __be32) are understood",
            hint="k8snet-trace load --help",
        )
    return match["base"], int(match["length"] or 0)


def _value(raw: Any, base: str, length: int) -> Value:
    if base == "char":
        return bytes(raw).decode(errors="backslashreplace")
    if base in _BYTES and length in (4, 16):
        return str(ipaddress.ip_address(bytes(raw)))
    if length:
        return list(raw)
    if base == "be32":
        return str(ipaddress.ip_address(int(raw).to_bytes(4, "little")))
    return socket.ntohs(raw) if base == "be16" else raw


def line(clock: str, buffer: str, values: Mapping[str, Value]) -> str:
    """One record for people; texts come from the kernel and may hold anything."""
    words = (f"{name}={escape(value) if isinstance(value, str) else value}" for name, value in values.items())
    return " ".join((clock, buffer, *words))
