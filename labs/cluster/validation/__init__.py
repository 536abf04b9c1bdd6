"""What is wrong with an object: the mistakes that people make most, in the API's own words.

Stands for pkg/apis/core/validation, apps/validation, networking/validation and discovery/validation, of which only a
part is here: names, labels, what is required, what knows only a few words, references inside the object, what may not
change. An object that passes may still be one that the real API refuses. Pure: it looks at one object (and what it was
before), with its defaults filled in.

What belongs here: right and wrong. What does not: types and unknown fields (`labs.cluster.schema`), what depends on
other objects (`labs.cluster.allocation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from labs.cluster.extensions import correctness
from labs.cluster.fielderrors import FieldError, GoText, Invalid, go_value
from labs.cluster.options import AddressPlan
from labs.cluster.resources import DEFINITIONS, Object, Resource
from labs.cluster.validation import metadata, others, pods, services, workloads
from labs.cluster.validation.words import Errors


def validate(
    resource: Resource,
    item: Object,
    plan: AddressPlan,
    old: Object | None = None,
    mistakes: Callable[[], Iterable[FieldError]] | None = None,
) -> None:
    """Raise Invalid for an object that can't be stored; `old` is what it is to replace.

    `mistakes` finds what is wrong with a custom object besides its metadata.
    """
    errors = [*metadata.metadata(resource, item["metadata"])]
    if old is not None:
        errors += metadata.update_metadata(item, old)
    errors += _of_kind(resource, item, plan, old) if mistakes is None else mistakes()
    if errors:
        name = item["metadata"].get("name") or item["metadata"].get("generateName", "")
        raise Invalid(resource.kind, name, errors, resource.group)


def validate_status(resource: Resource, item: Object) -> None:
    """Raise Invalid for an object whose status can't be what a client wants it to be."""
    errors = [*correctness.status(item)] if resource == DEFINITIONS else []
    if errors:
        raise Invalid(resource.kind, item["metadata"]["name"], errors, resource.group)


def _of_kind(resource: Resource, item: Object, plan: AddressPlan, old: Object | None) -> Errors:
    yield from _BY_KIND[resource.kind](item) if resource.kind in _BY_KIND else ()
    if resource.kind == "Service":
        yield from services.service_families(item["spec"], plan)
    if old is not None and resource.kind in _UPDATES:
        yield from _UPDATES[resource.kind](item, old)


def show_patch(patch: Any) -> GoText:
    """A patch as the API shows it in an error."""
    return GoText(f'"{go_value(patch)}"')


_BY_KIND: dict[str, Callable[[Object], Errors]] = {
    "Pod": pods.pod,
    "Deployment": workloads.workload,
    "ReplicaSet": workloads.workload,
    "DaemonSet": workloads.workload,
    "Service": services.service,
    "ConfigMap": others.data,
    "Secret": others.data,
    "Ingress": others.ingress,
    "Endpoints": others.endpoints,
    "EndpointSlice": others.endpointslice,
    "NetworkPolicy": others.network_policy,
    "CustomResourceDefinition": correctness.definition,
}
_UPDATES: dict[str, Callable[[Object, Object], Errors]] = {
    "Pod": pods.update_pod,
    "Deployment": workloads.update_workload,
    "ReplicaSet": workloads.update_workload,
    "DaemonSet": workloads.update_workload,
    "Service": services.update_service,
    "ConfigMap": others.update_data,
    "Secret": others.update_secret,
    "EndpointSlice": others.update_endpointslice,
    "CustomResourceDefinition": correctness.update,
}
