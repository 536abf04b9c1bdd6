"""Logs in the CRI's format, and the streams that feed them: no cluster, only pipes and terminals."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labs.cluster import containerio, containerlogs
from labs.cluster.containerio import BACKLOG, CHUNK, ContainerIO
from labs.cluster.containerlogs import MAX_LINE, STDERR, STDOUT, ContainerLog, parse, stamp, tail_start

Scenario = Callable[[ContainerIO], Coroutine[Any, Any, None]]


def written(log: ContainerLog) -> list[tuple[bytes, bytes, bytes]]:
    """Stream, tag and text of each line of a log."""
    found = []
    for line in log.path.read_bytes().splitlines():
        match = re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) (F|P) (.*)", line)
        assert match is not None, line
        found.append(match.groups())
    return found


def text(log: ContainerLog, stream: bytes) -> bytes:
    """All that a log has of a stream."""
    lines = map(parse, log.path.read_bytes().splitlines(keepends=True))
    return b"".join(line.text for line in lines if line.stream == stream)


def test_lines_have_time_stream_and_tag(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "a" / "1.log")
    log.write(STDOUT, b"one\ntw")
    log.write(STDERR, b"wrong\r\n\n")
    log.write(STDOUT, b"o\nthree")
    assert written(log) == [
        (b"stdout", b"F", b"one"),
        (b"stderr", b"F", b"wrong"),
        (b"stderr", b"F", b""),
        (b"stdout", b"F", b"two"),
    ]
    log.close()
    assert written(log)[4:] == [(b"stdout", b"P", b"three")]


def test_long_lines_are_parted(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "1.log")
    log.write(STDOUT, b"x" * MAX_LINE + b"\n" + b"y" * (2 * MAX_LINE) + b"\n" + b"z" * (MAX_LINE + 1))
    log.close()
    assert [(tag, len(text), text[:1]) for _, tag, text in written(log)] == [
        (b"F", MAX_LINE, b"x"),
        (b"P", MAX_LINE, b"y"),
        (b"F", MAX_LINE, b"y"),
        (b"P", MAX_LINE, b"z"),
        (b"P", 1, b"z"),
    ]


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=50)), max_size=30), st.integers(1, 40))
def test_nothing_is_lost_however_it_comes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bytes, bytes]], limit: int
) -> None:
    pieces = [(stream, data.replace(b"\r", b"")) for stream, data in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(containerlogs, "MAX_LINE", limit)
        log = ContainerLog(tmp_path_factory.mktemp("log") / "1.log")
        for stream, data in pieces:
            log.write(stream, data)
        log.close()
    for stream in (STDOUT, STDERR):
        assert text(log, stream) == b"".join(data for one, data in pieces if one == stream)
    assert max((len(parse(line).text) for line in log.path.read_bytes().splitlines()), default=0) <= limit + 1


def test_a_full_log_begins_anew_and_its_reader_has_it_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containerlogs, "MAX_BYTES", 1000)
    log = ContainerLog(tmp_path / "1.log")
    with log.path.open("rb") as reader:
        for number in range(30):
            log.write(STDOUT, b"%040d\n" % number)
        kept = reader.read().splitlines()
    assert [int(parse(line).text) for line in kept] == list(range(13))  # 13 lines of 80 bytes are more than 1,000
    assert [int(words) for _, _, words in written(log)] == list(range(26, 30))


def test_only_the_last_former_log_is_kept(tmp_path: Path) -> None:
    for number in range(4):
        log = ContainerLog(tmp_path / f"{number}.log")
        os.utime(log.path, ns=(number, number))
        log.forget_older()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.log", "3.log"]


@pytest.mark.parametrize("size", [10, 5000])
def test_the_tail_is_found_from_the_end(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log"
    lines = [b"%d %s\n" % (number, b"x" * size) for number in range(40)]
    path.write_bytes(b"".join(lines))
    with path.open("rb") as file:
        for count in (0, 1, 2, 39, 40, 41, 1000):
            start = tail_start(file.fileno(), count)
            assert path.read_bytes()[start:] == b"".join(lines[-count:] if count else [])


def test_times_sort_as_text() -> None:
    assert stamp(1_500_000_000_000_000_001) == b"2017-07-14T02:40:00.000000001Z"
    moments = [0, 1, 999_999_999, 1_000_000_000, 1_764_355_049_192_093_500]
    assert sorted(map(stamp, moments)) == list(map(stamp, moments))


def with_io(tmp_path: Path, scenario: Scenario, **flags: bool) -> ContainerLog:
    """Run a scenario with the streams of a container that is to be played by it."""

    async def run() -> ContainerLog:
        io = ContainerIO(ContainerLog(tmp_path / "1.log"), **flags)
        try:
            await asyncio.wait_for(scenario(io), 20)
        finally:
            io.finish()
        assert io.log is not None
        return io.log

    return asyncio.run(run())


async def start(io: ContainerIO, script: str, **options: Any) -> asyncio.subprocess.Process:
    """A program with the container's ends, which belong to it alone afterwards."""
    stdin, stdout, stderr = io.ends
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", script, stdin=stdin, stdout=stdout, stderr=stderr, **options
    )
    io.begin()
    return process


def test_all_of_a_fast_writer_is_in_the_log_when_it_has_ended(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        process = await start(io, "seq 100000; printf unended; echo also >&2")
        await process.wait()

    log = with_io(tmp_path, scenario)
    expected = b"".join(b"%d\n" % number for number in range(1, 100001)) + b"unended"
    assert (text(log, STDOUT), text(log, STDERR)) == (expected, b"also\n")


def test_who_writes_without_end_leaves_time_for_others(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        process = await start(io, "exec yes")
        loop = asyncio.get_running_loop()
        latest = 0.0
        for _ in range(100):
            began = loop.time()
            await asyncio.sleep(0.005)
            latest = max(latest, loop.time() - began - 0.005)
        process.kill()
        await process.wait()
        assert latest < 0.2

    with_io(tmp_path, scenario)


def test_a_full_pipe_is_read_again_after_a_pause(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        assert io.log is not None
        writer = os.dup(io.ends[1])
        io.begin()
        os.write(writer, b"x\n" * (CHUNK // 2))
        while (size := io.log.path.stat().st_size) == 0:
            await asyncio.sleep(0)
        os.write(writer, b"y\n")
        for _ in range(3):
            await asyncio.sleep(0)
        assert io.log.path.stat().st_size == size
        await asyncio.sleep(0.2)
        assert io.log.path.stat().st_size > size
        os.close(writer)

    with_io(tmp_path, scenario)


def test_who_is_attached_gets_bytes_as_they_come(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        attachment = io.attach()
        process = await start(
            io,
            "printf 'name: '; read name; echo hello $name; cat >&2",
        )
        assert await attachment.read() == (STDOUT, b"name: ")
        await io.write(b"you\nall the rest")
        assert await attachment.read() == (STDOUT, b"hello you\n")
        attachment.close()
        io.end_input()  # for good, because of stdin_once
        await process.wait()

    log = with_io(tmp_path, scenario, stdin=True, stdin_once=True)
    assert (text(log, STDOUT), text(log, STDERR)) == (b"name: hello you\n", b"all the rest")


def test_input_waits_until_it_is_taken_and_ends_with_the_container(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        process = await start(io, "exec sleep 60")
        writing = asyncio.create_task(io.write(bytes(1 << 20)))
        await asyncio.sleep(0.05)
        assert not writing.done()
        process.kill()
        await process.wait()
        io.finish()
        await writing

    with_io(tmp_path, scenario, stdin=True)


def test_a_container_waits_for_who_is_attached(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        attachment = io.attach()
        process = await start(io, "head -c 3000000 /dev/zero; echo done")
        await asyncio.sleep(0.3)
        assert process.returncode is None
        assert BACKLOG < attachment.backlog <= BACKLOG + (1 << 16)
        size = 0
        while size < 3_000_005:
            piece = await attachment.read()
            assert piece is not None
            size += len(piece[1])
        await process.wait()
        io.finish()
        assert await attachment.read() is None

    assert len(text(with_io(tmp_path, scenario), STDOUT)) == 3_000_005


def test_also_one_that_writes_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containerio, "BACKLOG", 7)

    async def scenario(io: ContainerIO) -> None:
        attachment = io.attach()
        writer = os.dup(io.ends[1])
        io.begin()
        for number in range(6):
            os.write(writer, b"line %d\n" % number)
            await asyncio.sleep(0.01)
        assert attachment.backlog == len(b"line 0\n") + len(b"line 1\n")
        os.close(writer)
        pieces = []
        while (piece := await attachment.read()) is not None:
            pieces.append(piece[1])
            io.finish()
        assert b"".join(pieces) == b"".join(b"line %d\n" % number for number in range(6))

    with_io(tmp_path, scenario)


def test_a_terminal(tmp_path: Path) -> None:
    async def scenario(io: ContainerIO) -> None:
        attachment = io.attach()
        io.resize(101, 33)
        process = await start(io, "test -t 0 -a -t 1 -a -t 2 && stty size && read x && echo got $x")
        assert await attachment.read() == (STDOUT, b"33 101\r\n")
        await io.write(b"this\n")
        await process.wait()

    assert text(with_io(tmp_path, scenario, stdin=True, tty=True), STDOUT) == b"33 101\nthis\ngot this\n"


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def scenario(io: ContainerIO) -> None:
        process = await start(io, "echo")
        await process.wait()

    before = count()
    for flags in ({}, {"stdin": True}, {"tty": True}, {"stdin": True, "tty": True}):
        with_io(tmp_path, scenario, **flags)
    assert count() == before
