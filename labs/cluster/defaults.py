"""What the API server fills in where an object leaves something open.

Stands for the defaulting functions (pkg/apis/*/v1/defaults.go), the preparation of new objects (PrepareForCreate in
pkg/registry) and the admission plugins that matter to a pod (ServiceAccount, DefaultTolerationSeconds, Priority). Pure:
an object in, the same object completed.

What belongs here: values that follow from the object itself. What does not: what needs a look at other objects
(`labs.cluster.allocation`), and what is wrong (`labs.cluster.validation`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable

from labs.cluster.extensions import definitions
from labs.cluster.options import AddressPlan
from labs.cluster.resources import Object

FAMILY_NAMES = {4: "IPv4", 6: "IPv6"}
PRIORITIES = {"system-node-critical": 2000001000, "system-cluster-critical": 2000000000}


def complete(item: Object, plan: AddressPlan) -> None:
    """Fill in the defaults of an object of any kind, in place. What is filled in already stays."""
    fill = _BY_KIND.get(item["kind"])
    if fill is not None:
        fill(item)
    if item["kind"] == "Service":
        _service(item, plan)


def first_status(item: Object) -> None:
    """Give a new object the status that the API server starts it with; what the client says of it does not count."""
    match item["kind"]:
        case "Namespace":
            item["status"] = {"phase": "Active"}
        case "Pod":
            item["status"] = {"phase": "Pending", "qosClass": qos_class(item["spec"])}
        case "Service" | "Ingress":
            item["status"] = {"loadBalancer": {}}
        case "Deployment":
            item["status"] = {}
        case "ReplicaSet":
            item["status"] = {"replicas": 0}
        case "DaemonSet":
            counts = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")
            item["status"] = dict.fromkeys(counts, 0)
        case "NetworkPolicy":
            item.pop("status", None)


def admit_pod(pod: Object) -> None:
    """What admission plugins add to a pod, but not to a pod template."""
    spec = pod["spec"]
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = account
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", PRIORITIES.get(spec.get("priorityClassName", ""), 0))
    tolerations = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(entry.get("key") in (key, None) and entry.get("effect") != "NoSchedule" for entry in tolerations):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})


def pod_spec(spec: Object) -> None:
    """SetDefaults_PodSpec and those of everything inside."""
    if account := spec.get("serviceAccountName") or spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"] = account  # one value under two names
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    for entry in spec.get("volumes") or ():
        _volume(entry)
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            _container(container)
            for port in container.get("ports") or ():
                if spec.get("hostNetwork") and "containerPort" in port:
                    port.setdefault("hostPort", port["containerPort"])


def _container(container: Object) -> None:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    floating = "@" not in image and tag in ("", "latest")
    container.setdefault("imagePullPolicy", "Always" if floating else "IfNotPresent")
    resources = container.setdefault("resources", {})
    for kind in resources.keys() & {"limits", "requests"}:
        resources[kind] = {name: str(amount) for name, amount in (resources[kind] or {}).items()}
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    limits = resources.get("limits")
    if limits:
        requests = resources.setdefault("requests", {})
        for name, amount in limits.items():
            requests.setdefault(name, amount)
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for entry in container.get("env") or ():
        reference = (entry.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(kind):
            _probe(container[kind])


def _probe(probe: Object) -> None:
    for name, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(name):
            probe[name] = value
    if probe.get("httpGet"):
        probe["httpGet"].setdefault("path", "/")
        probe["httpGet"].setdefault("scheme", "HTTP")


def _volume(volume: Object) -> None:
    for kind in ("configMap", "secret", "projected", "downwardAPI"):
        if isinstance(volume.get(kind), dict):
            volume[kind].setdefault("defaultMode", 420)
    if isinstance(volume.get("hostPath"), dict):
        volume["hostPath"].setdefault("type", "")
    if volume.keys() == {"name"}:
        volume["emptyDir"] = {}


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


def _pod(item: Object) -> None:
    pod_spec(item.setdefault("spec", {}))


def _template(item: Object) -> Object:
    """Defaults of whatever makes pods from a template; gives its spec."""
    spec: Object = item.setdefault("spec", {})
    template = spec.setdefault("template", {})
    template.setdefault("metadata", {}).setdefault("creationTimestamp", None)
    pod_spec(template.setdefault("spec", {}))
    return spec


def _deployment(item: Object) -> None:
    spec = _template(item)
    spec.setdefault("replicas", 1)
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        if not strategy.get("rollingUpdate"):
            strategy["rollingUpdate"] = {}
        strategy["rollingUpdate"].setdefault("maxUnavailable", "25%")
        strategy["rollingUpdate"].setdefault("maxSurge", "25%")
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def _replicaset(item: Object) -> None:
    spec = _template(item)
    spec.setdefault("replicas", 1)


def _daemonset(item: Object) -> None:
    spec = _template(item)
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        if not strategy.get("rollingUpdate"):
            strategy["rollingUpdate"] = {}
        strategy["rollingUpdate"].setdefault("maxUnavailable", 1)
        strategy["rollingUpdate"].setdefault("maxSurge", 0)
    spec.setdefault("revisionHistoryLimit", 10)


def _namespace(item: Object) -> None:
    metadata = item["metadata"]
    if metadata.get("name"):
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
    spec = item.setdefault("spec", {})
    spec.setdefault("finalizers", ["kubernetes"])


def _secret(item: Object) -> None:
    item.setdefault("type", "Opaque")
    texts = item.pop("stringData", None) or {}
    if texts:
        item.setdefault("data", {}).update(
            {key: base64.b64encode(str(value).encode()).decode() for key, value in texts.items()}
        )


def _endpoints(item: Object) -> None:
    for subset in item.get("subsets") or ():
        for port in subset.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _endpointslice(item: Object) -> None:
    for port in item.get("ports") or ():
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")


def _network_policy(item: Object) -> None:
    spec = item.setdefault("spec", {})
    spec.setdefault("podSelector", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
        for port in rule.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _service(item: Object, plan: AddressPlan) -> None:
    spec = item.setdefault("spec", {})
    kind = spec.setdefault("type", "ClusterIP")
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    if spec.setdefault("sessionAffinity", "None") == "ClientIP":
        config = spec["sessionAffinityConfig"] = spec.get("sessionAffinityConfig") or {}
        config["clientIP"] = config.get("clientIP") or {}
        config["clientIP"].setdefault("timeoutSeconds", 10800)
    else:
        spec.pop("sessionAffinityConfig", None)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, 0, "") and "port" in port:
            port["targetPort"] = port["port"]
    if kind == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if kind in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    _families(spec, plan)


def _families(spec: Object, plan: AddressPlan) -> None:
    """initIPFamilyFields of pkg/registry/core/service/storage/alloc.go; what is wrong stays for validation to see."""
    wanted, ips = list(spec.get("ipFamilies") or ()), spec.get("clusterIPs") or []
    wanted += _families_of(ips)[len(wanted) :]
    names = [FAMILY_NAMES[family] for family in plan.families]
    if anywhere := is_anywhere(spec):
        names += [name for name in FAMILY_NAMES.values() if name not in names]
    policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if anywhere else "SingleStack")
    count = 1 if policy == "SingleStack" else len(names)
    others = [name for name in names if name not in wanted]
    spec["ipFamilies"] = [*wanted, *others[: max(count - len(wanted), 0)]]


def is_anywhere(spec: Object) -> bool:
    """Whether a Service is headless and chooses no pods: its endpoints may be of any family, also of one that the
    cluster does not have."""
    return (spec.get("clusterIPs") or [None])[0] == "None" and not spec.get("selector")


def _families_of(addresses: list[str | None]) -> list[str]:
    """The families of the addresses that a Service asks for."""
    return ["IPv6" if ":" in address else "IPv4" for address in addresses if address and address != "None"]


_BY_KIND: dict[str, Callable[[Object], None]] = {
    "Namespace": _namespace,
    "Pod": _pod,
    "Deployment": _deployment,
    "ReplicaSet": _replicaset,
    "DaemonSet": _daemonset,
    "Secret": _secret,
    "Endpoints": _endpoints,
    "EndpointSlice": _endpointslice,
    "NetworkPolicy": _network_policy,
    "CustomResourceDefinition": definitions.complete,
}
