"""Leases of nodes: a sign of life every ten seconds, which `kubectl describe node` shows.

Stands for the kubelet's lease controller (k8s.io/component-helpers/apimachinery/lease, pkg/kubelet/util/nodelease.go).
Left out: whoever would miss it; that a node is down is told by `labs.cluster.world`.
"""

from __future__ import annotations

import asyncio
import datetime

from labs.cluster.resources import LEASES, NODES, Object, is_ready
from labs.cluster.store import Store

NAMESPACE = "kube-node-lease"
DURATION_SECONDS = 40  # what a kubelet promises (--node-lease-duration-seconds)
RENEW_SECONDS = DURATION_SECONDS / 4


async def keep(store: Store) -> None:
    """Renew the leases of all nodes that are up, for ever."""
    while True:
        renew(store)
        await asyncio.sleep(RENEW_SECONDS)


def renew(store: Store) -> None:
    """Write the time into the lease of each node that is ready."""
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for node in store.list(NODES):
        name = node["metadata"]["name"]
        if not is_ready(node):
            continue
        current = store.find(LEASES, NAMESPACE, name)
        if current is None:
            store.create(LEASES, _lease(node, moment))
        else:
            store.update(LEASES, {**current, "spec": {**current["spec"], "renewTime": moment}})


def _lease(node: Object, moment: str) -> Object:
    name = node["metadata"]["name"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE, "ownerReferences": [owner]},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": moment},
    }
