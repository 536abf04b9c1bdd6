"""What a Service sees of its pods: an address, ports, and whether they serve.

Stands for k8s.io/endpointslice (utils.go: podToEndpoint, getEndpointPorts), pkg/controller/util/endpoint and
k8s.io/endpointslice/trigger_time_tracker.go, which both kinds of endpoints share. Left out: topology hints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from labs.cluster.resources import Object, is_ready, key_of, matches

CHANGED = "endpoints.kubernetes.io/last-change-trigger-time"
HEADLESS = "service.kubernetes.io/headless"
ZONE = "topology.kubernetes.io/zone"


def by_namespace(pods: list[Object]) -> dict[str, list[Object]]:
    """Pods, those of each namespace together."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        found.setdefault(pod["metadata"]["namespace"], []).append(pod)
    return found


def state_of(items: list[Object]) -> tuple[int, int]:
    """What differs when any of these objects was written, added or removed: every write has a version of its own."""
    return len(items), max(int(item["metadata"]["resourceVersion"]) for item in items)


def selects_pods(service: Object) -> bool:
    """Whether endpoints are made for a Service; for one without a selector somebody else makes them."""
    return bool(service["spec"].get("selector")) and service["spec"]["type"] != "ExternalName"


def pods_behind(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods that a Service selects and that are on a network (ShouldPodBeInEndpoints, with those that end)."""
    return [
        pod
        for pod in pods
        if matches(service["spec"]["selector"], pod["metadata"].get("labels"))
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and (pod.get("status") or {}).get("podIPs")
    ]


def pod_ip(pod: Object, family: str) -> str | None:
    """A pod's address of a family (IPv4, IPv6), None when it has none."""
    for entry in (pod.get("status") or {}).get("podIPs") or ():
        if (":" in entry["ip"]) is (family == "IPv6"):
            return str(entry["ip"])
    return None


def endpoint_ports(service: Object, pod: Object) -> list[Object]:
    """The Service's ports as this pod has them: a named targetPort may mean another number in each pod."""
    ports = []
    for port in service["spec"].get("ports") or ():
        number = port["targetPort"]
        if isinstance(number, str):
            number = _named_port(pod, number, port["protocol"])
            if number is None:
                continue
        entry = {"name": port.get("name", ""), "protocol": port["protocol"], "port": number}
        if port.get("appProtocol"):
            entry["appProtocol"] = port["appProtocol"]
        ports.append(entry)
    return ports


def _named_port(pod: Object, name: str, protocol: str) -> int | None:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None


def endpoint(service: Object, pod: Object, address: str, zones: Mapping[str, str]) -> Object:
    """A pod as an endpoint of a Service. `zones`: of the nodes that are in one."""
    serving = is_ready(pod)
    terminating = "deletionTimestamp" in pod["metadata"]
    always = bool(service["spec"].get("publishNotReadyAddresses"))
    node = pod["spec"].get("nodeName")
    return {
        "addresses": [address],
        "conditions": {
            "ready": always or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        # A pod that names its subdomain after a headless Service gets a DNS name of its own in it.
        **({"hostname": pod["spec"]["hostname"]} if has_own_name(service, pod) else {}),
        **({"nodeName": node} if node else {}),
        **({"zone": zones[node]} if node in zones else {}),
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    }


def has_own_name(service: Object, pod: Object) -> bool:
    """Whether a pod has a DNS name of its own in a Service (ShouldSetHostname)."""
    return bool(pod["spec"].get("hostname")) and pod["spec"].get("subdomain") == service["metadata"]["name"]


def labels_for(service: Object, own: Mapping[str, str]) -> dict[str, str]:
    """The labels of what is made for a Service: the Service's, one that tells headless ones, and the maker's own."""
    labels = {key: value for key, value in (service["metadata"].get("labels") or {}).items() if key != HEADLESS}
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    return {**labels, **own}


class TriggerTimes:
    """When it was that something happened to a Service or its pods, for those who measure how long endpoints take
    (TriggerTimeTracker)."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}

    def changed(self, service: Object, pods: Iterable[Object]) -> str | None:
        """The first of the times that are new since the last call for that Service; None when there is none."""
        created, known = self._known.get(key_of(service), ("", {}))
        now = {pod["metadata"]["uid"]: _ready_changed(pod) for pod in pods}
        times = [time for uid, time in now.items() if time > known.get(uid, "")]
        if service["metadata"]["creationTimestamp"] > created:
            times.append(service["metadata"]["creationTimestamp"])
        self._known[key_of(service)] = (service["metadata"]["creationTimestamp"], now)
        return min(times, default=None)

    def forget(self, key: tuple[str, str]) -> None:
        """Forget a Service that is gone."""
        self._known.pop(key, None)


def _ready_changed(pod: Object) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready":
            return str(condition.get("lastTransitionTime") or "")
    return ""
