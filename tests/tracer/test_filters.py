"""Each filter by itself, then together."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tracer.fakes import EXAMPLE, example
from tracer.filters import Filter


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, True),
        ({"namespaces": ("default",)}, True),  # the source's
        ({"namespaces": ("fastapi",)}, True),  # the destination's and the backend's
        ({"namespaces": ("fast*",)}, True),
        ({"namespaces": ("kube-system",)}, False),
        ({"namespaces": ("kube-system", "default")}, True),  # repeated: any of them
        ({"pods": ("client",)}, True),
        ({"pods": ("default/client",)}, True),
        ({"pods": ("fastapi/client",)}, False),
        ({"pods": ("lets-ship-it-*",)}, True),
        ({"pods": ("fastapi/lets-ship-it-*-htx9q",)}, True),
        ({"pods": ("*/client",)}, True),
        ({"pods": ("lets-ship-it",)}, False),
        ({"services": ("lets-ship-it",)}, True),
        ({"services": ("fastapi/lets-ship-it",)}, True),
        ({"services": ("default/lets-ship-it",)}, False),
        ({"services": ("lets-*",)}, True),
        ({"nodes": ("node1",)}, True),
        ({"nodes": ("node2",)}, False),
        ({"comms": ("curl",)}, True),
        ({"comms": ("cur",)}, False),
        ({"pids": (4242,)}, True),
        ({"pids": (1, 2)}, False),
        ({"ports": (8000,)}, True),
        ({"ports": (46354,)}, False),  # the source's does not count
        ({"protocols": ("TCP",)}, True),
        ({"protocols": ("UDP",)}, False),
        ({"failed": True}, False),
        ({"namespaces": ("default",), "comms": ("curl",), "ports": (8000,)}, True),
        ({"namespaces": ("default",), "comms": ("wget",), "ports": (8000,)}, False),
    ],
)
def test_wants(options: dict[str, Any], passes: bool) -> None:
    assert Filter(**options).wants(example()) is passes


def test_port_matches_the_backend_too() -> None:
    connection = example(backend={**EXAMPLE["backend"], "port": 8080})
    assert Filter(ports=(8080,)).wants(connection)
    assert Filter(ports=(8000,)).wants(connection)
    assert not Filter(ports=(80,)).wants(example(backend=None))


@pytest.mark.parametrize("outcome", ["refused", "reset", "timeout", "rejected", "no-endpoints", "unreachable"])
def test_failed(outcome: str) -> None:
    assert Filter(failed=True).wants(example(outcome=outcome))


@pytest.mark.parametrize("outcome", ["established", "sent", "answered", None])
def test_not_failed(outcome: str | None) -> None:
    assert not Filter(failed=True).wants(example(outcome=outcome))


def test_unknown_process_and_names_match_nothing_but_no_filter() -> None:
    bare = example(process=None, node=None, backend=None, source={**EXAMPLE["source"], "namespace": None, "pod": None})
    assert Filter().wants(bare)
    for options in ({"comms": ("*",)}, {"pids": (4242,)}, {"nodes": ("*",)}, {"pods": ("*",)}):
        assert not Filter(**options).wants(bare)


def test_comm_is_compared_as_the_kernel_cuts_it() -> None:
    cut = example(process={**EXAMPLE["process"], "comm": "kube-controller"})
    assert Filter(comms=("kube-controller-manager",)).wants(cut)


def test_comm_that_looks_like_a_pattern() -> None:
    assert Filter(comms=("[x]",)).wants(example(process={**EXAMPLE["process"], "comm": "[x]"}))


def test_other_record_types_answer_only_shared_filters() -> None:
    record = {"type": "dns", "time": "…", "node": "node1", "process": {"pid": 7, "comm": "dig"}}
    assert Filter().wants_other(record)
    assert Filter(nodes=("node1",), comms=("dig",), pids=(7,)).wants_other(record)
    assert not Filter(pids=(8,)).wants_other(record)
    assert not Filter(services=("x",)).wants_other(record)
    assert not Filter(failed=True).wants_other(record)
    assert not Filter(comms=("dig",)).wants_other({"type": "dns", "process": "no object", "node": 5})
