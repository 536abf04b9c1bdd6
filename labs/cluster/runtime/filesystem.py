"""What is put into a container's root file system: files of /etc, volumes, the network's part of /sys.

Stands for the part of runc that mounts into a root file system (libcontainer/rootfs_linux.go). All of it happens in the
container's own mount namespace, so the kernel takes it apart when the container ends. What does not belong here: the
root itself (`labs.cluster.runtime.root`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from labs.cluster import linux
from labs.cluster.runtime import root
from labs.cluster.runtime.container import ContainerSpec
from tracer.errors import K8snetError

# What hostPath checks (pkg/volume/hostpath/host_path.go, checkTypeInternal): type -> test, what it is not.
CHECKS: dict[str, tuple[Callable[[int], bool], str]] = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "FileOrCreate": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket file"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}


def arrange(spec: ContainerSpec, machine: root.Machine, mounts: Iterable[int]) -> None:
    """Give the container its root, /etc, mounts, and the devices of its own network namespace in /sys.

    `mounts`: descriptors, one for each of the spec's; they are closed.
    """
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    root.enter(machine, spec.files, keep_machine=spec.keeps_machine)
    _mount_sysfs_network()
    for name, text in spec.files.items():
        _write(Path(name), text)
    for mount, fd in zip(spec.mounts, mounts, strict=True):
        _put(fd, Path(os.path.realpath(mount.target)))
        if mount.read_only:
            linux.mount("none", os.path.realpath(mount.target), flags=root.READ_ONLY)


def host_path(path: str, kind: str, inner: str) -> int:
    """A mount of a file or directory of this file system, or of what is at `inner` in it; `kind`: a hostPath's type.

    What is missing is made where the type says so; so is a directory without a type, by containerd. Raises K8snetError
    in kubelet's words, or OSError.
    """
    place = Path(path)
    if not place.exists():
        if kind in ("", "DirectoryOrCreate"):
            place.mkdir(parents=True, mode=0o755)
        elif kind == "FileOrCreate":
            place.touch(mode=0o644)
    if kind in CHECKS:
        is_kind, words = CHECKS[kind]
        if not place.exists() or not is_kind(place.stat().st_mode):
            raise K8snetError(f"hostPath type check failed: {path} is not {words}")
    if inner:
        place = place / inner
        if not place.exists():
            place.mkdir(parents=True)
    return linux.clone_mount(str(place), recursive=place.is_dir())


def _put(mount: int, target: Path) -> None:
    """Attach a mount, where nothing needs to be yet."""
    if Path(f"/proc/self/fd/{mount}").is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    linux.attach_mount(mount, str(target))
    os.close(mount)


def _mount_sysfs_network() -> None:
    """Show the devices of this network namespace in /sys, and leave all else that is mounted below /sys where it is."""
    staging = Path("/run/.sys")
    staging.mkdir()
    linux.mount("sysfs", str(staging), "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    for part in ("class/net", "devices/virtual/net"):
        linux.mount(str(staging / part), f"/sys/{part}", flags=linux.MS_BIND)
    linux.unmount(str(staging), linux.MNT_DETACH)
    staging.rmdir()


def _write(path: Path, text: str) -> None:
    """Write a file of /etc."""
    root.own(path.parent)
    if path.is_symlink():
        path.unlink()  # such as systemd-resolved's resolv.conf: the link itself is replaced
    path.write_text(text)
