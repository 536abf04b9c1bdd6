"""The kinds of objects that the API has from the start, as one table, and what can be said of an object of any kind.

Stands for the API's group/version/resource scheme (k8s.io/apimachinery, runtime.Scheme). A new kind is one more line
here. Left out: conversion between versions; each of these kinds is served in the one version that is stable today.

What belongs here: values. What does not: which kinds are served just now (`labs.cluster.kinds`), since custom ones come
and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

Object = dict[str, Any]


WITH_GENERATION = frozenset(
    {"Deployment", "ReplicaSet", "DaemonSet", "Ingress", "IngressClass", "NetworkPolicy", "EndpointSlice"}
    | {"CustomResourceDefinition"}
)
WITH_STATUS = frozenset(
    {
        *("Namespace", "Node", "Pod", "Service", "Deployment", "ReplicaSet", "DaemonSet", "Ingress"),
        "CustomResourceDefinition",
    }
)


@dataclass(frozen=True, slots=True)
class CustomVersion:
    """What a CustomResourceDefinition says of one of its versions.

    `schema` is its openAPIV3Schema, `columns` its additionalPrinterColumns, `scale` its subresource of that name;
    `storage` is the apiVersion in which objects are kept; `warning` is what clients are told who use a deprecated
    version; `terminating`: the definition is being deleted.
    """

    schema: Object
    columns: tuple[Object, ...]
    has_status: bool
    scale: Object | None
    storage: str
    list_kind: str
    warning: str = ""
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object. `group` is "" for the core group. `short`: what kubectl takes for it. `custom`: what is known
    of a kind that comes from a CustomResourceDefinition, None for the others."""

    group: str
    version: str
    plural: str
    singular: str = field(compare=False)
    kind: str
    namespaced: bool
    short: tuple[str, ...] = field(default=(), compare=False)
    categories: tuple[str, ...] = field(default=(), compare=False)
    custom: CustomVersion | None = field(default=None, compare=False, repr=False)

    @property
    def is_view(self) -> bool:
        """Whether this is only another name for what is stored under its first one: events.k8s.io shows Events."""
        return self.group == "events.k8s.io"

    @property
    def stored(self) -> Resource:
        """The resource as which the store has these objects: an Event is one object under two names, and a custom
        object is one in all its versions."""
        if self.is_view:
            return EVENTS
        return self if self.custom is None else replace(self, version="", custom=None)

    @property
    def list_kind(self) -> str:
        """The kind of a list of these objects."""
        return f"{self.kind}List" if self.custom is None else self.custom.list_kind

    @property
    def has_generation(self) -> bool:
        """Whether the objects count the changes of their spec."""
        return not self.version or self.custom is not None or (self.kind in WITH_GENERATION)

    @property
    def has_status(self) -> bool:
        """Whether clients write the status apart from the rest."""
        return self.kind in WITH_STATUS if self.custom is None else self.custom.has_status

    @property
    def api_version(self) -> str:
        """What objects hold in apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def prefix(self) -> str:
        """The path under which the API serves the group: /api/v1 or /apis/GROUP/VERSION."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def qualified(self) -> str:
        """The name as error messages give it: deployments.apps."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


NAMESPACES = Resource("", "v1", "namespaces", "namespace", "Namespace", False, ("ns",))
NODES = Resource("", "v1", "nodes", "node", "Node", False, ("no",))
PODS = Resource("", "v1", "pods", "pod", "Pod", True, ("po",), ("all",))
SERVICES = Resource("", "v1", "services", "service", "Service", True, ("svc",), ("all",))
ENDPOINTS = Resource("", "v1", "endpoints", "endpoints", "Endpoints", True, ("ep",))
CONFIGMAPS = Resource("", "v1", "configmaps", "configmap", "ConfigMap", True, ("cm",))
SECRETS = Resource("", "v1", "secrets", "secret", "Secret", True)
SERVICEACCOUNTS = Resource("", "v1", "serviceaccounts", "serviceaccount", "ServiceAccount", True, ("sa",))
EVENTS = Resource("", "v1", "events", "event", "Event", True, ("ev",))
EVENTS_V1 = Resource("events.k8s.io", "v1", "events", "event", "Event", True, ("ev",))
ENDPOINTSLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "endpointslice", "EndpointSlice", True)
DEPLOYMENTS = Resource("apps", "v1", "deployments", "deployment", "Deployment", True, ("deploy",), ("all",))
REPLICASETS = Resource("apps", "v1", "replicasets", "replicaset", "ReplicaSet", True, ("rs",), ("all",))
DAEMONSETS = Resource("apps", "v1", "daemonsets", "daemonset", "DaemonSet", True, ("ds",), ("all",))
CONTROLLERREVISIONS = Resource("apps", "v1", "controllerrevisions", "controllerrevision", "ControllerRevision", True)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "lease", "Lease", True)
INGRESSES = Resource("networking.k8s.io", "v1", "ingresses", "ingress", "Ingress", True, ("ing",))
INGRESSCLASSES = Resource("networking.k8s.io", "v1", "ingressclasses", "ingressclass", "IngressClass", False)
NETWORKPOLICIES = Resource(
    "networking.k8s.io", "v1", "networkpolicies", "networkpolicy", "NetworkPolicy", True, ("netpol",)
)
DEFINITIONS = Resource(
    *("apiextensions.k8s.io", "v1", "customresourcedefinitions", "customresourcedefinition"),
    *("CustomResourceDefinition", False, ("crd", "crds"), ("api-extensions",)),
)

ALL = (
    *(NAMESPACES, NODES, PODS, SERVICES, ENDPOINTS, CONFIGMAPS, SECRETS, SERVICEACCOUNTS, EVENTS),
    *(DEPLOYMENTS, REPLICASETS, DAEMONSETS, CONTROLLERREVISIONS),
    ENDPOINTSLICES,
    LEASES,
    EVENTS_V1,
    *(INGRESSES, INGRESSCLASSES, NETWORKPOLICIES),
    DEFINITIONS,
)


def key_of(item: Object) -> tuple[str, str]:
    """Namespace ("" when it has none) and name of an object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def owner_reference(owner: Object) -> Object:
    """What an object that `owner`'s controller made holds in ownerReferences."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_of(item: Object) -> str | None:
    """The uid of the object whose controller made this one."""
    for reference in item["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def is_ready(pod: Object) -> bool:
    """Whether a pod's Ready condition is true."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def is_active(pod: Object) -> bool:
    """Whether a pod counts for whoever wants a number of them: it neither ends nor has ended."""
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return "deletionTimestamp" not in pod["metadata"] and not ended


def matches(selector: Object | None, labels: Object | None) -> bool:
    """Whether labels satisfy an equality selector (a Service's, or matchLabels). An empty one matches nothing."""
    return bool(selector) and all((labels or {}).get(key) == value for key, value in (selector or {}).items())
