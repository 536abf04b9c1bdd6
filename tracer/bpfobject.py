"""What a compiler made of some C, kept apart from it: functions, maps and types, to be loaded later and elsewhere.

Stands for the object file of libbpf and of Cilium's images. Whoever loads it needs no compiler, and a hundredth of the
time. Each map is named in the bytecode by its number in `BpfObject.maps`, where a loaded program has a descriptor.

What belongs here: the form, and making the maps. What does not: compiling (`tracer.bpf`), loading programs
(`tracer.libbpf`, `tracer.netprograms`).
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tracer import btf, libbpf
from tracer.bpfmaps import Map
from tracer.errors import BackendUnavailable


class MapShape(NamedTuple):
    """What a map is made by; sizes in bytes. `key_type`, `value_type`: ids in the object's types, 0 for none."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type: int
    value_type: int


class Compiled(Protocol):
    """Where an object is taken from: `tracer.bpf.Programs`."""

    def map_names(self) -> list[str]:
        """The maps of the C."""

    def map_fd(self, name: str) -> int:
        """A map's descriptor."""

    def bytecode(self, function: str, redirected: Mapping[int, int] | None = None) -> bytes:
        """A function's instructions, which refer to maps by descriptor, or what `redirected` has in its place."""


@dataclass(frozen=True, slots=True)
class BpfObject:
    """Compiled C. `types`: what the maps' keys and values are, as BTF; b"" for unknown. `functions`: bytecode."""

    types: bytes
    maps: dict[str, MapShape]
    functions: dict[str, bytes]

    @classmethod
    def of(cls, compiled: Compiled, functions: Sequence[str]) -> BpfObject:
        """Take these functions and all maps. Raises KeyError for an unknown function, BackendUnavailable."""
        descriptors = {name: compiled.map_fd(name) for name in compiled.map_names()}
        numbers = {descriptor: number for number, descriptor in enumerate(descriptors.values())}
        infos = {name: Map(descriptor).info for name, descriptor in descriptors.items()}
        known = next((info.types for info in infos.values() if info.types), 0)
        shapes = {
            name: MapShape(
                info.kind,
                info.key_size,
                info.value_size,
                info.max_entries,
                info.flags,
                *((info.key_type, info.value_type) if info.types == known else (0, 0)),
            )
            for name, info in infos.items()
        }
        code = {function: compiled.bytecode(function, numbers) for function in functions}
        return cls(btf.read(known) if known else b"", shapes, code)

    @classmethod
    def unpack(cls, packed: bytes) -> BpfObject:
        """What `pack` gave."""
        document = json.loads(packed)
        return cls(
            base64.b64decode(document["types"]),
            {name: MapShape(*shape) for name, shape in document["maps"].items()},
            {name: base64.b64decode(code) for name, code in document["functions"].items()},
        )

    def pack(self) -> bytes:
        """As bytes that `unpack` reads."""
        functions = {name: base64.b64encode(code).decode() for name, code in self.functions.items()}
        document = {"types": base64.b64encode(self.types).decode(), "maps": self.maps, "functions": functions}
        return json.dumps(document).encode()

    def bytecode(self, function: str, maps: Mapping[str, int]) -> bytes:
        """A function's instructions, with `maps`, name -> descriptor, for the maps that it uses.

        Raises KeyError for a function or a map that is missing.
        """
        return libbpf.redirect_maps(
            self.functions[function], {number: maps[name] for number, name in enumerate(self.maps)}
        )

    def load_types(self) -> int | None:
        """A descriptor of the types in the kernel, None where there are none. Raises BackendUnavailable."""
        return btf.load(self.types) if self.types else None

    def make_map(self, name: str, types: int | None) -> int:
        """A new map, empty; gives its descriptor. `types`: from `load_types`. Raises KeyError, BackendUnavailable."""
        shape = self.maps[name]
        options = _MapOptions(size=ctypes.sizeof(_MapOptions), map_flags=shape.flags)
        if types is not None and shape.value_type:
            options.btf, options.key_type, options.value_type = types, shape.key_type, shape.value_type
        sizes = (shape.key_size, shape.value_size, shape.max_entries)
        fd = btf.library().bpf_map_create(shape.kind, name[:15].encode(), *sizes, ctypes.byref(options))
        if fd < 0:
            raise BackendUnavailable(f"the kernel refuses the map {name}: {os.strerror(ctypes.get_errno())}")
        return int(fd)


class _MapOptions(ctypes.Structure):
    """struct bpf_map_create_opts (tools/lib/bpf/bpf.h), as far as libbpf 1.0 has it."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("btf", ctypes.c_uint32),
        ("key_type", ctypes.c_uint32),
        ("value_type", ctypes.c_uint32),
        ("kernels_value_type", ctypes.c_uint32),
        ("inner_map", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
    )
