"""The eBPF Service datapath on a node that is none of this cluster's: what it needs there, and taking all of it away.

A node of the cluster in miniature goes with all that it has. A node of a real cluster stays: so here is the one owner
of what the datapath leaves on it. That is the pinned programs, maps and links; a bpffs, where there was none; the
programs at devices that no link holds (before Linux 6.6); the range of ports that sockets get, and a directory that
tells what the range was before. The programs outlive whoever loaded them, and `remove` takes them away.

What belongs here: that, in the caller's own mount, network and pid namespaces, which are the node's. What does not: the
proxy itself (`labs.cluster.ebpfproxy`), and how it comes into a node (`labs.engine.kind.servicelb`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from labs.cluster import ebpfdevices, ebpfproxy, linux
from labs.cluster.ebpfproxy import PINS, PORT_RANGE, Settings
from tracer.errors import K8snetError, MissingError, UsageError

DIRECTORY = Path("/run/k8snet-service-lb")
_BEFORE = "port-range"  # in it: what the range was
_LOCK = "lock"
_SOURCE = "k8snet"  # of the bpffs that is mounted here, by which it is known
_KERNELS_OWN = {"maps.debug", "progs.debug"}  # what the kernel puts into a bpffs (CONFIG_BPF_PRELOAD)


def run(settings: Settings, directory: Path = DIRECTORY) -> None:
    """Be the proxy of this node until SIGTERM or SIGINT; what is in the kernel then stays. Raises K8snetError.

    While another one runs here, waits for its end.
    """
    if not (settings.cgroup / "cgroup.controllers").exists():
        raise MissingError(
            f"{settings.cgroup} is no cgroup of version 2", hint="boot with systemd.unified_cgroup_hierarchy=1"
        )
    with _only_one(directory, wait=True):
        _have_bpffs(settings.pins.parent)
        before = directory / _BEFORE
        if not before.exists():
            before.write_text(PORT_RANGE.read_text())
        ebpfproxy.load(settings)
        asyncio.run(_until_told(settings))


def remove(pins: Path = PINS, directory: Path = DIRECTORY) -> bool:
    """Take away all that `run` leaves; False when there is nothing. Raises UsageError while it runs."""
    if not pins.is_dir() and not directory.is_dir():
        return False
    with _only_one(directory, wait=False):
        ebpfdevices.remove_filters()
        for path in pins.iterdir() if pins.is_dir() else ():
            path.unlink()  # a link takes its program from where that is attached
        with contextlib.suppress(FileNotFoundError):
            pins.rmdir()
        _unmount_bpffs(pins.parent)
        _restore_port_range(directory / _BEFORE)
        for path in directory.iterdir():
            path.unlink()
    directory.rmdir()
    return True


class _Nobody:
    """Who would be told: here the log and the health port tell enough."""

    def notify(self, line: str) -> None:
        pass

    def ready(self) -> None:
        pass


async def _until_told(settings: Settings) -> None:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await ebpfproxy.serve(settings, _Nobody())


@contextlib.contextmanager
def _only_one(directory: Path, *, wait: bool) -> Iterator[None]:
    """Nobody else runs or removes meanwhile. Raises UsageError where somebody does, unless that is to be waited for."""
    directory.mkdir(mode=0o755, exist_ok=True)
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            hint = "kubectl -n kube-system delete daemonset service-lb"
            raise UsageError("the proxy of this node is running", hint=hint) from None
        yield
    finally:
        os.close(lock)


def _have_bpffs(directory: Path) -> None:
    """Mount a bpffs there unless it is in one: Docker mounts none into containers, and systemd none in a container."""
    if _mount_of(directory)[1] == "bpf":
        return
    try:
        linux.mount(_SOURCE, str(directory), "bpf", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, "mode=700")
    except OSError as error:
        raise K8snetError(f"no bpffs at {directory}: {error.strerror}") from error


def _unmount_bpffs(directory: Path) -> None:
    """Unmount what `_have_bpffs` mounted, unless somebody has pinned something of his own there."""
    if _mount_of(directory) != (str(directory), "bpf", _SOURCE):
        return
    if not {path.name for path in directory.iterdir()} - _KERNELS_OWN:
        linux.unmount(str(directory))


def _mount_of(path: Path) -> tuple[str, str, str]:
    """Of the mount that a path is in: where it is mounted, the type of its file system, its source."""
    found = ("", "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point, (kind, source, *_) = fields.split()[4], rest.split()
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind, source)
    return found


def _restore_port_range(before: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        PORT_RANGE.write_text(before.read_text())
