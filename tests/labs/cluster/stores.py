"""Stores as they are before anything runs, for tests without a cluster."""

from __future__ import annotations

from labs.cluster import namespaces
from labs.cluster.admission import admit
from labs.cluster.options import AddressPlan
from labs.cluster.store import Store


def store_with(*names: str) -> Store:
    """A store with these namespaces, and what every namespace has."""
    store = Store()
    for name in names:
        admit(store, AddressPlan((4,)), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    namespaces.reconciler(store, "")()
    return store
