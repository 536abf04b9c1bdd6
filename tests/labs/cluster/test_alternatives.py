"""Plain `iptables` on a node: the variant that the cluster's kube-proxy uses, as Debian's alternatives say it there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.labs.lab import Lab

pytestmark = pytest.mark.root

WORDS = {"legacy": "legacy", "nft": "nf_tables"}  # how `iptables -V` calls the variants
COMMANDS = [f"{program}{suffix}" for program in ("iptables", "ip6tables") for suffix in ("", "-save", "-restore")]


def alternatives() -> dict[str, Path]:
    """What this machine's own links say."""
    return {path.name: path.readlink() for path in Path("/etc/alternatives").iterdir() if path.is_symlink()}


@pytest.mark.parametrize("variant", WORDS)
def test_iptables_of_a_node_is_kube_proxys(variant: str) -> None:
    machine = alternatives()
    with Lab(("--iptables", variant, "--ip-family", "dual")) as cluster:
        components = [f"kube-system/{pod['name']}" for pod in cluster.pods("kube-system", "k")]
        places = [name for name in components if "kube-proxy" in name or "kindnet" in name]
        assert len(places) == 4
        for place in ("node1", "node2", *places):
            said = cluster.exec(place, "sh", "-ec", f"for command in {' '.join(COMMANDS)}; do $command -V; done").stdout
            told = [(line.split()[0], line.split()[-1]) for line in said.splitlines()]
            assert told == [(command, f"({WORDS[variant]})") for command in COMMANDS], place
        for program in ("iptables", "ip6tables"):
            rules = cluster.exec("node2", program, "-t", "nat", "-S", "KUBE-SERVICES").stdout
            assert '--comment "kubernetes service nodeports;' in rules
            other = next(name for name in WORDS if name != variant)
            elsewhere = cluster.exec("node2", f"{program}-{other}", "-t", "nat", "-S", "KUBE-SERVICES", check=False)
            assert elsewhere.returncode == 1, "kube-proxy has written nothing there"
    assert alternatives() == machine


def test_by_default_it_is_the_machines(cluster: Lab) -> None:
    own = subprocess.run(["iptables", "-V"], capture_output=True, text=True, check=True).stdout
    assert cluster.exec("node1", "iptables", "-V").stdout == own
