"""tracer.ctnetlink: bytes that a kernel sent (Linux 6.18), bytes that none sends, and a kernel of our own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracer.networks import Namespace, namespaces
from tracer import ctnetlink
from tracer.ctnetlink import DESTROY, NEW, UPDATE, Decoder, Message
from tracer.errors import MissingError, NotRoot

# A connection to 10.96.0.1:80, translated to 10.0.2.4:8080: its request, and when it was established.
TCP_NEW = bytes.fromhex(
    "c4000000000100060000000000000000020000003400018014000180080001000a000102080002000a6000011c0002800500010006000000"
    "06000200b90a000006000300005000003400028014000180080001000a000204080002000a0001021c000280050001000600000006000200"
    "1f90000006000300b90a000008000c00450d8df108000300000001a80800070000000078300004802c000180050001000100000005000200"
    "0a000000050003000000000006000400030000000600050000000000"
)
TCP_ESTABLISHED = bytes.fromhex(
    "c4000000000100000000000000000000020000003400018014000180080001000a000102080002000a6000011c0002800500010006000000"
    "06000200b90a000006000300005000003400028014000180080001000a000204080002000a0001021c000280050001000600000006000200"
    "1f90000006000300b90a000008000c00450d8df108000300000001ae0800070000069780300004802c000180050001000300000005000200"
    "0a000000050003000a00000006000400230000000600050023000000"
)
# A refused one to 10.0.2.3:81, in zone 7, with mark 0x4000, nf_conntrack_timestamp on.
TCP_REFUSED = bytes.fromhex(
    "dc000000020100000000000000000000020000003400018014000180080001000a000102080002000a0002031c0002800500010006000000"
    "06000200e83e000006000300005100003400028014000180080001000a000203080002000a0001021c000280050001000600000006000200"
    "0051000006000300e83e0000060012000007000008000c007c48a462080003000000038808000700000000781c0014800c00010018eabe22"
    "943a3fdb0c00020018eabe22943aa4e7100004800c000180050001000800000008000800000040000c001b0018eabe22943aa5ba"
)
UDP6_NEW = bytes.fromhex(
    "c40000000001000600000000000000000a0000004c0001802c00018014000300fd00000100000000000000000000000214000400fd000096"
    "0000000000000000000000011c000280050001001100000006000200e369000006000300003500004c0002802c00018014000300fd000002"
    "00000000000000000000000314000400fd0000020000000000000000000000011c00028005000100110000000600020014e9000006000300"
    "e369000008000c00b32e780108000300000001b8080007000000001e"
)
# UDP to 10.0.2.2:53, in zone 9 for the original direction only.
UDP_ZONE_ORIG = bytes.fromhex(
    "9c000000000100060000000000000000020000003c00018014000180080001000a000102080002000a0002021c0002800500010011000000"
    "06000200ad1f0000060003000035000006000300000900003400028014000180080001000a000202080002000a0001021c00028005000100"
    "11000000060002000035000006000300ad1f000008000c000e5ce2b30800030000000188080007000000001e"
)
ICMP_NEW = bytes.fromhex(
    "a4000000000100060000000000000000020000003c00018014000180080001000a000102080002000a000204240002800500010001000000"
    "0600040072df0000050005000800000005000600000000003c00028014000180080001000a000204080002000a0001022400028005000100"
    "010000000600040072df00000500050000000000050006000000000008000c00623a25600800030000000188080007000000001e"
)
RECORDED = (TCP_NEW, TCP_ESTABLISHED, TCP_REFUSED, UDP6_NEW, UDP_ZONE_ORIG, ICMP_NEW)


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def test_a_request_that_is_translated() -> None:
    assert Decoder().decode(TCP_NEW) == Message(
        kind=NEW, family=4, protocol=6,
        src=ip("10.0.1.2"), sport=47370, dst=ip("10.96.0.1"), dport=80,
        reply_src=ip("10.0.2.4"), reply_sport=8080, reply_dst=ip("10.0.1.2"), reply_dport=47370,
        status=ctnetlink.IPS_DST_NAT | 0x188, state=ctnetlink.TCP_SYN_SENT, timeout=120, mark=None, zone=0,
        id=0x450D8DF1, time_ns=None, start_ns=None,
    )  # fmt: skip


def test_an_update_differs_from_a_request_by_its_flags_only() -> None:
    message = Decoder().decode(TCP_ESTABLISHED)
    assert message is not None
    assert (message.kind, message.state, message.timeout) == (UPDATE, ctnetlink.TCP_ESTABLISHED, 432000)
    assert message.status is not None and message.status & ctnetlink.IPS_ASSURED


def test_a_refused_one_with_zone_mark_and_the_kernels_times() -> None:
    message = Decoder().decode(TCP_REFUSED)
    assert message is not None
    assert (message.kind, message.state, message.timeout) == (DESTROY, ctnetlink.TCP_CLOSE, 120)
    assert (message.zone, message.mark) == (7, 0x4000)
    assert (message.start_ns, message.time_ns) == (1795456457185574875, 1795456457185600954)


def test_ipv6_has_no_state_for_udp() -> None:
    message = Decoder().decode(UDP6_NEW)
    assert message is not None
    assert (message.family, message.protocol, message.state) == (6, 17, None)
    assert (message.src, message.dst, message.dport) == (ip("fd00:1::2"), ip("fd00:96::1"), 53)
    assert (message.reply_src, message.reply_sport) == (ip("fd00:2::3"), 5353)
    assert (message.reply_dst, message.reply_dport) == (ip("fd00:2::1"), 58217)  # masqueraded


def test_a_zone_of_one_direction() -> None:
    message = Decoder().decode(UDP_ZONE_ORIG)
    assert message is not None and message.zone == 9


def test_what_has_no_ports_is_skipped() -> None:
    assert Decoder().decode(ICMP_NEW) is None


def test_a_known_layout_gives_the_values_of_each_message() -> None:
    """The second message of a kind is decoded by what was learned from the first one: only values may differ."""
    decoder = Decoder()
    first = decoder.decode(TCP_NEW)
    other = bytearray(TCP_NEW)
    other[32:36] = ip("10.9.8.7")
    assert other[56:60] == bytes.fromhex("06000200")  # the header of CTA_PROTO_SRC_PORT
    other[60:62] = (4321).to_bytes(2, "big")
    second = decoder.decode(bytes(other))
    assert first is not None and second is not None
    assert second == first._replace(src=ip("10.9.8.7"), sport=4321)


def test_another_layout_of_the_same_length_is_not_taken_for_a_known_one() -> None:
    """Equal length, type and flags, but addresses in another order: attributes are found by type, never by place."""
    decoder = Decoder()
    first = decoder.decode(TCP_NEW)
    swapped = bytearray(TCP_NEW)
    swapped[28:36], swapped[36:44] = TCP_NEW[36:44], TCP_NEW[28:36]
    assert first is not None
    assert decoder.decode(bytes(swapped)) == first
    assert decoder.decode(TCP_NEW) == first


def test_a_truncated_message_of_a_known_layout_is_skipped() -> None:
    decoder = Decoder()
    assert decoder.decode(TCP_NEW) is not None
    assert decoder.decode(TCP_NEW[:-4]) is None  # all that is wanted is there


def test_layouts_never_grow_without_end() -> None:
    decoder = Decoder()
    for kind in range(2 * ctnetlink._MAX_LAYOUTS):
        unknown = ctnetlink.attribute(100 + kind, b"")
        length = (len(TCP_NEW) + len(unknown)).to_bytes(4, sys.byteorder)
        assert decoder.decode(length + TCP_NEW[4:] + unknown) is not None
    assert sum(map(len, decoder._layouts.values())) <= ctnetlink._MAX_LAYOUTS


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_skipped(data: bytes) -> None:
    assert Decoder().decode(data) is None


@given(st.sampled_from(RECORDED), st.data())
def test_a_damaged_message_is_decoded_or_skipped(message: bytes, data: st.DataObject) -> None:
    decoder = Decoder()
    decoder.decode(message)
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(message)))])
    for received in (bytes(damaged), cut):
        decoded = decoder.decode(received)
        assert decoded is None or decoded == Decoder().decode(received)  # what was learned before changes nothing


def test_the_messages_of_a_datagram() -> None:
    both = list(ctnetlink.split(TCP_NEW + UDP_ZONE_ORIG))
    assert [message for _, message in both] == [TCP_NEW, UDP_ZONE_ORIG]
    assert list(ctnetlink.split((TCP_NEW + UDP_ZONE_ORIG)[:-1])) == both[:1]


def test_decoding_is_quick(patience: float) -> None:
    """Far above the 1.0 µs that it takes, far below the 53 µs of a general decoder."""
    decode = Decoder().decode
    decode(TCP_NEW)
    began = time.process_time()
    for _ in range(10_000):
        decode(TCP_NEW)
    assert (time.process_time() - began) / 10_000 < 10e-6 * patience


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        yield one


def _received(sock: socket.socket) -> list[Message | None]:
    """What an event socket holds; None for what is no TCP, UDP or SCTP."""
    decode = Decoder().decode
    messages = []
    while True:
        try:
            messages.append(decode(sock.recv(4096)))
        except BlockingIOError:
            return messages


def _states(messages: list[Message | None]) -> list[tuple[int, int | None]]:
    return [(message.kind, message.state) for message in messages if message is not None]


@pytest.mark.root
def test_events_of_a_short_connection(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that the kernel says about it, four messages pass: the filter tells them from the others."""
    namespace.sh("iptables -A INPUT -m conntrack --ctstate NEW -j ACCEPT")
    with monkeypatch.context() as unfiltered:
        unfiltered.setattr(ctnetlink, "_attach_filter", lambda sock: None)
        everything = namespace.run(lambda: ctnetlink.open_events(1 << 20))
    filtered = namespace.run(lambda: ctnetlink.open_events(1 << 20))
    server = namespace.run(lambda: socket.create_server(("127.0.0.1", 0)))
    with everything, filtered, server:
        client = namespace.run(lambda: socket.create_connection(server.getsockname()))
        accepted, _ = server.accept()
        client.close()
        accepted.close()
        refused = namespace.run(socket.socket)
        with refused:
            assert refused.connect_ex(("127.0.0.1", 1)) != 0
        namespace.sh("ping -c 1 127.0.0.1")
        all_states, passed = _states(_received(everything)), _states(_received(filtered))
    assert [state for _, state in all_states[:3]] == [1, 2, 3] and len(all_states) >= 8
    assert passed == [(NEW, 1), (UPDATE, 2), (UPDATE, 3), (UPDATE, 4), (NEW, 1), (DESTROY, 8)]


@pytest.mark.root
@pytest.mark.parametrize(
    ("protocol", "states", "expected"),
    [
        # Straight from SYN_RECV to FIN_WAIT: the client's last ACK of the handshake came with its FIN.
        ("tcp", ["SYN_SENT", "SYN_RECV", "FIN_WAIT"], [(NEW, 1), (UPDATE, 2), (UPDATE, 4), (DESTROY, 4)]),
        ("tcp", ["SYN_SENT", "SYN_RECV", "CLOSE"], [(NEW, 1), (UPDATE, 2), (UPDATE, 8), (DESTROY, 8)]),
        ("tcp", ["SYN_SENT", "SYN_RECV", "ESTABLISHED"], [(NEW, 1), (UPDATE, 2), (UPDATE, 3), (DESTROY, 3)]),
    ],
)
def test_the_filter_by_state(
    namespace: Namespace, protocol: str, states: list[str], expected: list[tuple[int, int]]
) -> None:
    tuples = f"-p {protocol} -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 80"
    with namespace.run(lambda: ctnetlink.open_events(1 << 20)) as events:
        namespace.sh(f"conntrack -I {tuples} --timeout 100 --state {states[0]}")
        namespace.sh(*(f"conntrack -U {tuples} --state {state}" for state in states[1:]), f"conntrack -D {tuples}")
        assert _states(_received(events)) == expected


@pytest.mark.root
@pytest.mark.parametrize(("state", "number"), [("FIN_WAIT", 4), ("CLOSE", 8)])
def test_an_end_that_is_told_instead_of_the_beginning_passes(namespace: Namespace, state: str, number: int) -> None:
    """Two CPUs: when the event about ESTABLISHED is written, the entry has gone on to another state."""
    tuples = "-p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 80"
    with namespace.run(lambda: ctnetlink.open_events(1 << 20)) as events:
        namespace.sh(
            f"conntrack -I {tuples} --timeout 100 --state SYN_SENT",
            f"conntrack -U {tuples} --state {state} --status SEEN_REPLY,ASSURED",
        )
        assert _states(_received(events)) == [(NEW, 1), (UPDATE, number)]


@pytest.mark.root
def test_an_entry_that_is_used_again_passes(namespace: Namespace) -> None:
    tuples = "-p tcp -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 80"
    with namespace.run(lambda: ctnetlink.open_events(1 << 20)) as events:
        namespace.sh(
            f"conntrack -I {tuples} --timeout 100 --state CLOSE --status SEEN_REPLY,ASSURED",
            f"conntrack -U {tuples} --state SYN_RECV",
        )
        assert _states(_received(events)) == [(NEW, 8), (UPDATE, 2)]


@pytest.mark.root
def test_assured_entries_end_unheard(namespace: Namespace) -> None:
    with namespace.run(lambda: ctnetlink.open_events(1 << 20)) as events:
        for protocol in ("tcp --state ESTABLISHED", "udp"):
            tuples = f"-p {protocol} -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 80"
            namespace.sh(
                f"conntrack -I {tuples} --timeout 100 --status SEEN_REPLY,ASSURED",
                f"conntrack -D -p {protocol.split()[0]} -s 10.0.0.1",
            )
        assert [kind for kind, _ in _states(_received(events))] == [NEW, NEW]


@pytest.mark.root
def test_lost_messages_are_counted(namespace: Namespace) -> None:
    with namespace.run(lambda: ctnetlink.open_events(1)) as events:  # the kernel makes that its minimum
        assert ctnetlink.drops(events) == 0
        count = 37
        namespace.sh(
            *(f"conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport {n} --dport 53 --timeout 9" for n in range(1, 38))
        )
        with pytest.raises(OSError, match="No buffer space"):
            events.recv(4096)
        assert ctnetlink.drops(events) == count - len(_received(events)) > 0


@pytest.mark.root
def test_a_kernel_without_the_subsystem(namespace: Namespace) -> None:
    """What nfnetlink says of a subsystem that it does not have is what it says of one whose module is not there."""
    with namespace.run(ctnetlink.open_socket) as sock, pytest.raises(MissingError) as caught:
        list(ctnetlink.request(sock, ctnetlink.IPCTNL_MSG_CT_GET, subsystem=200))
    assert caught.value.hint == "modprobe nf_conntrack_netlink"
    assert "nf_conntrack" in caught.value.message


@pytest.mark.root
@pytest.mark.parametrize("call", ["ctnetlink.entries(ctnetlink.open_socket())", "ctnetlink.open_events(4096)"])
def test_without_the_capability(call: str) -> None:
    """In a user namespace of its own a process has no capability in our network namespace."""
    script = (
        f"from tracer import ctnetlink\ntry:\n    {call}\nexcept Exception as error:\n    print(type(error).__name__)"
    )
    done = subprocess.run(
        ["unshare", "--user", sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{NotRoot.__name__}\n"
