"""What a record costs in Python, from a source's tuple to bytes in a file: `python -m tests.bench_pipeline`.

12,000 connections a second as the loop sees them: 50 batches a second of 240, over a few hundred shapes, each shape's
bytes a new object as the ring buffer gives them. Names are answered from a dictionary, once per shape.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.tracer.fakes import T0, FakeNames, shape
from tracer.filters import Filter
from tracer.resolve import Resolver
from tracer.shapes import Shapes
from tracer.sinks import JsonSink, Writer

RATE = 12_000
BATCH = 240
SOURCES = 100
BACKENDS = 3

Batch = list[tuple[int, int, int, bytes]]


class Cost(NamedTuple):
    """Microseconds per record: look-up of shapes, JSON and write; and of a shape's first record."""

    look_up: float
    output: float
    first: float

    @property
    def total(self) -> float:
        """Of a record whose shape is known."""
        return self.look_up + self.output


def batches(seconds: float) -> list[Batch]:
    """Load as it arrives, at RATE."""
    shapes = [
        shape(source=f"10.244.{source // 200}.{source % 200 + 1}", backend=f"10.244.9.{backend}")
        for source in range(SOURCES)
        for backend in range(BACKENDS)
    ]
    count = int(RATE * seconds)
    step = 1_000_000_000 // RATE
    records = [
        (T0 + n * step, 400_000 + n % 1000, 1024 + n % 60_000, bytes(bytearray(shapes[n * 7919 % len(shapes)])))
        for n in range(count)
    ]
    return [records[start : start + BATCH] for start in range(0, count, BATCH)]


def measure(load: Sequence[Batch], fd: int) -> Cost:
    """Run all of `load` through shapes and JSON into a file."""
    shapes, sink = Shapes(Resolver(FakeNames()), Filter()), JsonSink(Writer(fd, "file"))
    warm, first = _timed(lambda: shapes.items([record for batch in load[:5] for record in batch]))
    looked_up = written = 0.0
    for batch in load:
        items, seconds = _timed(lambda batch=batch: shapes.items(batch))  # type: ignore[misc]
        looked_up += seconds
        written += _timed(lambda items=items: sink.items(items))[1]  # type: ignore[misc]
    records = sum(map(len, load)) / 1e6
    return Cost(looked_up / records, written / records, first * 1e6 / len({id(item[3]) for item in warm}))


def _timed(action: Callable[[], object]) -> tuple[list[tuple[int, int, int, object]], float]:
    started = time.process_time()
    result = action()
    return result, time.process_time() - started  # type: ignore[return-value]


def main() -> None:
    """Print the median of some runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load in each run")
    options = parser.parse_args()
    load = batches(options.seconds)
    costs = []
    for _ in range(options.runs):
        with tempfile.TemporaryFile() as file:
            costs.append(measure(load, file.fileno()))
            size = os.fstat(file.fileno()).st_size
    median = sorted(costs, key=lambda cost: cost.total)[len(costs) // 2]
    print(f"{median.total:.2f} us per record (median of {options.runs} runs of {sum(map(len, load))} records)")
    print(f"  {median.look_up:.2f} us shape look-up and filter, {median.output:.2f} us JSON and write to a file")
    print(
        f"  {median.first:.0f} us more for the first record of a shape; {size / sum(map(len, load)):.0f} bytes a record"
    )


if __name__ == "__main__":
    main()
