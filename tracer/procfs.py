"""What /proc and the cgroup file system know about a process: cgroup, pod UID, hostname, namespace, addresses.

What belongs here: reading and parsing; each function answers None (or nothing) for a process that is gone or hidden.
What does not: deciding which of several sources is right, and caching (`tracer.names`).

Files of a container are opened with its root as root (openat2(2), RESOLVE_IN_ROOT): images make /var/run a link to
/run, which would lead to *our* /run otherwise, and a container must not be able to point us at a file of the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWUTS = 0x04000000  # include/uapi/linux/sched.h
FILEID_KERNFS = 0xFE  # include/linux/exportfs.h
SYS_OPENAT2 = 437  # the same on every architecture but alpha
RESOLVE_NO_MAGICLINKS = 0x02  # include/uapi/linux/openat2.h
RESOLVE_IN_ROOT = 0x10

SERVICE_ACCOUNT_NAMESPACE = "var/run/secrets/kubernetes.io/serviceaccount/namespace"
POD_LOGS = "/var/log/pods"

WALK_SECONDS = 1.0  # the cgroup file system is walked at most this often
MAX_WALKED = 100_000  # directories in one walk
MAX_HOSTNAME = 63  # the kubelet cuts a longer pod name to make a hostname of it (truncatePodHostnameIfNeeded)

# pkg/kubelet/cm/pod_container_manager_linux.go and cgroup_manager_linux.go. kind sets --cgroup-root=/kubelet, which
# gives "kubelet-kubepods-…" with systemd.
_SYSTEMD_POD = re.compile(r"(?:^|/)(?:[^/]*-)?kubepods(?:-burstable|-besteffort)?-pod([^/]+)\.slice(?=/|$)")
_CGROUPFS_POD = re.compile(r"(?:^|/)kubepods(?:/burstable|/besteffort)?/pod([^/]+)(?=/|$)")
_DNS_NAME = re.compile(r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?")  # RFC 1123, as Kubernetes reads it


def pod_uid(cgroup_path: str) -> str | None:
    """The UID of the pod that a cgroup path belongs to, or None when it is no pod's.

    Reads what both cgroup drivers of the kubelet write: "kubepods/burstable/pod<uid>/<container>" (cgroupfs), and
    "kubepods-burstable-pod<uid, - as _>.slice/cri-containerd-<container>.scope" (systemd). In a pod within a pod
    (kind in a pod) the innermost one counts. For a static pod this is the hash of its manifest, not the UID of its
    mirror pod.
    """
    systemd = _last(_SYSTEMD_POD, cgroup_path)
    cgroupfs = _last(_CGROUPFS_POD, cgroup_path)
    if systemd is not None and (cgroupfs is None or systemd.start() > cgroupfs.start()):
        return systemd[1].replace("_", "-")
    return None if cgroupfs is None else cgroupfs[1]


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match, or None."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match


def cgroup_paths(pid: int) -> list[str]:
    """The cgroup paths of a process in every hierarchy, that of cgroup v2 first; [] when it is gone (cgroups(7))."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [field[2] for field in sorted((f for f in fields if len(f) == 3), key=lambda field: field[0] != "0")]


def cgroup2_mount() -> str | None:
    """Where cgroup v2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified on a hybrid machine; None: nowhere."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                mount, _, kind = line.partition(" - ")
                if kind.startswith("cgroup2 "):
                    return mount.split(" ")[4]
    except OSError:
        pass
    return None


class _KernfsHandle(ctypes.Structure):
    """struct file_handle of a kernfs file (fs/kernfs/mount.c): its 64-bit id, which is a cgroup's id too."""

    _fields_ = (("handle_bytes", ctypes.c_uint32), ("handle_type", ctypes.c_int32), ("id", ctypes.c_uint64))


class Cgroups:
    """From the id of a cgroup (bpf_get_current_cgroup_id) to its path in the cgroup v2 hierarchy.

    The kernel opens a cgroup by its id (about 10 µs) for who has CAP_DAC_READ_SEARCH; for anyone else a walk of the
    hierarchy finds it by inode, which is the id.
    """

    def __init__(self, mount: str | None) -> None:
        self._mount = mount
        self._fd = -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._walked = float("-inf")
        self._paths: dict[int, str] = {}
        if mount is not None:
            with contextlib.suppress(OSError):
                self._fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the mount. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def path(self, cgroup_id: int) -> str | None:
        """The path of a cgroup below the mount, "/" for the root; None: it is gone or may not be opened. Quick."""
        if self._mount is None:
            return None
        handle = _KernfsHandle(8, FILEID_KERNFS, cgroup_id)
        fd = self._libc.open_by_handle_at(self._fd, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            return None
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 (Path costs more than the system call)
        except OSError:
            return None
        finally:
            os.close(fd)
        return path.removeprefix(self._mount) or "/"

    def walk(self, cgroup_id: int) -> str | None:
        """As `path`, but by a walk of the hierarchy, at most once in WALK_SECONDS. Takes milliseconds."""
        if self._mount is None:
            return None
        if cgroup_id not in self._paths and time.monotonic() - self._walked >= WALK_SECONDS:
            self._paths = dict(_directories(self._mount))
            self._walked = time.monotonic()
        return self._paths.get(cgroup_id)


def _directories(mount: str) -> Iterator[tuple[int, str]]:
    """The directories at and below `mount`: inode and path below it; MAX_WALKED at most."""
    pending = [""]
    seen = 0
    while pending and seen < MAX_WALKED:
        path = pending.pop()
        try:
            with os.scandir(mount + path) as entries:
                directories = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            yield os.stat(mount + path).st_ino, path or "/"  # noqa: PTH116
        except OSError:
            continue  # removed meanwhile
        seen += 1
        pending.extend(f"{path}/{entry.name}" for entry in directories)


def logged_pod(uid: str, directory: str = POD_LOGS) -> tuple[str, str] | None:
    """Namespace and name of a pod of this node by its UID, from the kubelet's log directories, or None.

    They are called NAMESPACE_NAME_UID (BuildPodLogsDirectory, pkg/kubelet/kuberuntime/helpers.go); a namespace and a
    name hold no underscore.
    """
    try:
        names = os.listdir(directory)  # noqa: PTH208
    except OSError:
        return None
    for name in names:
        fields = name.split("_", 2)
        if len(fields) == 3 and fields[2] == uid and _DNS_NAME.fullmatch(fields[0]) and _DNS_NAME.fullmatch(fields[1]):
            return fields[0], fields[1]
    return None


def hostname(pid: int) -> str | None:
    """The hostname of a process that has one of its own, as long as it may be a pod's name; else None.

    None for a process in our own UTS namespace (a pod on the host's network has the node's hostname) or with our own
    hostname (its container is being set up), for what is no DNS name, and for 63 characters (the kubelet may have cut
    it).
    """
    uts = _inode(f"/proc/{pid}/ns/uts")
    if uts is None or uts == _inode("/proc/self/ns/uts"):
        return None
    name = _uts_name(pid) or _first_line(pid, "etc/hostname")
    if name is None or name == os.uname().nodename:
        return None
    return name if len(name) < MAX_HOSTNAME and _DNS_NAME.fullmatch(name) else None


def service_account_namespace(pid: int) -> str | None:
    """The namespace of a pod by its mounted service account, or None: not a pod, or one without the mount."""
    name = _first_line(pid, SERVICE_ACCOUNT_NAMESPACE)
    return name if name and len(name) <= MAX_HOSTNAME and _DNS_NAME.fullmatch(name) and "." not in name else None


def netns_inode(pid: int) -> int | None:
    """The inode of a process's network namespace, or None when it is gone or hidden."""
    return _inode(f"/proc/{pid}/ns/net")


def pids() -> list[int]:
    """The ids of all processes."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def addresses(pid: int | None = None) -> frozenset[str]:
    """The addresses that are local in the network namespace of a process (None: of the calling thread).

    IPv4 from fib_trie: what the kernel's routing calls LOCAL, as the iptables match `addrtype --dst-type LOCAL` does,
    which kube-proxy uses for NodePorts. IPv6 from if_inet6. Loopback included.
    """
    net = "/proc/thread-self/net" if pid is None else f"/proc/{pid}/net"
    return frozenset(_fib_trie_local(f"{net}/fib_trie")) | frozenset(_if_inet6(f"{net}/if_inet6"))


def _fib_trie_local(path: str) -> Iterator[str]:
    """Addresses with a "/32 host LOCAL" leaf (net/ipv4/fib_trie.c, fib_trie_seq_show)."""
    leaf = ""
    for line in _lines(path):
        fields = line.split()
        if fields[:1] == ["|--"] and len(fields) == 2:
            leaf = fields[1]
        elif fields[:1] == ["/32"] and fields[-2:] == ["host", "LOCAL"] and leaf:
            yield leaf


def _if_inet6(path: str) -> Iterator[str]:
    """The first field of each line: 32 hexadecimal digits (net/ipv6/addrconf.c, if6_seq_show)."""
    for line in _lines(path):
        digits = line.split(" ", 1)[0]
        with contextlib.suppress(ValueError):
            yield str(ipaddress.IPv6Address(int(digits, 16)))


def _lines(path: str) -> list[str]:
    """The lines of a file of /proc, [] when it can't be read."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _inode(path: str) -> int | None:
    """The inode of a file, or None when the process is gone or may not be looked at."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116
    except OSError:
        return None


def _uts_name(pid: int) -> str | None:
    """The hostname in the UTS namespace of a process, or None without CAP_SYS_ADMIN.

    A thread that ends with the call does setns(2): the kernel's word can't be a trap as a file of the container could.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        names: list[str] = []
        thread = threading.Thread(target=_uts_name_in, args=(fd, names), name="uts", daemon=True)
        thread.start()
        thread.join()
        return names[0] if names else None
    finally:
        os.close(fd)


def _uts_name_in(fd: int, names: list[str]) -> None:
    """The thread of `_uts_name`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWUTS) == 0:
        names.append(os.uname().nodename)


class _OpenHow(ctypes.Structure):
    """struct open_how (include/uapi/linux/openat2.h)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _first_line(pid: int, path: str) -> str | None:
    """The first line of a file below the root of a process, without surrounding space, or None."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fd = _open_in_root(root, path)
    except OSError:
        return None
    finally:
        os.close(root)
    try:
        return os.read(fd, 512).decode("ascii", errors="replace").split("\n", 1)[0].strip()
    except OSError:
        return None
    finally:
        os.close(fd)


def _open_in_root(root: int, path: str) -> int:
    """Open `path` for reading with the directory `root` as root, whatever links there are. Raises OSError."""
    how = _OpenHow(os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(
        ctypes.c_long(SYS_OPENAT2), ctypes.c_int(root), os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
    )
    if fd < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number), path)
    return int(fd)
