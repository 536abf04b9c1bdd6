"""Services (pkg/apis/core/validation)."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from labs.cluster import names
from labs.cluster.allocation import needs_health_check
from labs.cluster.defaults import is_anywhere
from labs.cluster.fielderrors import (
    GoText,
    duplicate,
    forbidden,
    go_value,
    invalid,
    required,
    unsupported,
)
from labs.cluster.options import AddressPlan
from labs.cluster.resources import Object
from labs.cluster.validation.words import Errors, endpoint_ip, ip, labels, one_of

PROTOCOLS = ("SCTP", "TCP", "UDP")
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
MOST_AFFINITY_SECONDS = 86400  # MaxClientIPServiceAffinitySeconds
SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")


def service(item: Object) -> Errors:
    spec = item["spec"]
    kind, headless = spec["type"], spec.get("clusterIP") == "None"
    if kind not in SERVICE_TYPES:
        yield unsupported("spec.type", kind, SERVICE_TYPES)
    if not spec.get("ports") and not headless and kind != "ExternalName":
        yield required("spec.ports")
    if kind == "ExternalName":
        name = (spec.get("externalName") or "").rstrip(".")
        if name:
            yield from (invalid("spec.externalName", name, text) for text in names.dns1123_subdomain(name))
        else:
            yield required("spec.externalName")
    if headless and kind in ("NodePort", "LoadBalancer"):
        words = "may not be set to 'None' for NodePort services"
        yield invalid(
            "spec.clusterIPs[0]",
            "None",
            words if kind == "NodePort" else "may not be set to 'None' for LoadBalancer services",
        )
    yield from _service_ports(spec.get("ports") or [], kind, headless)
    yield from labels(spec.get("selector"), "spec.selector")
    yield from one_of(spec.get("sessionAffinity"), "spec.sessionAffinity", ("ClientIP", "None"))
    for field, known in (
        ("externalTrafficPolicy", ("Cluster", "Local")),
        ("internalTrafficPolicy", ("Cluster", "Local")),
    ):
        if field in spec:
            yield from one_of(spec[field], f"spec.{field}", known)
    external = kind in ("NodePort", "LoadBalancer") or spec.get("externalIPs")
    if "externalTrafficPolicy" in spec and not external:
        words = "may only be set for externally-accessible services"
        yield invalid("spec.externalTrafficPolicy", spec["externalTrafficPolicy"], words)
    yield from _affinity(spec)
    yield from _load_balancer(item)
    for index, text in enumerate(spec.get("externalIPs") or ()):
        yield from endpoint_ip(text, f"spec.externalIPs[{index}]")
    if kind == "ExternalName":
        for field in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(field):
                yield forbidden(f"spec.{field}", "may not be set for ExternalName services")
    else:
        yield from _cluster_ips(spec)


def _affinity(spec: Object) -> Errors:
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    seconds, field = config.get("timeoutSeconds"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    if spec.get("sessionAffinity") == "ClientIP" and seconds is not None and not 0 < seconds <= MOST_AFFINITY_SECONDS:
        yield invalid(field, seconds, f"must be greater than 0 and less than {MOST_AFFINITY_SECONDS}")


def _cluster_ips(spec: Object) -> Errors:
    """ValidateServiceClusterIPsRelatedFields, where it is about addresses."""
    single, ips = spec.get("clusterIP"), spec.get("clusterIPs") or []
    shown = GoText(f"[]string{{{', '.join(map(json.dumps, ips))}}}")
    if single and ips and ips[0] != single:
        yield invalid("spec.clusterIPs", shown, "first value must match `clusterIP`")
    elif not single and ips:
        yield invalid("spec.clusterIPs", shown, "must be empty when `clusterIP` is not specified")
    if ips[:1] == ["None"]:
        if len(ips) > 1:
            yield invalid("spec.clusterIPs", shown, "'None' must be the first and only value")
        return
    mistakes = [mistake for index, text in enumerate(ips) for mistake in ip(text, f"spec.clusterIPs[{index}]")]
    yield from mistakes
    if len(ips) > 2:
        yield invalid("spec.clusterIPs", shown, "may only hold up to 2 values")
    if mistakes:
        return
    versions = [6 if ":" in text else 4 for text in ips]
    if len(set(versions)) < len(versions):
        yield invalid("spec.clusterIPs", shown, "may specify no more than one IP for each IP family")
    for index, (text, version, family) in enumerate(zip(ips, versions, spec.get("ipFamilies") or (), strict=False)):
        if family in ("IPv4", "IPv6") and family != f"IPv{version}":
            words = f"expected an {family} value as indicated by `ipFamilies[{index}]`"
            yield invalid(f"spec.clusterIPs[{index}]", text, words)


def _load_balancer(item: Object) -> Errors:
    """What only Services of type LoadBalancer may have. (Any text is taken for loadBalancerIP.)"""
    spec = item["spec"]
    only, balanced = "may only be used when `type` is 'LoadBalancer'", spec["type"] == "LoadBalancer"
    ranges, annotations = spec.get("loadBalancerSourceRanges"), item["metadata"].get("annotations") or {}
    if ranges or SOURCE_RANGES in annotations:
        # The first letter is the real one's slip.
        field = "spec.LoadBalancerSourceRanges" if ranges else f"metadata.annotations[{SOURCE_RANGES}]"
        texts = ranges or [text for text in annotations[SOURCE_RANGES].strip().split(",") if text]
        if not balanced:
            yield forbidden(field, only)
        if not all(_is_network(text.strip()) for text in texts):
            shown = go_value(ranges) if ranges else annotations[SOURCE_RANGES]
            yield invalid(field, shown, "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24 ")
    if "allocateLoadBalancerNodePorts" in spec and not balanced:
        yield forbidden("spec.allocateLoadBalancerNodePorts", only)
    if spec.get("healthCheckNodePort") and not needs_health_check(spec):
        words = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield invalid("spec.healthCheckNodePort", spec["healthCheckNodePort"], words)
    name = spec.get("loadBalancerClass")
    if name is not None and not balanced:
        yield forbidden("spec.loadBalancerClass", only)
    elif name is not None:
        yield from (invalid("spec.loadBalancerClass", name, text) for text in names.qualified_name(name))


def _is_network(text: str) -> bool:
    """Whether a text is a CIDR, as Go's net.ParseCIDR has it: a prefix length must be there."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" in text


def _service_ports(ports: list[Object], kind: str, headless: bool) -> Errors:
    taken_names: set[str] = set()
    taken: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        here, name = f"spec.ports[{index}]", port.get("name")
        if not name and len(ports) > 1:
            yield required(f"{here}.name")
        elif name:
            yield from (invalid(f"{here}.name", name, text) for text in names.dns1123_label(name))
            if name in taken_names:
                yield duplicate(f"{here}.name", name)
            taken_names.add(name)
        number = port.get("port", 0)
        yield from (invalid(f"{here}.port", number, text) for text in names.port_number(number))
        yield from one_of(port.get("protocol"), f"{here}.protocol", PROTOCOLS)
        target = port.get("targetPort")
        if isinstance(target, str):
            yield from (invalid(f"{here}.targetPort", target, text) for text in names.port_name(target))
        elif target is not None:
            yield from (invalid(f"{here}.targetPort", target, text) for text in names.port_number(target))
        if port.get("appProtocol") is not None:
            protocol = port["appProtocol"]
            yield from (invalid(f"{here}.appProtocol", protocol, text) for text in names.qualified_name(protocol))
        if port.get("nodePort") and (kind in ("ClusterIP", "ExternalName") or headless):
            yield forbidden(f"{here}.nodePort", f"may not be used when `type` is '{kind}'")
        if (port.get("protocol"), number) in taken:
            yield duplicate(here, GoText(_go_service_port(port)))
        taken.add((port.get("protocol"), number))


def _go_service_port(port: Object) -> str:
    """The key by which the real one finds equal ports, as Go prints it."""
    return (
        f'core.ServicePort{{Name:"", Protocol:{json.dumps(port.get("protocol"))}, AppProtocol:(*string)(nil), '
        f'Port:{port.get("port", 0)}, TargetPort:intstr.IntOrString{{Type:0, IntVal:0, StrVal:""}}, NodePort:0}}'
    )


def service_families(spec: Object, plan: AddressPlan) -> Errors:
    policies = ("PreferDualStack", "RequireDualStack", "SingleStack")
    policy, wanted = spec.get("ipFamilyPolicy"), spec.get("ipFamilies") or []
    if policy is not None and policy not in policies:
        yield unsupported("spec.ipFamilyPolicy", policy, policies)
    for field, what in (("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")):
        if policy == "SingleStack" and len(spec.get(field) or ()) == 2:
            words = f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            yield invalid("spec.ipFamilyPolicy", policy, words)
            break  # the second is inferred from the first
    for index, family in enumerate(wanted):
        if family in wanted[:index]:
            yield duplicate(f"spec.ipFamilies[{index}]", family)
    if is_anywhere(spec):
        return
    if policy == "RequireDualStack" and len(plan.families) < 2:
        yield invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
    known = {4: "IPv4", 6: "IPv6"}
    configured = [known[family] for family in plan.families]
    for index, family in enumerate(wanted):
        if family not in known.values():
            yield unsupported(f"spec.ipFamilies[{index}]", family, known.values())
        elif family not in configured:
            yield invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")


def update_service(item: Object, old: Object) -> Errors:
    before, after = old["spec"], item["spec"]
    same_port = before.get("healthCheckNodePort") == after.get("healthCheckNodePort")
    if needs_health_check(before) and needs_health_check(after) and not same_port:
        yield forbidden("spec.healthCheckNodePort", "field is immutable")
    if before["type"] == after["type"] == "LoadBalancer":
        name = after.get("loadBalancerClass")
        if before.get("loadBalancerClass") != name:
            yield invalid("spec.loadBalancerClass", name, "may not change once set")
    if "ExternalName" in (before["type"], after["type"]):
        return
    was, is_now = before.get("clusterIPs") or [], after.get("clusterIPs") or []
    shown = GoText(f"[]string{{{', '.join(map(json.dumps, is_now))}}}")
    if was and not is_now:
        yield invalid("spec.clusterIPs[0]", shown, "primary clusterIP can not be unset")
    elif was and was[0] != is_now[0]:
        yield invalid("spec.clusterIPs[0]", shown, "may not change once set")
