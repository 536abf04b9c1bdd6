"""Shapes become records with every name where the contract wants it."""

from __future__ import annotations

import struct

import pytest

from tests.tracer.fakes import EXAMPLE, T0, FakeNames, raw, shape, untranslated
from tracer.events import IPPROTO_UDP, Flag, Outcome, Process, Translation
from tracer.resolve import Resolver


def test_the_contracts_example() -> None:
    assert Resolver(FakeNames()).connection((T0, 412_999, 46354, shape())).to_json() == {
        **EXAMPLE,
        "translation": {**EXAMPLE["translation"], "via": tuple(EXAMPLE["translation"]["via"])},
    }


def test_without_names_addresses_are_left() -> None:
    connection = Resolver(None).connection(raw())
    assert connection.node is None
    assert (connection.source.ip, connection.source.pod) == ("10.244.0.10", None)
    assert (connection.destination.ip, connection.destination.service, connection.destination.kind) == (
        "10.96.100.50",
        None,
        None,
    )
    assert connection.backend is not None and connection.backend.ip == "10.244.0.12"
    assert connection.translation == Translation("netfilter", True, False)


def test_untranslated_has_no_backend() -> None:
    connection = Resolver(FakeNames()).connection(raw(packed=untranslated()))
    assert connection.backend is None
    assert connection.translation == Translation()


def test_masquerade_alone_is_told_without_a_backend() -> None:
    connection = Resolver(FakeNames()).connection(raw(packed=untranslated(flags=Flag.SNAT, nat_netns=1)))
    assert connection.backend is None
    assert connection.translation == Translation("netfilter", False, True)


def test_socket_translation_asks_maps_and_no_rules() -> None:
    connection = Resolver(FakeNames()).connection(raw(packed=shape(flags=Flag.SOCKET)))
    assert connection.backend is not None and connection.backend.pod == "lets-ship-it-584c4f66f8-htx9q"
    assert connection.translation == Translation("socket", probability=0.25)
    assert Resolver(None).connection(raw(packed=shape(flags=Flag.SOCKET))).translation == Translation("socket")


def test_no_process() -> None:
    connection = Resolver(FakeNames()).connection(raw(packed=shape(flags=Flag.DNAT | Flag.NO_PROCESS)))
    assert connection.process is None


@pytest.mark.parametrize(
    ("comm", "text"),
    [(b"curl", "curl"), (b"a\0b", "a"), (b"exactly15bytes!", "exactly15bytes!"), (b"bad\xff", "bad\ufffd"), (b"", "")],
)
def test_comm(comm: bytes, text: str) -> None:
    assert Resolver(None).shape(shape(comm=comm)).process == Process(4242, text, 1234, 4026532245)


def test_ipv6() -> None:
    packed = shape(family=6, source="fd00:10:244::a", destination="fd00:10:96::1", backend="fd00:10:244::c")
    connection = Resolver(None).shape(packed)
    assert connection.family == 6
    assert connection.source.ip == "fd00:10:244::a"
    assert connection.destination.ip == "fd00:10:96::1"
    assert connection.backend is not None and connection.backend.ip == "fd00:10:244::c"


def test_protocols() -> None:
    assert Resolver(None).shape(shape(protocol=IPPROTO_UDP)).protocol == "UDP"
    assert Resolver(None).shape(shape(protocol=132)).protocol == "SCTP"
    assert Resolver(None).shape(shape(protocol=33)).protocol == "33"


@pytest.mark.parametrize(
    ("outcome", "empty", "label"),
    [
        (Outcome.REJECTED, True, "no-endpoints"),
        (Outcome.REFUSED, True, "no-endpoints"),
        (Outcome.REJECTED, False, "rejected"),
        (Outcome.REFUSED, False, "refused"),
        (Outcome.TIMEOUT, True, "timeout"),
        (Outcome.UNKNOWN, False, None),
    ],
)
def test_no_endpoints(outcome: Outcome, empty: bool, label: str | None) -> None:
    names = FakeNames()
    names.empty_services = {"10.96.100.50"} if empty else set()
    assert Resolver(names).shape(untranslated(outcome=outcome, errno=111)).outcome == label


def test_a_pod_that_refuses_is_not_a_service_without_endpoints() -> None:
    names = FakeNames()
    names.empty_services = {"10.96.100.50"}
    assert Resolver(names).shape(shape(outcome=Outcome.REFUSED)).outcome == "refused"


def test_unknown_latency_is_null_and_a_short_one_is_not() -> None:
    resolver = Resolver(None)
    assert resolver.connection(raw(latency_ns=-1)).latency_us is None
    assert resolver.connection(raw(latency_ns=0)).latency_us == 0
    assert resolver.connection(raw(latency_ns=999)).latency_us == 0


def test_other_sizes_are_refused() -> None:
    with pytest.raises(struct.error):
        Resolver(None).shape(b"short")
