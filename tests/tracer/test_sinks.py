"""What happens when the other side does not take what we write."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracer.fakes import FakeNames, MemoryWriter, raw
from tracer.errors import OutputError
from tracer.filters import Filter
from tracer.resolve import Resolver
from tracer.shapes import Shapes
from tracer.sinks import Interrupted, JsonSink, ReaderGone, Writer


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """Reading and writing end; what a test closes it sets to -1."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        if end >= 0:
            os.close(end)


def test_json_goes_to_every_writer() -> None:
    first, second = MemoryWriter([]), MemoryWriter([])
    items = Shapes(Resolver(FakeNames()), Filter()).items([raw(0), raw(1)])
    sink = JsonSink(first, second)  # type: ignore[arg-type]
    sink.items(items)
    sink.documents([({"type": "dns"}, None)])
    assert first.texts == second.texts
    assert [json.loads(line)["type"] for line in first.lines] == ["connection", "connection", "dns"]


def test_a_batch_is_one_write() -> None:
    writer = MemoryWriter([])
    JsonSink(writer).items(Shapes(Resolver(None), Filter()).items([raw(n) for n in range(240)]))  # type: ignore[arg-type]
    assert len(writer.texts) == 1


def test_a_pipe_takes_more_than_it_holds(pipe: list[int]) -> None:
    text = "0123456789abcde\n" * 20_000  # five times what a pipe holds
    read = []

    def reader() -> None:
        while chunk := os.read(pipe[0], 65536):
            read.append(chunk)

    thread = threading.Thread(target=reader)
    thread.start()
    Writer(pipe[1], "pipe").write(text)
    os.close(pipe[1])
    pipe[1] = -1
    thread.join()
    assert b"".join(read).decode() == text


def test_closed_pipe(pipe: list[int]) -> None:
    writer = Writer(pipe[1], "pipe")
    writer.check_reader()
    os.close(pipe[0])
    pipe[0] = -1
    with pytest.raises(ReaderGone):
        writer.check_reader()
    with pytest.raises(ReaderGone):
        writer.write("x")


def test_a_stuck_reader_does_not_keep_us_from_stopping(pipe: list[int]) -> None:
    stopping = time.monotonic() + 0.3
    writer = Writer(pipe[1], "pipe", stopped=lambda: time.monotonic() > stopping)
    give_up = threading.Timer(5, lambda: os.close(pipe[0]))  # then the write ends with ReaderGone
    give_up.start()
    with pytest.raises(Interrupted):
        writer.write("x" * 1_000_000)
    give_up.cancel()
    assert time.monotonic() < stopping + 2


def test_non_blocking_pipe(pipe: list[int]) -> None:
    os.set_blocking(pipe[1], False)
    received: list[int] = []

    def reader() -> None:
        while len(received) < 300_000:
            time.sleep(0.001)
            received.extend(os.read(pipe[0], 65536))

    thread = threading.Thread(target=reader)
    thread.start()
    Writer(pipe[1], "pipe").write("x" * 300_000)
    thread.join()
    assert len(received) == 300_000


def test_disk_full() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OutputError) as caught:
        Writer(full.fileno(), "/dev/full").write("x")
    assert caught.value.message == "can't write /dev/full: No space left on device"
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb", buffering=0) as file:
        Writer(file.fileno(), "out", encoding="ascii").write("a → b\n")
    assert path.read_bytes() == b"a \\u2192 b\n"
