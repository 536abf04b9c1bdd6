"""Services (pkg/apis/core/validation)."""

from __future__ import annotations

import json
from typing import Any

from labs.cluster import names
from labs.cluster.fielderrors import (
    GoText,
    duplicate,
    forbidden,
    invalid,
    required,
    unsupported,
)
from labs.cluster.options import AddressPlan
from labs.cluster.resources import Object
from labs.cluster.validation.words import Errors, ip, labels, one_of

PROTOCOLS = ("SCTP", "TCP", "UDP")
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
    for index, text in enumerate(spec.get("externalIPs") or ()):
        yield from ip(text, f"spec.externalIPs[{index}]")
    for index, text in enumerate(spec.get("clusterIPs") or ()):
        if text != "None":
            yield from ip(text, f"spec.clusterIPs[{index}]")


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
    policies = ("SingleStack", "PreferDualStack", "RequireDualStack")
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in policies:
        yield unsupported("spec.ipFamilyPolicy", policy, policies)
    if policy == "RequireDualStack" and len(plan.families) < 2:
        yield invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
    known = {4: "IPv4", 6: "IPv6"}
    configured = [known[family] for family in plan.families]
    for index, family in enumerate(spec.get("ipFamilies") or ()):
        if family not in known.values():
            yield unsupported(f"spec.ipFamilies[{index}]", family, known.values())
        elif family not in configured:
            yield invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")


def update_service(item: Object, old: Object) -> Errors:
    before, after = old["spec"], item["spec"]
    if "ExternalName" in (before["type"], after["type"]):
        return
    was, is_now = before.get("clusterIPs") or [], after.get("clusterIPs") or []
    shown = GoText(f"[]string{{{', '.join(map(json.dumps, is_now))}}}")
    if was and not is_now:
        yield invalid("spec.clusterIPs[0]", shown, "primary clusterIP can not be unset")
    elif was and was[0] != is_now[0]:
        yield invalid("spec.clusterIPs[0]", shown, "may not change once set")
