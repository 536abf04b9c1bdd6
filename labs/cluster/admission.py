"""What the API server adds to an object before it stores it: defaults, ClusterIPs, node ports.

Stands for the defaulting functions (pkg/apis/core/v1/defaults.go), the ServiceAccount admission plugin as far as pods
need it, and the Service registry's allocation of addresses and ports (pkg/registry/core/service). Left out: validation,
quotas, and repair of allocations; a manifest that asks for an address or port in use is refused.
"""

from __future__ import annotations

import copy
import ipaddress
import random
from collections.abc import Iterable
from typing import Any

from labs.cluster.options import AddressPlan
from labs.cluster.resources import NAMESPACES, SERVICES, Object, Resource, by_kind
from labs.cluster.store import Store
from tracer.errors import K8snetError

NODE_PORTS = range(30000, 32768)
# The lower part of the range is left to addresses that are asked for by name (KEP-3070).
STATIC_BAND = 256


class Invalid(K8snetError):
    """The object can't be stored; the message says which field, as the API would."""


def admit(store: Store, plan: AddressPlan, item: Object) -> Object:
    """Store a new object with all that the API server would add to it. Raises Invalid or AlreadyExists."""
    resource, item = prepare(plan, item)
    namespace = item["metadata"].get("namespace")
    if resource.namespaced and store.find(NAMESPACES, "", str(namespace)) is None:
        raise Invalid(f'namespaces "{namespace}" not found')
    if resource == SERVICES:
        _allocate(item, store.list(SERVICES), plan)
    return store.create(resource, item)


def prepare(plan: AddressPlan, item: Object) -> tuple[Resource, Object]:
    """An object with defaults, and its resource. Raises Invalid when it is no object of a kind that is known."""
    resource = by_kind(str(item.get("apiVersion")), str(item.get("kind")))
    if resource is None:
        raise Invalid(f'no matches for kind "{item.get("kind")}" in version "{item.get("apiVersion")}"')
    item = copy.deepcopy(item)
    metadata = item.setdefault("metadata", {})
    if not metadata.get("name"):
        raise Invalid(f"{resource.kind}: metadata.name: Required value")
    if resource.namespaced:
        metadata.setdefault("namespace", "default")
    else:
        metadata.pop("namespace", None)
    match resource.kind:
        case "Namespace":
            metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
            item["spec"] = {"finalizers": ["kubernetes"]}
            item["status"] = {"phase": "Active"}
        case "Pod":
            default_pod_spec(item.setdefault("spec", {}))
            item["status"] = {"phase": "Pending", "qosClass": qos_class(item["spec"])}
        case "Deployment" | "ReplicaSet" | "DaemonSet":
            _default_workload(resource, item)
        case "Service":
            _default_service(item, plan)
    return resource, item


def default_pod_spec(spec: Object) -> None:
    """Fill in what a pod's spec leaves open (SetDefaults_PodSpec and the admission plugins)."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("enableServiceLinks", True)
    containers = spec.get("containers")
    if not containers:
        raise Invalid("spec.containers: Required value")
    for index, container in enumerate(containers):
        for required in ("name", "image"):
            if not container.get(required):
                raise Invalid(f"spec.containers[{index}].{required}: Required value")
        container.setdefault("imagePullPolicy", "IfNotPresent")
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        for port in container.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if spec.get("hostNetwork"):
                port.setdefault("hostPort", port["containerPort"])


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort (pkg/apis/core/v1/helper/qos): it decides where the pod's cgroup hangs."""
    resources = [container.get("resources") or {} for container in spec["containers"]]
    if not any(entry.get("requests") or entry.get("limits") for entry in resources):
        return "BestEffort"
    for entry in resources:
        limits = entry.get("limits") or {}
        if not {"cpu", "memory"} <= limits.keys() or (entry.get("requests") or limits) != limits:
            return "Burstable"
    return "Guaranteed"


def _default_workload(resource: Resource, item: Object) -> None:
    spec = item.setdefault("spec", {})
    if resource.kind != "DaemonSet":
        spec.setdefault("replicas", 1)
    template = spec.get("template")
    labels = ((template or {}).get("metadata") or {}).get("labels") or {}
    wanted = (spec.get("selector") or {}).get("matchLabels")
    if not template or not wanted:
        raise Invalid(f"{resource.kind}: spec.selector and spec.template: Required value")
    if not wanted.items() <= labels.items():
        raise Invalid(f"{resource.kind}: spec.template.metadata.labels: `selector` does not match template `labels`")
    default_pod_spec(template.setdefault("spec", {}))


def _default_service(item: Object, plan: AddressPlan) -> None:
    spec = item.setdefault("spec", {})
    kind = spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])
    item["status"] = {"loadBalancer": (item.get("status") or {}).get("loadBalancer") or {}}
    if kind == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if kind in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    names = {4: "IPv4", 6: "IPv6"}
    policy = spec.setdefault("ipFamilyPolicy", "SingleStack")
    if policy == "RequireDualStack" and len(plan.families) < 2:
        raise Invalid(
            'spec.ipFamilyPolicy: Invalid value: "RequireDualStack": '
            "this cluster is not configured for dual-stack services"
        )
    count = 1 if policy == "SingleStack" else len(plan.families)
    wanted = spec.get("ipFamilies") or []
    spec["ipFamilies"] = [*wanted, *(names[family] for family in plan.families if names[family] not in wanted)][:count]
    if not spec.get("ports") and spec.get("clusterIP") != "None":
        raise Invalid("spec.ports: Required value")


def _allocate(item: Object, services: Iterable[Object], plan: AddressPlan) -> None:
    """Give a Service its ClusterIPs and node ports, or check those that it asks for."""
    spec = item["spec"]
    if spec["type"] == "ExternalName":
        return
    used_ips, used_ports = _in_use(services)
    asked = list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else ()))
    if asked and asked[0] == "None":
        spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
    else:
        spec["clusterIPs"] = _cluster_ips(asked, spec["ipFamilies"], used_ips, plan)
        spec["clusterIP"] = spec["clusterIPs"][0]
    if spec["type"] in ("NodePort", "LoadBalancer") and spec.get("allocateLoadBalancerNodePorts", True):
        _node_ports(spec["ports"], used_ports)


def _in_use(services: Iterable[Object]) -> tuple[set[str], set[tuple[str, int]]]:
    ips: set[str] = set()
    ports: set[tuple[str, int]] = set()
    for service in services:
        ips.update(service["spec"].get("clusterIPs") or ())
        for port in service["spec"].get("ports") or ():
            if port.get("nodePort"):
                ports.add((port["protocol"], port["nodePort"]))
    return ips, ports


def _cluster_ips(asked: list[str], families: list[str], used: set[str], plan: AddressPlan) -> list[str]:
    networks = {"IPv6" if ":" in text else "IPv4": ipaddress.ip_network(text) for text in plan.service_networks}
    given = []
    for index, family in enumerate(families):
        network = networks.get(family)
        if network is None:
            raise Invalid(f'spec.ipFamilies[{index}]: Invalid value: "{family}": not configured on this cluster')
        if index >= len(asked):
            given.append(_free_ip(network, used))
            continue
        ip = ipaddress.ip_address(asked[index])
        if ip not in network:
            raise Invalid(
                f'spec.clusterIPs: Invalid value: "{ip}": the provided IP is not in the valid range {network}'
            )
        if str(ip) in used:
            raise Invalid(f'spec.clusterIPs: Invalid value: "{ip}": provided IP is already allocated')
        given.append(str(ip))
    return given


def _free_ip(network: Any, used: set[str]) -> str:
    size = min(network.num_addresses, 1 << 16)
    for _ in range(1000):
        ip = str(network.network_address + random.randrange(min(STATIC_BAND, size // 2), size - 1))
        if ip not in used:
            return ip
    for offset in range(1, size - 1):
        ip = str(network.network_address + offset)
        if ip not in used:
            return ip
    raise Invalid("failed to allocate a serviceIP: range is full")


def _node_ports(ports: list[Object], used: set[tuple[str, int]]) -> None:
    for port in ports:
        asked = port.get("nodePort")
        if asked:
            if asked not in NODE_PORTS:
                raise Invalid(
                    f"spec.ports.nodePort: Invalid value: {asked}: provided port is not in the valid range. "
                    f"The range of valid ports is {NODE_PORTS[0]}-{NODE_PORTS[-1]}"
                )
            if (port["protocol"], asked) in used:
                raise Invalid(f"spec.ports.nodePort: Invalid value: {asked}: provided port is already allocated")
        else:
            free = [number for number in NODE_PORTS if (port["protocol"], number) not in used]
            if not free:
                raise Invalid("failed to allocate a nodePort: range is full")
            port["nodePort"] = random.choice(free)
        used.add((port["protocol"], port["nodePort"]))
