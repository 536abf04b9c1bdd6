"""What `kubectl get` shows of each built-in kind.

Stands for k8s.io/kubernetes/pkg/printers/internalversion/printers.go: the same columns in the same order, those of `-o
wide` with priority 1. A kind that is not here gets Name and Created At, as custom resources do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labs.cluster.api.ages import age, ago
from labs.cluster.resources import Object

Cells = list[Any]
NONE = "<none>"


def printer(kind: str) -> tuple[tuple[str, ...], Callable[[Object], Cells]]:
    """The columns of a kind, and the function that gives an object's cells. A column is written in a short form:
    "Name", "IP+" (wide only), "Restarts#" (a number)."""
    return _TABLES.get(kind, (_DEFAULT_COLUMNS, _default))


def _pairs(labels: Object | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def _default(item: Object) -> Cells:
    return [item["metadata"]["name"], item["metadata"]["creationTimestamp"]]


def _pod(pod: Object) -> Cells:
    status, spec = pod.get("status") or {}, pod["spec"]
    states = status.get("containerStatuses") or []
    sidecars = _sidecars(pod)
    ready = sum(1 for state in (*states, *sidecars) if state["ready"])
    word = _initializing(pod)
    if not word or _is_true(pod, "Initialized"):
        word = _running(pod, states)
    if "deletionTimestamp" in pod["metadata"]:
        word = "Terminating"
    count = len(spec["containers"]) + sum(entry.get("restartPolicy") == "Always" for entry in _first(pod))
    return [
        pod["metadata"]["name"],
        f"{ready}/{count}",
        word,
        _restarts([*states, *sidecars]),
        age(pod),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        NONE,
    ]


def _first(pod: Object) -> list[Object]:
    entries: list[Object] = pod["spec"].get("initContainers") or []
    return entries


def _sidecars(pod: Object) -> list[Object]:
    """The statuses of init containers that run beside the others."""
    names = {entry["name"] for entry in _first(pod) if entry.get("restartPolicy") == "Always"}
    return [state for state in (pod.get("status") or {}).get("initContainerStatuses") or () if state["name"] in names]


def _is_true(pod: Object, condition: str) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(entry["type"] == condition and entry["status"] == "True" for entry in conditions)


def _running(pod: Object, states: list[Object]) -> str:
    """The word for a pod whose init containers are through."""
    status = pod.get("status") or {}
    word: str = status.get("reason") or status.get("phase", "Unknown")
    for state in reversed(states):
        waiting, ended = state["state"].get("waiting"), state["state"].get("terminated")
        if waiting and waiting.get("reason"):
            word = waiting["reason"]
        elif ended:
            word = ended.get("reason") or f"ExitCode:{ended['exitCode']}"
    if word == "Completed" and any(state["ready"] and "running" in state["state"] for state in states):
        return "Running" if _is_true(pod, "Ready") else "NotReady"
    return word


def _initializing(pod: Object) -> str:
    """The word for the init container that has not ended well yet; "" when there is none."""
    sidecars = {state["name"] for state in _sidecars(pod)}
    states = (pod.get("status") or {}).get("initContainerStatuses") or []
    for number, state in enumerate(states):
        ended, waiting = state["state"].get("terminated"), state["state"].get("waiting") or {}
        if (ended is not None and ended["exitCode"] == 0) or (state["name"] in sidecars and state.get("started")):
            continue
        if ended is not None:
            return f"Init:{ended.get('reason') or 'ExitCode:' + str(ended['exitCode'])}"
        if waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{number}/{len(_first(pod))}"
    return ""


def _restarts(states: list[Object]) -> str:
    """How often containers were started again, and when last: "3 (5m ago)"."""
    count = sum(state["restartCount"] for state in states)
    ends = [(state.get("lastState") or {}).get("terminated", {}).get("finishedAt") for state in states]
    last = max((end for end in ends if end), default=None)
    return f"{count} ({ago(last)} ago)" if count and last else str(count)


def _service(service: Object) -> Cells:
    spec = service["spec"]
    return [
        service["metadata"]["name"],
        spec["type"],
        spec.get("clusterIP") or NONE,
        _external_ip(service),
        ",".join(_service_port(port) for port in spec.get("ports") or ()) or NONE,
        age(service),
        _pairs(spec.get("selector")),
    ]


def _external_ip(service: Object) -> str:
    spec = service["spec"]
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    balanced = [entry.get("ip") or entry.get("hostname") for entry in ingress]
    external = [*(balanced if spec["type"] == "LoadBalancer" else ()), *(spec.get("externalIPs") or ())]
    if spec["type"] == "ExternalName":
        return str(spec["externalName"])
    if not external:
        return "<pending>" if spec["type"] == "LoadBalancer" else NONE
    return ",".join(external)


def _service_port(port: Object) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{node}/{port['protocol']}"


def _node(node: Object) -> Cells:
    status = node["status"]
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or ()}
    word = "Ready" if conditions.get("Ready") == "True" else "NotReady"
    if node["spec"].get("unschedulable"):
        word += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    roles = sorted(key.removeprefix(prefix) for key in node["metadata"].get("labels") or {} if key.startswith(prefix))
    info = status.get("nodeInfo") or {}
    addresses = dict.fromkeys(("InternalIP", "ExternalIP"), NONE)
    for entry in reversed(status.get("addresses") or ()):
        addresses[entry["type"]] = entry["address"]
    return [
        node["metadata"]["name"],
        word,
        ",".join(roles) or NONE,
        age(node),
        info.get("kubeletVersion", ""),
        addresses["InternalIP"],
        addresses["ExternalIP"],
        info.get("osImage", "<unknown>"),
        info.get("kernelVersion", "<unknown>"),
        info.get("containerRuntimeVersion", "<unknown>"),
    ]


def _namespace(namespace: Object) -> Cells:
    return [namespace["metadata"]["name"], namespace["status"].get("phase", ""), age(namespace)]


def _endpointslice(item: Object) -> Cells:
    # One without a number is all ports.
    ports = _some([str(port.get("port") or port.get("name") or "*") for port in item.get("ports") or ()])
    addresses = [ip for endpoint in item.get("endpoints") or () for ip in endpoint["addresses"]]
    unset = "<unset>"
    return [item["metadata"]["name"], item["addressType"], ports or unset, _some(addresses) or unset, age(item)]


def _endpoints(item: Object) -> Cells:
    listed = [
        f"[{address['ip']}]:{port['port']}" if ":" in address["ip"] else f"{address['ip']}:{port['port']}"
        for subset in item.get("subsets") or ()
        for port in subset.get("ports") or ()
        for address in subset.get("addresses") or ()
    ]
    return [item["metadata"]["name"], _some(listed) or NONE, age(item)]


def _event(event: Object) -> Cells:
    first, count = event.get("firstTimestamp") or event.get("eventTime"), event.get("count") or 1
    last = event.get("lastTimestamp") or first
    if series := event.get("series"):
        last, count = series.get("lastObservedTime"), series.get("count") or 1
    seen = f"{ago(last)} (x{count} over {ago(first)})" if count > 1 else ago(last)
    source, about = event.get("source") or {}, event["involvedObject"]
    component = source.get("component") or event.get("reportingComponent")
    instance = source.get("host") or event.get("reportingInstance")
    return [
        seen,
        event.get("type", ""),
        event.get("reason", ""),
        "/".join(filter(None, (about.get("kind", "").lower(), about.get("name")))),
        about.get("fieldPath", ""),
        ", ".join(filter(None, (component, instance))),
        str(event.get("message", "")).strip(),
        ago(first),
        count,
        event["metadata"]["name"],
    ]


def _configmap(item: Object) -> Cells:
    count = len(item.get("data") or {}) + len(item.get("binaryData") or {})
    return [item["metadata"]["name"], str(count), age(item)]


def _secret(item: Object) -> Cells:
    return [item["metadata"]["name"], item.get("type", ""), str(len(item.get("data") or {})), age(item)]


def _service_account(item: Object) -> Cells:
    return [item["metadata"]["name"], str(len(item.get("secrets") or ())), age(item)]


def _ingress(item: Object) -> Cells:
    spec = item.get("spec") or {}
    hosts = [rule["host"] for rule in spec.get("rules") or () if rule.get("host")]
    balanced = ((item.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [
        item["metadata"]["name"],
        spec.get("ingressClassName") or NONE,
        _some(hosts) or "*",
        ",".join(entry.get("ip") or entry.get("hostname", "") for entry in balanced),
        "80, 443" if spec.get("tls") else "80",
        age(item),
    ]


def _ingress_class(item: Object) -> Cells:
    spec = item.get("spec") or {}
    parameters = spec.get("parameters")
    shown = f"{parameters.get('kind')}.{parameters.get('apiGroup')}/{parameters.get('name')}" if parameters else NONE
    return [item["metadata"]["name"], spec.get("controller", ""), shown, age(item)]


def _network_policy(item: Object) -> Cells:
    selector = (item.get("spec") or {}).get("podSelector") or {}
    return [item["metadata"]["name"], _selector_text(selector), age(item)]


def _selector_text(selector: Object) -> str:
    """A label selector as kubectl takes it (metav1.FormatLabelSelector)."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for entry in selector.get("matchExpressions") or ():
        key, values = entry["key"], ",".join(sorted(entry.get("values") or ()))
        match entry["operator"]:
            case "In" | "NotIn":
                parts.append(f"{key} {entry['operator'].lower()} ({values})")
            case "Exists":
                parts.append(key)
            case "DoesNotExist":
                parts.append(f"!{key}")
    return ",".join(parts) or NONE


def _some(texts: list[str]) -> str:
    """The first three, and how many there are beyond them."""
    more = f" + {len(texts) - 3} more..." if len(texts) > 3 else ""
    return ",".join(texts[:3]) + more


def _containers(item: Object) -> Cells:
    containers = item["spec"]["template"]["spec"]["containers"]
    return [",".join(entry["name"] for entry in containers), ",".join(entry["image"] for entry in containers)]


def _selector(item: Object) -> str:
    return _selector_text(item["spec"]["selector"])


def _deployment(item: Object) -> Cells:
    status, wanted = item.get("status") or {}, item["spec"]["replicas"]
    return [
        item["metadata"]["name"],
        f"{status.get('readyReplicas', 0)}/{wanted}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        age(item),
        *_containers(item),
        _selector(item),
    ]


def _replicaset(item: Object) -> Cells:
    status, wanted = item.get("status") or {}, item["spec"]["replicas"]
    return [
        item["metadata"]["name"],
        wanted,
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        age(item),
        *_containers(item),
        _selector(item),
    ]


def _daemonset(item: Object) -> Cells:
    status = item.get("status") or {}
    counts = (
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    )
    return [
        item["metadata"]["name"],
        *(status.get(count, 0) for count in counts),
        _pairs(item["spec"]["template"]["spec"].get("nodeSelector")),
        age(item),
        *_containers(item),
        _selector(item),
    ]


def _controller_revision(item: Object) -> Cells:
    references = item["metadata"].get("ownerReferences") or ()
    owner = next((entry for entry in references if entry.get("controller")), None)
    group = owner["apiVersion"].rpartition("/")[0] if owner is not None else ""
    kind = f"{owner['kind'].lower()}{'.' if group else ''}{group}/{owner['name']}" if owner is not None else NONE
    return [item["metadata"]["name"], kind, item["revision"], age(item)]


def _lease(item: Object) -> Cells:
    return [item["metadata"]["name"], (item.get("spec") or {}).get("holderIdentity", ""), age(item)]


def _scale(item: Object) -> Cells:
    return [item["metadata"]["name"], item["spec"].get("replicas", 0), item["status"]["replicas"], age(item)]


_DEFAULT_COLUMNS = ("Name", "Created At")
_TEMPLATE_COLUMNS = ("Containers+", "Images+", "Selector+")
_TABLES: dict[str, tuple[tuple[str, ...], Callable[[Object], Cells]]] = {
    "Pod": (
        ("Name", "Ready", "Status", "Restarts", "Age", "IP+", "Node+", "Nominated Node+", "Readiness Gates+"),
        _pod,
    ),
    "Service": (("Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age", "Selector+"), _service),
    "Node": (
        (
            *("Name", "Status", "Roles", "Age", "Version"),
            *("Internal-IP+", "External-IP+", "OS-Image+", "Kernel-Version+", "Container-Runtime+"),
        ),
        _node,
    ),
    "Namespace": (("Name", "Status", "Age"), _namespace),
    "Endpoints": (("Name", "Endpoints", "Age"), _endpoints),
    "Event": (
        (
            *("Last Seen", "Type", "Reason", "Object", "Subobject+", "Source+", "Message"),
            *("First Seen+", "Count+", "Name+"),
        ),
        _event,
    ),
    "ConfigMap": (("Name", "Data", "Age"), _configmap),
    "Secret": (("Name", "Type", "Data", "Age"), _secret),
    "ServiceAccount": (("Name", "Secrets", "Age"), _service_account),
    "Ingress": (("Name", "Class", "Hosts", "Address", "Ports", "Age"), _ingress),
    "IngressClass": (("Name", "Controller", "Parameters", "Age"), _ingress_class),
    "NetworkPolicy": (("Name", "Pod-Selector", "Age"), _network_policy),
    "EndpointSlice": (("Name", "AddressType", "Ports", "Endpoints", "Age"), _endpointslice),
    "Deployment": (("Name", "Ready", "Up-to-date", "Available", "Age", *_TEMPLATE_COLUMNS), _deployment),
    "ReplicaSet": (("Name", "Desired#", "Current#", "Ready#", "Age", *_TEMPLATE_COLUMNS), _replicaset),
    "ControllerRevision": (("Name", "Controller", "Revision", "Age"), _controller_revision),
    "Lease": (("Name", "Holder", "Age"), _lease),
    "Scale": (("Name", "Desired#", "Available#", "Age"), _scale),
    "DaemonSet": (
        (
            *("Name", "Desired#", "Current#", "Ready#", "Up-to-date#", "Available#", "Node Selector", "Age"),
            *_TEMPLATE_COLUMNS,
        ),
        _daemonset,
    ),
}
