"""Asking the kernel's routing, in a namespace: kinds of addresses, devices, sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tracer.networks import Namespace, namespaces
from tracer.errors import K8snetError, MissingError
from tracer.rules.model import address_number, address_text
from tracer.rules.routing import ToldRouting, special_kind
from tracer.rules.rtnetlink import LiveRouting


@pytest.fixture(scope="module")
def node() -> Iterator[Namespace]:
    with namespaces(2) as (node, pod):
        node.sh(
            f"ip link add cali1 type veth peer name eth0 netns {pod.tid}",
            "ip link set cali1 up",
            "ip address add 172.18.0.2/24 dev cali1",
            "ip address add 172.18.0.3/32 dev lo",
            "ip route add 10.244.0.0/16 via 172.18.0.9",
            "ip route add blackhole 10.245.0.0/16",
            "ip route add unreachable 10.246.0.0/16",
            "ip route add prohibit 10.247.0.0/16",
            "ip route add local 10.96.0.0/24 dev lo",
            "ip -6 address add fd00:18::2/64 dev cali1 nodad",
            "ip -6 route add fd00:244::/64 via fd00:18::9",
        )
        yield node


@pytest.mark.root
@pytest.mark.parametrize(
    ("address", "kind", "device", "source"),
    [
        ("172.18.0.2", "local", "lo", "172.18.0.2"),
        ("172.18.0.3", "local", "lo", "172.18.0.3"),
        ("127.5.5.5", "local", "lo", "127.0.0.1"),
        ("10.96.0.77", "local", "lo", "10.96.0.77"),
        ("172.18.0.200", "unicast", "cali1", "172.18.0.2"),
        ("10.244.0.7", "unicast", "cali1", "172.18.0.2"),
        ("172.18.0.255", "broadcast", "cali1", "172.18.0.2"),
        ("10.245.0.1", "blackhole", None, None),
        ("10.246.0.1", "unreachable", None, None),
        ("10.247.0.1", "prohibit", None, None),
        ("192.0.2.1", "unreachable", None, None),
        ("fd00:18::2", "local", "lo", "fd00:18::2"),
        ("::1", "local", "lo", "::1"),
        ("fd00:18::7", "unicast", "cali1", "fd00:18::2"),
        ("fd00:244::7", "unicast", "cali1", "fd00:18::2"),
        ("2001:db8::1", "unreachable", None, None),
    ],
)
def test_what_the_kernel_says(node: Namespace, address: str, kind: str, device: str | None, source: str | None) -> None:
    family = "ip6" if ":" in address else "ip"
    routing = LiveRouting(node.path, family)
    number = address_number(address)
    found = routing.source(number)
    assert (routing.kind(number), routing.device(number), routing.arrival(number)) == (kind, device, device)
    assert (None if found is None else address_text(found, family)) == source
    routing.close()


@pytest.mark.root
def test_a_namespace_that_is_gone() -> None:
    with namespaces(1) as (gone,):
        path = gone.path
    with pytest.raises(MissingError):
        LiveRouting(path, "ip")


@pytest.mark.root
def test_a_kernel_that_does_not_answer(node: Namespace) -> None:
    routing = LiveRouting(node.path, "ip")
    routing.close()
    with pytest.raises(K8snetError, match="the kernel's routing can't be asked"):
        routing.kind(1)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "local"),
        ("0.0.0.0", "broadcast"),
        ("255.255.255.255", "broadcast"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", None),
        ("10.0.0.1", None),
        ("::1", "local"),
        ("ff02::1", "multicast"),
        ("fe80::1", None),
    ],
)
def test_addresses_that_mean_the_same_everywhere(address: str, kind: str | None) -> None:
    assert special_kind("ip6" if ":" in address else "ip", address_number(address)) == kind


def test_addresses_that_were_told() -> None:
    node, other = address_number("172.18.0.2"), address_number("172.18.0.3")
    some = ToldRouting("ip", ["172.18.0.2", "fc00::2"], in_device="eth0", out_device="cni0")
    assert [some.kind(address) for address in (node, other)] == ["local", None]
    assert [some.device(address) for address in (node, other)] == ["lo", "cni0"]
    assert [some.source(address) for address in (node, other)] == [node, node]
    assert some.arrival(other) == "eth0"
    every = ToldRouting("ip", ["172.18.0.2"], complete=True)
    assert every.kind(other) == "unicast"
    assert ToldRouting("ip").source(other) is None
