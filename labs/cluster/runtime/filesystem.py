"""What is put into a container's root file system: files of /etc, volumes, the network's part of /sys.

Stands for the part of runc that mounts into a root file system (libcontainer/rootfs_linux.go). All of it happens in the
container's own mount namespace, so the kernel takes it apart when the container ends. What does not belong here: the
root itself (`labs.cluster.runtime.root`).
"""

from __future__ import annotations

import os
from pathlib import Path

from labs.cluster import linux
from labs.cluster.runtime import root
from labs.cluster.runtime.container import ContainerSpec


def arrange(spec: ContainerSpec, machine: root.Machine) -> None:
    """Give the container its root, /etc, volumes, and the devices of its own network namespace in /sys."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    # Before the root is another one: it is the node's view that they are taken from.
    taken = {target: _take(source) for target, source in spec.binds.items()}
    root.enter(machine, spec.files, keep_machine=spec.keeps_machine)
    _mount_sysfs_network()
    for name, text in spec.files.items():
        _write(Path(name), text)
    for directory, files in spec.volumes.items():
        path = Path(os.path.realpath(directory))
        path.mkdir(parents=True, exist_ok=True)
        linux.mount("tmpfs", str(path), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "mode=755")
        for name, text in files.items():
            (path / name).write_text(text)
        linux.mount("none", str(path), flags=linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY)
    for target, mount in taken.items():
        _put(mount, Path(os.path.realpath(target)))


def _take(source: str) -> int:
    """A mount of a file or directory of the node; a file that is missing is made (hostPath type FileOrCreate)."""
    path = Path(source)
    if not path.exists():
        path.touch()
    return linux.clone_mount(source)


def _put(mount: int, target: Path) -> None:
    """Attach what `_take` gave."""
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
