"""The subresource scale: a Deployment or ReplicaSet seen as a number of replicas.

Stands for pkg/registry/apps/{deployment,replicaset}/storage (ScaleREST).
"""

from __future__ import annotations

from labs.cluster.fielderrors import Invalid, invalid
from labs.cluster.resources import Object, Resource

SCALE = Resource("autoscaling", "v1", "scales", "scale", "Scale", True)


def scale_of(item: Object) -> Object:
    """The Scale of an object."""
    metadata = item["metadata"]
    carried = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    labels = (item["spec"].get("selector") or {}).get("matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in carried if key in metadata},
        "spec": {"replicas": item["spec"].get("replicas", 0)},
        "status": {
            "replicas": (item.get("status") or {}).get("replicas", 0),
            "selector": ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
        },
    }


def scaled(item: Object, scale: Object) -> Object:
    """An object with the replicas of a Scale. Raises Invalid."""
    replicas = (scale.get("spec") or {}).get("replicas", 0)
    if replicas < 0:
        error = invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise Invalid("Scale", item["metadata"]["name"], [error], "autoscaling")
    metadata = {**item["metadata"]}
    version = scale["metadata"].get("resourceVersion")
    if version:
        metadata["resourceVersion"] = version
    return {**item, "metadata": metadata, "spec": {**item["spec"], "replicas": replicas}}
