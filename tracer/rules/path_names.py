"""Which Service the rules on a packet's way are about: by kube-proxy's comments and the names of its chains.

What belongs here: one name from a few rules. What does not: the map of all Services (`kube_iptables`, `kube_nftables`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tracer.rules.model import Origin
from tracer.rules.trail import Step

_COMMENT = re.compile(
    r"([^\s/:]+)/([^\s/:]+)(?::(\S+))?"
    r"(?: (?:cluster IP|external IP|loadbalancer IP|has no (?:local )?endpoints|health check node port)"
    r"| traffic not accepted by \S+| -> \S+)?"
)
_CHAIN_NAME = re.compile(r"[a-z]+-[A-Z0-9]{8}-([^/]+)/([^/]+)/([^/]+)/([^/]*)")

Name = tuple[str, str, str | None]  # namespace, name, name of the port


def service_on_path(steps: Iterable[Step]) -> Name | None:
    """The first Service that a step is about."""
    for step in steps:
        name = service_of(step)
        if name is not None:
            return name
    return None


def service_of(step: Step) -> Name | None:
    """The Service that one rule of kube-proxy's is about."""
    if step.table.origin is Origin.NFTABLES:
        if step.table.name != "kube-proxy":
            return None
        found = _CHAIN_NAME.match(step.target or "")
        if found is not None:
            return found[1], found[2], found[4] or None
        comment = _COMMENT.fullmatch(step.comment or "")
    elif step.table.origin is Origin.EBPF:
        comment = _COMMENT.fullmatch(step.comment or "")
    else:
        if not step.chain.startswith("KUBE-"):
            return None
        comment = _COMMENT.fullmatch(step.comment or "")
    return None if comment is None else (comment[1], comment[2], comment[3])
