"""The objects that a cluster has before anybody makes some: its nodes, and the API's own endpoints.

Stands for what a kubelet writes when it registers (pkg/kubelet/nodestatus), and for the API server's reconciler of
default/kubernetes (pkg/controlplane/reconcilers).
"""

from __future__ import annotations

import platform

from labs.cluster import endpointslices, schema
from labs.cluster.api.discovery import GIT_VERSION
from labs.cluster.podspec import API_PORT, NodeFacts
from labs.cluster.resources import Object, by_kind
from labs.cluster.store import now
from tracer.errors import K8snetError


def node(number: int, facts: NodeFacts) -> Object:
    """The Node of the cluster's node `number`, counted from 1, which is the control plane."""
    cidrs = facts.options.plan.pod_cidrs(number)
    labels = {"kubernetes.io/hostname": facts.name, "kubernetes.io/os": "linux"}
    if number == 1:
        labels["node-role.kubernetes.io/control-plane"] = ""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": facts.name, "labels": labels},
        "spec": {
            "podCIDR": cidrs[0],
            "podCIDRs": cidrs,
            "providerID": f"k8snet://{facts.options.name}/{facts.name}",
        },
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": address} for address in facts.addresses),
                {"type": "Hostname", "address": facts.name},
            ],
            "conditions": [node_condition(ready=True)],
            "nodeInfo": {
                "kubeletVersion": GIT_VERSION,
                "kubeProxyVersion": GIT_VERSION,
                "kernelVersion": platform.release(),
                "osImage": "k8snet",
                "operatingSystem": "linux",
                "architecture": platform.machine(),
                "containerRuntimeVersion": "k8snet://1",
            },
        },
    }


def node_condition(*, ready: bool) -> Object:
    """The condition Ready of a Node."""
    return {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": "KubeletReady" if ready else "KubeletNotReady",
        "message": "kubelet is posting ready status" if ready else "the node's first process has ended",
        "lastHeartbeatTime": now(),
        "lastTransitionTime": now(),
    }


def api_slice(service: Object, address: str) -> Object:
    """The endpoints of the API itself, which the API server writes: it is no pod that a selector could find."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": service["metadata"]["name"],
            "namespace": service["metadata"]["namespace"],
            "labels": {endpointslices.SERVICE_NAME: service["metadata"]["name"]},
        },
        "addressType": "IPv4",
        "ports": [{"name": "https", "protocol": "TCP", "port": API_PORT}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }


def api_endpoints(service: Object, address: str) -> Object:
    """The same in the older form."""
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": service["metadata"]["name"],
            "namespace": service["metadata"]["namespace"],
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [
            {"addresses": [{"ip": address}], "ports": [{"name": "https", "port": API_PORT, "protocol": "TCP"}]},
        ],
    }


def typed(item: Object) -> Object:
    """An object of a manifest whose fields have the right types. Raises K8snetError."""
    resource = by_kind(str(item.get("apiVersion")), str(item.get("kind")))
    name = resource and schema.type_name(resource)
    if name:
        try:
            schema.check(item, name)
        except schema.WrongType as error:
            raise K8snetError(str(error)) from None
    whole: Object = schema.without_nulls(item)
    return whole
