"""What kube-proxy's rules say, in each network namespace that translates: Services, chains, probabilities.

What belongs here: which namespaces' rules to read and when, and look-ups in them. What does not: reading and
understanding rules (`tracer.rules`).

A namespace is read when it is first asked about, by a thread, and again when its rules have changed. The kernel tells
that cheaply (`tracer.rules.changes`), but for some changes of legacy iptables: those are found by reading anew now and
then, and soon after the API changed a Service or a connection went to a backend that the rules as read do not have.
Time spent on reading is bounded by a share of all time, as the table of a large cluster takes seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tracer import netns as network_namespaces
from tracer import procfs
from tracer.errors import K8snetError
from tracer.names.changes import Changes
from tracer.names.model import NO_ROUTE, DestinationName, Route

if TYPE_CHECKING:
    from tracer.rules.changes import State
    from tracer.rules.services import Address, ServiceMap, ServicePort

MAX_NAMESPACES = 64  # the least lately asked for is dropped; nodes of a cluster in containers are few
MAX_SURVEYED = 512  # namespaces looked into at the start: 0.2 ms each
TICK_SECONDS = 0.25
CHECK_SECONDS = 1.0  # between two questions whether anything changed
IDLE_CHECK_SECONDS = 10.0  # the same, where nobody has asked for IDLE_AFTER_SECONDS
IDLE_AFTER_SECONDS = 60.0
SEARCH_SECONDS = 3.0  # for a path to a namespace: it may have ended, or be too new for the last scan


class Pace(NamedTuple):
    """How soon to read again: not before so many seconds, nor before so many times what reading took."""

    seconds: float
    factor: float


SETTLED = Pace(10.0, 100)  # nothing tells whether the rules changed
EMPTY = Pace(30.0, 1000)  # the same, where there was no Service in them: most often no node's namespace
API_CHANGED = Pace(1.0, 30)  # kube-proxy needs its own time: minSyncPeriod is 1 s
CHANGED = Pace(0.5, 10)  # the rules changed, or must have
FAILED_SECONDS = 1.0  # what a failure counts as having taken: it is tried again after ten times that
CHANGE_SECONDS = 10.0  # for so long after an API change, kube-proxy may still be at it


class Rules(NamedTuple):
    """The rules of one network namespace as read, and its local addresses, which NodePorts listen on."""

    services: ServiceMap
    addresses: frozenset[str]


class _Reading:
    """When a namespace was looked at, and what is known of its state."""

    def __init__(self) -> None:
        self.asked = time.monotonic()
        self.checked = float("-inf")
        self.read = float("-inf")
        self.took = 0.0
        self.state: State | None = None
        self.missed = False  # a look-up failed that should not have
        self.lost: float | None = None  # since when no path leads to it


class Reader(Protocol):
    """Reads the rules of the network namespace at a path (None: our own). Raises K8snetError, OSError, ValueError."""

    def state(self, path: str | None) -> State:
        """What the kernel tells cheaply: equal as long as nothing changed."""
        ...

    def services(self, path: str | None) -> ServiceMap:
        """The Services in the rules."""
        ...


class LiveReader:
    """The live kernel. `tracer.rules` is imported when it is needed, off the path of the start."""

    def state(self, path: str | None) -> State:
        """See Reader."""
        from tracer.rules.changes import state

        return state(path)

    def services(self, path: str | None) -> ServiceMap:
        """See Reader."""
        from tracer.rules.live import read_services

        return read_services(path)


class RuleBook:
    """Look-ups in the rules of the namespaces that translate: never blocking, None for what is not read yet."""

    def __init__(self, changes: Changes, reader: Reader) -> None:
        self.trouble: str | None = None
        self._changes = changes
        self._reader = reader
        self._own = network_namespaces.own()
        self._rules: dict[int, Rules] = {}
        self._readings: dict[int, _Reading] = {self._own: _Reading()}
        self._api_changed = float("-inf")
        self._settled = threading.Event()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)

    def start(self) -> None:
        """Begin with our own namespace."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Idempotent."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(0.5)

    def settled(self, timeout: float) -> bool:
        """Wait until the rules that were there at the start were read. False after `timeout` seconds."""
        return self._settled.wait(timeout)

    def want(self, netns: int) -> None:
        """This namespace translates, or is a host's: have its rules read."""
        reading = self._readings.get(netns)
        if reading is not None:
            reading.asked = time.monotonic()
        elif netns:
            self._readings[netns] = _Reading()
            self._wake.set()

    def expect_change(self) -> None:
        """The API has changed something that kube-proxy will write into its rules."""
        self._api_changed = time.monotonic()

    def is_node(self, netns: int) -> bool:
        """Whether kube-proxy's rules are in this namespace: it is a node's."""
        rules = self._rules.get(netns)
        return rules is not None and bool(rules.services.services)

    def any_node(self) -> bool:
        """Whether there are kube-proxy's rules in any namespace that was read."""
        return bool(self._nodes())

    def addresses(self, netns: int) -> frozenset[str]:
        """The local addresses of a node's namespace, loopback included; none as long as it is not read."""
        rules = self._rules.get(netns)
        return rules.addresses if rules is not None else frozenset()

    def on_a_node(self, address: str) -> bool:
        """Whether the address is local to a node whose rules were read."""
        return any(address in rules.addresses for rules in self._nodes())

    def destination(self, protocol: str, ip: str, port: int, netns: int) -> DestinationName | None:
        """The Service behind an address as the rules have it.

        The rules of `netns` decide if it is a node's; else what all nodes whose rules were read agree on.
        """
        answers = {
            DestinationName(service.namespace, service.name, service.port_name, address.kind)
            for service, address in self._find(protocol, ip, port, netns)
        }
        return answers.pop() if len(answers) == 1 else None

    def no_endpoints(self, protocol: str, ip: str, port: int, netns: int) -> bool:
        """Whether the rules reject the Service behind an address, in all namespaces that know it."""
        found = self._find(protocol, ip, port, netns)
        return bool(found) and all(service.no_endpoints for service, _ in found)

    def route(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, netns: int, source: str | None
    ) -> Route:
        """The chains that lead from an address to a backend in `netns`, and with which probability.

        source: who asks, which may decide on the way; None: not known.
        """
        self.want(netns)
        rules = self._rules.get(netns)
        if rules is None:
            return NO_ROUTE
        found = rules.services.find(protocol, ip, port, rules.addresses)
        endpoint = rules.services.backend(*found, backend_ip, backend_port, source) if found is not None else None
        if endpoint is None:
            self._missed(netns)
            return NO_ROUTE
        return Route(tuple(endpoint.chains), endpoint.probability)

    def socket_share(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, netns: int
    ) -> float | None:
        """With which probability a program at a socket chose a backend, by the maps of eBPF of the nodes.

        The node of `netns` decides if it is one's; else what all agree on that have this backend there.
        """
        books = [netns] if self.is_node(netns) else [known for known in list(self._rules) if self.is_node(known)]
        shares = set()
        for known in books:
            rules = self._rules.get(known)
            found = None if rules is None else rules.services.find(protocol, ip, port, rules.addresses)
            if rules is None or found is None:
                continue
            endpoint = rules.services.backend(*found, backend_ip, backend_port)
            if endpoint is not None and not endpoint.chains:
                shares.add(endpoint.probability)
        if not shares:
            for known in books:
                self._missed(known)
        return shares.pop() if len(shares) == 1 else None

    def _missed(self, netns: int) -> None:
        """The kernel did what the rules as read do not say: they have changed."""
        reading = self._readings.get(netns)
        if reading is not None:
            reading.missed = True

    def _find(self, protocol: str, ip: str, port: int, netns: int) -> list[tuple[ServicePort, Address]]:
        """What the rules that count say about an address."""
        books = [self._rules[netns]] if self.is_node(netns) else self._nodes()
        found = (rules.services.find(protocol, ip, port, rules.addresses) for rules in books)
        return [hit for hit in found if hit is not None]

    def _nodes(self) -> list[Rules]:
        """The rules of all namespaces that have kube-proxy's."""
        return [rules for rules in list(self._rules.values()) if rules.services.services]

    def _run(self) -> None:
        self._look_around()
        self._survey()
        while not self._stop.is_set():
            self._look_around()
            self._settled.set()
            self._forget_some()
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()

    def _look_around(self) -> None:
        """See to every namespace that is due."""
        for netns, reading in list(self._readings.items()):
            if not self._stop.is_set() and self._is_due(reading):
                self._look_at(netns, reading)

    def _survey(self) -> None:
        """Find the nodes that are containers of this machine, as in kind: their namespaces have rules, pods' have none.

        Without it they would be found as well, but the first connections would miss their rules.
        """
        for netns, path in list(network_namespaces.every().items())[:MAX_SURVEYED]:
            if self._stop.is_set() or len(self._readings) >= MAX_NAMESPACES:
                return
            with contextlib.suppress(K8snetError, OSError):
                if not self._reader.state(path).untouched:
                    self.want(netns)

    def _is_due(self, reading: _Reading) -> bool:
        """Whether to see if anything changed."""
        now = time.monotonic()
        if reading.lost is not None:
            return True
        idle = now - reading.asked > IDLE_AFTER_SECONDS
        return now - reading.checked >= (IDLE_CHECK_SECONDS if idle else CHECK_SECONDS)

    def _look_at(self, netns: int, reading: _Reading) -> None:
        """See whether anything changed in one namespace, and read it if so; forget it when it is gone."""
        path = None if netns == self._own else network_namespaces.find(netns)
        reading.checked = time.monotonic()
        if path is None and netns != self._own:
            self._rules.pop(netns, None)
            reading.lost = reading.lost or reading.checked
            if reading.checked - reading.lost >= SEARCH_SECONDS:
                self._readings.pop(netns, None)
            return
        reading.lost = None
        try:
            state = self._reader.state(path)
            if self._must_read(netns, reading, state):
                self._read(netns, path, reading, state)
        except (K8snetError, OSError, ValueError) as error:
            self.trouble = str(error)
            reading.read, reading.took = time.monotonic(), FAILED_SECONDS

    def _must_read(self, netns: int, reading: _Reading, state: State) -> bool:
        """Whether the rules changed, or may have and it is time to see."""
        now = time.monotonic()
        rules = self._rules.get(netns)
        same = rules is not None and state == reading.state
        if same and not state.may_hide:
            return False
        if rules is None or not same or reading.missed:
            pace = CHANGED
        elif now - self._api_changed < CHANGE_SECONDS:
            pace = API_CHANGED
        else:
            pace = SETTLED if rules.services.services else EMPTY
        return now - reading.read >= max(pace.seconds, pace.factor * reading.took)

    def _read(self, netns: int, path: str | None, reading: _Reading, state: State) -> None:
        """Read the rules and addresses of a namespace. Raises K8snetError, OSError, ValueError."""
        began = time.monotonic()
        reading.missed = False
        rules = Rules(
            _nothing() if state.untouched else self._reader.services(path),
            network_namespaces.run_in(path, procfs.addresses),
        )
        reading.state = state
        reading.read = time.monotonic()
        reading.took = reading.read - began
        self.trouble = None
        known = self._rules.get(netns)
        self._rules[netns] = rules
        if known is None or known.addresses != rules.addresses or not _equal(known.services, rules.services):
            self._changes.mark()

    def _forget_some(self) -> None:
        """Drop what was not asked for longest, when there is too much."""
        while len(self._readings) > MAX_NAMESPACES:
            others = ((reading.asked, netns) for netns, reading in list(self._readings.items()) if netns != self._own)
            _, netns = min(others)
            del self._readings[netns]
            self._rules.pop(netns, None)


def _nothing() -> ServiceMap:
    """The Service map of a namespace without rules."""
    from tracer.rules.services import ServiceMap

    return ServiceMap(())


def _equal(one: ServiceMap, other: ServiceMap) -> bool:
    """Whether two maps give the same answers, the ways through chains included."""
    return one.services == other.services and all(
        mine.branches == theirs.branches
        for service, twin in zip(one.services, other.services, strict=True)
        for mine, theirs in zip(service.addresses, twin.addresses, strict=True)
    )
