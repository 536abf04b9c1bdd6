"""What every namespace has from its first moment: a ServiceAccount `default`, and the authority's certificate.

Stands for kube-controller-manager's serviceaccounts and root-ca-certificate-publisher controllers
(pkg/controller/serviceaccount, pkg/controller/certificates/rootcacertpublisher).
"""

from __future__ import annotations

from collections.abc import Callable

from labs.cluster.resources import CONFIGMAPS, NAMESPACES, SERVICEACCOUNTS, Object, Resource
from labs.cluster.store import Store

WATCHED = (NAMESPACES, SERVICEACCOUNTS, CONFIGMAPS)
ROOT_CA = "kube-root-ca.crt"
DESCRIPTION = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the "
    "internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
    "clusters."
)


def reconciler(store: Store, authority: str) -> Callable[[], None]:
    """The function that gives every namespace what it should have. `authority`: the certificate, PEM."""

    def reconcile() -> None:
        for namespace in store.list(NAMESPACES):
            if "deletionTimestamp" not in namespace["metadata"]:
                name = namespace["metadata"]["name"]
                _ensure(store, SERVICEACCOUNTS, name, "default", {})
                annotations = {"kubernetes.io/description": DESCRIPTION}
                _ensure(store, CONFIGMAPS, name, ROOT_CA, {"data": {"ca.crt": authority}}, annotations)

    return reconcile


def _ensure(
    store: Store, resource: Resource, namespace: str, name: str, content: Object, annotations: Object | None = None
) -> None:
    current = store.find(resource, namespace, name)
    if current is None:
        metadata = {"name": name, "namespace": namespace, **({"annotations": annotations} if annotations else {})}
        item = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        store.create(resource, {**item, **content})
    elif any(current.get(key) != value for key, value in content.items()):
        store.update(resource, {**current, **content})
