"""Text of `ipset save`: what is read, what is refused and where, and which packets are in a set."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli import command
from tests.tracer.rules.explaining import NODE, POD, ask, save, together
from tracer.errors import FormatError, K8snetError
from tracer.rule_sentences import sentence
from tracer.rules.files import read_files, read_text
from tracer.rules.ipset_save import read_ipsets
from tracer.rules.model import Element, Interval, Ipset, RuleSet, address_number

D = ("drop", ())
U = ("untouched", ())
FILTER = "filter\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"


def ipset(text: str, name: str = "x") -> Ipset:
    return read_ipsets(text, "sets").ipsets[name]


def values(text: str) -> list[object]:
    return [element.value for element in ipset(text).elements]


def addresses(low: str, high: str | None = None) -> Interval:
    return Interval(address_number(low), address_number(high or low))


TCP80 = ("tcp", Interval(80, 80))


@pytest.mark.parametrize(
    ("create", "add", "expected"),
    [
        ("hash:ip", "10.0.0.1", [addresses("10.0.0.1")]),
        ("hash:ip family inet6", "fd00::1 timeout 5 packets 0 bytes 0", [addresses("fd00::1")]),
        ("hash:ip", "10.0.0.0/30", [addresses("10.0.0.0", "10.0.0.3")]),
        ("hash:ip", "10.0.0.1-10.0.0.9", [addresses("10.0.0.1", "10.0.0.9")]),
        ("hash:ip netmask 24", "10.0.7.9", [addresses("10.0.7.0", "10.0.7.255")]),
        ("hash:ip bitmask 255.255.255.0", "10.0.7.9", [addresses("10.0.7.0", "10.0.7.255")]),
        ("hash:net", "10.0.0.77/24", [addresses("10.0.0.0", "10.0.0.255")]),
        ("hash:net", "10.0.0.1", [addresses("10.0.0.1")]),
        ("hash:net", "10.0.0.0-10.0.0.4", [addresses("10.0.0.0", "10.0.0.3"), addresses("10.0.0.4")]),
        ("hash:ip,port", "10.0.0.1,80", [(addresses("10.0.0.1"), *TCP80)]),
        ("hash:ip,port", "10.0.0.1,tcp:82-80", [(addresses("10.0.0.1"), "tcp", Interval(80, 82))]),
        ("hash:ip,port", "10.0.0.1,17:53", [(addresses("10.0.0.1"), "udp", Interval(53, 53))]),
        ("hash:ip,port", "10.0.0.1,icmp:echo-request", [(addresses("10.0.0.1"), "icmp", "echo-request")]),
        ("hash:ip,port,ip", "10.0.0.1,80,10.0.0.2", [(addresses("10.0.0.1"), *TCP80, addresses("10.0.0.2"))]),
        (
            "hash:ip,port,net family inet6",
            "fd00::1,tcp:80,fd01::/16",
            [(addresses("fd00::1"), *TCP80, addresses("fd01::", "fd01:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))],
        ),
        ("hash:net,port", "10.0.0.0/31,80", [(addresses("10.0.0.0", "10.0.0.1"), *TCP80)]),
        ("hash:net,iface", "10.0.0.0/31,eth0", [(addresses("10.0.0.0", "10.0.0.1"), "eth0")]),
        ("hash:net,iface", "10.0.0.0/31,eth wildcard", [(addresses("10.0.0.0", "10.0.0.1"), "eth*")]),
        ("bitmap:ip range 10.0.0.0-10.0.0.255", "10.0.0.5", [addresses("10.0.0.5")]),
        ("bitmap:port range 0-1023", "80-90", [Interval(80, 90)]),
        ("list:set size 8", "other", ["other"]),
        ("list:set", "other before more", ["other"]),
    ],
)
def test_elements(create: str, add: str, expected: list[object]) -> None:
    assert values(f"create x {create}\nadd x {add}\n") == expected


def test_what_is_said_of_a_set_and_its_elements() -> None:
    found = ipset(
        "create x hash:net,port family inet6 hashsize 1024 maxelem 65536 timeout 300 counters comment skbinfo "
        "bucketsize 12 initval 0x2ce7cfee\n"
        'add x fd00::/64,udp:53 timeout 299 nomatch comment "a timeout b" skbmark 0x1\n'
    )
    assert (found.kind, found.of, found.timeout, found.strange) == ("hash:net,port", "ip6", 300, None)
    assert found.type == ("ipv6_addr", "inet_proto", "inet_service")
    (element,) = found.elements
    assert (element.data, element.comment) == ("nomatch", "a timeout b")


def test_names_with_blanks_flush_and_comments() -> None:
    text = "# mine\ncreate x hash:ip -exist\nadd x 10.0.0.1\nflush x\n"
    text += "create x y hash:ip\nadd x y 10.0.0.2\nadd x 10.0.0.3\n"
    assert values(text + "COMMIT\n") == [addresses("10.0.0.3")]
    assert ipset(text, "x y").elements == (Element(addresses("10.0.0.2")),)


@pytest.mark.parametrize(
    ("text", "strange"),
    [
        ("create x hash:mac\nadd x 01:02:03:04:05:06\n", "hash:mac"),
        ("create x hash:ip future 5\nadd x 10.0.0.1\n", "future"),
        ("create x hash:ip\nadd x 10.0.0.1 future\n", "future"),
        ("create x hash:ip bitmask 255.0.255.0\nadd x 10.0.0.1\n", "bitmask 255.0.255.0"),
    ],
)
def test_what_is_not_known_stays_unknown(text: str, strange: str) -> None:
    found = ipset(text)
    assert (found.elements, found.strange) == ((), strange)
    told = ask(rules("-A OUTPUT -m set --match-set x dst -j DROP", text), "10.0.0.1:80")
    assert (told.verdict, told.depends[0].on) == ("untouched", ("ipset dst @x",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("create x\n", "sets:1: a set without a type: 'create x'"),
        ("create x hash:ip\n\ncreate x hash:net\n", "sets:3: a second set 'x'"),
        ("create x hash:ip\nadd y 10.0.0.1\n", "sets:2: an element for the set 'y', which was not created"),
        ("create x hash:ip\nadd x\n", "sets:2: set 'x': no element of hash:ip: '' (it has 1 parts)"),
        ("create x hash:ip\ntest x 10.0.0.1\n", "sets:2: neither create, add nor COMMIT: 'test x 10.0.0.1'"),
        ("create x hash:ip family ipx\n", "sets:1: set 'x': no family 'ipx'"),
        ("create x hash:ip netmask 33\n", "sets:1: set 'x': no netmask '33'"),
        ("create x hash:ip\nadd x 10.0.0\n", "sets:2: set 'x': no element of hash:ip: '10.0.0' "),
        ("create x hash:ip\nadd x fd00::1\n", "sets:2: set 'x': no element of hash:ip: 'fd00::1' "),
        ("create x hash:ip\nadd x 10.0.0.9-10.0.0.1\n", "sets:2: set 'x': no element of hash:ip: "),
        ("create x hash:ip,port\nadd x 10.0.0.1\n", "sets:2: set 'x': no element of hash:ip,port: '10.0.0.1' "),
        ("create x hash:ip,port\nadd x 10.0.0.1,tcp:70000\n", "sets:2: set 'x': no element of hash:ip,port: "),
        ("create x hash:ip,port\nadd x 10.0.0.1,tcp:-\n", "sets:2: set 'x': no element of hash:ip,port: "),
    ],
)
def test_what_ipset_would_not_take_either(text: str, words: str) -> None:
    with pytest.raises(FormatError) as caught:
        values(text)
    assert str(caught.value).startswith(words)


@given(st.binary(max_size=300))
def test_arbitrary_bytes(data: bytes) -> None:
    text = "create x hash:net,port\nadd x 10.0.0.0/8,80\n" + data.decode(errors="replace")
    read_or_refuse(text)


WORDS = st.sampled_from(
    [
        *("create", "add", "x", "y", "hash:ip,port", "hash:net,iface", "bitmap:port", "list:set", "family", "inet6"),
        *("timeout", "10.0.0.1", "10.0.0.0/8,80", "10.0.0.1,udp:", "fd00::/129", "nomatch", "comment", "netmask"),
        *('"', ",", "-", "\n"),
    ]
)
NETS = st.tuples(st.ip_addresses(network="10.0.0.0/8"), st.integers(0, 32), st.booleans())


@given(st.lists(WORDS, max_size=30).map(" ".join))
def test_arbitrary_words(text: str) -> None:
    read_or_refuse("create x hash:ip\n" + text.replace("\n ", "\n"))


def read_or_refuse(text: str) -> None:
    """Either all of it is understood, or it is told in which line it is not."""
    try:
        for found in read_text(text, "file").ipsets.values():
            assert isinstance(found.elements, tuple)
    except FormatError as error:
        number = int(str(error).removeprefix("file:").partition(":")[0])
        assert 1 <= number <= text.count("\n") + 1


@given(
    st.lists(
        st.tuples(st.ip_addresses(network="10.0.0.0/8"), st.integers(0, 32), st.booleans()),
        unique_by=lambda item: item[:2],
    )
)
def test_the_longest_network_decides(nets: list[tuple[ipaddress.IPv4Address, int, bool]]) -> None:
    """Against the words of ipset(8), by Python's own networks."""
    found: dict[ipaddress.IPv4Network, bool] = {}
    for address, length, against in nets:
        found[ipaddress.IPv4Network((address, length), strict=False)] = against
    text = "".join(f"add x {net},80{' nomatch' if against else ''}\n" for net, against in found.items())
    of_them = rules("-A FORWARD -m set --match-set x dst,dst -j DROP", f"create x hash:net,port\n{text}")
    for address in [address for address, _, _ in nets][:5] or [ipaddress.IPv4Address("10.0.0.1")]:
        holding = sorted((net.prefixlen, against) for net, against in found.items() if address in net)
        expected = bool(holding) and not holding[-1][1]
        told = ask(of_them, f"{address}:80", POD)
        assert told.verdict in (("drop",) if expected else ("untouched", "accept")), (str(address), text)


def rules(lines: str, sets: str, family: int = 4) -> RuleSet:
    return together(save(FILTER + lines, family=family), read_text(sets, "sets"))


SETS = f"""create clients hash:ip
add clients {POD}
add clients 10.244.0.9
create services hash:ip,port
add services 10.96.0.1,80
add services 10.96.0.1,udp:53
create six hash:ip family inet6
add six fd00::1
create sources hash:ip,port
add sources {POD},tcp:80
add sources {POD},tcp:40000
create devices hash:net,iface
add devices 10.0.0.0/8,eth0
add devices 10.96.0.0/16,eth1
add devices 10.97.0.0/16,physdev:eth1
add devices 10.98.0.0/16,eth wildcard
add devices 10.98.0.0/16,eth0 nomatch
create ports bitmap:port range 0-1023
add ports 80
create all list:set
add all six
add all services
create broken list:set
add broken gone
add broken clients
create own hash:ip
add own {NODE}
create empty hash:net
create half hash:net family inet6
add half ::/1
create low hash:ip,port
add low 10.96.0.1,tcp:1-1023
"""


@pytest.mark.parametrize(
    ("match", "destination", "source", "protocol", "holds"),
    [
        ("--match-set clients src", "10.96.0.1:80", POD, "TCP", True),
        ("! --match-set clients src", "10.96.0.1:80", POD, "TCP", False),
        ("--match-set clients dst", "10.96.0.1:80", POD, "TCP", False),
        ("--match-set clients src ! --update-counters", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set clients src ! --update-subcounters", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set clients src --return-nomatch", "10.96.0.1:80", POD, "TCP", None),
        ("--match-set clients src --packets-gt 5", "10.96.0.1:80", POD, "TCP", None),
        ("--match-set clients src,dst", "10.96.0.1:80", POD, "TCP", True),  # what is too much is not looked at
        ("--match-set services dst,dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set services dst,dst", "10.96.0.1:80", POD, "UDP", False),
        ("--match-set services dst,dst", "10.96.0.1:53", POD, "UDP", True),
        ("--match-set services dst", "10.96.0.1:80", POD, "TCP", False),  # too little: never
        ("! --match-set services dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set six src", "10.96.0.1:80", POD, "TCP", False),
        ("! --match-set six src", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set sources src,dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set sources src,src", "10.96.0.1:80", POD, "UDP", False),
        ("--match-set sources src,src", "10.96.0.1:80", POD, "TCP", None),  # 40000 may be the source port, or not
        ("--match-set sources src,src", "10.96.0.1:80", "10.244.0.8", "TCP", False),
        ("--match-set devices dst,src", "10.1.0.1:80", POD, "TCP", True),
        ("--match-set devices dst,dst", "10.1.0.1:80", POD, "TCP", False),
        ("--match-set devices dst,src", "10.96.0.1:80", POD, "TCP", False),  # eth1's network is the longer one
        ("--match-set devices dst,dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set devices dst,src", "10.97.0.1:80", POD, "TCP", True),  # a bridge's ports count for bridges
        ("--match-set devices dst,dst", "10.98.0.1:80", POD, "TCP", True),
        ("--match-set devices dst,src", "10.98.0.1:80", POD, "TCP", None),  # which of the two comes first, none tells
        ("--match-set ports dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set ports dst", "10.96.0.1:80", POD, "UDP", True),
        ("--match-set ports dst", "10.96.0.1:80", POD, "SCTP", False),
        ("--match-set ports src", "10.96.0.1:80", POD, "TCP", False),
        ("--match-set all dst,dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set all dst,dst", "10.96.0.2:80", POD, "TCP", False),
        ("--match-set broken src", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set broken src", "10.96.0.1:80", "10.244.0.8", "TCP", None),
        ("--match-set gone src", "10.96.0.1:80", POD, "TCP", None),
        ("--match-set empty src", "10.96.0.1:80", POD, "TCP", False),
        ("! --match-set empty src", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set half dst", "10.96.0.1:80", POD, "TCP", False),  # of IPv6
        ("! --match-set half dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set low dst,dst", "10.96.0.1:80", POD, "TCP", True),
        ("--match-set low dst", "10.96.0.1:80", POD, "TCP", False),
        ("--match-set empty up", "10.96.0.1:80", POD, "TCP", None),
    ],
)
def test_matches(match: str, destination: str, source: str, protocol: str, holds: bool | None) -> None:
    told = ask(
        rules(f"-A FORWARD -m set {match} -j DROP", SETS),
        destination,
        source,
        protocol,
        in_device="eth0",
        out_device="eth1",
    )
    assert (told.verdict, bool(told.depends)) == ("drop" if holds else "untouched", holds is None)


def test_by_the_command(tmp_path: Path) -> None:
    saved, sets = tmp_path / "rules", tmp_path / "sets"
    saved.write_text(f"*{FILTER}-A FORWARD -m set --match-set clients src -j DROP\nCOMMIT\n")
    sets.write_text(SETS)
    words = ("explain", "10.96.0.1:80", "10.96.0.1:443", "--source", POD, "--rules", str(saved))
    done = command.run(*words, "--rules", str(sets))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("FORWARD 1: from one of the 2 addresses of the set clients: is dropped") == 2
    without = command.run(*words)
    assert without.stdout.count("FORWARD 1: depends on ipset src @clients: if so, is dropped") == 2


def test_a_rule_that_fills_a_set_makes_it_unknown() -> None:
    lines = "-A FORWARD -p tcp -j SET --add-set empty src\n-A FORWARD -m set --match-set empty src -j DROP"
    assert len(ask(rules(lines, SETS), "10.96.0.1:80", POD).depends) == 1
    assert ask(rules(lines, SETS), "10.96.0.1:80", POD, "UDP").depends == ()


def test_a_mark_out_of_a_set_is_told() -> None:
    told = ask(rules("-A FORWARD -j SET --map-set clients src --map-mark", SETS), "10.96.0.1:80", POD)
    assert told.notes == (
        "-j SET --map-set clients src --map-mark may change marks: told is what follows if it does not",
    )


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("--match-set clients src", "from one of the 2 addresses of the set clients"),
        ("! --match-set own src", "not from the one address of the set own"),
        ("! --match-set empty dst", "not to any of the 0 addresses of the set empty"),
        ("--match-set services dst,dst", "with destination and port in the set services (2 entries)"),
        ("! --match-set services src,src", "with source and source port not in the set services (2 entries)"),
        ("--match-set devices dst,dst", "with destination and device that it leaves by in the set devices (4 entries)"),
        ("--match-set ports dst", "with port in the set ports (1 entry)"),
        ("--match-set all dst,dst", "in one of the 2 sets of the list all"),
    ],
)
def test_sentences(match: str, words: str) -> None:
    told = ask(
        rules(f"-A FORWARD -m set {match} -j DROP", SETS), "10.96.0.1:80", POD, in_device="eth0", out_device="eth1"
    )
    assert sentence(told.steps[0]) == f"{words}: is dropped: the sender hears nothing"


def test_files(tmp_path: Path) -> None:
    saved, again = tmp_path / "sets", tmp_path / "again"
    saved.write_text(SETS)
    again.write_text("create x hash:ip\ncreate clients hash:net\n")
    assert set(read_files([saved]).ipsets) == {line.split()[1] for line in SETS.splitlines() if "create" in line}
    with pytest.raises(K8snetError, match="again holds the set clients, as a file before it does already"):
        read_files([saved, again])
