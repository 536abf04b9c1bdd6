"""tracer.conntrack: tables of namespaces that the test made, filled by packets or by conntrack(8)."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from tests.tracer.networks import Namespace, namespaces, routed
from tracer import conntrack, ctnetlink
from tracer.conntrack import Entry, FlowTuple
from tracer.errors import MissingError

TCP, UDP, SCTP = 6, 17, 132


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def test_text_of_addresses() -> None:
    four = FlowTuple(ip("10.0.0.1"), 1, ip("10.0.0.2"), 2)
    six = FlowTuple(ip("fd00::1"), 1, ip("::ffff:1.2.3.4"), 2)
    assert (four.src_text, four.dst_text) == ("10.0.0.1", "10.0.0.2")
    assert (six.src_text, six.dst_text) == ("fd00::1", "::ffff:1.2.3.4")
    assert four.reversed() == FlowTuple(ip("10.0.0.2"), 2, ip("10.0.0.1"), 1)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


def insert(namespace: Namespace, *entries: str) -> None:
    """Make entries with conntrack(8)."""
    namespace.sh(*(f"conntrack -I --timeout 100 {entry}" for entry in entries))


# What conntrack -I makes of --dst-nat and --src-nat: an entry with the NAT bits set.
UDP_DNAT = "-p udp -s 10.0.0.1 -d 10.96.0.10 --sport 1001 --dport 53 --dst-nat 10.0.2.2:5353"
UDP_SNAT = "-p udp -s 10.0.0.1 -d 10.0.2.2 --sport 1002 --dport 53 --src-nat 10.0.2.1"
UDP_PLAIN = "-p udp -s 10.0.0.1 -d 10.0.2.2 --sport 1003 --dport 53"
UDP_DNAT_ASSURED = (
    "-p udp -s 10.0.0.1 -d 10.96.0.10 --sport 1004 --dport 53 --dst-nat 10.0.2.3:5353 --status SEEN_REPLY,ASSURED"
)
TCP_DNAT_HANDSHAKE = "-p tcp -s 10.0.0.1 -d 10.96.0.1 --sport 1005 --dport 80 --dst-nat 10.0.2.2:8080 --state SYN_SENT"
TCP_DNAT_ESTABLISHED = (
    "-p tcp -s 10.0.0.1 -d 10.96.0.1 --sport 1006 --dport 80 --dst-nat 10.0.2.2:8080 --state ESTABLISHED"
    " --status SEEN_REPLY,ASSURED"
)
TCP_PLAIN_HANDSHAKE = "-p tcp -s 10.0.0.1 -d 10.0.2.2 --sport 1007 --dport 80 --state SYN_SENT"
ICMP = "-p icmp -s 10.0.0.1 -d 10.0.2.2 --icmp-type 8 --icmp-code 0 --icmp-id 9"
UDP6_PLAIN = "-p udp -s fd00::1 -d fd00::2 --sport 1008 --dport 53"
SCTP_PLAIN = "-p sctp -s 10.0.0.1 -d 10.0.2.2 --sport 1009 --dport 80 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2"
ALL = (
    UDP_DNAT, UDP_SNAT, UDP_PLAIN, UDP_DNAT_ASSURED, TCP_DNAT_HANDSHAKE, TCP_DNAT_ESTABLISHED, TCP_PLAIN_HANDSHAKE,
    ICMP, UDP6_PLAIN, SCTP_PLAIN,
)  # fmt: skip


def ports(entries: Iterator[Entry]) -> list[int]:
    """The source ports, which tell the entries above apart."""
    return sorted(entry.orig.sport for entry in entries)


@pytest.mark.root
def test_one_entry_of_each_kind(namespace: Namespace) -> None:
    insert(namespace, *ALL)
    entries = {entry.orig.sport: entry for entry in conntrack.dump(namespace.path)}
    assert sorted(entries) == list(range(1001, 1010))  # all but ICMP, which has no ports
    dnat = entries[1001]
    assert (dnat.family, dnat.protocol, dnat.zone) == (4, UDP, 0)
    assert dnat.orig == FlowTuple(ip("10.0.0.1"), 1001, ip("10.96.0.10"), 53)
    assert dnat.reply == FlowTuple(ip("10.0.2.2"), 5353, ip("10.0.0.1"), 1001)
    assert dnat.dnat and not dnat.snat and not dnat.answered and dnat.state is None
    assert dnat.timeout is not None and 90 <= dnat.timeout <= 100
    snat = entries[1002]
    assert snat.snat and not snat.dnat
    assert snat.reply == FlowTuple(ip("10.0.2.2"), 53, ip("10.0.2.1"), 1002)
    assert entries[1003].reply == entries[1003].orig.reversed()
    assert entries[1004].answered
    assert (entries[1006].protocol, entries[1006].state) == (TCP, ctnetlink.TCP_ESTABLISHED)
    assert (entries[1008].family, entries[1008].orig.src_text) == (6, "fd00::1")
    assert (entries[1009].protocol, entries[1009].state) == (SCTP, ctnetlink.SCTP_ESTABLISHED)


@pytest.mark.root
def test_marks_and_zones(namespace: Namespace) -> None:
    insert(namespace, f"{UDP_PLAIN} --mark 0x4000 --zone 7", f"{UDP_PLAIN} --zone 8")
    entries = sorted(conntrack.dump(namespace.path), key=lambda entry: entry.zone)
    assert [(entry.zone, entry.mark) for entry in entries] == [(7, 0x4000), (8, 0)]


@pytest.mark.root
def test_only_what_is_asked_for(namespace: Namespace) -> None:
    insert(namespace, *ALL)
    path = namespace.path
    assert ports(conntrack.dump(path, protocol=UDP)) == [1001, 1002, 1003, 1004, 1008]
    assert ports(conntrack.dump(path, protocol=UDP, family=6)) == [1008]
    assert ports(conntrack.dump(path, family=6)) == [1008]
    assert ports(conntrack.dump(path, protocol=SCTP)) == [1009]
    dnat = ctnetlink.IPS_DST_NAT
    assert ports(conntrack.dump(path, status=dnat, status_mask=dnat)) == [1001, 1004, 1005, 1006]
    assert ports(conntrack.dump(path, protocol=TCP, status=dnat, status_mask=dnat)) == [1005, 1006]


@pytest.mark.root
def test_the_kernel_leaves_out_what_is_not_asked_for(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is filtered here in any case; this is about the kernel's part, which makes large tables quick."""
    insert(namespace, *ALL)
    monkeypatch.setattr(conntrack, "_filter", lambda *_: b"")
    unhelped = ports(conntrack.dump(namespace.path, protocol=TCP))
    monkeypatch.undo()
    attributes = conntrack._filter(TCP, 0, ctnetlink.IPS_ASSURED)
    with namespace.run(ctnetlink.open_socket) as sock:
        get = ctnetlink.IPCTNL_MSG_CT_GET
        sent = list(ctnetlink.request(sock, get, family=socket.AF_INET, attributes=attributes))
    assert unhelped == [1005, 1006, 1007]
    assert len(sent) == 2


@pytest.mark.root
@pytest.mark.parametrize("small", [10_000, 0], ids=["small table", "large table"])
def test_flows_that_go_on(namespace: Namespace, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_SMALL_TABLE", small)
    insert(namespace, *ALL)
    assert ports(conntrack.existing(namespace.path)) == [1001, 1002, 1004, 1005]


@pytest.mark.root
def test_an_empty_table(namespace: Namespace) -> None:
    assert list(conntrack.dump(namespace.path)) == []
    assert list(conntrack.existing(namespace.path)) == []
    assert conntrack.count(namespace.path) == 0


@pytest.mark.root
def test_the_callers_own_namespace(namespace: Namespace) -> None:
    insert(namespace, UDP_PLAIN)
    assert namespace.run(lambda: ports(conntrack.dump())) == [1003]
    assert namespace.run(conntrack.count) == 1


@pytest.mark.root
def test_asking_tracks_nothing(namespace: Namespace) -> None:
    """No rule of the namespace needs tracking, so packets leave no entry, whoever asks."""
    conntrack.count(namespace.path)
    list(conntrack.dump(namespace.path))
    with namespace.run(lambda: ctnetlink.open_events(1 << 16)) as events:
        namespace.sh("ping -c 1 127.0.0.1")
        with pytest.raises(BlockingIOError):
            events.recv(4096)
    assert conntrack.count(namespace.path) == 0


@pytest.mark.root
def test_a_namespace_that_is_gone() -> None:
    with namespaces(1) as (namespace,):
        path = namespace.path
    with pytest.raises(MissingError):
        list(conntrack.dump(path))


@pytest.mark.root
def test_real_packets_through_a_router() -> None:
    """What is read is what conntrack(8) reads, and where the packets really went."""
    with routed() as (client, router, server):
        router.sh("iptables -t nat -A PREROUTING -d 10.96.0.1 -p tcp --dport 80 -j DNAT --to-destination 10.0.2.3:8080")
        listening = server.run(lambda: socket.create_server(("10.0.2.3", 8080)))
        with listening, client.run(lambda: socket.create_connection(("10.96.0.1", 80))) as connected:
            source = connected.getsockname()
            accepted, peer = listening.accept()
            accepted.close()
            (entry,) = conntrack.dump(router.path)
        assert peer == source
        assert (entry.orig.src_text, entry.orig.sport) == source
        assert (entry.orig.dst_text, entry.orig.dport) == ("10.96.0.1", 80)
        assert (entry.reply.src_text, entry.reply.sport) == ("10.0.2.3", 8080)
        listed = router.sh("conntrack -L -p tcp")
        assert f"src=10.0.1.2 dst=10.96.0.1 sport={source[1]} dport=80 src=10.0.2.3 dst=10.0.1.2 sport=8080" in listed


@pytest.mark.root
def test_many_entries(namespace: Namespace, patience: float) -> None:
    """A table of 5,003 entries, in more than one datagram, each entry once."""
    script = (
        "import struct; from tracer import ctnetlink as c; a = c.attribute; s = c.open_socket()\n"
        "def half(kind, source, target, sport, dport):\n"
        "    ports = a(2, struct.pack('>H', sport)) + a(3, struct.pack('>H', dport))\n"
        "    ip = a(1, a(1, source) + a(2, target), nested=True)\n"
        "    return a(kind, ip + a(2, a(1, bytes([17])) + ports, nested=True), nested=True)\n"
        "one, two = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])\n"
        "for port in range(1, 5004):\n"
        "    body = struct.pack('BBH', 2, 0, 0) + half(1, one, two, port, 53) + half(2, two, one, 53, port)\n"
        "    body += a(c.CTA_TIMEOUT, struct.pack('>I', 100)) + a(c.CTA_STATUS, struct.pack('>I', 8))\n"
        "    s.send(struct.pack('=IHHII', 16 + len(body), 0x100, 0x601, port, 0) + body)\n"
    )
    namespace.sh(f'{sys.executable} -c "{script}"')
    assert conntrack.count(namespace.path) == 5003
    assert ports(conntrack.dump(namespace.path)) == list(range(1, 5004))
