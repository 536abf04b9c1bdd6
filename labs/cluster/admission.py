"""What the API server does to an object before it stores it: completes it, checks it, gives it addresses and ports.

Stands for the registry's strategies (pkg/registry/*/strategy.go: PrepareForCreate, Validate, PrepareForUpdate,
ValidateUpdate) and the admission plugins NamespaceLifecycle and ServiceAccount
(plugin/pkg/admission/serviceaccount). Left out: quotas, limits, webhooks, Pod Security.

What belongs here: the order of these steps, and what an update takes over from the object that it replaces. What does
not: the steps themselves (`labs.cluster.defaults`, `labs.cluster.validation`, `labs.cluster.allocation`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

from labs.cluster import schema
from labs.cluster.allocation import NODE_PORTS, allocate, needs_health_check
from labs.cluster.defaults import admit_pod, complete, first_status, qos_class
from labs.cluster.extensions import definitions, rules, structural, values
from labs.cluster.fielderrors import Invalid
from labs.cluster.kinds import Kinds
from labs.cluster.options import AddressPlan
from labs.cluster.resources import DEFINITIONS, NAMESPACES, PODS, SERVICEACCOUNTS, SERVICES, Object, Resource
from labs.cluster.serviceaccounts import mount_token
from labs.cluster.store import Store
from labs.cluster.validation import validate, validate_status
from tracer.errors import K8snetError

__all__ = [
    "NODE_PORTS",
    "Forbidden",
    "Invalid",
    "NoNamespace",
    "NoServiceAccount",
    "NoSuchKind",
    "admit",
    "prepare",
    "qos_class",
]

# No vowels and no 0, 1, 3: no words by accident (k8s.io/apimachinery/pkg/util/rand).
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
GENERATED_LENGTH = 63 - 5
# Metadata that is the server's: what a client sends of it does not count.
SERVER_METADATA = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink")
APPLIED = "managedFields"
Recorder = Callable[[Object], None]
MIRROR = "kubernetes.io/config.mirror"  # on pods that a kubelet shows, and did not ask for


class NoSuchKind(K8snetError):
    """No kind of that name is served."""


class Terminating(K8snetError):
    """The definition of the object's kind is being deleted."""


class NoNamespace(K8snetError):
    """The object's namespace is not there; `name` is its name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'namespaces "{name}" not found')
        self.name = name


class Forbidden(K8snetError):
    """The state of the cluster does not allow it; `causes` are for machines."""

    def __init__(self, message: str, causes: list[Object] | None = None) -> None:
        super().__init__(message)
        self.causes = causes or []


class NoServiceAccount(Forbidden):
    """The pod's ServiceAccount is not there; `name` is its name."""

    def __init__(self, pod: Object, name: str) -> None:
        namespace = pod["metadata"]["namespace"]
        super().__init__(
            f'pods "{pod["metadata"].get("name", "")}" is forbidden: error looking up service account '
            f'{namespace}/{name}: serviceaccount "{name}" not found'
        )
        self.name = name


def no_record(_: Object) -> None:
    """The recorder of those who leave no trace."""


def admit(
    store: Store, plan: AddressPlan, item: Object, *, dry_run: bool = False, record: Recorder = no_record
) -> Object:
    """Store a new object with all that the API server would add to it.

    `record` is called with the object as its author wants it, with its defaults and before the server adds what is its
    own; it may change managedFields, and nothing else.

    Raises NoSuchKind, NoNamespace, Forbidden, Invalid or AlreadyExists.
    """
    resource, item = prepare(store.kinds, plan, item, record)
    if resource.custom is not None:
        if resource.custom.terminating:
            raise Terminating("create not allowed while custom resource definition is terminating")
        item["apiVersion"] = resource.custom.storage
    if resource.namespaced:
        _require_namespace(store, resource, item)
    if resource == PODS and MIRROR not in (item["metadata"].get("annotations") or {}):
        account = item["spec"]["serviceAccountName"]
        if store.find(SERVICEACCOUNTS, item["metadata"]["namespace"], account) is None:
            raise NoServiceAccount(item, account)
    if resource == SERVICES:
        allocate(item, store, plan)
    if resource == PODS:
        mount_token(store, item)
    return store.create(resource.stored, item, dry_run=dry_run)


def prepare(kinds: Kinds, plan: AddressPlan, item: Object, record: Recorder = no_record) -> tuple[Resource, Object]:
    """A new object as it may be stored, and its resource. Raises NoSuchKind or Invalid."""
    resource = kinds.by_kind(str(item.get("apiVersion")), str(item.get("kind")))
    if resource is None:
        raise NoSuchKind(f'no matches for kind "{item.get("kind")}" in version "{item.get("apiVersion")}"')
    item = copy.deepcopy(item)
    metadata = item["metadata"] = item.get("metadata") or {}
    for field in (*SERVER_METADATA, "resourceVersion"):
        metadata.pop(field, None)
    if item.get("spec", {}) is None:
        del item["spec"]
    if not metadata.get("name") and metadata.get("generateName"):
        metadata["name"] = metadata["generateName"][:GENERATED_LENGTH] + random_suffix()
    if resource.namespaced:
        metadata.setdefault("namespace", "default")
    else:
        metadata.pop("namespace", None)
    if resource.custom is not None:
        if resource.has_status:
            item.pop("status", None)
        item = _as_defined(resource, plan, item, None)
        record(item)
        return resource, item
    schema.fill(item, resource)
    complete(item, plan)
    validate(resource, item, plan)
    record(item)
    if resource == PODS:
        admit_pod(item)
    if resource == DEFINITIONS:
        definitions.first_status(item)
    else:
        first_status(item)
    return resource, item


def _as_defined(resource: Resource, plan: AddressPlan, item: Object, old: Object | None) -> Object:
    """A custom object with the defaults of its definition. Raises Invalid when that forbids it."""
    assert resource.custom is not None
    form = resource.custom.schema
    whole: Object = structural.completed(item, form)
    validate(resource, whole, plan, old, lambda: values.mistakes(whole, form) or rules.mistakes(whole, form, old))
    return whole


def replace(
    store: Store,
    plan: AddressPlan,
    resource: Resource,
    old: Object,
    new: Object,
    *,
    dry_run: bool = False,
    record: Recorder = no_record,
) -> Object:
    """Store `new` in place of `old`; `record` as in `admit`. Raises Invalid, Conflict or NotFound."""
    item = copy.deepcopy(new)
    metadata = item["metadata"]
    for field in SERVER_METADATA:
        metadata.pop(field, None)
        if field in old["metadata"]:
            metadata[field] = old["metadata"][field]
    if APPLIED not in metadata and APPLIED in old["metadata"]:
        metadata[APPLIED] = old["metadata"][APPLIED]
    if resource.has_status:
        item.pop("status", None)
        if "status" in old:
            item["status"] = old["status"]
    if resource == SERVICES:
        _keep_allocated(item, old)
    if resource.custom is not None:
        item = {**_as_defined(resource, plan, item, old), "apiVersion": resource.custom.storage}
        record(item)
        return store.update(resource.stored, item, dry_run=dry_run)
    schema.fill(item, resource)
    complete(item, plan)
    validate(resource, item, plan, old)
    record(item)
    if resource == DEFINITIONS:
        definitions.remember_storage(item)
    if resource == SERVICES:
        allocate(item, store, plan)
    return store.update(resource, item, dry_run=dry_run)


def replace_status(
    store: Store,
    plan: AddressPlan,
    resource: Resource,
    old: Object,
    new: Object,
    *,
    dry_run: bool = False,
    record: Recorder = no_record,
) -> Object:
    """Store the status of `new` in place of that of `old`, and nothing else of it; `record` as in `admit`.

    Raises Conflict, NotFound or Invalid.
    """
    metadata = {**old["metadata"]}
    if new["metadata"].get("resourceVersion"):
        metadata["resourceVersion"] = new["metadata"]["resourceVersion"]
    item = {**old, "metadata": metadata}
    item.pop("status", None)
    if new.get("status") is not None:
        item["status"] = new["status"]
    if resource.custom is not None:
        item = {**_as_defined(resource, plan, item, old), "apiVersion": resource.custom.storage}
    schema.fill(item, resource)
    validate_status(resource, item)
    record(item)
    return store.update(resource.stored, item, dry_run=dry_run)


def random_suffix(length: int = 5) -> str:
    """What the API appends for generateName."""
    return "".join(random.choices(ALPHABET, k=length))


def _require_namespace(store: Store, resource: Resource, item: Object) -> None:
    name = item["metadata"]["namespace"]
    namespace = store.find(NAMESPACES, "", name)
    if namespace is None:
        raise NoNamespace(name)
    if "deletionTimestamp" in namespace["metadata"]:
        message = (
            f'{resource.qualified} "{item["metadata"]["name"]}" is forbidden: unable to create new content in '
            f"namespace {name} because it is being terminated"
        )
        words = f"namespace {name} is being terminated"
        raise Forbidden(message, [{"reason": "NamespaceTerminating", "message": words, "field": "metadata.namespace"}])


def _keep_allocated(item: Object, old: Object) -> None:
    """What an update that says nothing of it takes over (pkg/registry/core/service: patchAllocatedValues and
    normalizeClusterIPs), and what goes with a change of the type (dropTypeDependentFields)."""
    spec, before = item.setdefault("spec", {}), old["spec"]
    kind = spec.get("type", "ClusterIP")
    if kind == "ExternalName":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            if spec.get(field) == before.get(field):
                spec.pop(field, None)
    elif before.get("type") != "ExternalName":
        _keep_addresses(spec, before)
    external = ("NodePort", "LoadBalancer")
    if kind in external and before.get("type") in external:
        known = {(port["protocol"], port["port"]): port.get("nodePort") for port in before.get("ports") or ()}
        taken = {port.get("nodePort") for port in spec.get("ports") or ()}
        for port in spec.get("ports") or ():
            number = known.get((port.get("protocol", "TCP"), port.get("port")))
            if not port.get("nodePort") and number and number not in taken:
                port["nodePort"] = number
    elif kind not in external and before.get("type") in external:
        numbers = {port.get("nodePort") for port in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in numbers:
                port.pop("nodePort", None)
        if spec.get("externalTrafficPolicy") == before.get("externalTrafficPolicy"):
            spec.pop("externalTrafficPolicy", None)
    _keep_balanced(spec, before)


def _keep_balanced(spec: Object, before: Object) -> None:
    """The same for what a load balancer needs."""
    gone = []
    if before.get("type") == "LoadBalancer" and spec.get("type") != "LoadBalancer":
        gone += ["allocateLoadBalancerNodePorts", "loadBalancerClass"]
    if needs_health_check(before) and needs_health_check(spec):
        spec["healthCheckNodePort"] = spec.get("healthCheckNodePort") or before.get("healthCheckNodePort")
    elif needs_health_check(before):
        gone.append("healthCheckNodePort")
    for field in gone:
        if spec.get(field) == before.get(field):
            spec.pop(field, None)


def _keep_addresses(spec: Object, before: Object) -> None:
    single, many = spec.get("clusterIP"), spec.get("clusterIPs")
    if not single and not many:
        spec["clusterIP"], spec["clusterIPs"] = before.get("clusterIP"), list(before.get("clusterIPs") or ())
    elif single and single != before.get("clusterIP") and (not many or many == before.get("clusterIPs")):
        spec["clusterIPs"] = [single]
    elif single and not many:
        spec["clusterIPs"] = list(before.get("clusterIPs") or [single])
    elif many and not single:
        spec["clusterIP"] = many[0]
    for field in ("ipFamilies", "ipFamilyPolicy"):
        if not spec.get(field) and before.get(field):
            spec[field] = before[field]
    for field in ("clusterIPs", "ipFamilies"):
        # As long as they have not changed, it is clear what is meant.
        if spec.get("ipFamilyPolicy") == "SingleStack" and spec.get(field) == before.get(field):
            spec[field] = (spec.get(field) or [])[:1]
