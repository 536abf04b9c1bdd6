"""What keeps a cluster from being ready: pods that do not serve, and nodes whose kernel is behind the API.

Stands for nothing in Kubernetes, where one waits with `kubectl wait` and hopes for the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from labs.cluster.kubelet import Kubelet
from labs.cluster.resources import (
    DAEMONSETS,
    DEPLOYMENTS,
    ENDPOINTSLICES,
    PODS,
    REPLICASETS,
    SERVICES,
    Object,
    controller_of,
    is_active,
    is_ready,
)
from labs.cluster.store import Store

SERVICE_PROXIES = ("kube-proxy", "service-lb")  # containers of which a node has one


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the cluster is not ready; `fatal` when waiting won't help."""

    text: str
    fatal: bool = False


def unready(store: Store, nodes: Iterable[tuple[str, Kubelet]]) -> list[Reason]:
    """What keeps a cluster of these nodes, (name, kubelet), from being ready, now."""
    kubelets = dict(nodes)
    pods = [pod for pod in store.list(PODS) if is_active(pod)]
    kinds = (DAEMONSETS, DEPLOYMENTS, REPLICASETS)
    wanted = sum(_wanted_pods(item, len(kubelets)) for kind in kinds for item in store.list(kind))
    reasons = [_pod_reason(pod) for pod in pods if not is_ready(pod)]
    made = sum(controller_of(pod) is not None for pod in pods)
    if made < wanted:
        reasons.append(Reason(f"{wanted - made} pods are still to be made"))
    items = store.list(SERVICES) + store.list(ENDPOINTSLICES)
    newest = max(int(item["metadata"]["resourceVersion"]) for item in items)
    for name, kubelet in kubelets.items():
        if all(synced_version(kubelet, proxy) < newest for proxy in SERVICE_PROXIES):
            complaint = "".join(_complaint(kubelet, proxy) for proxy in SERVICE_PROXIES)
            reasons.append(Reason(f"the Service proxy on {name} is behind{complaint}"))
    return reasons


def synced_version(kubelet: Kubelet, container_name: str) -> int:
    """The resourceVersion that a component on a node has brought to its kernel, 0 for none yet."""
    for pod in kubelet.pods.values():
        for container in pod.containers:
            if container.name == container_name and "synced" in container.said:
                return int(container.said["synced"])
    return 0


def _complaint(kubelet: Kubelet, container_name: str) -> str:
    for pod in kubelet.pods.values():
        for container in pod.containers:
            if container.name == container_name and "error" in container.said:
                return f": {container.said['error']}"
    return ""


def _wanted_pods(item: Object, nodes: int) -> int:
    if item["kind"] == "DaemonSet":
        return nodes
    return 0 if controller_of(item) else int(item["spec"]["replicas"])


def _pod_reason(pod: Object) -> Reason:
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for state in pod["status"].get("containerStatuses") or ():
        waiting = state["state"].get("waiting") or {}
        ended = state["state"].get("terminated") or {}
        if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff"):
            return Reason(f"pod {name}: {waiting['message']}", fatal=True)
        trouble = waiting.get("message") or ended.get("message") or ended.get("reason") or waiting.get("reason")
        if trouble:
            return Reason(f"pod {name}: {trouble}")
    return Reason(f"pod {name}: {pod['status'].get('message') or pod['status'].get('phase')}")
