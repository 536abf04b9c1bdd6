"""ConfigMaps, Secrets, Ingresses, Endpoints, EndpointSlices, NetworkPolicies, Events of events.k8s.io."""

from __future__ import annotations

from labs.cluster import names
from labs.cluster.fielderrors import (
    GoText,
    duplicate,
    forbidden,
    invalid,
    required,
    unsupported,
)
from labs.cluster.resources import Object
from labs.cluster.validation.words import Errors, endpoint_ip, one_of


def data(item: Object) -> Errors:
    for part in ("data", "binaryData"):
        for key in item.get(part) or {}:
            yield from (invalid(f"{part}[{key}]", key, text) for text in names.config_key(key))


def update_data(item: Object, old: Object) -> Errors:
    if not old.get("immutable"):
        return
    if not item.get("immutable"):
        yield forbidden("immutable", "field is immutable when `immutable` is set")
    for part in ("data", "binaryData"):
        if (item.get(part) or {}) != (old.get(part) or {}):
            yield forbidden(part, "field is immutable when `immutable` is set")


def update_secret(item: Object, old: Object) -> Errors:
    if item.get("type") != old.get("type"):
        yield invalid("type", item.get("type"), "field is immutable")
    yield from update_data(item, old)


def ingress(item: Object) -> Errors:
    spec = item.get("spec") or {}
    if not spec.get("rules") and not spec.get("defaultBackend"):
        yield invalid(
            "spec", GoText("[]networking.IngressRule(nil)"), "either `defaultBackend` or `rules` must be specified"
        )
    for index, rule in enumerate(spec.get("rules") or ()):
        here = f"spec.rules[{index}]"
        for number, path in enumerate((rule.get("http") or {}).get("paths") or ()):
            yield from _ingress_path(path, f"{here}.http.paths[{number}]")


def _ingress_path(path: Object, field: str) -> Errors:
    kinds = ("Exact", "ImplementationSpecific", "Prefix")
    if not path.get("pathType"):
        yield required(f"{field}.pathType", "pathType must be specified")
    elif path["pathType"] not in kinds:
        yield unsupported(f"{field}.pathType", path["pathType"], kinds)
    elif path["pathType"] in ("Exact", "Prefix") and not str(path.get("path", "")).startswith("/"):
        yield invalid(f"{field}.path", path.get("path", ""), "must be an absolute path")
    service = (path.get("backend") or {}).get("service")
    if service is None and not (path.get("backend") or {}).get("resource"):
        yield required(f"{field}.backend", "cannot set both resource and service backends")
    elif service is not None:
        if not service.get("name"):
            yield required(f"{field}.backend.service.name")
        port = service.get("port") or {}
        if not port.get("name") and not port.get("number"):
            yield required(f"{field}.backend", "port name or number is required")


def endpoints(item: Object) -> Errors:
    for index, subset in enumerate(item.get("subsets") or ()):
        here = f"subsets[{index}]"
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            yield required(here, "must specify `addresses` or `notReadyAddresses`")
        for field in ("addresses", "notReadyAddresses"):
            for number, address in enumerate(subset.get(field) or ()):
                yield from endpoint_ip(address["ip"], f"{here}.{field}[{number}].ip")
        ports = subset.get("ports") or ()
        for number, port in enumerate(ports):
            if not port.get("name") and len(ports) > 1:
                yield required(f"{here}.ports[{number}].name")
            yield from _endpoint_port(port, f"{here}.ports[{number}]")


def _endpoint_port(port: Object, field: str) -> Errors:
    if name := port.get("name"):
        yield from (invalid(f"{field}.name", name, text) for text in names.dns1123_label(name))
    if "port" in port:
        yield from (invalid(f"{field}.port", port["port"], text) for text in names.port_number(port["port"]))
    yield from one_of(port.get("protocol"), f"{field}.protocol", ("SCTP", "TCP", "UDP"))


def endpointslice(item: Object) -> Errors:
    kind = item.get("addressType")
    yield from one_of(kind, "addressType", ("FQDN", "IPv4", "IPv6"))
    for index, endpoint in enumerate(item.get("endpoints") or ()):
        if not endpoint.get("addresses"):
            yield required(f"endpoints[{index}].addresses", "must contain at least 1 address")
        for number, text in enumerate(endpoint.get("addresses") or ()):
            field = f"endpoints[{index}].addresses[{number}]"
            if kind in ("IPv4", "IPv6"):
                if (":" in text) is (kind == "IPv4"):
                    yield invalid(field, text, f"must be a valid {kind} address")
                yield from endpoint_ip(text, field)
    taken: set[str] = set()
    for index, port in enumerate(item.get("ports") or ()):
        name = port.get("name") or ""
        if name in taken:
            yield duplicate(f"ports[{index}].name", name)
        taken.add(name)
        yield from _endpoint_port(port, f"ports[{index}]")


def update_endpointslice(item: Object, old: Object) -> Errors:
    if item.get("addressType") != old.get("addressType"):
        yield invalid("addressType", item.get("addressType"), "field is immutable")


def network_policy(item: Object) -> Errors:
    for index, kind in enumerate(item["spec"].get("policyTypes") or ()):
        if kind not in ("Egress", "Ingress"):
            yield unsupported(f"spec.policyTypes[{index}]", kind, ("Egress", "Ingress"))


def event_v1(item: Object) -> Errors:
    """What an Event must say that comes through events.k8s.io (legacy ones, of the core group, may leave all out)."""
    if not item.get("eventTime"):
        yield required("eventTime")
    for field in ("reportingController", "reportingInstance", "action", "reason"):
        if not item.get(field):
            yield required(field)
    if item.get("type") not in ("Normal", "Warning"):
        yield invalid("type", item.get("type", ""), f"has invalid value: {item.get('type', '')}")
