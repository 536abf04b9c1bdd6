"""The few functions of libbpf that bcc does not offer: loading and attaching programs whose arguments the kernel types.

What belongs here: bpf(2) through libbpf.so.1 with ctypes, on bytecode that bcc compiled; cheap trials of what a
kernel allows. What does not: compiling (`tracer.bpf`), reading type information (`tracer.btf`).

bcc 0.26 knows fentry but not tp_btf, and hides the verifier's words on stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from tracer import btf
from tracer.errors import BackendUnavailable

# enum bpf_prog_type, enum bpf_attach_type (include/uapi/linux/bpf.h)
_SCHED_CLS, _RAW_TRACEPOINT, _CGROUP_SOCK_ADDR, _TRACING = 3, 17, 18, 26
_ATTACH_TYPES = {"raw_tp": 0, "tp_btf": 23, "fentry": 24, "fexit": 25}
_LOG_SIZE = 1 << 20
_INSTRUCTION_SIZE = 8
_INSTRUCTION = struct.Struct("=BBhi")  # code, registers, offset, immediate
_LOAD_IMMEDIATE, _PSEUDO_MAP_FD = 0x18, 1
_CALL, _PSEUDO_KFUNC_CALL = 0x85, 2
_PACKET = bytes(64)  # an Ethernet frame of no protocol
# r0 = 0; exit
_TRIVIAL = bytes.fromhex("b7000000000000009500000000000000")


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts (tools/lib/bpf/bpf.h), as far as libbpf 1.0 has it."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


def load_tracing(kind: str, target: str, instructions: bytes) -> int:
    """Load bytecode for the tracepoint or kernel function `target`. `kind`: raw_tp, tp_btf, fentry or fexit.

    Returns the program's descriptor. Raises BackendUnavailable.
    """
    library = btf.library()
    options = _LoadOptions(sz=ctypes.sizeof(_LoadOptions), expected_attach_type=_ATTACH_TYPES[kind])
    module = 0
    if kind == "tp_btf":
        options.attach_btf_id = btf.tracepoint_id(target)
    elif kind != "raw_tp":
        options.attach_btf_id, module = btf.function_id(target)
        options.attach_btf_obj_fd = module
    try:
        return _load(library, _RAW_TRACEPOINT if kind == "raw_tp" else _TRACING, target, instructions, options)
    finally:
        if module:
            os.close(module)


def attach_tracing(kind: str, target: str, program: int) -> int:
    """Attach a program that `load_tracing` loaded for the same `kind` and `target`.

    Returns the descriptor to close in order to detach it. Raises BackendUnavailable.
    """
    link = btf.library().bpf_raw_tracepoint_open(target.encode() if kind == "raw_tp" else None, program)
    if link < 0:
        raise BackendUnavailable(f"{kind} {target} can't be attached: {_words(ctypes.get_errno())}")
    return int(link)


def redirect_maps(instructions: bytes, descriptors: Mapping[int, int]) -> bytes:
    """The bytecode, with each map descriptor in it that is a key of `descriptors` replaced by the value.

    A map is loaded by a two-part instruction whose source register says that its immediate is a descriptor
    (struct bpf_insn, BPF_PSEUDO_MAP_FD, include/uapi/linux/bpf.h).
    """
    changed = bytearray(instructions)
    for start in range(0, len(changed), _INSTRUCTION_SIZE):
        code, registers, _, immediate = _INSTRUCTION.unpack_from(changed, start)
        if code == _LOAD_IMMEDIATE and registers >> 4 == _PSEUDO_MAP_FD and immediate in descriptors:
            _INSTRUCTION.pack_into(changed, start, code, registers, 0, descriptors[immediate])
    return bytes(changed)


class _TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts (tools/lib/bpf/bpf.h), as libbpf 1.0 has it."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def load_classifier(name: str, instructions: bytes, kernel_functions: Mapping[int, str]) -> int:
    """Load bytecode as a program for tc, to be run by `run`; gives its descriptor. Raises BackendUnavailable.

    `kernel_functions`: numbers of helpers that there are none of -> the kernel function (kfunc) to call instead
    (Documentation/bpf/kfuncs.rst). All of them in the kernel proper, or all in the module nf_conntrack.
    """
    options = _LoadOptions(sz=ctypes.sizeof(_LoadOptions))
    ids: dict[int, int] = {}
    module = 0
    with contextlib.ExitStack() as stack:
        for number, function in kernel_functions.items():
            ids[number], module = btf.function_id(function)
            if module:
                stack.callback(os.close, module)
        # Element 0 stands for the kernel proper, and is not looked at (kernel/bpf/verifier.c, find_kfunc_desc_btf).
        descriptors = (ctypes.c_int * 2)(0, module)
        if module:
            options.fd_array = ctypes.addressof(descriptors)
        called = _call_kernel_functions(instructions, ids, 1 if module else 0)
        return _load(btf.library(), _SCHED_CLS, name, called, options)


def _call_kernel_functions(instructions: bytes, ids: Mapping[int, int], holder: int) -> bytes:
    """The bytecode with calls of the BTF ids that `ids` has in place of those helpers; `holder`: index of their BTF."""
    changed = bytearray(instructions)
    for start in range(0, len(changed), _INSTRUCTION_SIZE):
        code, _, _, immediate = _INSTRUCTION.unpack_from(changed, start)
        if code == _CALL and immediate in ids:
            _INSTRUCTION.pack_into(changed, start, code, _PSEUDO_KFUNC_CALL << 4, holder, ids[immediate])
    return bytes(changed)


def run(program: int, times: int) -> int:
    """Run a program that `load_classifier` loaded, in the calling thread's network namespace; gives what it returned
    last (BPF_PROG_TEST_RUN, net/bpf/test_run.c). Raises OSError.
    """
    options = _TestRunOptions(
        sz=ctypes.sizeof(_TestRunOptions), data_in=_PACKET, data_size_in=len(_PACKET), repeat=times
    )
    if btf.library().bpf_prog_test_run_opts(program, ctypes.byref(options)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(options.retval)


def try_tracing(kind: str, target: str) -> None:
    """Load, attach and remove a program that does nothing: what a kernel allows, learnt in a millisecond. Raises
    BackendUnavailable.
    """
    program = load_tracing(kind, target, _TRIVIAL)
    try:
        os.close(attach_tracing(kind, target, program))
    finally:
        os.close(program)


def try_kprobe(function: str) -> None:
    """Set and remove a kprobe at `function`, without a program. Raises BackendUnavailable."""
    pmu = Path("/sys/bus/event_source/devices/kprobe/type")
    try:
        kind = int(pmu.read_text())
    except (OSError, ValueError) as error:
        raise BackendUnavailable(f"this kernel has no kprobes ({pmu}: {error})") from error
    name = ctypes.create_string_buffer(function.encode())
    attributes = _PerfEventAttributes(
        type=kind, size=ctypes.sizeof(_PerfEventAttributes), function=ctypes.addressof(name)
    )
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(
        _PERF_EVENT_OPEN[os.uname().machine], ctypes.byref(attributes), -1, 0, -1, ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC)
    )
    if descriptor < 0:
        raise BackendUnavailable(f"kprobe {function} can't be set: {_words(ctypes.get_errno())}")
    os.close(descriptor)


def has_socket_address_programs() -> bool:
    """Whether any cgroup program is loaded that may rewrite the address passed to connect() or sendmsg()."""
    library = btf.library()
    number = ctypes.c_uint32(0)
    while library.bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        descriptor = library.bpf_prog_get_fd_by_id(number)
        if descriptor < 0:
            continue
        info, size = (ctypes.c_uint32 * 2)(), ctypes.c_uint32(8)
        result = library.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size))
        os.close(descriptor)
        if result == 0 and info[0] == _CGROUP_SOCK_ADDR:  # struct bpf_prog_info begins with the type
            return True
    return False


_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_FLAG_FD_CLOEXEC = 8


class _PerfEventAttributes(ctypes.Structure):
    """struct perf_event_attr (include/uapi/linux/perf_event.h), its first 112 bytes (PERF_ATTR_SIZE_VER5)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("between", ctypes.c_uint8 * 48),
        ("function", ctypes.c_uint64),  # config1: kprobe_func
        ("rest", ctypes.c_uint8 * 48),
    )


def load(kind: int, name: str, instructions: bytes, *, expected_attach_type: int = 0) -> int:
    """Load bytecode as a program of type `kind` (enum bpf_prog_type); gives its descriptor. Raises BackendUnavailable
    with the verifier's last words.
    """
    options = _LoadOptions(sz=ctypes.sizeof(_LoadOptions), expected_attach_type=expected_attach_type)
    return _load(btf.library(), kind, name, instructions, options)


def _load(library: ctypes.CDLL, kind: int, name: str, instructions: bytes, options: _LoadOptions) -> int:
    count = len(instructions) // _INSTRUCTION_SIZE
    arguments = (kind, name[:15].encode(), b"GPL", instructions, count)
    descriptor = library.bpf_prog_load(*arguments, ctypes.byref(options))
    if descriptor >= 0:
        return int(descriptor)
    code = ctypes.get_errno()
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options.log_level, options.log_size, options.log_buf = 1, _LOG_SIZE, ctypes.addressof(log)
    descriptor = library.bpf_prog_load(*arguments, ctypes.byref(options))
    if descriptor >= 0:
        return int(descriptor)
    # The last line counts instructions; the one before it says what was wrong.
    lines = log.value.decode(errors="replace").strip().splitlines()[-3:]
    raise BackendUnavailable(": ".join([f"the kernel refuses the program for {name}", _words(code), *lines]))


def _words(code: int) -> str:
    """Name and words of an errno, such as "EPERM (Operation not permitted)"."""
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"
