"""BPF maps, programs and links that are there already: found by pin, by id or by cgroup; read and written without bcc.

What belongs here: bpf(2) through libbpf.so.1 on descriptors. What does not: compiling and loading (`tracer.bpf`,
`tracer.netprograms`), what a map's bytes mean (`tracer.service_lb`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tracer import btf
from tracer.errors import BackendUnavailable

BPF_ANY, BPF_NOEXIST = 0, 1
_BATCH = 1024
_NAME_LENGTH = 16  # BPF_OBJ_NAME_LEN
_MAX_MAPS = 64  # of a program; the kernel's own limit
_MAX_PROGRAMS = 64  # at one cgroup (BPF_CGROUP_MAX_PROGS)
_QUERY_EFFECTIVE = 1  # BPF_F_QUERY_EFFECTIVE


class MapInfo(NamedTuple):
    """What the kernel knows of a map; sizes in bytes. `name` is cut to 15 characters.

    `kind`: enum bpf_map_type; `flags`: those it was made with. `types`: id of the BTF that tells what keys and values
    are, `key_type` and `value_type`: of these in there; 0 for unknown.
    """

    id: int
    key_size: int
    value_size: int
    max_entries: int
    name: str
    kind: int
    flags: int
    types: int
    key_type: int
    value_type: int


class Map:
    """A BPF map of bytes to bytes, which owns the descriptor `fd`. Keys and values are packed as the C declares them.

    Raises BackendUnavailable when the descriptor is none of a map.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = _map_info(fd)
        self._lib = btf.library()

    @property
    def capacity(self) -> int:
        """How many entries it may have."""
        return self.info.max_entries

    @classmethod
    def pinned(cls, path: Path) -> Map | None:
        """The map pinned at `path` in a bpffs; None when nothing is."""
        fd = pinned(path)
        return None if fd is None else cls(fd)

    @classmethod
    def by_id(cls, number: int) -> Map | None:
        """The map with this id; None when it is gone."""
        fd = btf.library().bpf_map_get_fd_by_id(ctypes.c_uint32(number))
        return cls(fd) if fd >= 0 else None

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value = ctypes.create_string_buffer(self.info.value_size)
        found = self._lib.bpf_map_lookup_elem(self.fd, ctypes.c_char_p(key), value) == 0
        return value.raw if found else None

    def set(self, key: bytes, value: bytes) -> None:
        """Insert or replace. Raises OSError, with E2BIG when the map is full."""
        if self._lib.bpf_map_update_elem(self.fd, ctypes.c_char_p(key), ctypes.c_char_p(value), BPF_ANY) != 0:
            raise _error()

    def set_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Insert or replace all, in their order; 0.3 us each. Raises OSError, after which some of them are in."""
        keys, values = b"".join(entries), b"".join(entries.values())
        count = ctypes.c_uint32(len(entries))
        if entries and self._lib.bpf_map_update_batch(self.fd, keys, values, ctypes.byref(count), None) != 0:
            raise _error()

    def delete(self, key: bytes) -> bool:
        """Remove; False when it was not there."""
        return bool(self._lib.bpf_map_delete_elem(self.fd, ctypes.c_char_p(key)) == 0)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a hash; those that come or go meanwhile may be missed. Raises OSError."""
        key_size, value_size, count = self.info.key_size, self.info.value_size, _BATCH
        place, following = None, ctypes.create_string_buffer(max(4, key_size))
        while True:
            keys = ctypes.create_string_buffer(key_size * count)
            values = ctypes.create_string_buffer(value_size * count)
            got = ctypes.c_uint32(count)
            result = self._lib.bpf_map_lookup_batch(self.fd, place, following, keys, values, ctypes.byref(got), None)
            code = ctypes.get_errno() if result else 0
            if code == errno.ENOSPC:  # one bucket holds more than that
                count *= 2
                continue
            if code not in (0, errno.ENOENT):
                raise OSError(code, os.strerror(code))
            for index in range(got.value):
                yield (
                    keys.raw[index * key_size : (index + 1) * key_size],
                    values.raw[index * value_size : (index + 1) * value_size],
                )
            if code == errno.ENOENT:
                return
            place, following = following, ctypes.create_string_buffer(max(4, key_size))

    def close(self) -> None:
        """Let go of the map; it stays for as long as a program or a pin refers to it."""
        os.close(self.fd)


def pin(fd: int, path: Path) -> None:
    """Pin a map, program or link at `path`, in a bpffs. Raises OSError."""
    if btf.library().bpf_obj_pin(fd, str(path).encode()) != 0:
        raise _error()


def pinned(path: Path) -> int | None:
    """A descriptor of what is pinned at `path`, None when nothing is. Raises OSError."""
    fd = btf.library().bpf_obj_get(str(path).encode())
    if fd >= 0:
        return int(fd)
    code = ctypes.get_errno()
    if code == errno.ENOENT:
        return None
    raise OSError(code, os.strerror(code))


def programs_of_cgroup(cgroup: Path, attach_type: int) -> list[int]:
    """Ids of the programs that run for processes of a cgroup (v2), also those attached above it, in their order.

    `attach_type`: enum bpf_attach_type (include/uapi/linux/bpf.h). Raises OSError.
    """
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ids, count = (ctypes.c_uint32 * _MAX_PROGRAMS)(), ctypes.c_uint32(_MAX_PROGRAMS)
        flags = ctypes.c_uint32(0)
        query = btf.library().bpf_prog_query
        if query(directory, attach_type, _QUERY_EFFECTIVE, ctypes.byref(flags), ids, ctypes.byref(count)) != 0:
            raise _error()
    finally:
        os.close(directory)
    return list(ids[: count.value])


def maps_of_program(number: int) -> list[int]:
    """Ids of the maps that a program uses; [] when it is gone."""
    library = btf.library()
    fd = library.bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
    if fd < 0:
        return []
    try:
        ids = (ctypes.c_uint32 * _MAX_MAPS)()
        info = _ProgramInfo(map_count=_MAX_MAPS, map_ids=ctypes.addressof(ids))
        size = ctypes.c_uint32(ctypes.sizeof(info))
        if library.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)) != 0:
            return []
        return list(ids[: min(info.map_count, _MAX_MAPS)])
    finally:
        os.close(fd)


def programs_with_map(number: int) -> Iterator[int]:
    """Ids of all programs of the machine that use the map with this id. Raises OSError where that may not be asked."""
    following = ctypes.c_uint32(0)
    while btf.library().bpf_prog_get_next_id(following, ctypes.byref(following)) == 0:
        if number in maps_of_program(following.value):
            yield following.value
    if ctypes.get_errno() != errno.ENOENT:
        raise _error()


def maps_by_name(programs: Iterable[int]) -> dict[str, Map]:
    """Open the maps that programs use, by name; whoever asks closes them. The first program's win."""
    found: dict[str, Map] = {}
    for number in dict.fromkeys(number for program in programs for number in maps_of_program(program)):
        opened = Map.by_id(number)
        if opened is None:
            continue
        if opened.info.name in found:
            opened.close()
        else:
            found[opened.info.name] = opened
    return found


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info (include/uapi/linux/bpf.h), its beginning."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * _NAME_LENGTH),
        ("device", ctypes.c_uint32),
        ("kernels_value_type", ctypes.c_uint32),
        ("device_netns", ctypes.c_uint64 * 2),
        ("btf_id", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
    )


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info (include/uapi/linux/bpf.h), its beginning."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_length", ctypes.c_uint32),
        ("xlated_length", ctypes.c_uint32),
        ("jited", ctypes.c_uint64),
        ("xlated", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("map_count", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
    )


def _map_info(fd: int) -> MapInfo:
    info, size = _MapInfo(), ctypes.c_uint32(ctypes.sizeof(_MapInfo))
    if btf.library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)) != 0:
        raise BackendUnavailable(f"the kernel tells nothing about a BPF map: {_error().strerror}")
    sizes = (info.key_size, info.value_size, info.max_entries)
    types = (info.btf_id, info.btf_key_type_id, info.btf_value_type_id)
    return MapInfo(info.id, *sizes, info.name.decode(), info.type, info.map_flags, *types)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
