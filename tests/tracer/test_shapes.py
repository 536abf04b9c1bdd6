"""The cache asks once, forgets in time, and stays bounded."""

from __future__ import annotations

from tests.tracer.fakes import FakeNames, raw, shape
from tracer.filters import Filter
from tracer.names.model import PodName
from tracer.resolve import Resolver
from tracer.shapes import Shapes


def test_a_shape_is_resolved_once() -> None:
    names = FakeNames()
    shapes = Shapes(Resolver(names), Filter())
    for _ in range(3):
        assert len(shapes.items([raw(n) for n in range(100)])) == 100
    assert names.questions == 1


def test_what_the_filter_leaves_out_is_remembered_too() -> None:
    names = FakeNames()
    shapes = Shapes(Resolver(names), Filter(comms=("wget",)))
    wget = shape(comm=b"wget")
    batch = [raw(0), raw(1, wget), raw(2)]
    assert [item[0] for item in shapes.items(batch)] == [raw(1).time_ns]
    shapes.items(batch)
    assert names.questions == 2


def test_a_new_generation_asks_again() -> None:
    names = FakeNames()
    shapes = Shapes(Resolver(names), Filter())
    ((*_, before),) = shapes.items([raw()])
    names.pods["10.244.0.12"] = PodName("fastapi", "another")
    ((*_, unchanged),) = shapes.items([raw()])
    names.generation += 1
    ((*_, after),) = shapes.items([raw()])
    assert before.shared.backend.pod == unchanged.shared.backend.pod == "lets-ship-it-584c4f66f8-htx9q"  # type: ignore[union-attr]
    assert after.shared.backend is not None and after.shared.backend.pod == "another"


def test_bounded() -> None:
    names = FakeNames()
    shapes = Shapes(Resolver(names), Filter(), limit=10)
    batch = [raw(n, shape(pid=n)) for n in range(95)]
    items = shapes.items(batch)
    assert [item[3].shared.process.pid for item in items] == list(range(95))  # type: ignore[union-attr]
    assert len(shapes._entries) <= 10
