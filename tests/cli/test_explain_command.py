"""k8snet-trace explain as a command: JSON, the tree, errors, the live kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Terminal, environment, run
from tests.tracer.networks import Namespace, namespaces

FIXTURES = Path(__file__).parents[1] / "fixtures" / "kube-proxy-v1.30.5"
LEGACY = ("--rules", str(FIXTURES / "iptables-legacy.save"))
BOTH = (*LEGACY, "--rules", str(FIXTURES / "ip6tables-legacy.save"))
NFTABLES = ("--rules", str(FIXTURES / "nftables.nft"))

RULES = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-CCCCCCCCCCCCCCCC - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-SVC-CCCCCCCCCCCCCCCC
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s 10.244.0.5/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-BBBBBBBBBBBBBBBB -s 10.244.0.6/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.6:8080
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "shop/db cluster IP" -m tcp --dport 5432 -j KUBE-SVC-CCCCCCCCCCCCCCCC
-A KUBE-SERVICES -d 10.96.0.8/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-CCCCCCCCCCCCCCCC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-CCCCCCCCCCCCCCCC -m comment --comment "shop/web:http -> 10.244.0.5:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SVC-CCCCCCCCCCCCCCCC -m comment --comment "shop/web:http -> 10.244.0.6:8080" -j KUBE-SEP-BBBBBBBBBBBBBBBB
COMMIT
"""  # noqa: E501

TREE = """\
10.96.0.8:80 TCP  shop/web:http
from 10.244.0.6

prerouting, table nat (iptables)
└─ PREROUTING 1: every packet goes to KUBE-SERVICES, the list of all Services
   │  -A PREROUTING -m comment --comment "kubernetes service portals" -j
   │  KUBE-SERVICES
   └─ KUBE-SERVICES 2: to 10.96.0.8, tcp port 80: goes to
      KUBE-SVC-CCCCCCCCCCCCCCCC, which chooses an endpoint
      │  -A KUBE-SERVICES -d 10.96.0.8/32 -p tcp -m comment --comment
      │  "shop/web:http cluster IP" -m tcp --dport 80 -j
      │  KUBE-SVC-CCCCCCCCCCCCCCCC
      ├─ KUBE-SVC-CCCCCCCCCCCCCCCC 1 (1/2 of packets): by chance, 1/2 of those
      │  that come here: goes to KUBE-SEP-AAAAAAAAAAAAAAAA, one endpoint
      │  │  -A KUBE-SVC-CCCCCCCCCCCCCCCC -m comment --comment "shop/web:http ->
      │  │  10.244.0.5:8080" -m statistic --mode random --probability
      │  │  0.50000000000 -j KUBE-SEP-AAAAAAAAAAAAAAAA
      │  └─ KUBE-SEP-AAAAAAAAAAAAAAAA 2 (1/2 of packets): tcp: gets the
      │     destination 10.244.0.5:8080
      │        -A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m comment --comment
      │        "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.5:8080
      └─ KUBE-SVC-CCCCCCCCCCCCCCCC 2 (1/2 of packets): goes to
         KUBE-SEP-BBBBBBBBBBBBBBBB, one endpoint
         │  -A KUBE-SVC-CCCCCCCCCCCCCCCC -m comment --comment "shop/web:http ->
         │  10.244.0.6:8080" -j KUBE-SEP-BBBBBBBBBBBBBBBB
         ├─ KUBE-SEP-BBBBBBBBBBBBBBBB 1 (1/2 of packets): from 10.244.0.6: goes
         │  to KUBE-MARK-MASQ, which marks it for masquerading
         │  │  -A KUBE-SEP-BBBBBBBBBBBBBBBB -s 10.244.0.6/32 -m comment
         │  │  --comment "shop/web:http" -j KUBE-MARK-MASQ
         │  └─ KUBE-MARK-MASQ 1 (1/2 of packets): is marked 0x4000
         │        -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
         └─ KUBE-SEP-BBBBBBBBBBBBBBBB 2 (1/2 of packets): tcp: gets the
            destination 10.244.0.6:8080
               -A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -m comment --comment
               "shop/web:http" -m tcp -j DNAT --to-destination 10.244.0.6:8080

postrouting, table nat (iptables)
└─ POSTROUTING 1: every packet goes to KUBE-POSTROUTING, which masquerades what
   is marked
   │  -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j
   │  KUBE-POSTROUTING
   ├─ KUBE-POSTROUTING 1 (1/2 of packets): not marked 0x4000: goes back to where
   │  it came from
   │     -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
   ├─ KUBE-POSTROUTING 2 (1/2 of packets): has 0x4000 flipped in its mark
   │     -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
   └─ KUBE-POSTROUTING 3 (1/2 of packets): is masqueraded: it gets this node's
      own address as its source
         -A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic
         requiring SNAT" -j MASQUERADE

⇒ translated to one of 2 backends
   10.244.0.5:8080  1/2
   10.244.0.6:8080  1/2  masqueraded
   in part masqueraded by KUBE-POSTROUTING 3, as KUBE-SEP-BBBBBBBBBBBBBBBB 1
     has it marked (from 10.244.0.6)
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    file = tmp_path / "nat.save"
    file.write_text(RULES)
    return str(file)


def documents(*arguments: str) -> list[dict[str, Any]]:
    done = run("explain", *arguments, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(*arguments: str) -> tuple[int, list[str]]:
    done = run("explain", *arguments)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


class TestJson:
    def test_a_whole_document(self, rules: str) -> None:
        (document,) = documents("10.96.0.8:80", "--source", "10.244.0.9", "--rules", rules)
        steps = document.pop("steps")
        passed = document.pop("passed_over")
        outcome = {"verdict": "dnat", "port": 8080, "masquerade": False, "probability": 0.5}
        backend = {"port": 8080, "probability": 0.5, "masquerade": False, "verdict": "accept"}
        via = ["KUBE-SERVICES", "KUBE-SVC-CCCCCCCCCCCCCCCC"]
        assert document == {
            "destination": "10.96.0.8:80",
            "protocol": "TCP",
            "source": "10.244.0.9",
            "from": "outside",
            "verdict": "dnat",
            "shares": {"dnat": 1.0},
            "outcomes": [{"ip": "10.244.0.5", **outcome}, {"ip": "10.244.0.6", **outcome}],
            "service": {"namespace": "shop", "name": "web", "port_name": "http"},
            "backends": [
                {"ip": "10.244.0.5", "via": [*via, "KUBE-SEP-AAAAAAAAAAAAAAAA"], **backend},
                {"ip": "10.244.0.6", "via": [*via, "KUBE-SEP-BBBBBBBBBBBBBBBB"], **backend},
            ],
            "masquerade": False,
            "masquerade_why": [],
            "affinity_seconds": None,
            "depends": [],
            "otherwise": [],
            "passed": {"rules": 8.5, "chains": 6, "lookups": 0},
            "notes": [],
        }
        assert [(step["chain"], step["rule"], step["effect"], step["probability"]) for step in steps] == [
            ("PREROUTING", 1, "jump", 1.0),
            ("KUBE-SERVICES", 2, "jump", 1.0),
            ("KUBE-SVC-CCCCCCCCCCCCCCCC", 1, "jump", 0.5),
            ("KUBE-SEP-AAAAAAAAAAAAAAAA", 2, "dnat", 0.5),
            ("KUBE-SVC-CCCCCCCCCCCCCCCC", 2, "jump", 0.5),
            ("KUBE-SEP-BBBBBBBBBBBBBBBB", 2, "dnat", 0.5),
            ("POSTROUTING", 1, "jump", 1.0),
            ("KUBE-POSTROUTING", 1, "return", 1.0),
        ]
        assert steps[0] == {
            "family": "ip",
            "table": "nat",
            "chain": "PREROUTING",
            "rule": 1,
            "text": '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
            "effect": "jump",
            "probability": 1.0,
            "hook": "prerouting",
            "engine": "iptables",
            "target": "KUBE-SERVICES",
        }
        place = {"family": "ip", "table": "nat", "hook": "prerouting"}
        assert passed == [
            {**place, "chain": "KUBE-SEP-AAAAAAAAAAAAAAAA", "rules": 1},
            {**place, "chain": "KUBE-SEP-BBBBBBBBBBBBBBBB", "rules": 1},
            {**place, "chain": "KUBE-SERVICES", "rules": 1},
        ]

    def test_one_document_for_each_destination_in_order(self, rules: str) -> None:
        found = documents("shop/web", "10.0.0.1:1", "shop/db:5432", "--rules", rules)
        assert [(each["destination"], each["verdict"]) for each in found] == [
            ("10.96.0.8:80", "dnat"),
            ("10.0.0.1:1", "untouched"),
            ("10.96.0.9:5432", "dnat"),
        ]

    def test_both_families_by_name_and_address(self) -> None:
        found = documents("kube-system/ship-33:p0", "[fd00:10:96::2cf7]:9090", *BOTH)
        assert [each["protocol"] for each in found] == ["TCP", "TCP"]
        assert found[0]["destination"] == "10.96.67.204:9090"

    def test_a_service_has_the_protocol_that_rules_have(self) -> None:
        """UDP here, which nobody asked for in so many words."""
        (found,) = documents("10.96.234.209:443", *NFTABLES)
        assert (found["protocol"], found["verdict"], found["affinity_seconds"]) == ("UDP", "dnat", 60)

    def test_a_node_port_of_a_node_that_is_not_told(self, rules: str) -> None:
        (told,) = documents("192.0.2.1:30080", "--rules", rules, "--node-ip", "192.0.2.1")
        (guessed,) = documents("192.0.2.1:30080", "--rules", rules)
        (other,) = documents("192.0.2.1:30080", "--rules", rules, "--node-ip", "192.0.2.2")
        assert [each["verdict"] for each in (told, guessed, other)] == ["dnat", "dnat", "untouched"]
        assert guessed["notes"] == [
            "192.0.2.1 is taken for an address of this node, since a NodePort answers there then"
        ]

    def test_rules_of_the_other_family_only(self, rules: str) -> None:
        (found,) = documents("[fd00::1]:80", "--rules", rules)
        assert (found["verdict"], found["notes"]) == ("untouched", ["there are rules, but none for IPv6"])


class TestTree:
    def test_80_columns(self, rules: str) -> None:
        done = run("explain", "10.96.0.8:80", "--source", "10.244.0.6", "--rules", rules, env=environment(COLUMNS="80"))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == TREE

    def test_passed_over(self, rules: str) -> None:
        done = run("explain", "10.96.0.8:80", "--source", "10.244.0.9", "--rules", rules, "-v")
        lines = [line.strip(" │└├─") for line in done.stdout.splitlines()]
        assert "KUBE-SERVICES: 1 rule passed over" in lines
        assert any(line.startswith("1: -A KUBE-SERVICES -d 10.96.0.9/32") for line in lines)
        assert "passed over" not in run("explain", "10.96.0.8:80", "--rules", rules).stdout

    def test_refusals_say_why(self) -> None:
        done = run("explain", "kube-system/log-5:p0", *LEGACY)
        assert "⇒ rejected: the Service has no endpoints" in done.stdout
        done = run("explain", "kube-system/log-5:p0", *NFTABLES)
        assert "⇒ rejected: the Service has no endpoints" in done.stdout

    def test_colour_on_a_terminal_only(self, rules: str) -> None:
        arguments = ("explain", "10.96.0.8:80", "--rules", rules)
        assert "\x1b" not in run(*arguments).stdout
        with Terminal(*arguments) as terminal:
            assert any("\x1b[" in line for line in terminal.finish())
        with Terminal(*arguments, env=environment(NO_COLOR="1")) as terminal:
            assert not any("\x1b[" in line for line in terminal.finish())

    def test_words_of_rules_do_not_reach_the_terminal_raw(self, tmp_path: Path) -> None:
        file = tmp_path / "evil.save"
        evil = '-A OUTPUT -m comment --comment "\x1b[2J\x1b]0;owned\x07" -j DROP'
        file.write_text(f"*filter\n:OUTPUT ACCEPT [0:0]\n{evil}\nCOMMIT\n")
        for arguments in (["-v"], []):
            shown = run("explain", "10.0.0.1:1", "--rules", str(file), *arguments).stdout
            assert "\x1b" not in shown
            assert "\\x1b[2J" in shown


class TestErrors:
    def test_no_destination(self) -> None:
        code, (error, hint) = refused("10.96.0.1", *LEGACY)
        assert (code, error, hint) == (2, "error: '10.96.0.1' has no port", "hint: write 10.96.0.1:PORT")
        code, (error, _) = refused("nonsense", *LEGACY)
        assert (code, error) == (2, "error: 'nonsense' is no destination")

    def test_unknown_service(self, rules: str) -> None:
        assert refused("shop/wbe:http", "--rules", rules) == (
            2,
            ["error: the rules hold no Service shop/wbe", "hint: did you mean shop/web or shop/db?"],
        )

    def test_port_missing_where_there_are_several(self) -> None:
        code, (error, hint) = refused("default/api-32", *LEGACY)
        assert (code, hint) == (2, "hint: choose one, such as default/api-32:p0")
        assert error == "error: default/api-32 has several ports: p0 (443/UDP), p1 (10053/TCP)"

    def test_sources(self) -> None:
        code, (error,) = refused("10.96.0.1:80", "--source", "web", *LEGACY)
        assert (code, error) == (2, "error: --source 'web' is no IP address")
        code, (error,) = refused("10.96.0.1:80", "--source", "fd00::1", *LEGACY)
        assert (code, error) == (
            2,
            "error: a packet from fd00::1 can't go to 10.96.0.1:80: one is IPv4, the other IPv6",
        )

    def test_options_for_saved_rules(self) -> None:
        code, (error,) = refused("10.96.0.1:80", "--node-ip", "10.0.0.1")
        assert (code, error) == (
            2,
            "error: --node-ip, --in-interface and --out-interface are for saved rules: the kernel knows its own",
        )

    def test_files(self, tmp_path: Path, rules: str) -> None:
        empty = tmp_path / "empty"
        empty.write_text("")
        assert refused("10.96.0.1:80", "--rules", str(empty))[0] == 1
        cut = tmp_path / "cut"
        cut.write_text(RULES[: len(RULES) // 2])
        assert refused("10.96.0.1:80", "--rules", str(cut))[0] == 1
        assert refused("10.96.0.1:80", "--rules", rules, "--rules", rules)[0] == 1

    def test_no_such_namespace(self) -> None:
        code, (error, _) = refused("10.96.0.1:80", "--netns", "k8snet-no-such")
        assert (code, "there is no network namespace 'k8snet-no-such'" in error) == (2, True)

    def test_nothing_asked(self) -> None:
        code, (error, hint) = refused()
        assert (code, error) == (2, "error: Missing argument 'DST...'.")
        assert hint == "hint: k8snet-trace explain --help"


@pytest.mark.root
class TestLive:
    @pytest.fixture
    def node(self) -> Any:
        with namespaces(2) as (node, pod):
            node.sh(f"ip link add cali1 type veth peer name eth0 netns {pod.tid}", "ip link set cali1 up")
            node.sh("ip address add 172.18.0.2/24 dev cali1", "ip route add 10.244.0.5 dev cali1")
            node.sh("ip -6 address add fd00:18::2/64 dev cali1 nodad")
            yield node

    def test_no_rules(self, node: Namespace) -> None:
        (found,) = documents("172.18.0.3:80", "--netns", node.path)
        assert (found["verdict"], found["steps"], found["notes"]) == ("untouched", [], [])
        assert (found["source"], found["from"]) == ("172.18.0.2", "node")

    def test_both_engines_addresses_and_devices(self, node: Namespace, rules: str) -> None:
        """The node's address is the kernel's to tell, and so are devices."""
        node.sh(f"iptables-legacy-restore {rules}")
        node.sh(
            "nft add table inet extra",
            "nft add chain inet extra out '{ type filter hook forward priority 0; }'",
            'nft add rule inet extra out iifname "cali1" ip daddr 10.244.0.6 drop',
        )
        (found,) = documents("172.18.0.2:30080", "--netns", node.path, "--source", "10.244.0.5")
        assert (found["verdict"], found["shares"]) == ("dnat", {"dnat": 0.5, "drop": 0.5})
        assert [(each["ip"], each["verdict"]) for each in found["backends"]] == [
            ("10.244.0.5", "accept"),
            ("10.244.0.6", "drop"),
        ]
        assert {step["engine"] for step in found["steps"]} == {"iptables-legacy", "nftables"}
        assert found["notes"] == []

    def test_no_route(self, node: Namespace) -> None:
        (found,) = documents("10.96.0.8:80", "--netns", node.path)
        assert found["notes"] == ["there is no route there: the sender is told so before any rule sees a packet"]

    def test_ipv6(self, node: Namespace) -> None:
        node.sh("ip6tables-nft -A OUTPUT -d fd00:18::3 -p tcp --dport 80 -j REJECT")
        (found,) = documents("[fd00:18::3]:80", "--netns", node.path)
        assert (found["verdict"], found["source"]) == ("reject", "fd00:18::2")

    def test_a_namespace_that_ends(self) -> None:
        with namespaces(1) as (gone,):
            path = gone.path
        code, (error, _) = refused("10.96.0.1:80", "--netns", path)
        assert (code, "network namespace" in error) == (2, True)

    def test_without_root(self) -> None:
        if os.geteuid() == 0:
            done = run("explain", "10.0.0.1:80", prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"))
            assert (done.returncode, done.stderr.splitlines()[-1]) == (3, "hint: run it with sudo")
