"""The objects that a cluster has before anybody makes some: its nodes, the control plane's pods, the API's endpoints.

Stands for what a kubelet writes when it registers (pkg/kubelet/nodestatus), for the static pods that kubeadm makes
(cmd/kubeadm/app/phases/controlplane), and for the API server's reconciler of default/kubernetes
(pkg/controlplane/reconcilers).
"""

from __future__ import annotations

import os

from labs.cluster import endpointslices, schema
from labs.cluster.admission import MIRROR
from labs.cluster.api.discovery import GIT_VERSION, architecture
from labs.cluster.kinds import Kinds
from labs.cluster.podspec import API_PORT, NodeFacts
from labs.cluster.resources import Object
from labs.cluster.store import now
from tracer.errors import K8snetError

CONTROL_PLANE = {
    "etcd": "registry.k8s.io/etcd:3.5.15-0",
    "kube-apiserver": f"registry.k8s.io/kube-apiserver:{GIT_VERSION}",
    "kube-controller-manager": f"registry.k8s.io/kube-controller-manager:{GIT_VERSION}",
    "kube-scheduler": f"registry.k8s.io/kube-scheduler:{GIT_VERSION}",
}

PRESSURES = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
)


def node(number: int, facts: NodeFacts) -> Object:
    """The Node of the cluster's node `number`, counted from 1, which is the control plane."""
    cidrs = facts.options.plan.pod_cidrs(number)
    labels = {"kubernetes.io/hostname": facts.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture()}
    if number == 1:
        labels["node-role.kubernetes.io/control-plane"] = ""
    capacity = _capacity()
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
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": node_conditions(ready=True),
            "nodeInfo": {
                "kubeletVersion": GIT_VERSION,
                "kubeProxyVersion": GIT_VERSION,
                "kernelVersion": os.uname().release,
                "osImage": "k8snet",
                "operatingSystem": "linux",
                "architecture": architecture(),
                "containerRuntimeVersion": "k8snet://1",
            },
        },
    }


def _capacity() -> Object:
    """What a node has: all of the machine, on each node, as on kind. 110 pods are kubelet's limit (--max-pods)."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    disk = os.statvfs("/")
    return {
        "cpu": str(os.cpu_count() or 1),
        "ephemeral-storage": f"{disk.f_blocks * disk.f_frsize // 1024}Ki",
        "memory": f"{pages * size // 1024}Ki",
        "pods": "110",
    }


def node_conditions(*, ready: bool) -> list[Object]:
    """The conditions of a Node: nothing here is ever short, and it is ready or not."""
    state = ("True", "KubeletReady", "kubelet is posting ready status")
    if not ready:
        state = ("False", "KubeletNotReady", "the node's first process has ended")
    moment = {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
    return [
        {"type": kind, "status": status, "reason": reason, "message": message, **moment}
        for kind, status, reason, message in (*PRESSURES, ("Ready", *state))
    ]


def control_plane_pods(facts: NodeFacts) -> list[Object]:
    """The mirror pods of a control plane's static pods, as they are named and labelled on kind.

    They show what there is. Their programs are parts of the supervisor: none of them has a process of its own.
    """
    return [_mirror_pod(component, image, facts) for component, image in CONTROL_PLANE.items()]


def is_mirror(pod: Object) -> bool:
    """Whether a pod only shows one that was started without the API (pkg/kubelet/types, IsMirrorPod)."""
    return MIRROR in (pod["metadata"].get("annotations") or {})


def _mirror_pod(component: str, image: str, facts: NodeFacts) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{component}-{facts.name}",
            "namespace": "kube-system",
            "labels": {"component": component, "tier": "control-plane"},
            "annotations": {MIRROR: component, "kubernetes.io/config.source": "file"},
        },
        "spec": {
            "nodeName": facts.name,
            "hostNetwork": True,
            "priorityClassName": "system-node-critical",
            "tolerations": [{"effect": "NoExecute", "operator": "Exists"}],
            "containers": [{"name": component, "image": image}],
        },
    }


def mirror_status(pod: Object, facts: NodeFacts) -> Object:
    """The status of a mirror pod: all is well for as long as the cluster is."""
    since = pod["metadata"]["creationTimestamp"]
    entry = pod["spec"]["containers"][0]
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        **pod["status"],
        "phase": "Running",
        "conditions": [
            {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": since} for kind in kinds
        ],
        "hostIP": facts.addresses[0],
        "hostIPs": [{"ip": address} for address in facts.addresses],
        "podIP": facts.addresses[0],
        "podIPs": [{"ip": address} for address in facts.addresses],
        "startTime": since,
        "containerStatuses": [
            {
                "name": entry["name"],
                "image": entry["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": since}},
                "lastState": {},
            }
        ],
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


def typed(kinds: Kinds, item: Object) -> Object:
    """An object of a manifest whose fields have the right types. Raises K8snetError."""
    resource = kinds.by_kind(str(item.get("apiVersion")), str(item.get("kind")))
    name = resource and schema.type_name(resource)
    if name:
        try:
            schema.check(item, name)
        except schema.WrongType as error:
            raise K8snetError(str(error)) from None
    whole: Object = schema.without_nulls(item)
    return whole
