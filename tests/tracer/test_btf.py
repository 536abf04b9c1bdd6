"""Offsets from the kernel's BTF: right where they can be checked by other means, and clear errors."""

from __future__ import annotations

import re
import subprocess

import pytest

from tracer import btf
from tracer.errors import BackendUnavailable, MissingError
from tracer.source.live import open_live

pytestmark = pytest.mark.bpf


def test_offsets_are_what_bpftool_says() -> None:
    """bpftool prints the same BTF by code of its own; members at the top level of a struct are easily found in it."""
    dump = subprocess.run(
        ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"], capture_output=True, text=True, check=True
    ).stdout
    found, checked = btf.offsets(), set()
    for macro, (struct, path) in btf.FIELDS.items():
        block = re.search(rf"STRUCT '{struct}' size=\d+ vlen=\d+\n((?:\t.*\n)*)", dump)
        member = block and re.search(rf"\t'{path}' type_id=\d+ bits_offset=(\d+)", block[1])
        if member:
            assert found[macro] == int(member[1]) // 8, macro
            checked.add(macro)
    assert checked >= {"INET_SPORT", "CT_STATUS", "FDT_FD", "FILE_PRIVATE_DATA", "SOCKET_SK"}


def test_a_member_that_is_not_there() -> None:
    with btf.KernelTypes() as types, pytest.raises(BackendUnavailable, match="struct sock has no member sk_nothing"):
        types.offset("sock", "sk_nothing")


@pytest.mark.parametrize("backend", ["auto", "tracepoint"])
def test_without_the_module_nf_conntrack(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its structures are then in no BTF, as any other name that begins so."""
    monkeypatch.setitem(btf.FIELDS, "CT_STATUS", ("nf_conn_unloaded", "status"))
    with pytest.raises(MissingError, match="nf_conntrack is not loaded") as raised:
        open_live(backend)
    assert raised.value.hint == "modprobe nf_conntrack"
    assert not isinstance(raised.value, BackendUnavailable)


def test_functions_and_tracepoints_have_ids() -> None:
    number, module = btf.function_id("inet_stream_connect")
    assert number > 0 and module == 0
    assert btf.tracepoint_id("net_dev_queue") > 0
    with pytest.raises(BackendUnavailable, match="no function no_such_function"):
        btf.function_id("no_such_function")
    with pytest.raises(BackendUnavailable, match="no tracepoint no_such_tracepoint"):
        btf.tracepoint_id("no_such_tracepoint")
