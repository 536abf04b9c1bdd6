"""What a container sees of the machine's files, and which are its own.

Stands for the part of runc that prepares a root file system (libcontainer/rootfs_linux.go). All of it happens in the
container's own mount namespace, so the kernel takes it apart when the container ends.
"""

from __future__ import annotations

import os
from pathlib import Path

from labs.cluster import linux
from labs.cluster.runtime.container import ContainerSpec

OURS = "k8snet"  # the source of the mounts made here, by which they are known


def arrange(spec: ContainerSpec) -> None:
    """Give the container its own /proc, /run, /etc, volumes, and the devices of its own network namespace in /sys."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    # Before /run goes: it may be what they are taken from.
    taken = {target: _take(source) for target, source in spec.binds.items()}
    own_run()
    _mount_sysfs_network()
    if spec.files:
        _write_etc(spec.files)
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


def own_run() -> None:
    """Give the caller's mount namespace an empty /run of its own.

    The one that it inherited, if we made it, goes away with all that is mounted in it: a copy of somebody else's
    /run/netns would keep network namespaces alive.
    """
    _detach_ours("/run")
    linux.mount(OURS, "/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")


def _detach_ours(target: str) -> None:
    """Unmount what this module mounted at `target`, if anything."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == target and rest.split()[1] == OURS:
            linux.unmount(target, linux.MNT_DETACH)
            return


def _mount_sysfs_network() -> None:
    """Show the devices of this network namespace in /sys, and leave all else that is mounted below /sys where it is."""
    staging = Path("/run/.sys")
    staging.mkdir()
    linux.mount("sysfs", str(staging), "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    for part in ("class/net", "devices/virtual/net"):
        linux.mount(str(staging / part), f"/sys/{part}", flags=linux.MS_BIND)
    linux.unmount(str(staging), linux.MNT_DETACH)
    staging.rmdir()


def _write_etc(files: dict[str, str]) -> None:
    """Put files into /etc that only this container sees: an overlay whose upper layer is in its own /run."""
    _detach_ours("/etc")  # the node's: overlays may only be stacked two deep
    for layer in ("/run/.etc/upper", "/run/.etc/work"):
        Path(layer).mkdir(parents=True)
    layers = "lowerdir=/etc,upperdir=/run/.etc/upper,workdir=/run/.etc/work"
    linux.mount(OURS, "/etc", "overlay", linux.MS_NODEV, layers)
    for name, text in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()  # such as systemd-resolved's resolv.conf: the link itself is replaced, in the overlay
        path.write_text(text)
