"""kube-proxy's rules as a Service map, in whichever mode it wrote them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

from tracer.rules.building import FAMILIES, Building
from tracer.rules.kube_iptables import read_filter, read_nat
from tracer.rules.kube_nftables import read_nftables
from tracer.rules.model import Origin, RuleSet, Table
from tracer.rules.routes import Routes
from tracer.rules.services import ServiceMap


def service_map(rules: RuleSet, routes: Callable[[Table], Routes] = Routes) -> ServiceMap:
    """The Service map of all the tables in `rules` that kube-proxy wrote, in whichever mode; empty when it wrote none.

    Where two engines hold rules for one address (a kube-proxy that changed its mode), the table told first counts.
    routes: gives the routes of a table's chains, for whoever has worked some of them out before.
    """
    with _collector_paused():
        return _service_map(rules, routes)


def _service_map(rules: RuleSet, routes: Callable[[Table], Routes]) -> ServiceMap:
    building = Building()
    for table in rules.tables:
        if table.family not in FAMILIES:
            continue
        if table.origin is Origin.NFTABLES:
            if table.name == "kube-proxy":
                read_nftables(table, routes(table), building)
        elif table.name == "nat" and "KUBE-SERVICES" in table.chains:
            read_nat(table, routes(table), building)
            filters = rules.table(table.family, "filter", table.origin)
            if filters is not None:
                read_filter(filters, building)
    found = building.finish()
    if rules.sockets is None:
        return found
    return ServiceMap((*found.services, *rules.sockets.service_ports()), building.scopes)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cyclic garbage collector, which would go through all that is made here again and again.

    Of 10,000 Services that are 200,000 objects, none of them in a cycle, and a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
