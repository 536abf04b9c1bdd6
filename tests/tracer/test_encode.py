"""The fast JSON says exactly what the slow one says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracer.fakes import T0, FakeNames, example, raw, shape
from tracer.encode import BLOCK, JsonLines, timestamp
from tracer.events import RawConnection
from tracer.filters import Filter
from tracer.resolve import Resolver, fill
from tracer.shapes import Entry, Item, Shapes


def json_lines(items: Sequence[Item]) -> list[bytes]:
    """The lines, one by one."""
    return b"".join(JsonLines().blocks(items)).splitlines(keepends=True)


def test_lines_equal_the_plain_encoding() -> None:
    resolver = Resolver(FakeNames())
    batch = [raw(0), raw(1, latency_ns=-1), raw(900), raw(5000, shape(comm=b"wget")), raw(899)]
    lines = json_lines(Shapes(resolver, Filter()).items(batch))
    assert [line.decode() for line in lines] == [
        json.dumps(resolver.connection(each).to_json()) + "\n" for each in batch
    ]


@pytest.mark.parametrize(
    "name", ["100%", "%s %d", "{x}", '"', "\\", "\x1b]0;x\x07", "\x9b", "\u202e", "a\nb", "😀", "\ud800"]
)
def test_any_name_comes_through_whole_and_in_printable_ascii(name: str) -> None:
    shared = example(process={"pid": 1, "comm": name, "cgroup_id": 1, "netns": 1}, node=name)
    line = json_lines([(T0, 412_000, 46354, Entry(shared))])[0].decode()
    assert line.endswith("\n") and line[:-1].isascii() and line[:-1].isprintable()
    assert json.loads(line) == json.loads(json.dumps(fill(shared, T0, 412_000, 46354).to_json()))
    assert json.loads(line)["node"] == name


@given(st.integers(0, 2**62))
def test_timestamp(time_ns: int) -> None:
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert timestamp(time_ns) == f"{expected:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


@given(st.lists(st.integers(0, 10_000_000_000), min_size=1))
def test_times_may_jump_within_a_batch(offsets: list[int]) -> None:
    batch = [RawConnection(T0 + offset, 1, 1, shape()) for offset in offsets]
    lines = json_lines(Shapes(Resolver(None), Filter()).items(batch))
    assert [json.loads(line)["time"] for line in lines] == [timestamp(each.time_ns) for each in batch]


@pytest.mark.parametrize("fraction", [0, 1, 99_999_999, 100_000_000, 999_999_999])
def test_a_fraction_of_a_second_has_nine_digits(fraction: int) -> None:
    time_ns = T0 - T0 % 1_000_000_000 + fraction
    (line,) = json_lines(Shapes(Resolver(None), Filter()).items([RawConnection(time_ns, 1, 1, shape())]))
    assert json.loads(line)["time"] == timestamp(time_ns)


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_blocks_are_of_whole_lines(count: int) -> None:
    batch = [RawConnection(T0 + n, 1000 * n, n, shape()) for n in range(count)]
    blocks = list(JsonLines().blocks(Shapes(Resolver(None), Filter()).items(batch)))
    documents = [[json.loads(line) for line in block.splitlines()] for block in blocks]
    assert [len(each) for each in documents] == [BLOCK] * (count // BLOCK) + [count % BLOCK] * (count % BLOCK > 0)
    told = [(each["source"]["port"], each["latency_us"]) for block in documents for each in block]
    assert told == [(n, n) for n in range(count)]
