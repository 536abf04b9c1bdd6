"""Compiling, loading and attaching the C of bpf/: the only module that imports bcc.

What belongs here: finding the C, giving BCC something to include, turning its failures into our errors, raw access to
maps. What does not: what the programs are for, which of them to load, what their records mean (`tracer.source.live`).

BCC writes clang's and the verifier's words to file descriptor 2 and raises a bare Exception, so descriptor 2 is
caught while it works. No kernel headers are needed: BCC_KERNEL_SOURCE points at bpf/include/kernel, see the README.md
there.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tracer import libbpf
from tracer.errors import BackendUnavailable, BpfCompileError, BpfRefused, MissingError, UsageError

_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
BPF_ANY = 0
BPF_MAP_TYPE_RINGBUF = 27
# Where BCC keeps what it has attached by the names of functions
_ATTACHED = ("tracepoint_fds", "raw_tracepoint_fds", "kprobe_fds", "kfunc_entry_fds", "kfunc_exit_fds", "lsm_fds")


def program_directory() -> Path:
    """Where the C lies: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).with_name("_bpf")
    return installed if installed.is_dir() else Path(__file__).parent.parent / "bpf"


def program_text(files: Sequence[str]) -> str:
    """The named files of bpf/ as one text, each under a #line that keeps its name in compiler messages."""
    directory = program_directory()
    return "".join(f'#line 1 "bpf/{name}"\n{(directory / name).read_text()}\n' for name in files)


class RawMap:
    """A BPF map of bytes to bytes, by file descriptor. Key and value are packed as the C declares them."""

    def __init__(self, library: Any, fd: int, key_size: int, value_size: int) -> None:
        self._lib, self.fd, self._key_size, self._value_size = library, fd, key_size, value_size

    def __iter__(self) -> Iterator[bytes]:
        """Keys, as the kernel's BPF_MAP_GET_NEXT_KEY finds them; entries that come or go meanwhile may be missed or
        seen twice.
        """
        key = ctypes.create_string_buffer(self._key_size)
        following = ctypes.create_string_buffer(self._key_size)
        result = self._lib.bpf_get_first_key(self.fd, following, self._key_size)
        while result == 0:
            yield following.raw
            key.raw = following.raw
            result = self._lib.bpf_get_next_key(self.fd, key, following)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value = ctypes.create_string_buffer(self._value_size)
        return value.raw if self._lib.bpf_lookup_elem(self.fd, ctypes.c_char_p(key), value) == 0 else None

    def set(self, key: bytes, value: bytes) -> None:
        """Insert or replace. Raises OSError, with E2BIG when the map is full."""
        if self._lib.bpf_update_elem(self.fd, ctypes.c_char_p(key), ctypes.c_char_p(value), BPF_ANY) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def delete(self, key: bytes) -> bool:
        """Remove; False when it was not there."""
        return bool(self._lib.bpf_delete_elem(self.fd, ctypes.c_char_p(key)) == 0)


class Kind(enum.Enum):
    """Ways to attach a function of the C; what its ctx is differs, see the comments in bpf/hooks_*.c."""

    TYPED_TRACEPOINT = "tp_btf"  # arguments typed: the verifier lets them be dereferenced
    RAW_TRACEPOINT = "raw_tp"
    FENTRY = "fentry"
    FEXIT = "fexit"
    KPROBE = "kprobe"
    KRETPROBE = "kretprobe"


class Hook(NamedTuple):
    """One attachment: `function` of the C to the tracepoint or kernel function `target`."""

    kind: Kind
    target: str
    function: str


class Attachment:
    """A loaded program, and whether it is attached. `Programs` closes it."""

    def __init__(self, hook: Hook, program: int) -> None:
        self._hook = hook
        self._program = program
        self._link: int | None = None

    @property
    def program(self) -> int:
        """The program's descriptor."""
        return self._program

    def attach(self) -> None:
        """Attach, unless it is. Raises BackendUnavailable."""
        if self._link is None:
            self._link = libbpf.attach_tracing(self._hook.kind.value, self._hook.target, self._program)

    def detach(self) -> None:
        """Detach; the program stays loaded. Idempotent."""
        if self._link is not None:
            os.close(self._link)
            self._link = None

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        os.close(self._program)


class Programs:
    """C that has been compiled and its maps made; `attach` then loads and attaches its functions. Use `close` at the
    end.

    Raises BpfCompileError when clang or BCC's front end refuses the C, MissingError when bcc is not installed.
    """

    def __init__(
        self,
        files: Sequence[str],
        defines: Mapping[str, int],
        *,
        maps_of: Programs | None = None,
        with_types: bool = False,
    ) -> None:
        """`maps_of`: programs whose maps these shall use, where they declare some of the same name and layout.

        `with_types`: let maps tell what is in them (BTF), for `bpftool map`; compiling then takes a fifth longer.
        """
        self._bcc = _import_bcc()
        self._attachments: list[Attachment] = []
        self._bpf = _compiled(self._bcc, program_text(files), defines, with_types=with_types)
        self._redirected = {} if maps_of is None else self._same_maps(maps_of)

    def attach(self, hook: Hook) -> Attachment | None:
        """Load one function and attach it; for all kinds but kprobes the result detaches it.

        Raises BackendUnavailable when the kernel refuses, with the verifier's last words.
        """
        if hook.kind in (Kind.KPROBE, Kind.KRETPROBE):
            self._attach_probe(hook)
            return None
        attachment = self.load(hook)
        attachment.attach()
        return attachment

    def load(self, hook: Hook) -> Attachment:
        """Load one function, which the result attaches and detaches; for all kinds but kprobes.

        Raises BackendUnavailable when the kernel refuses, with the verifier's last words.
        """
        program = libbpf.load_tracing(hook.kind.value, hook.target, self.bytecode(hook.function))
        self._attachments.append(Attachment(hook, program))
        return self._attachments[-1]

    def bytecode(self, function: str, redirected: Mapping[int, int] | None = None) -> bytes:
        """What a function of the C was compiled to; it refers to our maps by descriptor.

        `redirected`: our descriptors of maps -> those to use instead. Raises KeyError for an unknown function.
        """
        library = self._bcc.libbcc.lib
        module, name = ctypes.c_void_p(self._bpf.module), function.encode()
        start, size = library.bpf_function_start(module, name), library.bpf_function_size(module, name)
        if not start:
            raise KeyError(function)
        return libbpf.redirect_maps(ctypes.string_at(start, size), {**self._redirected, **(redirected or {})})

    def _attach_probe(self, hook: Hook) -> None:
        attach = self._bpf.attach_kprobe if hook.kind is Kind.KPROBE else self._bpf.attach_kretprobe
        with _caught_stderr() as caught:
            try:
                attach(event=hook.target.encode(), fn_name=hook.function.encode())
            except Exception as error:  # BCC raises nothing narrower
                raise _explain(str(error), caught()) from error

    def _same_maps(self, other: Programs) -> dict[int, int]:
        """Descriptors of our maps that the other programs have, too, to theirs."""
        found = {}
        for name in self.map_names():
            with suppress(KeyError):
                found[self.map_fd(name)] = other.map_fd(name)
        return found

    def map_names(self) -> list[str]:
        """The maps of the C."""
        library, module = self._bcc.libbcc.lib, ctypes.c_void_p(self._bpf.module)
        name_of = library.bpf_table_name
        name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_ulonglong]
        return [name_of(module, number).decode() for number in range(library.bpf_num_tables(module))]

    def map(self, name: str, key_size: int, value_size: int, *, per_cpu: bool = False) -> RawMap:
        """The map `name` of the C. Raises KeyError for an unknown one, or when the C declares other sizes (in bytes).

        The values of a per-CPU map are as long as there are possible CPUs, each rounded up to 8 bytes.
        """
        library = self._bcc.libbcc.lib
        module = ctypes.c_void_p(self._bpf.module)  # bcc declares no argument types for the two size functions
        number = ctypes.c_ulonglong(library.bpf_table_id(module, name.encode()))
        sizes = (library.bpf_table_key_size_id(module, number), library.bpf_table_leaf_size_id(module, number))
        if sizes != (key_size, value_size):
            raise KeyError(f"map {name}: the C has no such map of {key_size} to {value_size} bytes, but {sizes}")
        if per_cpu:
            value_size = (value_size + 7) // 8 * 8 * len(self._bcc.utils.get_possible_cpus())
        return RawMap(library, self.map_fd(name), key_size, value_size)

    def map_fd(self, name: str) -> int:
        """The file descriptor of the map `name`, owned by this object. Raises KeyError for an unknown one."""
        fd = int(self._bcc.libbcc.lib.bpf_table_fd(self._bpf.module, name.encode()))
        if fd < 0:
            raise KeyError(name)
        return fd

    def close(self) -> None:
        """Detach and unload everything. Idempotent."""
        while self._attachments:
            self._attachments.pop().close()
        self._bpf.cleanup()


def tracepoints(text: str) -> list[tuple[str, str]]:
    """Category and event of each TRACEPOINT_PROBE of some C."""
    return re.findall(r"^\s*TRACEPOINT_PROBE\(\s*(\w+)\s*,\s*(\w+)\s*\)", text, re.MULTILINE)


class OwnProgram:
    """A user's own C for BCC, compiled, loaded, and attached as the names of its functions say, such as
    TRACEPOINT_PROBE(category, event); what it writes to its ring buffers is read. Use `close` at the end.

    Raises BpfCompileError, BackendUnavailable with the verifier's words, UsageError for C that attaches to nothing or
    has nothing to read, MissingError when bcc is not installed.
    """

    def __init__(self, text: str, name: str) -> None:
        """`name`: of the file, for messages."""
        self._bpf = _compiled(_import_bcc(), _numbered(text, name), {})
        self._written: list[tuple[str, bytes]] = []
        try:
            self.buffers = self._ring_buffers()
            if not any(getattr(self._bpf, fds) for fds in _ATTACHED):
                raise UsageError(f"{name} attaches to nothing: TRACEPOINT_PROBE(category, event) {{ … }} would")
            if not self.buffers:
                raise UsageError(f"{name} has nothing to write to: BPF_RINGBUF_OUTPUT(name, pages); would be a buffer")
            if not any(self.buffers.values()):
                raise UsageError(
                    f"{name} writes nothing: {next(iter(self.buffers))}.ringbuf_output(&it, sizeof(it), 0)"
                )
            for buffer in self.buffers:
                self._bpf[buffer.encode()].open_ring_buffer(self._note(buffer))
        except BaseException:
            self.close()
            raise

    def read(self, seconds: float) -> list[tuple[str, bytes]]:
        """What was written since, as the buffer's name and bytes; waits up to `seconds` when there is nothing."""
        self._bpf.ring_buffer_poll(int(seconds * 1000))
        written, self._written = self._written, []
        return written

    def close(self) -> None:
        """Detach and unload everything."""
        self._bpf.cleanup()

    def _note(self, buffer: str) -> Any:
        def note(_: Any, data: int, size: int) -> None:
            self._written.append((buffer, ctypes.string_at(data, size)))

        return note

    def _ring_buffers(self) -> dict[str, list[tuple[str, str]]]:
        """Name of each -> names and types in C of the fields that it is given."""
        library, module = _import_bcc().libbcc.lib, self._bpf.module
        handle = ctypes.c_void_p(module)  # bcc declares no argument types for some of these
        name_of = library.bpf_table_name
        name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_ulonglong]
        found = {}
        for number in range(library.bpf_num_tables(module)):
            name = name_of(module, number)
            if library.bpf_table_type_id(handle, ctypes.c_ulonglong(number)) != BPF_MAP_TYPE_RINGBUF:
                continue
            count = library.bpf_perf_event_fields(module, name)
            described = [library.bpf_perf_event_field(module, name, field).decode() for field in range(count)]
            fields = [tuple(text.split("#", 1)) for text in described]
            found[name.decode()] = [(field, type_) for field, type_ in fields]
        return found


def _numbered(text: str, name: str) -> str:
    """C with its file's name and line numbers. BCC puts a struct in front of each TRACEPOINT_PROBE, many lines long."""
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(text.splitlines(), 1):
        lines.append(line)
        if re.match(r"\s*TRACEPOINT_PROBE\(.*\)", line):
            lines.append(f'#line {number + 1} "{name}"')
    return "\n".join(lines) + "\n"


def _compiled(bcc: Any, text: str, defines: Mapping[str, int], *, with_types: bool = True) -> Any:
    """C as BCC's object. Raises BpfCompileError, BackendUnavailable."""
    include = program_directory() / "include"
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    flags = [f"-I{include}", f"-D__TARGET_ARCH_{architecture}", "-Wno-unused-function", "-Wno-macro-redefined"]
    flags.append("-Wfatal-errors")  # BCC 0.26 crashes on the tree that clang leaves after a second error
    flags += [f"-D{name}={value}" for name, value in defines.items()]
    if not with_types:
        flags.append("-g0")  # types are made of what debuggers are told
    try:
        return _compiled_with(bcc, text, flags, include / "kernel")
    except BpfCompileError as first:
        # A newer BCC may include more headers than ours: the machine's own, where it has them, are the fallback.
        if "file not found" not in first.message or not Path(f"/lib/modules/{os.uname().release}/build").exists():
            raise
        return _compiled_with(bcc, text, flags, None)


def _compiled_with(bcc: Any, text: str, flags: list[str], headers: Path | None) -> Any:
    with _environment("BCC_KERNEL_SOURCE", None if headers is None else str(headers)), _caught_stderr() as caught:
        try:
            return bcc.BPF(text=text.encode(), cflags=flags)
        except Exception as error:  # BCC raises nothing narrower
            raise _explain(str(error), caught()) from error


def show(files: Sequence[str], defines: Mapping[str, int]) -> str:
    """The C that `Programs` would load, with its defines and our headers written out."""
    include = program_directory() / "include"
    lines = [f"#define {name} {value}" for name, value in defines.items()]
    text = program_text(files)
    for header in sorted(include.glob("*.h")):
        text = text.replace(f'#include "{header.name}"', f"/* {header.name} */\n{header.read_text()}")
    return "\n".join(lines) + "\n\n" + text


def bcc_version() -> str:
    """The version of the installed bcc. Raises MissingError when there is none."""
    return str(_import_bcc().__version__)


def _import_bcc() -> Any:
    try:
        import bcc
        import bcc.libbcc
        import bcc.utils
    except ImportError as error:
        raise MissingError(
            f"the Python package bcc can't be imported ({error}); it compiles and loads the BPF programs",
            hint="apt-get install python3-bpfcc, and use a Python that sees Debian's packages (/usr/bin/python3)",
        ) from error
    return bcc


def _verifier_words(output: str) -> list[str]:
    """Why the verifier refused: what it says after the last instruction that it looked at, and BCC's words on it."""
    lines = [line.strip() for line in output.splitlines()]
    ends = next((at for at, line in enumerate(lines) if re.match(r"processed \d+ insns", line)), None)
    if ends is None:
        return []
    said = lines[:ends]
    last = max(
        (at for at, line in enumerate(said) if re.match(r"\d+: |from \d+ to |(cur|old) state", line)), default=-1
    )
    before = [line for line in said[:last] if line.startswith("infinite loop")]
    reasons = before + [line for line in said[last + 1 :] if line]
    return reasons + [line.removeprefix("HINT: ") for line in lines[ends:] if line.startswith("HINT: ")]


def _explain(message: str, output: str) -> BpfCompileError | BackendUnavailable | BpfRefused:
    """BCC's bare exception and what it wrote to stderr, as one of our errors."""
    errors = [line for line in output.splitlines() if re.search(r"\b(error|fatal error):", line)]
    if "Failed to compile" in message or errors:
        return BpfCompileError("the BPF programs don't compile:\n" + ("\n".join(errors) or output or message))
    reasons = _verifier_words(output)
    if reasons:
        return BpfRefused("the kernel refuses the program: " + "; ".join(reasons))
    words = [message, *output.strip().splitlines()[-3:]]
    hint = None
    if "Operation not permitted" in message + output and os.geteuid() != 0:
        hint = "sudo k8snet-trace"
    return BackendUnavailable(": ".join(word for word in words if word), hint=hint)


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for the time of a call: BCC has no other way to be told where headers are."""
    before = os.environ.get(name)
    if value is not None and before is None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None and before is None:
            os.environ.pop(name, None)


@contextmanager
def _caught_stderr() -> Iterator[Any]:
    """Send descriptor 2 to a file for a while; yields a function that returns what was written so far."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def written() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        os.dup2(file.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(saved, 2)
            os.close(saved)
