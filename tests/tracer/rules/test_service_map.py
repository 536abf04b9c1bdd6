"""The Service map: look-ups, and rules of other forms than the fixtures have."""

from __future__ import annotations

import itertools

import pytest

from tracer.rules.iptables_save import read_save
from tracer.rules.kubeproxy import service_map
from tracer.rules.model import Interval, address_number
from tracer.rules.nft_text import read_nft_text
from tracer.rules.routes import Routes
from tracer.rules.services import Address, Endpoint, NodePortScope, ServiceMap, ServicePort

LETS_SHIP_IT = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-EXT-SHIP - [0:0]
:KUBE-SVC-SHIP - [0:0]
:KUBE-SEP-ONE - [0:0]
:KUBE-SEP-TWO - [0:0]
:KUBE-SEP-THREE - [0:0]
-A KUBE-SERVICES -d 10.96.100.50/32 -p tcp -m comment --comment "fastapi/lets-ship-it:http cluster IP" -m tcp \
--dport 8000 -j KUBE-SVC-SHIP
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "fastapi/lets-ship-it:http" -m tcp --dport 30080 -j KUBE-EXT-SHIP
-A KUBE-EXT-SHIP -j KUBE-MARK-MASQ
-A KUBE-EXT-SHIP -j KUBE-SVC-SHIP
-A KUBE-SVC-SHIP ! -s 10.244.0.0/16 -d 10.96.100.50/32 -p tcp -j KUBE-MARK-MASQ
-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-ONE
-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-TWO
-A KUBE-SVC-SHIP -j KUBE-SEP-THREE
-A KUBE-SEP-ONE -s 10.244.0.11/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-ONE -p tcp -m tcp -j DNAT --to-destination 10.244.0.11:8000
-A KUBE-SEP-TWO -p tcp -m tcp -j DNAT --to-destination 10.244.0.12:8000
-A KUBE-SEP-THREE -p tcp -m tcp -j DNAT --to-destination 10.244.1.13:8000
COMMIT
"""


def services(text: str) -> ServiceMap:
    return service_map(read_save(text))


def only(text: str) -> ServicePort:
    (port,) = services(text).services
    return port


class TestLookUps:
    book = services(LETS_SHIP_IT)

    def test_find_by_cluster_ip(self) -> None:
        found = self.book.find("TCP", "10.96.100.50", 8000)
        assert found is not None
        port, address = found
        assert (port.namespace, port.name, port.port_name, port.protocol) == ("fastapi", "lets-ship-it", "http", "TCP")
        assert address == Address("ClusterIP", "10.96.100.50", 8000)

    @pytest.mark.parametrize(
        ("protocol", "ip", "port"),
        [("UDP", "10.96.100.50", 8000), ("TCP", "10.96.100.50", 8001), ("TCP", "10.96.100.51", 8000)],
    )
    def test_find_nothing(self, protocol: str, ip: str, port: int) -> None:
        assert self.book.find(protocol, ip, port, ("10.96.100.51",)) is None

    @pytest.mark.parametrize(
        ("ip", "found"),
        [("192.0.2.1", True), ("127.0.0.1", True), ("127.9.9.9", True), ("192.0.2.2", False), ("::1", False)],
    )
    def test_node_port_at_the_nodes_own_addresses(self, ip: str, found: bool) -> None:
        assert (self.book.find("TCP", ip, 30080, {"192.0.2.1"}) is not None) is found

    def test_backend_of_a_cluster_ip(self) -> None:
        port, address = self.book.find("TCP", "10.96.100.50", 8000) or pytest.fail("not found")
        endpoint = self.book.backend(port, address, "10.244.0.12", 8000)
        assert endpoint is not None
        assert endpoint.chains == ("KUBE-SVC-SHIP", "KUBE-SEP-TWO")
        assert endpoint.probability == pytest.approx(1 / 3, abs=1e-9)
        assert self.book.backend(port, address, "10.244.0.99", 8000) is None
        assert self.book.backend(port, address, "10.244.0.12", 8001) is None

    def test_backend_of_a_node_port_walks_its_own_chain(self) -> None:
        port, address = self.book.find("TCP", "192.0.2.1", 30080, {"192.0.2.1"}) or pytest.fail("not found")
        endpoint = self.book.backend(port, address, "10.244.1.13", 8000)
        assert endpoint is not None
        assert endpoint.chains == ("KUBE-EXT-SHIP", "KUBE-SVC-SHIP", "KUBE-SEP-THREE")
        assert endpoint.probability == pytest.approx(1 / 3, abs=1e-9)

    def test_json_is_the_contracts(self) -> None:
        (document,) = self.book.to_json()
        assert document["addresses"][0].items() >= {"kind": "ClusterIP", "ip": "10.96.100.50", "port": 8000}.items()
        assert document["endpoints"][2].keys() == {"ip", "port", "probability"}
        promised = {"namespace", "name", "port_name", "protocol", "addresses", "session_affinity_seconds", "endpoints"}
        assert document.keys() >= promised | {"local_endpoints", "no_endpoints"}

    def test_empty(self) -> None:
        assert services("").services == []
        assert ServiceMap(()).find("TCP", "10.0.0.1", 80, {"10.0.0.1"}) is None
        assert services("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n").services == []


class TestNodePortScope:
    @pytest.mark.parametrize(
        ("rules", "ip", "holds"),
        [
            ("-m addrtype --dst-type LOCAL", "192.0.2.1", True),
            ("-m addrtype --dst-type LOCAL", "192.0.2.9", False),
            ("-m addrtype --dst-type LOCAL", "127.0.0.1", True),
            ("! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL", "127.0.0.1", False),
            ("! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL", "192.0.2.1", True),
            ("-d 192.0.2.1/32", "192.0.2.1", True),
            ("-d 192.0.2.2/32", "192.0.2.1", False),
        ],
    )
    def test_of_iptables(self, rules: str, ip: str, holds: bool) -> None:
        text = LETS_SHIP_IT.replace("-m addrtype --dst-type LOCAL", rules)
        assert (services(text).find("TCP", ip, 30080, {"192.0.2.1"}) is not None) is holds

    def test_several_addresses(self) -> None:
        line = "-A KUBE-SERVICES -d 192.0.2.{}/32 -j KUBE-NODEPORTS"
        text = LETS_SHIP_IT.replace(
            "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", f"{line.format(1)}\n{line.format(2)}"
        )
        found = [services(text).find("TCP", f"192.0.2.{last}", 30080) is not None for last in (1, 2, 3)]
        assert found == [True, True, False]

    def test_excluded(self) -> None:
        scope = NodePortScope(None, (Interval(address_number("10.0.0.0"), address_number("10.255.255.255")),))
        assert scope.holds("192.0.2.1", {"192.0.2.1"})
        assert not scope.holds("10.0.0.1", {"10.0.0.1"})


class TestOtherForms:
    def test_before_v1_24(self) -> None:
        """Traffic policy Local by KUBE-XLB-, comments "Balancing rule …", masquerading already in KUBE-SERVICES."""
        text = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-FW-A - [0:0]
:KUBE-XLB-A - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
-A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.0.9/32 -p tcp -m comment --comment "ns/web cluster IP" -m tcp --dport 80 \
-j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "ns/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 198.51.100.1/32 -p tcp -m comment --comment "ns/web loadbalancer IP" -m tcp --dport 80 -j KUBE-FW-A
-A KUBE-FW-A -s 203.0.113.0/24 -m comment --comment "ns/web loadbalancer IP" -j KUBE-XLB-A
-A KUBE-FW-A -s 198.51.100.1/32 -m comment --comment "ns/web loadbalancer IP" -j KUBE-XLB-A
-A KUBE-FW-A -m comment --comment "ns/web loadbalancer IP" -j KUBE-MARK-DROP
-A KUBE-XLB-A -s 10.244.0.0/16 -m comment --comment "Redirect pods" -j KUBE-SVC-A
-A KUBE-XLB-A -m comment --comment "masquerade LOCAL" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-XLB-A -m comment --comment "route LOCAL" -m addrtype --src-type LOCAL -j KUBE-SVC-A
-A KUBE-XLB-A -m comment --comment "Balancing rule 0 for ns/web" -j KUBE-SEP-1
-A KUBE-SVC-A -m comment --comment "ns/web" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-A -m comment --comment "ns/web" -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -m comment --comment "ns/web" -m tcp -j DNAT --to-destination 10.244.0.1:8080
-A KUBE-SEP-2 -p tcp -m comment --comment "ns/web" -m tcp -j DNAT --to-destination 10.244.1.2:8080
COMMIT
"""
        book = services(text)
        (port,) = book.services
        assert port.port_name is None
        assert [(address.kind, address.ip) for address in port.addresses] == [
            ("ClusterIP", "10.96.0.9"),
            ("LoadBalancer", "198.51.100.1"),
        ]
        assert [endpoint.ip for endpoint in port.endpoints] == ["10.244.0.1", "10.244.1.2"]
        assert port.local_endpoints == (Endpoint("10.244.0.1", 8080, 1.0, ("KUBE-XLB-A", "KUBE-SEP-1")),)
        assert port.source_ranges == ("203.0.113.0/24",)
        balancer = port.addresses[1]
        outside = book.backend(port, balancer, "10.244.0.1", 8080, "203.0.113.7", ("192.0.2.1",))
        assert outside is not None
        assert (outside.chains, outside.probability) == (("KUBE-FW-A", "KUBE-XLB-A", "KUBE-SEP-1"), 1.0)
        assert book.backend(port, balancer, "10.244.0.1", 8080, "198.18.0.1", ("192.0.2.1",)) is None

    def test_words_in_another_order(self) -> None:
        """What kube-proxy hands to iptables-restore: the comment first, then the protocol."""
        text = LETS_SHIP_IT.replace(
            '-d 10.96.100.50/32 -p tcp -m comment --comment "fastapi/lets-ship-it:http cluster IP" -m tcp --dport 8000',
            '-m comment --comment "fastapi/lets-ship-it:http cluster IP" -m tcp -p tcp -d 10.96.100.50 --dport 8000',
        ).replace("-p tcp -m tcp -j DNAT", "-m tcp -p tcp -j DNAT")
        assert text != LETS_SHIP_IT
        assert only(text) == only(LETS_SHIP_IT)

    def test_session_affinity(self) -> None:
        text = LETS_SHIP_IT.replace(
            "-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-ONE",
            "-A KUBE-SVC-SHIP -m recent --rcheck --seconds 90 --reap --name KUBE-SEP-ONE --rsource -j KUBE-SEP-ONE\n"
            "-A KUBE-SVC-SHIP -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-ONE",
        )
        port = only(text)
        assert port.session_affinity_seconds == 90
        assert [endpoint.probability for endpoint in port.endpoints] == pytest.approx([1 / 3] * 3, abs=1e-8)

    def test_ipv6_addresses_are_written_as_inet_ntop_does(self) -> None:
        text = "*nat\n:KUBE-SERVICES - [0:0]\n:S - [0:0]\n"
        comment = '-m comment --comment "ns/web cluster IP"'
        text += f"-A KUBE-SERVICES -d fd00:0:0::5/128 -p tcp {comment} -m tcp --dport 80 -j S\n"
        text += "-A S -p tcp -m tcp -j DNAT --to-destination [fd00:0::6]:8080\nCOMMIT\n"
        (port,) = service_map(read_save(text)).services
        assert (port.family, port.addresses[0].ip, port.endpoints[0].ip) == (6, "fd00::5", "fd00::6")

    def test_two_engines(self) -> None:
        """A kube-proxy that changed its mode leaves the old rules: both count, the first told wins."""
        nft = """
table ip kube-proxy {
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.100.50 . tcp . 8000 : goto service-AAAAAAAA-fastapi/lets-ship-it/tcp/http,
                 10.96.0.77 . tcp . 80 : goto service-BBBBBBBB-ns/new/tcp/ }
  }
  chain service-AAAAAAAA-fastapi/lets-ship-it/tcp/http {
    numgen random mod 1 vmap { 0 : goto e }
  }
  chain service-BBBBBBBB-ns/new/tcp/ {
    numgen random mod 1 vmap { 0 : goto e }
  }
  chain e {
    meta l4proto tcp dnat to 10.244.9.9:1
  }
}
"""
        both = read_save(LETS_SHIP_IT)
        both.add(read_nft_text(nft))
        book = service_map(both)
        assert [port.name for port in book.services] == ["lets-ship-it", "new"]
        assert len(book.services[0].endpoints) == 3
        assert book.services[1].endpoints[0].ip == "10.244.9.9"


class TestOddChains:
    def routes(self, rules: str) -> Routes:
        chains = "".join(f":{name} - [0:0]\n" for name in "ABCDE")
        (table,) = read_save(f"*nat\n{chains}{rules}COMMIT\n").tables
        return Routes(table)

    def test_chain_that_jumps_to_itself(self) -> None:
        routes = self.routes("-A A -j A\n-A A -j B\n-A B -j A\n-A B -j DNAT --to-destination 10.0.0.1:1\n")
        (branch,) = routes.of("A").branches
        assert branch.backends[("10.0.0.1", 1)].chains == ("A", "B")

    def test_missing_chain(self) -> None:
        assert self.routes("").of("NONE").branches == ()

    def test_very_deep_jumps(self) -> None:
        names = [f"C{number}" for number in range(3000)]
        text = "*nat\n" + "".join(f":{name} - [0:0]\n" for name in names)
        text += "".join(f"-A {a} -j {b}\n" for a, b in itertools.pairwise(names)) + "COMMIT\n"
        (table,) = read_save(text).tables
        assert Routes(table).of("C0").branches == ()

    def test_uneven_shares(self) -> None:
        half, most = "-m statistic --mode random --probability 0.5", "-m statistic --mode random ! --probability 0.2"
        dnat = "-j DNAT --to-destination"
        routes = self.routes(f"-A A {half} {dnat} 10.0.0.1:1\n-A A {most} {dnat} 10.0.0.2:1\n-A A {dnat} 10.0.0.1:1\n")
        (branch,) = routes.of("A").branches
        shares = {ip: endpoint.probability for (ip, _), endpoint in branch.backends.items()}
        assert shares == {"10.0.0.1": pytest.approx(0.6), "10.0.0.2": pytest.approx(0.4)}

    def test_share_of_a_share(self) -> None:
        rules = "-A A -m statistic --mode random --probability 0.25 -j B\n-A A -j C\n"
        rules += (
            "-A B -j D\n-A C -j E\n-A D -j DNAT --to-destination 10.0.0.1:1\n-A E -j DNAT --to-destination 10.0.0.2:1\n"
        )
        routes = self.routes(rules)
        shares = [next(iter(branch.backends.values())) for branch in routes.of("A").branches]
        assert [endpoint.probability for endpoint in shares] == pytest.approx([0.25, 0.75])

    def test_nothing_after_a_return(self) -> None:
        assert self.routes("-A A -j RETURN\n-A A -j DNAT --to-destination 10.0.0.1:1\n").of("A").branches == ()
