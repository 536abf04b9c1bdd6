"""What a learner measured is judged by ratios, and what it lacks is said; rules that a new flow passes are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from labs.bench import scale
from labs.engine import facts
from labs.engine.checks import check, measurements
from labs.engine.spec import Named
from tests.labs.engine.fake import FakeWorld, context, prints
from tests.labs.engine.test_checks import WEB, result
from tracer.errors import MissingError

GROWS = {"nft": {10: 30.0, 1000: 45.0}, "ebpf": {10: 30.0, 1000: 30.5}}


def measured(directory: Path, times: dict[str, dict[int, float]], first: float = 30.0) -> None:
    found = [
        {
            "datapath": datapath,
            "services": services,
            "new_flow_us_by_target": {"first": {"p50": first}, "last": {"p50": last}},
        }
        for datapath, each in times.items()
        for services, last in each.items()
    ]
    (directory / "scale").mkdir()
    (directory / "scale" / "results.json").write_text(json.dumps({"machine": {}, "results": found}))


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        (GROWS, "pass"),
        ({"nft": GROWS["nft"]}, "datapath"),
        ({**GROWS, "ebpf": {10: 30.0, 100: 30.0}}, "services"),
        ({**GROWS, "ebpf": {1000: 30.0}}, "services"),
        ({**GROWS, "nft": {10: 30.0, 1000: 35.0}}, "noise"),
        ({**GROWS, "ebpf": {10: 30.0, 1000: 34.0}}, "noise"),
    ],
)
def test_scaling(times: dict[str, dict[int, float]], reason: str, tmp_path: Path) -> None:
    measured(tmp_path, times)
    assert result(FakeWorld(), "scaling", tmp_path, directory="scale", grows=["nft"], level=["ebpf"]) == reason


class Workers:
    """In place of the measurement's: `ratios` by datapath, of each turn."""

    def __init__(self, ratios: dict[str, list[float]]) -> None:
        self._ratios = ratios
        self.started: list[tuple[str, int]] = []

    @contextmanager
    def __call__(self, datapath: str, services: int) -> Iterator[Any]:
        self.started.append((datapath, services))
        turns = cycle(self._ratios[datapath])

        class Worker:
            def ask(self, what: str, **options: Any) -> dict[str, Any]:
                return {} if what == "load" else {"first": {"p50": 20.0}, "last": {"p50": 20.0 * next(turns)}}

        yield Worker()


@pytest.mark.parametrize(
    ("nft", "ebpf", "reason"),
    [
        ([1.5], [1.0], "pass"),
        ([1.4, 1.5, 0.5], [1.0, 4.0, 1.0], "pass"),
        ([1.1], [1.0], "noise"),
        ([1.5], [1.2], "noise"),
    ],
)
def test_growth_is_measured_once(
    nft: list[float], ebpf: list[float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers({"nft": nft, "ebpf": ebpf})
    monkeypatch.setattr(scale, "started", workers)
    measurements._last_to_first.cache_clear()
    for _ in range(2):
        assert result(FakeWorld(), "growth", grows=["nft"], level=["ebpf"], services=700) == reason
    assert workers.started == [("nft", 700), ("ebpf", 700)]
    measurements._last_to_first.cache_clear()


@pytest.mark.parametrize("text", [None, "", "[]", '{"results": [{"datapath": "nft", "services": 10}]}'])
def test_nothing_measured_to_the_end(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "scale").mkdir()
        (tmp_path / "scale" / "results.json").write_text(text)
    assert result(FakeWorld(), "scaling", tmp_path, directory="scale", grows=["nft"], level=[]) == "missing"


def test_what_each_rule_costs_is_right_to_a_nanosecond(tmp_path: Path) -> None:
    ask = {"directory": "scale", "datapath": "nft"}
    with pytest.raises(MissingError, match="nft has not been measured"):
        facts.expected(context(FakeWorld(), tmp_path), "nanoseconds_a_rule", ask)
    measured(tmp_path, {"nft": {10: 30.0, 1000: 46.4}})
    right = facts.expected(context(FakeWorld(), tmp_path), "nanoseconds_a_rule", ask)
    answers = ("14", "15", "16", "16.4", "17", "17.3", "18", "46")
    found = [answer for answer in answers if facts.is_right(answer, right)]
    assert found == ["15", "16", "16.4", "17", "17.3"]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "pass"),
        ({"at_least": 17, "at_most": 17}, "pass"),
        ({"at_least": 18}, "few"),
        ({"at_most": 16}, "many"),
        ({"to": "default/other:80"}, "no-service"),
    ],
)
def test_passes(parameters: dict[str, Any], reason: str) -> None:
    world = FakeWorld(
        {"service default/web": WEB}, {"node1: k8snet-trace explain": prints({"passed": {"rules": 17.0}})}
    )
    assert result(world, "passes", **{"node": "node1", "to": "default/web:80", **parameters}) == reason
    assert facts.expected(context(world), "rules_passed", {"node": "node1", "to": "10.96.0.7:80"}) == {"17"}


def test_an_address_needs_no_service() -> None:
    world = FakeWorld({}, {"node1: k8snet-trace explain": prints({"passed": {"rules": 300}})})
    assert check(context(world), Named("passes", {"node": "node1", "to": "10.244.0.3:8000"})).passed
