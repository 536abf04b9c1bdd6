"""What the path of a request means.

Stands for k8s.io/apiserver/pkg/endpoints/request (RequestInfo). A path is `/api/v1/…` or `/apis/GROUP/VERSION/…`, then
`[namespaces/NAMESPACE/]PLURAL[/NAME[/SUBRESOURCE]]`; behind the subresource proxy may come anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from labs.cluster.api import status
from labs.cluster.kinds import Kinds
from labs.cluster.resources import DEPLOYMENTS, NAMESPACES, PODS, REPLICASETS, SERVICEACCOUNTS, SERVICES, Resource

SUBRESOURCES = {
    NAMESPACES: ("status", "finalize"),
    PODS: ("status", "log", "exec", "attach", "portforward", "eviction", "proxy"),
    SERVICES: ("status", "proxy"),
    SERVICEACCOUNTS: ("token",),
    DEPLOYMENTS: ("status", "scale"),
    REPLICASETS: ("status", "scale"),
}


def subresources_of(resource: Resource) -> tuple[str, ...]:
    """The subresources that a kind has."""
    if resource.custom is not None and resource.custom.scale is not None:
        return ("status", "scale") if resource.has_status else ("scale",)
    return SUBRESOURCES.get(resource, ("status",) if resource.has_status else ())


@dataclass(frozen=True, slots=True)
class Target:
    """What a path means. `name` is "" for a collection, `namespace` "" for all, `subresource` "" for the object."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @classmethod
    def parse(cls, kinds: Kinds, path: str) -> Target:
        """Raises ApiError 404 for what we do not serve."""
        parts = path.strip("/").split("/")
        depth = 2 if parts[0] == "api" else 3
        prefix, rest = "/" + "/".join(parts[:depth]), parts[depth:]
        namespace = ""
        if len(rest) >= 3 and rest[0] == "namespaces" and kinds.by_path(prefix, rest[2]) is not None:
            namespace, rest = rest[1], rest[2:]
        resource = kinds.by_path(prefix, rest[0]) if rest else None
        is_proxy = len(rest) >= 3 and rest[2] == "proxy"
        if resource is None or (len(rest) > 3 and not is_proxy) or (namespace and not resource.namespaced):
            raise status.no_such_path()
        name = rest[1] if len(rest) >= 2 else ""
        subresource = rest[2] if len(rest) >= 3 else ""
        if (name and resource.namespaced and not namespace) or (
            subresource and subresource not in subresources_of(resource)
        ):
            raise status.no_such_path()
        return cls(resource, namespace, name, subresource)
