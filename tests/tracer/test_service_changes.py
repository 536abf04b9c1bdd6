"""What changed between two Service maps: the words, one sentence for each kind of change, and the JSON."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tracer.rules.test_rules_truth import services
from tracer.rules.services import Address, Endpoint, ServiceMap, ServicePort
from tracer.service_changes import changes


def ends(*shares: float, first: int = 11) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(f"10.244.0.{first + n}", 8000, each, ("S", f"E{n}")) for n, each in enumerate(shares))


SHIP = ServicePort(
    family=4,
    namespace="fastapi",
    name="lets-ship-it",
    port_name="http",
    protocol="TCP",
    addresses=(Address("ClusterIP", "10.96.100.50", 8000), Address("NodePort", None, 30080)),
    endpoints=ends(1 / 3, 1 / 3, 1 / 3),
    local_endpoints=(),
    session_affinity_seconds=None,
    source_ranges=(),
    no_endpoints=False,
)
LOCAL = replace(SHIP, local_endpoints=ends(0.5, 0.5))
NONE = replace(
    SHIP,
    addresses=tuple(replace(each, refused="reject") for each in SHIP.addresses),
    endpoints=(),
    no_endpoints=True,
)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (SHIP, replace(SHIP, endpoints=ends(0.25, 0.25, 0.25, 0.25)), "gained 10.244.0.14:8000; each endpoint now 1/4"),
        (SHIP, replace(SHIP, endpoints=ends(0.5, 0.5)), "lost 10.244.0.13:8000; each endpoint now 1/2"),
        (SHIP, replace(SHIP, endpoints=ends(1.0)), "lost 10.244.0.12:8000, 10.244.0.13:8000; the only endpoint now"),
        (
            SHIP,
            replace(SHIP, endpoints=ends(1 / 3, 1 / 3, 1 / 3, first=12)),
            "gained 10.244.0.14:8000 and lost 10.244.0.11:8000; each endpoint now 1/3",
        ),
        (
            SHIP,
            replace(SHIP, endpoints=ends(0.5, 0.25, 0.25)),
            "endpoints now 10.244.0.11:8000 1/2, 10.244.0.12:8000 1/4, 10.244.0.13:8000 1/4",
        ),
        (SHIP, NONE, "lost 10.244.0.11:8000, 10.244.0.12:8000, 10.244.0.13:8000; has no endpoints now"),
        (
            NONE,
            SHIP,
            "gained 10.244.0.11:8000, 10.244.0.12:8000, 10.244.0.13:8000; each endpoint now 1/3",
        ),
        (SHIP, replace(SHIP, session_affinity_seconds=10800), "affinity now 3h"),
        (replace(SHIP, session_affinity_seconds=60), SHIP, "has no affinity now"),
        (SHIP, replace(SHIP, source_ranges=("10.0.0.0/8",)), "lets in 10.0.0.0/8 only, now"),
        (replace(SHIP, source_ranges=("10.0.0.0/8",)), SHIP, "lets in any source now"),
        (SHIP, replace(SHIP, addresses=SHIP.addresses[:1]), "lost NodePort :30080"),
        (
            SHIP,
            replace(SHIP, addresses=(*SHIP.addresses, Address("ExternalIP", "203.0.113.5", 80))),
            "gained ExternalIP 203.0.113.5:80",
        ),
        (
            SHIP,
            replace(SHIP, addresses=(SHIP.addresses[0], replace(SHIP.addresses[1], refused="drop"))),
            "NodePort :30080 is dropped now",
        ),
        (
            LOCAL,
            replace(LOCAL, local_endpoints=ends(1.0)),
            "on this node lost 10.244.0.12:8000; the only local endpoint now",
        ),
        (SHIP, LOCAL, "on this node gained 10.244.0.11:8000, 10.244.0.12:8000; each local endpoint now 1/2"),
        (
            LOCAL,
            SHIP,
            "on this node lost 10.244.0.11:8000, 10.244.0.12:8000; has no choice of its own on this node now",
        ),
        (
            None,
            SHIP,
            "appeared: ClusterIP 10.96.100.50:8000, NodePort :30080; 3 endpoints",
        ),
        (None, NONE, "appeared: ClusterIP 10.96.100.50:8000, NodePort :30080; no endpoints"),
        (SHIP, None, "is gone"),
    ],
)
def test_words(before: ServicePort | None, after: ServicePort | None, words: str) -> None:
    (change,) = changes(ServiceMap([before] if before else []), ServiceMap([after] if after else []))
    assert change.words == f"fastapi/lets-ship-it {words}"


def test_what_is_no_change_for_packets_is_not_told() -> None:
    """Other chains lead to the same place; the last digit of a probability differs; endpoints come in another order."""
    other = replace(SHIP, endpoints=tuple(replace(each, chains=("T",)) for each in SHIP.endpoints))
    rounded = replace(SHIP, endpoints=ends(0.33333333349, 1 / 3, 0.3333333331))
    turned = replace(SHIP, endpoints=tuple(reversed(SHIP.endpoints)))
    for same in (SHIP, other, rounded, turned):
        assert changes(ServiceMap([SHIP]), ServiceMap([same])) == []


def test_port_is_named_where_there_are_several() -> None:
    second = replace(SHIP, port_name="metrics", addresses=(Address("ClusterIP", "10.96.100.50", 9090),))
    before, after = ServiceMap([SHIP, second]), ServiceMap([SHIP, replace(second, session_affinity_seconds=90)])
    assert [change.words for change in changes(before, after)] == ["fastapi/lets-ship-it:metrics affinity now 1m30s"]


def test_many_are_counted() -> None:
    (change,) = changes(ServiceMap([NONE]), ServiceMap([replace(SHIP, endpoints=ends(*[0.1] * 10))]))
    assert change.words.endswith(":8000, 10.244.0.18:8000 and 2 more; each endpoint now 1/10")


def test_nothing_reaches_the_terminal_raw() -> None:
    (change,) = changes(ServiceMap(()), ServiceMap([replace(SHIP, name="\x1b[2J")]))
    assert change.words.startswith(r"fastapi/\x1b[2J appeared")


def test_json() -> None:
    after = replace(SHIP, endpoints=ends(0.5, 0.5, first=13))
    (change,) = changes(ServiceMap([SHIP]), ServiceMap([after]))
    assert change.to_json("2026-11-22T09:00:00.000000001Z") == {
        "type": "service-change",
        "time": "2026-11-22T09:00:00.000000001Z",
        "node": None,
        "process": None,
        "change": "changed",
        "namespace": "fastapi",
        "name": "lets-ship-it",
        "port_name": "http",
        "protocol": "TCP",
        "family": 4,
        "gained": [{"ip": "10.244.0.14", "port": 8000, "probability": 0.5}],
        "lost": [
            {"ip": "10.244.0.11", "port": 8000, "probability": 1 / 3},
            {"ip": "10.244.0.12", "port": 8000, "probability": 1 / 3},
        ],
        "words": change.words,
        "service": after.to_json(),
    }


def test_all_of_a_node() -> None:
    """Every Service port appears, each once, and none is said to change when nothing did."""
    book = services("iptables-legacy")
    appeared = changes(ServiceMap(()), book)
    assert [(each.before, each.after) for each in appeared] == [(None, port) for port in book.services]
    assert changes(book, services("iptables-nft")) == []
