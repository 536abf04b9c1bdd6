"""Crafted packets that no rule translated: what programs of an eBPF datapath made of them, at the pod's device.

What belongs here: asking the datapath that processes where the packets leave meet. What does not: its maps
(`tracer.service_lb`), and connection tracking, which knows of these flows only as they were afterwards (`tracking`).
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable

from tracer import datapaths, service_lb
from tracer.errors import K8snetError
from tracer.probe.flows import Flow, Hop
from tracer.probe.origin import Origin
from tracer.probe.packets import Ends


def add_hops(origin: Origin, ends: Ends, flows: Iterable[Flow]) -> None:
    """Tell each flow that nobody else translated where the node's programs sent it; what can't be read is left out."""
    untranslated = [flow for flow in flows if flow.translator is None]
    with contextlib.suppress(K8snetError, OSError):
        met = datapaths.met_in(origin.path) if untranslated else None
        if met is None or met.node is None:
            return
        source, destination = ipaddress.ip_address(ends.source), ipaddress.ip_address(ends.destination)
        found = service_lb.rewritten(met.cgroup, source, destination, ends.port, ends.protocol)
        for flow in untranslated:
            if flow.port in found:
                ip, port = found[flow.port]
                flow.hops = (Hop(met.node.netns, ends.source, str(ip), port, True), *flow.hops)
