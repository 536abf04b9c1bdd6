"""The machine that a cluster runs on: all of it that a cluster could change, and a machine with a lot to lose.

What belongs here: looking at a machine from inside of it, and playing one in namespaces, so that what neighbours do on
the real one is not taken for the cluster's doing. What does not: clusters (`tests.labs.lab`), assertions.

Run as `python -m tests.labs.machine` it prints what it sees, as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
# Of what `ip` tells, these change by themselves: time until a lease ends, until a neighbour is asked again.
VOLATILE = ("valid_life_time", "preferred_life_time", "stats64", "stats", "expires", "hello_timer", "gc_timer")
NS_GET_PARENT = 0xB702  # linux/nsfs.h
COUNTERS = ("nf_conntrack_count", "ns_last_pid", "random/", "fs/", "pty/nr", "perf_event", "sched_domain")


def machine() -> dict[str, Any]:
    """What this machine's network, settings and files look like: no cluster may change it."""
    found: dict[str, Any] = {
        "links": _ip("link"),
        "addresses": _ip("address"),
        "neighbours": _ip("neigh", "show", "nud", "permanent"),
        "netns": sorted(_output("ip", "netns", "list").split()),
        "nft": _output("nft", "-s", "list", "ruleset"),
        "mounts": sorted(_mounts()),
        "sysctls": dict(_settings(Path("/proc/sys/net"), Path("/proc/sys/kernel"), Path("/proc/sys/vm"))),
        "etc": dict(_hashes(Path("/etc"))),
        "run": sorted(path.name for path in Path("/run").iterdir() if path.name != "k8snet"),
        "bpf in the network": _output("bpftool", "-j", "net", "show"),
        "bpf at cgroups": [_output("bpftool", "-j", "cgroup", "show", str(root)) for root in CGROUP_ROOTS if _v2(root)],
    }
    for family in ("-4", "-6"):
        found[f"routes {family}"] = _ip(family, "route", "show", "table", "all")
        found[f"rules {family}"] = _ip(family, "rule")
    for program in ("iptables", "ip6tables"):
        tables = Path("/proc/net/ip_tables_names" if program == "iptables" else "/proc/net/ip6_tables_names")
        found[f"tables of {program}-legacy"] = sorted(tables.read_text().split()) if tables.exists() else []
        for variant in ("legacy", "nft"):
            saved = _output(f"{program}-{variant}-save").splitlines()
            found[f"{program}-{variant}"] = [line.partition(" [")[0] for line in saved if not line.startswith("#")]
    return found


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _ip(*arguments: str) -> list[str]:
    """What `ip` tells, an object each, without what changes by itself."""
    document = json.loads(_output("ip", "-d", "-j", *arguments) or "[]")
    return sorted(json.dumps(_without(entry, VOLATILE), sort_keys=True) for entry in document)


def _without(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, names) for name, inner in value.items() if name not in names}
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value


def _mounts() -> Iterator[str]:
    """Place, file system and options of each mount; but not those of namespaces that others name."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, kind, options, *_ = line.split()
        if kind != "nsfs":
            yield f"{place} {kind} {source} {options}"


def _settings(*roots: Path) -> Iterator[tuple[str, str]]:
    """All settings that can be read, but counters."""
    for root in roots:
        for directory, _, files in os.walk(root):
            for name in files:
                path = Path(directory, name)
                if not any(counter in str(path) for counter in COUNTERS):
                    with contextlib.suppress(OSError):
                        yield str(path), path.read_text(errors="replace")


def _hashes(root: Path) -> Iterator[tuple[str, str]]:
    """What kind of file each is, and the hash of what is in it."""
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                mode = path.lstat().st_mode
                data = bytes(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
                yield str(path), f"{mode:o} {hashlib.sha256(data).hexdigest()}"


def _status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def _v2(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


# --- A machine of the test's own ------------------------------------------------------------------

# A node of a cluster already, with neighbours and a policy for routing: whatever is flushed or set here is missed.
FURNITURE = """
set -e
mount -t tmpfs machine /run
mkdir /run/lock
cp -a /etc /run/etc
mount --bind /run/etc /etc
sysctl -q -w net.ipv6.conf.default.accept_dad=0
ip link set lo up
ip link add lan0 type bridge forward_delay 0
ip link add wan0 type veth peer name wan1
ip link add port0 type veth peer name port1
ip link set port0 master lan0
for link in lan0 wan0 wan1 port0 port1; do ip link set $link up; done
ip address add 172.18.0.1/16 dev lan0
ip address add 192.0.2.2/24 dev wan0
ip address add 2001:db8::2/64 dev wan0 nodad
ip address add fc00:f853:ccd:e793::1/64 dev lan0 nodad
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8::1
ip route add 10.244.0.0/24 via 172.18.0.2
ip route add 10.96.0.0/12 via 172.18.0.2 table 100
ip -6 route add fd00:10:244::/64 via fc00:f853:ccd:e793::2 table 100
ip rule add fwmark 0x4000 lookup 100
ip -6 rule add fwmark 0x4000 lookup 100
ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev wan0 nud permanent
ip -6 neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev wan0 nud permanent
for program in iptables-legacy iptables-nft ip6tables-legacy ip6tables-nft; do
    for chain in KUBE-SERVICES KUBE-SVC-OWN KUBE-POSTROUTING KUBE-MARK-MASQ KIND-MASQ-AGENT KUBE-PROXY-CANARY; do
        $program -t nat -N $chain
    done
    $program -t nat -A PREROUTING -j KUBE-SERVICES
    $program -t nat -A POSTROUTING -j KUBE-POSTROUTING
    $program -t nat -A KUBE-SERVICES -p tcp --dport 80 -j KUBE-SVC-OWN
    $program -A FORWARD -m conntrack --ctstate INVALID -j DROP
    $program -t mangle -A OUTPUT -p udp -j MARK --set-mark 1
    $program -P FORWARD DROP
done
nft add table ip kube-proxy
nft add chain ip kube-proxy services
nft add rule ip kube-proxy services ip daddr 10.96.0.10 accept
nft add table inet own
nft add set inet own friends '{ type ipv4_addr; elements = { 192.0.2.7 }; }'
sysctl -q -w net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=2
sysctl -q -w net.ipv4.conf.all.route_localnet=0 net.ipv6.conf.all.forwarding=0 net.ipv6.conf.default.accept_dad=1
ip netns add node1
trap '' CHLD
echo furnished
exec sleep infinity
"""


@dataclass(frozen=True)
class Machine:
    """A machine played in namespaces. Use `Machine.own()` to have one.

    `name`: of the cluster that may be on it, for cgroups are shared with everybody. `pid`: its first process.
    """

    name: str
    pid: int

    @classmethod
    @contextlib.contextmanager
    def own(cls) -> Iterator[Machine]:
        """A machine with links, routes, rules, settings, an /etc and a /run of its own; it ends with the block."""
        kinds = ("--mount", "--net", "--pid", "--ipc", "--uts")
        command = ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc", "sh", "-c", FURNITURE]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "furnished\n"
            first = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
            yield cls(f"machine-{secrets.token_hex(4)}", first)
        finally:
            holder.kill()
            holder.communicate()

    @property
    def root(self) -> Path:
        """Its root directory, as seen from here."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def enter(self) -> tuple[str, ...]:
        """The command that runs another one on it."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--ipc", "--uts", f"--wd={REPOSITORY}")

    def state(self) -> dict[str, Any]:
        """What `machine()` sees on it."""
        state: dict[str, Any] = json.loads(_output(*self.enter, sys.executable, "-m", "tests.labs.machine"))
        return state

    def left(self) -> list[str]:
        """What there is on it of a cluster: files, cgroups, processes."""
        found = [str(path.relative_to(self.root)) for path in self.root.joinpath("run/k8snet").rglob("*")]
        found += [str(path) for root in CGROUP_ROOTS for path in root.glob(f"k8snet-{self.name}-*")]
        return found + [f"process {pid} {name}" for pid, name in self._processes() if pid != self.pid]

    def _processes(self) -> Iterator[tuple[int, str]]:
        """All processes in its pid namespace, and in those below: who they are here, and their names."""
        ours = (self.root / "proc/1/ns/pid").stat().st_ino
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError):
                about = _status(int(entry.name))
                if about["State"][0] not in "ZX" and self._holds(entry, ours):
                    yield int(entry.name), about["Name"]

    @staticmethod
    def _holds(process: Path, pid_namespace: int) -> bool:
        """Whether a process lives in a pid namespace or in one below it (ioctl_ns(2), NS_GET_PARENT)."""
        fd = os.open(process / "ns/pid", os.O_RDONLY)
        try:
            while os.fstat(fd).st_ino != pid_namespace:
                parent = fcntl.ioctl(fd, NS_GET_PARENT)
                os.close(fd)
                fd = parent
        except PermissionError:  # it is above ours
            return False
        finally:
            os.close(fd)
        return True


def main() -> None:
    """Print what this machine looks like."""
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
