"""The eBPF proxy's agent without a kernel: which Service ports it works out anew, and which endpoints are gone."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any

from labs.cluster.proxy.ebpf_changes import State
from labs.cluster.proxy.healthchecks import HealthCheck
from labs.cluster.resources import ENDPOINTSLICES, NODES, SERVICES
from labs.cluster.sockdestroy import Peer
from tests.labs.proxy.kube_objects import endpoint, endpoint_slice, service
from tracer.service_lb import Backend

NODE = {"metadata": {"name": "node1"}, "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]}}
ADDRESSES = {"eth0": (ipaddress.ip_address("172.18.0.2"),), "lo": (ipaddress.ip_address("127.0.0.1"),)}


class Api:
    """What an agent knows of the API, and the agent's state."""

    def __init__(self) -> None:
        self.mirror: Any = SimpleNamespace(items={SERVICES: {}, ENDPOINTSLICES: {}, NODES: {("", "node1"): NODE}})
        self.state = State("node1", [4])
        self.state.set_addresses(ADDRESSES)

    def put(self, resource: Any, name: str, item: dict[str, Any] | None) -> None:
        key = ("shop", name)
        if item is None:
            self.mirror.items[resource].pop(key)
        else:
            self.mirror.items[resource][key] = item
        self.state.note(resource, key, item)

    def take(self) -> dict[str, set[str] | None]:
        """Of each Service port that is to be written: its endpoints, None for one that goes."""
        found = self.state.take(self.mirror)
        return {
            str(port): None if one is None else {str(Backend.unpack(backend).ip) for backend in one.cluster}
            for (port, _), one in found.items()
        }


def udp(name: str, ip: str) -> dict[str, Any]:
    return service(name, clusterIP=ip, ports=[{"port": 53, "protocol": "UDP"}])


def udp_slice(name: str, *ips: str) -> dict[str, Any]:
    ports = [{"name": "", "port": 53, "protocol": "UDP"}]
    return endpoint_slice(*(endpoint(ip) for ip in ips), of=name, ports=ports)


def test_only_what_changed_is_worked_out_anew() -> None:
    api = Api()
    for name, ip in (("web", "10.96.0.1"), ("db", "10.96.0.2")):
        api.put(SERVICES, name, service(name, clusterIP=ip))
        api.put(ENDPOINTSLICES, f"{name}-1", endpoint_slice(endpoint("10.244.0.5"), of=name))
    assert api.take() == {"shop/web": {"10.244.0.5"}, "shop/db": {"10.244.0.5"}}
    assert api.take() == {}
    api.put(ENDPOINTSLICES, "web-2", endpoint_slice(endpoint("10.244.0.6"), of="web"))
    assert api.take() == {"shop/web": {"10.244.0.5", "10.244.0.6"}}
    api.put(ENDPOINTSLICES, "web-1", None)
    assert api.take() == {"shop/web": {"10.244.0.6"}}
    api.put(SERVICES, "db", None)
    assert api.take() == {"shop/db": None}


def test_a_slice_that_changes_hands_concerns_both_services() -> None:
    api = Api()
    for name, ip in (("web", "10.96.0.1"), ("db", "10.96.0.2")):
        api.put(SERVICES, name, service(name, clusterIP=ip))
    api.put(ENDPOINTSLICES, "one", endpoint_slice(endpoint("10.244.0.5"), of="web"))
    api.take()
    api.put(ENDPOINTSLICES, "one", endpoint_slice(endpoint("10.244.0.5"), of="db"))
    assert api.take() == {"shop/web": set(), "shop/db": {"10.244.0.5"}}


def test_other_addresses_of_the_node_concern_all_services() -> None:
    api = Api()
    api.put(SERVICES, "web", service(type="NodePort", ports=[{"port": 80, "nodePort": 30080}]))
    api.take()
    assert not api.state.set_addresses(dict(ADDRESSES))
    assert api.take() == {}
    assert api.state.set_addresses({**ADDRESSES, "veth1": (ipaddress.ip_address("10.244.0.1"),)})
    (one,) = api.state.take(api.mirror).values()
    assert one is not None
    assert {str(frontend.ip) for frontend in one.frontends} == {"10.96.0.1", "172.18.0.2", "127.0.0.1", "10.244.0.1"}


def test_health_checks_follow_their_service() -> None:
    api = Api()
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30700}
    api.put(SERVICES, "web", service(clusterIP="10.96.0.1", **local))
    api.put(SERVICES, "db", service("db", clusterIP="10.96.0.2"))
    ends = endpoint("10.244.0.5", node="node1"), endpoint("10.244.1.5", node="node2")
    api.put(ENDPOINTSLICES, "web-1", endpoint_slice(*ends, of="web"))
    api.take()
    assert api.state.health_checks == {("shop", "web"): HealthCheck(30700, 1)}
    api.put(ENDPOINTSLICES, "web-1", None)
    api.take()
    assert api.state.health_checks == {("shop", "web"): HealthCheck(30700, 0)}
    api.put(SERVICES, "web", service(clusterIP="10.96.0.1"))
    api.take()
    assert api.state.health_checks == {}


def test_what_could_not_be_written_is_given_again_unless_it_changed() -> None:
    api = Api()
    api.put(SERVICES, "web", service())
    api.put(SERVICES, "db", service("db", clusterIP="10.96.0.2"))
    api.state.put_back(api.state.take(api.mirror))
    api.put(ENDPOINTSLICES, "web-1", endpoint_slice(endpoint("10.244.0.5"), of="web"))
    assert api.take() == {"shop/web": {"10.244.0.5"}, "shop/db": set()}
    assert api.take() == {}


def test_endpoints_of_udp_that_go_are_told_once_and_not_if_they_come_back() -> None:
    api = Api()
    api.put(SERVICES, "dns", udp("dns", "10.96.0.10"))
    api.put(SERVICES, "web", service(clusterIP="10.96.0.1"))
    api.put(ENDPOINTSLICES, "dns-1", udp_slice("dns", "10.244.0.5", "10.244.0.6"))
    api.put(ENDPOINTSLICES, "web-1", endpoint_slice(endpoint("10.244.0.5"), of="web"))
    api.take()
    assert api.state.take_gone() == set()
    api.put(ENDPOINTSLICES, "dns-1", udp_slice("dns", "10.244.0.6"))
    api.put(ENDPOINTSLICES, "web-1", None)
    api.take()
    assert api.state.take_gone() == {Peer(ipaddress.ip_address("10.244.0.5"), 53)}
    assert api.state.take_gone() == set()
    api.put(ENDPOINTSLICES, "dns-1", None)
    api.take()
    api.put(ENDPOINTSLICES, "dns-1", udp_slice("dns", "10.244.0.6"))
    api.take()
    assert api.state.take_gone() == set()
