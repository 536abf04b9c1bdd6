"""kube-proxy's and kindnet's loaders against a real kernel: what they leave in the tables, load after load."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from labs.cluster.kindnet import ensure_masquerading, routes_to
from labs.cluster.kubeproxy import Loader
from labs.cluster.netfilter import Iptables, jumps_in_front
from labs.cluster.proxy.endpoints import endpoints_by_port
from labs.cluster.proxy.iptables import Sync, full_sync
from labs.cluster.proxy.node import LocalNode
from labs.cluster.proxy.services import service_ports
from labs.cluster.proxy.settings import Settings
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


def sync(*names: str) -> Sync:
    """kube-proxy's rules for Services of these names, one endpoint each."""
    services, slices = [], []
    for number, name in enumerate(names, 1):
        spec = {
            "type": "ClusterIP",
            "clusterIP": f"10.96.0.{number}",
            "clusterIPs": [f"10.96.0.{number}"],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "", "protocol": "TCP", "port": 80, "targetPort": 80}],
        }
        services.append({"metadata": {"namespace": "default", "name": name}, "spec": spec})
        labels = {"kubernetes.io/service-name": name}
        endpoint = {"addresses": [f"10.244.0.{number}"], "conditions": {"ready": True}, "nodeName": "node1"}
        slices.append(
            {
                "metadata": {"namespace": "default", "name": f"{name}-x", "labels": labels},
                "addressType": "IPv4",
                "ports": [{"name": "", "protocol": "TCP", "port": 80}],
                "endpoints": [endpoint],
            }
        )
    settings = Settings(node=LocalNode("node1", "172.18.0.2"), family=4, cluster_cidr="10.244.0.0/16")
    return full_sync(service_ports(services, 4), endpoints_by_port(slices, node_name="node1", family=4), settings)


@pytest.mark.root
@pytest.mark.parametrize("variant", ["legacy", "nft"])
class TestLoader:
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

    def load(self, inside: Any, loader: Loader, wanted: Sync) -> None:
        inside(lambda: asyncio.run(loader.load(wanted)))

    def test_a_second_load_of_the_same_changes_nothing(self, inside: Any, variant: str) -> None:
        loader = Loader(Iptables(4, variant))
        self.load(inside, loader, sync("a", "b"))
        first = self.saved(inside, variant)
        assert sum('"default/a cluster IP"' in line for line in first) == 2
        self.load(inside, loader, sync("a", "b"))
        assert self.saved(inside, variant) == first

    def test_chains_of_services_that_are_gone_go_too(self, inside: Any, variant: str) -> None:
        loader = Loader(Iptables(4, variant))
        self.load(inside, loader, sync("a"))
        alone = self.saved(inside, variant)
        self.load(inside, loader, sync("a", "b", "c"))
        assert len(self.saved(inside, variant)) > len(alone)
        self.load(inside, loader, sync("a"))
        assert self.saved(inside, variant) == alone

    def test_a_restarted_kube_proxy_takes_over(self, inside: Any, variant: str) -> None:
        self.load(inside, Loader(Iptables(4, variant)), sync("a"))
        alone = self.saved(inside, variant)
        self.load(inside, Loader(Iptables(4, variant)), sync("a", "b"))
        self.load(inside, Loader(Iptables(4, variant)), sync("a"))
        assert self.saved(inside, variant) == alone

    def test_rules_that_somebody_took_away_are_missed_and_written_anew(self, inside: Any, variant: str) -> None:
        loader = Loader(Iptables(4, variant))
        self.load(inside, loader, sync("a"))
        complete = self.saved(inside, variant)
        assert inside(lambda: asyncio.run(loader.still_there()))
        for table in ("nat", "filter", "mangle"):
            for action in ("-F", "-X"):
                inside(lambda: subprocess.check_call([f"iptables-{variant}", "-t", table, action]))  # noqa: B023
        assert not inside(lambda: asyncio.run(loader.still_there()))
        self.load(inside, loader, sync("a"))
        assert self.saved(inside, variant) == complete

    def test_its_jumps_are_in_front_of_kindnets_whoever_came_first(self, inside: Any, variant: str) -> None:
        iptables = Iptables(4, variant)
        inside(lambda: asyncio.run(ensure_masquerading(iptables, ["10.244.0.0/16"])))
        self.load(inside, Loader(iptables), sync("a"))
        inside(lambda: asyncio.run(ensure_masquerading(iptables, ["10.244.0.0/16"])))
        lines = [line for line in self.saved(inside, variant) if line.startswith("-A POSTROUTING ")]
        assert [line.rpartition("-j ")[2] for line in lines] == ["KUBE-POSTROUTING", "KIND-MASQ-AGENT"]
        returns = [line for line in self.saved(inside, variant) if line.startswith("-A KIND-MASQ-AGENT ")]
        assert [line.rpartition("-j ")[2] for line in returns] == ["RETURN", "MASQUERADE"]

    def test_what_iptables_complains_of_is_told(self, inside: Any, variant: str) -> None:
        with pytest.raises(K8snetError, match=rf"iptables-{variant}-restore failed"):
            inside(lambda: asyncio.run(Iptables(4, variant).restore("*nat\n-A NO-SUCH-CHAIN -j DROP\nCOMMIT\n")))
