"""Writes labs/cluster/api/protobuf.json: the numbers that the fields of objects have in Kubernetes' protobuf form, from
the struct tags in its sources.

    git clone --depth 1 --branch v0.34.1 https://github.com/kubernetes/api
    git clone --depth 1 --branch v0.34.1 https://github.com/kubernetes/apimachinery
    .venv/bin/python -m tests.labs.write_protobuf api apimachinery

Type -> number -> [field, form]. A form is string, int, bool, bytes, another type, or one of those with "[]" before it
(repeated), "{}" (a map from text), "?" behind it (a pointer: empty is not absent). An empty field means that the type's
own fields stand here (inline).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

OUTPUT = Path(__file__).parents[2] / "labs" / "cluster" / "api" / "protobuf.json"
# What clients send: kinds that are served, what is posted to subresources, and questions about access.
ROOTS = {
    "core_v1": ["Namespace", "Node", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "ServiceAccount", "Event"],
    "apps_v1": ["Deployment", "ReplicaSet", "DaemonSet", "ControllerRevision"],
    "networking_v1": ["Ingress", "IngressClass", "NetworkPolicy"],
    "discovery_v1": ["EndpointSlice"],
    "coordination_v1": ["Lease"],
    "autoscaling_v1": ["Scale"],
    "events_v1": ["Event"],
    "policy_v1": ["Eviction"],
    "authentication_v1": ["TokenRequest", "SelfSubjectReview"],
    "authorization_v1": ["SelfSubjectAccessReview", "SelfSubjectRulesReview"],
    "meta_v1": ["DeleteOptions"],
}
PLAIN = {"string": "string", "bool": "bool", "int32": "int", "int64": "int", "uint8": "int", "[]byte": "bytes"}
KNOWN = {
    "resource.Quantity": "Quantity",
    "intstr.IntOrString": "IntOrString",
    "runtime.RawExtension": "RawExtension",
    "types.UID": "string",
    "meta_v1.Time": "Time",
    "meta_v1.MicroTime": "Time",
    "meta_v1.FieldsV1": "RawExtension",
}
_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_OTHER = re.compile(r"^type (\w+) (string|int32|\[\]\S+|map\[\S+\]\S+)$", re.MULTILINE)
_FIELD = re.compile(r'^\t(?:(\w+)\s+)?(\S+)\s+`json:"([^"]*)".*?protobuf:"\w+,(\d+),(\w+)', re.MULTILINE)


def main(api: Path, apimachinery: Path) -> None:
    packages = {name: (api / name.replace("_", "/") / "types.go").read_text() for name in ROOTS if name != "meta_v1"}
    packages["meta_v1"] = (apimachinery / "pkg/apis/meta/v1/types.go").read_text()
    structs = {f"{package}.{name}": body for package, text in packages.items() for name, body in _STRUCT.findall(text)}
    others = {f"{package}.{name}": form for package, text in packages.items() for name, form in _OTHER.findall(text)}
    found: dict[str, dict[str, list[str]]] = {}
    pending = [f"{package}.{name}" for package, names in ROOTS.items() for name in names]
    while pending:
        name = pending.pop()
        if name in found or name not in structs:
            continue
        fields = found[name] = {}
        for _, go, tag, number, _ in _FIELD.findall(structs[name]):
            form = form_of(go, name.partition(".")[0], others)
            fields[number] = [tag.partition(",")[0], form]
            pending.append(form.lstrip("[]{}").rstrip("?"))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    OUTPUT.write_text(f"{{\n{lines}\n}}\n")


def form_of(go: str, package: str, others: dict[str, str]) -> str:
    """The form of a Go type that stands in `package`."""
    if go in PLAIN:
        return PLAIN[go]
    for prefix, mark in (("[]", "[]"), ("*", "")):
        if go.startswith(prefix):
            form = mark + form_of(go.removeprefix(prefix), package, others)
            return f"{form}?" if prefix == "*" else form
    if go.startswith("map["):
        return "{}" + form_of(go.partition("]")[2], package, others)
    module, _, name = go.rpartition(".")
    place = {"": package, "v1": "core_v1", "corev1": "core_v1", "metav1": "meta_v1"}.get(module, module)
    qualified = f"{place}.{name}"
    if qualified in KNOWN or go in KNOWN:
        return KNOWN.get(qualified) or KNOWN[go]
    return form_of(others[qualified], place, others) if qualified in others else qualified


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
