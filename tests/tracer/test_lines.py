"""Lines are drawn once for each shape and width."""

from __future__ import annotations

from tests.tracer.fakes import EXAMPLE, FakeNames, MemoryWriter, example, raw, shape
from tracer.filters import Filter
from tracer.lines import Brush, LineSink, Painter
from tracer.render import Span
from tracer.resolve import Resolver
from tracer.shapes import Shapes


class Counting(Painter):
    """Counts what it paints."""

    painted = 0

    def paint(self, spans: object) -> str:
        self.painted += 1
        return super().paint(spans)  # type: ignore[arg-type]


def test_a_shape_is_drawn_once_per_width() -> None:
    painter, writer = Counting(colour=False), MemoryWriter([])
    width = 120
    sink = LineSink(writer, painter, lambda: width)  # type: ignore[arg-type]
    shapes = Shapes(Resolver(FakeNames()), Filter())
    sink.items(shapes.items([raw(n) for n in range(10)] + [raw(10, shape(comm=b"wget"))]))
    assert (painter.painted, len(writer.lines), len(writer.texts)) == (2, 11, 1)
    width = 80  # the window was made narrower
    sink.items(shapes.items([raw(n) for n in range(10)]))
    assert painter.painted == 3
    assert max(map(len, writer.lines[11:])) <= 80


def test_live_and_replayed_lines_are_equal() -> None:
    live, replayed = MemoryWriter([]), MemoryWriter([])
    LineSink(live, Painter(colour=False)).items(Shapes(Resolver(FakeNames()), Filter()).items([raw()]))  # type: ignore[arg-type]
    LineSink(replayed, Painter(colour=False)).documents([(EXAMPLE, example()), ({"type": "dns"}, None)])  # type: ignore[arg-type]
    assert live.lines == replayed.lines
    assert len(live.lines) == 1


def test_time_and_latency_vary_within_a_shape() -> None:
    writer = MemoryWriter([])
    batch = [raw(0), raw(1, latency_ns=-1), raw(2, latency_ns=3_000_000_000)]
    LineSink(writer, Painter(colour=False)).items(Shapes(Resolver(None), Filter()).items(batch))  # type: ignore[arg-type]
    assert [line.split()[0] for line in writer.lines] == ["09:00:00.123", "09:00:00.124", "09:00:00.125"]
    assert [line.split("OK")[1] for line in writer.lines] == [" 0.4ms", "", " 3.0s"]


def test_markup_in_names_is_text() -> None:
    painted = Painter(colour=True).paint([Span("[red]x[/] :smile: ", "process"), Span("10.0.0.1", "plain")])
    assert painted == "\x1b[1m[red]x[/] :smile: \x1b[0m10.0.0.1"


def test_neighbours_of_one_style_are_painted_as_one() -> None:
    spans = (Span("a", "dim"), Span(" b", "dim"), Span("c"), Span("d"))
    assert Brush(colour=True).paint(spans) == "\x1b[2ma b\x1b[0mcd"
    assert Brush(colour=False).paint(spans) == "a bcd"
