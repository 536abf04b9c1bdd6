"""The columns of `kubectl get`."""

from __future__ import annotations

import pytest

from labs.cluster.api.ages import human_duration
from labs.cluster.api.tables import table
from labs.cluster.resources import ENDPOINTSLICES, NODES, PODS, SERVICES

CREATED = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (10799, "179m"),
        (10800, "3h"),
        (7 * 3600 + 59 * 60, "7h59m"),
        (8 * 3600 + 60, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (731 * 86400, "2y1d"),
        (9 * 365 * 86400, "9y"),
    ],
)
def test_ages_are_written_as_kubectl_does(seconds: int, expected: str) -> None:
    """Cases from k8s.io/apimachinery/pkg/util/duration/duration_test.go."""
    assert human_duration(seconds) == expected


def pod(**status: object) -> dict[str, object]:
    state = {"ready": False, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    return {
        "metadata": {"name": "a", "creationTimestamp": CREATED},
        "spec": {"containers": [{}, {}], "nodeName": "node1"},
        "status": {"phase": "Running", "podIP": "10.244.0.2", "containerStatuses": [state], **status},
    }


def cells(resource: object, item: dict[str, object]) -> list[object]:
    row: list[object] = table(resource, [item], "7")["rows"][0]["cells"]  # type: ignore[arg-type]
    return row


def test_a_pod_shows_what_its_containers_wait_for() -> None:
    row = cells(PODS, pod())
    assert row[:4] == ["a", "0/2", "CrashLoopBackOff", "3"]
    assert row[5:7] == ["10.244.0.2", "node1"]
    assert (
        cells(PODS, {**pod(), "metadata": {"name": "a", "creationTimestamp": CREATED, "deletionTimestamp": CREATED}})[2]
        == "Terminating"
    )


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [
        ({"type": "ClusterIP", "clusterIP": "10.96.0.1"}, {}, "<none>"),
        ({"type": "ClusterIP", "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.1"]}, {}, "192.0.2.1"),
        ({"type": "LoadBalancer", "clusterIP": "10.96.0.1"}, {}, "<pending>"),
        (
            {"type": "LoadBalancer", "clusterIP": "10.96.0.1"},
            {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}]}},
            "192.0.2.2",
        ),
        ({"type": "ExternalName", "externalName": "example.org"}, {}, "example.org"),
    ],
)
def test_external_addresses_of_services(spec: dict[str, object], status: dict[str, object], expected: str) -> None:
    item = {"metadata": {"name": "a", "creationTimestamp": CREATED}, "spec": spec, "status": status}
    assert cells(SERVICES, item)[3] == expected


def test_ports_of_services() -> None:
    ports = [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]
    item = {"metadata": {"name": "a", "creationTimestamp": CREATED}, "spec": {"type": "NodePort", "ports": ports}}
    assert cells(SERVICES, item)[4] == "80:30080/TCP,53/UDP"


def test_more_than_three_endpoints_are_counted() -> None:
    endpoints = [{"addresses": [f"10.244.0.{number}"]} for number in range(2, 7)]
    metadata = {"name": "a", "creationTimestamp": CREATED}
    item = {"metadata": metadata, "addressType": "IPv4", "ports": [], "endpoints": endpoints}
    assert cells(ENDPOINTSLICES, item)[2:4] == ["<unset>", "10.244.0.2,10.244.0.3,10.244.0.4 + 2 more..."]


def test_ports_of_slices_may_have_no_number() -> None:
    item = {"metadata": {"name": "s", "creationTimestamp": CREATED}, "addressType": "IPv4"}
    item["ports"] = [{"port": 80, "name": "a"}, {"name": "b"}, {"name": ""}]
    assert table(ENDPOINTSLICES, [item], "1", "None")["rows"][0]["cells"][2] == "80,b,*"


def test_roles_and_readiness_of_nodes() -> None:
    labels = {"node-role.kubernetes.io/control-plane": "", "other": "x"}
    metadata = {"name": "a", "creationTimestamp": CREATED, "labels": labels}
    status = {"conditions": [{"type": "Ready", "status": "False"}]}
    item = {"metadata": metadata, "spec": {"unschedulable": True}, "status": status}
    assert cells(NODES, item)[1:3] == ["NotReady,SchedulingDisabled", "control-plane"]


def test_wide_columns_have_priority_one_and_rows_carry_their_object() -> None:
    document = table(PODS, [pod()], "7")
    assert [column["priority"] for column in document["columnDefinitions"]] == [0] * 5 + [1] * 4
    assert document["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    assert table(PODS, [pod()], "7", "Object")["rows"][0]["object"]["spec"]["nodeName"] == "node1"
    assert table(PODS, [pod()], "7", "None")["rows"][0]["object"] is None
