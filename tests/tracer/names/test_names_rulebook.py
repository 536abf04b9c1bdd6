"""When rules are read, and what is said about them: with a reader of the test's own, in real namespaces."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.tracer.names.service_maps import service_map, service_port
from tests.tracer.networks import Namespace
from tracer import netns
from tracer.errors import ToolMissing
from tracer.names import rulebook
from tracer.names.changes import Changes
from tracer.names.model import DestinationName, Route
from tracer.names.rulebook import RuleBook
from tracer.rules import nfnetlink
from tracer.rules.changes import LegacyTable, State
from tracer.rules.services import Address, Branch, Endpoint, ServiceMap

OWN = netns.own()
BACKENDS = (("10.244.0.5", 8000), ("10.244.1.5", 8000), ("10.244.1.6", 8000))
SHIP_IT = service_port("lets-ship-it", "10.96.100.50", 8000, *BACKENDS, node_port=30080)


NFT = State(2, ())
LEGACY = State(None, (LegacyTable("ip", "nat", (), 5, 1000),))


class Kernel:
    """The rules of each namespace, and how often they were read; `now` is the state of all of them."""

    def __init__(self) -> None:
        self.maps: dict[str | None, ServiceMap] = {}
        self.reads: list[str | None] = []
        self.now = NFT
        self.error: Exception | None = None
        self.seconds = 0.0

    def change(self) -> None:
        """The rules are not what they were."""
        self.now = self.now._replace(generation=(self.now.generation or 0) + 1)

    def state(self, path: str | None) -> State:
        return self.now

    def services(self, path: str | None) -> ServiceMap:
        self.reads.append(path)
        if self.error is not None:
            raise self.error
        time.sleep(self.seconds)
        return self.maps.get(path, service_map())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(netns, "every", dict)
    monkeypatch.setattr(rulebook, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(rulebook, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(rulebook, "CHANGED", rulebook.Pace(0.02, 0))
    return Kernel()


@pytest.fixture
def book(kernel: Kernel) -> Iterator[Callable[..., RuleBook]]:
    """Starts a rule book whose own namespace has these Services."""
    running: list[RuleBook] = []

    def start(*ports: object) -> RuleBook:
        kernel.maps[None] = service_map(*ports)  # type: ignore[arg-type]
        running.append(RuleBook(Changes(), kernel))
        running[-1].start()
        assert running[-1].settled(5)
        return running[-1]

    yield start
    for one in running:
        one.close()


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def route(book: RuleBook, ip: str, port: int, backend: tuple[str, int], where: int = OWN) -> Route:
    return book.route("TCP", ip, port, *backend, where, None)


def test_services_chains_and_probabilities(book: Callable[..., RuleBook]) -> None:
    rules = book(SHIP_IT)
    name = DestinationName("fastapi", "lets-ship-it", "http", "ClusterIP")
    assert rules.destination("TCP", "10.96.100.50", 8000, OWN) == name
    assert rules.destination("TCP", "127.0.0.1", 30080, OWN) == name._replace(kind="NodePort")
    assert rules.destination("UDP", "10.96.100.50", 8000, OWN) is None
    assert rules.destination("TCP", "10.96.100.51", 8000, OWN) is None
    chains = ("KUBE-SVC-LETS-SHIP-IT", "KUBE-SEP-1")
    assert route(rules, "10.96.100.50", 8000, BACKENDS[1]) == Route(chains, pytest.approx(1 / 3))  # type: ignore[arg-type]
    through = route(rules, "127.0.0.1", 30080, BACKENDS[1])
    assert through.via == ("KUBE-EXT-LETS-SHIP-IT", *chains)
    assert rules.is_node(OWN)
    assert rules.on_a_node("127.0.0.1")
    assert not rules.no_endpoints("TCP", "10.96.100.50", 8000, OWN)


def test_a_backend_that_the_rules_do_not_have_gives_nothing(book: Callable[..., RuleBook]) -> None:
    assert route(book(SHIP_IT), "10.96.100.50", 8000, ("10.244.9.9", 8000)) == Route()


def test_shares_of_backends_chosen_at_a_socket(book: Callable[..., RuleBook], kernel: Kernel) -> None:
    """Where no chain leads. For the socket of a pod, whose namespace is no node's, what all nodes agree on holds."""
    at_socket = {backend: Endpoint(*backend, 1 / 3, ()) for backend in BACKENDS}
    address = Address("ClusterIP", "10.96.0.7", 80, None, (Branch((), (), at_socket),))
    rules = book(SHIP_IT, replace(SHIP_IT, name=None, namespace=None, addresses=(address,)))
    for where in (OWN, 1):
        assert rules.socket_share("TCP", "10.96.0.7", 80, *BACKENDS[2], where) == pytest.approx(1 / 3)
        assert rules.socket_share("TCP", "10.96.0.7", 80, "10.244.9.9", 8000, where) is None
        by_rules = rules.socket_share("TCP", "10.96.100.50", 8000, *BACKENDS[2], where)
        assert by_rules is None


def test_maps_that_tell_of_no_change_are_read_again_when_a_backend_is_missing(
    book: Callable[..., RuleBook], kernel: Kernel
) -> None:
    kernel.now = State(2, (), datapath=7)
    rules = book(SHIP_IT)
    assert not until(lambda: len(kernel.reads) > 1, 0.2)
    rules.socket_share("TCP", "10.96.100.50", 8000, "10.244.9.9", 8000, OWN)
    assert until(lambda: len(kernel.reads) > 1)


def test_no_endpoints(book: Callable[..., RuleBook]) -> None:
    rules = book(service_port("empty", "10.96.0.9", 80))
    assert rules.no_endpoints("TCP", "10.96.0.9", 80, OWN)
    assert not rules.no_endpoints("TCP", "10.96.0.8", 80, OWN)


def test_a_namespace_that_nobody_ever_made_a_rule_in_is_not_read(book: Callable[..., RuleBook], kernel: Kernel) -> None:
    kernel.now = State(nfnetlink.UNTOUCHED, ())
    rules = book(SHIP_IT)
    assert (kernel.reads, rules.is_node(OWN)) == ([], False)
    kernel.change()
    assert until(lambda: rules.is_node(OWN))


@pytest.mark.parametrize("state", [NFT, LEGACY])
def test_nothing_is_read_again_while_the_state_stays(
    book: Callable[..., RuleBook], kernel: Kernel, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.now = state
    if state is NFT:  # which is certain that nothing changed
        monkeypatch.setattr(rulebook, "SETTLED", rulebook.Pace(0.02, 0))
    rules = book(SHIP_IT)
    time.sleep(0.2)
    assert kernel.reads == [None]
    kernel.maps[None] = service_map()
    kernel.change()
    assert until(lambda: not rules.is_node(OWN))
    assert len(kernel.reads) == 2


def test_legacy_rules_are_read_again_soon_after_a_miss(book: Callable[..., RuleBook], kernel: Kernel) -> None:
    kernel.now = LEGACY
    rules = book(SHIP_IT)
    fresh = ("10.244.9.9", 8000)
    kernel.maps[None] = service_map(service_port("lets-ship-it", "10.96.100.50", 8000, fresh))
    assert route(rules, "10.96.100.50", 8000, fresh) == Route()
    assert until(lambda: route(rules, "10.96.100.50", 8000, fresh).probability == 1.0)


@pytest.mark.parametrize(("pace", "state"), [("API_CHANGED", LEGACY), ("SETTLED", LEGACY)])
def test_legacy_rules_are_read_again_now_and_then(
    book: Callable[..., RuleBook], kernel: Kernel, monkeypatch: pytest.MonkeyPatch, pace: str, state: State
) -> None:
    monkeypatch.setattr(rulebook, pace, rulebook.Pace(0.02, 0))
    kernel.now = state
    rules = book(SHIP_IT)
    if pace == "API_CHANGED":
        time.sleep(0.1)
        assert len(kernel.reads) == 1
        rules.expect_change()
    assert until(lambda: len(kernel.reads) >= 3)


def test_reading_takes_a_bounded_share_of_all_time(
    book: Callable[..., RuleBook], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "CHANGED", rulebook.Pace(0.0, 10))
    kernel.seconds = 0.05
    book(SHIP_IT)
    kernel.reads.clear()
    end = time.monotonic() + 1.3
    while time.monotonic() < end:
        kernel.change()  # the rules change all the time
        time.sleep(0.01)
    assert 1 <= len(kernel.reads) <= 4


def test_the_generation_grows_only_when_answers_do_change(kernel: Kernel) -> None:
    changes = Changes()
    marks: list[float] = []
    changes.mark = lambda: marks.append(time.monotonic())  # type: ignore[method-assign]
    kernel.maps[None] = service_map(SHIP_IT)
    rules = RuleBook(changes, kernel)
    rules.start()
    try:
        assert rules.settled(5)
        assert len(marks) == 1
        kernel.change()
        assert until(lambda: len(kernel.reads) == 2)
        time.sleep(0.05)
        assert len(marks) == 1
        # one more backend: the same Service, but other probabilities
        kernel.maps[None] = service_map(
            service_port("lets-ship-it", "10.96.100.50", 8000, *BACKENDS[:2], node_port=30080)
        )
        kernel.change()
        assert until(lambda: len(marks) == 2)
    finally:
        rules.close()


def test_what_can_not_be_read_is_told_and_tried_again(
    book: Callable[..., RuleBook], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "FAILED_SECONDS", 0.0)
    kernel.error = ToolMissing("iptables-save is not installed")
    rules = book(SHIP_IT)
    assert rules.trouble == "iptables-save is not installed"
    assert rules.destination("TCP", "10.96.100.50", 8000, OWN) is None
    kernel.error = None
    assert until(lambda: rules.is_node(OWN))
    assert rules.trouble is None


@pytest.mark.root
def test_rules_of_another_node(book: Callable[..., RuleBook], kernel: Kernel) -> None:
    """As in kind: nodes are namespaces of one machine, each with its own rules and addresses."""
    with _process_in_a_namespace() as pid:
        path = f"/proc/{pid}/ns/net"
        inode = netns.inode(path)
        kernel.maps[path] = service_map(SHIP_IT)
        rules = book()
        backend = ("10.244.0.5", 8000)
        assert route(rules, "10.96.100.50", 8000, backend, inode) == Route()
        assert until(lambda: rules.is_node(inode))
        assert route(rules, "10.96.100.50", 8000, backend, inode).probability == pytest.approx(1 / 3)
        # a pod's namespace has no rules: all nodes agree on the Service
        found = rules.destination("TCP", "10.96.100.50", 8000, 1)
        assert found is not None
        assert found.service == "lets-ship-it"
    assert until(lambda: not rules.is_node(inode))


@pytest.mark.root
def test_nodes_that_are_there_at_the_start_are_read_at_once(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    with _process_in_a_namespace() as node, _process_in_a_namespace() as pod:
        paths = {pid: f"/proc/{pid}/ns/net" for pid in (node, pod)}
        inodes = {pid: netns.inode(path) for pid, path in paths.items()}
        monkeypatch.setattr(netns, "every", lambda: {inodes[pid]: path for pid, path in paths.items()})
        monkeypatch.setattr(netns, "find", {inodes[pid]: path for pid, path in paths.items()}.get)
        untouched = State(None, ())
        monkeypatch.setattr(kernel, "state", lambda path: untouched if path == paths[pod] else NFT)
        kernel.maps[paths[node]] = service_map(SHIP_IT)
        rules = RuleBook(Changes(), kernel)
        rules.start()
        try:
            assert rules.settled(5)
            assert rules.is_node(inodes[node])
            assert inodes[pod] not in rules._readings
        finally:
            rules.close()


@pytest.mark.root
def test_two_clusters_on_one_machine_do_not_name_each_others_services(
    book: Callable[..., RuleBook], kernel: Kernel
) -> None:
    with _process_in_a_namespace() as pid:
        path = f"/proc/{pid}/ns/net"
        inode = netns.inode(path)
        kernel.maps[path] = service_map(service_port("other", "10.96.100.50", 8000, *BACKENDS))
        rules = book(SHIP_IT)
        rules.want(inode)
        assert until(lambda: rules.is_node(inode))
        names = [rules.destination("TCP", "10.96.100.50", 8000, where) for where in (OWN, inode, 1)]
        assert [name.service if name is not None else None for name in names] == ["lets-ship-it", "other", None]


def test_a_namespace_that_is_nowhere_is_given_up(
    book: Callable[..., RuleBook], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "SEARCH_SECONDS", 0.1)
    monkeypatch.setattr(netns, "find", lambda inode: None)
    rules = book(SHIP_IT)
    rules.want(7)
    assert 7 in rules._readings
    assert until(lambda: 7 not in rules._readings)


def test_namespaces_are_bounded(book: Callable[..., RuleBook], kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rulebook, "MAX_NAMESPACES", 5)
    monkeypatch.setattr(netns, "find", lambda inode: "/proc/self/ns/net")
    rules = book(SHIP_IT)
    for inode in range(1, 100):
        rules.want(inode)
    assert until(lambda: len(rules._readings) == 5)
    assert rules.is_node(OWN)


def _process_in_a_namespace() -> _Process:
    return _Process()


class _Process:
    """A process alone in a network namespace."""

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.root
def test_rules_of_the_live_kernel() -> None:
    namespace = Namespace()
    try:
        reader = rulebook.LiveReader()
        assert reader.state(namespace.path).untouched
        namespace.run(lambda: subprocess.run(["iptables-nft-restore"], input=RULES, check=True, text=True))
        assert not reader.state(namespace.path).untouched
        found = reader.services(namespace.path).find("TCP", "10.96.100.50", 8000)
        assert found is not None
        assert (found[0].namespace, found[0].name, found[0].port_name) == ("fastapi", "lets-ship-it", "http")
    finally:
        namespace.close()


RULES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.100.50/32 -p tcp -m comment --comment "fastapi/lets-ship-it:http cluster IP" -m tcp --dport 8000 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -m comment --comment "fastapi/lets-ship-it:http -> 10.244.0.12:8000" -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -m comment --comment "fastapi/lets-ship-it:http" -m tcp -j DNAT --to-destination 10.244.0.12:8000
COMMIT
"""  # noqa: E501 (a rule is one line)
