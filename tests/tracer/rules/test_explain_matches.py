"""Each kind of condition, of iptables and of nftables, for packets that meet it and packets that do not."""

from __future__ import annotations

import pytest

from tests.tracer.rules.explaining import NODE, NODE6, POD, ask, nft, save

T, F, D = "drop", "untouched", "depends"


def iptables_verdict(match: str, destination: str, source: str | None, protocol: str, **devices: str) -> str:
    """What becomes of packets that a rule with this match drops, at the last hook that each of them passes."""
    chain = "INPUT" if destination.startswith((NODE, f"[{NODE6}")) else "FORWARD"
    chain = "OUTPUT" if source is None else chain
    rules = save(
        f"filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A {chain} {match} -j DROP",
        family=6 if destination.startswith("[") else 4,
    )
    told = ask(rules, destination, source, protocol, **devices)
    return D if told.depends else told.verdict


def nft_verdict(match: str, destination: str, source: str | None, protocol: str, **devices: str) -> str:
    hook = "input" if destination.startswith((NODE, f"[{NODE6}")) else "forward"
    hook = "output" if source is None else hook
    rules = nft(
        f"""table inet t {{
        set web {{
            type inet_service
            flags interval
            elements = {{ 80, 8000-8080 }}
        }}
        set clients {{
            type ipv4_addr
            flags interval
            elements = {{ 10.244.0.0/16, 192.0.2.9 }}
        }}
        set pairs {{
            type ipv4_addr . inet_service
            flags interval
            elements = {{ 10.244.0.0/16 . 80, 192.0.2.0/24 . 443-444 }}
        }}
        set lately {{
            type ipv4_addr
            flags dynamic,timeout
            timeout 1m
            elements = {{ 10.244.0.7 expires 5s }}
        }}
        chain c {{
            type filter hook {hook} priority filter; policy accept;
            {match} drop
        }}
        }}"""
    )
    told = ask(rules, destination, source, protocol, **devices)
    return D if told.depends else told.verdict


SERVICE = "10.96.0.1:80"

IPTABLES = [
    ("", SERVICE, POD, "TCP", T),
    ("-s 10.244.0.0/16", SERVICE, POD, "TCP", T),
    ("-s 10.244.0.0/16", SERVICE, "192.0.2.9", "TCP", F),
    ("! -s 10.244.0.0/16", SERVICE, "192.0.2.9", "TCP", T),
    ("! -s 10.244.0.0/16", SERVICE, POD, "TCP", F),
    ("-s 10.0.0.7/255.0.0.255", SERVICE, POD, "TCP", T),
    ("-s 10.0.0.8/255.0.0.255", SERVICE, POD, "TCP", F),
    ("-d 10.96.0.1/32", SERVICE, POD, "TCP", T),
    ("! -d 10.96.0.1/32", SERVICE, POD, "TCP", F),
    ("-d 10.96.0.1/32 -p tcp -m tcp --dport 80", SERVICE, POD, "TCP", T),
    ("-d 10.96.0.1/32 -p tcp -m tcp --dport 80", SERVICE, POD, "UDP", F),
    ("-p tcp -m tcp --dport 81", SERVICE, POD, "TCP", F),
    ("-p tcp -m tcp ! --dport 81", SERVICE, POD, "TCP", T),
    ("-p tcp -m tcp --dport 79:80", SERVICE, POD, "TCP", T),
    ("-p udp -m udp --dport 80", SERVICE, POD, "UDP", T),
    ("-p sctp -m sctp --dport 80", SERVICE, POD, "SCTP", T),
    ("-p sctp -m sctp --dport 80", SERVICE, POD, "TCP", F),
    ("! -p tcp", SERVICE, POD, "UDP", T),
    ("-p tcp -m multiport --dports 22,80,443", SERVICE, POD, "TCP", T),
    ("-p tcp -m multiport --dports 22,443:500", SERVICE, POD, "TCP", F),
    ("-p tcp -m multiport ! --dports 22,443", SERVICE, POD, "TCP", T),
    ("-p tcp -m multiport --ports 80", SERVICE, POD, "TCP", T),
    ("-p tcp -m tcp --sport 1024:65535", SERVICE, POD, "TCP", T),
    ("-p tcp -m tcp --sport 22", SERVICE, POD, "TCP", F),
    ("-p tcp -m tcp --sport 40000:50000", SERVICE, POD, "TCP", D),
    ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", SERVICE, POD, "TCP", T),
    ("-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN", SERVICE, POD, "TCP", F),
    ("-p icmp -m icmp --icmp-type 8", SERVICE, POD, "TCP", F),
    ("-m conntrack --ctstate NEW", SERVICE, POD, "TCP", T),
    ("-m conntrack --ctstate RELATED,ESTABLISHED", SERVICE, POD, "TCP", F),
    ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT", SERVICE, POD, "TCP", T),
    ("-m state --state INVALID", SERVICE, POD, "TCP", F),
    ("-m conntrack --ctorigdst 10.96.0.1 --ctorigdstport 80", SERVICE, POD, "TCP", T),
    ("-m conntrack --ctorigdst 10.96.0.2", SERVICE, POD, "TCP", F),
    ("-m conntrack --ctstatus DNAT", SERVICE, POD, "TCP", F),
    ("-m conntrack --ctdir ORIGINAL", SERVICE, POD, "TCP", T),
    ("-m mark --mark 0x0/0x4000", SERVICE, POD, "TCP", T),
    ("-m mark --mark 0x4000/0x4000", SERVICE, POD, "TCP", F),
    ("-m mark ! --mark 0x4000/0x4000", SERVICE, POD, "TCP", T),
    ("-m connmark --mark 0x1", SERVICE, POD, "TCP", F),
    ("-m addrtype --dst-type LOCAL", SERVICE, POD, "TCP", F),
    ("-m addrtype --dst-type LOCAL", f"{NODE}:80", POD, "TCP", T),
    ("-m addrtype ! --dst-type LOCAL", SERVICE, POD, "TCP", T),
    ("-m addrtype --src-type LOCAL", SERVICE, POD, "TCP", F),
    ("-m addrtype --src-type LOCAL", SERVICE, None, "TCP", T),
    ("-m addrtype --src-type UNICAST", SERVICE, POD, "TCP", T),
    ("-m iprange --src-range 10.244.0.1-10.244.0.9", SERVICE, POD, "TCP", T),
    ("-m iprange ! --dst-range 10.96.0.0-10.96.0.9", SERVICE, POD, "TCP", F),
    ("-m physdev --physdev-in eth0", SERVICE, POD, "TCP", F),
    ("-m physdev ! --physdev-is-bridged", SERVICE, POD, "TCP", T),
    ("-m physdev --physdev-is-bridged", SERVICE, POD, "TCP", F),
    ("-m recent --rcheck --seconds 60 --name X --mask 255.255.255.255 --rsource", SERVICE, POD, "TCP", F),
    ("-m recent ! --rcheck --seconds 60 --name X --mask 255.255.255.255 --rsource", SERVICE, POD, "TCP", T),
    ("-m recent --set --name X --mask 255.255.255.255 --rsource", SERVICE, POD, "TCP", T),
    ("-m recent --remove --name X --mask 255.255.255.255 --rsource", SERVICE, POD, "TCP", F),
    ("-m set --match-set blocked src", SERVICE, POD, "TCP", D),
    ("-m owner --uid-owner 1000", SERVICE, None, "TCP", D),
    ("-m owner --uid-owner 1000", SERVICE, POD, "TCP", F),
    ("-m limit --limit 3/min", SERVICE, POD, "TCP", D),
    ("-m comment --comment \"-d 1.2.3.4/32 ! -p udp\"", SERVICE, POD, "TCP", T),
    ("-d fd00:96::1/128 -p tcp -m tcp --dport 80", "[fd00:96::1]:80", "fd00:10::7", "TCP", T),
    ("-d fd00:96::2/128", "[fd00:96::1]:80", "fd00:10::7", "TCP", F),
    ("-p ipv6-icmp -m icmp6 --icmpv6-type 128", "[fd00:96::1]:80", "fd00:10::7", "TCP", F),
]  # fmt: skip


@pytest.mark.parametrize(("match", "destination", "source", "protocol", "expected"), IPTABLES)
def test_iptables(match: str, destination: str, source: str | None, protocol: str, expected: str) -> None:
    assert iptables_verdict(match, destination, source, protocol) == expected


NFT = [
    ("", SERVICE, POD, "TCP", T),
    ("ip daddr 10.96.0.1", SERVICE, POD, "TCP", T),
    ("ip daddr != 10.96.0.0/12", SERVICE, POD, "TCP", F),
    ("ip daddr 10.96.0.1", "[fd00:96::1]:80", "fd00:10::7", "TCP", F),
    ("ip daddr != 10.96.0.2", "[fd00:96::1]:80", "fd00:10::7", "TCP", F),
    ("ip6 daddr != fd00:96::2", "[fd00:96::1]:80", "fd00:10::7", "TCP", T),
    ("meta nfproto ipv4", SERVICE, POD, "TCP", T),
    ("meta nfproto ipv4", "[fd00:96::1]:80", "fd00:10::7", "TCP", F),
    ("tcp dport 80", SERVICE, POD, "TCP", T),
    ("tcp dport != 81", SERVICE, POD, "UDP", F),
    ("tcp dport { 22, 80-90 }", SERVICE, POD, "TCP", T),
    ("tcp dport != { 22, 80-90 }", SERVICE, POD, "TCP", F),
    ("tcp dport > 79", SERVICE, POD, "TCP", T),
    ("th dport 80", SERVICE, POD, "SCTP", T),
    ("meta l4proto { tcp, udp } th dport 80", SERVICE, POD, "UDP", T),
    ("meta l4proto { tcp, udp } th dport 80", SERVICE, POD, "SCTP", F),
    ("ip protocol udp", SERVICE, POD, "UDP", T),
    ("tcp dport @web", "10.96.0.1:8010", POD, "TCP", T),
    ("tcp dport @web", "10.96.0.1:81", POD, "TCP", F),
    ("tcp dport != @web", "10.96.0.1:81", POD, "TCP", T),
    ("ip saddr @clients", SERVICE, POD, "TCP", T),
    ("ip saddr @clients", SERVICE, "192.0.2.9", "TCP", T),
    ("ip saddr @clients", SERVICE, "192.0.2.10", "TCP", F),
    ("ip saddr . tcp dport @pairs", SERVICE, POD, "TCP", T),
    ("ip saddr . tcp dport @pairs", SERVICE, "192.0.2.9", "TCP", F),
    ("ip saddr . tcp dport @pairs", "10.96.0.1:444", "192.0.2.9", "TCP", T),
    ("ip saddr . tcp dport { 10.244.0.7 . 80, 10.244.0.8 . 81 }", SERVICE, POD, "TCP", T),
    ("ip saddr . tcp dport { 10.244.0.7 . 81, 10.244.0.8 . 80 }", SERVICE, POD, "TCP", F),
    ("ip saddr @lately", SERVICE, POD, "TCP", F),
    ("ip saddr != @lately", SERVICE, POD, "TCP", T),
    ("ip saddr @missing", SERVICE, POD, "TCP", D),
    ("ct state new", SERVICE, POD, "TCP", T),
    ("ct state established,related", SERVICE, POD, "TCP", F),
    ("ct state != established", SERVICE, POD, "TCP", T),
    ("ct status dnat", SERVICE, POD, "TCP", F),
    ("ct original ip daddr 10.96.0.1", SERVICE, POD, "TCP", T),
    ("ct direction original", SERVICE, POD, "TCP", T),
    ("meta mark & 0x00004000 == 0x00000000", SERVICE, POD, "TCP", T),
    ("meta mark 0x1", SERVICE, POD, "TCP", F),
    ("fib daddr type local", SERVICE, POD, "TCP", F),
    ("fib daddr type local", f"{NODE}:80", POD, "TCP", T),
    ("fib saddr type local", SERVICE, None, "TCP", T),
    ("fib saddr . iif oif missing", SERVICE, POD, "TCP", D),
    ("tcp flags syn", SERVICE, POD, "TCP", T),
    ("tcp flags & (fin | syn | rst | ack) == syn", SERVICE, POD, "TCP", T),
    ("icmp type echo-request", SERVICE, POD, "TCP", F),
    ("icmpv6 type nd-neighbor-solicit", SERVICE, POD, "UDP", F),
    ("meta skuid 1000", SERVICE, None, "TCP", D),
    ("meta skuid != 1000", SERVICE, POD, "TCP", F),
    ("limit rate 10/second", SERVICE, POD, "TCP", D),
    ("ip dscp 0x10", SERVICE, POD, "TCP", D),
]  # fmt: skip


@pytest.mark.parametrize(("match", "destination", "source", "protocol", "expected"), NFT)
def test_nft(match: str, destination: str, source: str | None, protocol: str, expected: str) -> None:
    assert nft_verdict(match, destination, source, protocol) == expected


DEVICES = {"in_device": "eth0", "out_device": "cni0"}


@pytest.mark.parametrize(
    ("iptables", "nftables", "expected"),
    [
        ("-i eth0", 'iifname "eth0"', T),
        ("-i eth+", 'iifname "eth*"', T),
        ("! -i eth0", 'iifname != "eth0"', F),
        ("-o cni0", 'oifname "cni0"', T),
        ("-o docker0", 'oifname "docker0"', F),
        ("! -o docker0", 'oifname != "docker0"', T),
    ],
)
def test_devices(iptables: str, nftables: str, expected: str) -> None:
    assert iptables_verdict(iptables, SERVICE, POD, "TCP", **DEVICES) == expected
    assert nft_verdict(nftables, SERVICE, POD, "TCP", **DEVICES) == expected


@pytest.mark.parametrize(
    ("iptables", "nftables", "expected"),
    [
        ("-i eth0", 'iifname "eth0"', D),
        ("! -o cni0", 'oifname != "cni0"', D),
        ("-i lo", 'iifname "lo"', F),
        ("! -o lo", 'oifname != "lo"', T),
    ],
)
def test_devices_that_nobody_told(iptables: str, nftables: str, expected: str) -> None:
    """They are not lo, by which only a node's own packets to itself go."""
    assert iptables_verdict(iptables, SERVICE, POD, "TCP") == expected
    assert nft_verdict(nftables, SERVICE, POD, "TCP") == expected


def test_own_packets_come_in_by_no_device() -> None:
    rules = nft(
        'table ip t {\nchain c {\ntype filter hook output priority 0; policy accept;\niifname != "eth0" drop\n}\n}'
    )
    assert ask(rules).verdict == "drop"
