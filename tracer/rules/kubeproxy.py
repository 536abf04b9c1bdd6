"""kube-proxy's rules as a Service map, in whichever mode it wrote them."""

from __future__ import annotations

from tracer.rules.building import FAMILIES, Building
from tracer.rules.kube_iptables import read_filter, read_nat
from tracer.rules.kube_nftables import read_nftables
from tracer.rules.model import Origin, RuleSet
from tracer.rules.services import ServiceMap


def service_map(rules: RuleSet) -> ServiceMap:
    """The Service map of all the tables in `rules` that kube-proxy wrote, in whichever mode; empty when it wrote none.

    Where two engines hold rules for one address (a kube-proxy that changed its mode), the table told first counts.
    """
    building = Building()
    for table in rules.tables:
        if table.family not in FAMILIES:
            continue
        if table.origin is Origin.NFTABLES:
            if table.name == "kube-proxy":
                read_nftables(table, building)
        elif table.name == "nat" and "KUBE-SERVICES" in table.chains:
            read_nat(table, building)
            filters = rules.table(table.family, "filter", table.origin)
            if filters is not None:
                read_filter(filters, building)
    return building.finish()
