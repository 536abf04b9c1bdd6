"""kube-proxy's and kindnet's proxiers against a real kernel: what they leave in the tables, load after load."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from labs.cluster.kindnet import ensure_masquerading, routes_to
from labs.cluster.kubeproxy import Proxier
from labs.cluster.netfilter import Iptables, jumps_in_front
from labs.cluster.proxy.node import LocalNode
from labs.cluster.proxy.settings import Settings
from labs.cluster.proxymodes import backend
from tests.labs.proxy.kube_objects import endpoint, endpoint_slice, service
from tracer.errors import K8snetError
from tracer.netns import run_in

T = TypeVar("T")


def test_jumps_come_in_front_in_the_same_order() -> None:
    text = "*nat\n:MINE - [0:0]\n-A OUTPUT -j A\n-A OUTPUT -j B\n-A MINE -j C\nCOMMIT\n"
    assert jumps_in_front(text, frozenset({"OUTPUT"})) == (
        "*nat\n:MINE - [0:0]\n-A MINE -j C\n-I OUTPUT -j B\n-I OUTPUT -j A\nCOMMIT\n"
    )


def test_routes_lead_to_the_other_nodes() -> None:
    def node(name: str, cidrs: list[str], *addresses: str) -> dict[str, Any]:
        listed = [{"type": "InternalIP", "address": address} for address in addresses]
        listed.append({"type": "Hostname", "address": name})
        return {"metadata": {"name": name}, "spec": {"podCIDRs": cidrs}, "status": {"addresses": listed}}

    nodes = [
        node("node1", ["10.244.0.0/24"], "172.18.0.2"),
        node("node2", ["10.244.1.0/24", "fd00:10:244:1::/64"], "172.18.0.3", "fc00::3"),
        node("node3", [], "172.18.0.4"),
    ]
    assert routes_to(nodes, "node1") == {"10.244.1.0/24": "172.18.0.3", "fd00:10:244:1::/64": "fc00::3"}
    assert routes_to(nodes, "node2") == {"10.244.0.0/24": "172.18.0.2"}


SETTINGS = Settings(node=LocalNode("node1", "172.18.0.2"), family=4, cluster_cidr="10.244.0.0/16")
Objects = tuple[dict[tuple[str, str], Any], dict[tuple[str, str], Any]]


def objects(*names: str) -> Objects:
    """Services of these names and their EndpointSlices, one endpoint each."""
    services, slices = {}, {}
    for name in names:
        ip, number = f"10.96.0.{ord(name)}", ord(name)
        ports = [{"name": "", "protocol": "TCP", "port": 80}]
        services["default", name] = service(name, namespace="default", clusterIP=ip, ports=ports)
        entry = endpoint(f"10.244.0.{number}", node="node1", ready=True)
        slices["default", f"{name}-x"] = endpoint_slice(entry, of=name, namespace="default", ports=ports)
    return services, slices


@pytest.mark.root
@pytest.mark.parametrize("variant", ["legacy", "nft"])
class TestIptables:
    @pytest.fixture
    def inside(self) -> Iterator[Callable[[Callable[[], T]], T]]:
        """Calls a function in a network namespace of its own."""
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        try:
            ours = subprocess.check_output(["readlink", "/proc/self/ns/net"])
            while subprocess.check_output(["readlink", f"/proc/{holder.pid}/ns/net"]) == ours:
                pass
            yield lambda function: run_in(f"/proc/{holder.pid}/ns/net", function)
        finally:
            holder.kill()
            holder.wait()

    def saved(self, inside: Any, variant: str) -> list[str]:
        command = [f"iptables-{variant}-save"]
        lines: list[str] = inside(lambda: subprocess.check_output(command, text=True)).splitlines()
        return [line for line in lines if line.startswith(("-A", ":KUBE", ":KIND"))]

    def proxier(self, variant: str) -> Proxier:
        return Proxier("node1", backend("iptables", 4, variant))

    def load(self, inside: Any, proxier: Proxier, *names: str) -> None:
        inside(lambda: asyncio.run(proxier.sync(*objects(*names), SETTINGS)))

    def test_a_second_load_of_the_same_changes_nothing(self, inside: Any, variant: str) -> None:
        proxier = self.proxier(variant)
        self.load(inside, proxier, "a", "b")
        first = self.saved(inside, variant)
        assert sum('"default/a cluster IP"' in line for line in first) == 2
        self.load(inside, proxier, "a", "b")
        assert self.saved(inside, variant) == first

    def test_chains_of_services_that_are_gone_go_too(self, inside: Any, variant: str) -> None:
        proxier = self.proxier(variant)
        self.load(inside, proxier, "a")
        alone = self.saved(inside, variant)
        self.load(inside, proxier, "a", "b", "c")
        assert len(self.saved(inside, variant)) > len(alone)
        self.load(inside, proxier, "a")
        assert self.saved(inside, variant) == alone

    def test_a_restarted_kube_proxy_takes_over(self, inside: Any, variant: str) -> None:
        self.load(inside, self.proxier(variant), "a")
        alone = self.saved(inside, variant)
        self.load(inside, self.proxier(variant), "a", "b")
        self.load(inside, self.proxier(variant), "a")
        assert self.saved(inside, variant) == alone

    def test_rules_that_somebody_took_away_are_missed_and_written_anew(self, inside: Any, variant: str) -> None:
        proxier = self.proxier(variant)
        self.load(inside, proxier, "a")
        complete = self.saved(inside, variant)
        assert inside(lambda: asyncio.run(proxier.backend.still_there()))
        for table in ("nat", "filter", "mangle"):
            for action in ("-F", "-X"):
                inside(lambda: subprocess.check_call([f"iptables-{variant}", "-t", table, action]))  # noqa: B023
        assert not inside(lambda: asyncio.run(proxier.backend.still_there()))
        self.load(inside, proxier, "a")
        assert self.saved(inside, variant) == complete

    def test_its_jumps_are_in_front_of_kindnets_whoever_came_first(self, inside: Any, variant: str) -> None:
        iptables = Iptables(4, variant)
        inside(lambda: asyncio.run(ensure_masquerading(iptables, ["10.244.0.0/16"])))
        self.load(inside, self.proxier(variant), "a")
        inside(lambda: asyncio.run(ensure_masquerading(iptables, ["10.244.0.0/16"])))
        lines = [line for line in self.saved(inside, variant) if line.startswith("-A POSTROUTING ")]
        assert [line.rpartition("-j ")[2] for line in lines] == ["KUBE-POSTROUTING", "KIND-MASQ-AGENT"]
        returns = [line for line in self.saved(inside, variant) if line.startswith("-A KIND-MASQ-AGENT ")]
        assert [line.rpartition("-j ")[2] for line in returns] == ["RETURN", "MASQUERADE"]

    def test_what_iptables_complains_of_is_told(self, inside: Any, variant: str) -> None:
        with pytest.raises(K8snetError, match=rf"iptables-{variant}-restore failed"):
            inside(lambda: asyncio.run(Iptables(4, variant).restore("*nat\n-A NO-SUCH-CHAIN -j DROP\nCOMMIT\n")))
