"""The subresource scale: an object seen as a number of replicas.

Stands for pkg/registry/apps/{deployment,replicaset}/storage (ScaleREST), and for the same of custom resources, whose
definition says where the number is (k8s.io/apiextensions-apiserver/pkg/registry/customresource/etcd.go).
"""

from __future__ import annotations

from typing import Any

from labs.cluster.fielderrors import Invalid, invalid
from labs.cluster.resources import Object, Resource

SCALE = Resource("autoscaling", "v1", "scales", "scale", "Scale", True)


def scale_of(resource: Resource, item: Object) -> Object:
    """The Scale of an object."""
    metadata, custom = item["metadata"], resource.custom.scale if resource.custom is not None else None
    carried = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    if custom is None:
        labels = (item["spec"].get("selector") or {}).get("matchLabels") or {}
        selector = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
    else:
        selector = _at(item, custom.get("labelSelectorPath") or "") or ""
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in carried if key in metadata},
        "spec": {"replicas": _at(item, custom["specReplicasPath"] if custom else ".spec.replicas") or 0},
        "status": {
            "replicas": _at(item, custom["statusReplicasPath"] if custom else ".status.replicas") or 0,
            **({"selector": selector} if selector or custom is None else {}),
        },
    }


def scaled(resource: Resource, item: Object, scale: Object) -> Object:
    """An object with the replicas of a Scale. Raises Invalid."""
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if replicas < 0:
        error = invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise Invalid("Scale", item["metadata"]["name"], [error], "autoscaling")
    metadata = {**item["metadata"]}
    version = scale["metadata"].get("resourceVersion")
    if version:
        metadata["resourceVersion"] = version
    custom = resource.custom.scale if resource.custom is not None else None
    path = custom["specReplicasPath"] if custom else ".spec.replicas"
    changed: Object = _with({**item, "metadata": metadata}, path.strip(".").split("."), replicas)
    return changed


def _at(item: Any, path: str) -> Any:
    """What is at a simple path, such as .spec.replicas; None when nothing is."""
    for name in filter(None, path.split(".")):
        item = item.get(name) if isinstance(item, dict) else None
    return item


def _with(item: Any, path: list[str], value: Any) -> Any:
    """An object with another value at a path."""
    if not path:
        return value
    item = item if isinstance(item, dict) else {}
    return {**item, path[0]: _with(item.get(path[0]), path[1:], value)}
