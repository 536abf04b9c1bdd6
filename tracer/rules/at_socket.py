"""What the programs of the eBPF datapath do with a new flow, before any rule sees it: the first steps of `explain`.

What belongs here: a look-up in the maps, as bpf/service_lb.c and bpf/service_lb_packets.c make it, and what it leads
to. What does not: the maps (`sockets`), and the hooks of netfilter, which packets meet afterwards (`hooks`).

    [socket]  connect() of a process on this node, or of a pod's, for which the program puts an endpoint in the place of
              the address; so no packet, and no rule, ever sees the Service's address
    [device]  a packet that comes from elsewhere, or that the socket had to let go: at the device by which it comes in
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tracer.rules.model import Origin, Table, address_number, address_text
from tracer.rules.packet import AtSocket, Flow, Packet, Place
from tracer.rules.trail import Step, Trail
from tracer.service_lb import Backend, Entry, Scope, ServiceFlag

if TYPE_CHECKING:
    from tracer.rules.routing import Routing
    from tracer.rules.sockets import Named, SocketServices
    from tracer.rules.worlds import Worlds

SOCKET, DEVICE = "socket", "device"
_TABLE = Table("socket", "services", Origin.EBPF)
# Until a Service is found: of a packet, the program first asks in vain whether it has met the flow before.
_LOOKUPS = {SOCKET: 1, DEVICE: 2}


class Sent(NamedTuple):
    """Packets as they are sent, and those that never leave the pod that sends them: it is its own endpoint."""

    worlds: Worlds
    inside: Worlds


class AtSockets:
    """One flow's way through the programs. `is_pod`: a pod of this node sends it."""

    def __init__(self, sockets: SocketServices, flow: Flow, asked: tuple[str, int], routing: Routing, trail: Trail):
        self._sockets = sockets
        self._flow = flow
        self._ip, self._port = asked
        self._routing = routing
        self._trail = trail
        self._source = None if flow.saddr is None else address_text(flow.saddr, flow.family)
        self._is_pod = not flow.local and self._source is not None and sockets.is_pod(self._source)

    def run(self) -> Sent | None:
        """What becomes of the flow; None where the maps do not know its destination. What ends is in the trail."""
        at_socket = self._flow.local or self._is_pod
        protocol = self._flow.protocol.upper()
        scope = Scope.SOCKET if at_socket else Scope.OUTSIDE
        entry = self._sockets.entry(protocol, self._ip, self._port, scope)
        self._trail.passed.lookups += _LOOKUPS[SOCKET if at_socket else DEVICE]
        if entry is None:
            return None
        named = self._sockets.name(protocol, self._ip, self._port)
        if not at_socket:
            return self._at_device(entry, named)
        if entry.flags & ServiceFlag.HAS_RANGES and (self._is_pod or entry.flags & ServiceFlag.DENIES_NODE):
            self._step(SOCKET, "", "has source ranges: left to the programs at devices", "continue", named)
            self._trail.passed.lookups += _LOOKUPS[DEVICE]
            return self._at_device(entry, named)
        return self._choose(SOCKET, entry, named)

    def _at_device(self, entry: Entry, named: Named | None) -> Sent:
        if entry.flags & ServiceFlag.HAS_RANGES:
            self._trail.passed.lookups += 1
            if self._flow.local or not self._is_let_in(entry):
                self._end("drop", DEVICE, "the source is in none of the Service's source ranges", named)
                return Sent({}, {})
        return self._choose(DEVICE, entry, named)

    def _is_let_in(self, entry: Entry) -> bool:
        ranges = self._sockets.datapath.ranges.get(entry.port_id, ())
        return any(
            int(network.network_address) <= (self._flow.saddr or 0) <= int(network.broadcast_address)
            for network in ranges
            if (network.version == 6) is (self._flow.family == "ip6")
        )

    def _choose(self, where: str, entry: Entry, named: Named | None) -> Sent:
        if entry.flags & ServiceFlag.SILENT:
            self._end("drop", where, "has no local endpoints", named)
            return Sent({}, {})
        backends = self._sockets.datapath.behind(entry)
        if not backends:
            self._end("reject", where, "has no endpoints", named)
            return Sent({}, {})
        self._trail.passed.lookups += 1
        if entry.affinity_seconds:
            self._trail.passed.lookups += 1
            self._trail.affinity = entry.affinity_seconds
        sent = Sent({}, {})
        for slot, backend in enumerate(backends, 1):
            share = 1 / len(backends)
            words = f"-> slot {slot} of {len(backends)}"
            step = self._step(where, f": {_endpoint(backend)}", words, "dnat", named, slot, share)
            step.target = _endpoint(backend)
            inside = where == SOCKET and self._is_pod and str(backend.ip) == self._source
            (sent.inside if inside else sent.worlds)[self._packet(where, entry, backend, step)] = share
        return sent

    def _packet(self, where: str, entry: Entry, backend: Backend, step: Step) -> Packet:
        daddr = int(backend.ip)
        saddr = self._routing.source(daddr) if self._flow.local else self._flow.saddr
        return Packet(
            self._flow.saddr if saddr is None else saddr,
            daddr,
            backend.port,
            at_socket=AtSocket(step.number, daddr, backend.port, where == DEVICE and self._hides(entry, backend)),
        )

    def _hides(self, entry: Entry, backend: Backend) -> bool:
        """needs_snat in the C: packets to the node itself leave by no device, so that their source stays."""
        node = self._sockets.datapath.node
        if node is not None and backend.ip in (node.ipv4, node.ipv6):
            return False
        return bool(entry.flags & ServiceFlag.MASQUERADE) or str(backend.ip) == self._source

    def _end(self, verdict: str, where: str, why: str, named: Named | None) -> None:
        step = self._step(where, "", why, verdict, named)
        if named is not None and why.startswith("has no"):
            step.comment = f"{step.comment} {why}"
        packet = Packet(self._flow.saddr, address_number(self._ip), self._port)
        self._trail.end(verdict, {packet: 1.0}, step)

    def _step(
        self, where: str, more: str, words: str, effect: str, named: Named | None, slot: int = 0, share: float = 1.0
    ) -> Step:
        place = Place(where, self._flow, self._routing)
        step = self._trail.record(place, _TABLE, "slots", slot - 1 if slot else None, None, effect, share, None)
        asked = f"[{self._ip}]:{self._port}" if ":" in self._ip else f"{self._ip}:{self._port}"
        step.text = f"[{where}] {asked} {words}{more}"
        if named is not None:
            port = f":{named.port_name}" if named.port_name else ""
            step.comment = f"{named.namespace}/{named.name}{port}"
        return step


def hidden(packet: Packet) -> Packet:
    """The packet once it has left: there a program may give it the node's own address as source."""
    at_socket = packet.at_socket
    if at_socket is None or not at_socket.masquerade:
        return packet
    return packet._replace(snat=True, masqueraded=at_socket.step)


def _endpoint(backend: Backend) -> str:
    return f"[{backend.ip}]:{backend.port}" if backend.ip.version == 6 else f"{backend.ip}:{backend.port}"
