"""Writes labs/cluster/schema.json, for scripts/schema: the fields of the API's objects and their types, without their
descriptions, as lightkube-models has them, which is made from Kubernetes' own OpenAPI document.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "lightkube-models==1.30.0.8"
OUTPUT = Path(__file__).parents[2] / "labs" / "cluster" / "schema.json"
ROOTS = {
    "core_v1": ["Namespace", "Node", "Pod", "Service", "Endpoints", "ConfigMap", "Secret", "ServiceAccount", "Event"],
    "discovery_v1": ["EndpointSlice"],
    "apps_v1": ["Deployment", "ReplicaSet", "DaemonSet", "ControllerRevision"],
    "coordination_v1": ["Lease"],
    "networking_v1": ["Ingress", "IngressClass", "NetworkPolicy"],
    "events_v1": ["Event"],
    "autoscaling_v1": ["Scale"],
    "apiextensions_v1": ["CustomResourceDefinition"],
}
# What the models call differently or leave open.
PLAIN = {
    "str": "string",
    "int": "int",
    "float": "number",
    "bool": "bool",
    "dict": "map",
    "object": "any",
    "meta_v1.Time": "string",
    "meta_v1.MicroTime": "string",
    "meta_v1.FieldsV1": "any",
    "resource.Quantity": "quantity",
    "util_intstr.IntOrString": "int-or-string",
    "runtime.RawExtension": "any",
}
OPEN = ("JSON", "JSONSchemaProps", "CustomResourceSubresourceStatus")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            types = collect(archive)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(types[name], sort_keys=True)}" for name in sorted(types))
    OUTPUT.write_text(f"{{\n{lines}\n}}\n")


def collect(archive: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    """All types that the roots lead to: name -> field -> type."""
    modules: dict[str, dict[str, ast.ClassDef]] = {}
    pending = [(module, name) for module, names in ROOTS.items() for name in names]
    types: dict[str, dict[str, str]] = {}
    while pending:
        module, name = pending.pop()
        if f"{module}.{name}" in types:
            continue
        if module not in modules:
            tree = ast.parse(archive.read(f"lightkube/models/{module}.py"))
            modules[module] = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        fields = types[f"{module}.{name}"] = {}
        for node in modules[module][name].body:
            if isinstance(node, ast.AnnAssign):
                field, kind, referred = read_field(module, node, set(modules[module]))
                fields[field] = kind
                pending += referred
    return types


def read_field(module: str, node: ast.AnnAssign, classes: set[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """A field's name in JSON, its type ("!" after one that is required), and the type that it refers to."""
    field = node.target.id
    for keyword in getattr(node.value, "keywords", ()):
        if keyword.arg == "metadata":
            field = ast.literal_eval(keyword.value)["json"]
    text, required = ast.literal_eval(node.annotation), "!"
    if text.startswith("Optional["):
        text, required = text[9:-1], ""
    prefix = ""
    while text.startswith("List["):
        text, prefix = text[5:-1], prefix + "[]"
    known = PLAIN.get(text) or PLAIN.get(f"{module}.{text}")
    bare = text.rpartition(".")[2]
    if known is None and bare.startswith(OPEN):
        known = "any"
    if known is not None:
        return field, f"{prefix}{known}{required}", []
    qualified = text if "." in text else f"{module}.{text}"
    return field, f"{prefix}{qualified}{required}", [tuple(qualified.split("."))]


if __name__ == "__main__":
    main()
