"""Documents -> the three lists that the proxy reads: Services, EndpointSlices, Nodes.

Stands for the API server as kube-proxy meets it. A document is one of

    {"services": [...], "endpointslices": [...], "nodes": [...]}    what an API server returned, taken as it is
    a v1 List, or any ...List, of objects                           kubectl get -o json
    one object with a kind                                          a manifest

and a file is JSON, or any number of YAML documents. Objects with a kind may have been written by hand: they get those
of the API server's defaults that the proxy can't do without. Left out: validation of anything but the types of the
fields that the proxy reads, and the allocation of addresses and ports (a Service without a ClusterIP stays without one,
and the proxy skips it). Other kinds are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tracer.errors import FormatError

Objects = dict[str, list[dict[str, Any]]]

LISTS = {"Service": "services", "EndpointSlice": "endpointslices", "Node": "nodes"}

_METADATA = {"name": str, "namespace": str, "labels": {str: str}, "annotations": {str: str}}
# The fields that the proxy reads, and their types: {str: T} is a map, [T] a list. Any field may be missing or null.
SHAPES: dict[str, Any] = {
    "Service": {
        "metadata": _METADATA,
        "spec": {
            "type": str,
            "clusterIP": str,
            "clusterIPs": [str],
            "ipFamilies": [str],
            "externalIPs": [str],
            "loadBalancerSourceRanges": [str],
            "healthCheckNodePort": int,
            "internalTrafficPolicy": str,
            "externalTrafficPolicy": str,
            "sessionAffinity": str,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": int}},
            "ports": [{"name": str, "protocol": str, "port": int, "nodePort": int}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": str, "ipMode": str}]}},
    },
    "EndpointSlice": {
        "metadata": _METADATA,
        "addressType": str,
        "ports": [{"name": str, "protocol": str, "port": int}],
        "endpoints": [
            {
                "addresses": [str],
                "nodeName": str,
                "hints": {"forZones": [{"name": str}]},
                "conditions": {"ready": bool, "serving": bool, "terminating": bool},
            }
        ],
    },
    "Node": {"metadata": _METADATA, "status": {"addresses": [{"type": str, "address": str}]}},
}
_NOUNS = {str: "a string", int: "an integer", bool: "true or false", dict: "an object", list: "a list"}


def load(path: str) -> Objects:
    """Read a file of objects (JSON or YAML); raises FormatError when it can't be read as such."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"), name=path)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: {error}") from error


def parse(text: str, *, name: str = "<text>") -> Objects:
    """Turn JSON or YAML text into objects; raises FormatError, which says what is wrong where in `name`."""
    try:
        return from_documents(_decode(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise FormatError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    except ValueError as error:
        raise FormatError(f"{name}: {error}") from error


def from_documents(documents: Iterable[Any]) -> Objects:
    """Sort decoded documents into the three lists; raises ValueError for what no object of its kind can look like."""
    objects: Objects = {name: [] for name in LISTS.values()}
    for document in documents:
        if document is not None:
            _add(objects, document)
    for kind, name in LISTS.items():
        for item in objects[name]:
            _check_item(item, kind)
    return objects


def _decode(text: str) -> list[Any]:
    if text.lstrip().startswith("{"):
        try:
            return [json.loads(text)]
        except json.JSONDecodeError:
            pass  # YAML can begin like that too, and its reader gives the better message
    # libyaml's loader, where PyYAML was built with it, is ten times as fast.
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _add(objects: Objects, document: Any) -> None:
    if not isinstance(document, dict):
        raise ValueError(f"expected a Kubernetes object, found {type(document).__name__}")
    kind = document.get("kind")
    if kind is None and not document.keys().isdisjoint(objects):
        for name, items in objects.items():
            items.extend(_check(document[name], [{}], name) if document.get(name) is not None else ())
    elif isinstance(kind, str) and isinstance(document.get("items"), list):
        for item in _check(document["items"], [{}], f"{kind}.items"):
            # Items of a typed list (ServiceList) have no kind of their own.
            _add(objects, item if "kind" in item else {**item, "kind": kind.removesuffix("List")})
    elif isinstance(kind, str):
        if kind in LISTS:
            _check_item(document, kind)
            objects[LISTS[kind]].append(_with_defaults(document, kind))
    else:
        raise ValueError('expected an object with a kind, or {"services": [], "endpointslices": [], "nodes": []}')


def _check_item(item: dict[str, Any], kind: str) -> None:
    metadata = item.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    _check(item, SHAPES[kind], f"{kind} {name}:" if name else f"{kind}:")


def _check(value: Any, shape: Any, where: str) -> Any:
    """Give `value` back if it has the types of `shape`; raises ValueError that names the first place without."""
    kind: Any = shape if isinstance(shape, type) else type(shape)
    # bool is an int in Python, never in Kubernetes.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be {_NOUNS[kind]}, found {type(value).__name__}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}[{index}]")
    elif isinstance(value, dict):
        dot = " " if where.endswith(":") else "."
        fields = dict.fromkeys(value, shape[str]) if str in shape else shape
        for name, inner in fields.items():
            if value.get(name) is not None:
                _check(value[name], inner, f"{where}{dot}{name}")
    return value


def _with_defaults(item: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind == "Node":
        return item
    metadata = item.get("metadata") or {}
    item = {**item, "metadata": {**metadata, "namespace": metadata.get("namespace") or "default"}}
    if kind == "EndpointSlice":
        # kube-proxy ignores a port whose name is null, but the API server makes that "" (SetDefaults_EndpointPort).
        item["ports"] = [{**port, "name": port.get("name") or ""} for port in item.get("ports") or ()]
    else:
        item["spec"] = _with_cluster_ips(item.get("spec") or {})
    return item


def _with_cluster_ips(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Fill clusterIP from clusterIPs or the other way round, and ipFamilies from them (pkg/registry/core/service)."""
    ips = list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else ()))
    families = spec.get("ipFamilies") or ["IPv6" if ":" in ip else "IPv4" for ip in ips if ip != "None"]
    return {**spec, "clusterIP": ips[0] if ips else "", "clusterIPs": ips, "ipFamilies": families}
