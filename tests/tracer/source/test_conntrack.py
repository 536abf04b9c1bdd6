"""tracer.source.conntrack on real packets: client — router (translates) — server, every namespace made by the test."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tracer.networks import Namespace, namespaces, routed
from tracer import conntrack, ctnetlink, netns
from tracer.errors import BackendUnavailable, K8snetError, MissingError, NotRoot
from tracer.events import Flag, Outcome, RawConnection, Shape
from tracer.source import conntrack as source_module
from tracer.source.conntrack import ConntrackSource

pytestmark = [pytest.mark.root, pytest.mark.backend("conntrack")]

BACKENDS = ("10.0.2.2", "10.0.2.3", "10.0.2.4")
BACKENDS6 = ("fd00:2::2", "fd00:2::3", "fd00:2::4")
SERVICE, SERVICE6, MASQUERADED = "10.96.0.1", "fd00:96::1", "10.96.0.2"


class Network:
    """The three namespaces, with a Service of three backends in the router, TCP port 80 and UDP port 53."""

    def __init__(self, client: Namespace, router: Namespace, server: Namespace) -> None:
        self.client, self.router, self.server = client, router, server
        router.iptables(
            *_service(SERVICE, BACKENDS),
            *_service(MASQUERADED, BACKENDS),
            f"-A POSTROUTING -m conntrack --ctorigdst {MASQUERADED} -j MASQUERADE",
            table="nat",
        )
        router.iptables(*_service(SERVICE6, [f"[{ip}]" for ip in BACKENDS6]), table="nat", v6=True)

    def source(self, *beside: Namespace, **options: object) -> ConntrackSource:
        """A source whose own namespace is the router's; it hears nothing of what else this machine does."""
        paths = [one.path for one in beside]
        return self.router.run(lambda: ConntrackSource(paths, **{"discover": None, **options}))  # type: ignore[arg-type]


def _service(ip: str, backends: tuple[str, ...] | list[str]) -> Iterator[str]:
    """Rules that give each backend its turn, as kube-proxy lays them out but with turns instead of chance."""
    for protocol, port, target in (("tcp", 80, 8080), ("udp", 53, 5353)):
        for left, backend in zip((3, 2, 1), backends, strict=True):
            turn = f"-m statistic --mode nth --every {left} --packet 0" if left > 1 else ""
            match = f"-d {ip} -p {protocol} --dport {port} {turn}"
            yield f"-A PREROUTING {match} -j DNAT --to-destination {backend}:{target}"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with routed() as (client, router, server):
        yield Network(client, router, server)


@pytest.fixture(scope="module")
def tracked_everywhere() -> Iterator[Network]:
    """As `network`, but every namespace tracks its packets."""
    with routed() as (client, router, server):
        for one in (client, server):
            one.iptables("-A INPUT -m conntrack --ctstate NEW -j ACCEPT")
        yield Network(client, router, server)


class Servers:
    """TCP servers that say which address they were reached at, and UDP ones that echo."""

    def __init__(self, server: Namespace) -> None:
        addresses = BACKENDS + BACKENDS6
        self._stack = contextlib.ExitStack()
        self._tcp = [self._open(server, lambda ip=ip: _listen(ip)) for ip in addresses]
        self._udp = [self._open(server, lambda ip=ip: _bind(ip)) for ip in addresses]
        self._threads = [threading.Thread(target=_greet, args=(one,), daemon=True) for one in self._tcp]
        self._threads += [threading.Thread(target=_echo, args=(one,), daemon=True) for one in self._udp]
        for thread in self._threads:
            thread.start()

    def _open(self, server: Namespace, function: Callable[[], socket.socket]) -> socket.socket:
        return self._stack.enter_context(server.run(function))

    def close(self) -> None:
        for one in (*self._tcp, *self._udp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._stack.close()


def _listen(ip: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return socket.create_server((ip, 8080), family=family)


def _bind(ip: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ip, 5353))
    return sock


def _greet(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            accepted, _ = listening.accept()
            with accepted:
                accepted.sendall(accepted.getsockname()[0].encode())


def _echo(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = sock.recvfrom(100)
            if peer is None:  # shut down
                return
            sock.sendto(data, peer)


@pytest.fixture(scope="module")
def servers(network: Network) -> Iterator[None]:
    running = Servers(network.server)
    yield
    running.close()


@pytest.fixture(scope="module")
def servers_everywhere(tracked_everywhere: Network) -> Iterator[None]:
    running = Servers(tracked_everywhere.server)
    yield
    running.close()


def ask(client: Namespace, ip: str, port: int = 80) -> tuple[int, str]:
    """Connect, and return our port and the address that the server says it was reached at."""
    with client.run(lambda: socket.create_connection((ip, port), timeout=10)) as sock:
        sport = sock.getsockname()[1]
        return sport, sock.recv(100).decode()


def send(client: Namespace, ip: str, port: int = 53, *, answered: bool = True) -> int:
    """Send a datagram, wait for its echo if there is one, and return our port."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with client.run(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(10)
        sock.sendto(b"ask", (ip, port))
        if answered:
            assert sock.recv(100) == b"ask"
        return int(sock.getsockname()[1])


def gather(source: ConntrackSource, count: int, seconds: float = 5.0) -> list[tuple[RawConnection, Shape]]:
    """Read until there are `count` records, and a little longer for those that should not be."""
    records: list[tuple[int, int, int, bytes]] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += source.read(0.05)
    records += source.read(0.3)
    return [(RawConnection(*record), Shape.unpack(record[3])) for record in records]


def text(shape: Shape, address: bytes) -> str:
    """An address of a shape as text."""
    return socket.inet_ntop(
        socket.AF_INET if shape.family == 4 else socket.AF_INET6, address[: 4 if shape.family == 4 else 16]
    )


def outcomes(records: list[tuple[RawConnection, Shape]]) -> list[Outcome]:
    return [Outcome(shape.outcome) for _, shape in records]


@pytest.mark.usefixtures("servers")
class TestRecords:
    @pytest.mark.parametrize("service", [SERVICE, SERVICE6, MASQUERADED])
    def test_37_connections(self, network: Network, service: str) -> None:
        """As many records, each with the backend that conntrack holds and that answered."""
        with network.source() as source:
            before = time.time_ns()
            said = dict(ask(network.client, service) for _ in range(37))
            records = gather(source, 37)
            after = time.time_ns()
            held = {
                entry.orig.sport: entry.reply.src_text
                for entry in conntrack.dump(network.router.path, protocol=6)
                if entry.orig.dst_text == service
            }
        assert len(said) == len(records) == 37
        assert set(said.values()) == set(BACKENDS6 if ":" in service else BACKENDS)
        snat = Flag.SNAT if service == MASQUERADED else 0
        for raw, shape in records:
            assert text(shape, shape.backend) == said[raw.sport] == held[raw.sport]
            assert text(shape, shape.source) == ("fd00:1::2" if ":" in service else "10.0.1.2")
            assert (text(shape, shape.destination), shape.dport, shape.bport) == (service, 80, 8080)
            assert shape.flags == Flag.NO_PROCESS | Flag.DNAT | snat
            assert (shape.netns, shape.nat_netns, shape.pid) == (0, network.router.inode, 0)
            assert (shape.protocol, shape.outcome, shape.errno) == (6, Outcome.ESTABLISHED, 0)
            assert before <= raw.time_ns <= after
        assert source.losses() == {}

    @pytest.mark.parametrize("service", [SERVICE, SERVICE6, MASQUERADED])
    def test_answered_datagrams(self, network: Network, service: str) -> None:
        with network.source() as source:
            ports = {send(network.client, service) for _ in range(7)}
            records = gather(source, 7)
        assert {raw.sport for raw, _ in records} == ports
        assert outcomes(records) == [Outcome.ANSWERED] * 7
        assert {shape.protocol for _, shape in records} == {17}
        expected = BACKENDS6 if ":" in service else BACKENDS
        assert {(text(shape, shape.backend), shape.bport) for _, shape in records} == {(ip, 5353) for ip in expected}

    def test_unanswered_datagrams(self, network: Network) -> None:
        network.router.iptables(
            "-A PREROUTING -d 10.96.0.1 -p udp --dport 54 -j DNAT --to-destination 10.0.2.2:5454", table="nat"
        )
        with network.source(udp_patience=0.5) as source:
            port = send(network.client, SERVICE, 54, answered=False)
            began = time.monotonic()
            ((raw, shape),) = gather(source, 1)
            assert 0.4 < time.monotonic() - began < 2.5
        assert (raw.sport, raw.latency_ns, shape.outcome) == (port, -1, Outcome.SENT)
        assert text(shape, shape.backend) == "10.0.2.2"

    def test_a_datagram_flow_is_told_once(self, network: Network) -> None:
        """However many packets follow; assured after some, the kernel sends more updates."""
        with (
            network.source(udp_patience=0.3) as source,
            network.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock,
        ):
            sock.settimeout(10)
            for _ in range(5):
                sock.sendto(b"ask", (SERVICE, 53))
                sock.recv(100)
                time.sleep(0.1)
            assert outcomes(gather(source, 1)) == [Outcome.ANSWERED]

    def test_untranslated(self, network: Network) -> None:
        with network.source() as source:
            ask(network.client, "10.0.2.3", 8080)
            ((_, shape),) = gather(source, 1)
        assert (shape.flags, shape.backend, shape.bport) == (Flag.NO_PROCESS, bytes(16), 0)
        assert shape.nat_netns == network.router.inode

    def test_refused(self, network: Network) -> None:
        network.router.iptables(
            "-A PREROUTING -d 10.96.0.1 -p tcp --dport 81 -j DNAT --to-destination 10.0.2.2:8181", table="nat"
        )
        with network.source() as source:
            for _ in range(7):
                with pytest.raises(ConnectionRefusedError):
                    ask(network.client, SERVICE, 81)
            records = gather(source, 7)
        assert outcomes(records) == [Outcome.REFUSED] * 7
        assert {(text(shape, shape.backend), shape.bport) for _, shape in records} == {("10.0.2.2", 8181)}

    def test_reset_during_the_handshake(self, network: Network) -> None:
        rule = "INPUT -p tcp --sport 8080 --tcp-flags SYN,ACK SYN,ACK -j REJECT --reject-with tcp-reset"
        network.client.iptables(f"-A {rule}")
        try:
            with network.source() as source, network.client.run(socket.socket) as sock:
                sock.setblocking(False)
                sock.connect_ex(("10.0.2.4", 8080))
                records = gather(source, 1)
        finally:
            network.client.iptables(f"-D {rule}")
        assert outcomes(records[:1]) == [Outcome.RESET]

    def test_timeout(self, network: Network) -> None:
        """An entry that nothing answers dies of old age; here that is one second."""
        network.server.iptables("-A INPUT -p tcp --dport 8282 -j DROP")
        network.router.sysctl("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", "1")
        try:
            with network.source() as source:
                with network.client.run(socket.socket) as sock:
                    sock.setblocking(False)
                    sock.connect_ex(("10.0.2.2", 8282))
                assert gather(source, 1, seconds=0.2) == []
                time.sleep(1.5)
                list(conntrack.dump(network.router.path))  # whoever looks at an entry that has expired, removes it
                ((raw, shape),) = gather(source, 1)
        finally:
            network.router.sysctl("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", "120")
        assert (shape.outcome, raw.latency_ns) == (Outcome.TIMEOUT, -1)

    def test_an_entry_that_is_deleted(self, network: Network) -> None:
        network.server.iptables("-A INPUT -p tcp --dport 8383 -j DROP")
        with network.source() as source:
            with network.client.run(socket.socket) as sock:
                sock.setblocking(False)
                sock.connect_ex(("10.0.2.2", 8383))
            network.router.sh("conntrack -D -p tcp --dport 8383")
            assert outcomes(gather(source, 1)) == [Outcome.UNKNOWN]

    def test_sctp(self, network: Network) -> None:
        """Entries made by hand: not every kernel has SCTP sockets."""
        tuples = "-p sctp -s 10.0.1.2 -d 10.96.0.9 --sport 1001 --dport 90 --orig-vtag 1 --reply-vtag 2"
        with network.source() as source:
            network.router.sh(
                f"conntrack -I {tuples} --dst-nat 10.0.2.4:9090 --timeout 9 --state COOKIE_WAIT",
                f"conntrack -U {tuples} --state ESTABLISHED",
            )
            ((raw, shape),) = gather(source, 1)
        assert (raw.sport, shape.protocol, shape.outcome) == (1001, 132, Outcome.ESTABLISHED)
        assert (text(shape, shape.destination), text(shape, shape.backend)) == ("10.96.0.9", "10.0.2.4")

    def test_other_protocols_are_skipped(self, network: Network) -> None:
        with network.source() as source:
            network.client.sh("ping -c 2 -i 0.1 10.0.2.2", "ping -c 2 -i 0.1 fd00:2::2")
            ask(network.client, SERVICE)
            assert outcomes(gather(source, 1)) == [Outcome.ESTABLISHED]

    def test_two_sources_at_once(self, network: Network) -> None:
        with network.source() as one, network.source() as other:
            ports = [ask(network.client, SERVICE)[0] for _ in range(7)]
            seen = [[raw.sport for raw, _ in gather(source, 7)] for source in (one, other)]
        assert seen == [ports, ports]

    def test_what_was_before_is_not_told(self, network: Network) -> None:
        sock = network.client.run(lambda: socket.create_connection((SERVICE, 80)))
        with network.source() as source:
            assert sock.recv(100)
            sock.close()
            assert gather(source, 0) == []

    def test_a_reader_that_only_looks_now_and_then(self, network: Network) -> None:
        """As the trace reads: read(0) gives all that ended before it."""
        with network.source() as source:
            assert source.read(0) == []
            for count in range(1, 8):
                ask(network.client, SERVICE)
                records = source.read(0)
                assert len(records) == 1, count


@pytest.mark.usefixtures("servers_everywhere")
class TestSeveralNamespaces:
    @pytest.mark.parametrize("service", [SERVICE, MASQUERADED])
    def test_37_connections_through_three(self, tracked_everywhere: Network, service: str) -> None:
        """Each is tracked three times and told once, by the namespace that translated it."""
        network = tracked_everywhere
        with network.source(network.client, network.server) as source:
            said = dict(ask(network.client, service) for _ in range(37))
            records = gather(source, 37)
            counts = [conntrack.count(one.path) for one in (network.client, network.router, network.server)]
        assert min(counts) >= 37
        assert {raw.sport: text(shape, shape.backend) for raw, shape in records} == said
        assert len(records) == 37
        assert {shape.nat_netns for _, shape in records} == {network.router.inode}
        assert {text(shape, shape.destination) for _, shape in records} == {service}

    def test_datagrams_refused_and_untranslated(self, tracked_everywhere: Network) -> None:
        network = tracked_everywhere
        with network.source(network.client, network.server, udp_patience=0.5) as source:
            send(network.client, SERVICE)
            with pytest.raises(ConnectionRefusedError):
                ask(network.client, "10.0.2.2", 9)
            ask(network.client, "10.0.2.2", 8080)
            send(network.client, "10.0.2.2", 9, answered=False)
            records = gather(source, 4)
        assert outcomes(records) == [Outcome.ANSWERED, Outcome.REFUSED, Outcome.ESTABLISHED, Outcome.SENT]
        inodes = {one.inode for one in (network.client, network.router, network.server)}
        assert {shape.nat_netns for _, shape in records[1:]} <= inodes

    def test_one_that_comes_and_goes(self, tracked_everywhere: Network) -> None:
        network = tracked_everywhere
        found = {network.client.inode: network.client.path}
        own = network.router.inode
        with network.source(discover=lambda: dict(found)) as source:
            assert source.namespaces == {own, network.client.inode}
            found[network.server.inode] = network.server.path
            _until(lambda: network.server.inode in source.namespaces)
            ask(network.client, SERVICE)
            assert len(gather(source, 1)) == 1
            found.clear()
            _until(lambda: source.namespaces == {own})
            ask(network.client, SERVICE)
            assert len(gather(source, 1)) == 1


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_namespaces_are_found_and_let_go(network: Network) -> None:
    """A namespace that only our socket holds would live for ever; ours is closed when its last process is gone."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    try:
        path = f"/proc/{process.pid}/ns/net"
        _until(lambda: netns.inode(path) != netns.own())
        inode = netns.inode(path)
        with network.source(discover=netns.every) as source:
            _until(lambda: inode in source.namespaces)
            process.terminate()
            process.wait()
            _until(lambda: inode not in source.namespaces)
            assert network.router.inode in source.namespaces
    finally:
        process.kill()
        process.wait()


def test_namespaces_are_bounded(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MAX_NAMESPACES", 2)
    with namespaces(3) as others:
        found = {one.inode: one.path for one in others}
        with network.source(discover=lambda: found) as source:
            assert len(source.namespaces) == 2
            assert source.losses() == {"network namespaces": 2}


def test_a_given_namespace_that_is_not_there() -> None:
    with namespaces(1) as (one,), pytest.raises(MissingError):
        one.run(lambda: ConntrackSource(["/proc/self/ns/none"], discover=None))


def _count_handled(source: ConntrackSource, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the events that are taken in: a list whose only item grows."""
    handled = [0]
    handle = source._flows.handle

    def counting(*event: object) -> None:
        handled[0] += 1
        handle(*event)  # type: ignore[arg-type]

    monkeypatch.setattr(source._flows, "handle", counting)
    return handled


@pytest.mark.usefixtures("servers")
def test_lost_events_are_counted_and_the_trace_goes_on(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    with network.source(buffer_bytes=8192) as source:
        handled = _count_handled(source, monkeypatch)
        with source._lock:  # nobody reads
            for _ in range(37):
                with pytest.raises(ConnectionRefusedError):
                    ask(network.client, "10.0.2.2", 9)
        source.read(0)
        lost = source.losses()["netlink"]
        assert lost > 0
        assert lost + handled[0] == 2 * 37  # each of them makes two events that pass the filter, never more
        port, _ = ask(network.client, SERVICE)
        assert port in {raw.sport for raw, _ in gather(source, 1)}
        assert source.losses()["netlink"] == lost


@pytest.mark.usefixtures("servers")
class TestLatency:
    def test_by_the_time_of_reading(self, network: Network) -> None:
        """The first SYN is dropped, so the connection takes the second that TCP waits before it tries again."""
        rule = "INPUT -p tcp --dport 8080 --syn -m statistic --mode nth --every 2 --packet 0 -j DROP"
        network.server.iptables(f"-A {rule}")
        try:
            with network.source() as source:
                ask(network.client, "10.0.2.2", 8080)
                ((raw, _),) = gather(source, 1)
        finally:
            network.server.iptables(f"-D {rule}")
        assert 0.9e9 < raw.latency_ns < 2e9

    def test_by_the_kernels_clock(self, network: Network) -> None:
        network.router.sysctl("net.netfilter.nf_conntrack_timestamp", "1")
        try:
            with network.source() as source:
                for _ in range(7):
                    with pytest.raises(ConnectionRefusedError):
                        ask(network.client, "10.0.2.2", 9)
                records = gather(source, 7)
        finally:
            network.router.sysctl("net.netfilter.nf_conntrack_timestamp", "0")
        assert outcomes(records) == [Outcome.REFUSED] * 7
        assert all(0 < raw.latency_ns < 1e9 for raw, _ in records)


class TestUnavailable:
    def test_events_are_switched_off(self) -> None:
        with namespaces(1) as (one,):
            one.sysctl("net.netfilter.nf_conntrack_events", "0")
            with pytest.raises(BackendUnavailable, match="nf_conntrack_events") as caught:
                one.run(lambda: ConntrackSource(discover=None))
            assert caught.value.hint == "sysctl -w net.netfilter.nf_conntrack_events=2"

    def test_the_module_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a kernel without it says: see test_ctnetlink, test_a_kernel_without_the_subsystem."""
        monkeypatch.setattr(ctnetlink, "NFNL_SUBSYS_CTNETLINK", 200)
        request = ctnetlink.request
        monkeypatch.setattr(
            ctnetlink, "request", lambda sock, command, **more: request(sock, command, subsystem=200, **more)
        )
        with namespaces(1) as (one,), pytest.raises(BackendUnavailable) as caught:
            one.run(lambda: ConntrackSource(discover=None))
        assert caught.value.hint == "modprobe nf_conntrack_netlink"

    def test_without_the_capability(self) -> None:
        script = (
            "from tracer.source.conntrack import ConntrackSource\n"
            "try:\n    ConntrackSource(discover=None)\nexcept Exception as error:\n    print(type(error).__name__)"
        )
        command = ["unshare", "--user", sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{NotRoot.__name__}\n"


class TestEnd:
    def test_nothing_is_left(self) -> None:
        with namespaces(1) as (one,):
            descriptors, threads = _descriptors(), threading.active_count()
            source = one.run(lambda: ConntrackSource(discover=dict))
            assert threading.active_count() == threads + 2
            source.close()
            source.close()
            assert source.read(1.0) == []
            assert threading.active_count() == threads
            assert _descriptors() == descriptors

    def test_nothing_is_left_of_one_that_failed(self) -> None:
        with namespaces(1) as (one,):
            descriptors, threads = _descriptors(), threading.active_count()
            with pytest.raises(K8snetError):
                one.run(lambda: ConntrackSource(["/nowhere"], discover=None))
            assert threading.active_count() == threads
            assert _descriptors() == descriptors

    def test_a_reader_that_waits_is_let_go(self) -> None:
        with namespaces(1) as (one,):
            source = one.run(lambda: ConntrackSource(discover=None))
            results: list[object] = []
            reader = threading.Thread(target=lambda: results.append(source.read(60.0)))
            reader.start()
            time.sleep(0.1)
            source.close()
            reader.join(5.0)
            assert results == [[]]

    def test_what_fails_in_a_thread_is_raised_where_it_is_read(self) -> None:
        def fail() -> dict[int, str]:
            if threading.current_thread() is not main:
                raise OSError("no")
            return {}

        with namespaces(1) as (one,):
            main = threading.current_thread()
            source = ConntrackSource([one.path], discover=fail)
            try:
                with pytest.raises(OSError, match="no"):
                    for _ in range(100):
                        source.read(0.1)
            finally:
                source.close()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestSpeed:
    @pytest.mark.parametrize("also_in_server", [False, True])
    def test_5000_connections_a_second(self, also_in_server: bool, patience: float) -> None:
        """Nothing is lost, and what an event costs is written down."""
        count, rate = 12_007, 5_000 / patience
        with routed() as (client, router, server):
            network = Network(client, router, server)
            if also_in_server:
                server.iptables("-A INPUT -m conntrack --ctstate NEW -j ACCEPT")
            listen = ",".join(f"{ip}:8080" for ip in BACKENDS)
            script = str(Path(__file__).with_name("connect.py"))
            command = [sys.executable, script, client.path, server.path, f"{SERVICE}:80", listen, str(count), str(rate)]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
            with network.source(*([server] if also_in_server else [])) as source:
                began = time.process_time()
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as generator:
                    records: list[tuple[int, int, int, bytes]] = []
                    while generator.poll() is None:
                        time.sleep(0.02)
                        records += source.read(0)
                    printed = generator.stdout.read() if generator.stdout else ""
                # The last ones may still be on their way: a machine that is slow takes its time.
                until = time.monotonic() + patience
                while len(records) < count and time.monotonic() < until:
                    records += source.read(0.05)
                cost = (time.process_time() - began) / count
                assert generator.returncode == 0
                assert source.losses() == {}
        made, reached = (int(word) for word in printed.split())
        print(f"{reached} connections/s, {cost * 1e6:.1f} µs of CPU for each")
        assert made == len(records) == count
        assert {Shape.unpack(record[3]).nat_netns for record in records} == {router.inode}
        if patience == 1:  # an emulated guest has other costs
            assert cost < 100e-6
