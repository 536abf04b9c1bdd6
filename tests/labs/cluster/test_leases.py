"""The signs of life of nodes."""

from __future__ import annotations

from labs.cluster import leases
from labs.cluster.resources import LEASES, NODES, key_of
from tests.labs.cluster.workloads import new_store


def test_each_node_that_is_up_renews_its_own() -> None:
    store = new_store(2)
    leases.renew(store)
    assert store.list(LEASES) == []  # nobody is up yet
    for node in store.list(NODES):
        store.update_status(NODES, *key_of(node), {"conditions": [{"type": "Ready", "status": "True"}]})
    leases.renew(store)
    first = {key_of(item): item["spec"] for item in store.list(LEASES)}
    assert list(first) == [("kube-node-lease", "node1"), ("kube-node-lease", "node2")]
    assert first["kube-node-lease", "node1"]["holderIdentity"] == "node1"
    store.update_status(NODES, "", "node2", {"conditions": [{"type": "Ready", "status": "False"}]})
    leases.renew(store)
    second = {key_of(item): item["spec"]["renewTime"] for item in store.list(LEASES)}
    assert second["kube-node-lease", "node1"] > first["kube-node-lease", "node1"]["renewTime"]
    assert second["kube-node-lease", "node2"] == first["kube-node-lease", "node2"]["renewTime"]
    (owner,) = store.list(LEASES)[0]["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Node", "node1")
