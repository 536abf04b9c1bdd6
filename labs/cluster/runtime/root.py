"""A root file system for each node and container: the machine's files, with a layer of its own for what it writes.

Stands for an image's unpacked layers and the writable layer above them (containerd's overlayfs snapshotter), with the
machine's file system for an image. The layer is an overlay over the machine's root, and one over each file system that
is mounted in there; what is written goes to a tmpfs that nothing else sees, and goes with the container. A node keeps
the machine's root at MACHINE: its pods' layers lie over that and not over the node's own, since overlays can only be
stacked two deep (FILESYSTEM_MAX_STACK_DEPTH, include/linux/fs.h), and the machine's root may be one already.

Where the kernel refuses an overlay, such as over two others, files are shared read-only instead, with an /etc of links;
`refusal` tells beforehand. All of it happens in the container's own mount namespace, so the kernel takes it apart.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from labs.cluster import linux

OURS = "k8snet"  # the source of the mounts made here, by which they are known
MACHINE = Path("/run/.machine")
STAGE = Path("/run/.stage")
# Shown as they are: what they hold is the kernel's. All of /sys is, in one go.
KERNEL = frozenset({"bpf", "cgroup", "cgroup2", "debugfs", "devpts", "hugetlbfs", "nsfs", "tracefs"})
# Not carried over: what every container has its own of, what appears when looked at, and other container engines'.
LEFT_OUT = (
    *("/proc", "/run", "/sys", "/dev/shm", "/dev/mqueue"),
    *("/snap", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/kubelet"),
)
SHARED_MEMORY = "size=64m,mode=1777"  # as container runtimes limit it
PLAIN = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
READ_ONLY = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY


@dataclass(frozen=True, slots=True)
class Part:
    """A file system mounted in the machine's root, at the absolute path `place`.

    `how`: "layer" to write to, "file" and "read-only" to read, "kernel" to be shown as it is. `mode`, `uid`, `gid`:
    those of a directory.
    """

    place: str
    how: str
    mode: int = 0
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What root file systems are made of: the machine's root as it is seen from here, and what is mounted in it.

    It is looked up once for all containers of a runtime: it takes longer than all the rest.
    """

    root: str
    parts: tuple[Part, ...]

    @classmethod
    def look(cls) -> Machine:
        """The machine, from its own mount namespace or a node's. Raises OSError."""
        root = str(MACHINE) if MACHINE.is_dir() else "/"
        parts = [_part(root, place, kind, options) for place, (kind, options) in sorted(_mounts_below(root).items())]
        return cls(root, tuple(part for part in parts if part is not None))

    def at(self, place: str) -> str:
        """Where something is seen from here."""
        return place if self.root == "/" else self.root + place


def _part(root: str, place: str, kind: str, options: str) -> Part | None:
    """What to do about a mount; None to leave it out."""
    source = Path(root + place)
    if kind == "autofs" or any(Path(place).is_relative_to(path) for path in LEFT_OUT) or not source.exists():
        return None  # the last: it is below something that was mounted over it later
    if kind in KERNEL:
        return Part(place, "kernel")
    if not source.is_dir():
        return Part(place, "file")
    status = source.stat()
    how = "read-only" if "ro" in options.split(",") else "layer"
    return Part(place, how, status.st_mode & 0o7777, status.st_uid, status.st_gid)


def _mounts_below(root: str) -> dict[str, tuple[str, str]]:
    """Where something is mounted below `root`: place in it -> type of the file system on top, options of the mount."""
    found, prefix = {}, "/" if root == "/" else f"{root}/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, _, _, name, options, *_ = fields.split()
        # proc_pid_mountinfo(5): space, tab, newline and backslash are octal numbers.
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name)
        if place.startswith(prefix) and place != prefix:
            found["/" + place.removeprefix(prefix)] = (rest.split()[0], options)
    return found


class _Layers:
    """Layers that share one tmpfs, at STAGE."""

    def __init__(self) -> None:
        STAGE.mkdir(exist_ok=True)
        linux.mount(OURS, str(STAGE), "tmpfs", data="mode=755")
        self._numbers = itertools.count()

    def put(self, lower: str, target: str, part: Part) -> None:
        """Show the directory `lower` at `target`, and keep here what is written there. Raises OSError."""
        place = f"{STAGE}/layer{next(self._numbers)}"
        for directory in (place, f"{place}/upper", f"{place}/work"):
            os.mkdir(directory)  # noqa: PTH102 - every millisecond here is one of each container's start
        os.chmod(f"{place}/upper", part.mode)  # noqa: PTH101 - the upper layer's is what the overlay's root has
        os.chown(f"{place}/upper", part.uid, part.gid)
        # A colon parts layers, a comma options.
        name = re.sub(r"([\\:,])", r"\\\1", lower)
        linux.mount(OURS, target, "overlay", data=f"lowerdir={name},upperdir={place}/upper,workdir={place}/work")

    def try_to_put(self, lower: str, target: str, part: Part) -> bool:
        """The same; where that is refused, show `lower` read-only, and give False."""
        try:
            self.put(lower, target, part)
        except OSError:
            _bind_read_only(lower, target)
            return False
        return True


_ROOT = Part("/", "layer", 0o755)


def refusal() -> str | None:
    """Why the machine's root can't have layers over it; None if it can. For a mount namespace of our own."""
    layers, target = _Layers(), STAGE / "tried"
    target.mkdir()
    try:
        layers.put("/", str(target), _ROOT)
    except OSError as error:
        return os.strerror(error.errno or 0)
    finally:
        linux.unmount(str(STAGE), linux.MNT_DETACH)
        STAGE.rmdir()
    return None


def enter(machine: Machine, files: Collection[str], *, keep_machine: bool) -> None:
    """Make a root file system for this mount namespace, and go there; /proc, /run and /dev/shm are new ones.

    `files`: what will be written there afterwards; one that is a mount of its own is not carried over. `keep_machine`:
    have the machine's root at MACHINE, for the layers of others.
    """
    layers, new = _Layers(), f"{STAGE}/root"
    os.mkdir(new)  # noqa: PTH102
    layered = layers.try_to_put(machine.root, new, _ROOT)
    linux.mount(machine.at("/sys"), f"{new}/sys", flags=linux.MS_BIND | linux.MS_REC)
    for part in machine.parts:
        _carry_over(part, machine.at(part.place), new + part.place, layers, files)
    linux.mount("proc", f"{new}/proc", "proc", PLAIN)
    linux.mount(OURS, f"{new}/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for kind, name, data in (("tmpfs", "shm", SHARED_MEMORY), ("mqueue", "mqueue", None)):
        if os.path.isdir(f"{new}/dev/{name}"):  # noqa: PTH112
            linux.mount(name, f"{new}/dev/{name}", kind, PLAIN, data)
    os.mkdir(f"{new}{MACHINE}")  # noqa: PTH102
    linux.pivot_root(new, f"{new}{MACHINE}")
    os.chdir("/")
    if not layered:
        _make_etc_of_links()
    if keep_machine:
        _detach(f"{MACHINE}/run")  # a copy of somebody else's /run/netns would keep network namespaces alive
        _detach(f"{MACHINE}/proc")
    else:
        _detach(str(MACHINE))
        MACHINE.rmdir()


def _carry_over(part: Part, source: str, target: str, layers: _Layers, files: Collection[str]) -> None:
    """Show what is mounted in the machine's root in the new one as well."""
    if part.how == "kernel":
        linux.mount(source, target, flags=linux.MS_BIND)
    elif part.how == "layer":
        layers.try_to_put(source, target, part)
    elif part.place not in files:
        _bind_read_only(source, target)


def own(directory: Path) -> None:
    """Have `directory`, which may not be there, or be a link that `_make_etc_of_links` made, as a directory to write
    into."""
    for path in (*reversed(directory.parents), directory):
        if path.is_symlink() and str(path.readlink()).startswith(f"{_SHARED_ETC}/"):
            shared = path.readlink()
            path.unlink()
            path.mkdir()
            _link_all(shared, path)
    directory.mkdir(parents=True, exist_ok=True)


def _bind_read_only(source: str, target: str) -> None:
    linux.mount(source, target, flags=linux.MS_BIND)
    linux.mount("none", target, flags=READ_ONLY)


def _detach(path: str) -> None:
    """Unmount all that is mounted at `path`, one over the other."""
    while True:
        try:
            linux.unmount(path, linux.MNT_DETACH)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            raise


# --- without layers ---------------------------------------------------------------------------------------------------

_SHARED_ETC = Path("/run/.etc")


def _make_etc_of_links() -> None:
    """Put a tmpfs over a read-only /etc, with links to all that is there, so that some of it can be other files."""
    _SHARED_ETC.mkdir()
    linux.mount("/etc", str(_SHARED_ETC), flags=linux.MS_BIND)
    linux.mount(OURS, "/etc", "tmpfs", linux.MS_NODEV, "mode=755")
    _link_all(_SHARED_ETC, Path("/etc"))


def _link_all(shared: Path, directory: Path) -> None:
    for entry in shared.iterdir():
        (directory / entry.name).symlink_to(entry.readlink() if entry.is_symlink() else entry)
