"""The order in which providers of names are asked, question by question.

What belongs here: which provider's word counts for which question, and starting and ending them all. What does not:
what a provider knows (`cluster`, `rulebook`, `processes`, `local`).
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import time
from pathlib import Path

from tracer import kubeapi
from tracer import netns as network_namespaces
from tracer.names.changes import Changes
from tracer.names.cluster import Cluster, port_key
from tracer.names.local import Api, LocalPods
from tracer.names.model import NOWHERE, DestinationName, PodName, Route
from tracer.names.objects import Pod
from tracer.names.processes import Processes
from tracer.names.rulebook import LiveReader, Reader, RuleBook

MAX_NODES = 4_096  # network namespaces whose node is kept in mind


class Names:
    """Names for addresses and processes. Never blocks, never raises for a name that is missing: it is None.

    `kubeconfig`: how to reach the Kubernetes API; None: as `tracer.kubeapi.find` looks for it. Addresses are text as
    inet_ntop writes it, ports in host order, network namespaces inodes, 0 for not known; cgroup_id and pid 0: no
    process known. May be asked before `start`, from any thread. `rules`: what reads rules; None: the live kernel's.
    """

    def __init__(
        self,
        kubeconfig: str | Path | None = None,
        *,
        rules: Reader | None = None,
    ) -> None:
        self._changes = Changes()
        self._rules = RuleBook(self._changes, rules or LiveReader())
        self._cluster = Cluster(self._changes, self._rules.expect_change)
        self._api = kubeapi.Mirror(functools.partial(kubeapi.find, kubeconfig), self._cluster.resources())
        self._processes = Processes(self._changes, self._rules.is_node)
        known = Api(self._cluster.pods_loaded, lambda uid: self._cluster.pod_by_uid(uid) is not None)
        self._local = LocalPods(self._changes, self._rules.is_node, known)
        self._no_cluster = Cluster(self._changes)  # what the API says about another cluster: nothing
        self._own_netns = network_namespaces.own()
        self._hostname = socket.gethostname()
        self._nodes_of_netns: dict[int, tuple[int, str | None]] = {}  # a node with IPVS has an address for each Service
        self._told: set[str] = set()

    @property
    def generation(self) -> int:
        """Grows when an answer that was given may have become wrong; at most five times a second."""
        return self._changes.generation

    def start(self) -> None:
        """Begin to learn, in daemon threads."""
        for provider in (self._changes, self._rules, self._api, self._processes, self._local):
            provider.start()

    def close(self) -> None:
        """End the threads; one that hangs is left to end with the program. Idempotent."""
        for provider in (self._api, self._rules, self._processes, self._local, self._changes):
            provider.close()

    def ready(self, timeout: float) -> bool:
        """Wait until each provider has answered or failed once. False after `timeout` seconds."""
        end = time.monotonic() + timeout
        return self._rules.settled(timeout) and self._api.settled(max(0.0, end - time.monotonic()))

    def notes(self) -> list[str]:
        """Why names are missing, in words for the user; each reason is given once."""
        notes = []
        for trouble in self._api.trouble():
            if self._cluster.loaded():
                notes.append(f"the Kubernetes API: {trouble}; names may be missing or out of date")
            else:
                notes.append(f"no Kubernetes API: {trouble}; names come from {self._fallback()}")
        if self._local.any_foreign():
            notes.append("there are pods here that the Kubernetes API does not know: names of theirs come from /proc")
        if self._rules.trouble is not None:
            notes.append(f"no kube-proxy rules: {self._rules.trouble}; rules and probabilities are missing")
        new = [note for note in notes if note not in self._told]
        self._told.update(new)
        return new

    def source(self, ip: str, netns: int, cgroup_id: int, pid: int) -> PodName | None:
        """The pod of a process. Its cgroup decides; then its address, but for pods on the host's network."""
        self._changes.asked(ip)
        uid = self._processes.pod_uid(netns, cgroup_id, pid) if pid else None
        if uid is not None:
            self._changes.asked(uid)
            pod = self._cluster.pod_by_uid(uid)
            if pod is not None:
                return pod.name
            return self._processes.pod(uid, netns, cgroup_id, pid) or self._local.pod_by_netns(netns)
        if pid and netns != self._own_netns:
            self._rules.want(netns)  # no pod's process: it may be a node's namespace
        pod = self._cluster_of(netns).pod_by_address(ip)
        if pod is not None:
            return pod.name
        if netns in (0, self._own_netns) or self._rules.is_node(netns):
            return None
        return self._local.pod_by_netns(netns) or (self._processes.pod(None, netns, cgroup_id, pid) if pid else None)

    def destination(self, protocol: str, ip: str, port: int, netns: int) -> DestinationName:
        """What stands behind an address that was asked for. netns: which translated, or else that of the socket."""
        self._changes.asked(ip)
        cluster = self._cluster_of(netns)
        return (
            self._service(cluster, protocol, ip, port, netns)
            or self._pod_destination(cluster, ip)
            or cluster.service_address(ip)
            or self._other_destination(cluster, ip)
        )

    def backend(self, ip: str, port: int, netns: int = 0) -> PodName | None:
        """The pod that answers at an address. netns: which translated, or else that of the socket; 0: not known."""
        self._changes.asked(ip)
        cluster = self._cluster_of(netns)
        return self._pod_name(cluster, ip) or cluster.pod_by_endpoint(ip, port)

    def node(self, netns: int, nat_netns: int, source_ip: str, cgroup_id: int = 0, pid: int = 0) -> str | None:
        """The node of a connection: that of the source pod, or that whose namespace or address it was made from.

        cgroup_id, pid: of the process, which tells the pod where the address does not (loopback).
        """
        self._changes.asked(source_ip)
        cluster = self._cluster_of(netns)
        pod = self._pod_of_process(netns, cgroup_id, pid) or cluster.pod_by_address(source_ip)
        if pod is not None and pod.node is not None:
            return pod.node
        for inode in (nat_netns, netns):
            name = self._node_of_netns(inode)
            if name is not None:
                return name
        return cluster.node_by_address(source_ip) or self._this_machine(netns, nat_netns)

    def own_node(self) -> str | None:
        """The node that has this machine's hostname, by the API."""
        return self._cluster.node_by_hostname(self._hostname)

    def route(
        self,
        protocol: str,
        ip: str,
        port: int,
        backend_ip: str,
        backend_port: int,
        nat_netns: int,
        source_ip: str | None = None,
    ) -> Route:
        """The chains that chose a backend, and the probability of it, by the rules of the namespace that translated."""
        return self._rules.route(protocol, ip, port, backend_ip, backend_port, nat_netns, source_ip)

    def socket_share(
        self, protocol: str, ip: str, port: int, backend_ip: str, backend_port: int, netns: int
    ) -> float | None:
        """With which probability a program at a socket of this namespace chose a backend, by the maps of its node."""
        return self._rules.socket_share(protocol, ip, port, backend_ip, backend_port, netns)

    def no_endpoints(self, protocol: str, ip: str, port: int, netns: int) -> bool:
        """Whether there is a Service behind an address, and it has nothing to send to: by the rules, or by the API."""
        if self._rules.no_endpoints(protocol, ip, port, netns):
            return True
        self._changes.asked(ip)
        cluster = self._cluster_of(netns)
        name = self._service(cluster, protocol, ip, port, netns)
        if name is None or name.namespace is None or name.service is None:
            return False
        self._changes.asked(f"{name.namespace}/{name.service}")
        return cluster.has_no_endpoints(name.namespace, name.service)

    def _pod_of_process(self, netns: int, cgroup_id: int, pid: int) -> Pod | None:
        """The pod of a process as the API knows it."""
        uid = self._processes.pod_uid(netns, cgroup_id, pid) if pid else None
        if uid is None:
            return None
        self._changes.asked(uid)
        return self._cluster.pod_by_uid(uid)

    def _cluster_of(self, netns: int) -> Cluster:
        """The API's data, where they are about the cluster that this network namespace belongs to."""
        return self._no_cluster if self._local.is_foreign(netns) else self._cluster

    def _service(self, cluster: Cluster, protocol: str, ip: str, port: int, netns: int) -> DestinationName | None:
        """The Service port that an address is of."""
        return (
            cluster.service(protocol, ip, port)
            or self._node_port(cluster, protocol, ip, port, netns)
            or self._rules.destination(protocol, ip, port, netns)
        )

    def _node_port(self, cluster: Cluster, protocol: str, ip: str, port: int, netns: int) -> DestinationName | None:
        """The Service whose NodePort this is, if the address is a node's."""
        self._changes.asked(port_key(port))
        name = cluster.node_port(protocol, port)
        if name is None or not (cluster.node_by_address(ip) or self._is_local_to_node(ip, netns)):
            return None
        return name

    def _is_local_to_node(self, ip: str, netns: int) -> bool:
        """Whether an address is one of a node's own. Loopback is in every namespace, so there only `netns` counts."""
        if _is_loopback(ip):
            return self._rules.is_node(netns)
        return self._rules.on_a_node(ip)

    def _pod_name(self, cluster: Cluster, ip: str) -> PodName | None:
        """The pod that has an address; by /proc only where the API can't tell."""
        if cluster.pods_loaded():
            pod = cluster.pod_by_address(ip)
            return pod.name if pod is not None else None
        return self._local.pod_by_address(ip)

    def _pod_destination(self, cluster: Cluster, ip: str) -> DestinationName | None:
        name = self._pod_name(cluster, ip)
        return DestinationName(namespace=name.namespace, kind="Pod") if name is not None else None

    def _other_destination(self, cluster: Cluster, ip: str) -> DestinationName:
        """An address that is no Service's and no pod's."""
        if _is_special(ip):
            return NOWHERE
        if cluster.node_by_address(ip) or self._rules.on_a_node(ip):
            return DestinationName(kind="Node")
        if cluster.loaded() and not cluster.in_pod_range(ip):
            return DestinationName(kind="External")
        return NOWHERE

    def _node_of_netns(self, inode: int) -> str | None:
        """The node whose namespace this is: an address of it is the node's."""
        if self._local.is_foreign(inode):
            return None
        generation = self._changes.generation
        known = self._nodes_of_netns.get(inode)
        if known is not None and known[0] == generation:
            return known[1]
        names = {self._cluster.node_by_address(address) for address in self._rules.addresses(inode)} - {None}
        name = names.pop() if len(names) == 1 else None
        if len(self._nodes_of_netns) >= MAX_NODES:
            self._nodes_of_netns.clear()
        self._nodes_of_netns[inode] = generation, name
        return name

    def _this_machine(self, netns: int, nat_netns: int) -> str | None:
        """The name of this machine as a node; its hostname where there is no API to say that it is none."""
        name = self._node_of_netns(self._own_netns) or self._cluster.node_by_hostname(self._hostname)
        if name is not None:
            return name
        is_own = self._own_netns in (netns, nat_netns)
        no_api = not self._cluster.loaded() or self._local.is_foreign(self._own_netns)
        return self._hostname if is_own or no_api else None

    def _fallback(self) -> str:
        """Where names come from without the API."""
        return "kube-proxy's rules and /proc" if self._rules.any_node() else "/proc"


def _is_loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1"


def _is_special(ip: str) -> bool:
    """Whether an address means something else on each machine, or is no machine's."""
    parsed = ipaddress.ip_address(ip)
    return parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified
