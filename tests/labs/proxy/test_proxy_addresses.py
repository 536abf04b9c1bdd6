"""labs.cluster.proxy.addresses: what Go prints."""

from __future__ import annotations

import pytest

from labs.cluster.proxy.addresses import canonical, canonical_network, contains, join_host_port, of_family


@pytest.mark.parametrize(
    ("text", "family", "expected"),
    [
        ("10.96.0.1", 4, "10.96.0.1"),
        ("010.096.00.01", 4, "10.96.0.1"),  # ParseIPSloppy: decimal, not octal
        ("::ffff:10.96.0.1", 4, "10.96.0.1"),  # net.IP prints a mapped address as IPv4
        ("::ffff:10.96.0.1", 6, None),
        ("FD00:0010:0:0:0:0:0:1", 6, "fd00:10::1"),
        ("fd00:0:0:1::", 6, "fd00:0:0:1::"),
        ("::1.2.3.4", 6, "::102:304"),
        ("::1", 4, None),
        ("10.96.0.1", 6, None),
        ("10.96.0.256", 4, None),
        ("1.2.3", 4, None),
        ("fe80::1%eth0", 6, None),
        ("None", 4, None),
        ("", 4, None),
        ("1.2.3.4\0", 4, None),
    ],
)
def test_canonical(text: str, family: int, expected: str | None) -> None:
    assert canonical(text, family) == expected


@pytest.mark.parametrize(
    ("text", "family", "expected"),
    [
        ("10.1.2.3/8", 4, "10.0.0.0/8"),
        (" 10.0.0.0/8\n", 4, "10.0.0.0/8"),  # the API's validation lets blanks pass
        ("0.0.0.0/0", 4, "0.0.0.0/0"),
        ("fd00::1/64", 6, "fd00::/64"),
        ("fd00::1/64", 4, None),
        ("10.0.0.0", 4, None),
        ("10.0.0.0/33", 4, None),
        ("10.0.0.0/255.0.0.0", 4, None),
        ("10.0.0.0/-1", 4, None),
        ("", 4, None),
    ],
)
def test_canonical_network(text: str, family: int, expected: str | None) -> None:
    assert canonical_network(text, family) == expected


def test_of_family_keeps_order_and_drops_rubbish() -> None:
    assert of_family(["192.0.2.9", "rubbish", "2001:db8::1", "", "192.0.2.1"], 4) == ("192.0.2.9", "192.0.2.1")


def test_contains() -> None:
    assert contains("172.18.0.0/16", "172.18.0.2")
    assert not contains("10.0.0.0/8", "172.18.0.2")


def test_join_host_port() -> None:
    assert join_host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert join_host_port("fd00::1", 80) == "[fd00::1]:80"
