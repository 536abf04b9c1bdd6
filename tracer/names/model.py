"""The answers that `tracer.names` gives. A name that is not known is None; nothing is guessed."""

from __future__ import annotations

from typing import NamedTuple


class PodName(NamedTuple):
    """A pod; its namespace is None where only the hostname told its name."""

    namespace: str | None
    pod: str


class DestinationName(NamedTuple):
    """What stands behind an address that was asked for.

    kind: ClusterIP, NodePort, ExternalIP, LoadBalancer, Pod, Node, External; None when that is not known. External is
    said only when the cluster's addresses are known and this is none of them. A pod as destination gives its namespace.
    """

    namespace: str | None = None
    service: str | None = None
    port_name: str | None = None
    kind: str | None = None


class Route(NamedTuple):
    """The rules that chose a backend: chains in the order walked, and the probability (0 to 1) of that choice."""

    via: tuple[str, ...] = ()
    probability: float | None = None


NOWHERE = DestinationName()
NO_ROUTE = Route()
