"""The table of Services: what stands in it, and that it fits any terminal without losing anything."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.rules.test_rules_truth import services
from tracer.escape import cells
from tracer.rules.services import Address, Endpoint, ServicePort
from tracer.service_table import address_label, duration_label, table


def port(**changes: object) -> ServicePort:
    fields: dict[str, object] = {
        "family": 4,
        "namespace": "fastapi",
        "name": "lets-ship-it",
        "port_name": "http",
        "protocol": "TCP",
        "addresses": (Address("NodePort", None, 30080), Address("ClusterIP", "10.96.100.50", 8000)),
        "endpoints": tuple(Endpoint(f"10.244.0.1{last}", 8000, 1 / 3, ("S",)) for last in (1, 2, 3)),
        "local_endpoints": (),
        "session_affinity_seconds": None,
        "source_ranges": (),
        "no_endpoints": False,
    }
    return ServicePort(**{**fields, **changes})  # type: ignore[arg-type]


def lines(*ports: ServicePort, width: int = 120) -> list[str]:
    return ["".join(span.text for span in line) for line in table(ports, width)]


def test_names_addresses_endpoints_shares() -> None:
    assert lines(port()) == [
        "SERVICE                    ADDRESSES                    ENDPOINTS         SHARE",
        "fastapi/lets-ship-it:http  ClusterIP 10.96.100.50:8000  10.244.0.11:8000  1/3",
        "                           NodePort :30080              10.244.0.12:8000  1/3",
        "                                                        10.244.0.13:8000  1/3",
    ]


def test_no_endpoints_is_said_outright() -> None:
    refused = port(
        addresses=(Address("ClusterIP", "10.96.0.9", 53, "reject"), Address(None, "192.0.2.1", 53, "drop")),
        endpoints=(),
        no_endpoints=True,
        port_name=None,
        protocol="UDP",
    )
    assert lines(refused)[1:] == [
        "fastapi/lets-ship-it  ClusterIP 10.96.0.9:53/udp rejected  no endpoints",
        "                      external 192.0.2.1:53/udp dropped",
    ]


def test_local_endpoints_source_ranges_affinity() -> None:
    local = port(
        addresses=(Address("LoadBalancer", "198.51.100.1", 80),),
        local_endpoints=(Endpoint("10.244.0.11", 8000, 1.0, ("L",)),),
        source_ranges=("10.0.0.0/8", "192.0.2.0/24"),
        session_affinity_seconds=10800,
    )
    assert lines(local)[1:] == [
        "fastapi/lets-ship-it:http  LoadBalancer 198.51.100.1:80  10.244.0.11:8000    1/3",
        "                             from 10.0.0.0/8             10.244.0.12:8000    1/3",
        "                             from 192.0.2.0/24           10.244.0.13:8000    1/3",
        "                                                         on this node only:",
        "                                                         10.244.0.11:8000    1/1",
        "                                                         affinity 3h",
    ]


def test_local_endpoints_that_are_all_the_same_are_not_told_twice() -> None:
    same = tuple(Endpoint(e.ip, e.port, e.probability, ("L",)) for e in port().endpoints)
    assert lines(port(local_endpoints=same)) == lines(port())


def test_folded_where_it_is_too_narrow() -> None:
    assert lines(port(), width=60) == [
        "SERVICE           ADDRESSES          ENDPOINTS         SHARE",
        "fastapi/lets-     ClusterIP          10.244.0.11:8000  1/3",
        "  ship-it:http      10.96.100.50:    10.244.0.12:8000  1/3",
        "                    8000             10.244.0.13:8000  1/3",
        "                  NodePort :30080",
    ]


def test_nothing_in_it_reaches_the_terminal_raw() -> None:
    (_, line, *_) = lines(port(namespace="\x1b]0;x\x07", name="日本\u202e", port_name="a\nb"))
    assert line.startswith(r"\x1b]0;x\x07/日本\u202e:a\nb".replace(r"\n", r"\x0a") + "  ClusterIP")


@pytest.mark.parametrize("form", ["iptables-legacy", "nftables-text"])
@settings(deadline=None, max_examples=30)
@given(width=st.integers(60, 200))
def test_every_line_fits_and_nothing_is_lost(form: str, width: int) -> None:
    ports = services(form).services
    found = lines(*ports, width=width)
    assert max(map(cells, found)) <= width
    assert [line for line in found if line != line.rstrip()] == []
    columns = [found[0].index(title) for title in ("SERVICE", "ADDRESSES", "ENDPOINTS", "SHARE")]
    addresses = "".join(line[columns[1] : columns[2]] for line in found)
    for one in ports:
        for address in one.addresses:
            assert address_label(address, one.protocol) in re.sub(r"\s+", "", addresses)


@pytest.mark.parametrize(
    ("seconds", "words"), [(10800, "3h"), (90, "1m30s"), (86400, "24h"), (0, "0s"), (3601, "1h1s")]
)
def test_durations(seconds: int, words: str) -> None:
    assert duration_label(seconds) == words
