"""What is measured, in which order, and what an interrupted run still has to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from labs.bench import objects, report, results, scale
from labs.bench.names import DATAPATHS
from labs.bench.scale import Step
from tests.labs.bench.measured import fill, flows, journal
from tracer.errors import UsageError


def test_a_full_run_has_the_sizes_that_are_promised() -> None:
    plan = scale.plan()
    assert plan.sizes == (10, 100, 1_000, 5_000, 10_000)
    assert plan.datapaths == ("iptables-legacy", "iptables-nft", "nftables", "ebpf")
    assert plan.method.rounds >= 5


@pytest.mark.parametrize(
    ("quick", "most", "sizes"),
    [
        (False, 30_000, (10, 100, 1_000, 5_000, 10_000, 30_000)),
        (False, 1_000, (10, 100, 1_000)),
        (False, 2_000, (10, 100, 1_000, 2_000)),
        (True, None, (10, 100, 1_000)),
        (True, 10, (10,)),
        (True, 5, (5,)),
    ],
)
def test_the_greatest_number_of_services_is_the_last_size(
    quick: bool, most: int | None, sizes: tuple[int, ...]
) -> None:
    assert scale.plan(quick=quick, most=most).sizes == sizes


@pytest.mark.parametrize("most", [4, 0, -1, objects.MAX_SERVICES + 1])
def test_a_number_of_services_that_makes_no_sense_is_refused(most: int) -> None:
    with pytest.raises(UsageError, match="Services can be measured"):
        scale.plan(most=most)


def turns(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one kind and number, which stand together."""
    found: list[list[Step]] = []
    for step in steps:
        if found and (found[-1][0].kind, found[-1][0].number) == (step.kind, step.number):
            found[-1].append(step)
        else:
            found.append([step])
    return found


def test_all_take_turns_in_an_order_that_changes() -> None:
    plan = scale.plan()
    pairs = {(datapath, size) for datapath in DATAPATHS for size in plan.sizes}
    found = turns(scale.schedule(plan))
    method = plan.method
    assert Counter(turn[0].kind for turn in found) == {
        "flows": method.rounds * method.sweeps,
        "rates": method.rounds,
        "updates": method.rounds,
    }
    orders = [[(step.datapath, step.services) for step in turn] for turn in found]
    assert all(len(order) == len(pairs) and set(order) == pairs for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


def test_no_two_measurements_of_new_flows_take_the_same_source_ports() -> None:
    seeds = [step.options["seed"] for step in scale.schedule(scale.plan()) if step.kind == "flows"]
    assert len(seeds) == len(set(seeds)) == 4_000


class Nobody:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.total = self.done = 0.0

    def start(self, seconds: float) -> None:
        self.total = seconds

    def show(self, what: str) -> None:
        pass

    def advance(self, seconds: float) -> None:
        self.done += seconds


class FakeWorkers:
    """Stand in for processes: remember what they were asked, and may break after so many answers."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.started: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self._left = breaks_after

    def __call__(self, datapath: str, services: int) -> Any:
        self.started.append((datapath, services))
        return self

    def __enter__(self) -> FakeWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, what: str, **options: Any) -> dict[str, Any]:
        if self._left is not None:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
        self.asked.append(what)
        answers: dict[str, dict[str, Any]] = {
            "load": {"full_sync_s": 0.1, "rules": 1, "memory_mb": None},
            "flows": flows(30.0),
            "rates": {"short": 1.0, "kept": 1.0},
            "updates": {"ms": [1.0]},
        }
        return answers[what]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(fake: FakeWorkers) -> FakeWorkers:
        monkeypatch.setattr(scale, "started", fake)
        monkeypatch.setattr(scale, "_require", lambda plan: None)
        monkeypatch.setattr(scale.enclosure, "sweep", lambda: None)
        return fake

    return use


def test_a_run_that_was_interrupted_goes_on_where_it_was(workers: Any) -> None:
    plan = scale.plan(quick=True, most=100, datapaths=("nftables", "ebpf"))
    every = len(scale.schedule(plan))
    kept = journal(plan)
    first = workers(FakeWorkers(breaks_after=4 + 10))
    with pytest.raises(KeyboardInterrupt):
        scale.run(plan, kept, Nobody())
    assert first.asked == ["load"] * 4 + ["flows"] * 10
    second, progress = workers(FakeWorkers()), Nobody()
    scale.run(plan, kept, progress)
    assert Counter(second.asked) == Counter(load=4, flows=32 * 4 - 10, rates=4, updates=4)
    assert len(kept.entries) == 4 + 4 + every
    assert progress.done == pytest.approx(progress.total) and progress.total > 0
    third = workers(FakeWorkers())
    scale.run(plan, kept, Nobody())
    assert third.started == []


def test_flows_only_measures_nothing_else_and_needs_no_programs(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "require_programs", lambda: pytest.fail("wrk is not needed"))
    monkeypatch.setattr(scale.os, "geteuid", lambda: 0)
    monkeypatch.setattr(scale.shutil, "which", lambda name: name)
    require = scale._require
    plan = scale.plan(quick=True, most=100, datapaths=("nftables", "ebpf"), flows_only=True)
    kept, fake = journal(plan), workers(FakeWorkers())
    require(plan)
    scale.run(plan, kept, Nobody())
    assert Counter(fake.asked) == Counter(load=4, flows=32 * 4)
    found = results.collect(kept, plan.datapaths, plan.sizes, flows_only=True)
    assert [(one.datapath, one.services) for one in found] == [
        ("nftables", 10), ("ebpf", 10), ("nftables", 100), ("ebpf", 100)
    ]  # fmt: skip
    assert results.collect(kept, plan.datapaths, plan.sizes) == []
    assert {found[0].short_connections_per_s, found[0].keepalive_requests_per_s, found[0].endpoint_update_ms} == {None}
    assert found[0].to_json()["endpoint_update_ms"] is None
    told = report.markdown(found)
    assert "rules" in told and "p50" in told
    assert not any(word in told for word in ("new /s", "kept", "change, ms", "change:"))
    assert [verdict.target for verdict in results.verdicts(found)] == [
        "a new flow with 100 Services within 10% of one with 10",
        "a new flow quicker than with every other datapath at 100 Services",
    ]


def test_only_what_is_not_complete_is_loaded_again(workers: Any) -> None:
    plan = scale.plan(quick=True, most=10, datapaths=("nftables", "ebpf"))
    kept = journal(plan)
    fill(kept, "nftables", 10, [30.0] * 32)
    fake = workers(FakeWorkers())
    scale.run(plan, kept, Nobody())
    assert fake.started == [("ebpf", 10)]


def test_more_services_can_be_added_to_a_run(workers: Any) -> None:
    kept = journal(scale.plan(quick=True))
    workers(FakeWorkers())
    scale.run(scale.plan(quick=True, most=10, datapaths=("ebpf",)), kept, Nobody())
    fake = workers(FakeWorkers())
    scale.run(scale.plan(quick=True, most=100, datapaths=("ebpf",)), kept, Nobody())
    assert fake.started == [("ebpf", 100)]


def test_no_two_services_share_an_address_or_an_endpoint() -> None:
    numbers = (0, 1, 255, 9_999, objects.MAX_SERVICES - 1)
    found = [ip for number in numbers for change in range(20) for ip in objects.endpoints(number, change)]
    of = {ip: {n for n in numbers for c in range(20) if ip in objects.endpoints(n, c)} for ip in found}
    assert all(len(owners) == 1 for owners in of.values())
    assert len({objects.vip(number) for number in range(objects.MAX_SERVICES)}) == objects.MAX_SERVICES
    assert {len(set(objects.endpoints(7, change))) for change in range(40)} == {3}


def test_each_change_of_an_endpoint_is_one() -> None:
    for change in range(40):
        before, after = objects.endpoints(5, change), objects.endpoints(5, change + 1)
        assert len(set(before) - set(after)) == len(set(after) - set(before)) == 1
