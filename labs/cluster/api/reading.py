"""Get and list: which objects a request is about, and in which form it wants them.

Stands for k8s.io/apiserver/pkg/endpoints/handlers/get.go and the negotiation of tables (handlers/response.go). Pages
are in `labs.cluster.api.paging`.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from labs.cluster import selectors
from labs.cluster.api import status
from labs.cluster.api.paging import page_of
from labs.cluster.api.paths import Target
from labs.cluster.api.tables import table
from labs.cluster.events import as_events_v1
from labs.cluster.extensions.structural import in_version
from labs.cluster.resources import Object, Resource
from labs.cluster.store import NotFound, Store


def get(store: Store, request: web.BaseRequest, target: Target) -> dict[str, Any]:
    """One object, in the form that is asked for."""
    return form(request, target, find(store, target))


def find(store: Store, target: Target) -> Object:
    """One object. Raises ApiError 404."""
    try:
        return in_version(target.resource, store.get(target.resource.stored, target.namespace, target.name))
    except NotFound:
        raise status.not_found(target.resource, target.name) from None


def form(request: web.BaseRequest, target: Target, item: Object) -> dict[str, Any]:
    """An object in the form that the client asks for: itself, or a table with one row."""
    if wants_table(request):
        return table(target.resource, [item], item["metadata"].get("resourceVersion", ""), include(request))
    return shown(target.resource, item)


def list_items(store: Store, request: web.BaseRequest, target: Target) -> dict[str, Any]:
    """All objects that the request selects, or a page of them."""
    page = page_of(store, request, target, selection(request, target))
    if wants_table(request):
        document = table(target.resource, page.items, str(page.version), include(request))
    else:
        document = as_list(target.resource, page.items, str(page.version))
    return {**document, "metadata": page.metadata}


def selected_items(store: Store, request: web.BaseRequest, target: Target) -> list[Object]:
    """The stored objects that a request to a collection is about."""
    selected = selection(request, target)
    return [item for item in store.list(target.resource.stored, target.namespace) if selected(item)]


def as_list(resource: Resource, items: list[Object], version: str) -> dict[str, Any]:
    """A list object, such as PodList."""
    return {
        "kind": resource.list_kind,
        "apiVersion": resource.api_version,
        "metadata": {"resourceVersion": version},
        "items": [shown(resource, item) for item in items],
    }


def shown(resource: Resource, item: Object) -> Object:
    """A stored object in the version in which it is asked for."""
    return as_events_v1(resource, item) if resource.is_view else in_version(resource, item)


def selection(request: web.BaseRequest, target: Target) -> selectors.Predicate:
    """Which objects a request is about. Raises ApiError 400 for selectors that make no sense."""
    try:
        by_label = selectors.label_selector(request.query.get("labelSelector", ""))
        by_field = selectors.field_selector(request.query.get("fieldSelector", ""), target.resource)
    except ValueError as error:
        raise status.bad_request(str(error)) from None
    place, name = target.namespace, target.name

    def selected(item: Object) -> bool:
        metadata = item["metadata"]
        if (place and metadata.get("namespace") != place) or (name and metadata["name"] != name):
            return False
        return by_label(item) and by_field(item)

    return selected


def wants_table(request: web.BaseRequest) -> bool:
    """Whether the first kind of answer that the client takes, and that we have, is a table."""
    for wanted in request.headers.get("Accept", "").split(","):
        parts = [part.strip() for part in wanted.split(";")]
        if parts[0] in ("application/json", "*/*"):
            # v1beta1 is what kubectl before 1.16 asks for; the form is the same, so it is given v1.
            return "as=Table" in parts and "v=v1" in parts
    return False


def include(request: web.BaseRequest) -> str:
    """What each row of a table is to carry of its object."""
    return request.query.get("includeObject", "Metadata")
