"""Containers for tests of names: processes in namespaces and cgroups of their own, as under a kubelet."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tracer import procfs

_all_pids = procfs.pids

UID = "0b4c57b9-8b1c-4f3f-9a3d-3a1f6f6f5f10"


@dataclass(frozen=True)
class Container:
    """A process that sleeps in a container."""

    pid: int
    netns: int
    cgroup: Path

    @property
    def cgroup_id(self) -> int:
        return self.cgroup.stat().st_ino


def our_pids() -> list[int]:
    """What `procfs.pids` gives, less all that does not belong to the test: other clusters may run on this machine."""
    return [pid for pid in _all_pids() if pid == os.getpid() or _parent(pid) == os.getpid()]


def _parent(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])


@contextlib.contextmanager
def container(
    *,
    hostname: str | None = "web-5c9d-x7k2p",
    namespace: str | None = "fastapi",
    uid: str | None = UID,
    address: str | None = None,
) -> Iterator[Container]:
    """A container with namespaces of its own. hostname None: it shares our UTS namespace; uid None: it is no pod's."""
    below = f"kubepods/besteffort/pod{uid}/{'4f' * 32}" if uid is not None else "system.slice/some.service"
    with _cgroup(below) as cgroup:
        script = ["set -e", "mount -t tmpfs none /run", "ip link set lo up"]
        if hostname is not None:
            script.append(f"hostname '{hostname}'")
        if namespace is not None:
            account = "/run/secrets/kubernetes.io/serviceaccount"
            script.append(f"mkdir -p {account}; echo {namespace} > {account}/namespace")
        if address is not None:
            script.append(f"ip link add e0 type bridge; ip link set e0 up; ip address add {address}/24 dev e0")
        unshare = ["unshare", "--net", "--mount", *(["--uts"] if hostname is not None else [])]
        command = "\n".join([*script, "echo up", "exec sleep 60"])
        into_cgroup = ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; exec "$@"', "sh"]
        with subprocess.Popen([*into_cgroup, *unshare, "--", "sh", "-c", command], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
                netns = procfs.netns_inode(process.pid)
                assert netns is not None
                yield Container(process.pid, netns, cgroup)
            finally:
                process.kill()


@contextlib.contextmanager
def _cgroup(below: str) -> Iterator[Path]:
    mount = procfs.cgroup2_mount()
    assert mount is not None, "there is no cgroup v2 on this machine"
    top = Path(mount, f"k8snet-test-{secrets.token_hex(4)}")
    path = top / below
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        while path != Path(mount):
            _remove(path)
            path = path.parent


def _remove(path: Path) -> None:
    """A cgroup stays busy for a moment after its last process."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.01)
    path.rmdir()
