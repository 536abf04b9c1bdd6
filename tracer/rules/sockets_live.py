"""The eBPF datapath of the live kernel, as what is known of a network namespace's Services beside its rules.

What belongs here: which datapath counts, and the facts around it. What does not: finding it (`tracer.datapaths`), what
it means (`sockets`), names from the Kubernetes API (`tracer.names.services`).
"""

from __future__ import annotations

from collections.abc import Callable

from tracer import datapaths, netns, procfs
from tracer.datapaths import Met
from tracer.errors import K8snetError
from tracer.rules.sockets import Names, SocketServices


def of_node(netns_path: str | None) -> SocketServices | None:
    """The datapath of the node that has this network namespace (None: our own). Raises OSError where BPF is refused."""
    met = datapaths.of_node(netns_path)
    return None if met is None else read(met)


def met_in(netns_path: str | None, names: Callable[[], Names] = dict) -> SocketServices | None:
    """The datapath that processes of a network namespace meet, or for None the caller; a pod's is its node's.

    names: asked only if there is one. Raises OSError where BPF is refused.
    """
    met = datapaths.met_in(netns_path)
    return None if met is None else read(met, names())


def of_pod(address: str) -> tuple[SocketServices | None, str | None]:
    """The datapath that the one pod of this machine with this address meets, and a sentence for people about it.

    (None, None) where there is no such pod; None and a sentence, where pods of several nodes have it (two clusters).
    """
    found = {met.id: met for _, met in datapaths.met_at(address)}
    nodes = [netns.find(met.node.netns) for met in found.values() if met.node is not None]
    ways = ", ".join(f"--netns {path}" for path in nodes if path is not None)
    if not found:
        return None, None
    if len(found) > 1:
        return None, f"pods of {len(found)} clusters here have the address {address}: choose a node by {ways}"
    (met,) = found.values()
    return read(met), (
        f"{address} is a pod of another network namespace's node: its socket is told, and then the rules of this one"
        + (f" ({ways} for its own node's)" if ways else "")
    )


def read(met: Met, names: Names | None = None) -> SocketServices | None:
    """All of a datapath; None when it is gone. Raises OSError."""
    datapath = met.read()
    if datapath is None:
        return None

    def is_pod(address: str) -> bool:
        return any(other.id == met.id for _, other in datapaths.met_at(address))

    return SocketServices(datapath, names or {}, _node_ips(met), is_pod)


def _node_ips(met: Met) -> frozenset[str]:
    """All addresses of the node; those that it told the programs, where its namespace can't be entered."""
    own = {"127.0.0.1", "::1"}
    if met.node is None:
        return frozenset(own)
    told = {str(ip) for ip in (met.node.ipv4, met.node.ipv6) if ip is not None}
    path = None if met.node.netns == netns.own() else netns.find(met.node.netns)
    try:
        if path is not None or met.node.netns == netns.own():
            own |= netns.run_in(path, procfs.addresses)
    except K8snetError:
        pass
    return frozenset(own | told)
