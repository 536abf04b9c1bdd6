"""Where the running kernel keeps the fields that the BPF programs read: asked of its BTF, through libbpf.

What belongs here: loading BTF, finding a member's byte offset, the list of fields that bpf/ needs, their names as -D
macros. What does not: compiling or loading programs (`tracer.bpf`).

BTF (Documentation/bpf/btf.rst in the kernel tree) is the kernel's own description of its types. libbpf.so.1 reads it;
libbcc depends on that library, so it is there wherever bcc is. ctypes suffices for the six functions used here.
`nf_conn` and its friends live in the split BTF of the module nf_conntrack where that is a module.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tracer.errors import BackendUnavailable, MissingError

# Macro in bpf/include/kernel_fields.h -> (struct, path of members). Where a path's member is an anonymous union or
# struct, its
# members count as the parent's, as in C.
FIELDS: dict[str, tuple[str, str]] = {
    "SOCK_DADDR": ("sock", "__sk_common.skc_daddr"),
    "SOCK_SADDR": ("sock", "__sk_common.skc_rcv_saddr"),
    "SOCK_DPORT": ("sock", "__sk_common.skc_dport"),
    "SOCK_NUM": ("sock", "__sk_common.skc_num"),
    "SOCK_FAMILY": ("sock", "__sk_common.skc_family"),
    "SOCK_STATE": ("sock", "__sk_common.skc_state"),
    "SOCK_DADDR6": ("sock", "__sk_common.skc_v6_daddr"),
    "SOCK_SADDR6": ("sock", "__sk_common.skc_v6_rcv_saddr"),
    "SOCK_NET": ("sock", "__sk_common.skc_net.net"),
    "SOCK_ERR": ("sock", "sk_err"),
    "SOCK_SOCKET": ("sock", "sk_socket"),
    "SOCK_ERROR_QUEUE": ("sock", "sk_error_queue"),
    "SKB_PREV": ("sk_buff", "prev"),
    "SKB_CB": ("sk_buff", "cb"),
    "EXTERR_ERRNO": ("sock_exterr_skb", "ee.ee_errno"),
    "SOCK_PROTOCOL": ("sock", "sk_protocol"),
    "TCP_BYTES_RECEIVED": ("tcp_sock", "bytes_received"),
    "INET_SPORT": ("inet_sock", "inet_sport"),
    "NET_INUM": ("net", "ns.inum"),
    "NET_COOKIE": ("net", "net_cookie"),
    "SKB_SK": ("sk_buff", "sk"),
    "SKB_NFCT": ("sk_buff", "_nfct"),
    "SKB_HEAD": ("sk_buff", "head"),
    "SKB_DATA": ("sk_buff", "data"),
    "SKB_NETWORK_HEADER": ("sk_buff", "network_header"),
    "SKB_DEV": ("sk_buff", "dev"),
    "DEVICE_FLAGS": ("net_device", "flags"),
    "CT_STATUS": ("nf_conn", "status"),
    "CT_NET": ("nf_conn", "ct_net.net"),
    "CT_TUPLEHASH": ("nf_conn", "tuplehash"),
    "TUPLEHASH_TUPLE": ("nf_conntrack_tuple_hash", "tuple"),
    "TASK_TGID": ("task_struct", "tgid"),
    "TASK_COMM": ("task_struct", "comm"),
    "TASK_CGROUPS": ("task_struct", "cgroups"),
    "CSS_SET_CGROUP": ("css_set", "dfl_cgrp"),
    "CGROUP_NODE": ("cgroup", "kn"),
    "KERNFS_NODE_ID": ("kernfs_node", "id"),
    "TASK_FILES": ("task_struct", "files"),
    "FILES_FDT": ("files_struct", "fdt"),
    "FDT_MAX_FDS": ("fdtable", "max_fds"),
    "FDT_FD": ("fdtable", "fd"),
    "FILE_PRIVATE_DATA": ("file", "private_data"),
    "SOCKET_SK": ("socket", "sk"),
    "SOCKET_STATE": ("socket", "state"),
    "MSGHDR_NAME": ("msghdr", "msg_name"),
    "MSGHDR_NAMELEN": ("msghdr", "msg_namelen"),
}
# Macro -> a field that is a bit field in some kernels; the macro's _SHIFT says where in its byte it begins.
BIT_FIELDS: dict[str, tuple[str, str]] = {"SOCK_USERLOCKS": ("sock", "sk_userlocks")}
# Macro -> struct whose size it is.
SIZES: dict[str, str] = {"TUPLEHASH_SIZE": "nf_conntrack_tuple_hash", "TUPLE_SIZE": "nf_conntrack_tuple"}
CONNTRACK_MODULE = "nf_conntrack"

_KIND_STRUCT, _KIND_UNION, _KIND_TYPEDEF, _KIND_FUNC = 4, 5, 8, 12
# Kinds that only wrap another type: typedef, volatile, const, restrict, type tag (include/uapi/linux/btf.h).
_WRAPPERS = frozenset({8, 9, 10, 11, 18})


class _Type(ctypes.Structure):
    """struct btf_type (include/uapi/linux/btf.h)."""

    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32))


class _Member(ctypes.Structure):
    """struct btf_member (include/uapi/linux/btf.h)."""

    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class _BtfInfo(ctypes.Structure):
    """struct bpf_btf_info (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("btf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_uint64),
        ("name_length", ctypes.c_uint32),
        ("kernel_btf", ctypes.c_uint32),
    )


class Member(NamedTuple):
    """One member of a struct: its type's id and its offset in bits."""

    name: str
    type_id: int
    bit_offset: int


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf.so.1, its functions declared. Raises BackendUnavailable when it is not installed."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BackendUnavailable(
            f"libbpf.so.1 can't be loaded ({error}); it reads the kernel's type information",
            hint="apt-get install libbpf1",
        ) from error
    lib.libbpf_set_print(None)  # its warnings would go to our stderr
    for name, result, arguments in (
        ("btf__load_vmlinux_btf", ctypes.c_void_p, ()),
        ("btf__load_module_btf", ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_void_p)),
        ("btf__find_by_name_kind", ctypes.c_int32, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)),
        ("btf__type_by_id", ctypes.POINTER(_Type), (ctypes.c_void_p, ctypes.c_uint32)),
        ("btf__name_by_offset", ctypes.c_char_p, (ctypes.c_void_p, ctypes.c_uint32)),
        ("btf__free", None, (ctypes.c_void_p,)),
        ("bpf_prog_load", ctypes.c_int, (ctypes.c_int, *[ctypes.c_char_p] * 3, ctypes.c_size_t, ctypes.c_void_p)),
        ("bpf_prog_test_run_opts", ctypes.c_int, (ctypes.c_int, ctypes.c_void_p)),
        ("bpf_raw_tracepoint_open", ctypes.c_int, (ctypes.c_char_p, ctypes.c_int)),
        ("bpf_prog_get_next_id", ctypes.c_int, (ctypes.c_uint32, ctypes.c_void_p)),
        ("bpf_prog_get_fd_by_id", ctypes.c_int, (ctypes.c_uint32,)),
        ("bpf_btf_get_next_id", ctypes.c_int, (ctypes.c_uint32, ctypes.c_void_p)),
        ("bpf_btf_get_fd_by_id", ctypes.c_int, (ctypes.c_uint32,)),
        ("bpf_obj_get_info_by_fd", ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class KernelTypes:
    """The running kernel's BTF, with that of the module nf_conntrack where it is one. Use as a context manager.

    Raises BackendUnavailable when the kernel was built without CONFIG_DEBUG_INFO_BTF.
    """

    def __init__(self) -> None:
        self._lib = library()
        self._vmlinux = self._lib.btf__load_vmlinux_btf()
        if not self._vmlinux:
            raise BackendUnavailable(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux): its structures can't be found without",
                hint="boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, or use k8snet-trace --backend conntrack",
            )
        # Split BTF: ids continue those of vmlinux, so every look-up through the module's object works for both.
        module = self._lib.btf__load_module_btf(CONNTRACK_MODULE.encode(), self._vmlinux)
        self._module = module or None
        self._btf = self._module or self._vmlinux

    def __enter__(self) -> KernelTypes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget them."""
        if self._module:
            self._lib.btf__free(self._module)
        self._lib.btf__free(self._vmlinux)

    def offset(self, struct: str, path: str) -> int:
        """Byte offset of a member such as "__sk_common.skc_daddr" in `struct`. Raises BackendUnavailable when there
        is none.
        """
        return self.bit_offset(struct, path) // 8

    def bit_offset(self, struct: str, path: str) -> int:
        """The same in bits, for what may be a bit field."""
        type_id, total = self._struct(struct), 0
        for name in path.split("."):
            found = next((m for m in self._members(type_id) if m.name == name), None)
            if found is None:
                raise BackendUnavailable(f"this kernel's struct {struct} has no member {path}", hint=_REPORT)
            total += found.bit_offset
            type_id = found.type_id
        return total

    def size(self, struct: str) -> int:
        """Size of `struct` in bytes. Raises BackendUnavailable when there is none."""
        return int(self._lib.btf__type_by_id(self._btf, self._struct(struct)).contents.size_or_type)

    def _struct(self, name: str) -> int:
        type_id = int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), _KIND_STRUCT))
        if type_id <= 0 and name.startswith("nf_conn"):
            raise MissingError(
                f"nf_conntrack is not loaded: nothing is translated yet, and where it keeps what ({name}) is not known",
                hint=f"modprobe {CONNTRACK_MODULE}",
            )
        if type_id <= 0:
            raise BackendUnavailable(f"this kernel's BTF has no struct {name}", hint=_REPORT)
        return type_id

    def _members(self, type_id: int) -> Iterator[Member]:
        """Members of a struct or union, those of anonymous ones inside it included. Nothing for other types."""
        pointer = self._lib.btf__type_by_id(self._btf, type_id)
        while (pointer.contents.info >> 24) & 0x1F in _WRAPPERS:
            pointer = self._lib.btf__type_by_id(self._btf, pointer.contents.size_or_type)
        info = pointer.contents.info
        if (info >> 24) & 0x1F not in (_KIND_STRUCT, _KIND_UNION):
            return
        # With kind_flag the upper 8 bits of a member's offset are its bit-field size.
        has_bitfields = bool(info >> 31)
        first = ctypes.addressof(pointer.contents) + ctypes.sizeof(_Type)
        for member in (_Member * (info & 0xFFFF)).from_address(first):
            bit_offset = member.offset & 0xFFFFFF if has_bitfields else member.offset
            name = self._lib.btf__name_by_offset(self._btf, member.name_off).decode()
            if name:
                yield Member(name, member.type, bit_offset)
            else:
                for inner in self._members(member.type):
                    yield inner._replace(bit_offset=inner.bit_offset + bit_offset)


class _Shared:
    """Types that are read, and how many use them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._types: KernelTypes | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[KernelTypes]:
        with self._lock:
            types = self._types = self._types or KernelTypes()
            self._users += 1
        try:
            yield types
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._types = None
                    types.close()


_shared = _Shared()


def held() -> contextlib.AbstractContextManager[KernelTypes]:
    """The kernel's types. To read them takes 9 ms, and 8 MB: as long as anybody holds them, they are not read again."""
    return _shared.held()


def function_id(name: str) -> tuple[int, int]:
    """The BTF id of a kernel function, and a descriptor of the module's BTF that holds it (0: the kernel proper).

    The caller closes the descriptor. Raises BackendUnavailable when no such function is known.
    """
    lib = library()
    with held() as types:
        number = lib.btf__find_by_name_kind(types._vmlinux, name.encode(), _KIND_FUNC)
        if number > 0:
            return int(number), 0
        if types._module:
            number = lib.btf__find_by_name_kind(types._module, name.encode(), _KIND_FUNC)
            if number > 0:
                return int(number), _module_descriptor(CONNTRACK_MODULE)
    raise BackendUnavailable(f"this kernel's BTF has no function {name}")


def tracepoint_id(name: str) -> int:
    """The BTF id of a tracepoint's typedef, as tp_btf programs name it. Raises BackendUnavailable for an unknown
    one.
    """
    with held() as types:
        number = library().btf__find_by_name_kind(types._vmlinux, f"btf_trace_{name}".encode(), _KIND_TYPEDEF)
    if number <= 0:
        raise BackendUnavailable(f"this kernel has no tracepoint {name}")
    return int(number)


def knows(functions: Iterable[str], tracepoints: Iterable[str]) -> bool:
    """Whether all of these are there, in the kernel proper or in nf_conntrack, for all that its types tell."""
    find = library().btf__find_by_name_kind
    with held() as types:
        return all(find(types._btf, name.encode(), _KIND_FUNC) > 0 for name in functions) and all(
            find(types._vmlinux, f"btf_trace_{name}".encode(), _KIND_TYPEDEF) > 0 for name in tracepoints
        )


def read(number: int) -> bytes:
    """The types that the kernel holds under this id, as they were loaded. Raises BackendUnavailable."""
    lib = library()
    descriptor = lib.bpf_btf_get_fd_by_id(ctypes.c_uint32(number))
    if descriptor < 0:
        raise BackendUnavailable(f"types can't be read: {os.strerror(ctypes.get_errno())}")
    try:
        size = _ask(descriptor, _BtfInfo()).btf_size
        data = ctypes.create_string_buffer(size)
        _ask(descriptor, _BtfInfo(btf=ctypes.addressof(data), btf_size=size))
        return data.raw
    finally:
        os.close(descriptor)


def _ask(descriptor: int, info: _BtfInfo) -> _BtfInfo:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    if library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)) != 0:
        raise BackendUnavailable(f"types can't be read: {os.strerror(ctypes.get_errno())}")
    return info


def load(types: bytes) -> int:
    """Give the kernel types, such as `read` gave; the result is a descriptor. Raises BackendUnavailable."""
    descriptor = library().bpf_btf_load(types, ctypes.c_size_t(len(types)), None)
    if descriptor < 0:
        raise BackendUnavailable(f"the kernel refuses types: {os.strerror(ctypes.get_errno())}")
    return int(descriptor)


def _module_descriptor(name: str) -> int:
    """A descriptor of the BTF object that the kernel holds for a module (bpf(2), BPF_BTF_GET_FD_BY_ID)."""
    lib = library()
    number = ctypes.c_uint32(0)
    while lib.bpf_btf_get_next_id(number, ctypes.byref(number)) == 0:
        descriptor = lib.bpf_btf_get_fd_by_id(number)
        if descriptor < 0:
            continue
        text = ctypes.create_string_buffer(64)
        info = _BtfInfo(name=ctypes.addressof(text), name_length=len(text))
        size = ctypes.c_uint32(ctypes.sizeof(info))
        known = lib.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)) == 0
        if known and text.value.decode() == name:
            return int(descriptor)
        os.close(descriptor)
    raise BackendUnavailable(f"the kernel holds no BTF of the module {name}")


_REPORT = "k8snet-trace doctor, and report this kernel (uname -r)"


def offsets() -> dict[str, int]:
    """Byte offsets (FIELDS) and sizes (SIZES) for this kernel, by macro name.

    Raises BackendUnavailable when the kernel has no BTF, or lacks one of the fields, MissingError when the module
    nf_conntrack is not loaded. Takes about 15 ms.
    """
    with held() as types:
        found = {macro: types.offset(struct, path) for macro, (struct, path) in FIELDS.items()}
        found.update({macro: types.size(struct) for macro, struct in SIZES.items()})
        for macro, (struct, path) in BIT_FIELDS.items():
            found[macro], found[f"{macro}_SHIFT"] = divmod(types.bit_offset(struct, path), 8)
    return found
