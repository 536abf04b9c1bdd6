"""The eBPF Service datapath's programs at devices: a client outside, a node, and a pod, each in a namespace."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labs.cluster import ebpfcompiler, ebpfdevices, ebpfloader
from labs.cluster.ebpfdevices import Watcher, node_facts
from labs.cluster.proxy.ebpf import Behind, Wanted
from tests.labs import ebpf_world
from tests.labs.ebpf_world import World
from tests.tracer.networks import Namespace
from tracer import netprograms
from tracer.errors import BackendUnavailable
from tracer.service_lb import Backend, Frontend, Scope, ServiceFlag

pytestmark = [pytest.mark.root, pytest.mark.bpf]


@pytest.fixture(scope="module", name="world")
def loaded_world() -> Iterator[World]:
    with ebpf_world.loaded() as loaded:
        yield loaded


CLIENT = {4: "172.18.0.9", 6: "fd00:18::9"}
NODE = {4: "172.18.0.2", 6: "fd00:18::2"}
POD = {4: "10.244.0.5", 6: "fd00:244::5"}
GATEWAY = {4: "10.244.0.1", 6: "fd00:244::1"}
SERVICE = {4: "203.0.113.1", 6: "2001:db8::1"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT, TARGET = 80, 8080


class Network:
    """client ── eth0 of the node ── veth of the pod; the client's way to Services leads through the node."""

    def __init__(self, world: World) -> None:
        self.client, self.pod = Namespace(), Namespace()
        self.tables = world.tables()
        node, client, pod = _ends()
        _ip(
            f"link add eth0 type veth peer name eth0 netns {self.client.tid}",
            f"link add veth1 type veth peer name eth0 netns {self.pod.tid}",
            *("link set eth0 up", "link set veth1 up", *node),
        )
        self.client.ip("link set eth0 up", *client)
        self.pod.ip("link set eth0 up", *pod)
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", name).write_text("1")
        watcher = Watcher(world.pins, [4, 6], "routed")
        ebpfloader.open_maps(world.pins)["node"].set(bytes(4), node_facts(watcher.look()).pack())

    def set(self, family: int, *, flags: ServiceFlag, endpoints: bool = True, protocol: str = "TCP") -> None:
        """Have the Service, for those outside and for pods."""
        ip = ipaddress.ip_address(SERVICE[family])
        at = {Frontend(ip, PORT, protocol, scope): Behind(False, flags) for scope in Scope}
        backends = (Backend(ipaddress.ip_address(POD[family]), TARGET, True).pack(),) if endpoints else ()
        self.tables.apply({(family, protocol): Wanted(at, backends, (), 0, ())})

    def call(self, source: Namespace, family: int, to: tuple[str, int] | None = None, port: int = 0) -> str:
        """Connect from a namespace, send and receive; who the pod sees as its client, or an errno.

        `to`: other than the Service. `port`: the client's, if the kernel is not to choose; may be used again at once.
        """

        def listen() -> socket.socket:
            return socket.create_server(("", TARGET), family=FAMILIES[family])

        with self.pod.run(listen) as server:
            server.settimeout(5)
            try:
                client = source.run(lambda: connect(to or (SERVICE[family], PORT), FAMILIES[family], port))
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, "timeout")
            with client:
                connection, address = server.accept()
                with connection:
                    client.sendall(b"ping")
                    assert connection.recv(10) == b"ping"
                    connection.sendall(b"pong")
                    assert client.recv(10) == b"pong"
        return str(address[0])


def connect(to: tuple[str, int], family: socket.AddressFamily, port: int) -> socket.socket:
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(2)
    try:
        # Reset at the end, so that neither side keeps the pair of addresses for a minute.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.bind(("", port))
        client.connect(to)
    except OSError:
        client.close()
        raise
    return client


def _ends() -> tuple[list[str], list[str], list[str]]:
    """Commands of ip(8) for the addresses and routes of the node, the client and the pod."""
    node, client, pod = [], [], []
    for family in (4, 6):
        long, alone, flags = (24, 32, "") if family == 4 else (64, 128, "nodad")
        client.append(f"addr add {CLIENT[family]}/{long} dev eth0 {flags}")
        pod.append(f"addr add {POD[family]}/{alone} dev eth0 {flags}")
        node.append(f"addr add {NODE[family]}/{long} dev eth0 {flags}")
        node.append(f"addr add {GATEWAY[family]}/{alone} dev veth1 {flags}")
        node.append(f"route add {POD[family]}/{alone} dev veth1")
        for address in (SERVICE[family], POD[family]):
            client.append(f"route add {address}/{alone} via {NODE[family]}")
        pod.append(f"route add {GATEWAY[family]}/{alone} dev eth0")
        pod.append(f"route add default via {GATEWAY[family]} dev eth0")
    return node, client, pod


def _ip(*commands: str) -> None:
    """Commands of ip(8) in the calling process' namespace, by one process of it."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands) + "\n", text=True, check=True)


@pytest.mark.parametrize("family", [4, 6])
def test_a_client_outside(world: World, family: int) -> None:
    """Masqueraded or not, refused where there is no endpoint, and answered by nothing where it is to be silent."""

    def act(world: World) -> Any:
        network, found = Network(world), []
        for flags, endpoints in (
            (ServiceFlag(0), True),
            (ServiceFlag.MASQUERADE, True),
            (ServiceFlag(0), False),
            (ServiceFlag.SILENT, False),
        ):
            network.set(family, flags=flags, endpoints=endpoints)
            found.append(network.call(network.client, family))
        return found

    assert world.run(act) == [CLIENT[family], NODE[family], "ECONNREFUSED", "timeout"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("flags", [ServiceFlag(0), ServiceFlag.MASQUERADE])
def test_who_asks_for_the_endpoint_itself_has_nothing_of_an_ended_connections_rewrites(
    world: World, family: int, flags: ServiceFlag
) -> None:
    """With the port that the client had used for the Service before; and the other way round."""

    def act(world: World) -> Any:
        network = Network(world)
        network.set(family, flags=flags)
        return [
            network.call(network.client, family, to, port=40000)
            for to in (None, (POD[family], TARGET), None, (POD[family], TARGET))
        ]

    through = NODE[family] if flags else CLIENT[family]
    assert world.run(act) == [through, CLIENT[family], through, CLIENT[family]]


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_that_calls_itself_through_a_service_sees_the_node(world: World, family: int) -> None:
    """By packets: the pod's process is in no cgroup with programs."""

    def act(world: World) -> Any:
        network = Network(world)
        network.set(family, flags=ServiceFlag(0))
        return network.call(network.pod, family)

    assert world.run(act) == NODE[family]


@pytest.mark.parametrize("family", [4, 6])
def test_datagrams_there_and_back_and_refused_without_endpoints(world: World, family: int) -> None:
    def act(world: World) -> Any:
        network = Network(world)
        network.set(family, flags=ServiceFlag.MASQUERADE, protocol="UDP")
        kind = FAMILIES[family]
        server = network.pod.run(lambda: socket.socket(kind, socket.SOCK_DGRAM))
        server.bind((POD[family], TARGET))
        server.settimeout(5)
        client = network.client.run(lambda: socket.socket(kind, socket.SOCK_DGRAM))
        client.settimeout(5)
        client.connect((SERVICE[family], PORT))
        client.send(b"ping")
        data, sender = server.recvfrom(10)
        server.sendto(b"pong", sender)
        answer = client.recv(10)
        network.set(family, flags=ServiceFlag(0), endpoints=False, protocol="UDP")
        refused = network.client.run(lambda: socket.socket(kind, socket.SOCK_DGRAM))
        refused.settimeout(5)
        refused.connect((SERVICE[family], PORT))
        refused.send(b"x" * 100)
        try:
            refused.recv(10)
        except OSError as error:
            code = error.errno
        return [data.decode(), str(sender[0]), answer.decode(), code]

    assert world.run(act) == ["ping", NODE[family], "pong", errno.ECONNREFUSED]


def test_source_ranges(world: World) -> None:
    def act(world: World) -> Any:
        network, found = Network(world), []
        ip = ipaddress.ip_address(SERVICE[4])
        backends = (Backend(ipaddress.ip_address(POD[4]), TARGET, True).pack(),)
        for text in ("172.18.0.0/24", "192.0.2.0/24"):
            at = {Frontend(ip, PORT, "TCP", scope): Behind(False, ServiceFlag.HAS_RANGES) for scope in Scope}
            network.tables.apply({"web": Wanted(at, backends, (), 0, (ipaddress.ip_network(text),))})
            found.append(network.call(network.client, 4))
        return found

    assert world.run(act) == [CLIENT[4], "timeout"]


def test_ports_of_ended_connections_are_given_anew_and_those_of_living_ones_are_not() -> None:
    """There are eight of them. Many more connections follow each other; of twelve at once eight find a port."""

    def act(world: World) -> Any:
        network = Network(world)
        network.set(4, flags=ServiceFlag.MASQUERADE)
        ended = [network.call(network.client, 4) for _ in range(40)]
        with network.pod.run(lambda: socket.create_server(("", TARGET))):
            living = []
            for _ in range(12):
                with contextlib.suppress(TimeoutError):
                    living.append(network.client.run(lambda: socket.create_connection((SERVICE[4], PORT), timeout=0.5)))
            return [set(ended) == {NODE[4]}, len(living)]

    with ebpf_world.loaded({**ebpfcompiler.DEFINES, "FIRST_SNAT_PORT": 65528}) as few:
        ended, living = few.run(act)
    assert ended
    assert 5 <= living <= 8, "which of eight are tried is chance"


def _filters(device: str, hook: str) -> str:
    return subprocess.run(["tc", "filter", "show", "dev", device, hook], capture_output=True, text=True).stdout


def _act_with_filters(world: World) -> list[str]:
    """What tc shows of eth0 and veth1 with the filters, and once they are removed; veth1 has one of somebody else."""
    seen = []
    with pytest.MonkeyPatch.context() as monkeypatch:

        def refuse(*_: Any) -> int:
            raise BackendUnavailable("as before Linux 6.6")

        monkeypatch.setattr(netprograms, "link_to_device", refuse)
        _ip("link add eth0 type veth peer name veth0", "link add veth1 type veth peer name veth2")
        Watcher(world.pins, [4], "routed").look()
    other = [
        "tc",
        "filter",
        "add",
        "dev",
        "veth1",
        "egress",
        "prio",
        "5",
        "bpf",
        "bytecode",
        "1,6 0 0 0,",
        "flowid",
        "1:1",
    ]
    subprocess.run(other, check=True)
    for _ in range(2):
        seen += [_filters(device, hook) for device in ("eth0", "veth1") for hook in ("ingress", "egress")]
        ebpfdevices.remove_filters()
    seen.append(subprocess.run(["tc", "qdisc"], capture_output=True, text=True).stdout)
    return seen


def test_filters_are_removed_and_nobody_elses(world: World) -> None:
    eth0, eth0_out, veth1, veth1_out, *after, qdiscs = world.run(_act_with_filters)
    assert ("lb_from_outside" in eth0, "lb_from_pod" in veth1) == (True, True)
    assert ("lb_to_device" in eth0_out, "lb_to_device" in veth1_out) == (True, True)
    assert after[:3] == ["", "", ""]
    assert ("lb_" in after[3], "pref 5 bpf" in after[3]) == (False, True)
    assert [line.split()[4] for line in qdiscs.splitlines() if "clsact" in line] == ["veth1"]
