"""The eBPF Service datapath in the kernel, with sockets of one process: shares, affinity, updates under traffic."""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from labs.cluster import ebpfcompiler, ebpfloader
from labs.cluster.proxy.ebpf import Behind, Wanted
from labs.cluster.proxy.ebpf_maps import MapFull
from tests.labs import ebpf_world
from tests.labs.ebpf_world import World
from tracer.probe import chisquare
from tracer.service_lb import Backend, Frontend, Scope

pytestmark = [pytest.mark.root, pytest.mark.bpf]


@pytest.fixture(scope="module", name="world")
def loaded_world() -> Iterator[World]:
    with ebpf_world.loaded() as loaded:
        yield loaded


SERVICE = ("10.96.0.1", 80)
CONNECTIONS = 3000
UPDATES = 100_000


def service(*ports: int, protocol: str = "TCP", affinity: int = 0) -> Wanted:
    """The Service, with endpoints on loopback at `ports`."""
    at = Frontend(ipaddress.ip_address(SERVICE[0]), SERVICE[1], protocol, Scope.SOCKET)
    backends = tuple(Backend(ipaddress.ip_address("127.0.0.1"), port, True).pack() for port in ports)
    return Wanted({at: Behind(local=False)}, backends, (), affinity, ())


def serve(count: int) -> list[int]:
    """Start a process that accepts connections on `count` ports and says on each which port it is; gives the ports."""
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    if os.fork() == 0:
        try:
            _serve(listeners)
        finally:
            os._exit(0)
    for listener in listeners:
        listener.close()
    return ports


def _serve(listeners: list[socket.socket]) -> None:
    ebpf_world.linux.set_parent_death_signal(signal.SIGKILL)
    selector = selectors.DefaultSelector()
    for listener in listeners:
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            connection, _ = key.fileobj.accept()  # type: ignore[union-attr]
            connection.sendall(connection.getsockname()[1].to_bytes(2, "big"))
            connection.close()


def call() -> int:
    """Which endpoint answers under the Service's address."""
    with socket.create_connection(SERVICE, timeout=5) as client:
        assert client.getpeername() == SERVICE, "the program sees what it asked for"
        port = int.from_bytes(client.recv(2), "big")
        # Without waiting: thousands of these would use up the ports.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return port


def test_each_endpoint_gets_its_share(world: World) -> None:
    def act(world: World) -> Any:
        ports = serve(3)
        world.tables().apply({"web": service(*ports)})
        world.enter()
        seen = Counter(call() for _ in range(CONNECTIONS))
        return [seen[port] for port in ports]

    counts = world.run(act)
    assert sum(counts) == CONNECTIONS
    p_value = chisquare.test(counts, [CONNECTIONS / 3] * 3).p_value
    assert p_value > 1e-6


def test_a_program_outside_of_the_cgroup_is_left_alone(world: World) -> None:
    def act(world: World) -> Any:
        world.tables().apply({"web": service(*serve(1))})
        try:
            call()
        except OSError as error:
            return error.errno
        return 0

    assert world.run(act) == errno.ENETUNREACH


def test_affinity_holds_until_its_time_is_over_or_its_endpoint_gone(world: World) -> None:
    def act(world: World) -> Any:
        ports = serve(8)
        tables = world.tables()
        tables.apply({"web": service(*ports, affinity=1)})
        world.enter()
        first = {call() for _ in range(20)}
        (own,) = first
        tables.apply({"web": service(*(port for port in ports if port != own), affinity=1)})
        second = {call() for _ in range(20)}
        tables.apply({"web": service(*ports, affinity=1)})
        third = {call() for _ in range(20)}
        later = set()
        for _ in range(6):
            time.sleep(1.05)
            later.add(call())
        return [own, len(second), own in second, second == third, len(later)]

    _, count, in_second, same, later = world.run(act)
    assert (count, in_second, same) == (1, False, True)
    assert later > 1, "six times the same of eight: once in thirty thousand"


def test_without_endpoints_connect_is_refused_and_a_datagram_let_go(world: World) -> None:
    def act(world: World) -> Any:
        world.tables().apply({"tcp": service(), "udp": service(protocol="UDP")})
        world.enter()
        found = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                socket.socket(type=kind).connect(SERVICE)
            except OSError as error:
                found.append(error.errno)
        return found

    assert world.run(act) == [errno.ECONNREFUSED, errno.ECONNREFUSED]


def test_a_slot_that_stays_empty_is_refused_and_never_let_through(world: World) -> None:
    """What no proxy writes: a Service that promises one endpoint more than its list has."""

    def act(world: World) -> Any:
        world.tables().apply({"web": service(*serve(1))})
        slots = ebpfloader.open_maps(world.pins)["slots"]
        for key, _ in list(slots.items()):
            slots.delete(key)
        world.enter()
        try:
            socket.create_connection(SERVICE, timeout=1)
        except OSError as error:
            return error.errno
        return 0

    assert world.run(act) == errno.ECONNREFUSED


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("connected", [True, False])
def test_an_answer_to_a_datagram_comes_from_where_it_was_sent(world: World, family: int, connected: bool) -> None:
    """For a socket of IPv4, and for one of IPv6 that calls an IPv4 address."""

    def act(world: World) -> Any:
        server = socket.socket(type=socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        world.tables().apply({"dns": service(server.getsockname()[1], protocol="UDP")})
        world.enter()
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.settimeout(5)
        address = SERVICE if family == socket.AF_INET else (f"::ffff:{SERVICE[0]}", SERVICE[1], 0, 0)
        if connected:
            client.connect(address)
            client.send(b"hello")
        else:
            client.sendto(b"hello", address)
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)
        answer, where = client.recvfrom(100)
        return [answer.decode(), list(where), list(address)]

    answer, where, address = world.run(act)
    assert answer == "hello"
    assert where == address


def test_a_socket_keeps_its_endpoint_for_all_of_its_datagrams(world: World) -> None:
    def act(world: World) -> Any:
        servers = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(3)]
        for server in servers:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
        world.tables().apply({"dns": service(*(one.getsockname()[1] for one in servers), protocol="UDP")})
        world.enter()
        spread = []
        for _ in range(40):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                for _ in range(3):
                    client.sendto(b"x", SERVICE)
            spread.append([_waiting(server) for server in servers])
        return spread

    spread = world.run(act)
    assert all(sorted(counts) == [0, 0, 3] for counts in spread)
    assert all(any(counts[index] for counts in spread) for index in range(3))


def _waiting(server: socket.socket) -> int:
    count = 0
    while True:
        try:
            server.recv(10)
        except BlockingIOError:
            return count
        count += 1


def test_no_connection_fails_while_endpoints_come_and_go(world: World, patience: float) -> None:
    """100,000 updates (fewer in an emulated guest) under traffic at full rate: the servers live all the time, so every
    connection has somewhere to go."""
    wanted = round(UPDATES / patience)

    def act(world: World) -> Any:
        ports = serve(8)
        tables = world.tables()
        tables.apply({"web": service(*ports)})
        reader, writer = os.pipe()
        stop, ask_stop = os.pipe()
        for _ in range(2):
            if os.fork() == 0:
                os.close(ask_stop)
                _call_until(world, stop, writer)
        os.close(writer)
        chance, updates = random.Random(1), 0
        while updates < wanted:
            updates += tables.apply({"web": service(*chance.sample(ports, chance.randint(1, len(ports))))})
        os.close(ask_stop)
        os.close(stop)
        with os.fdopen(reader) as said:
            results = [line.split() for line in said.read().splitlines()]
        return [updates, sum(int(good) for good, _ in results), sum(int(bad) for _, bad in results), len(results)]

    updates, good, bad, clients = world.run(act)
    assert (updates >= wanted, clients, bad) == (True, 2, 0)
    assert good > 1000 / patience


def _call_until(world: World, stop: int, writer: int) -> None:
    world.enter()
    good = bad = 0
    with selectors.DefaultSelector() as selector:
        selector.register(stop, selectors.EVENT_READ)
        while not selector.select(0):
            try:
                call()
                good += 1
            except OSError:
                bad += 1
    os.write(writer, f"{good} {bad}\n".encode())
    os._exit(0)


def test_full_maps_are_an_error_and_what_was_there_goes_on() -> None:
    def act(world: World) -> Any:
        ports = serve(1)
        tables = world.tables()
        tables.apply({"web": service(*ports)})
        many = Frontend(ipaddress.ip_address("10.96.0.2"), 80, "TCP", Scope.SOCKET)
        backends = tuple(Backend(ipaddress.ip_address("127.0.0.1"), port, True).pack() for port in range(1, 100))
        try:
            tables.apply({"big": Wanted({many: Behind(local=False)}, backends, (), 0, ())})
        except MapFull as error:
            words = str(error)
        world.enter()
        try:
            socket.create_connection(("10.96.0.2", 80), timeout=1)
        except OSError as error:
            code = error.errno
        return [words, call() == ports[0], code]

    with ebpf_world.loaded({**ebpfcompiler.DEFINES, "MAX_SLOTS": 50}) as small:
        words, works, code = small.run(act)
    assert words == "the map members of the Service datapath is full: 99 more entries, room for 49"
    assert works
    assert code == errno.ENETUNREACH, "of the Service that found no room there is nothing at all"


def test_maps_tell_what_is_in_them(world: World) -> None:
    """For `bpftool map`, as after BCC itself: what was compiled elsewhere has its types with it."""

    def act(world: World) -> Any:
        return [opened.info.value_type for opened in ebpfloader.open_maps(world.pins).values()]

    types = world.run(act)
    assert len(types) == len(ebpfloader.MAPS)
    assert all(types)


def test_loading_again_keeps_what_the_maps_hold_and_misses_no_connection(world: World) -> None:
    """What a proxy does that starts anew: another program in the place of the old one, the same maps."""

    def act(world: World) -> Any:
        ports = serve(2)
        world.tables().apply({"web": service(*ports)})
        reader, writer = os.pipe()
        stop, ask_stop = os.pipe()
        if os.fork() == 0:
            os.close(ask_stop)
            _call_until(world, stop, writer)
        os.close(writer)
        ebpfloader.load(world.pins, world.cgroup, ebpfcompiler.compiled())
        world.tables().apply({"web": service(*ports)})
        os.close(ask_stop)
        os.close(stop)
        with os.fdopen(reader) as said:
            good, bad = said.read().split()
        return [int(good), int(bad)]

    good, bad = world.run(act)
    assert (good > 100, bad) == (True, 0)
