"""Service maps as kube-proxy's rules would give them, for tests of names."""

from __future__ import annotations

from tracer.rules.services import Address, Branch, Endpoint, ServiceMap, ServicePort


def service_port(
    name: str,
    ip: str,
    port: int,
    *backends: tuple[str, int],
    namespace: str = "fastapi",
    port_name: str | None = "http",
    protocol: str = "TCP",
    node_port: int | None = None,
) -> ServicePort:
    """One port of a Service with a ClusterIP, and perhaps a NodePort; backends are equally likely."""
    service_chain = f"KUBE-SVC-{name.upper()}"
    endpoints = {
        backend: Endpoint(*backend, 1 / len(backends), (service_chain, f"KUBE-SEP-{n}"))
        for n, backend in enumerate(backends)
    }
    branch = Branch((), (), endpoints)
    addresses = [Address("ClusterIP", ip, port, None if backends else "reject", (branch,) if backends else ())]
    if node_port is not None:
        external = Branch((), (f"KUBE-EXT-{name.upper()}",), endpoints)
        addresses.append(Address("NodePort", None, node_port, None, (external,)))
    return ServicePort(
        family=6 if ":" in ip else 4,
        namespace=namespace,
        name=name,
        port_name=port_name,
        protocol=protocol,
        addresses=tuple(addresses),
        endpoints=tuple(endpoints.values()),
        local_endpoints=(),
        session_affinity_seconds=None,
        source_ranges=(),
        no_endpoints=not backends,
    )


def service_map(*ports: ServicePort) -> ServiceMap:
    """All of them."""
    return ServiceMap(ports)
