"""What a running cluster tells of itself, of objects that anybody may have written."""

from __future__ import annotations

from typing import Any

import pytest

from labs.cluster import control_server
from labs.cluster.resources import ENDPOINTSLICES, SERVICES
from labs.cluster.store import Store

SERVICE = {
    "metadata": {"namespace": "shop", "name": "legacy"},
    "spec": {
        "type": "ClusterIP",
        "clusterIPs": ["10.96.0.7"],
        "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}],
    },
}


@pytest.mark.parametrize(
    ("endpoints", "told"),
    [
        (
            [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {"ready": None}}],
            [
                {"addresses": ["192.0.2.1"], "pod": None, "ready": True},
                {"addresses": ["192.0.2.2"], "pod": None, "ready": True},
            ],
        ),
        (
            [{"addresses": ["192.0.2.1"], "conditions": {"ready": False}, "targetRef": {"kind": "Pod", "name": "old"}}],
            [{"addresses": ["192.0.2.1"], "pod": "old", "ready": False}],
        ),
        (None, []),
    ],
)
def test_endpoints_that_somebody_wrote_by_hand(endpoints: Any, told: list[dict[str, Any]]) -> None:
    store = Store()
    store.create(SERVICES, SERVICE)
    labels = {"kubernetes.io/service-name": "legacy"}
    item = {
        "metadata": {"namespace": "shop", "name": "by-hand", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"port": 8000}],
        **({} if endpoints is None else {"endpoints": endpoints}),
    }
    store.create(ENDPOINTSLICES, item)
    (service,) = control_server.services(store)
    assert service["endpoints"] == told
