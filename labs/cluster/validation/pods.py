"""Pods and pod templates (pkg/apis/core/validation)."""

from __future__ import annotations

from labs.cluster import names, quantities
from labs.cluster.fielderrors import (
    duplicate,
    forbidden,
    invalid,
    missing,
    required,
)
from labs.cluster.resources import Object
from labs.cluster.validation.words import Errors, labels, one_of

PROTOCOLS = ("SCTP", "TCP", "UDP")
POD_UPDATE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def pod(item: Object) -> Errors:
    yield from pod_spec(item["spec"], "spec")


def pod_spec(spec: Object, field: str) -> Errors:
    """What is wrong with a pod's spec."""
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        yield from _named(volume, f"{field}.volumes[{index}]", volumes)
    if not spec.get("containers"):
        yield required(f"{field}.containers")
    taken: set[str] = set()
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            yield from _container(container, f"{field}.{kind}[{index}]", taken, volumes)
    yield from _users(spec.get("securityContext") or {}, f"{field}.securityContext")
    yield from one_of(spec.get("restartPolicy"), f"{field}.restartPolicy", ("Always", "OnFailure", "Never"))
    policies = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
    yield from one_of(spec.get("dnsPolicy"), f"{field}.dnsPolicy", policies)
    yield from labels(spec.get("nodeSelector"), f"{field}.nodeSelector")
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        yield invalid(
            f"{field}.terminationGracePeriodSeconds",
            spec["terminationGracePeriodSeconds"],
            "must be greater than or equal to 0",
        )
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline < 1 << 31:
        yield invalid(f"{field}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
    for part in ("hostname", "subdomain"):
        if spec.get(part):
            yield from (invalid(f"{field}.{part}", spec[part], text) for text in names.dns1123_label(spec[part]))


def _named(item: Object, field: str, taken: set[str]) -> Errors:
    """An RFC 1123 label that nothing else beside it has."""
    name = item.get("name")
    if not name:
        yield required(f"{field}.name")
    elif found := names.dns1123_label(name):
        yield from (invalid(f"{field}.name", name, text) for text in found)
    elif name in taken:
        yield duplicate(f"{field}.name", name)
    else:
        taken.add(name)


def _container(container: Object, field: str, taken: set[str], volumes: set[str]) -> Errors:
    yield from _named(container, field, taken)
    image = container.get("image")
    if not image:
        yield required(f"{field}.image")
    elif image.strip() != image:
        yield invalid(f"{field}.image", image, "must not have leading or trailing whitespace")
    yield from one_of(container.get("imagePullPolicy"), f"{field}.imagePullPolicy", ("Always", "IfNotPresent", "Never"))
    yield from _container_ports(container.get("ports") or [], f"{field}.ports")
    for index, entry in enumerate(container.get("env") or ()):
        here = f"{field}.env[{index}]"
        if not entry.get("name"):
            yield required(f"{here}.name")
        else:
            yield from (invalid(f"{here}.name", entry["name"], text) for text in names.environment_name(entry["name"]))
        if entry.get("value") and entry.get("valueFrom"):
            yield invalid(f"{here}.valueFrom", "", "may not be specified when `value` is not empty")
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        here = f"{field}.volumeMounts[{index}]"
        if not mount.get("name"):
            yield required(f"{here}.name")
        elif mount["name"] not in volumes:
            yield missing(f"{here}.name", mount["name"])
        if not mount.get("mountPath"):
            yield required(f"{here}.mountPath")
    yield from _users(container.get("securityContext") or {}, f"{field}.securityContext")
    yield from _resources(container.get("resources") or {}, f"{field}.resources")
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(kind):
            yield from _probe(container[kind], f"{field}.{kind}")


def _users(context: Object, field: str) -> Errors:
    names = ("runAsUser", "runAsGroup", "fsGroup")
    numbers: list[tuple[str, int]] = [(name, context[name]) for name in names if name in context]
    numbers += [(f"supplementalGroups[{n}]", one) for n, one in enumerate(context.get("supplementalGroups") or ())]
    for name, number in numbers:
        if not 0 <= number < 1 << 31:
            yield invalid(f"{field}.{name}", number, "must be between 0 and 2147483647, inclusive")


def _resources(resources: Object, field: str) -> Errors:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in sorted(amounts.items()):
            if quantities.parse(amount) < 0:
                yield invalid(f"{field}.{kind}[{name}]", amount, "must be greater than or equal to 0")
    for name in sorted(requests.keys() & limits.keys()):
        if quantities.parse(requests[name]) > quantities.parse(limits[name]):
            words = f"must be less than or equal to {name} limit of {limits[name]}"
            yield invalid(f"{field}.requests", requests[name], words)


def _container_ports(ports: list[Object], field: str) -> Errors:
    taken: set[str] = set()
    for index, port in enumerate(ports):
        here, name = f"{field}[{index}]", port.get("name")
        if name:
            yield from (invalid(f"{here}.name", name, text) for text in names.port_name(name))
            if name in taken:
                yield duplicate(f"{here}.name", name)
            taken.add(name)
        if not port.get("containerPort"):
            yield required(f"{here}.containerPort")
        else:
            number = port["containerPort"]
            yield from (invalid(f"{here}.containerPort", number, text) for text in names.port_number(number))
        if port.get("hostPort"):
            yield from (invalid(f"{here}.hostPort", port["hostPort"], t) for t in names.port_number(port["hostPort"]))
        yield from one_of(port.get("protocol"), f"{here}.protocol", PROTOCOLS)


def _probe(probe: Object, field: str) -> Errors:
    kinds = [kind for kind in ("exec", "httpGet", "tcpSocket", "grpc") if probe.get(kind) is not None]
    if not kinds:
        yield required(field, "must specify a handler type")
    for kind in kinds[1:]:
        yield forbidden(f"{field}.{kind}", "may not specify more than 1 handler type")
    for number in ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold"):
        if probe.get(number, 0) < 0:
            yield invalid(f"{field}.{number}", probe[number], "must be greater than or equal to 0")


def update_pod(item: Object, old: Object) -> Errors:
    if _fixed_part(item["spec"]) != _fixed_part(old["spec"]):
        yield forbidden("spec", POD_UPDATE)


def _fixed_part(spec: Object) -> Object:
    """What of a pod's spec may not change."""
    fixed = {
        key: value
        for key, value in spec.items()
        if key not in ("activeDeadlineSeconds", "tolerations", "initContainers", "containers")
    }
    for kind in ("initContainers", "containers"):
        fixed[kind] = [{**container, "image": ""} for container in spec.get(kind) or ()]
    return fixed
