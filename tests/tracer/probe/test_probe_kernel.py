"""Probes in namespaces: what they tell is what conntrack holds, flow for flow, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.traffic import echo, listener
from tests.tracer.networks import SERVICE, SERVICE6, Namespace
from tests.tracer.probe.conftest import Net, never
from tests.tracer.probe.rules_for import BACKENDS, BACKENDS6, kube_service, restore
from tracer import conntrack
from tracer.ctnetlink import IPPROTO_TCP, IPPROTO_UDP
from tracer.errors import UsageError
from tracer.probe.conduct import Outcome, Wishes, conducted, probe
from tracer.probe.flows import Answer
from tracer.probe.report import Report

pytestmark = pytest.mark.root

NUMBERS = {"TCP": IPPROTO_TCP, "UDP": IPPROTO_UDP}


@contextlib.contextmanager
def serving(server: Namespace, protocol: str) -> Iterator[None]:
    """Somebody who answers at port 8000 of every backend, each under its own address."""
    with contextlib.ExitStack() as stack:
        for backend in (*BACKENDS, *BACKENDS6):
            stack.enter_context((listener if protocol == "TCP" else echo)(server, backend, 8000))
        yield


def held(router: Namespace, protocol: str) -> dict[int, tuple[str, int]]:
    """What the router's table holds: source port to backend."""
    entries = conntrack.dump(router.path, protocol=NUMBERS[protocol])
    return {entry.orig.sport: (entry.reply.src_text, entry.reply.sport) for entry in entries}


def observed(report: Report) -> dict[str, int]:
    return {each.ip: each.observed for each in report.reached}


@pytest.mark.parametrize("sender", ["pod", "node"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
def test_each_flow_is_where_conntrack_has_it(
    net: Net, wishes: Callable[..., Wishes], sender: str, protocol: str, v6: bool
) -> None:
    client, router, server = net
    backends = BACKENDS6 if v6 else BACKENDS
    kube_service(router, *backends, protocol=protocol.lower())
    words = f"[{SERVICE6}]:80" if v6 else f"{SERVICE}:80"
    with (
        serving(server, protocol),
        conducted(f"{words}/{protocol.lower()}", wishes(client if sender == "pod" else router), never) as outcome,
    ):
        table = held(router, protocol)
    found = {flow.port: (flow.hops[-1].ip, flow.hops[-1].port) for flow in outcome.flows}
    assert len(found) == 37
    assert found == table
    assert {flow.answer for flow in outcome.flows} == {Answer.ANSWERED}
    assert {hop.inode for flow in outcome.flows for hop in flow.hops} == {router.inode}
    assert {ip for ip, _ in found.values()} <= set(backends)


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_the_report_counts_every_flow_once(net: Net, wishes: Callable[..., Wishes], protocol: str) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS, protocol=protocol.lower())
    with serving(server, protocol):
        report = probe("shop/web:http", wishes(client, 60), never)
    assert (report.sent, report.fates["answered"]) == (60, 60)
    assert sum(each.observed for each in report.reached) == 60
    assert [each.ip for each in report.reached] == list(BACKENDS)
    assert [each.expected for each in report.reached] == pytest.approx([20, 20, 20], abs=1e-6)
    assert report.degrees == 2
    assert report.chi_square == pytest.approx(sum((count - 20) ** 2 / 20 for count in observed(report).values()))
    assert report.p_value is not None and report.p_value > 1e-6
    assert report.notes == ()


def test_nobody_listens(net: Net, wishes: Callable[..., Wishes]) -> None:
    """The kernel forgets an entry at once when the first answer is a RST: only its events know the backend."""
    client, router, _ = net
    kube_service(router, *BACKENDS)
    report = probe("shop/web:http", wishes(client), never)
    assert report.fates == {"answered": 0, "refused": 37, "rejected": 0, "unreachable": 0, "unanswered": 0}
    assert sum(observed(report).values()) == 37
    assert held(router, "TCP") == {}


def test_nobody_listens_to_datagrams(net: Net, wishes: Callable[..., Wishes]) -> None:
    """ICMP errors are limited: the first six come at once."""
    client, router, _ = net
    kube_service(router, *BACKENDS, protocol="udp")
    report = probe("shop/web:http", wishes(client, 20), never)
    assert sum(observed(report).values()) == 20
    assert report.fates["refused"] + report.fates["unanswered"] == 20
    assert 1 <= report.fates["refused"] < 20
    assert any("icmp_ratelimit" in note for note in report.notes)


def test_a_dead_backend(net: Net, wishes: Callable[..., Wishes]) -> None:
    """Its flows are counted although nobody answers, and conntrack does not keep them for two minutes."""
    client, router, _ = net
    kube_service(router, "10.0.2.99")
    report = probe(f"{SERVICE}:80", wishes(client), never)
    assert observed(report) == {"10.0.2.99": 37}
    assert report.fates["unanswered"] == 37
    assert held(router, "TCP") == {}


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])
def test_a_service_without_endpoints(net: Net, wishes: Callable[..., Wishes], protocol: str, v6: bool) -> None:
    client, router, _ = net
    kube_service(router, protocol=protocol.lower(), v6=v6)
    words = f"{f'[{SERVICE6}]' if v6 else SERVICE}:80/{protocol.lower()}"
    report = probe(words, wishes(client, 5), never)
    assert (report.reached, report.fates["rejected"], report.p_value) == ((), 5, None)
    report = probe(words, wishes(router, 5), never)
    assert (report.reached, report.fates["rejected"], report.p_value) == ((), 5, None)
    assert any("OUTPUT stops them" in note for note in report.notes)
    assert any("the rules reject every packet" in note for note in report.notes)


@pytest.mark.parametrize("target", ["REJECT", "REJECT --reject-with tcp-reset"])
def test_a_rule_behind_the_translation_rejects(net: Net, wishes: Callable[..., Wishes], target: str) -> None:
    """As a network policy does: the packet looks like a refusal of the Service's address."""
    client, router, server = net
    kube_service(router, *BACKENDS)
    router.sh(f"iptables -A FORWARD -p tcp -d 10.0.2.0/24 -j {target}")
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client, 5), never)
    assert (report.fates["rejected"], report.fates["refused"], observed(report)) == (5, 0, {})


def test_a_rule_that_drops(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS)
    router.sh("iptables -A FORWARD -p tcp -d 10.0.2.3 -j DROP")
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client, 60), never)
    counts = observed(report)
    assert set(counts) == {"10.0.2.2", "10.0.2.4"}
    assert sum(counts.values()) == report.fates["answered"] == 60 - report.fates["unanswered"]
    assert report.fates["unanswered"] > 0
    assert [each.share for each in report.reached] == pytest.approx([0.5, 0.5])


def test_a_spread_that_the_rules_do_not_explain(
    net: Net, wishes: Callable[..., Wishes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules as read say a third each; the kernel's send every other flow to the last backend."""
    client, router, server = net
    kube_service(router, *BACKENDS)
    from tracer.probe import prediction

    believed = prediction.read_rules(router.path)
    monkeypatch.setattr(prediction, "read_rules", lambda path: believed)
    rule = f"-I PREROUTING -d {SERVICE} -p tcp -m statistic --mode nth --every 2 --packet 0 -j DNAT --to 10.0.2.4:8000"
    restore(router, False, "nat", [rule])
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client, 300), never)
    assert sum(observed(report).values()) == 300
    assert observed(report)["10.0.2.4"] > 150
    assert report.p_value is not None and report.p_value < 1e-8


def test_a_backend_that_the_rules_do_not_have(
    net: Net, wishes: Callable[..., Wishes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS[:2])
    from tracer.probe import prediction

    believed = prediction.read_rules(router.path)
    monkeypatch.setattr(prediction, "read_rules", lambda path: believed)
    restore(router, False, "nat", [f"-I PREROUTING -d {SERVICE} -p tcp -j DNAT --to 10.0.2.4:8000"])
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client), never)
    assert observed(report) == {"10.0.2.2": 0, "10.0.2.3": 0, "10.0.2.4": 37}
    assert [each.expected for each in report.reached] == pytest.approx([18.5, 18.5, 0])
    assert (report.chi_square, report.p_value) == (None, 0.0)
    assert "by the rules nothing goes to 10.0.2.4:8000" in report.notes


@pytest.mark.parametrize("really", [True, False])
def test_rules_that_change_meanwhile(net: Net, wishes: Callable[..., Wishes], really: bool) -> None:
    """kube-proxy writes the same rules again now and then: that is no change."""
    client, router, server = net
    kube_service(router, *BACKENDS)
    more = "-j DNAT --to-destination 10.0.2.9:9" if really else "-j RETURN"
    changed = False

    def change() -> bool:
        nonlocal changed
        if not changed:
            changed = True
            restore(router, False, "nat", [f"-I PREROUTING -d {SERVICE if really else '10.9.9.9'} -p tcp {more}"])
        return False

    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client, 5), change)
    assert any("the rules have changed meanwhile" in note for note in report.notes) is really
    assert [each.share for each in report.reached if each.share] == pytest.approx([1 / 3] * 3)


def test_session_affinity(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS, affinity_seconds=180)
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client), never)
    assert sorted(observed(report).values()) == [0, 0, 37]
    assert {each.expected for each in report.reached} == {None}
    assert (report.chi_square, report.degrees, report.p_value) == (None, None, None)
    assert any("session affinity" in note and "180 seconds" in note for note in report.notes)


def test_two_nodes_on_the_way(net: Net, wishes: Callable[..., Wishes]) -> None:
    """As a NodePort of another node is reached: masqueraded on the way out, translated on arrival.

    The second node's rules look at the source that the first one gave the packets.
    """
    client, router, server = net
    restore(router, False, "nat", ["-A POSTROUTING -o server -j MASQUERADE --random-fully"])
    match = "-A PREROUTING -d 10.0.2.2 -p tcp --dport 30080"
    rules = [f"{match} ! -s 10.0.2.1 -j DNAT --to-destination 10.0.2.2:8000"]
    for number, backend in enumerate(BACKENDS[1:]):
        share = f"-m statistic --mode nth --every {2 - number} --packet 0"
        rules.append(f"{match} {share} -j DNAT --to-destination {backend}:8000")
    restore(server, False, "nat", rules)
    with serving(server, "TCP"):
        report = probe("10.0.2.2:30080", wishes(client, 40), never)
    assert observed(report) == {"10.0.2.3": 20, "10.0.2.4": 20}
    assert [each.share for each in report.reached] == pytest.approx([0.5, 0.5])
    assert report.p_value == 1.0


def test_nftables(net: Net, wishes: Callable[..., Wishes]) -> None:
    """Shares of one quarter and three, in a table of somebody's own."""
    client, router, server = net
    choice = "numgen random mod 4 map { 0 : 10.0.2.2, 1-3 : 10.0.2.3 }"
    router.sh(
        "nft add table ip shop",
        "nft 'add chain ip shop pre { type nat hook prerouting priority dstnat; }'",
        f"nft 'add rule ip shop pre ip daddr {SERVICE} tcp dport 80 dnat to {choice} : 8000'",
    )
    with serving(server, "TCP"):
        report = probe(f"{SERVICE}:80", wishes(client, 200), never)
    counts = observed(report)
    assert sum(counts.values()) == 200
    assert abs(counts["10.0.2.2"] - 50) < 40  # more than six standard deviations
    assert [(each.ip, each.expected) for each in report.reached] == [
        ("10.0.2.2", pytest.approx(50)),
        ("10.0.2.3", pytest.approx(150)),
    ]
    assert report.degrees == 1


def test_nothing_translates(net: Net, wishes: Callable[..., Wishes]) -> None:
    """No rule anywhere, so that nothing is tracked: who answers is the backend."""
    client, _, server = net
    with serving(server, "TCP"):
        report = probe("10.0.2.3:8000", wishes(client, 5), never)
    assert [(each.ip, each.port, each.observed) for each in report.reached] == [("10.0.2.3", 8000, 5)]
    report = probe("10.0.2.3:9000", wishes(client, 5), never)
    assert (observed(report), report.fates["refused"]) == ({"10.0.2.3": 5}, 5)


def test_events_are_switched_off(net: Net, wishes: Callable[..., Wishes]) -> None:
    """Then the table is read."""
    client, router, server = net
    kube_service(router, *BACKENDS)
    router.sysctl("net.netfilter.nf_conntrack_events", "0")
    with serving(server, "TCP"), conducted("shop/web:http", wishes(client), never) as outcome:
        table = held(router, "TCP")
    assert {flow.port: (flow.hops[-1].ip, flow.hops[-1].port) for flow in outcome.flows} == table
    assert len(table) == 37


def test_every_flow_of_two_probes_is_new(net: Net, wishes: Callable[..., Wishes]) -> None:
    """An old entry would send a datagram where the one before went, without the rules being asked."""
    client, router, server = net
    kube_service(router, *BACKENDS, protocol="udp")

    def ports() -> set[int]:
        with conducted("shop/web:http", wishes(client, 300, rate=1000), never) as outcome:
            return {flow.port for flow in outcome.flows}

    with serving(server, "UDP"):
        first, second = ports(), ports()
    assert (len(first), len(second), first & second) == (300, 300, set())


def test_ports_in_use_are_not_taken(net: Net, wishes: Callable[..., Wishes]) -> None:
    """Nor those that the kernel gives to others by itself."""
    client, router, _ = net
    kube_service(router, *BACKENDS)
    client.sysctl("net.ipv4.ip_local_port_range", "16384 65000")
    with conducted("shop/web:http", wishes(client, 200), never) as outcome:
        assert min(flow.port for flow in outcome.flows) > 65000


def test_nothing_is_left_half_open(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS)
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    server.sh("iptables -A OUTPUT -p tcp --sport 8000 -j DROP")  # the SYN-ACK never comes
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client), never)
        waiting = [line.split()[3] for line in server.sh("cat /proc/net/tcp").splitlines()]
        assert "03" not in waiting  # TCP_SYN_RECV
    assert report.fates["unanswered"] == 37
    assert held(router, "TCP") == {}
    assert client.sh("cat /proc/net/tcp /proc/net/udp /proc/net/raw /proc/net/raw6").count("\n") == 4
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208
    assert len(os.listdir("/proc/self/task")) <= threads  # noqa: PTH208


def test_the_server_is_not_told_that_the_port_is_closed(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS, protocol="udp")
    with serving(server, "UDP"):
        report = probe("shop/web:http", wishes(client), never)
    assert report.fates["answered"] == 37
    names, values = [line.split() for line in client.sh("cat /proc/net/snmp").splitlines() if line.startswith("Icmp:")]
    assert dict(zip(names, values, strict=True))["OutDestUnreachs"] == "0"


def test_the_rate_is_kept(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS)
    with serving(server, "TCP"), conducted("shop/web:http", wishes(client, 21, rate=40), never) as outcome:
        sent = [flow.sent_at or 0.0 for flow in outcome.flows]
    assert len(sent) == 21
    assert all(when - sent[0] > number / 40 - 0.01 for number, when in enumerate(sent))


def test_stopped_early(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, _ = net
    kube_service(router, "10.0.2.99")
    until = time.monotonic() + 0.6
    report = probe("shop/web:http", wishes(client, 1000, rate=50, timeout=30), lambda: time.monotonic() > until)
    assert 1 <= report.sent < 60
    assert observed(report) == {"10.0.2.99": report.sent}
    assert f"ended early: {report.sent} of 1000 were sent" in report.notes
    assert held(router, "TCP") == {}


def test_a_rule_of_the_clients_own(net: Net, wishes: Callable[..., Wishes]) -> None:
    """Then the client's namespace tracks, too: the router's translation counts all the same."""
    client, router, server = net
    client.sh("iptables -A OUTPUT -m conntrack --ctstate INVALID -j DROP")
    kube_service(router, *BACKENDS)
    with serving(server, "TCP"):
        report = probe("shop/web:http", wishes(client), never)
    assert sum(observed(report).values()) == 37
    assert set(observed(report)) == set(BACKENDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("224.0.0.1:80", "is not the address of one"),
        ("0.0.0.0:80", "is not the address of one"),
        ("[fe80::1]:80", "is not the address of one"),
        ("10.0.2.2:80/sctp", "TCP or UDP, not SCTP"),
    ],
)
def test_what_can_not_be_probed(net: Net, wishes: Callable[..., Wishes], words: str, message: str) -> None:
    client, _, _ = net
    with pytest.raises(UsageError, match=message):
        probe(words, wishes(client), never)


def flows_by_backend(outcome: Outcome) -> Counter[str]:
    return Counter(flow.hops[-1].ip for flow in outcome.flows if flow.hops)


def test_a_thousand_flows_have_the_shares_of_the_rules(net: Net, wishes: Callable[..., Wishes]) -> None:
    client, router, server = net
    kube_service(router, *BACKENDS)
    with serving(server, "TCP"), conducted("shop/web:http", wishes(client, 1000, rate=1000), never) as outcome:
        counts = flows_by_backend(outcome)
    assert counts.total() == 1000
    assert all(abs(counts[backend] - 1000 / 3) < 75 for backend in BACKENDS)  # five standard deviations
    assert Path("/proc/self/ns/net").stat().st_ino not in {hop.inode for flow in outcome.flows for hop in flow.hops}
