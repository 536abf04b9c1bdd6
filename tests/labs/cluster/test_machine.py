"""The machine stays as it was, to the last rule, route, setting and file: while a cluster runs, after it, and whoever
is killed at whatever moment. Played on a machine of the test's own that has much to lose."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from tests.labs.lab import REPOSITORY, Lab, descendants
from tests.labs.machine import Machine

pytestmark = pytest.mark.root

SUPERVISOR_MOMENTS = 10
GUARDIAN_MOMENTS = 3


@dataclass(frozen=True)
class Own:
    """A machine, what it looked like before there was a cluster, and how many seconds `up` takes there."""

    machine: Machine
    before: dict[str, Any]
    up_seconds: float

    def cluster(self) -> Lab:
        """The cluster that may be on it."""
        return Lab(name=f"{self.machine.name}-x", machine=self.machine)

    def changed(self) -> list[str]:
        """What looks different than before, a line each."""
        now = self.machine.state()
        return [f"{name}: {line}" for name, then in self.before.items() for line in difference(then, now[name])]

    def wait_until_gone(self, patience: float) -> list[str]:
        """Wait until nothing is left of a cluster; gives what is still left after some time."""
        deadline = time.monotonic() + 3 * patience
        while (left := self.machine.left()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left


def difference(then: Any, now: Any) -> list[str]:
    """The lines that were there only then or are there only now."""
    return [] if then == now else list(unified_diff(lines(then), lines(now), "then", "now", lineterm="", n=0))


def lines(value: Any) -> list[str]:
    """A state, or a part of one, in lines."""
    if isinstance(value, dict):
        return [f"{name} {inner}" for name, inner in value.items()]
    return value.splitlines() if isinstance(value, str) else list(value)


@pytest.fixture(scope="module")
def own() -> Iterator[Own]:
    with Machine.own() as machine:
        before = machine.state()
        cluster = Lab(name=f"{machine.name}-x", machine=machine)
        began = time.monotonic()
        with cluster:
            seconds = time.monotonic() - began
        yield Own(machine, before, seconds)


CHANGES = {
    "links": "ip link set port1 mtu 1400",
    "addresses": "ip address add 192.0.2.3/24 dev wan0",
    "neighbours": "ip -6 neigh del 2001:db8::9 dev wan0",
    "netns": "ip netns add node2",
    "nft": "nft flush chain ip kube-proxy services",
    "mounts": "mount -t tmpfs none /mnt",
    "sysctls": "sysctl -q -w net.ipv6.conf.port0.forwarding=1",
    "etc": "echo '# more' >> /etc/hosts",
    "run": "touch /run/more",
    "routes -4": "ip route del 10.96.0.0/12 table 100",
    "routes -6": "ip -6 route del fd00:10:244::/64 table 100",
    "rules -4": "ip rule add from 192.0.2.0/24 lookup 100",
    "rules -6": "ip -6 rule del fwmark 0x4000",
    "iptables-legacy": "iptables-legacy -t nat -F KUBE-SERVICES",
    "iptables-nft": "iptables-nft -P INPUT DROP",
    "ip6tables-legacy": "ip6tables-legacy -t nat -X KIND-MASQ-AGENT",
    "ip6tables-nft": "ip6tables-nft -t mangle -F OUTPUT",
    "tables of iptables-legacy": "iptables-legacy -t raw -S",
    "tables of ip6tables-legacy": "ip6tables-legacy -t raw -S",
}


def test_every_kind_of_change_would_be_seen() -> None:
    with Machine.own() as machine:
        before = machine.state()
        for what, command in CHANGES.items():
            subprocess.run([*machine.enter, "sh", "-c", command], check=True, capture_output=True)
            after = machine.state()
            assert before[what] != after[what], what
            before = after
        assert machine.left() == []
        with subprocess.Popen([*machine.enter, "unshare", "--pid", "--fork", "sleep", "60"]) as process:
            while not (left := machine.left()) or not left[-1].endswith("sleep"):
                time.sleep(0.01)
            process.kill()
        assert {line.split()[-1] for line in left} == {"unshare", "sleep"}, "also in a pid namespace below"


@pytest.mark.parametrize(
    "options", [(), ("--proxy", "nftables", "--cni", "vxlan", "--ip-family", "dual"), ("--proxy", "ebpf")]
)
def test_a_cluster_changes_nothing(own: Own, options: tuple[str, ...], patience: float) -> None:
    with Lab(options, name=f"{own.machine.name}-x", machine=own.machine) as cluster:
        assert len(own.machine.left()) > 20, "files, a cgroup, guardian, supervisor, nodes, pods"
        assert own.changed() == []
        assert cluster.get("default/client", "http://10.96.100.50:8000/")["path"] == "/"
    assert own.wait_until_gone(patience) == []
    assert own.changed() == []


@pytest.mark.parametrize("moment", range(SUPERVISOR_MOMENTS))
def test_kill_the_supervisor_during_up(own: Own, moment: int, patience: float) -> None:
    kill_during_up(own, "supervisor", moment / SUPERVISOR_MOMENTS, (moment + 1) / SUPERVISOR_MOMENTS, patience)


@pytest.mark.parametrize("moment", range(GUARDIAN_MOMENTS))
def test_kill_the_guardian_during_up(own: Own, moment: int, patience: float) -> None:
    kill_during_up(own, "guardian", moment / GUARDIAN_MOMENTS, (moment + 1) / GUARDIAN_MOMENTS, patience)


def kill_during_up(own: Own, victim: str, earliest: float, latest: float, patience: float) -> None:
    """Kill it at a random moment between two fractions of the time that `up` takes; then `up` works again."""
    cluster, delay = own.cluster(), random.uniform(earliest, latest) * own.up_seconds
    with starting(cluster) as process:
        pid = wait_for(process, victim)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=30)
        print(f"{victim} killed after {delay:.3f} s of {own.up_seconds:.3f}: {process.returncode} {said!r}")
        assert process.returncode in (0, 1), said
        assert ("error: " in said) == (process.returncode == 1), said
        assert own.wait_until_gone(patience) == []
        assert own.changed() == []
        cluster.run("up")
        assert cluster.get("default/client", "http://lets-ship-it.fastapi:8000/")["path"] == "/"
    assert own.wait_until_gone(patience) == []


@contextlib.contextmanager
def starting(cluster: Lab) -> Iterator[subprocess.Popen[str]]:
    """`up`, under way; whatever becomes of it, the cluster is gone afterwards."""
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.__exit__)
        process = stack.enter_context(
            subprocess.Popen(
                cluster.command("up"), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
        stack.callback(process.kill)
        yield process


def wait_for(up: subprocess.Popen[str], victim: str) -> int:
    """The process id of the guardian or the supervisor, as soon as there is one."""
    while up.poll() is None:
        for pid in descendants(up.pid):
            with contextlib.suppress(OSError):
                if b"labs.cluster.guardian" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found = list(descendants(pid))
                    if victim == "guardian":
                        return pid
                    if len(found) > 1:
                        return found[1]
    raise AssertionError(f"`up` ended before there was a {victim}")
